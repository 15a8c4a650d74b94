"""The paper's theory, run on small random MDPs through the scripts' own losses.

Nothing is sampled: an expectation is a sum over all states and actions, a value
function the solution of a linear system, in float64. The visits of a state are
Σ_t γ^t P(S_t = s); with η their sum, they are η d^π.
"""

import math
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import a2c
import ppo
import reinforce
import trpo

torch.set_num_threads(1)
STATES, ACTIONS = 5, 3
EPSILON, DELTA = ppo.Config().epsilon, trpo.Config().delta
assert_close = partial(torch.testing.assert_close, rtol=0, atol=1e-11)


class MDP(NamedTuple):
    P: Tensor  # [S, A, S], sums to less than 1 where the episode may end
    r: Tensor  # [S, A]
    p0: Tensor  # [S]
    gamma: float


def normals(seed: int):
    """A function that draws normal tensors of the shape it is given."""
    generator = torch.Generator().manual_seed(seed)
    return partial(torch.randn, generator=generator, dtype=torch.float64)


def random_mdp(normal, gamma: float = 0.9) -> MDP:
    P = (2 * normal(STATES, ACTIONS, STATES)).softmax(-1)
    if gamma == 1:  # every step is the last one with probability 0.03 to 0.2
        P *= 0.8 + 0.17 * normal(STATES, ACTIONS, 1).sigmoid()
    return MDP(P, normal(STATES, ACTIONS), normal(STATES).softmax(-1), gamma)


