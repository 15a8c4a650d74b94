"""`--device cuda`: the same algorithm on a GPU. Without one, all of this is skipped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product

import pytest
import torch
from common import (
    CRITICS,
    NAMES,
    ROOT,
    SCRIPTS,
    command,
    environment,
    make_environments,
    only_run,
    rows,
    rows_without_times,
    run_command,
    small,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no GPU"
)

CUDA = "--device", "cuda"
ATOL = 1e-6  # float32's rounding
ENVIRONMENTS = "Pendulum-v1", "CartPole-v1"


# ── one update ──────────────────────────────────────────────────────────────────────


def make_task(script, env_id: str) -> dict:
    """A batch of a policy that has seen one before, made on the CPU."""
    flags = {"env_id": env_id, "policy_layers": (16,), "num_epochs": 2}
    # the entropy of a squashed Gaussian is estimated from samples of the device
    flags |= {"squash_actions": False, "unroll_length": 210}
    if script.ALGORITHM != "reinforce":
        flags |= {"value_layers": (16,), "num_envs": 4, "num_minibatches": 3}
    if script.ALGORITHM == "trpo":  # each iteration multiplies what rounding has made
        flags["cg_max_iterations"] = 3
    config = script.Config(**flags)
    environments = make_environments(script, config)
    agent, *_ = script.make_agent(config)
    torch.manual_seed(environments.reset(0, 0))
    agent.statistics.absorb(script.rollout(agent, environments, config).observations)
    batch = script.rollout(agent, environments, config)
    environments.close()
    task = {"algorithm": script.ALGORITHM, "config": asdict(config)}
    return task | {"agent": agent.state_dict(), "batch": batch._asdict()}


def learn(script, task: dict, device: str) -> tuple[dict, dict]:
    """Metrics and parameters after an update there."""
    config = script.Config(**task["config"] | {"device": device})
    agent, optimizer, *_ = script.make_agent(config)
    agent.load_state_dict(task["agent"])
    batch = {name: x.to(device) for name, x in task["batch"].items()}
    batch = script.Batch(**batch)
    torch.manual_seed(0)  # of the shuffles, which are the CPU's
    metrics = script.update(agent, optimizer, batch, config)
    metrics |= script.measure(agent.policy, batch)
    agent.statistics.absorb(batch.observations)
    return metrics, {name: x.cpu() for name, x in agent.state_dict().items()}


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", NAMES)
def test_an_update_is_that_of_the_cpu(algorithm, env_id):
    script = SCRIPTS[algorithm]
    task = make_task(script, env_id)
    metrics, agent = learn(script, task, "cpu")
    on_gpu = learn(script, task, "cuda")
    assert on_gpu[0] == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    for key, x in agent.items():
        torch.testing.assert_close(on_gpu[1][key], x, rtol=1e-12, atol=ATOL, msg=key)
    moved = agent["policy.network.0.weight"] - task["agent"]["policy.network.0.weight"]
    assert moved.abs().max() > 100 * ATOL


# ── whole runs ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "flags",
    [
        ["--env-id=Hopper-v4"],
        ["--env-id=Hopper-v4", "--precision=bfloat16"],
        ["--env-id=CartPole-v1", "--vectorization=async"],
    ],
    ids=lambda flags: flags[-1],
)
@pytest.mark.parametrize("algorithm", NAMES)
def test_a_run_of_the_gpu_is_played_and_resumed_by_the_cpu(algorithm, flags, tmp_path):
    if algorithm == "reinforce" and "--precision=bfloat16" in flags:
        flags = ["--env-id=Hopper-v4", "--baseline"]  # it has no precision
    flags = [*flags, *small(algorithm), "--total-timesteps=260"]
    result = run_command(algorithm, *flags, *CUDA, runs=tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = only_run(tmp_path)
    *_, last = rows(folder)
    assert all(float(x) == float(x) for x in last.values() if x)
    for device in "cuda", "cpu":
        words = "--evaluate", folder, "--device", device
        played = run_command(algorithm, *words, runs=tmp_path, cwd=tmp_path)
        assert played.returncode == 0, played.stderr
        score = float(played.stdout.split("'eval/return_mean': ")[1].split(",")[0])
        assert score == pytest.approx(float(last["eval/return_mean"]), rel=1e-3)
    for device, total in ("cpu", 400), ("cuda", 540):
        words = ["--resume", folder, "--device", device, "--total-timesteps", total]
        resumed = run_command(algorithm, *words, runs=tmp_path, cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert int(rows(folder)[-1]["step"]) >= total


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_killed_run_ends_with_the_same_bits(algorithm, tmp_path):
    steps = 400 if algorithm == "reinforce" else 256
    flags = ["--env-id=Pendulum-v1", *small(algorithm, steps), *CUDA]
    flags += ["--total-timesteps", 12 * steps, "--checkpoint-every", 3 * steps]
    flags += ["--num-epochs", 2, "--eval-every", 5 * steps]
    whole = run_command(algorithm, *flags, runs=tmp_path / "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    runs = tmp_path / "killed"
    process = subprocess.Popen(
        command(algorithm, *flags, runs=runs), env=environment(), cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if [x for x in runs.glob("*/progress.csv") if x.read_text().count("\n") > 5]:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    folder = only_run(runs)
    words = "--resume", folder
    resumed = run_command(algorithm, *words, runs=runs, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows_without_times(folder) == rows_without_times(
        only_run(tmp_path / "whole")
    )


def test_cartpole_is_learned(tmp_path):
    flags = ["--env-id=CartPole-v1", "--total-timesteps=20_000", "--num-envs=4"]
    flags += ["--unroll-length=256", "--num-minibatches=4", "--learning-rate=1e-3"]
    flags += ["--policy-layers", 32, 32, "--value-layers", 64, 64, *CUDA]
    result = run_command("ppo", *flags, runs=tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(rows(only_run(tmp_path))[-1]["eval/return_mean"]) >= 475


# ── torchrun ────────────────────────────────────────────────────────────────────────


TORCHRUN = sys.executable, "-m", "torch.distributed.run"


def run_two(program: list, port: int) -> None:
    """Two processes with NCCL between, on two GPUs or on the same.

    NCCL wants a GPU for each process of a machine. It knows machines by NCCL_HOSTID,
    so two launchers can be two machines. Sharing a GPU is slow: while one process waits
    for the other, it takes its slices of time.
    """
    launchers = [["--standalone", "--nproc-per-node=2"]]
    if torch.cuda.device_count() == 1:
        node = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        node += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
        launchers = [node, node]
    processes, outputs = [], []
    for i, flags in enumerate(launchers):
        host = {"NCCL_HOSTID": str(i), "NCCL_SOCKET_IFNAME": "lo"}
        processes.append(
            subprocess.Popen(
                [*map(str, [*TORCHRUN, *flags, *program])],
                env=environment(**host if len(launchers) > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=300)[0])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            outputs.append(process.communicate()[0])
    assert not any(x.returncode for x in processes), "\n".join(outputs)


def test_two_halves_of_a_batch_make_the_update_of_the_whole(tmp_path):
    for script, env_id in product(CRITICS, ENVIRONMENTS):
        torch.save(
            make_task(script, env_id), tmp_path / f"{script.ALGORITHM}-{env_id}.task"
        )
    program = [ROOT / "tests" / "halves.py", tmp_path, "cuda"]
    whole = [sys.executable, *map(str, program)]
    subprocess.run(whole, check=True, env=environment(), timeout=120)
    run_two(program, 29411)
    for path in tmp_path.glob("*.task"):
        ends = "whole", "0", "1"
        whole, *halves = (
            torch.load(path.with_suffix(f".{end}"), map_location="cpu") for end in ends
        )
        for key, x in halves[0]["agent"].items():
            assert torch.equal(x, halves[1]["agent"][key]), key  # they stay in step
            limits = {"rtol": 1e-12, "atol": ATOL, "msg": f"{path.stem} {key}"}
            torch.testing.assert_close(x, whole["agent"][key], **limits)


@pytest.mark.parametrize("algorithm", [x for x in NAMES if x != "reinforce"])
def test_torchrun_with_nccl(algorithm, tmp_path):
    flags = [*small(algorithm), "--env-id=Pendulum-v1", "--total-timesteps=256", *CUDA]
    program = [ROOT / f"{algorithm}.py", "--runs-dir", tmp_path, *flags]
    run_two(program, 29420 + NAMES.index(algorithm))
    *_, last = rows(only_run(tmp_path))
    assert int(last["step"]) == 256
    assert last["eval/return_mean"]
    folder = only_run(tmp_path)
    alone = shutil.copytree(folder, tmp_path / "alone")
    words = "--resume", alone, "--total-timesteps", 512
    result = run_command(algorithm, *words, runs=tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_more_processes_than_gpus_are_told_once(tmp_path):
    """By PyTorch, within seconds; the others do not wait for ever."""
    count = torch.cuda.device_count() + 1
    flags = ["--num-envs", count, "--num-minibatches", 1, "--runs-dir", tmp_path, *CUDA]
    words = [*TORCHRUN, "--standalone", f"--nproc-per-node={count}", ROOT / "ppo.py"]
    result = subprocess.run(
        [*map(str, [*words, *flags])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    told = result.stdout + result.stderr
    assert told.count("do you have enough GPUs?") == 1, told
