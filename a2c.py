"""A2C, synchronous Advantage Actor-Critic (Section 4.2 of arXiv:2401.13662).

    θ ← θ + α ∇_θ mean_D[ A ln π_θ(a|s) ]

Algorithm 4 in the words of Algorithm 6, each line quoted in the code, in this order:
    while t ≤ T do
    a ∼ π_θ
    s, r ∼ P(s, a)
    R ← r_j + γR, A = R − V_ϕ(s_j)
    dθ ← dθ + ∇_θ ln π_θ(a_j|s_j) A
    dϕ ← dϕ + ∇_ϕ (R − V_ϕ(s_j))²
    update θ and ϕ using dθ and dϕ

Departures from the paper's text:
1. A time limit is not a terminal state: V of the final observation is bootstrapped.
2. The actors share one θ and wait for each other; R and A are those of GAE (Section 6).
3. An epoch is a pass over shuffled minibatches with one gradient step each.

    python a2c.py --env-id Ant-v4
    python a2c.py --evaluate runs/RUN --capture-video
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_type_hints

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn.functional import softplus
from torch.optim import Adam
from tqdm import tqdm

# ── configuration ───────────────────────────────────────────────────────────────────

ALGORITHM = "a2c"
LONGEST_EPISODE = 10_000  # steps, in an environment without a time limit
Count = Annotated[int, 1, 2**53]  # the range that `Config` holds a field to
Fraction = Annotated[float, 0, 1]
Positive = Annotated[float, 1e-12, 1e12]


class UsageError(Exception):
    """A person's mistake, in one line: the flag or file, what is wrong, what to do."""


class RunError(Exception):
    """What stops a run that began well, in one line; its last checkpoint is good."""


@contextlib.contextmanager
def usage_error(where: str):
    """Whatever fails in this block is a person's mistake, told in one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: {error!r:.300}") from error


@dataclass(frozen=True)
class Config:
    env_id: str = "HalfCheetah-v4"
    """Gymnasium environment; module:Name-v0 imports the module first."""
    seed: Annotated[int, 0, 2**31 - 1] = 0
    """Seed of the networks, actions, minibatches and environments."""
    total_timesteps: Count = 8_000_000
    """Steps to train for, over all environments; the last batch is finished."""
    learning_rate: Positive = 3e-4
    """Adam's step size at the start; it falls linearly to zero over the run."""
    gamma: Fraction = 0.99
    """Discount γ."""
    max_grad_norm: Positive = 0.5
    """Largest norm of the gradient of each network."""
    policy_layers: tuple[Count, ...] = (32, 32, 32, 32)
    """Widths of the policy's hidden layers."""
    normalize_observations: bool = True
    """Standardise observations by running statistics and clip them to ±10."""
    normalize_rewards: bool = True
    """Divide rewards by the running std of the discounted return; clip to ±10."""
    squash_actions: bool = True
    """Bring continuous actions into their bounds by tanh; off: by clipping."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks act and learn."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast of the hidden layers of the value network, if any."""
    vectorization: Literal["sync", "async"] = "sync"
    """Environments in this process, or each in its own; the results are the same."""
    eval_every: Count = 10
    """Iterations between evaluations; there is always one at the end."""
    eval_episodes: Count = 10
    """Episodes in an evaluation, played with the mode of the policy."""
    checkpoint_every: Count = 10
    """Iterations between checkpoints, at each of which the environments are reset."""
    runs_dir: str = "runs"
    """Folder that the folder of the run is made in."""
    resume: str | None = None
    """Folder of a run to go on with."""
    evaluate: str | None = None
    """Folder of a run whose policy to play, instead of training."""
    track: bool = False
    """Log to Weights & Biases as well."""
    wandb_project: str = "policy-gradients"
    """Project to log to there."""
    capture_video: bool = False
    """Film the first episode of each evaluation, off screen."""
    render: bool = False
    """With --evaluate: play the first episode in a window."""
    num_envs: Count = 8
    """Environments stepped together, N."""
    unroll_length: Count = 2048
    """Steps of each environment in a batch, T."""
    num_minibatches: Count = 8
    """Minibatches in an epoch."""
    num_epochs: Count = 1
    """Passes over the batch."""
    value_layers: tuple[Count, ...] = (256, 256, 256, 256, 256)
    """Widths of the value network's hidden layers."""
    gae_lambda: Fraction = 0.95
    """λ of generalized advantage estimation; 1 is the n-step estimate of Eq. 14."""
    normalize_advantages: bool = True
    """Standardise the advantages in each minibatch."""
    entropy_coefficient: Annotated[float, 0, 1e12] = 0.1
    """Weight of the policy's entropy in the objective."""

    def __post_init__(self):
        check_ranges(self)
        if self.num_envs * self.unroll_length % self.num_minibatches:
            size = f"{self.num_envs} × {self.unroll_length}"
            raise UsageError(f"--num-minibatches must divide the batch of {size} steps")


