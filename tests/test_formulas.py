"""Every formula against brute force, a closed form, or numbers worked out by hand."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import CRITICS, NAMES, SCRIPTS, make_environments
from gymnasium.spaces import Box, Discrete
from torch.distributions import Categorical, Independent, Normal
from torch.distributions.kl import kl_divergence

import a2c
import ppo
import reinforce
import trpo
import vmpo

torch.set_num_threads(1)


def random_batch(seed: int, U: int = 12, N: int = 5) -> dict[str, torch.Tensor]:
    """Rewards, values and both kinds of episode ends, mixed."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(U, N, generator=generator, dtype=torch.float64)  # noqa: E731
    ends = torch.rand(U, N, generator=generator)
    terminated, truncated = ends < 0.15, (ends > 0.1) & (ends < 0.3)  # some are both
    values, next_values = normal(), normal()
    for t in range(U - 1):  # the next state is the next row's, unless an episode ended
        going = ~(terminated[t] | truncated[t])
        next_values[t] = torch.where(going, values[t + 1], next_values[t])
    return {
        "rewards": normal(),
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "truncated": truncated,
    }


# ── advantages and returns ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("as_numbers", [False, True])
def test_gae_is_the_double_sum_of_equation_19(seed, as_numbers):
    batch, gamma, lam = random_batch(seed), 0.9, 0.7
    r, v, v_next = batch["rewards"], batch["values"], batch["next_values"]
    terminal, ended = batch["terminated"], batch["terminated"] | batch["truncated"]
    assert terminal.any()
    assert (batch["truncated"] & ~terminal).any()
    expected = torch.zeros_like(r)
    for t in range(len(r)):
        for n in range(r.shape[1]):
            for i in range(t, len(r)):
                bootstrap = 0.0 if terminal[i, n] else v_next[i, n]
                delta = r[i, n] + gamma * bootstrap - v[i, n]
                expected[t, n] += (gamma * lam) ** (i - t) * delta
                if ended[i, n]:
                    break
    if as_numbers:
        batch["terminated"] = batch["terminated"].float()
        batch["truncated"] = batch["truncated"].float()
    advantages, returns = ppo.compute_gae(**batch, gamma=gamma, gae_lambda=lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + v)


def test_gae_with_lambda_1_is_the_n_step_estimate_of_equation_14():
    batch, gamma = random_batch(3), 0.95
    r, v, v_next = batch["rewards"], batch["values"], batch["next_values"]
    terminal, ended = batch["terminated"], batch["terminated"] | batch["truncated"]
    advantages, _ = a2c.compute_gae(**batch, gamma=gamma, gae_lambda=1.0)
    for t in range(len(r)):
        for n in range(r.shape[1]):
            end = next((i for i in range(t, len(r)) if ended[i, n]), len(r) - 1)
            k = end - t + 1
            estimate = sum(gamma**i * r[t + i, n] for i in range(k)) - v[t, n]
            if not terminal[end, n]:
                estimate += gamma**k * v_next[end, n]
            torch.testing.assert_close(advantages[t, n], estimate)


def test_a2c_with_lambda_1_is_reinforce_with_v_as_baseline():
    """Where every episode ends: R is G, and A is G − V(s)."""
    batch, gamma = random_batch(4), 0.9
    batch["terminated"][-1] = True
    batch["truncated"] = torch.zeros_like(batch["terminated"])
    going = ~batch["terminated"][:-1]
    later = torch.where(going, batch["values"][1:], batch["next_values"][:-1])
    batch["next_values"][:-1] = later
    advantages, returns = a2c.compute_gae(**batch, gamma=gamma, gae_lambda=1.0)
    ends = batch["terminated"], batch["truncated"]
    expected = reinforce.compute_returns(batch["rewards"], *ends, gamma)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantages, expected - batch["values"])
    log_prob = torch.randn(60, dtype=torch.float64)
    one, other = (s.policy_loss(log_prob, advantages.ravel()) for s in (a2c, reinforce))
    assert one == other


