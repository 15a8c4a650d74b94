"""`torchrun --nproc-per-node 2`: the same algorithm, over two processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
import torch
from common import (
    CRITICS,
    ROOT,
    environment,
    make_environments,
    only_run,
    rows,
    rows_without_times,
    small,
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
ATOL = 1e-6  # float32's rounding: 3e-7 was the most


def start(algorithm: str, *flags, runs: Path, prefix=TWO) -> subprocess.Popen:
    runs.mkdir(exist_ok=True)
    script = [*prefix, ROOT / f"{algorithm}.py", "--runs-dir", runs, *flags]
    return subprocess.Popen(
        [*map(str, script)],
        cwd=runs,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str, str]:
    """Exit status and both outputs."""
    try:
        output, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output, error


def workers_of(process: subprocess.Popen) -> list[int]:
    """The process ids of the ranks, in order."""
    pids = {}
    for line in (
        Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ):
        variables = Path(f"/proc/{line}/environ").read_text().split("\0")
        ranks = [x for x in variables if x.startswith("RANK=")]
        pids |= {int(x.removeprefix("RANK=")): int(line) for x in ranks}
    return [pids[rank] for rank in sorted(pids)]


def wait_for_rows(process: subprocess.Popen, runs: Path, count: int) -> Path:
    """The run's folder, when it has as many rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in runs.glob("[!.]*/progress.csv"):
            if path.read_text().count("\n") > count:
                return path.parent
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(process.communicate())


# ── one update ──────────────────────────────────────────────────────────────────────


ENVIRONMENTS = "Pendulum-v1", "CartPole-v1"