def check_ranges(config) -> None:
    """Refuse numbers outside the range that their field is annotated with."""
    if "" in (config.resume, config.evaluate) or (config.resume and config.evaluate):
        raise UsageError(
            "--resume and --evaluate: give one of them, and a run's folder"
        )
    if config.render and not config.evaluate:
        raise UsageError("--render needs --evaluate RUN")
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        several = type(value) is tuple
        values, kind = (value, kind.__args__[0]) if several else ([value], kind)
        low, high = getattr(kind, "__metadata__", (None, None))
        if low is not None and not all(low <= v <= high for v in values):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} must be from {low:g} to {high:g}, not {value}")


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
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def absorb(self, samples: Tensor) -> None:  # [B, *shape]
        """Pool with B more samples (Chan, Golub and LeVeque 1979)."""
        variance, mean = torch.var_mean(samples.double(), dim=0, correction=0)
        self.count += len(samples)
        weight, delta = len(samples) / self.count, mean - self.mean
        self.mean += weight * delta
        self.variance.lerp_(variance, weight).add_(weight * (1 - weight) * delta**2)

    def scale(self, samples: Tensor, center: bool = True) -> Tensor:
        """(x − μ) / σ, or x / σ, clipped to ±10; x itself if not enabled."""
        if not self.enabled:
            return samples
        samples = samples - self.mean.float() if center else samples
        return (samples / (self.variance.float() + 1e-8).sqrt()).clamp(-10, 10)