def test_gae_by_hand():
    """γ = 0.5, λ = 0.5: δ = (1, 2.25), Â₁ = 2.25, Â₀ = 1 + 0.25 · 2.25."""
    column = lambda *x: torch.tensor(x)[:, None]  # noqa: E731
    advantages, returns = ppo.compute_gae(
        rewards=column(1.0, 2.0),
        values=column(0.5, 1.0),
        next_values=column(1.0, 2.5),
        terminated=column(False, False),
        truncated=column(False, True),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages.flatten().tolist() == [1.5625, 2.25]
    assert returns.flatten().tolist() == [2.0625, 3.25]


@pytest.mark.parametrize("seed", range(3))
def test_returns_are_discounted_sums_to_the_end_of_the_episode(seed):
    batch, gamma = random_batch(seed), 0.9
    names = "rewards", "terminated", "truncated"
    rewards, terminated, truncated = (batch[name] for name in names)
    expected = torch.zeros_like(rewards)
    for t, n in np.ndindex(*rewards.shape):
        for i in range(t, len(rewards)):
            expected[t, n] += gamma ** (i - t) * rewards[i, n]
            if terminated[i, n] or truncated[i, n]:
                break
    returns = reinforce.compute_returns(rewards, terminated, truncated, gamma)
    torch.testing.assert_close(returns, expected)


def test_returns_of_whole_numbers_are_not_truncated():
    rewards, ended = torch.ones(3, 1, dtype=torch.int64), torch.zeros(3, 1).bool()
    returns = reinforce.compute_returns(rewards, ended, ended, 0.5)
    assert returns.flatten().tolist() == [1.75, 1.5, 1.0]


LOSSES = [(s, "policy_loss", 2) for s in (reinforce, a2c)]
LOSSES += [(ppo, "policy_loss", 3), (trpo, "surrogate", 3), (vmpo, "policy_loss", 2)]
LOSSES += [(script, "value_loss", 2) for script in CRITICS]
LOSSES += [(script, "approximate_kl", 2) for script in SCRIPTS.values()]
REST = {ppo.policy_loss: [0.2], vmpo.policy_loss: [torch.tensor(1.0)]}


@pytest.mark.parametrize(("script", "name", "count"), LOSSES)
def test_losses_refuse_a_column_beside_a_row(script, name, count):
    """[B, 1] against [B] would broadcast to [B, B], and train on nonsense."""
    loss, rest = getattr(script, name), REST.get(getattr(script, name), [])
    loss(*torch.rand(count, 4), *rest)
    for odd in range(count):
        tensors = [*torch.rand(count, 4)]
        tensors[odd] = tensors[odd][:, None]
        with pytest.raises(AssertionError):
            loss(*tensors, *rest)


def test_gae_refuses_shapes_that_broadcast():
    batch = random_batch(0)
    batch["values"] = batch["values"][:, :1]
    with pytest.raises(AssertionError):
        ppo.compute_gae(**batch, gamma=0.9, gae_lambda=0.9)


# ── losses of REINFORCE, A2C and PPO ────────────────────────────────────────────────


@pytest.mark.parametrize(
    "script", [reinforce, a2c], ids=lambda script: script.ALGORITHM
)
def test_score_function_loss_by_hand(script):
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = script.policy_loss(log_prob, torch.tensor([3.0, -0.5]))
    assert loss.item() == pytest.approx(-(-1 * 3 + -2 * -0.5) / 2)
    loss.backward()
    assert log_prob.grad.tolist() == [-1.5, 0.25]


@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_value_loss_by_hand(script):
    values = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = script.value_loss(values, torch.tensor([2.0, 1.0]))
    assert loss.item() == 5.0
    loss.backward()
    assert values.grad.tolist() == [-1.0, 3.0]


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective", "slope"),
    [  # Figure 3 (a): A > 0, flat to the right of 1 + ε
        (2.0, 0.5, 1.0, 2.0),
        (2.0, 1.0, 2.0, 2.0),
        (2.0, 1.1, 2.2, 2.0),
        (2.0, 1.3, 2.4, 0.0),
        (2.0, 3.0, 2.4, 0.0),
        # Figure 3 (b): A < 0, flat to the left of 1 − ε
        (-2.0, 0.5, -1.6, 0.0),
        (-2.0, 0.7, -1.6, 0.0),
        (-2.0, 0.9, -1.8, -2.0),
        (-2.0, 1.0, -2.0, -2.0),
        (-2.0, 1.5, -3.0, -2.0),
    ],
)
def test_ppo_objective_is_figure_3(advantage, ratio, objective, slope):
    r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-0.7], dtype=torch.float64)
    A = torch.tensor([advantage], dtype=torch.float64)
    loss = ppo.policy_loss(old + r.log(), old, A, epsilon=0.2)
    assert -loss.item() == pytest.approx(objective, abs=1e-12)
    loss.backward()
    if slope == 0.0:
        assert r.grad.item() == 0.0  # exactly: outside the clip nothing is learned
    else:
        assert -r.grad.item() == pytest.approx(slope)


def test_ppo_clip_fraction_and_mean_over_the_batch():
    zeros = torch.zeros(4)
    A = torch.tensor([1.0, 2.0, 3.0, -4.0])
    assert ppo.policy_loss(zeros, zeros, A, 0.2).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("name", NAMES)
def test_k3_estimates_the_kl(name):
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 6, generator=generator, dtype=torch.float64) / 2
    old, new = Categorical(logits=old), Categorical(logits=new)
    counts = (old.probs * 1_000_000).round().long()  # the exact expectation under old
    actions = torch.arange(6).repeat_interleave(counts)
    log_prob, log_prob_old = new.log_prob(actions), old.log_prob(actions)
    estimate = SCRIPTS[name].approximate_kl(log_prob, log_prob_old)
    assert estimate.item() == pytest.approx(kl_divergence(old, new).item(), rel=1e-4)
    assert SCRIPTS[name].approximate_kl(log_prob_old, log_prob_old).item() == 0.0
    each = (log_prob - log_prob_old).exp() - 1 - (log_prob - log_prob_old)
    assert (each >= 0).all()
    torch.testing.assert_close(estimate, each.mean())