def make_task(script, env_id: str) -> dict:
    """A batch of a policy that has seen one before."""
    flags = {"num_envs": 4, "unroll_length": 210, "num_minibatches": 3, "num_epochs": 2}
    flags |= {"env_id": env_id, "policy_layers": (16,), "value_layers": (16,)}
    # the entropy of a squashed Gaussian is estimated from one sample a process
    flags["squash_actions"] = False
    if script.ALGORITHM == "trpo":  # each iteration multiplies what rounding has made
        flags["cg_max_iterations"] = 3
    if script.ALGORITHM == "vmpo":
        flags["importance_weights"] = True
    config = script.Config(**flags)
    environments = make_environments(script, config)
    agent, *_ = script.make_agent(config)
    torch.manual_seed(environments.reset(0, 0))
    agent.statistics.absorb(script.rollout(agent, environments, config).observations)
    batch = script.rollout(agent, environments, config)
    environments.close()
    assert (batch.terminated | batch.truncated).any(0).sum() > 2  # in each half
    task = {"algorithm": script.ALGORITHM, "config": asdict(config)}
    return task | {"agent": agent.state_dict(), "batch": batch._asdict()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    """What one process makes of whole batches and two of their halves."""
    folder = tmp_path_factory.mktemp("halves")
    for script, env_id in product(CRITICS, ENVIRONMENTS):
        path = folder / f"{script.ALGORITHM}-{env_id}.task"
        torch.save(make_task(script, env_id), path)
    program = [str(ROOT / "tests" / "halves.py"), str(folder)]
    for prefix in [sys.executable], TWO:
        subprocess.run([*prefix, *program], check=True, env=environment(), timeout=120)
    return folder


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("script", CRITICS, ids=lambda script: script.ALGORITHM)
def test_two_halves_of_a_batch_make_the_update_of_the_whole(script, env_id, answers):
    name = f"{script.ALGORITHM}-{env_id}"
    ends = "task", "whole", "0", "1"
    before, whole, *halves = (torch.load(answers / f"{name}.{end}") for end in ends)
    for key, x in halves[0]["agent"].items():
        assert torch.equal(x, halves[1]["agent"][key]), key  # they stay in step
    for half in halves:
        for key, x in whole["agent"].items():
            mine = half["agent"][key]
            torch.testing.assert_close(mine, x, rtol=1e-12, atol=ATOL, msg=key)
        assert half["metrics"].keys() == whole["metrics"].keys()
        for key, x in whole["metrics"].items():
            if key != "explained_variance":  # the mean of those of the processes
                assert half["metrics"][key] == pytest.approx(x, rel=1e-3, abs=1e-5), key
    for network in ("policy.network.0.weight", "value.network.0.weight"):
        moved = whole["agent"][network] - before["agent"][network]
        assert moved.abs().max() > 1000 * ATOL


# ── whole runs ──────────────────────────────────────────────────────────────────────

CARTPOLE = ["--env-id", "CartPole-v1", "--total-timesteps", "60_000"]
CARTPOLE += ["--learning-rate", "1e-3", "--unroll-length", "256", "--value-layers=64"]
CARTPOLE += ["--checkpoint-every=6000", "--eval-every=20000"]


# Little to compute: fifty iterations, a checkpoint after every third
SHORT = ["--env-id", "CartPole-v1", "--total-timesteps", "3_200", *small("ppo", 64)]
SHORT += ["--num-epochs=2", "--checkpoint-every=192", "--eval-every=640"]


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    runs = tmp_path_factory.mktemp("cartpole")
    code, output, error = finish(start("ppo", *CARTPOLE, runs=runs))
    assert code == 0, error
    assert output.count("done; play it") == 1
    assert output.count("CartPole-v1, 4 observations") == 1
    return only_run(runs)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A short run that nothing stopped."""
    runs = tmp_path_factory.mktemp("short")
    code, _, error = finish(start("ppo", *SHORT, runs=runs))
    assert code == 0, error
    return only_run(runs)


def test_two_processes_learn_as_one_does(cartpole):
    *_, last = rows(cartpole)
    assert float(last["eval/return_mean"]) >= 475  # CartPole-v1's threshold
    steps = [int(row["step"]) for row in rows(cartpole)]
    assert [*map(int.__sub__, steps[1:], steps)] == [8 * 256] * (len(steps) - 1)
    assert steps[0] == 2 * 8 * 256  # the first rollout fills the statistics


@pytest.mark.parametrize("victims", ["all", "the first", "the second"])
def test_a_killed_run_goes_on_with_the_same_bits(short, victims, tmp_path):
    runs = tmp_path / "runs"
    process = start("ppo", *SHORT, runs=runs)
    folder = wait_for_rows(process, runs, 10)
    pids = workers_of(process)
    if victims == "all":
        pids.append(process.pid)
    for pid in pids[victims == "the second" : 1 if victims == "the first" else None]:
        os.kill(pid, signal.SIGKILL)
    code, output, error = finish(process, timeout=30)
    assert code != 0
    if victims == "the second":
        assert output.count(f"python ppo.py --resume {folder}") == 1
    before = len(rows(folder))
    assert 10 <= before < len(rows(short))
    code, _, error = finish(start("ppo", "--resume", folder, runs=runs))
    assert code == 0, error
    assert rows_without_times(folder) == rows_without_times(short)


def test_one_process_goes_on_where_two_stopped(cartpole, tmp_path):
    """Not to the same bits, but with counts that are not multiplied."""
    shutil.copytree(cartpole, tmp_path / "run")
    more = ["--resume", tmp_path / "run", "--total-timesteps", "80_000"]
    prefix = [sys.executable]
    code, _, error = finish(start("ppo", *more, runs=tmp_path, prefix=prefix))
    assert code == 0, error
    state = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert state["agent"]["statistics.count"] == state["at"]["step"]
    assert float(rows(tmp_path / "run")[-1]["eval/return_mean"]) >= 475


@pytest.mark.parametrize("algorithm", ["a2c", "trpo", "vmpo"])
def test_the_others_run_too(algorithm, tmp_path):
    flags = [*small(algorithm), "--env-id=Pendulum-v1", "--total-timesteps=256"]
    code, _, error = finish(
        start(algorithm, *flags, "--vectorization=async", runs=tmp_path)
    )
    assert code == 0, error
    *_, last = rows(only_run(tmp_path))
    assert int(last["step"]) == 256
    assert last["eval/return_mean"]


# ── faults ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--num-envs", "3"], "num_envs must be a multiple of the 2 processes"),
        (["--env-id", "No-v0"], "--env-id No-v0: Environment `No` doesn't exist"),
        (["--resume", "nothing"], "nothing cannot be read: FileNotFoundError"),
    ],
)
def test_a_mistake_is_told_once(flags, line, tmp_path):
    code, output, error = finish(start("ppo", *flags, runs=tmp_path), timeout=30)
    assert code != 0
    assert (output + error).count(line) == 1
    assert "reinforce" not in output + error
    assert not [*tmp_path.iterdir()]


def test_reinforce_has_one_process(tmp_path):
    code, output, error = finish(start("reinforce", runs=tmp_path), timeout=30)
    assert code != 0
    assert "num_envs: REINFORCE has one, in one process" in output + error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_traceback_of_any_process_is_told_once(vectorization, tmp_path):
    """The environment of the second process raises; the first one is fine."""
    flags = [*small("ppo", 128), "--env-id=faulty:Raises", "--total-timesteps=100_000"]
    flags.append(f"--vectorization={vectorization}")
    code, output, error = finish(start("ppo", *flags, runs=tmp_path), timeout=60)
    assert code != 0
    told = output + error
    assert told.count("ZeroDivisionError: division by zero") == 1, told
    assert len(re.findall(r"faulty.py\", line \d+, in fail", told)) == 1
    assert told.count("--resume") == 1
    assert f"step 0: python ppo.py --resume {only_run(tmp_path)}" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_once_how_to_go_on(number, tmp_path):
    process = start("ppo", *CARTPOLE, runs=tmp_path)
    folder = wait_for_rows(process, tmp_path, 3)
    process.send_signal(number)
    code, output, error = finish(process, timeout=30)
    assert code != 0
    assert (output + error).count("--resume") == 1
    assert f"python ppo.py --resume {folder}" in output
