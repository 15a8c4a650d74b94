"""TRPO, Trust Region Policy Optimization (Section 4.3 of arXiv:2401.13662).

    max_θ mean_D[ π_θ(a|s)/β(a|s) A ]  subject to  mean_D[ KL(π_old‖π_θ) ] ≤ δ  (Eq. 17)

Departures from the text of Algorithm 5, which is quoted where the code does it:
1. A time limit is not a terminal state: V of the final observation is bootstrapped.
2. An epoch is a pass over shuffled minibatches with one step on each.
3. The "slight linear decay" of the rate is 0.5 % over a run, as of PPO in its code.
4. Nothing is learned from the first rollout: it fills the observations' statistics.
5. β(a|s) is one batched pass at the end of the rollout, in which π_θ stays the same.
6. The policy learns in the first epoch only, the critic in all (Table 2).
7. θ stays θ_old if no step of the line search is good.
8. KL is from θ_old, the policy before the step; the ratio is to β, for the whole batch.
9. Ĥ is damped (Table 2), in dᵀĤd too.

    python trpo.py --env-id Ant-v4
    python trpo.py --evaluate runs/RUN --capture-video
"""

import json
import math
import os
import random
import re
import signal
import sys
import time
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces, vector
from gymnasium.vector.async_vector_env import _async_worker
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.distributions.kl import kl_divergence
from torch.nn.functional import softplus
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim import Adam
from tqdm import tqdm

ALGORITHM = "trpo"
WHOLE_EPISODES = False  # whether every rollout ends with an episode
LONGEST_EPISODE = 10_000  # steps, in an environment without a time limit
LARGEST = np.finfo(np.float32).max
ZERO = "seed", "eval_episodes"  # the counts that may be
RANK = int(os.environ.get("RANK", 0))  # of this process among those of torchrun
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # the number of these processes
FRACTIONS = "learning_rate_decay", "gamma", "gae_lambda", "fisher_fraction"


# ── configuration ───────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Config:
    env_id: str = "HalfCheetah-v4"  # of Gymnasium; module:Name-v0 imports the module
    seed: int = 0  # of the networks, actions, minibatches and environments
    total_timesteps: int = 8_000_000  # over all environments; finishes the last batch
    learning_rate: float = 3e-4  # of Adam at the start
    learning_rate_decay: float = 0.005  # part of it that is lost linearly over the run
    gamma: float = 0.99  # discount γ
    max_grad_norm: float = 0.5  # largest norm of the gradient of each network
    policy_layers: tuple[int, ...] = (32, 32, 32, 32)  # widths of the hidden layers
    normalize_observations: bool = True  # by running mean and std; clip to ±10
    normalize_rewards: bool = True  # by running std of discounted return; clip to ±10
    squash_actions: bool = True  # into their bounds by tanh; off: by clipping
    device: Literal["cpu", "cuda"] = "cpu"  # where the networks act and learn
    precision: Literal["float32", "bfloat16"] = "float32"  # of V's hidden layers
    vectorization: Literal["sync", "async"] = "sync"  # async: one process per env
    eval_every: int = 163_840  # steps; there is always an evaluation at the end
    eval_episodes: int = 10  # played with the mode of the policy; 0: no evaluation
    checkpoint_every: int = 163_840  # steps; the environments are reset at each
    runs_dir: str = "runs"  # folder that the folder of the run is made in
    resume: str | None = None  # folder of a run to go on with; flags replace its own
    evaluate: str | None = None  # folder of a run, or its best.pt, to play, not train
    track: bool = False  # log to Weights & Biases as well
    wandb_project: str = "policy-gradients"  # project to log to there
    capture_video: bool = False  # film an environment in each evaluation, off screen
    render: bool = False  # show an environment in each evaluation in a window
    num_envs: int = 8  # environments stepped together, N
    unroll_length: int = 2048  # steps of each environment in a batch, U
    num_minibatches: int = 8  # in an epoch
    num_epochs: int = 10  # passes over the batch; the policy learns in the first
    value_layers: tuple[int, ...] = (256, 256, 256, 256, 256)  # widths of hidden layers
    gae_lambda: float = 0.95  # λ; 1 is the n-step estimate of Eq. 14
    normalize_advantages: bool = True  # in each minibatch
    delta: float = 0.01  # KL target δ of one policy step
    cg_damping: float = 0.1  # added to the diagonal of the Fisher matrix
    cg_max_iterations: int = 10  # of the conjugate gradient algorithm
    line_search_max_iterations: int = 10  # times that the step may be shortened, K
    line_search_shrinkage: float = 0.8  # factor that shortens the step, b
    fisher_fraction: float = 1.0  # part of a minibatch for Fisher products (Sec. 4.3)

    def __post_init__(self):
        for name, value in vars(self).items():
            counts = type(getattr(Config, name)) in (int, tuple) and name not in ZERO
            low, high = int(counts), 1 if name in FRACTIONS else 1e15
            if value == "":
                raise ValueError(f"{name}: nothing is given")
            for x in value if isinstance(value, tuple) else [value]:
                if type(x) in (int, float) and not low <= x <= high:
                    raise ValueError(f"{name}: {x} is not from {low} to {high:g}")
        if self.num_envs % WORLD:
            raise ValueError(f"num_envs must be a multiple of the {WORLD} processes")
        batch = self.num_envs // WORLD * self.unroll_length  # of each process
        if batch % self.num_minibatches:
            raise ValueError(f"num_minibatches must divide the {batch} steps")
        if self.normalize_advantages and batch == self.num_minibatches:
            raise ValueError("num_minibatches: the A of one step, standardised, is 0")


