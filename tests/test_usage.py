"""A person's mistakes: a message that says what is wrong, and nothing is touched.

And the ways in which flags, runs and environments may be named.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from common import ROOT, SCRIPTS, environment, only_run, rows, run, small

PPO = SCRIPTS["ppo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run to resume and evaluate."""
    runs = tmp_path_factory.mktemp("runs")
    flags = ["--env-id", "Pendulum-v1", *small("ppo"), "--total-timesteps", 60]
    assert run("ppo", *flags, runs=runs).returncode == 0
    return only_run(runs)


FLAGS = [  # and what the message must name
    ("--total-timesteps 1.5", "total-timesteps"),
    ("--total-timesteps 0", "total_timesteps"),
    ("--learning-rate fast", "learning-rate"),
    ("--num-minibatches 3", "num_minibatches must divide"),
    ("--num-envs 2 --unroll-length 4 --num-minibatches 8", "num_minibatches"),
    ("--device tpu", "--device"),
    ("--precision float16", "--precision"),
    ("--env-id", "--env-id"),
    ("--no-such-flag", "--no-such-flag"),
    ("--total-timestep 5", "Perhaps you meant:"),
    ("stray", "stray"),
    ("--resume", "--resume"),
    # An unset variable of the shell must not start another run
    ("--unroll-length 8 --total-timesteps 1 --resume=", "resume"),
    ("--unroll-length 8 --total-timesteps 1 --evaluate=", "evaluate"),
]
OTHER = [
    ("--device cuda", "--device cuda: PyTorch finds no GPU"),
    ("--render", "--render: there is no display"),
    ("--env-id HalfCheeta-v4", "HalfCheetah"),
    ("--env-id HalfCheetah-v99", "--env-id HalfCheetah-v99"),
    ("--env-id nowhere:Thing-v0", "nowhere"),
    ("--env-id tasks:Nowhere-v0", "tasks:Nowhere-v0"),
    ("--env-id tasks:Images-v0", "must be vectors"),
    ("--env-id faulty:ImagesInside-v0", "must be vectors"),
    ("--env-id tasks:ManyActions-v0", "MultiDiscrete"),
    ("--env-id tasks:Unbounded-v0", "Box(-inf, inf"),
    ("--env-id tasks:Integers-v0", "int64"),
    ("--env-id faulty:HugeActions-v0", "Box(-3.4028235e+38"),
    ("--resume /nowhere", "/nowhere"),
    ("--evaluate /nowhere", "/nowhere"),
    ("--resume {folder}/..", "../checkpoint.pt cannot be read: FileNotFoundError"),
    ("--evaluate {folder}/progress.csv", "progress.csv cannot be read"),
    ("--resume {folder}/best.pt", "best.pt"),  # which has the policy only
    ("--runs-dir /proc/none", "--runs-dir"),
    ("--runs-dir /proc/none --vectorization async --num-envs 2", "--runs-dir"),
]
TABLE = [(*case, 2) for case in FLAGS] + [(*case, 1) for case in OTHER]