# ── V-MPO ───────────────────────────────────────────────────────────────────────────


def test_vmpo_policy_loss_by_hand():
    """η = 2, A = (2 ln 3, 0): ψ = (3/4, 1/4), L_π = −(¾ · −1 + ¼ · −2) = 1.25."""
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    eta = torch.tensor(2.0, requires_grad=True)
    A = torch.tensor([2 * math.log(3), 0.0], requires_grad=True)
    loss = vmpo.policy_loss(log_prob, A, eta)
    assert loss.item() == pytest.approx(1.25)
    loss.backward()
    assert log_prob.grad.tolist() == pytest.approx([-0.75, -0.25])  # −ψ, sums to −1
    assert eta.grad is None  # ψ carries no gradient
    assert A.grad is None


def test_vmpo_temperature_loss_by_hand():
    """L_η = 2 · 0.1 + 2 ln((3 + 1)/2); ∂L_η/∂η = ε + ln mean − Σψ A/η."""
    eta = torch.tensor(2.0, requires_grad=True)
    A = torch.tensor([2 * math.log(3), 0.0])
    loss = vmpo.temperature_loss(A, eta, 0.1)
    assert loss.item() == pytest.approx(0.2 + 2 * math.log(2))
    loss.backward()
    expected = 0.1 + math.log(2) - 0.75 * math.log(3)
    assert eta.grad.item() == pytest.approx(expected, abs=1e-6)


def test_vmpo_kl_loss_by_hand():
    """ν = 3, KL = (0.2, 0.4), ε = 0.1: L_ν = 3 (0.1 − 0.3) + 3 · 0.3."""
    kl, nu = torch.tensor([0.2, 0.4], requires_grad=True), torch.tensor(3.0)
    nu.requires_grad_()
    loss = vmpo.kl_loss(kl, nu, 0.1)
    assert loss.item() == pytest.approx(0.3)
    loss.backward()
    assert kl.grad.tolist() == [1.5, 1.5]  # sg(ν) / |D|
    assert nu.grad.item() == pytest.approx(0.1 - 0.3)


@pytest.mark.parametrize(("kl", "sign"), [(0.5, -1), (0.001, 1)])
def test_gradient_descent_on_nu_restores_the_constraint(kl, sign):
    """Too far from π_old: ν must rise, so its gradient is negative; and vice versa."""
    nu = torch.tensor(1.0, requires_grad=True)
    vmpo.kl_loss(torch.full((4,), kl), nu, 0.01).backward()
    assert math.copysign(1, nu.grad.item()) == sign


@pytest.mark.parametrize(("eta", "sign"), [(0.1, -1), (100.0, 1)])
def test_gradient_descent_on_eta_restores_the_constraint(eta, sign):
    """A small η makes ψ peaked, its KL from uniform exceeds ε_η: η must rise."""
    eta = torch.tensor(eta, requires_grad=True)
    A = torch.linspace(-1, 1, 16)
    vmpo.temperature_loss(A, eta, 0.01).backward()
    psi = (A / eta).softmax(0)
    kl = (psi * (psi * len(A)).log()).sum()
    assert math.copysign(1, eta.grad.item()) == sign
    assert eta.grad.item() == pytest.approx(0.01 - kl.item(), abs=1e-5)


def test_vmpo_importance_weights_multiply_psi():
    A, eta = torch.tensor([0.3, -0.1, 0.2]), torch.tensor(0.5)
    ratio = torch.tensor([2.0, 1.0, 0.5])
    weights = ratio * (A / eta).exp()
    log_prob = torch.tensor([-1.0, -2.0, -3.0])
    loss = vmpo.policy_loss(log_prob, A, eta, ratio.log())
    torch.testing.assert_close(loss, -(weights / weights.sum() * log_prob).sum())
    loss = vmpo.temperature_loss(A, eta, 0.01, ratio.log())
    torch.testing.assert_close(loss, eta * 0.01 + eta * weights.mean().log())


def gaussian(mean, std) -> Independent:
    return Independent(Normal(mean, std), 1)


def test_decoupled_kls_are_those_of_the_two_gaussians():
    torch.manual_seed(0)
    means, stds = torch.randn(2, 7, 3), torch.rand(2, 7, 3) + 0.2
    old, new = gaussian(means[0], stds[0]), gaussian(means[1], stds[1])
    mean_kl, std_kl = vmpo.split_kl(old, new)
    moved, widened = gaussian(means[1], stds[0]), gaussian(means[0], stds[1])
    torch.testing.assert_close(mean_kl, kl_divergence(old, moved))
    torch.testing.assert_close(std_kl, kl_divergence(old, widened))
    by_hand = ((means[0] - means[1]) ** 2 / (2 * stds[0] ** 2)).sum(-1)
    torch.testing.assert_close(mean_kl, by_hand)


