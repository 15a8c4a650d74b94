"""Kills, damage, mistakes: what a run survives, and how it says what it does not."""

import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from common import (
    NAMES,
    SCRIPTS,
    command,
    environment,
    fork,
    only_run,
    rows_without_times,
    run,
    small,
)

torch.set_num_threads(1)

PENDULUM = ["--env-id", "Pendulum-v1"]


def started(runs: Path, process: subprocess.Popen, rows: int) -> Path:
    """The run's folder, once it holds as many rows."""
    while process.poll() is None:
        for folder in runs.glob("[!.]*"):
            file = folder / "progress.csv"
            if file.exists() and file.read_text().count("\n") > rows:
                return folder
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def start(algorithm: str, *flags, runs: Path, **variables) -> subprocess.Popen:
    runs.mkdir(exist_ok=True)
    return subprocess.Popen(
        command(algorithm, *flags, runs=runs),
        cwd=runs,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def state_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(a, b, where="") -> None:
    """Equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def assert_same_run(one: Path, other: Path) -> None:
    assert rows_without_times(one) == rows_without_times(other)
    assert_same(state_of(one), state_of(other))


# ── exact resume ────────────────────────────────────────────────────────────────────


def ended(pid: int) -> int | None:
    """Exit status of a child process, if it has ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def rows_on_disk(folder: Path) -> int:
    """Iterations that progress.csv tells of."""
    path = folder / "progress.csv"
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0


def kill_and_resume(algorithm: str, flags: list, runs: Path, kills: int, seed: int):
    """SIGKILL at random moments, each a few iterations further on, and resume.

    Returns the run, and the iterations of the checkpoints that it went on from.
    """
    generator, resumed_from = random.Random(seed), []
    pid = fork(algorithm, *flags, runs=runs)
    while not [*runs.glob("[!.]*/config.json")]:
        time.sleep(0.01)
    folder = only_run(runs)
    while len(resumed_from) < kills:
        goal = rows_on_disk(folder) + generator.randint(0, 5)
        while (code := ended(pid)) is None and rows_on_disk(folder) < goal:
            time.sleep(0.002)
        time.sleep(generator.uniform(0.0, 0.1))  # anywhere within an iteration or two
        if code is not None or (code := ended(pid)) is not None:
            assert code == 0, (runs / ".stderr").read_text()
            return folder, resumed_from
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        resumed_from.append(state_of(folder)["iteration"])
        pid = fork(algorithm, "--resume", folder, runs=runs)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, (runs / ".stderr").read_text()
    return folder, resumed_from


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_killed_run_ends_with_the_same_bits(algorithm, tmp_path):
    """Rollout, update, evaluation and the writing of checkpoints are all hit."""
    steps = 400 if algorithm == "reinforce" else 256
    flags = [*PENDULUM, *small(algorithm, steps), "--total-timesteps", 40 * steps]
    flags += ["--checkpoint-every", 3, "--eval-every", 4, "--num-epochs", 2]
    whole = run(algorithm, *flags, runs=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder, came_from = kill_and_resume(
        algorithm, flags, tmp_path / "killed", 5, seed=1
    )
    assert len(came_from) == 5
    assert sum(iteration > 0 for iteration in came_from) >= 3  # not from the start only
    assert_same_run(only_run(tmp_path / "whole"), folder)
    assert not list(folder.glob("*.part"))


# ── determinism ─────────────────────────────────────────────────────────────────────


def test_only_what_should_changes_the_bits(tmp_path):
    """Vectorisation, evaluation, films and tracking draw no random number."""
    flags = ["--env-id", "tasks:PointMass-v0", *small("ppo"), "--total-timesteps", 300]
    variants = {
        "one": [],
        "same": [],
        "async": ["--vectorization", "async"],
        "rarely evaluated": ["--eval-every", 100, "--eval-episodes", 1],
        "filmed and tracked": ["--capture-video", "--track"],
        "other seed": ["--seed", 1],
    }
    folders = {}
    for name, more in variants.items():
        quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        result = run("ppo", *flags, *more, runs=tmp_path / name, **quiet)
        assert result.returncode == 0, result.stderr
        folders[name] = only_run(tmp_path / name)
    untimed = {name: rows_without_times(folder) for name, folder in folders.items()}
    for name in ("same", "async", "filmed and tracked"):
        assert untimed[name] == untimed["one"], name
        assert_same(state_of(folders[name]), state_of(folders["one"]))
    rarely = "rarely evaluated"
    assert_same(state_of(folders[rarely]), state_of(folders["one"]))
    for a, b in zip(untimed[rarely], untimed["one"], strict=True):
        assert all(a[k] == b[k] for k in a if not k.startswith("eval/"))
    assert untimed["other seed"] != untimed["one"]


# ── files ───────────────────────────────────────────────────────────────────────────


def a_run(algorithm: str, runs: Path, *flags) -> Path:
    flags = flags or [*PENDULUM, *small(algorithm), "--total-timesteps", 250]
    result = run(algorithm, *flags, runs=runs)
    assert result.returncode == 0, result.stderr
    return only_run(runs)


def test_files_are_whole_at_any_instant(tmp_path):
    """Read over and over while a run writes after every iteration."""
    flags = [*PENDULUM, *small("ppo", 16), "--checkpoint-every", 1]
    process = start("ppo", *flags, "--total-timesteps", 16 * 80, runs=tmp_path)
    folder, reads = started(tmp_path, process, rows=1), 0
    while process.poll() is None:
        content = (folder / "checkpoint.pt").read_bytes()
        assert hashlib.sha256(content[:-32]).digest() == content[-32:]
        lines = (folder / "progress.csv").read_text()
        assert lines.endswith("\n")
        assert len({line.count(",") for line in lines.splitlines()}) == 1
        json.loads((folder / "config.json").read_text())
        reads += 1
    assert process.returncode == 0, process.communicate()
    assert reads > 20


def limit_file_size() -> None:
    """Like a full disk: writing past the limit fails (with EFBIG, not a signal)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    flags = [*PENDULUM, *small("ppo", 16), "--checkpoint-every", 2]
    folder = a_run("ppo", tmp_path, *flags, "--total-timesteps", 16 * 11)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # as if it had been stopped there on the way to 40 iterations, of 41 batches
    state = json.loads((folder / "config.json").read_text())
    state["config"]["total_timesteps"] = 16 * 41
    (folder / "config.json").write_text(json.dumps(state))
    result = subprocess.run(
        command("ppo", "--resume", folder, runs=tmp_path),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "cannot be written: File too large" in line
    assert "--resume" in result.stdout
    assert (folder / "checkpoint.pt").read_bytes() == before["checkpoint.pt"]
    assert (folder / "progress.csv").read_text().endswith("\n")
    assert not list(folder.glob("*.part"))
    again = run("ppo", "--resume", folder, runs=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    config = SCRIPTS["ppo"].Config("Pendulum-v1", runs_dir=str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SCRIPTS["ppo"].UsageError, match="No space left"):
        SCRIPTS["ppo"].train(config)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_repeats_the_last_row_in_any_script(tmp_path):
    """Covered for all five in test_scripts; here: another seed gives other numbers."""
    folder = a_run("ppo", tmp_path)
    outputs = [
        run("ppo", "--evaluate", folder, *more, runs=tmp_path).stdout
        for more in ([], ["--seed", 0], ["--seed", 5])
    ]
    assert outputs[0] == outputs[1] != outputs[2]


# ── damaged and hostile checkpoints ─────────────────────────────────────────────────


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each script."""
    base = tmp_path_factory.mktemp("finished")
    return {name: a_run(name, base / name) for name in NAMES}


def load(algorithm: str, folder: Path, **changes):
    script = SCRIPTS[algorithm]
    config = script.replace(script.load_config(folder), **changes)
    agent, optimizer = script.make_agent(config, 3, script.Box(-2.0, 2.0, (1,)))
    return script.load_checkpoint(folder, config, agent, optimizer)


def with_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_damaged_checkpoints_are_refused(finished, tmp_path):
    """Cut at every KiB, and 500 flipped bits: nothing gets past the checksum."""
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    file = folder / "checkpoint.pt"
    whole = file.read_bytes()
    assert load("ppo", folder)[0] == 3
    generator, damaged = (
        random.Random(0),
        [whole[:n] for n in range(0, len(whole), 1024)],
    )
    for _ in range(500):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(content))
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(SCRIPTS["ppo"].UsageError, match="damaged"):
            load("ppo", folder)
    file.write_bytes(whole)
    assert load("ppo", folder)[0] == 3


def test_damage_under_a_valid_checksum_is_refused_or_harmless(finished, tmp_path):
    """Even who forges the checksum gets a clear error, or a checkpoint that loads."""
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    file = folder / "checkpoint.pt"
    whole, generator = file.read_bytes()[:-32], random.Random(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        content[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(with_checksum(bytes(content)))
        try:
            load("ppo", folder)
        except SCRIPTS["ppo"].UsageError:
            refused += 1
    assert refused > 5


class Creates:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_runs_no_code(finished, tmp_path):
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    torch.save(state_of(folder) | {"agent": Creates(trap)}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Creates(trap))):
        (folder / "checkpoint.pt").write_bytes(with_checksum(content))
        for flag in ("--resume", "--evaluate"):
            result = run("ppo", flag, folder, runs=tmp_path)
            assert result.returncode == 2
            (line,) = result.stderr.splitlines()
            assert "checkpoint.pt" in line
            assert not trap.exists()
    pickle.loads(pickle.dumps(Creates(trap))).close()
    assert trap.exists()  # the trap does work


def test_checkpoints_of_other_runs_are_refused(finished, tmp_path):
    error = SCRIPTS["ppo"].UsageError
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    for other in ("a2c", "trpo", "vmpo", "reinforce"):
        shutil.copy(finished[other] / "checkpoint.pt", folder)
        with pytest.raises(error, match=f"is of {other} on Pendulum-v1"):
            load("ppo", folder)
        with pytest.raises(error, match=rf"use {other}\.py"):
            SCRIPTS["ppo"].load_config(finished[other])
    flags = ["--env-id", "CartPole-v1", *small("ppo"), "--total-timesteps", 60]
    cartpole = a_run("ppo", tmp_path / "cartpole", *flags)
    shutil.copy(cartpole / "checkpoint.pt", folder)
    with pytest.raises(error, match="is of ppo on CartPole-v1"):
        load("ppo", folder)
    shutil.copy(finished["ppo"] / "checkpoint.pt", folder)
    with pytest.raises(error, match="does not fit"):
        load("ppo", folder, policy_layers=(17,))
    assert load("ppo", folder)[0] == 3


# ── signals ─────────────────────────────────────────────────────────────────────────


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_run_within_5_seconds(number, vectorization, tmp_path):
    """Ctrl-C reaches the whole process group, SIGTERM only the parent."""
    flags = [*PENDULUM, *small("ppo", 2048), "--vectorization", vectorization]
    process = start("ppo", *flags, runs=tmp_path)
    folder = started(tmp_path, process, rows=1)
    time.sleep(0.3)
    before = time.monotonic()
    send = os.killpg if number == signal.SIGINT else os.kill
    send(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - before < 5
    assert process.returncode == 130
    assert err == ""
    assert f"--resume {folder}" in out
    assert not alive(process.pid)
    assert (folder / "checkpoint.pt").exists()


# ── bad environments ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NaNObservation", "observation of environment 1 is not finite"),
        ("InfiniteReward", "reward of environment 1 is not finite"),
        ("NaNFinalObservation", "final_observation of environment 1 is not finite"),
        ("Raises", "environment 1 failed: ZeroDivisionError"),
    ],
)
def test_a_failing_environment_stops_the_run(env_id, message, vectorization, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo"), "--checkpoint-every", 1]
    flags += ["--vectorization", vectorization, "--eval-every", 100]
    process = start("ppo", *flags, runs=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    (line,) = err.splitlines()
    assert message in line
    assert "stopped in iteration 3" in out
    assert state_of(only_run(tmp_path))["iteration"] == 2
    assert not alive(process.pid)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("RaisesInEvaluation", "environment 0 failed: ZeroDivisionError"),
        ("NaNInEvaluation", "return_in_evaluation of environment 0 is not finite"),
    ],
)
def test_a_failure_in_an_evaluation_stops_the_run(env_id, message, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo"), "--checkpoint-every", 1]
    result = run("ppo", *flags, "--eval-every", 2, runs=tmp_path)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert message in line
    assert state_of(only_run(tmp_path))["iteration"] == 1


def test_a_dying_worker_stops_the_run(tmp_path):
    flags = ["--env-id", "faulty:Dies-v0", *small("ppo"), "--checkpoint-every", 1]
    flags += ["--vectorization", "async", "--eval-every", 100]
    process = start("ppo", *flags, runs=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert "process of an environment died" in line
    assert state_of(only_run(tmp_path))["iteration"] == 2
    assert not alive(process.pid)


def test_a_worker_that_died_is_named_at_a_reset():
    script = SCRIPTS["ppo"]
    config = script.Config("Pendulum-v1", num_envs=2, vectorization="async")
    environments = script.Environments(config)
    environments.vector.processes[1].kill()
    environments.vector.processes[1].join()
    with pytest.raises(script.RunError, match="process of an environment died"):
        environments.reset(0)
    environments.vector.close(terminate=True)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize(
    "env_id", ["Outside", "OneStep", "Endless", "NoReward", "OneAction"]
)
def test_an_odd_environment_is_trained_in(env_id, algorithm, tmp_path, monkeypatch):
    script = SCRIPTS[algorithm]
    monkeypatch.setattr(script, "LONGEST_EPISODE", 300)
    shape = {"num_envs": 1, "unroll_length": 32}
    if algorithm != "reinforce":
        shape |= {"num_envs": 2, "num_minibatches": 2, "value_layers": (8,)}
    config = script.Config(
        f"faulty:{env_id}-v0",
        total_timesteps=640,
        policy_layers=(8,),
        eval_episodes=1,
        runs_dir=str(tmp_path),
        **shape,
    )
    folder = script.train(config)
    for row in rows_without_times(folder):
        assert all(value == "" or abs(float(value)) < 1e12 for value in row.values())


# ── memory ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_memory_does_not_grow(vectorization, tmp_path):
    flags = [*PENDULUM, *small("ppo", 64), "--vectorization", vectorization]
    flags += ["--total-timesteps", 64 * 210, "--eval-every", 5]
    process = start("ppo", *flags, runs=tmp_path)
    size = {}
    for rows in (20, 200):
        started(tmp_path, process, rows)
        status = Path(f"/proc/{process.pid}/status").read_text()
        size[rows] = int(status.split("VmRSS:")[1].split()[0])
    process.communicate(timeout=60)
    assert size[200] < 1.02 * size[20], size