class Policy(nn.Module):
    """π_θ: a Gaussian with state-dependent mean and std, or a softmax over logits.

    Continuous actions stay as the Gaussian drew them; `to_environment` squashes them.
    """

    def __init__(self, statistics: RunningStatistics, action_space, config):
        super().__init__()
        self.statistics, self.squash = statistics, config.squash_actions
        self.discrete = isinstance(action_space, Discrete)
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

    All tensors are [T, N]; next_values[t] is V of the state that followed step t, the
    final one if the episode ended there. Truncation stops the sum but not γV.
    """
    terminated, truncated = terminated.to(rewards), truncated.to(rewards)  # ω
    ended = torch.maximum(terminated, truncated)
    # Alg. 7: δ ← r_i + γ · v_{i+1} · (1 − ω) − v_i
    delta = rewards + gamma * next_values * (1 - terminated) - values
    decay = gamma * gae_lambda * (1 - ended)
    delta, decay = delta.unbind(), decay.unbind()  # T rows of [N]
    advantages, x = list(delta), torch.zeros_like(delta[0])
    for i in reversed(range(len(rewards))):
        # Alg. 7: x ← δ + γ · λ · (1 − ω) · x
        x = delta[i] + decay[i] * x
        # Alg. 7: A_i ← x
        advantages[i] = x
    advantages = torch.stack(advantages)
    # Alg. 7: R_i ← A_i + v_i
    return advantages, advantages + values


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


def policy_loss(log_prob: Tensor, weights: Tensor) -> Tensor:
    """−mean[A ln π_θ(a|s)] of [B]; the weights are the advantages A  (Section 4.2)."""
    return -(log_prob * weights).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """mean[(R − V_ϕ(s))²] of [B]."""
    return (returns - values).square().mean()


def approximate_kl(log_prob: Tensor, log_prob_old: Tensor) -> Tensor:
    """D̂_KL(π_old ‖ π_new) = mean[r − 1 − ln r] of [B] actions of π_old  (Section 6)."""
    log_ratio = log_prob - log_prob_old
    return (log_ratio.expm1() - log_ratio).mean()


# ── update ──────────────────────────────────────────────────────────────────────────


def gradient_step(agent: Agent, optimizer, loss: Tensor, max_norm: float) -> Tensor:
    """One step down the loss; each network's gradient is clipped on its own.

    Returns the norm of the policy's gradient before it is clipped.
    """
    optimizer.zero_grad()
    loss.backward()
    norms = {}
    for name, network in agent.named_children():
        norms[name] = nn.utils.clip_grad_norm_(list(network.parameters()), max_norm)
    optimizer.step()
    return norms["policy"]


def update(agent: Agent, optimizer, batch: "Batch", config) -> dict[str, float]:
    """Learn from the batch D; returns what it measured, averaged over its steps."""
    log = defaultdict(list)
    for _ in range(config.num_epochs):
        # Alg. 4: R ← r_j + γR, A = R − V_ϕ(s_j)
        advantages, returns = estimate_advantages(agent.value, batch, config)
        explained = 1 - advantages.var() / (returns.var() + 1e-8)
        log.setdefault("explained_variance", [explained])  # before any learning
        shuffled = torch.randperm(len(returns))
        for i in shuffled.tensor_split(config.num_minibatches):
            observations, A = batch.observations[i], advantages[i]
            if config.normalize_advantages:
                A = (A - A.mean()) / (A.std(correction=0) + 1e-8)
            distribution = agent.policy(observations)
            log_prob = distribution.log_prob(batch.actions[i])
            # Alg. 4: dθ ← dθ + ∇_θ ln π_θ(a_j|s_j) A
            actor_loss = policy_loss(log_prob, A)
            # Alg. 4: dϕ ← dϕ + ∇_ϕ (R − V_ϕ(s_j))²
            critic_loss = value_loss(agent.value(observations), returns[i])
            loss = actor_loss + critic_loss
            if config.entropy_coefficient:
                entropy = agent.policy.entropy(distribution).mean()
                loss = loss - config.entropy_coefficient * entropy
            # Alg. 4: update θ and ϕ using dθ and dϕ
            grad_norm = gradient_step(agent, optimizer, loss, config.max_grad_norm)
            log["policy_loss"].append(actor_loss.detach())
            log["value_loss"].append(critic_loss.detach())
            log["grad_norm"].append(grad_norm)
    return {name: torch.stack(values).mean().item() for name, values in log.items()}


# ── rollout ─────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """D: T steps of N environments, B = T·N in time-major order."""

    observations: Tensor  # [B, O]
    last_observations: Tensor  # [N, O], those after step T
    final_observations: Tensor  # [K, O], the last of K episodes that ended
    actions: Tensor  # [B, A] before squashing, or [B]
    log_prob_old: Tensor  # [B], ln β(a|s)
    rewards: Tensor  # [T, N]
    terminated: Tensor  # [T, N], bool
    truncated: Tensor  # [T, N], bool


@torch.no_grad()
def rollout(agent: Agent, environments: "Environments", config) -> Batch:
    """T steps of N environments under π_θ, which stays as it is meanwhile."""
    steps = []
    # Algs. 5, 6, 8: for i = 1, …, U do
    for _ in range(config.unroll_length):
        observations = environments.observations
        # Algs. 4–6, 8: a ∼ π_θ
        actions = agent.policy(observations).sample()
        # Algs. 4–6, 8: s, r ∼ P(s, a)
        outcome = environments.step(agent.policy.to_environment(actions))
        # Algs. 5, 6, 8: Store (a, s, r, β(a|s)) in D
        steps.append((observations, actions, *outcome))
    observations, actions, *outcomes, final = zip(*steps, strict=True)
    observations, actions = torch.cat(observations), torch.cat(actions)
    outcomes = map(environments.tensor, map(np.stack, outcomes))
    rewards, discounted, terminated, truncated = outcomes
    agent.return_statistics.absorb(discounted.flatten())
    return Batch(
        observations,
        environments.observations,
        environments.tensor(np.concatenate(final)),
        actions,
        agent.policy(observations).log_prob(actions),
        agent.return_statistics.scale(rewards, center=False),
        terminated.bool(),
        truncated.bool(),
    )


def make_environment(config, render_mode: str | None = None) -> gym.Env:
    """One environment with flat observations, if a policy of ours can act in it."""
    gym.logger.min_level = 50  # silent: the v4 ids are "out of date", errors are ours
    with usage_error(f"--env-id {config.env_id}"):
        options = {"render_mode": render_mode} if render_mode else {}
        env = gym.make(config.env_id, **options)
    space, actions = env.observation_space, env.action_space
    box = isinstance(actions, Box) and actions.dtype.kind == "f"
    if not (box and actions.is_bounded()) and not isinstance(actions, Discrete):
        wanted = "must be Discrete or a bounded Box of floats"
        raise UsageError(f"--env-id {config.env_id}: actions {wanted}, not {actions}")
    if not space.is_np_flattenable or len(space.shape or ()) > 1:
        wanted = "must be a vector, or a Dict or Tuple of them"
        raise UsageError(f"--env-id {config.env_id}: observation {wanted}, not {space}")
    if env.spec.max_episode_steps is None:
        env = gym.wrappers.TimeLimit(env, LONGEST_EPISODE)
    vector = isinstance(space, Box) and len(space.shape) == 1
    return env if vector else gym.wrappers.FlattenObservation(env)


def environment_seeds(count: int, *numbers: int) -> list[int]:
    """Seeds that these numbers alone decide."""
    return np.random.SeedSequence(numbers).generate_state(count).tolist()


def require_finite(**quantities) -> None:
    """Stop the run at the first number that is not finite."""
    for name, values in quantities.items():
        if not np.isfinite(values).all():
            first = np.argwhere(~np.isfinite(values))[0]
            where = f" of environment {first[0]}" if len(first) else ""
            raise RunError(f"{name}{where} is not finite")


class Guarded(gym.Wrapper):
    """Tells which of the environments failed; drops the info, which costs time."""

    def __init__(self, index: int, config, render_mode: str | None = None):
        if config.vectorization == "async" and multiprocessing.parent_process():
            # Ctrl-C and SIGTERM are for the parent to answer
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        super().__init__(make_environment(config, render_mode))
        self.index = index

    def reset(self, **options):
        return self.guard(self.env.reset, **options)[0], {}

    def step(self, action):
        return *self.guard(self.env.step, action)[:4], {}

    def guard(self, method, *arguments, **options):
        try:
            return method(*arguments, **options)
        except Exception as error:
            raise RunError(f"environment {self.index} failed: {error!r}") from error


class Environments:
    """N environments stepped together, and the episodes they are in the middle of."""

    def __init__(self, config):
        make_environment(config).close()  # refuses an unfit one in this process
        make = [partial(Guarded, i, config) for i in range(config.num_envs)]
        options = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "copy": False}
        kind = getattr(gym.vector, f"{config.vectorization.capitalize()}VectorEnv")
        self.vector = kind(make, **options)
        self.observation_size = self.vector.single_observation_space.shape[0]
        self.action_space = self.vector.single_action_space
        self.gamma, self.device = config.gamma, config.device

    def tensor(self, array: np.ndarray) -> Tensor:
        """A copy on the device, in float32."""
        return torch.from_numpy(array.astype(np.float32)).to(self.device)

    def call(self, method, *arguments, **options):
        try:
            return method(*arguments, **options)
        except (EOFError, OSError) as error:
            raise RunError(f"the process of an environment died: {error!r}") from error

    def reset(self, *seed: int) -> None:
        """Start all episodes anew; what follows depends on the seed alone."""
        seeds = environment_seeds(self.vector.num_envs, *seed)
        observations, _ = self.call(self.vector.reset, seed=seeds)
        require_finite(observation=observations)
        self.observations = self.tensor(observations)
        self.sums = np.zeros((3, self.vector.num_envs))  # over the episodes under way:
        self.decay = np.array([[self.gamma], [1], [1]])  # discounted, return, length
        self.finished = []

    def step(self, actions: Tensor) -> tuple[np.ndarray, ...]:
        """Rewards, discounted returns, terminated, truncated, final observations."""
        actions = actions.cpu().numpy().reshape(self.vector.action_space.shape)
        outcome = self.call(self.vector.step, actions)
        observations, rewards, terminated, truncated, info = outcome
        require_finite(observation=observations, reward=rewards)
        self.observations = self.tensor(observations)
        self.sums = self.decay * self.sums + [rewards, rewards, np.ones_like(rewards)]
        discounted, final = self.sums[0].copy(), observations[:0]
        if (ended := terminated | truncated).any():
            # `observations` holds the first of the next episode there
            final = np.stack(info["final_obs"][ended])
            finals = np.zeros_like(observations)
            finals[ended] = final
            require_finite(final_observation=finals)
            self.finished += self.sums[1:, ended].T.tolist()
            self.sums[:, ended] = 0
        return rewards, discounted, terminated, truncated, final

    def pop_episodes(self) -> dict[str, float]:
        """Mean return and length of the episodes finished since the last call."""
        finished, self.finished = self.finished, []
        means = np.mean(finished, axis=0) if finished else ()
        return dict(zip(("episode_return", "episode_length"), means, strict=False))


# ── evaluation ──────────────────────────────────────────────────────────────────────


@torch.no_grad()
def evaluate(policy: Policy, config, run: Path, iteration: int) -> dict[str, float]:
    """Play episodes with the mode of the policy; film or show the first of them."""
    mode = "rgb_array" if config.capture_video else "human" if config.render else None
    modes = [mode] + [None] * (config.eval_episodes - 1)
    envs = [Guarded(i, config, mode) for i, mode in enumerate(modes)]
    if config.capture_video:
        name = f"iteration-{iteration}-seed-{config.seed}"
        film = {"episode_trigger": lambda episode: True, "name_prefix": name}
        envs[0] = gym.wrappers.RecordVideo(envs[0], str(run / "videos"), **film)
    seeds = environment_seeds(len(envs), config.seed, iteration, 1)
    now = {i: env.reset(seed=seeds[i])[0] for i, env in enumerate(envs)}  # not yet over
    returns, lengths = np.zeros((2, len(envs)))
    while now:
        observations = torch.as_tensor(np.stack([*now.values()]), dtype=torch.float32)
        modes = policy(observations.to(config.device)).mode
        actions = policy.to_environment(modes).cpu().numpy()
        for i, action in zip([*now], actions, strict=True):
            action = action.reshape(envs[i].action_space.shape)
            now[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += reward
            lengths[i] += 1
            if terminated or truncated:
                del now[i]
    for env in envs:
        env.close()
    require_finite(return_in_evaluation=returns)
    score = {"eval/return_mean": returns.mean(), "eval/return_std": returns.std()}
    return score | {"eval/length_mean": lengths.mean()}


# ── run folder ──────────────────────────────────────────────────────────────────────

COLUMNS = (
    "iteration step train/episode_return train/episode_length train/kl train/entropy "
    "train/std train/policy_loss train/value_loss train/explained_variance "
    "train/grad_norm eval/return_mean eval/return_std eval/length_mean "
    "time/steps_per_second time/rollout_steps_per_second time/update_steps_per_second "
    "time/elapsed_seconds"
).split()


def read(path: Path) -> bytes:
    """The content of a file of a run."""
    with usage_error(f"{path} cannot be read"):
        return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    """Replace a file at once: a kill at any instant leaves the old or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def create_run(config, agent, optimizer) -> Path:
    """A new run's folder with its first checkpoint, whole or not at all."""
    now = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.env_id}__{ALGORITHM}__{config.seed}__{now}"
    run = Path(config.runs_dir, re.sub(r"[/:]", "-", name))
    part = run.with_name(f".{run.name}.{os.getpid()}.part")
    packages = "torch", "gymnasium", "mujoco", "numpy"
    versions = {package: version(package) for package in packages}
    content = {"algorithm": ALGORITHM, "config": asdict(config), "versions": versions}
    try:
        with usage_error(f"--runs-dir: cannot make {run}"):
            part.mkdir(parents=True)
            write(part / "config.json", json.dumps(content, indent=2).encode())
            save_checkpoint(part, config, agent, optimizer, 0, 0)
            part.rename(run)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return run