def test_decoupled_kls_are_zero_at_equality_with_zero_gradient_and_positive_curvature():
    mean = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    std = torch.tensor([[0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    old = gaussian(mean.detach(), std.detach())
    for parameter, index in ((mean, 0), (std, 1)):
        kl = vmpo.split_kl(old, gaussian(mean, std))[index].sum()
        (gradient,) = torch.autograd.grad(kl, parameter, create_graph=True)
        assert kl.item() == 0.0
        assert gradient.abs().max().item() == 0.0
        for d in range(2):
            (row,) = torch.autograd.grad(gradient[0, d], parameter, retain_graph=True)
            assert row[0, d].item() > 0.1
    assert len(vmpo.split_kl(Categorical(logits=mean), Categorical(logits=mean))) == 1


# ── TRPO ────────────────────────────────────────────────────────────────────────────


def test_surrogate_by_hand():
    log_ratio = torch.tensor([2.0, 0.5]).log().requires_grad_()
    gain = trpo.surrogate(
        log_ratio - 1, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 4.0])
    )
    assert gain.item() == pytest.approx(2.0)
    gain.backward()
    assert log_ratio.grad.tolist() == pytest.approx([1.0, 1.0])  # r A / |D|


@pytest.mark.parametrize("size", [1, 5, 20])
def test_conjugate_gradient_solves_the_system(size):
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
    b = torch.randn(size, generator=generator, dtype=torch.float64)
    x = trpo.conjugate_gradient(lambda v: matrix @ v, b, 3 * size, tolerance=1e-24)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)
    assert trpo.conjugate_gradient(lambda v: matrix @ v, 0 * b, 10).eq(0).all()


def test_conjugate_gradient_does_not_care_for_the_scale():
    """Tiny unnormalised rewards make a tiny b, whose solution is as far as any."""
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for scale in (1e-12, 1.0, 1e12):
        x = trpo.conjugate_gradient(lambda v: matrix @ v, scale * b, 10)
        torch.testing.assert_close(x / scale, torch.linalg.solve(matrix, b))


@pytest.mark.parametrize("exact_kl", [trpo.exact_kl, lambda *x: vmpo.split_kl(*x)[0]])
def test_exact_kl_stays_finite_where_a_probability_underflows(exact_kl):
    """By hand: Σ p (ln p − ln q) for p = (½, ½), q = (1, e⁻²⁰⁰): 100 − ln 2."""
    old = Categorical(logits=torch.zeros(1, 2))
    logits = torch.tensor([[0.0, -200.0]], requires_grad=True)
    kl = exact_kl(old, Categorical(logits=logits))
    assert kl_divergence(old, Categorical(logits=logits)).isinf()  # torch's
    assert kl.item() == pytest.approx(100 - math.log(2))
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    assert gradient.tolist() == [[pytest.approx(0.5), pytest.approx(-0.5)]]
    torch.manual_seed(0)
    pair = [Categorical(logits=x) for x in torch.randn(2, 5, 4)]
    torch.testing.assert_close(exact_kl(*pair), kl_divergence(*pair))
    pair = [gaussian(x, x.exp()) for x in torch.randn(2, 5, 3)]
    torch.testing.assert_close(trpo.exact_kl(*pair), kl_divergence(*pair))


def make(script, space, observation_size=3, **changes):
    """A small agent with statistics that are not those of the start."""
    torch.manual_seed(0)
    changes = {"policy_layers": (8, 8), "value_layers": (8,)} | changes
    names = set(script.Config.__dataclass_fields__)
    config = script.Config(**{k: v for k, v in changes.items() if k in names})
    agent = script.Agent(observation_size, space, config)
    agent.statistics.absorb(2 * torch.randn(100, observation_size) + 1)
    return agent, config


def in_float64(policy):
    """For derivatives that are compared closely; inputs are taken as they are."""
    policy.statistics.scale = lambda observations: observations
    return policy.double()


SPACES = {"Box": Box(-2.0, 0.5, (2,)), "Discrete": Discrete(4)}


@pytest.mark.parametrize("space", SPACES)
def test_fisher_vector_product_is_that_of_the_explicit_fisher_matrix(space):
    """F = mean over states of E_a[∇ln π ∇ln πᵀ], by quadrature for the Gaussian."""
    agent, _ = make(trpo, SPACES[space], policy_layers=(4,))
    policy, observations = (
        in_float64(agent.policy),
        torch.randn(5, 3, dtype=torch.float64),
    )
    parameters = list(policy.parameters())
    size = sum(p.numel() for p in parameters)
    fisher = torch.zeros(size, size, dtype=torch.float64)
    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(8))
    weights = weights / weights.sum()
    for s in range(len(observations)):
        distribution = policy(observations[s : s + 1])
        if space == "Discrete":
            actions, chances = torch.arange(4)[:, None], distribution.probs.detach()[0]
        else:
            grid = torch.cartesian_prod(nodes, nodes)
            chances = torch.cartesian_prod(weights, weights).prod(-1)
            base = distribution.base_dist
            actions = (base.loc + base.scale * grid).detach()[:, None]
        for action, chance in zip(actions, chances, strict=True):
            log_prob = distribution.log_prob(action).sum()
            score = torch.autograd.grad(log_prob, parameters, retain_graph=True)
            score = trpo.parameters_to_vector(score)
            fisher += chance * torch.outer(score, score) / len(observations)
    with torch.no_grad():
        old = policy(observations)
    kl = kl_divergence(old, policy(observations)).mean()
    gradient = torch.autograd.grad(kl, parameters, create_graph=True)
    gradient = trpo.parameters_to_vector(gradient)
    v = torch.randn(size, dtype=torch.float64)
    product = trpo.fisher_vector_product(gradient, parameters, 0.1, v)
    torch.testing.assert_close(product, fisher @ v + 0.1 * v, rtol=1e-6, atol=1e-9)