# ── networks ────────────────────────────────────────────────────────────────────────
def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with swish between: LeCun uniform weights, zero biases."""
    layers = []
    for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        bound = math.sqrt(3 / fan_in)  # a variance of 1 / fan_in
        nn.init.uniform_(layers[-2].weight, -bound, bound)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class RunningStatistics(nn.Module):
    """Mean and variance of all samples absorbed so far."""

    def __init__(self, *shape: int, enabled: bool):
        super().__init__()
        self.enabled = enabled
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def absorb(self, samples: Tensor) -> None:  # [B, *shape]
        """Pool with B more samples of each process (Chan, Golub and LeVeque 1979)."""
        variance, own = torch.var_mean(samples.double(), dim=0, correction=0)
        mean = average(own)
        variance = average(variance + (own - mean) ** 2)
        self.count += WORLD * len(samples)
        weight, delta = WORLD * len(samples) / self.count, mean - self.mean
        self.mean += weight * delta
        self.variance.lerp_(variance, weight).add_(weight * (1 - weight) * delta**2)
        # A constant's rounding errors are no signal; a signal of 1e-9 is one
        floor = 1e-24 + 1e-22 * self.mean**2
        self.deviation.copy_((self.variance + floor).sqrt())

    def scale(self, samples: Tensor, center: bool = True) -> Tensor:
        """(x − μ) / σ, or x / σ, clipped to ±10; x if not enabled; in float32."""
        if self.enabled:
            samples = samples - self.mean if center else samples
            samples = (samples / self.deviation).clamp(-10, 10)
        return samples.float()


class Policy(nn.Module):
    """π_θ: a Gaussian, whose actions `to_environment` squashes, or a softmax."""

    def __init__(self, statistics: RunningStatistics, action_space, config):
        super().__init__()
        self.statistics, self.squash = statistics, config.squash_actions
        self.discrete = isinstance(action_space, spaces.Discrete)
        if self.discrete:
            outputs = int(action_space.n)
            self.register_buffer("start", torch.as_tensor(action_space.start))
        else:
            outputs = 2 * math.prod(action_space.shape)
            self.register_buffer("low", torch.tensor(action_space.low.ravel()))
            self.register_buffer("high", torch.tensor(action_space.high.ravel()))
        self.network = mlp(len(statistics.mean), *config.policy_layers, outputs)

    def forward(self, observations: Tensor) -> Distribution:  # [B, O]
        outputs = self.network(self.statistics.scale(observations))
        if self.discrete:
            return Categorical(logits=outputs, validate_args=False)
        mean, scale = outputs.chunk(2, dim=-1)
        normal = Normal(mean, softplus(scale) + 1e-3, validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def entropy(self, distribution: Distribution) -> Tensor:  # [B]
        """H(π(·|s)); of tanh(x): H of the Gaussian + E[Σ ln(1 − tanh²(x))], one x."""
        entropy = distribution.entropy()
        if self.discrete or not self.squash:
            return entropy
        x = distribution.rsample()
        return entropy + (2 * (math.log(2) - x - softplus(-2 * x))).sum(-1)

    def to_environment(self, actions: Tensor) -> Tensor:
        """In the units of the action space, within its bounds."""
        if self.discrete:
            return actions + self.start
        unit = actions.tanh() if self.squash else actions.clamp(-1, 1)
        return torch.lerp(self.low, self.high, (unit + 1).to(self.low) / 2)


class Value(nn.Module):
    """V_ϕ."""

    def __init__(self, statistics: RunningStatistics, config):
        super().__init__()
        self.statistics, self.bfloat16 = statistics, config.precision == "bfloat16"
        self.network = mlp(len(statistics.mean), *config.value_layers, 1)

    def forward(self, observations: Tensor) -> Tensor:  # [B, O] → [B]
        x = self.statistics.scale(observations)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            x = self.network[:-1](x)
        return self.network[-1](x.float()).squeeze(-1)


class Agent(nn.Module):
    """All that is learned, and the running statistics."""

    def __init__(self, observation_size: int, action_space, config):
        super().__init__()
        enabled = config.normalize_observations
        self.statistics = RunningStatistics(observation_size, enabled=enabled)
        self.return_statistics = RunningStatistics(enabled=config.normalize_rewards)
        self.policy = Policy(self.statistics, action_space, config)
        self.value = Value(self.statistics, config)


# ── advantage ───────────────────────────────────────────────────────────────────────
def compute_gae(
    rewards, values, next_values, terminated, truncated, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Â_t = Σ_{i≥t} (γλ)^{i−t} δ_i and R_t = Â_t + V(s_t)  (Eq. 19, Algorithm 7).

    All tensors are [U, N]; next_values[t] is V of the state that followed step t, the
    final one if the episode ended there. Truncation stops the sum but not γV.
    """
    assert rewards.shape == values.shape == next_values.shape == terminated.shape
    # Alg. 7.4: if transition was terminal then; Alg. 7.5: ω ← 1; Alg. 7.6: ω ← 0
    terminated, truncated = terminated.to(rewards), truncated.to(rewards)
    ended = torch.maximum(terminated, truncated)
    # Alg. 7.7: δ ← r_i + γ · v_{i+1} · (1 − ω) − v_i
    delta = rewards + gamma * next_values * (1 - terminated) - values
    decay = gamma * gae_lambda * (1 - ended)
    delta, decay = delta.unbind(), decay.unbind()  # U rows of [N]
    advantages, x = list(delta), torch.zeros_like(delta[0])  # Alg. 7.2: x ← 0
    for i in reversed(range(len(rewards))):  # Alg. 7.3: for i = t + n, …, t do
        x = delta[i] + decay[i] * x  # Alg. 7.8: x ← δ + γ · λ · (1 − ω) · x
        advantages[i] = x  # Alg. 7.9: A_i ← x
    advantages = torch.stack(advantages)
    return advantages, advantages + values  # Alg. 7.11: R_i ← A_i + v_i


