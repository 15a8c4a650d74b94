"""One measurement, in a process of its own and of either environment, for speed.py.

    python measure.py ours|peer|limit|profile REQUEST

REQUEST is JSON: the algorithm, its flags, the configuration that they make, how many
iterations to measure, and when the process was started; for the limit, what it is the
limit of: pairs of algorithm and configuration. The answer is a line of JSON, a list.
"""

import importlib
import json
import math
import re
import resource
import sys
import time
from collections import defaultdict
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import mujoco
import torch

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = 0.5  # that a measurement of a limit takes
PEERS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "trpo": ("sb3_contrib", "TRPO"),
}


def record(owner, name: str) -> list[tuple[float, float]]:
    """From now on, when each call of this method began and ended."""
    method, calls = getattr(owner, name), []

    def recorded(*arguments, **options):
        start = time.time()  # comparable with the parent's
        outcome = method(*arguments, **options)
        calls.append((start, time.time()))
        return outcome

    setattr(owner, name, recorded)
    return calls


def peak_memory() -> float:
    """MiB; on Linux not ru_maxrss, which a process inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rates(steps: int, rollout: float, update: float) -> dict[str, float]:
    """Steps per second from the seconds that they took."""
    return {
        "steps_per_second": steps / (rollout + update),
        "rollout_steps_per_second": steps / rollout,
        "update_steps_per_second": steps / update,
    }


# ── ours ────────────────────────────────────────────────────────────────────────────


def start(request: dict) -> tuple:
    """A script as its command line starts it, up to the first rollout."""
    script = importlib.import_module(request["algorithm"])
    config = script.parse(request["flags"])
    agent, optimizer, _, _ = script.make_agent(config)
    make = [partial(script.make_environment, config)] * config.num_envs
    environments = script.Environments(make, config, config.vectorization)
    torch.manual_seed(environments.reset(config.seed, 0))
    return script, agent, optimizer, environments, config


def warm_up(script, agent, optimizer, environments, config) -> None:
    """An iteration of one minibatch, of the usual size."""
    length = max(1, config.unroll_length // config.num_minibatches)
    short = replace(config, unroll_length=length, num_minibatches=1)
    script.iterate(agent, optimizer, environments, short)


def ours(request: dict) -> dict[str, float]:
    script, *learner = start(request)
    calls = record(learner[2], "step")
    warm_up(script, *learner)
    rows = [script.iterate(*learner) for _ in range(request["iterations"])]
    rollout, update = (
        sum(row["step"] / row[f"time/{part}_steps_per_second"] for row in rows)
        for part in ("rollout", "update")
    )
    result = rates(sum(row["step"] for row in rows), rollout, update)
    result["startup_seconds"] = calls[0][1] - request["started"]
    return result | {"peak_memory_mib": peak_memory()}


# ── peers ───────────────────────────────────────────────────────────────────────────


def peer_options(algorithm: str, config: dict) -> dict:
    """Our configuration in the peer's words."""
    layers = {"pi": config["policy_layers"], "vf": config["value_layers"]}
    steps = config["num_envs"] * config["unroll_length"]
    minibatch = steps // config["num_minibatches"]
    options = {name: config[name] for name in ("learning_rate", "gamma", "gae_lambda")}
    options |= {"seed": config["seed"], "device": config["device"]}
    options["policy_kwargs"] = {"net_arch": layers, "activation_fn": torch.nn.SiLU}
    options["normalize_advantage"] = config["normalize_advantages"]
    if algorithm == "trpo":
        return options | {
            "batch_size": minibatch,
            "n_critic_updates": config["num_epochs"],  # passes over the batch
            "target_kl": config["delta"],
            "cg_max_steps": config["cg_max_iterations"],
            "cg_damping": config["cg_damping"],
            "line_search_max_iter": config["line_search_max_iterations"],
            "line_search_shrinking_factor": config["line_search_shrinkage"],
        }
    options["ent_coef"] = config["entropy_coefficient"]
    options["max_grad_norm"] = config["max_grad_norm"]
    if algorithm == "a2c":  # one gradient step, whatever we say
        return options | {"use_rms_prop": False}
    epochs = {"batch_size": minibatch, "n_epochs": config["num_epochs"]}
    return options | epochs | {"clip_range": config["epsilon"]}