def trpo_data(agent, size=64):
    observations = torch.randn(size, 3)
    with torch.no_grad():
        distribution = agent.policy(observations)
        actions = distribution.sample()
    return observations, actions, distribution.log_prob(actions), torch.randn(size)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("space", SPACES)
def test_trpo_step_improves_within_the_trust_region_or_changes_nothing(space, fraction):
    """δ = 1 is so large that the quadratic model fails and some steps are refused."""
    outcomes = set()
    for delta in (0.01, 1.0):
        agent, config = make(trpo, SPACES[space], delta=delta, fisher_fraction=fraction)
        for seed in range(8):
            torch.manual_seed(seed)
            observations, actions, log_prob_old, A = trpo_data(agent)
            before = [p.detach().clone() for p in agent.policy.parameters()]
            old = agent.policy(observations)
            gain = trpo.surrogate(old.log_prob(actions), log_prob_old, A)
            log = trpo.trust_region_step(
                agent.policy, observations, actions, log_prob_old, A, config
            )
            new = agent.policy(observations)
            if log["step_accepted"]:
                assert trpo.surrogate(new.log_prob(actions), log_prob_old, A) > gain
                assert 0 < kl_divergence(old, new).mean() <= delta
            else:
                pairs = zip(before, agent.policy.parameters(), strict=True)
                assert all(torch.equal(b, p) for b, p in pairs)
            outcomes.add(bool(log["step_accepted"]))
    assert True in outcomes


@pytest.mark.parametrize("reason", ["no gain", "not finite"])
def test_trpo_restores_the_old_parameters_bit_for_bit(reason):
    agent, config = make(trpo, SPACES["Box"])
    observations, actions, log_prob_old, A = trpo_data(agent)
    A = torch.zeros_like(A) if reason == "no gain" else A * math.nan
    before = [p.detach().clone() for p in agent.policy.parameters()]
    log = trpo.trust_region_step(
        agent.policy, observations, actions, log_prob_old, A, config
    )
    assert not log["step_accepted"]
    assert log["line_search_steps"] == config.line_search_max_iterations
    for b, p in zip(before, agent.policy.parameters(), strict=True):
        assert torch.equal(b, p)


def test_trpo_line_search_shortens_the_step_until_kl_is_small_enough():
    """KL grows with the square of the step: 10 times δ needs m with 0.8²ᵐ ≤ 1/10."""
    agent, config = make(trpo, SPACES["Box"])
    observations, actions, log_prob_old, A = trpo_data(agent, 512)
    A = A * 0
    g = torch.autograd.grad(
        agent.policy(observations).log_prob(actions).mean(),
        list(agent.policy.parameters()),
    )
    step = 1e-3 * trpo.parameters_to_vector(g)
    theta = trpo.parameters_to_vector(agent.policy.parameters()).detach()
    with torch.no_grad():
        old = agent.policy(observations)
        trpo.vector_to_parameters(theta + step, agent.policy.parameters())
        A = (agent.policy(observations).log_prob(actions) - log_prob_old).sign()
        kl = kl_divergence(old, agent.policy(observations)).mean().item()
        trpo.vector_to_parameters(theta, agent.policy.parameters())
    config = replace(config, delta=kl / 10)
    m, accepted = trpo.line_search(
        agent.policy, step, observations, actions, log_prob_old, A, config
    )
    assert accepted
    assert m == 6  # 0.8¹² = 0.069 ≤ 0.1 < 0.8¹⁰ = 0.107
    moved = trpo.parameters_to_vector(agent.policy.parameters()) - theta
    torch.testing.assert_close(moved, 0.8**6 * step, rtol=1e-2, atol=1e-7)


# ── policy ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7, 4.0])
@pytest.mark.parametrize("std", [0.05, 0.7, 2.0])
def test_entropy_of_the_squashed_gaussian_against_numerical_integration(mean, std):
    """H(tanh x) = −∫ p ln p over (−1, 1), integrated in x."""
    agent, _ = make(ppo, Box(-1.0, 1.0, (1,)))
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (mean, std))
    x = torch.linspace(-12, 12, 40_001, dtype=torch.float64) * std + mean
    log_density = Normal(mean, std).log_prob(x) - 2 * (
        math.log(2) - x - torch.nn.functional.softplus(-2 * x)
    )
    density_x = Normal(mean, std).log_prob(x).exp()
    exact = -torch.trapezoid(density_x * log_density, x)
    torch.manual_seed(0)
    count = 200_000
    estimate = agent.policy.entropy(
        gaussian(mean.expand(count, 1), std.expand(count, 1))
    )
    error = estimate.std() / math.sqrt(count)
    assert estimate.shape == (count,)
    assert (estimate.mean() - exact).abs() < 4 * error + 1e-6  # seed 0: at most 2.3