def load_config(run: Path) -> Config:
    """The configuration that a run was started with."""
    path = run / "config.json"
    with usage_error(f"{path} is not a run's config.json"):
        content = json.loads(read(path))
        algorithm, values = content["algorithm"], content["config"]
        if algorithm != ALGORITHM:
            raise UsageError(f"{path} is of {algorithm}: use {algorithm}.py")
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return Config(**values | lists)


def save_checkpoint(run: Path, config, agent, optimizer, iteration, step) -> None:
    """All that the rest of the run depends on, followed by its SHA-256."""
    state = {"algorithm": ALGORITHM, "env_id": config.env_id}
    state |= {"iteration": iteration, "step": step}
    state |= {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    buffer = io.BytesIO()
    torch.save(state | {"generators": [torch.get_rng_state(), *cuda]}, buffer)
    content = buffer.getvalue()
    write(run / "checkpoint.pt", content + hashlib.sha256(content).digest())


def load_checkpoint(run: Path, config, agent, optimizer) -> tuple[int, int]:
    """Restore what was saved; returns iteration and step."""
    path = run / "checkpoint.pt"
    content, checksum = (file := read(path))[:-32], file[-32:]
    if hashlib.sha256(content).digest() != checksum:
        raise UsageError(f"{path} is damaged: its content does not match its checksum")
    with usage_error(f"{path} does not fit its config.json"):
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if (state["algorithm"], state["env_id"]) != (ALGORITHM, config.env_id):
            owner = f"{state['algorithm']} on {state['env_id']}"
            raise UsageError(f"{path} is of {owner}, not of this run")
        agent.load_state_dict(state["agent"])
        optimizer.load_state_dict(state["optimizer"])
        cpu, *cuda = state["generators"]
        torch.set_rng_state(cpu)
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state(*cuda)
        return state["iteration"], state["step"]


class Log:
    """progress.csv; a progress bar, or lines where that is a file; Weights & Biases."""

    def __init__(self, config, run: Path, iteration: int, step: int):
        self.path, self.lines, elapsed = run / "progress.csv", [], 0.0
        if iteration:  # the rows after the checkpoint are going to be written again
            self.lines = read(self.path).decode(errors="replace").splitlines()
            self.lines = self.lines[: iteration + 1]
            with usage_error(f"{self.path} lacks row {iteration}"):
                elapsed = float(self.lines[iteration].split(",")[len(COLUMNS) - 1])
        self.start, self.tracker = time.perf_counter() - elapsed, None
        shown = {"total": config.total_timesteps, "initial": step, "unit": " steps"}
        self.bar = tqdm(**shown, unit_scale=True, dynamic_ncols=True, disable=None)
        if config.track:
            import wandb  # only here: it takes seconds

            names = {"project": config.wandb_project, "id": run.name, "resume": "allow"}
            with usage_error("--track"):
                self.tracker = wandb.init(**names, dir=run, config=asdict(config))
            self.tracker.define_metric("*", step_metric="step")

    def add(self, row: dict[str, float]) -> None:
        """One iteration; the columns that it lacks stay empty."""
        row = dict.fromkeys(COLUMNS, "") | row
        row["time/elapsed_seconds"] = time.perf_counter() - self.start
        self.lines = self.lines or [",".join(row)]
        self.lines.append(",".join(map(str, row.values())))
        write(self.path, "\n".join([*self.lines, ""]).encode())
        if self.tracker:
            known = {k: v for k, v in row.items() if v != ""}
            self.tracker.log(known, step=row["iteration"])
        self.bar.update(min(row["step"], self.bar.total) - self.bar.n)
        shown = {"return": row["train/episode_return"], "KL": row["train/kl"]}
        self.bar.set_postfix({k: v for k, v in shown.items() if v != ""})
        if row["eval/return_mean"] != "":
            say = "step {step:,}: return {eval/return_mean:.1f} ± {eval/return_std:.1f}"
            say += ", KL {train/kl:.1e}, {time/steps_per_second:,.0f} steps/s"
            self.bar.write(say.format(**row))

    def close(self) -> None:
        self.bar.close()
        if self.tracker:
            self.tracker.finish()


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
    return {name: value.item() for name, value in metrics.items()}


def iterate(agent: Agent, optimizer, environments: Environments, config) -> dict:
    """One rollout and the update on it; returns a row for the log."""
    start = time.perf_counter()
    batch = rollout(agent, environments, config)
    steps = len(batch.actions)
    if agent.statistics.enabled and not agent.statistics.count:
        # To learn on raw observations would spoil Adam's moments for a long time
        agent.statistics.absorb(batch.observations)
        batch = rollout(agent, environments, config)
        steps += len(batch.actions)
    middle = time.perf_counter()
    metrics = update(agent, optimizer, batch, config)
    metrics = environments.pop_episodes() | measure(agent.policy, batch) | metrics
    require_finite(**metrics)
    agent.statistics.absorb(batch.observations)
    end = time.perf_counter()
    row = {f"train/{name}": value for name, value in metrics.items()}
    row["time/steps_per_second"] = steps / (end - start)
    row["time/rollout_steps_per_second"] = steps / (middle - start)
    row["time/update_steps_per_second"] = len(batch.actions) / (end - middle)
    return row | {"step": steps}


def make_agent(config, observation_size: int, action_space) -> tuple[Agent, Adam]:
    """The learner before its first step, and its optimiser."""
    torch.manual_seed(config.seed)
    agent = Agent(observation_size, action_space, config).to(config.device)
    return agent, Adam(agent.parameters(), lr=config.learning_rate, fused=True)


def train(config: Config) -> Path:
    """Learn for `total_timesteps`; returns the folder of the run."""
    check_machine(config)
    environments = Environments(config)
    space = environments.observation_size, environments.action_space
    agent, optimizer = make_agent(config, *space)
    if config.resume:
        run = Path(config.resume)
        iteration, step = load_checkpoint(run, config, agent, optimizer)
    else:
        run, iteration, step = create_run(config, agent, optimizer), 0, 0
    log = Log(config, run, iteration, step)
    print(f"{ALGORITHM}: {config.env_id}, observations {space[0]}, actions {space[1]}")
    parameters = sum(parameter.numel() for parameter in agent.parameters())
    print(f"{parameters:,} parameters, run folder {run}")
    command = f"python {ALGORITHM}.py"
    try:
        # Algs. 4–6, 8: while t ≤ T do
        while step < config.total_timesteps:
            if iteration % config.checkpoint_every == 0:
                environments.reset(config.seed, iteration)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - step / config.total_timesteps)
            row = iterate(agent, optimizer, environments, config)
            iteration, step = iteration + 1, step + row["step"]
            row |= {"iteration": iteration, "step": step}
            last = step >= config.total_timesteps
            if last or iteration % config.eval_every == 0:
                row |= evaluate(agent.policy, config, run, iteration)
            log.add(row)
            if last or iteration % config.checkpoint_every == 0:
                save_checkpoint(run, config, agent, optimizer, iteration, step)
    except (KeyboardInterrupt, RunError):
        print(f"stopped in iteration {iteration + 1}; go on: {command} --resume {run}")
        raise
    finally:
        log.close()
        environments.vector.close(terminate=True)
    print(f"done; play it again: {command} --evaluate {run} --capture-video")
    return run