@torch.no_grad()
def estimate_advantages(value: Value, batch: "Batch", config) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the batch by the critic as it is now, [B] each."""
    parts = batch.observations.chunk(config.num_minibatches)  # each fits the cache
    values = torch.cat([value(part) for part in parts]).view_as(batch.rewards)
    next_values = torch.cat([values[1:], value(batch.last_observations)[None]])
    next_values[batch.terminated | batch.truncated] = value(batch.final_observations)
    data = batch.rewards, values, next_values, batch.terminated, batch.truncated
    advantages, returns = compute_gae(*data, config.gamma, config.gae_lambda)
    return advantages.flatten(), returns.flatten()


# ── loss ────────────────────────────────────────────────────────────────────────────
def surrogate(log_prob: Tensor, log_prob_old: Tensor, advantages: Tensor) -> Tensor:
    """mean[π_θ(a|s) / β(a|s) A] of [B]  (Eq. 17)."""
    assert log_prob.shape == log_prob_old.shape == advantages.shape
    return ((log_prob - log_prob_old).exp() * advantages).mean()


def conjugate_gradient(
    matvec: Callable, b: Tensor, max_iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """x with matvec(x) ≈ b, both [P]; stops at ‖b − matvec(x)‖² ≤ tolerance ‖b‖²."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = residual.dot(residual)
    smallest = tolerance * square
    for _ in range(max_iterations):
        if square <= smallest:
            break
        product = matvec(direction)
        length = square / direction.dot(product)
        x += length * direction
        residual -= length * product
        square, previous = residual.dot(residual), square
        direction = residual + square / previous * direction
    return x


def exact_kl(old: Distribution, new: Distribution) -> Tensor:
    """KL(old‖new) of [B]; finite even where a probability of the new one is 0."""
    if isinstance(old, Categorical):
        return (old.probs * (old.logits - new.logits)).sum(-1)
    return kl_divergence(old, new)


def fisher_vector_product(grad_kl: Tensor, parameters, damping, v: Tensor) -> Tensor:
    """(Ĥ + damping·I) v of [P]; Ĥv = ∇_θ (∇_θ KL · v), for the mean KL of π_θ."""
    product = torch.autograd.grad(grad_kl.dot(v), parameters, retain_graph=True)
    return parameters_to_vector(product) + damping * v


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """mean[(R − V_ϕ(s))²] of [B]."""
    assert values.shape == returns.shape
    return (returns - values).square().mean()


def approximate_kl(log_prob: Tensor, log_prob_old: Tensor) -> Tensor:
    """D̂_KL(π_old ‖ π_new) = mean[r − 1 − ln r] of [B] actions of π_old  (Section 6)."""
    assert log_prob.shape == log_prob_old.shape
    log_ratio = log_prob - log_prob_old
    return (log_ratio.expm1() - log_ratio).mean()