def test_entropy_bonus_reaches_the_parameters_through_the_sample():
    agent, _ = make(ppo, Box(-1.0, 1.0, (1,)))
    mean = torch.full((50_000, 1), 2.0, requires_grad=True)
    torch.manual_seed(0)
    agent.policy.entropy(gaussian(mean, torch.ones_like(mean))).mean().backward()
    assert mean.grad.sum() < -0.5  # a mean far out presses the actions to the bound


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_actions_stay_within_the_bounds(name, squash):
    """Humanoid's bounds, uneven ones, and values of the Gaussian far outside."""
    low = np.array([-0.4, -2.0, 1e-3, -1e6], dtype=np.float32)
    high = np.array([0.4, 0.5, 1.1e-3, 3.0], dtype=np.float32)
    space = Box(low, high)
    agent, _ = make(SCRIPTS[name], space, squash_actions=squash)
    torch.manual_seed(0)
    raw = torch.cat([torch.randn(5000, 4) * 3, torch.full((1, 4), 1e9)])
    raw = torch.cat([raw, -raw[-1:], torch.zeros(1, 4)])
    actions = agent.policy.to_environment(raw).numpy()
    assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(actions[-3], high)
    np.testing.assert_array_equal(actions[-2], low)
    middle = (low.astype(np.float64) + high) / 2
    np.testing.assert_allclose(actions[-1], middle, rtol=1e-3)


def test_discrete_actions_start_where_the_space_does():
    agent, _ = make(ppo, Discrete(3, start=-1))
    actions = agent.policy.to_environment(torch.tensor([0, 1, 2]))
    assert actions.tolist() == [-1, 0, 1]


def test_gaussian_is_state_dependent_softplus_and_bounded_below():
    agent, _ = make(ppo, SPACES["Box"])
    observations = torch.randn(6, 3)
    distribution = agent.policy(observations)
    standardised = agent.statistics.scale(observations)
    mean, scale = agent.policy.network(standardised).chunk(2, -1)
    torch.testing.assert_close(distribution.mean, mean)
    expected = torch.log1p(scale.exp()) + 1e-3
    torch.testing.assert_close(distribution.stddev, expected)
    assert distribution.stddev.std(0).min() > 0
    torch.nn.init.constant_(agent.policy.network[-1].bias, -1e4)
    assert agent.policy(observations).stddev.min().item() == pytest.approx(1e-3)


def test_networks_are_the_papers():
    policy = ppo.Config().policy_layers, ppo.Config().value_layers
    assert policy == ((32,) * 4, (256,) * 5)
    torch.manual_seed(0)
    network = ppo.mlp(300, 200, 100)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["Linear", "SiLU", "Linear"]
    for layer in network[::2]:
        assert layer.bias.eq(0).all()
        variance = layer.weight.var().item() * layer.in_features
        assert variance == pytest.approx(1, rel=0.03)  # seeds 0..9: within 0.02
        bound = math.sqrt(3 / layer.in_features)
        assert 0.99 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_bfloat16_changes_the_hidden_layers_only(script):
    agent, _ = make(script, SPACES["Box"], value_layers=(64, 64))
    observations = torch.randn(200, 3)
    full = agent.value(observations)
    agent.value.bfloat16 = True
    half = agent.value(observations)
    assert half.dtype == torch.float32
    assert half.unique().numel() > 150  # bfloat16 outputs would share few values
    assert 0 < (half - full).abs().max() < 0.05


# ── running statistics ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_numpys_on_the_pooled_data(name):
    generator = np.random.default_rng(0)
    chunks = [generator.normal(1e3, 5, (n, 3)) for n in (1, 7, 500, 64)]
    chunks[2][:, 1] *= -40
    statistics = SCRIPTS[name].RunningStatistics(3, enabled=True)
    for chunk in chunks:
        statistics.absorb(torch.from_numpy(chunk))
    pooled = np.concatenate(chunks)
    np.testing.assert_allclose(statistics.mean, pooled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, pooled.var(0), rtol=1e-9)
    assert statistics.count.item() == len(pooled)
    x = torch.from_numpy(pooled).float()
    expected = np.clip((pooled - pooled.mean(0)) / pooled.std(0), -10, 10)
    np.testing.assert_allclose(statistics.scale(x), expected, atol=2e-3)
    expected = np.clip(pooled / pooled.std(0), -10, 10)
    np.testing.assert_allclose(statistics.scale(x, center=False), expected, atol=2e-3)


