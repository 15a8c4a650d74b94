"""The paper's theory, run on small random MDPs through the scripts' own losses.

Nothing is sampled: an expectation is a sum over all states and actions, a value
function the solution of a linear system, in float64. The visits of a state are
Σ_t γ^t P(S_t = s); with η their sum, they are η d^π. Last come a few facts of practice
that docs/theory.md states, measured on the scripts' own networks and updates.
"""

import math
from copy import deepcopy
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

import pytest
import torch
from common import make_environments
from gymnasium.spaces import Box
from torch import Tensor
from torch.autograd import grad
from torch.distributions import Categorical, Normal
from torch.nn.functional import cosine_similarity
from torch.nn.utils import clip_grad_norm_, parameters_to_vector
from torch.optim import Adam

import a2c
import ppo
import reinforce
import trpo
import vmpo

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


# γ, then the median and the largest angle that docs/theory.md tells of, in degrees
ANGLES = ((0.5, 14.9, 40.8), (0.8, 5.8, 19.5), (0.9, 2.9, 12.2), (0.99, 0.3, 1.6))


@pytest.mark.parametrize(("gamma", "median", "largest"), ANGLES)
def test_the_angle_of_the_missing_discount(gamma, median, largest):
    """Algorithm 3 steps along Σ_t G_t ∇ ln π; ∇J has a factor γ^t in that sum.

    Every step is the last one with probability 0.03 to 0.2. Without the factor a state
    counts as often as it is visited; the block of a state in a table of θ is then too
    long, but not turned, and so the angle stays below 90°.
    """
    angles = []
    for seed in range(200):
        normal = normals(seed)
        mdp, theta = random_mdp(normal, 1.0), 2 * normal(STATES, ACTIONS)
        pi = theta.requires_grad_().softmax(1)
        V, A, discounted, J = solve(mdp._replace(gamma=gamma), pi)
        visits = solve(mdp, pi)[2]
        Q, log_pi = (A + V[:, None]).detach(), pi.log().flatten()

        def theta_gradient(visits, Q=Q, pi=pi, log_pi=log_pi, theta=theta):
            weights = weighted(visits[:, None] * pi, Q).detach()
            loss = reinforce.policy_loss(log_pi, weights)
            return grad(-loss, theta, retain_graph=True)[0]

        assert_close(theta_gradient(discounted), grad(J, theta, retain_graph=True)[0])
        pair = theta_gradient(visits).flatten(), theta_gradient(discounted).flatten()
        angles.append(cosine_similarity(*pair, dim=0).clamp(-1, 1).acos().rad2deg())
    angles = torch.stack(angles)
    assert angles.median().item() == pytest.approx(median, abs=0.05)
    assert angles.max().item() == pytest.approx(largest, abs=0.05)


def test_without_the_discount_a_step_can_lead_downhill():
    """One θ for two states in a row: the action earns 1 in the first, −1.5 in the next.

    J = p (1 − 1.5 γ) is 0.25 p for γ = 0.5, but Algorithm 3 steps along 1 − 1.5 < 0.
    """
    gamma, rewards = 0.5, torch.tensor([1.0, -1.5])
    theta = torch.tensor(0.3, requires_grad=True)
    p = theta.sigmoid()
    p_old = p.detach()
    J = p * rewards[0] + gamma * p * rewards[1]
    log_prob, weights = [], []  # of the four episodes, weighted by their probabilities
    for acts in product([0.0, 1.0], repeat=2):
        acts = torch.tensor(acts)
        chance = (p_old * acts + (1 - p_old) * (1 - acts)).prod()
        ended = torch.tensor([[False], [True]])
        data = (acts * rewards)[:, None], ended, torch.zeros_like(ended)
        weights.append(chance * reinforce.compute_returns(*data, gamma)[:, 0])
        log_prob.append((p * acts + (1 - p) * (1 - acts)).log())
    log_prob, G = torch.stack(log_prob), torch.stack(weights)

    def slope(factor):  # on each of the two steps
        loss = reinforce.policy_loss(log_prob.flatten(), (G * factor).flatten())
        return grad(-loss * log_prob.numel(), theta, retain_graph=True)[0]

    (true,) = grad(J, theta, retain_graph=True)
    torch.testing.assert_close(slope(gamma ** torch.arange(2)), true)
    assert true > 0.05
    assert slope(torch.ones(2)) < -0.05


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