# ── update ──────────────────────────────────────────────────────────────────────────
def update(agent: Agent, optimizer, batch: "Batch", config) -> dict[str, float]:
    """Learn from the batch D; returns what it measured, averaged over its steps."""
    log = defaultdict(list)
    with torch.no_grad():
        old = agent.policy(batch.observations)
    for epoch in range(config.num_epochs):  # Algs. 5.10, 6.10, 8.10: for all epochs do
        # Alg. 5.11: Compute returns R and advantages A
        advantages, returns = estimate_advantages(agent.value, batch, config)
        unexplained = advantages.var(correction=0) / returns.var(correction=0)
        log.setdefault("explained_variance", [1 - unexplained])  # before any learning
        shuffled = torch.randperm(len(returns))
        for i in shuffled.tensor_split(config.num_minibatches):
            observations, A = batch.observations[i], advantages[i]
            if config.normalize_advantages:
                A = A - average(A.mean())
                A = A / (average(A.square().mean()).sqrt() + 1e-8)
            if epoch == 0:  # Table 2: the other epochs are the critic's alone
                data = observations, batch.actions[i], batch.log_prob_old[i], A
                measured = trust_region_step(agent.policy, *data, config)
                for name, value in measured.items():
                    log[name].append(value)
            # Alg. 5.20: dϕ ← 1/|D| Σ_D ∇_ϕ (R − V_ϕ(s))²
            critic_loss = value_loss(agent.value(observations), returns[i])
            # Alg. 5.21: Update ϕ using dϕ via gradient descent
            optimizer.zero_grad()
            critic_loss.backward()
            average_gradients(agent.value)
            clip_grad_norm_(agent.value.parameters(), config.max_grad_norm)
            optimizer.step()
            log["value_loss"].append(critic_loss.detach())
    with torch.no_grad():
        log["kl"] = [exact_kl(old, agent.policy(batch.observations)).mean()]
    means = torch.stack([torch.stack(values).mean() for values in log.values()])
    return dict(zip(log, average(means).tolist(), strict=True))


def trust_region_step(
    policy: Policy, observations, actions, log_prob_old, A, config
) -> dict[str, Tensor]:
    """One step towards Eq. 17 on a minibatch [B]; returns what it measured."""
    parameters = list(policy.parameters())
    gradient = partial(torch.autograd.grad, inputs=parameters)
    # Alg. 5.12: g ← 1/|D| Σ_D ∇_θ π_θ(a|s)/β(a|s) A
    gain = surrogate(policy(observations).log_prob(actions), log_prob_old, A)
    g = average(parameters_to_vector(gradient(gain)))
    # Alg. 5.13: Compute Ĥ as the Hessian of the sample average KL-divergence
    part = observations[: max(1, math.ceil(config.fisher_fraction * len(A)))]
    with torch.no_grad():
        old = policy(part)
    grad_kl = gradient(exact_kl(old, policy(part)).mean(), create_graph=True)
    grad_kl = parameters_to_vector(grad_kl)
    damped = partial(fisher_vector_product, grad_kl, parameters, config.cg_damping)

    def matvec(v: Tensor) -> Tensor:
        return average(damped(v))

    # Alg. 5.14: Compute d ≈ Ĥ⁻¹ g via conjugate gradient algorithm
    d = conjugate_gradient(matvec, g, config.cg_max_iterations)
    product = matvec(d)
    full_step = (2 * config.delta / d.dot(product)).sqrt() * d
    m, accepted = line_search(
        policy, full_step, observations, actions, log_prob_old, A, config
    )
    return {
        "policy_loss": -gain.detach(),
        "grad_norm": g.norm(),
        "cg_residual": (g - product).norm(),
        "line_search_steps": g.new_tensor(m),
        "step_accepted": g.new_tensor(accepted),
    }


@torch.no_grad()
def line_search(
    policy: Policy, full_step: Tensor, observations, actions, log_prob_old, A, config
) -> tuple[int, bool]:
    """Shorten the step until it is good; leave θ as it was if it never is."""
    old, theta_old = policy(observations), parameters_to_vector(policy.parameters())
    old_gain = average(surrogate(old.log_prob(actions), log_prob_old, A))
    for m in range(config.line_search_max_iterations + 1):  # Alg. 5.16: repeat
        # Alg. 5.17: θ ← θ_old + b^m √(2δ / dᵀĤd) d
        theta = theta_old + config.line_search_shrinkage**m * full_step
        vector_to_parameters(theta, policy.parameters())
        new = policy(observations)
        gain = average(surrogate(new.log_prob(actions), log_prob_old, A))
        kl = average(exact_kl(old, new).mean())
        # Alg. 5.19: until (sample loss improves and KL constraint satisfied) or m > K
        if gain > old_gain and kl <= config.delta:
            return m, True
    vector_to_parameters(theta_old, policy.parameters())
    return m, False


# ── rollout ─────────────────────────────────────────────────────────────────────────
class Batch(NamedTuple):
    """D: U steps of N environments, B = U·N in time-major order."""

    observations: Tensor  # [B, O]
    last_observations: Tensor  # [N, O], those after step U
    final_observations: Tensor  # [K, O], the last of K episodes that ended
    actions: Tensor  # [B, A] before squashing, or [B]
    log_prob_old: Tensor  # [B], ln β(a|s)
    rewards: Tensor  # [U, N]
    terminated: Tensor  # [U, N], bool
    truncated: Tensor  # [U, N], bool