def test_scaled_samples_are_clipped_and_left_alone_when_switched_off():
    statistics = ppo.RunningStatistics(1, enabled=True)
    statistics.absorb(torch.tensor([[-1.0], [1.0]]))
    wide = torch.tensor([[-1e6], [1e6]])
    assert statistics.scale(wide).flatten().tolist() == [-10, 10]
    statistics.enabled = False
    assert torch.equal(statistics.scale(wide), wide)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1.0, 1e21])
def test_scaling_does_not_depend_on_the_unit(unit, center):
    samples = torch.randn(1000, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = samples / samples.std(0, correction=0)
    expected = expected - expected.mean(0) if center else expected
    statistics = ppo.RunningStatistics(2, enabled=True)
    statistics.absorb(unit * samples)
    scaled = statistics.scale(unit * samples, center)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, expected.float(), rtol=1e-4, atol=1e-5)


def test_an_offset_like_a_time_stamp_leaves_the_rest_to_be_seen():
    samples = torch.randn(1000, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    statistics = ppo.RunningStatistics(1, enabled=True)
    statistics.absorb(samples + 1.7e9)
    expected = (samples - samples.mean()) / samples.std(correction=0)
    scaled = statistics.scale(samples + 1.7e9)
    torch.testing.assert_close(scaled, expected.float(), rtol=0.02, atol=1e-3)


def test_the_rounding_errors_of_a_constant_stay_small():
    noise = torch.randn(1000, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    samples = 8.907 + 2e-15 * noise
    statistics = ppo.RunningStatistics(1, enabled=True)
    statistics.absorb(samples)
    assert statistics.scale(samples).abs().max() < 0.01


def test_a_constant_component_is_harmless():
    statistics = ppo.RunningStatistics(2, enabled=True)
    samples = torch.tensor([[5.0, 1.0], [5.0, 2.0]])
    statistics.absorb(samples)
    scaled = statistics.scale(samples)
    assert scaled[:, 0].eq(0).all()
    assert scaled.isfinite().all()


# ── update ──────────────────────────────────────────────────────────────────────────


def collect(script, env_id="Pendulum-v1", **changes):
    """A real rollout of the script, and all that an update on it needs."""
    shape = {"num_envs": 1 if script is reinforce else 2, "unroll_length": 200}
    config = script.Config(env_id=env_id, **shape | changes)
    environments = make_environments(script, config)
    agent, optimizer, *_ = script.make_agent(config)
    environments.reset(0, 0)
    batch = script.rollout(agent, environments, config)
    agent.statistics.absorb(batch.observations)
    batch = script.rollout(agent, environments, config)  # under statistics in use
    environments.vector.close()
    return agent, optimizer, batch, config


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_minibatchs_ratio_is_one(name, env_id):
    agent, _, batch, config = collect(SCRIPTS[name], env_id)
    for i in torch.randperm(len(batch.actions)).tensor_split(config.num_minibatches):
        log_prob = agent.policy(batch.observations[i]).log_prob(batch.actions[i])
        ratio = (log_prob - batch.log_prob_old[i]).exp()
        # one matrix product of many rows and one of few may differ in the last bit
        assert (ratio - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_update_moves_each_network_and_never_the_statistics(name):
    script = SCRIPTS[name]
    agent, optimizer, batch, config = collect(script)
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    metrics = script.update(agent, optimizer, batch, config)
    assert all(math.isfinite(value) for value in metrics.values())
    for key, value in agent.state_dict().items():
        learned = key in dict(agent.named_parameters())
        assert torch.equal(value, before[key]) != learned, key


@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_each_networks_gradient_is_clipped_on_its_own(script, monkeypatch):
    """A critic's gradient of 10⁶ must not shrink the policy's below the limit."""
    one_step = {"num_epochs": 1, "num_minibatches": 1}
    agent, optimizer, batch, config = collect(script, **one_step)
    names = ["value_loss"] if script is trpo else ["value_loss", "policy_loss"]
    for name, factor in zip(names, (1e6, 1e3), strict=False):
        loss = getattr(script, name)
        scaled = lambda *x, loss=loss, factor=factor: factor * loss(*x)  # noqa: E731
        monkeypatch.setattr(script, name, scaled)
    script.update(agent, optimizer, batch, config)
    for network in [agent.value] if script is trpo else [agent.value, agent.policy]:
        gradients = [p.grad.norm() for p in network.parameters()]
        assert torch.stack(gradients).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_vmpo_projects_its_multipliers_and_does_not_clip_them():
    start = {"eta_init": 1e-3, "nu_mean_init": 1e-3, "nu_std_init": 1e-3}
    one_step = {"num_epochs": 1, "num_minibatches": 1}
    agent, optimizer, batch, config = collect(vmpo, **start, **one_step)
    config = replace(config, eps_eta=1e3, eps_nu_mean=1e3, eps_nu_std=1e3)
    for group in optimizer.param_groups:
        group["lr"] = 1.0  # with targets never reached, one step would pass zero
    vmpo.update(agent, optimizer, batch, config)
    assert agent.eta.item() == pytest.approx(1e-8, rel=1e-6)
    assert agent.nu.tolist() == pytest.approx([1e-8, 1e-8], rel=1e-6)
    assert agent.nu.grad.abs().max() > 100


@pytest.mark.parametrize("top_half", [True, False])
def test_vmpo_uses_the_upper_half_of_the_advantages_or_all(monkeypatch, top_half):
    one_step = {"num_epochs": 1, "num_minibatches": 1}
    agent, optimizer, batch, config = collect(vmpo, top_half=top_half, **one_step)
    seen = {}

    def spy(name, place):
        function = getattr(vmpo, name)

        def call(*arguments):
            result = function(*arguments)
            seen[name] = result[0] if place is None else arguments[place]
            return result

        monkeypatch.setattr(vmpo, name, call)

    spy("policy_loss", 1)
    spy("temperature_loss", 0)
    spy("kl_loss", 0)
    spy("estimate_advantages", None)
    vmpo.update(agent, optimizer, batch, config)
    size = len(batch.actions) // 2 if top_half else len(batch.actions)
    expected = seen["estimate_advantages"].sort(descending=True).values[:size]
    for name in "policy_loss", "temperature_loss":
        used = seen[name].sort(descending=True).values
        torch.testing.assert_close(used, expected)
    assert len(seen["kl_loss"]) == len(batch.actions)  # L_ν is on D


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_vmpo_reports_the_mean_kls_of_its_steps(env_id, monkeypatch):
    """From the policy that acted. The paper's code compares the policy with itself."""
    agent, optimizer, batch, config = collect(vmpo, env_id, learning_rate=3e-3)
    acted, losses, seen = deepcopy(agent.policy), vmpo.minibatch_losses, []

    def spy(agent, old_policy, batch, i, *rest):
        old, new = acted(batch.observations[i]), agent.policy(batch.observations[i])
        seen.append([kl.mean().item() for kl in vmpo.split_kl(old, new)])
        return losses(agent, old_policy, batch, i, *rest)

    monkeypatch.setattr(vmpo, "minibatch_losses", spy)
    metrics = vmpo.update(agent, optimizer, batch, config)
    names = ["kl_mean", "kl_std"][: len(seen[0])]
    assert len(names) == (1 if env_id == "CartPole-v1" else 2)
    assert [name for name in metrics if name.startswith("kl")] == names
    expected = np.mean(seen, axis=0)
    assert len(seen) == config.num_epochs * config.num_minibatches
    assert expected.min() > 1e-4
    assert max(seen[0]) == pytest.approx(0, abs=1e-6)
    assert [metrics[name] for name in names] == pytest.approx(expected, rel=1e-4)


def test_trpo_reports_the_exact_kl_of_the_whole_update():
    agent, optimizer, batch, config = collect(trpo)
    old = agent.policy(batch.observations)
    old = gaussian(old.mean.detach(), old.stddev.detach())
    metrics = trpo.update(agent, optimizer, batch, config)
    kl = kl_divergence(old, agent.policy(batch.observations)).mean().item()
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["step_accepted"] > 0


def test_reinforce_baseline_is_the_mean_return(monkeypatch):
    agent, optimizer, batch, config = collect(reinforce, baseline=True)
    seen, loss = [], reinforce.policy_loss
    spy = lambda log_prob, weights: seen.append(weights) or loss(log_prob, weights)  # noqa: E731
    monkeypatch.setattr(reinforce, "policy_loss", spy)
    reinforce.update(agent, optimizer, batch, config)
    ends = batch.terminated, batch.truncated
    returns = reinforce.compute_returns(batch.rewards, *ends, config.gamma).flatten()
    expected = (returns - returns.mean()).sort().values
    torch.testing.assert_close(seen[0].sort().values, expected)
    assert returns.mean().abs() > 0.1


@pytest.mark.parametrize("script", [reinforce, a2c, ppo], ids=lambda s: s.ALGORITHM)
def test_entropy_bonus_raises_the_entropy(script):
    """With a huge coefficient the bonus is all that matters."""
    entropy = {}
    for coefficient in (0.0, 100.0):
        agent, optimizer, batch, config = collect(
            script, num_epochs=10, entropy_coefficient=coefficient, squash_actions=False
        )
        script.update(agent, optimizer, batch, config)
        entropy[coefficient] = script.measure(agent.policy, batch)["entropy"]
    assert entropy[100.0] > entropy[0.0] + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_several_epochs_go_further_than_one(name):
    script = SCRIPTS[name]
    moved = {}
    for epochs in (1, 5):
        agent, optimizer, batch, config = collect(script, num_epochs=epochs)
        network = agent.policy if script is reinforce else agent.value
        before = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        script.update(agent, optimizer, batch, config)
        after = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
        moved[epochs] = (after - before).norm().item()
    assert moved[5] > 1.5 * moved[1]


def test_vmpo_takes_whole_numbers_for_its_multipliers():
    agent, _ = make(vmpo, SPACES["Box"], eta_init=1, nu_mean_init=2, nu_std_init=3)
    assert agent.eta.item() == 1.0
    assert agent.nu.tolist() == [2.0, 3.0]
