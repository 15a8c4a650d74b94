"""Every algorithm learns: the last evaluation's mean return, over 20 episodes.

The tests run seed 0, which learns otherwise on another processor, as another seed does.
So beside each case stands the lowest score of the seeds 0 to 5 or more, as measured.
"""

import pytest
import torch
from common import SCRIPTS, rows

torch.set_num_threads(1)

NETWORKS = {"policy_layers": (32, 32), "value_layers": (64, 64)}
RARELY = {"eval_every": 10**6, "checkpoint_every": 10**6, "eval_episodes": 20}
LARGE = {"num_envs": 4, "unroll_length": 256, "num_minibatches": 4}
SMALL = {"num_envs": 8, "unroll_length": 64, "learning_rate": 1e-3}
EPISODES = {"baseline": True, "learning_rate": 1e-2}
FALLING = {"learning_rate_decay": 1.0}
SHORT = {"num_envs": 4, "unroll_length": 128, "num_minibatches": 2}
BRIEF = SHORT | FALLING | {"learning_rate": 1e-3}

# The bound, steps, flags. 500 is the most; a random policy earns about 22. REINFORCE's
# twelve seeds end anywhere from 145 to 500.
CARTPOLE = {
    "reinforce": (75, 40_000, EPISODES | FALLING | {"unroll_length": 500}),  # 145
    "a2c": (250, 60_000, SMALL | {"entropy_coefficient": 0.01}),  # 500
    "trpo": (250, 40_000, LARGE | FALLING | {"learning_rate": 1e-3}),  # 459
    "ppo": (250, 20_000, LARGE | {"learning_rate": 1e-3}),  # 500
    "vmpo": (250, 30_000, LARGE | {"learning_rate": 1e-3}),  # 500
}
# A random policy loses 70, one that does nothing 44, one that always pushes right 186.
POINT_MASS = {
    "a2c": (60_000, SMALL | FALLING | {"gamma": 0.9, "learning_rate": 5e-4}),  # −1.7
    "trpo": (40_000, SHORT | FALLING | {"gamma": 0.9, "learning_rate": 3e-3}),  # −2.2
    "ppo": (30_000, LARGE | FALLING | {"gamma": 0.9, "learning_rate": 1e-3}),  # −1.9
    "vmpo": (40_000, LARGE | FALLING | {"gamma": 0.9, "learning_rate": 1e-3}),  # −1.9
}
# One symbol of four: 0.25 by chance, 1 at best, which all have.
IDENTITY = {
    "reinforce": (20_000, EPISODES | FALLING | {"unroll_length": 200}),
    "a2c": (20_000, SMALL),
    "trpo": (8_000, BRIEF),
    "ppo": (8_000, BRIEF),
    "vmpo": (8_000, BRIEF),
}


def score(algorithm: str, env_id: str, case, runs, seed: int = 0) -> float:
    script, (steps, flags) = SCRIPTS[algorithm], case
    known = script.Config.__dataclass_fields__.keys()
    flags = {k: v for k, v in (NETWORKS | RARELY | flags).items() if k in known}
    config = script.Config(
        env_id, seed, total_timesteps=steps, runs_dir=str(runs), **flags
    )
    return float(rows(script.train(config))[-1]["eval/return_mean"])


@pytest.mark.parametrize("algorithm", CARTPOLE)
def test_cartpole(algorithm, tmp_path):
    bound, *case = CARTPOLE[algorithm]
    assert score(algorithm, "CartPole-v1", case, tmp_path) > bound


@pytest.mark.parametrize("algorithm", POINT_MASS)
def test_point_mass(algorithm, tmp_path):
    assert score(algorithm, "tasks:PointMass-v0", POINT_MASS[algorithm], tmp_path) > -5


@pytest.mark.parametrize("algorithm", IDENTITY)
def test_identity(algorithm, tmp_path):
    case = IDENTITY[algorithm]
    assert score(algorithm, "tasks:DiscreteIdentity-v0", case, tmp_path) > 0.9


@pytest.mark.parametrize("algorithm", ["trpo", "ppo", "vmpo"])
def test_continuous_identity(algorithm, tmp_path):
    """Squared error: always acting 0 loses 0.21; no seed lost more than 0.009."""
    case = IDENTITY[algorithm]
    assert score(algorithm, "tasks:Identity-v0", case, tmp_path) > -0.03