@torch.no_grad()
def rollout(agent: Agent, environments: "Environments", config) -> Batch:
    """U steps of N environments under π_θ, which stays as it is meanwhile."""
    steps = []  # Alg. 4.8: while s_t not terminal and t − t_start ≤ t_MAX do
    for _ in range(config.unroll_length):  # Algs. 5.4, 6.4, 8.4: for i = 1, …, U do
        observations = environments.observations
        # Algs. 4.9, 5.5, 6.5, 8.5: a ∼ π_θ
        actions = agent.policy(observations).sample()
        # Algs. 4.10, 5.7, 6.7, 8.7: s, r ∼ P(s, a)
        outcome = environments.step(agent.policy.to_environment(actions))
        # Algs. 5.9, 6.9, 8.9: Store (a, s, r, β(a|s)) in D
        steps.append((observations, actions, *outcome))
    observations, actions, *outcomes, final = zip(*steps, strict=True)
    observations, actions = torch.cat(observations), torch.cat(actions)
    outcomes = [torch.tensor(np.stack(x), device=config.device) for x in outcomes]
    rewards, discounted, terminated, truncated = outcomes
    agent.return_statistics.absorb(discounted.flatten())
    last, final = environments.observations, np.concatenate(final)
    final = torch.tensor(final, device=config.device)
    # Algs. 5.6, 6.6, 8.6: β(a|s) ← π_θ(a|s)
    log_prob_old = agent.policy(observations).log_prob(actions)
    rewards = agent.return_statistics.scale(rewards, center=False)
    ended = terminated, truncated
    return Batch(observations, last, final, actions, log_prob_old, rewards, *ended)


# ── environments ────────────────────────────────────────────────────────────────────
class Adapter(gym.Wrapper):
    """Flat observations in arrays of their own, and rewards that are numbers."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.space = env.observation_space
        self.observation_space = spaces.flatten_space(self.space)

    def reset(self, *, seed=None, options=None):
        if seed is not None:  # some environments draw from the global generators
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
        return self.flat(self.env.reset(seed=seed, options=options)[0]), {}

    def step(self, action):
        observation, reward, *ended, _ = self.env.step(action)
        return self.flat(observation), np.asarray(reward).item(), *ended, {}

    def flat(self, observation) -> np.ndarray:
        space, shape = self.space, np.shape(observation)
        if isinstance(space, spaces.Box) and shape != space.shape:
            raise ValueError(f"an observation that is not of {space}: {observation!r}")
        return spaces.flatten(space, observation)


def make_environment(config, render_mode=None, film: Path | None = None) -> gym.Env:
    """One environment, filmed if so wanted, if a policy of ours can act in it."""
    warnings.filterwarnings("ignore", ".*(out of date|Overwriting existing videos)")
    options = {"render_mode": render_mode} if render_mode else {}
    try:
        env = gym.make(config.env_id, **options)
    except (gym.error.Error, ModuleNotFoundError) as error:
        sys.exit(f"--env-id {config.env_id}: {error}")
    seen, actions = env.observation_space, env.action_space
    pixels = re.search(r"\(\d+, \d+, \d+\), uint8", str(seen))  # in a Dict too
    floats = isinstance(actions, spaces.Box) and actions.dtype.kind == "f"
    bounded = floats and (actions.high - np.float64(actions.low) <= LARGEST).all()
    if pixels or not seen.is_np_flattenable:
        sys.exit(f"--env-id {config.env_id}: observations must be vectors, not {seen}")
    if not bounded and not isinstance(actions, spaces.Discrete):
        sys.exit(f"--env-id {config.env_id}: no policy of ours acts in {actions}")
    if env.spec.max_episode_steps is None:
        env = gym.wrappers.TimeLimit(env, LONGEST_EPISODE)
    if film:  # not for long, since the frames wait in memory
        options = {"name_prefix": film.name, "episode_trigger": lambda i: i == 0}
        env = gym.wrappers.RecordVideo(env, film.parent, video_length=1000, **options)
    return Adapter(env)


def worker(*arguments) -> None:
    """Gymnasium's, but an error ends it with a traceback: sent home, it may hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    arguments[5].put = lambda error: sys.exit(error[3])
    _async_worker(*arguments)


def require_finite(**quantities) -> None:
    """Stop at the first number that is not finite, as float32 has it."""
    for name, x in quantities.items():
        wrong = ~(np.abs(x) <= LARGEST)
        if wrong.any():
            where = f" of environment {np.argwhere(wrong)[0][0]}" if wrong.ndim else ""
            raise FloatingPointError(f"{name}{where} is not finite in float32: {x}")