def everything(folder) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("arguments", "named", "status"), TABLE)
def test_a_mistake_is_named(arguments, named, status, folder, tmp_path, monkeypatch):
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # nor a GPU
    before = everything(folder)
    flags = arguments.format(folder=folder).split()
    result = run("ppo", *flags, runs=tmp_path)
    assert result.returncode == status, result.stderr
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert status == 2 or len(result.stderr.splitlines()) == 1
    assert everything(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {".stdout", ".stderr"}


def test_what_an_environment_raises_when_it_is_made_is_whole(tmp_path):
    result = run("ppo", "--env-id", "tasks:Broken-v0", runs=tmp_path)
    assert result.returncode == 1
    assert 'raise RuntimeError("the simulator\\nis not' in result.stderr
    assert result.stderr.endswith("RuntimeError: the simulator\nis not installed\n")
    assert {path.name for path in tmp_path.iterdir()} == {".stdout", ".stderr"}


def test_only_a_film_needs_egl(monkeypatch):
    """With MUJOCO_GL=egl, importing MuJoCo fails on a server that has no libEGL."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for script in SCRIPTS.values():
        script.parse([])
        assert "MUJOCO_GL" not in os.environ
        script.parse(["--capture-video"])
        assert os.environ.pop("MUJOCO_GL") == "egl"


MAY_BE_ZERO = {"seed", "eval_episodes"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_impossible_numbers_are_refused_in_every_field(name):
    script, tried = SCRIPTS[name], 0
    for field in fields(script.Config):
        kind = type(field.default)
        impossible = {
            int: [-1, 10**16] + [0] * (field.name not in MAY_BE_ZERO),
            float: [-1e-9, float("nan"), float("inf")],
            tuple: [(0,), (32, -1)],
        }.get(kind, [])
        if kind is float and field.name in script.FRACTIONS:
            impossible.append(1.01)
        for value in impossible:
            with pytest.raises(ValueError, match=field.name):
                script.Config(**{field.name: value})
            tried += 1
    assert tried >= 40
    script.Config(seed=0, eval_episodes=0, learning_rate_decay=0, max_grad_norm=1)


def test_reinforce_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="num_minibatches"):
        SCRIPTS["reinforce"].Config(num_minibatches=11, unroll_length=10)
    with pytest.raises(ValueError, match="num_envs"):
        SCRIPTS["reinforce"].Config(num_envs=2)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 10**6), ("1_000_000", 10**6), ("2.5e3", 2500), ("=8e6", 8 * 10**6)],
)
def test_whole_numbers_as_people_write_them(text, number):
    words = (
        [f"--total-timesteps{text}"] if text[0] == "=" else ["--total-timesteps", text]
    )
    assert PPO.parse(words).total_timesteps == number
    assert PPO.parse([*words, "--learning-rate", "1.5e0"]).learning_rate == 1.5
    assert PPO.parse([*words, "--learning-rate", "3e-4"]).learning_rate == 3e-4


# ── runs ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", "checkpoint.pt"])
def test_flags_beside_resume_replace_the_runs_own(name, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    flags = ["--resume", copy / name, "--total-timesteps", 200, "--gamma", 0.5]
    result = run("ppo", *flags, runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("observations") == 1
    steps = [int(row["step"]) for row in rows(copy)]
    assert steps == [*range(128, 257, 64)]
    assert len(rows(folder)) == 1
    config = json.loads((copy / "config.json").read_text())["config"]
    assert config["gamma"] == 0.5
    assert config["policy_layers"] == [16]
    assert PPO.load(copy)["config"]["total_timesteps"] == 200


def test_the_best_policy_is_kept(tmp_path):
    flags = ["--env-id", "Pendulum-v1", *small("ppo"), "--total-timesteps", 640]
    flags += ["--eval-every", 64, "--eval-episodes", 3]
    assert run("ppo", *flags, runs=tmp_path).returncode == 0
    folder = only_run(tmp_path)
    scores = [float(row["eval/return_mean"] or "-inf") for row in rows(folder)]
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best.keys() == {"algorithm", "config", "at", "policy"}
    assert best["at"]["best"] == max(scores)
    assert scores[best["at"]["iteration"] - 1] == max(scores)
    assert len({*scores}) > 5
    result = run("ppo", "--evaluate", folder / "best.pt", runs=tmp_path)
    assert str(max(scores)) in result.stdout


def test_the_best_policy_of_the_defaults_is_small(tmp_path):
    config = PPO.Config()
    space = PPO.spaces.Box(-1.0, 1.0, (6,))
    agent, at = PPO.Agent(17, space, config), SimpleNamespace()
    PPO.save(tmp_path / "best.pt", config, at, agent)
    assert (tmp_path / "best.pt").stat().st_size < 100_000


def test_extending_a_run_keeps_its_best(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "best.pt").unlink()
    state = torch.load(copy / "checkpoint.pt", weights_only=True)
    state["at"]["best"] = 1e9  # never reached again
    torch.save(state, copy / "checkpoint.pt")
    result = run("ppo", "--resume", copy, "--total-timesteps", 200, runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not (copy / "best.pt").exists()


# ── where things are found, and shown ───────────────────────────────────────────────

MINE = """
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv
gym.register("Mine-v0", PendulumEnv, max_episode_steps=50)
"""


def script(algorithm: str, *flags, cwd: Path, **variables):
    """As a user runs it, without PYTHONPATH."""
    words = [sys.executable, ROOT / f"{algorithm}.py", *map(str, flags)]
    surroundings = environment(**variables)
    surroundings.pop("PYTHONPATH")
    return subprocess.Popen(
        words, cwd=cwd, env=surroundings, stderr=subprocess.PIPE, stdout=-1, text=False
    )


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_module_in_the_current_folder_is_found(vectorization, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    flags = ["--env-id", "mine:Mine-v0", *small("ppo"), "--total-timesteps", 100]
    flags += ["--vectorization", vectorization]
    process = script("ppo", *flags, cwd=tmp_path)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    only_run(tmp_path / "runs")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("flags", [["--help"], small("ppo")])
def test_any_encoding_will_do(flags, encoding, tmp_path):
    flags = ["--env-id", "Pendulum-v1", "--total-timesteps", 200, *flags]
    process = script("ppo", *flags, cwd=tmp_path, PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert b"step 256: return" in out or b"discount ?" in out


def test_a_log_is_there_while_the_run_goes_on(tmp_path):
    """A few lines, much less than what Python would keep for later."""
    flags = ["--env-id", "Pendulum-v1", *small("ppo"), "--total-timesteps", 10**7]
    words = [sys.executable, ROOT / "ppo.py", *map(str, flags)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=log)
    try:
        for _ in range(1000):
            if [*tmp_path.glob("runs/*/best.pt")]:  # after the first evaluation
                break
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        assert process.poll() is None
        lines = (tmp_path / "log").read_text().splitlines()
        assert lines[0].startswith("ppo: Pendulum-v1, 3 observations")
        assert lines[1].startswith("step 192: return")
    finally:
        process.kill()
        process.wait()


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    config = PPO.parse(list(map(str, ["--env-id", "Pendulum-v1", *small("ppo")])))
    config = replace(config, total_timesteps=60, runs_dir=str(tmp_path))
    monkeypatch.setattr(PPO.time, "strftime", lambda _: "now")
    assert PPO.train(config) != PPO.train(config)  # of one process too
    monkeypatch.setattr(PPO.os, "urandom", bytes)
    PPO.train(config)
    with pytest.raises(SystemExit, match="File exists"):  # and none is overwritten
        PPO.train(config)