def test_the_hessian_of_the_kl_is_the_fisher_matrix():
    """At θ_old KL and its gradient are 0, and its Hessian is E[∇ ln π ∇ ln πᵀ].

    So KL ≈ ½ xᵀFx: it falls as the square of the step, and x is felt all the same.
    """
    for seed in range(10):
        normal = normals(seed)
        logits, direction = normal(2, STATES * ACTIONS)
        old = Categorical(logits=logits.view(STATES, ACTIONS))
        d = solve(random_mdp(normal), old.probs)[2]
        d = d / d.sum()

        def mean_kl(theta, old=old, d=d):
            new = Categorical(logits=theta.view(STATES, ACTIONS), validate_args=False)
            return d @ trpo.exact_kl(old, new)

        scores = torch.autograd.functional.jacobian(
            lambda theta: theta.view(STATES, ACTIONS).log_softmax(1).flatten(), logits
        )
        fisher = scores.T @ torch.diag((d[:, None] * old.probs).flatten()) @ scores
        theta = logits.clone().requires_grad_()
        kl = mean_kl(theta)
        (gradient,) = grad(kl, theta, create_graph=True)
        assert_close(kl.item(), 0.0)
        assert_close(gradient, torch.zeros_like(gradient))
        # trpo.py's way to a product with the Hessian, from that gradient of zeros
        product = trpo.fisher_vector_product(gradient, [theta], 0.0, direction)
        assert_close(product, fisher @ direction)
        assert product.norm() > 0.01
        for size in 1e-2, 1e-3:
            quadratic = size**2 / 2 * direction @ fisher @ direction
            ratio = mean_kl(logits + size * direction) / quadratic
            assert abs(ratio - 1) < 2 * size


# ── Section 4.5 and Appendix C ──────────────────────────────────────────────────────


def e_step(A: Tensor, eta: Tensor) -> Tensor:
    """The ψ that vmpo.py weighs the samples by."""
    log_prob = torch.zeros_like(A, requires_grad=True)
    return -grad(vmpo.policy_loss(log_prob, A, eta), log_prob)[0]


def best_eta(A: Tensor, eps_eta: float) -> Tensor:
    """Where the temperature loss, which is convex, has its minimum."""

    def falling(log_eta):
        eta = log_eta.exp().requires_grad_()
        return grad(vmpo.temperature_loss(A, eta, eps_eta), eta)[0] < 0

    return bisect(falling, *torch.tensor([[-5.0], [5.0]]).double())[0].exp()


def test_e_step():
    """Eqs. 42 and 44: the best ψ with KL(ψ‖p_old) ≤ ε_η, and the η that it has.

    A sum over the samples is n times an expectation under p_old: the density that
    Eq. 44 leaves out. At the best η the bound is met and the loss is ψ's gain.
    """
    for seed in range(10):
        normal, eps_eta = normals(seed), (0.01, 0.1)[seed % 2]
        counts = (3 * normal(STATES * ACTIONS)).exp().clamp(1, 50).round()
        A = normal(STATES * ACTIONS).repeat_interleave(counts.long())
        p_old = torch.full_like(A, 1 / len(A))  # of a sample
        eta = best_eta(A, eps_eta)
        psi = e_step(A, eta)
        assert_close(psi.sum().item(), 1.0)
        assert_close(psi, p_old * (A / eta).exp() / (p_old @ (A / eta).exp()))
        assert_close(psi @ (psi / p_old).log(), A.new_tensor(eps_eta), atol=1e-9)
        loss = vmpo.temperature_loss(A, eta, eps_eta)
        assert_close(loss, psi @ A, atol=1e-9)
        unweighted = eta * eps_eta + eta * (A / eta).unique().exp().sum().log()
        assert unweighted > loss + 0.1  # Eq. 44 as it is printed
        for rival in (0.3 * normal(100, len(A))).softmax(1):
            share = 1.0  # towards p_old until it is within the bound
            while (x := p_old.lerp(rival, share)) @ (x / p_old).log() > eps_eta:
                share *= 0.95
            assert x @ A <= psi @ A


def test_the_bound_of_the_e_step():
    """Eq. 41: ln p(I) = E_ψ[ln p(I, S, A)/ψ] + KL(ψ‖p(·|I)); the E-step makes KL 0."""
    for seed in range(10):
        normal = normals(seed)
        A, eta = normal(2, STATES * ACTIONS)
        eta = eta.exp()[0]
        p_old = torch.full_like(A, 1 / len(A))
        joint = p_old * (A / eta).exp() / 100  # Eq. 39, with any constant
        posterior = joint / joint.sum()
        for psi in normal(len(A)).softmax(0), e_step(A, eta):
            bound, gap = psi @ (joint / psi).log(), psi @ (psi / posterior).log()
            assert_close(bound + gap, joint.sum().log())
        assert_close(gap.item(), 0.0)