class Environments:
    """N environments stepped together, and the episodes they are in the middle of."""

    def __init__(self, make: list, config, vectorization: str = "sync"):
        processes = partial(vector.AsyncVectorEnv, worker=worker)
        kind = processes if vectorization == "async" else vector.SyncVectorEnv
        same_step = vector.AutoresetMode.SAME_STEP
        self.vector = kind(make, autoreset_mode=same_step, copy=False)
        self.decay, self.device = np.array([[config.gamma], [1], [1]]), config.device

    def reset(self, *numbers: int) -> int:
        """Start all episodes anew, as these numbers alone decide; returns a seed."""
        count = WORLD * (self.vector.num_envs + 1)
        seeds = np.random.SeedSequence(numbers).generate_state(count)[RANK::WORLD]
        *seeds, seed = (seeds >> 1).tolist()  # C simulators want them below 2³¹
        observations, _ = self.vector.reset(seed=seeds)
        require_finite(observation=observations)
        self.observations = torch.tensor(observations, device=self.device)
        self.sums = np.zeros((3, len(seeds)))  # discounted return, return, length
        self.finished = []
        return seed

    def step(self, actions: Tensor) -> tuple[Tensor, ...]:
        """Rewards, discounted returns, terminated, truncated, final observations."""
        actions = actions.cpu().numpy().reshape(self.vector.action_space.shape)
        observations, rewards, terminated, truncated, info = self.vector.step(actions)
        require_finite(observation=observations, reward=rewards)
        self.observations = torch.tensor(observations, device=self.device)
        self.sums = self.decay * self.sums + [rewards, rewards, np.ones_like(rewards)]
        discounted, final = self.sums[0].copy(), observations[:0]
        if (ended := terminated | truncated).any():
            # `observations` holds the first of the next episode there
            finals = np.zeros_like(observations)
            finals[ended] = final = np.stack(info["final_obs"][ended])
            require_finite(final_observation=finals)
            self.finished += [(i, *self.sums[1:, i]) for i in np.flatnonzero(ended)]
            self.sums[:, ended] = 0
        return rewards, discounted, terminated, truncated, final

    def close(self) -> None:
        for i, process in enumerate(getattr(self.vector, "processes", [])):
            process.join(0.05)  # if it is about to end
            if process.exitcode is not None and (error := sys.exception()):
                error.add_note(f"environment {i} left, exit status {process.exitcode}")
            process.kill()
            self.vector.closed = True  # gymnasium's way is to wait for an answer
        self.vector.close()


@torch.no_grad()
def evaluate(policy: Policy, config, run: Path, iteration: int) -> dict[str, float]:
    """Play an episode in each of a few environments with the mode of the policy."""
    make = [partial(make_environment, config)] * max(1, config.eval_episodes)
    if config.capture_video:
        film = run / "videos" / f"iteration-{iteration}-seed-{config.seed}"
        make[0] = partial(make_environment, config, "rgb_array", film)
    elif config.render:
        make[0] = partial(make_environment, config, "human")
    environments, first = Environments(make, config), {}
    environments.reset(config.seed, iteration, 1)
    while len(first) < len(make):
        modes = policy(environments.observations).mode
        environments.step(policy.to_environment(modes))
        for i, *score in environments.finished:
            first.setdefault(i, score)  # what an environment plays later does not count
    with suppress(Exception):  # the end of training shows what is wrong with close()
        environments.close()
    returns, lengths = np.array([first[i] for i in range(len(make))]).T
    score = {"eval/return_mean": returns.mean(), "eval/return_std": returns.std()}
    score |= {"eval/length_mean": lengths.mean()}
    return {name: value.item() for name, value in score.items()}


# ── processes of torchrun ───────────────────────────────────────────────────────────
def average(x: Tensor) -> Tensor:
    """The mean over the processes."""
    if WORLD > 1:
        x = x / WORLD
        torch.distributed.all_reduce(x)
    return x


def average_gradients(network: nn.Module) -> None:
    """Those of the loss over all processes, by one all-reduce of one flat buffer."""
    if WORLD > 1:
        gradients = [x.grad for x in network.parameters()]
        vector_to_parameters(average(parameters_to_vector(gradients)), gradients)


# ── run folder ──────────────────────────────────────────────────────────────────────
def open_run(config, env_id: str, iteration: int) -> Path:
    """The folder of the run, a new one unless it is resumed, with its config.json."""
    now = time.strftime("%Y%m%d-%H%M%S-") + os.urandom(3).hex()  # no two are the same
    name = f"{config.env_id}__{ALGORITHM}__{config.seed}__{now}"
    run = Path(config.resume or config.runs_dir + "/" + re.sub("[/:]", "-", name))
    run = run.parent if run.is_file() else run
    try:
        run.mkdir(parents=True, exist_ok=bool(config.resume))
    except OSError as error:
        sys.exit(f"--runs-dir {config.runs_dir}: {error}")
    content = {"algorithm": ALGORITHM, "env_id": env_id, "config": asdict(config)}
    for package in "torch", "gymnasium", "mujoco", "numpy":
        content[package] = version(package)
    part = run / "config.json.part"
    part.write_text(json.dumps(content, indent=2))
    part.replace(run / "config.json")
    if (progress := run / "progress.csv").exists():
        rows = progress.read_bytes().splitlines(keepends=True)[: iteration + 1]
        os.truncate(progress, sum(map(len, rows)))  # the others are written again
    return run