def play(config: Config) -> None:
    """Evaluate the policy of a run as its last checkpoint has it."""
    check_machine(config)
    run, env = Path(config.evaluate), make_environment(config)
    size, space = env.observation_space.shape[0], env.action_space
    agent, optimizer = make_agent(config, size, space)
    iteration, step = load_checkpoint(run, config, agent, optimizer)
    text = "return {eval/return_mean} ± {eval/return_std}, length {eval/length_mean}"
    score = text.format(**evaluate(agent.policy, config, run, iteration))
    print(f"{config.env_id}, step {step:,}: {score}, {config.eval_episodes} episodes")


# ── command line ────────────────────────────────────────────────────────────────────


def check_machine(config) -> None:
    """Refuse what this machine lacks."""
    for flag, package in {"track": "wandb", "capture_video": "moviepy"}.items():
        if getattr(config, flag) and not importlib.util.find_spec(package):
            name = flag.replace("_", "-")
            raise UsageError(f"--{name} needs {package}: pip install {package}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu")
    screens = os.environ.get("DISPLAY"), os.environ.get("WAYLAND_DISPLAY")
    display = sys.platform != "linux" or any(screens)
    if config.render and not display:
        raise UsageError("--render: there is no display here; use --capture-video")
    if config.capture_video:
        os.environ.setdefault("MUJOCO_GL", "glfw" if display else "egl")
        with usage_error(f"--capture-video: {config.env_id} cannot be drawn here"):
            env = make_environment(config, "rgb_array")
            env.reset()
            env.render()
            env.close()
    online = os.environ.get("WANDB_MODE", "online") == "online" and not config.evaluate
    if config.track and online:
        with usage_error("--track"):
            importlib.import_module("wandb").login(verify=False)