def solve(mdp: MDP, pi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V [S], A [S, A], visits [S] and J of a policy [S, A]."""
    transition = mdp.gamma * torch.einsum("sa,sat->st", pi, mdp.P)
    matrix = torch.eye(len(pi), dtype=torch.float64) - transition
    V = torch.linalg.solve(matrix, (pi * mdp.r).sum(1))
    visits = torch.linalg.solve(matrix.T, mdp.p0)
    return V, mdp.r + mdp.gamma * mdp.P @ V - V[:, None], visits, mdp.p0 @ V


def weighted(p: Tensor, x: Tensor) -> Tensor:
    """The batch that has every outcome once and whose mean is Σ p x."""
    return (p.numel() * p * x).flatten()


def gain(new: Tensor, old: Tensor, A: Tensor, d: Tensor) -> Tensor:
    """E[r A] over S ∼ d and A ∼ π_old, by TRPO's objective."""
    A = weighted(d[:, None] * old, A)
    return trpo.surrogate(new.log().flatten(), old.log().flatten(), A)


def clipped_gain(new: Tensor, old: Tensor, A: Tensor, d: Tensor) -> Tensor:
    """E[min(r A, clip(r, 1 − ε, 1 + ε) A)] over the same, by PPO's loss."""
    A = weighted(d[:, None] * old, A)
    return -ppo.policy_loss(new.log().flatten(), old.log().flatten(), A, EPSILON)


def drift(new: Tensor, old: Tensor, A: Tensor) -> Tensor:  # [S]
    """What PPO takes off TRPO's objective in each state."""
    states, data = torch.eye(len(old), dtype=torch.float64), (new, old, A)
    return torch.stack([gain(*data, s) - clipped_gain(*data, s) for s in states])


def kl(old: Tensor, new: Tensor) -> Tensor:  # [S]
    return (old * (old / new).log()).sum(1)


# ── Section 3 ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("script", [reinforce, a2c])
def test_policy_gradient_theorem(script, gamma):
    """Theorem 3.1: ∇J = η E[Q ∇ ln π], with η the mean length of an episode.

    REINFORCE weighs by Q, A2C by Q − V. γ < 1 is the chance that an episode goes on.
    """
    for seed in range(5):
        normal = normals(seed)
        mdp, theta = random_mdp(normal, gamma), 2 * normal(STATES, ACTIONS)
        pi = theta.requires_grad_().softmax(1)
        V, A, visits, J = solve(mdp, pi)
        eta, there = 0.0, mdp.p0  # the episodes that have not ended by t, by state
        while there.sum() > 1e-14:
            eta += there.sum()
            there = mdp.gamma * torch.einsum("s,sa,sat->t", there, pi.detach(), mdp.P)
        p = visits[:, None] / eta * pi
        assert_close(p.sum().item(), 1.0)
        weights = weighted(p, A if script is a2c else A + V[:, None]).detach()
        loss = eta * script.policy_loss(pi.log().flatten(), weights)
        (expected,) = grad(J, theta, retain_graph=True)
        assert_close(grad(-loss, theta), (expected,))
        assert expected.norm() > 0.1


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_baseline(seed, uniform):
    """Section 3.2: b(s) leaves the mean gradient, and b = V lowers its variance.

    ‖∇ ln π‖² and Q are taken to be independent, which makes V the best b. They are if π
    is uniform. Otherwise V helps as a rule: not for 3 in 100 other seeds.
    """
    normal = normals(seed)
    mdp, theta = random_mdp(normal), normal(STATES, ACTIONS) * (not uniform)
    pi = theta.softmax(1)
    V, A, visits, _ = solve(mdp, pi)
    Q, p = A + V[:, None], (visits[:, None] / visits.sum() * pi).flatten()

    def moments(b):  # of the gradient that one state and action give
        def objectives(theta):
            weights = (Q - b[:, None]).flatten()
            pairs = zip(theta.log_softmax(1).flatten(), weights, strict=True)
            return -torch.stack([a2c.policy_loss(*pair) for pair in pairs])

        samples = torch.autograd.functional.jacobian(objectives, theta).flatten(1)
        return p @ samples, p @ (samples - p @ samples).square().sum(1)

    baselines = 0 * V, V, V + 0.1 * normal(STATES)
    means, variances = zip(*map(moments, baselines), strict=True)
    assert_close(means[1], means[0])
    assert_close(means[2], means[0])
    assert variances[1] < variances[0]
    assert variances[1] < variances[2] or not uniform


def test_importance_sampling():
    """Definition 3.2: E_β[ρ G | s] = V_π(s), over all trajectories of three steps."""
    normal = normals(0)
    P, r, _, gamma = random_mdp(normal)
    policies = pi, beta = (2 * normal(2, STATES, ACTIONS)).softmax(-1)
    V = torch.zeros(2, STATES, dtype=torch.float64)  # of both policies
    for _ in range(3):
        V = (policies * (r + gamma * torch.einsum("sat,it->isa", P, V))).sum(-1)

    def steps(x):  # [S, A] as it enters [S, A, S, A, S, A] at each step
        return x[..., None, None, None, None], x[..., None, None], x

    log_pi, log_beta = sum(steps(pi.log())), sum(steps(beta.log()))
    G = sum(gamma**k * reward for k, reward in enumerate(steps(r)))
    p = log_beta.exp() * P[..., None, None, None] * P[..., None]
    for s in range(STATES):
        returns = weighted(p[s], G[s])
        value = trpo.surrogate(log_pi[s].flatten(), log_beta[s].flatten(), returns)
        assert_close(value, V[0, s])
        assert_close(returns.mean(), V[1, s])
        assert (V[0, s] - V[1, s]).abs() > 0.1


# ── Section 4.3 ─────────────────────────────────────────────────────────────────────


def lower_bound(mdp: MDP, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """J of the new policy, and the L and C of Theorem 4.1.

    L has the gradient of J only if its d^π is the visits, not divided by η.
    """
    _, A, visits, J = solve(mdp, old)
    C = 4 * A.abs().max() * mdp.gamma / (1 - mdp.gamma) ** 2
    return solve(mdp, new)[-1], J + gain(new, old, A, visits), C


def test_lower_bound():
    """Theorem 4.1, Eqs. 15 and 16: J ≥ L − C max_s TV² ≥ L − C max_s KL.

    At the old policy J and L are equal, and so are their gradients.
    """
    below = 0  # pairs for which L alone is no bound
    for seed in range(200):
        normal, gamma = normals(seed), (0.3, 0.6, 0.9)[seed % 3]
        mdp, size = random_mdp(normal, gamma), 10 ** (seed / 100 - 1)
        theta, step = normal(2, STATES, ACTIONS)
        old, new = theta.softmax(1), (theta + size * step).softmax(1)
        J, L, C = lower_bound(mdp, new, old)
        tv = (new - old).abs().sum(1).max() / 2
        assert J >= L - C * tv**2 >= L - C * kl(old, new).max()
        below += J < L
        J, L, _ = lower_bound(mdp, theta.requires_grad_().softmax(1), old)
        assert_close(J, L)
        assert_close(grad(J - L, theta)[0], torch.zeros_like(theta))
    assert below > 50


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_lower_bound_is_tight(gamma):
    """Eq. 15 would be false with 3.98 for its 4: action 1 leads to state 1 for good."""
    a = 1e-3 * (1 - gamma)
    old = torch.tensor([[a, a, 1 - 2 * a]] * 2, dtype=torch.float64)
    new = torch.tensor([[0, 2 * a, 1 - 2 * a]] * 2, dtype=torch.float64)
    P = torch.eye(2, dtype=torch.float64)[torch.tensor([[0, 1, 0], [1, 1, 1]])]
    r = torch.tensor([[-1, 1, 0], [1, -1, 0]], dtype=torch.float64)
    J, L, C = lower_bound(MDP(P, r, P[0, 0], gamma), new, old)
    assert L - C * a**2 <= J < L - 3.98 / 4 * C * a**2


# ── Section 5.2 ─────────────────────────────────────────────────────────────────────


def test_ppo_drift():
    """Definition 5.1, Section 5.2.2: PPO's drift is E[max(0, (r − clip(r)) A)].

    It is nowhere negative, and zero with zero gradient while no ratio is clipped.
    """
    positive = 0
    for seed in range(100):
        normal = normals(seed)
        old, new = normal(2, STATES, ACTIONS).softmax(-1)
        A, r = solve(random_mdp(normal), old)[1], new / old
        D = drift(new, old, A)
        excess = (r - r.clamp(1 - EPSILON, 1 + EPSILON)) * A
        assert_close(D, (old * excess.clamp(min=0)).sum(1))
        assert D.min() > -1e-14
        positive += (D > 1e-3).sum()
        for share in 0, 0.999 * EPSILON / (r - 1).abs().max():
            policy = old.lerp(new, share).requires_grad_()
            D = drift(policy, old, A)
            (gradient,) = grad(D.sum(), policy)
            assert_close(D, torch.zeros_like(D))
            assert_close(gradient, torch.zeros_like(gradient))
    assert positive > 250  # of 500 states


FLOOR = 1e-12  # Π here: policies nowhere below this, as no ratio exists at π_old = 0


def bisect(too_low, low: Tensor, high: Tensor) -> Tensor:
    for _ in range(45):
        middle = (low + high) / 2
        wrong = too_low(middle)
        low, high = torch.where(wrong, middle, low), torch.where(wrong, high, middle)
    return high


def update_trpo(old: Tensor, A: Tensor, d: Tensor):
    """The largest gain with an average KL of δ is at π = λ π_old / (μ(s) − A).

    By the Lagrangian; exp(A/λ) π_old would belong to the KL in the other direction.
    """
    gap = A.max(1, keepdim=True).values - A

    def policy(log_lambda):
        def scores(log_mu):  # μ counted from the largest A
            return (log_lambda.exp() * old / (log_mu.exp() + gap)).clamp(min=FLOOR)

        ends = [(log_lambda + x).expand(len(old), 1) for x in (math.log(FLOOR), 1)]
        new = scores(bisect(lambda x: scores(x).sum(1, keepdim=True) > 1, *ends))
        return new / new.sum(1, keepdim=True)

    ends = torch.tensor([-40, 10], dtype=torch.float64)
    log_lambda = bisect(lambda x: d @ kl(old, policy(x)) > DELTA, *ends)

    def lagrangian(new):
        return gain(new, old, A, d) + log_lambda.exp() * (DELTA - d @ kl(old, new))

    new = policy(log_lambda)
    assert d @ kl(old, new) <= DELTA + 1e-12
    assert_close(lagrangian(new), gain(new, old, A, d))
    return new, lagrangian, torch.zeros(len(old), dtype=torch.float64)


def update_ppo(old: Tensor, A: Tensor, d: Tensor):
    """The largest clipped gain is a linear program in each state.

    It is linear in π(a|s) on both sides of the ratio where it is clipped, and steeper
    below: so the probability goes where the slope is largest, until it is used up.
    """
    kink = (old * (1 + EPSILON * A.sign())).clamp(FLOOR, 1)
    room = torch.cat([kink - FLOOR, 1 - kink], 1)
    slope = torch.cat([A.clamp(min=0), A.clamp(max=0)], 1)
    order = slope.argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    left = 1 - ACTIONS * FLOOR - (room.cumsum(1) - room)
    filled = torch.zeros_like(room).scatter(1, order, room.minimum(left.clamp(min=0)))
    new = FLOOR + filled[:, :ACTIONS] + filled[:, ACTIONS:]
    return new, partial(clipped_gain, old=old, A=A, d=d), drift(new, old, A)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("update", [update_trpo, update_ppo])
def test_mirror_learning(update, seed):
    """Theorem 5.4: an update (Definition 5.3) adds E[D] or more to J; V → V*, π → π*.

    An update is a maximum if no small move of probability between two actions gains:
    the objectives are concave, and sums over states and actions.
    """
    normal = normals(seed)
    mdp, policy = random_mdp(normal), normal(STATES, ACTIONS).softmax(1)
    optimum = torch.zeros(STATES, dtype=torch.float64)
    for _ in range(500):
        Q = mdp.r + mdp.gamma * mdp.P @ optimum
        optimum = Q.max(1).values
    for _ in range(40):
        V, A, visits, J = solve(mdp, policy)
        policy, objective, D = update(policy, A, visits / visits.sum())
        assert_close(policy.sum(1), torch.ones_like(V))
        assert solve(mdp, policy)[-1] >= J + mdp.p0 @ D - 1e-9
        for s, (a, b) in product(range(STATES), permutations(range(ACTIONS), 2)):
            if policy[s, a] > 2 * FLOOR:
                rival = policy.clone()
                rival[s, a] -= 1e-3 * policy[s, a]
                rival[s, b] += 1e-3 * policy[s, a]
                assert objective(rival) <= objective(policy) + 1e-14
        if (optimum - V).max() < 1e-9:
            break
    assert_close(V, optimum, atol=1e-9)
    assert_close(policy, torch.eye(ACTIONS).double()[Q.argmax(1)], atol=1e-9)