def test_m_step():
    """L_π is the KL from ψ to π_θ but for a constant; at its minimum π has ψ's odds."""
    for seed in range(10):
        normal = normals(seed)
        A, theta = normal(2, STATES, ACTIONS)
        eta, theta = A.new_tensor(0.7), theta.requires_grad_()
        psi, log_pi = e_step(A.flatten(), eta), theta.log_softmax(1).flatten()
        assert_close(psi.sum().item(), 1.0)
        loss = vmpo.policy_loss(log_pi, A.flatten(), eta)
        divergence = psi @ (psi.log() - log_pi)
        assert_close(grad(loss, theta, retain_graph=True), grad(divergence, theta))
        best = psi.log().view(STATES, ACTIONS).requires_grad_()
        loss = vmpo.policy_loss(best.log_softmax(1).flatten(), A.flatten(), eta)
        assert_close(grad(loss, best)[0], torch.zeros_like(best))


def test_the_trust_region_is_a_saddle():
    """Eq. 22 descends L = L_π + ν (KL − ε) in θ and ascends it in ν.

    Eq. 45 has the other sign: descended in θ, it would raise KL.
    """
    for seed in range(10):
        normal = normals(seed)
        old, theta = normal(2, STATES, ACTIONS)
        old, theta = Categorical(logits=old), theta.requires_grad_()
        nu, eps_nu = normal(1)[0].exp().requires_grad_(), 0.01
        (kl,) = vmpo.split_kl(old, Categorical(logits=theta, validate_args=False))
        slopes = grad(vmpo.kl_loss(kl, nu, eps_nu), (theta, nu), retain_graph=True)
        lagrangian = nu * (kl.mean() - eps_nu)
        uphill = grad(lagrangian, (theta, nu), retain_graph=True)
        assert_close(slopes, (uphill[0], -uphill[1]))
        further = Categorical(logits=theta + 1e-3 * slopes[0], validate_args=False)
        assert vmpo.split_kl(old, further)[0].mean() > kl.mean()


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


# ── in practice ─────────────────────────────────────────────────────────────────────


def test_densities_overflow_where_their_logarithms_do_not():
    """Humanoid's 17 actions with a std near the least one: β(a|s) is infinite."""
    normal = Normal(torch.zeros(17), 2e-3)
    log_prob = normal.log_prob(torch.zeros(17)).sum()
    assert log_prob.exp().isinf()
    new = Normal(torch.full((17,), 1e-4), 2e-3).log_prob(torch.zeros(17)).sum()
    ratio = trpo.surrogate(new[None], log_prob[None], torch.ones(1))
    assert ratio.item() == pytest.approx(math.exp(-17 * 0.05**2 / 2), rel=1e-4)
    assert (new.exp() / log_prob.exp()).isnan()


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.6), (0.0, 0.69), (0.0, 1.0)])
def test_an_evaluation_plays_the_median_of_the_squashed_policy(mean, std):
    """ln p of y = tanh x is largest at x = μ + 2 σ² tanh x, which is μ only for μ = 0.

    And for σ² > ½ that is a minimum between two modes.
    """
    statistics = ppo.RunningStatistics(1, enabled=False)
    policy = ppo.Policy(statistics, Box(-1, 1, (1,)), ppo.Config(policy_layers=(1,)))
    torch.nn.init.zeros_(policy.network[-1].weight)
    scale = math.log(math.expm1(std - 1e-3))  # softplus(scale) + 0.001 is the std
    policy.network[-1].bias.data = torch.tensor([mean, scale])
    distribution = policy(torch.zeros(1, 1))
    played = policy.to_environment(distribution.mode).item()
    assert played == pytest.approx(math.tanh(mean))
    torch.manual_seed(0)
    acted = policy.to_environment(distribution.sample((100_000,)))
    assert (acted <= played).double().mean().item() == pytest.approx(0.5, abs=0.01)
    x = torch.linspace(-4, 4, 800_001, dtype=torch.float64)
    log_density = -((x - mean) ** 2) / (2 * std**2) - (1 - x.tanh() ** 2).log()
    mode = x[log_density.argmax()]
    assert mode.item() == pytest.approx(
        mean + 2 * std**2 * mode.tanh().item(), abs=1e-4
    )
    assert (abs(mode - mean) < 0.1) == (mean == 0 and std**2 < 0.5)