FREE_TO_CHANGE = {"resume", "evaluate", "device", "vectorization", "track"}
FREE_TO_CHANGE |= {"wandb_project", "capture_video", "render", "runs_dir"}


def parse(arguments: list[str] | None = None, default: Config | None = None) -> Config:
    """The flags, over the configuration of the run that one of them names."""
    box, about = io.StringIO(), __doc__.splitlines()[0]
    try:
        with contextlib.redirect_stderr(box):
            flags = {"args": arguments, "default": default, "description": about}
            config = tyro.cli(Config, **flags)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        text = box.getvalue().split("│ ──")[0].splitlines()[1:]
        raise UsageError(" ".join(line.strip("│ ") for line in text)) from None
    if default or not (run := config.resume or config.evaluate):
        return config
    saved = load_config(Path(run))
    config = parse(arguments, replace(saved, resume=None, evaluate=None))
    free = FREE_TO_CHANGE | ({"seed", "eval_episodes"} if config.evaluate else set())
    for name, value in asdict(saved).items():
        if name not in free and getattr(config, name) != value:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag}: the run was started with {value} and keeps it")
    return config


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as at Ctrl-C
    try:
        config = parse()
        (play if config.evaluate else train)(config)
    except (UsageError, RunError) as error:
        print(f"{ALGORITHM}.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