def save(path: Path, config, at, agent: Agent, optimizer=None) -> None:
    """The policy with its statistics; with an optimiser, all that resuming needs."""
    state = {"algorithm": ALGORITHM, "config": asdict(config), "at": vars(at)}
    state["policy"] = agent.policy.state_dict()
    if optimizer:
        state |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
    # A kill at any instant leaves the old file or the new one
    with open(part := path.with_suffix(".part"), "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: str) -> dict:
    """What was saved; loading runs no code that the file might hold."""
    path = Path(path, "checkpoint.pt") if Path(path).is_dir() else path
    try:
        file = zipfile.ZipFile(path)  # torch.load overlooks flipped bits
        damaged = file.testzip() or any(x.external_attr for x in file.infolist())
        state = torch.load(path, map_location="cpu", weights_only=True)
        owner = state["algorithm"]
    except Exception as error:
        sys.exit(f"{path} cannot be read: {error!r:.200}")
    if damaged or owner != ALGORITHM:
        sys.exit(f"{path} is {'damaged' if damaged else f'of {owner}.py'}")
    return state


# ── training ────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def measure(policy: Policy, batch: Batch) -> dict[str, float]:
    """KL from the policy that acted; entropy and std of the one learned since."""
    distribution = policy(batch.observations)
    log_prob = distribution.log_prob(batch.actions)
    metrics = {"kl": approximate_kl(log_prob, batch.log_prob_old)}
    metrics["entropy"] = policy.entropy(distribution).mean()
    if not policy.discrete:
        metrics["std"] = distribution.stddev.mean()
    return {name: average(value).item() for name, value in metrics.items()}


def iterate(agent: Agent, optimizer, environments: Environments, config) -> dict:
    """One rollout and the update on it; returns a row for the log."""
    start = time.perf_counter()
    batch = rollout(agent, environments, config)
    steps = WORLD * len(batch.actions)
    if agent.statistics.enabled and not agent.statistics.count:
        # To learn on raw observations would spoil Adam's moments for a long time
        agent.statistics.absorb(batch.observations)
        batch = rollout(agent, environments, config)
        steps += WORLD * len(batch.actions)
    middle = time.perf_counter()
    metrics = update(agent, optimizer, batch, config)
    largest = parameters_to_vector(agent.parameters()).detach().abs().max().item()
    losses = {name: value for name, value in metrics.items() if "loss" in name}
    require_finite(**losses, parameter=largest)
    metrics = measure(agent.policy, batch) | metrics
    finished = [(0.0, 0, 0), *((1, *score) for _, *score in environments.finished)]
    sums = torch.tensor(np.sum(finished, axis=0), device=config.device)
    count, *sums = average(sums).tolist()
    if count:
        metrics["episode_return"], metrics["episode_length"] = (x / count for x in sums)
    environments.finished = []
    agent.statistics.absorb(batch.observations)
    end = time.perf_counter()
    names = "train/episode_return train/episode_length eval/return_mean eval/return_std"
    row = dict.fromkeys(f"iteration step {names} eval/length_mean".split(), "")
    row |= {f"train/{name}": value for name, value in metrics.items()}
    row["time/steps_per_second"] = steps / (end - start)
    row["time/rollout_steps_per_second"] = steps / (middle - start)
    row["time/update_steps_per_second"] = WORLD * len(batch.actions) / (end - middle)
    return row | {"step": steps}


def make_agent(config) -> tuple[Agent, Adam, SimpleNamespace, str]:
    """The learner, its optimiser, how far they are, and the environment's full name."""
    env = make_environment(config, "rgb_array" if config.capture_video else None)
    if config.capture_video:  # it would fail hours later otherwise
        env.reset()
        env.render()
    with suppress(Exception):  # some cannot be closed before a reset
        env.close()
    size, space = env.observation_space.shape[0], env.action_space
    spec = gym.registry[env.spec.id]
    print(f"{ALGORITHM}: {spec.id}, {size} observations, actions in {space}")
    between = max(config.checkpoint_every // config.num_envs, config.unroll_length)
    between = math.inf if WHOLE_EPISODES else between
    longest = min(spec.max_episode_steps or LONGEST_EPISODE, between)
    if longest != spec.max_episode_steps:
        why = "--checkpoint-every" if longest == between else "no limit is registered"
        print(f"episodes are cut after {longest:,} steps: {why}")
    if config.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.manual_seed(config.seed)  # Algs. 3.1, 4.1, 5.1, 6.1, 8.1: Initialize θ …
    agent = Agent(size, space, config).to(config.device)
    optimizer = Adam(agent.parameters(), lr=config.learning_rate, fused=True)
    at = {"iteration": 0, "step": 0, "saved": 0, "seconds": 0.0, "best": -math.inf}
    if path := config.resume or config.evaluate:
        state = load(path)
        at = state["at"]
        agent.policy.load_state_dict(state["policy"])
    if config.resume:
        agent.load_state_dict(state["agent"])
        optimizer.load_state_dict(state["optimizer"])
    return agent, optimizer, SimpleNamespace(**at), spec.id


def train(config: Config) -> Path:
    """Learn for `total_timesteps`; returns the folder of the run."""
    if WORLD > 1:  # with patience: only the first process evaluates
        backend = {"cpu": "gloo", "cuda": "nccl"}[config.device]
        torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    agent, optimizer, at, env_id = make_agent(config)
    make = [partial(make_environment, config)] * (config.num_envs // WORLD)
    environments = Environments(make, config, config.vectorization)
    run = open_run(config, env_id, at.iteration) if RANK == 0 else None
    tracker = None
    if config.track and RANK == 0:
        import wandb  # only here: it takes seconds

        names = {"project": config.wandb_project, "id": run.name, "resume": "allow"}
        tracker = wandb.init(**names, dir=run, config=asdict(config))
        tracker.define_metric("*", step_metric="step")
    total = config.total_timesteps
    bar = tqdm(total=total, initial=at.step, unit=" steps", disable=RANK > 0 or None)
    try:
        for row in learn(agent, optimizer, environments, config, run, at):
            with open(run / "progress.csv", "a") as file:
                if not file.tell():
                    file.write(",".join(row) + "\n")
                file.write(",".join(map(str, row.values())) + "\n")
            if tracker:
                known = {name: value for name, value in row.items() if value != ""}
                tracker.log(known, step=at.iteration)
            bar.update(min(at.step, total) - bar.n)
            if row["eval/return_mean"] != "":
                text = "return {eval/return_mean:.1f} ± {eval/return_std:.1f}"
                bar.write(f"step {at.step:,}: {text.format(**row)}")
        environments.vector.close()  # in good order; below, at once
    except BaseException as error:
        text = f"{type(error).__name__} in iteration {at.iteration + 1}; to go on from"
        bar.write(f"{text} step {at.saved:,}: python {ALGORITHM}.py --resume {run}")
        raise
    finally:
        bar.close()
        environments.close()
        if tracker:
            tracker.finish()
    print(f"done; play it: python {ALGORITHM}.py --evaluate {run} --capture-video")
    return run


def learn(agent, optimizer, environments, config, run: Path, at) -> Iterator[dict]:
    """Roll out and update until the last step; save and evaluate; yields log rows."""
    start, total, before = time.perf_counter() - at.seconds, config.total_timesteps, -1
    # Alg. 3.2: for all episodes do; Alg. 4.3: while T ≤ T_MAX do
    while at.step < total:  # Algs. 5.3, 6.3, 8.3: while t ≤ T do
        if at.step // config.checkpoint_every > before // config.checkpoint_every:
            at.saved = at.step
            if RANK == 0:
                save(run / "checkpoint.pt", config, at, agent, optimizer)
            # In runs that never stop too, so that resuming changes nothing
            torch.manual_seed(environments.reset(config.seed, at.iteration))
        lost = config.learning_rate_decay * at.step / total
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - lost)
        row = iterate(agent, optimizer, environments, config)
        at.iteration, before, at.step = at.iteration + 1, at.step, at.step + row["step"]
        row |= {"iteration": at.iteration, "step": at.step}
        due = at.step // config.eval_every > before // config.eval_every
        if config.eval_episodes and (due or at.step >= total) and RANK == 0:
            row |= evaluate(agent.policy, config, run, at.iteration)
            if row["eval/return_mean"] > at.best:
                at.best = row["eval/return_mean"]
                save(run / "best.pt", config, at, agent)
        row["time/elapsed_seconds"] = at.seconds = time.perf_counter() - start
        if RANK == 0:
            yield row
    at.saved = at.step
    if RANK == 0:
        save(run / "checkpoint.pt", config, at, agent, optimizer)


# ── command line ────────────────────────────────────────────────────────────────────
def parse(arguments: list[str] | None = None) -> Config:
    """The flags, over those of the run that one of them names."""
    words = sys.argv[1:] if arguments is None else arguments
    number = r"(?<![^=])\d+(\.\d+)?e\+?\d+$"  # 1e6
    words = [re.sub(number, lambda x: f"{float(x[0]):.15g}", word) for word in words]
    read = partial(tyro.cli, Config, args=words, description=__doc__.splitlines()[0])
    config = read()
    if path := config.resume or config.evaluate:
        state = load(path)
        if config.resume and "agent" not in state:
            sys.exit(f"{path} holds the policy alone, to play with --evaluate")
        saved = state["config"] | {"resume": None, "evaluate": None}
        config = read(default=Config(**saved))
    if config.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no GPU here")
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}:
        if config.render:  # MuJoCo would end the process
            sys.exit("--render: there is no display here; use --capture-video")
        if config.capture_video:
            os.environ.setdefault("MUJOCO_GL", "egl")
    return config


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # nohup … > log
    sys.path.append(os.getcwd())  # for module:Name-v0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as at Ctrl-C
    if RANK:  # the first process tells
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    config = None
    try:
        with redirect_stderr(sys.stdout if RANK else sys.stderr):
            config = parse()
        if not config.evaluate:
            train(config)
            if WORLD > 1:  # at an ordinary end gloo's threads may abort the process
                os._exit(0)
        else:
            agent, _, at, _ = make_agent(config)
            run = Path(config.evaluate)
            run = run if run.is_dir() else run.parent
            score = evaluate(agent.policy, config, run, at.iteration)
            print(f"step {at.step:,}: {score}")
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, SystemExit) as error:
        lost = isinstance(error, RuntimeError)  # the connection to another, maybe
        if WORLD > 1 and (RANK or lost):  # torchrun ends this one when that has told
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(5 * lost + 5 * (RANK > 0))
        if config and isinstance(error, SystemExit) and not error.code:
            sys.exit(1)  # an environment has left
        raise


if __name__ == "__main__":
    main()