def first_batch(script, seed: int):
    """All that the first update of a run on HalfCheetah needs, with a shorter U."""
    config = script.Config(unroll_length=256, seed=seed)
    agent, optimizer, *_ = script.make_agent(config)
    environments = make_environments(script, config)
    torch.manual_seed(environments.reset(seed, 0))
    batch = script.rollout(agent, environments, config)
    agent.statistics.absorb(batch.observations)
    batch = script.rollout(agent, environments, config)
    environments.vector.close()
    return agent, optimizer, batch, config


def test_damping_shortens_the_steps_of_trpo(monkeypatch):
    """By the quadratic model a step has the KL δ · dᵀĤd / dᵀ(Ĥ + damping) d."""
    products, product = [], trpo.fisher_vector_product

    def watched(grad_kl, parameters, damping, v):
        products.append((v, product(grad_kl, parameters, damping, v), damping))
        return products[-1][1]

    monkeypatch.setattr(trpo, "fisher_vector_product", watched)
    for seed in range(3):
        agent, _, batch, config = first_batch(trpo, seed)
        A = trpo.estimate_advantages(agent.value, batch, config)[0]
        A = (A - A.mean()) / A.std()
        data = batch.observations, batch.actions, batch.log_prob_old, A
        trpo.trust_region_step(agent.policy, *data, config)
        d, damped, damping = products[-1]
        share = 1 - damping * d.dot(d) / d.dot(damped)
        assert 0.2 < share < 0.8  # 0.38 to 0.59 over 16 seeds


def test_the_last_minibatch_of_a2c_is_off_policy():
    """At its eighth step the policy is not the one that acted; the ratio is left out.

    By the seeds the same minibatches come up in an update whose steps are 0 long.
    """
    for seed in range(3):
        agent, _, batch, config = first_batch(a2c, seed)
        old = log_probs(deepcopy(agent), batch, config, rate=0)
        new = log_probs(agent, batch, config, rate=config.learning_rate)
        changes = [(x - y).expm1().abs() for x, y in zip(new, old, strict=True)]
        assert len(changes) == 8
        assert changes[0].max() < 1e-6
        medians = [x.median() for x in changes]  # the largest rest on single actions
        assert medians[7] > 1.5 * medians[1]  # 2.2 to 5.8 times over 24 seeds
        assert 0.006 < medians[7] < 0.06  # 0.012 to 0.028 over 24 seeds


def log_probs(agent, batch, config, rate: float) -> list[Tensor]:
    """ln π_θ of the minibatches of an update of A2C, before each step."""
    seen, policy_loss = [], a2c.policy_loss

    def watched(log_prob, weights):
        seen.append(log_prob.detach())
        return policy_loss(log_prob, weights)

    optimizer = Adam(agent.parameters(), lr=rate)
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a2c, "policy_loss", watched)
        a2c.update(agent, optimizer, batch, config)
    return seen


def learned(factor: float, max_norm: float) -> Tensor:
    """The way that a critic has gone after 50 steps on `factor` times its loss."""
    normal = normals(0)
    observations, returns = 3 * normal(200, 4), 10 * normal(200)
    torch.manual_seed(0)
    statistics = ppo.RunningStatistics(4, enabled=False)
    value = ppo.Value(statistics, ppo.Config(value_layers=(16, 16)))
    value.statistics.scale = lambda observations: observations
    value.bfloat16, value.network = False, value.network.double()
    start = parameters_to_vector(value.parameters()).detach()
    value.forward = lambda x: value.network(x).squeeze(-1)
    optimizer = Adam(value.parameters(), lr=3e-3, fused=True)
    for i in range(50):
        part = slice(20 * (i % 10), 20 * (i % 10) + 20)
        loss = ppo.value_loss(value(observations[part]), returns[part] * (i % 10 == 0))
        optimizer.zero_grad()
        (factor * loss).backward()
        clip_grad_norm_(value.parameters(), max_norm)
        optimizer.step()
    return parameters_to_vector(value.parameters()).detach() - start


def test_the_clip_sees_a_constant_factor_that_adam_does_not():
    """clip(c g, n) = c clip(g, n/c): a factor of ¼ is a limit of 4 times as much."""
    unclipped, clipped = learned(1, math.inf), learned(1, 0.5)
    assert (learned(0.25, math.inf) - unclipped).norm() < 1e-4 * unclipped.norm()
    assert (learned(0.25, 0.5) - learned(1, 2.0)).norm() < 1e-4 * clipped.norm()
    assert (learned(0.25, 0.5) - clipped).norm() > 0.05 * clipped.norm()