def peer(request: dict) -> dict[str, float]:
    """The same work by Stable-Baselines3 or sb3-contrib."""
    module, name = PEERS[request["algorithm"]]
    algorithm = getattr(importlib.import_module(module), name)
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    gym.logger.min_level = 50  # the v4 ids are "out of date"
    config = request["config"]
    options = peer_options(request["algorithm"], config)
    env = make_vec_env(config["env_id"], config["num_envs"], seed=config["seed"])
    calls = record(env, "step_wait")
    normalize = {"norm_obs": config["normalize_observations"]}
    normalize |= {"norm_reward": config["normalize_rewards"]}
    env = VecNormalize(env, gamma=config["gamma"], **normalize)  # clips to ±10
    length = config["unroll_length"]
    short = max(1, length // config["num_minibatches"])  # to warm up, as ours
    for n_steps, iterations in ((short, 1), (length, request["iterations"])):
        model = algorithm("MlpPolicy", env, n_steps=n_steps, **options)
        parts = [record(model, name) for name in ("collect_rollouts", "train")]
        steps = iterations * n_steps * config["num_envs"]
        model.learn(steps, log_interval=None)
    seconds = [sum(end - start for start, end in part) for part in parts]
    result = rates(steps, *seconds)
    result["startup_seconds"] = calls[0][1] - request["started"]
    return result | {"peak_memory_mib": peak_memory()}


# ── the machine's limit ─────────────────────────────────────────────────────────────


class Layer(NamedTuple):
    """What the three matrix products of a linear layer read and write."""

    x: torch.Tensor  # [B, I]
    weight: torch.Tensor  # [O, I]
    y: torch.Tensor  # [B, O]
    dx: torch.Tensor
    dweight: torch.Tensor
    dy: torch.Tensor


def forward(layers: list[Layer]) -> None:
    for layer in layers:
        torch.mm(layer.x, layer.weight.T, out=layer.y)


def backward(layers: list[Layer]) -> None:
    for i, layer in reversed([*enumerate(layers)]):
        torch.mm(layer.dy.T, layer.x, out=layer.dweight)
        if i:  # nobody asks for the gradient of the observations
            torch.mm(layer.dy, layer.weight, out=layer.dx)


def seconds(work, *arguments) -> float:
    """That one call takes, on average."""
    work(*arguments)
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < LEAST_SECONDS:
        work(*arguments)
        count += 1
    return passed / count


@cache
def pass_seconds(work, sizes: tuple[int, ...], rows: int, precision: str) -> float:
    """Of one pass through a network; its last layer is in float32 always."""
    layers = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        dtype = getattr(torch, precision if i < len(sizes) - 2 else "float32")
        shapes = [(rows, fan_in), (fan_out, fan_in), (rows, fan_out)]
        layers.append(Layer(*(torch.rand(shape).to(dtype) for shape in shapes * 2)))
    return seconds(work, layers)


@cache
def stepping_seconds(env_id: str, num_envs: int) -> tuple[float, int, int]:
    """Of one step, actions drawn beforehand; sizes of observation and policy output."""
    envs = [gym.make(env_id) for _ in range(num_envs)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    actions = [[env.action_space.sample() for env in envs] for _ in range(128)]

    def play():
        for row in actions:
            for env, action in zip(envs, row, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()

    space, size = envs[0].action_space, gym.spaces.flatdim(envs[0].observation_space)
    outputs = int(space.n) if hasattr(space, "n") else 2 * math.prod(space.shape)
    return seconds(play) / len(actions) / num_envs, size, outputs


def policy_passes(algorithm: str, config: dict) -> tuple[int, int]:
    """How often the batch goes forward and backward through the policy."""
    epochs = config["num_epochs"]
    if algorithm == "vmpo":
        return 2 * epochs, epochs  # π_old too
    if algorithm == "trpo":
        # A Fisher-vector product differentiates a gradient: twice its products. Then
        # the gradients of the gain and of KL, π_old, and a line search of one trial.
        products = 2 * (config["cg_max_iterations"] + 1)
        return products + 5, products + 2
    return epochs, epochs


def limit(request: dict) -> list[dict[str, float]]:
    """Bare stepping as the rollout, the bare products of the networks as the update."""
    gym.logger.min_level, rows = 50, []
    for algorithm, config in request["of"]:
        found = stepping_seconds(config["env_id"], config["num_envs"])
        stepping, observation_size, outputs = found
        batch = config["num_envs"] * config["unroll_length"]
        count = config["num_minibatches"]
        network = (observation_size, *config["policy_layers"], outputs)
        shape = network, batch // count, "float32"
        there, back = policy_passes(algorithm, config)
        products = count * there * pass_seconds(forward, *shape)
        products += count * back * pass_seconds(backward, *shape)
        if "value_layers" in config:
            network = (observation_size, *config["value_layers"], 1)
            shape = network, batch // count, config["precision"]
            there, back = pass_seconds(forward, *shape), pass_seconds(backward, *shape)
            # forward once more, for the advantages
            products += config["num_epochs"] * count * (2 * there + back)
        rows.append(rates(batch, stepping * batch, products))
    return rows


# ── profile ─────────────────────────────────────────────────────────────────────────

SIMULATOR = "MuJoCo's mj_step"
GYMNASIUM = "the rest of gymnasium"
ACTING = "policy in the rollout"
ROLLOUT = "the rest of the rollout"
ADVANTAGES = "critic on the batch, for the advantages"
GAE = "GAE recursion"
CRITIC = "critic on minibatches, forward and backward"
POLICY = "policy on minibatches, forward and backward"
OPTIMIZER = "gradient clipping and optimiser"
UPDATE = "the rest of the update"
REST = "measuring the policy, statistics"
LABELS = (SIMULATOR, GYMNASIUM, ACTING, ROLLOUT, ADVANTAGES, GAE)
LABELS += (CRITIC, POLICY, OPTIMIZER, UPDATE, REST)


class Clock:
    """Time by label; what a label calls under another label is not its own."""

    def __init__(self):
        self.seconds, self.stack = defaultdict(float), [REST]
        self.last = time.perf_counter()

    def mark(self, label: str | None = None) -> None:
        """Book the time since the last mark."""
        now = time.perf_counter()
        self.seconds[label or self.stack[-1]] += now - self.last
        self.last = now

    def wrap(self, owner, name: str, labels: str | dict[str, str]) -> None:
        """Label a function if it is there; a dictionary decides by who calls."""
        function = getattr(owner, name, None)
        if not function:
            return

        def timed(*arguments, **options):
            self.mark()
            outer = self.stack[-1]
            inner = labels.get(outer, outer) if isinstance(labels, dict) else labels
            self.stack.append(inner)
            try:
                return function(*arguments, **options)
            finally:
                self.mark()
                self.stack.pop()

        setattr(owner, name, timed)


def profile(request: dict) -> dict[str, float]:
    """Where the time of an iteration goes: seconds of each label."""
    script, *learner = start(request)
    agent, optimizer, environments, _ = learner
    value = getattr(agent, "value", None)
    warm_up(script, *learner)
    clock = Clock()
    acts = {ROLLOUT: ACTING, UPDATE: POLICY}
    for owner, name, labels in (
        (script, "rollout", ROLLOUT),
        (environments.vector, "step", GYMNASIUM),
        (mujoco, "mj_step", SIMULATOR),
        (agent.policy, "forward", acts),
        (agent.policy, "to_environment", acts),
        (torch.distributions.Independent, "sample", acts),
        (torch.distributions.Independent, "log_prob", acts),
        (script, "update", UPDATE),
        (script, "estimate_advantages", ADVANTAGES),
        (script, "compute_gae", GAE),
        (value, "forward", {UPDATE: CRITIC}),  # ADVANTAGES stay what they are
        (torch.Tensor, "backward", UPDATE),
        (script, "clip_grad_norm_", OPTIMIZER),
        (optimizer, "step", OPTIMIZER),
        (optimizer, "zero_grad", OPTIMIZER),
    ):
        clock.wrap(owner, name, labels)
    # The backward pass of a network ends with the gradient of its first layer.
    for network, label in ((agent.policy, POLICY), (value, CRITIC)):
        for parameter in [*network.parameters()][:2] if network else ():
            parameter.register_post_accumulate_grad_hook(
                lambda _, label=label: clock.mark(label)
            )
    clock.mark()
    clock.seconds.clear()
    for _ in range(request["iterations"]):
        script.iterate(*learner)
        clock.mark()
    count = request["iterations"]
    return {label: clock.seconds[label] / count for label in LABELS}


def main() -> None:
    sys.path.insert(0, str(ROOT))  # for the five scripts
    kind, request = sys.argv[1:]
    kinds = {"ours": ours, "peer": peer, "limit": limit, "profile": profile}
    answer = kinds[kind](json.loads(request))
    print(json.dumps(answer if kind == "limit" else [answer]))


if __name__ == "__main__":
    main()
