"""Kills, damage, mistakes: what a run survives, and how it says what it does not."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
import torch
from common import (
    NAMES,
    ROOT,
    SCRIPTS,
    command,
    environment,
    fork,
    only_run,
    rows_without_times,
    run,
    small,
    status,
)

torch.set_num_threads(1)

PENDULUM = ["--env-id", "Pendulum-v1"]


def started(runs: Path, process: subprocess.Popen, rows: int) -> Path:
    """The run's folder, once it holds as many rows."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for folder in runs.glob("[!.]*"):
            file = folder / "progress.csv"
            if file.exists() and file.read_text().count("\n") > rows:
                return folder
        time.sleep(0.02)
    process.kill()
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
    """Its last checkpoint, but for the clock."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["at"]["seconds"]
    for name in ("resume", "runs_dir"):
        del state["config"][name]
    return state


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
    while not [*runs.glob("[!.]*/checkpoint.pt")]:
        time.sleep(0.01)
        assert ended(pid) is None, (runs / ".stderr").read_text()
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
        resumed_from.append(state_of(folder)["at"]["iteration"])
        pid = fork(algorithm, "--resume", folder, runs=runs)
    assert status(pid) == 0, (runs / ".stderr").read_text()
    return folder, resumed_from


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("algorithm", NAMES)
def test_a_killed_run_ends_with_the_same_bits(algorithm, vectorization, tmp_path):
    """Rollout, update, evaluation and the writing of checkpoints are all hit.

    Pendulum's episodes have 200 steps: checkpoints come sooner, and later.
    """
    steps = 400 if algorithm == "reinforce" else 256
    every = 3 * steps if vectorization == "sync" else 250
    flags = [*PENDULUM, *small(algorithm, steps), "--total-timesteps", 24 * steps]
    flags += ["--checkpoint-every", every, "--eval-every", 4 * steps]
    flags += ["--num-epochs", 2, "--vectorization", vectorization]
    whole = run(algorithm, *flags, runs=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder, came_from = kill_and_resume(
        algorithm, flags, tmp_path / "killed", 3, seed=1
    )
    assert len(came_from) == 3
    assert max(came_from) > 0  # not from the start only
    assert_same_run(only_run(tmp_path / "whole"), folder)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_global_generators_are_seeded_too(vectorization, tmp_path):
    """Some environments draw from `random` and `np.random`."""
    flags = ["--env-id", "faulty:GlobalRandom-v0", *small("ppo", 256)]
    flags += ["--vectorization", vectorization, "--total-timesteps", 256 * 14]
    flags += ["--checkpoint-every", 512, "--eval-every", 1024]
    for name in ("one", "two"):
        assert run("ppo", *flags, runs=tmp_path / name).returncode == 0
    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    assert_same_run(one, two)
    flags_of_other = [*flags, "--seed", 1, "--total-timesteps", 256]
    assert run("ppo", *flags_of_other, runs=tmp_path / "other").returncode == 0
    other = only_run(tmp_path / "other")
    name = "train/episode_return"
    assert rows_without_times(other)[0][name] != rows_without_times(one)[0][name]
    folder, came_from = kill_and_resume("ppo", flags, tmp_path / "killed", 2, seed=2)
    assert max(came_from) > 0
    assert_same_run(one, folder)


# ── determinism ─────────────────────────────────────────────────────────────────────


def test_only_what_should_changes_the_bits(tmp_path):
    """Vectorisation, evaluation, films and tracking draw no random number."""
    flags = ["--env-id", "tasks:PointMass-v0", *small("ppo"), "--total-timesteps", 300]
    variants = {
        "one": [],
        "same": [],
        "async": ["--vectorization", "async"],
        "rarely evaluated": ["--eval-every", 10_000, "--eval-episodes", 1],
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
    learned = {name: state_of(folder)["agent"] for name, folder in folders.items()}
    for name in ("same", "async", "filmed and tracked"):
        assert untimed[name] == untimed["one"], name
        assert_same(learned[name], learned["one"])
    rarely = "rarely evaluated"
    assert_same(learned[rarely], learned["one"])
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
    """Read over and over while a run writes after every iteration.

    A line of the table is appended: a reader may see the last one before its end.
    """
    flags = [*PENDULUM, *small("ppo", 16), "--checkpoint-every", 1]
    flags += ["--eval-episodes", 1, "--total-timesteps", 16 * 80]
    process = start("ppo", *flags, runs=tmp_path)
    folder, reads = started(tmp_path, process, rows=1), 0
    while process.poll() is None:
        for file in folder.glob("*.pt"):
            assert zipfile.ZipFile(file).testzip() is None
        *lines, unended = (folder / "progress.csv").read_text().split("\n")
        assert lines[0].startswith("iteration,step,")
        assert "iteration" not in "".join([*lines[1:], unended])
        assert len({line.count(",") for line in lines}) == 1
        assert unended.count(",") <= lines[0].count(",")
        json.loads((folder / "config.json").read_text())
        reads += 1
    assert process.returncode == 0, process.communicate()
    assert reads > 20
    assert (folder / "best.pt").exists()


def test_resuming_cuts_the_table_to_the_checkpoint(tmp_path):
    flags = [*PENDULUM, *small("ppo"), "--total-timesteps", 320]
    folder = a_run("ppo", tmp_path, *flags)
    whole = (folder / "progress.csv").read_bytes()
    with open(folder / "progress.csv", "ab") as file:
        file.write(b"9,99,torn")
    result = run("ppo", "--resume", folder, runs=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (folder / "progress.csv").read_bytes() == whole


def limit_file_size() -> None:
    """Like a full disk: writing past the limit fails (with EFBIG, not a signal)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    flags = [*PENDULUM, *small("ppo", 16), "--checkpoint-every", 32]
    folder = a_run("ppo", tmp_path, *flags, "--total-timesteps", 16 * 5)
    before = (folder / "checkpoint.pt").read_bytes()
    extended = ["--resume", folder, "--total-timesteps", 16 * 40]
    result = subprocess.run(
        command("ppo", *extended, runs=tmp_path),
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "--resume" in result.stdout
    assert (folder / "checkpoint.pt").read_bytes() == before
    again = run("ppo", *extended, runs=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(rows_without_times(folder)) == 40 - 1  # the first has two batches


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


def refusal(algorithm: str, path: Path) -> str:
    """What the script says of a file that it does not take."""
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[algorithm].load(path)
    return stop.value.code


def test_damaged_checkpoints_are_refused(finished, tmp_path):
    """Cut at every KiB, and flipped bits: refused, or else they change nothing.

    `torch.load` alone takes nearly all of them, with other values. The bits are 400
    anywhere, and all of an entry of the directory: one of them makes it a folder there.
    """
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    file = folder / "checkpoint.pt"
    whole, generator = file.read_bytes(), random.Random(0)
    end = whole.index(b"archive/data/0", zipfile.ZipFile(file).start_dir)
    bits = [generator.randrange(8 * len(whole)) for _ in range(400)]
    good = SCRIPTS["ppo"].load(folder)
    for n in range(0, len(whole), 1024):
        file.write_bytes(whole[:n])
        assert "cannot be read" in refusal("ppo", folder)
    refused = 0
    for bit in [*bits, *range(8 * (end - 46), 8 * end)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(content))
        try:
            assert_same(SCRIPTS["ppo"].load(folder), good)  # a bit of the padding
        except SystemExit as stop:
            assert any(word in stop.code for word in ("damaged", "cannot be read"))  # noqa: PT017
            refused += 1
    assert refused > 400


class Creates:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_runs_no_code(finished, tmp_path):
    folder = Path(shutil.copytree(finished["ppo"], tmp_path / "run"))
    trap = tmp_path / "trap"
    torch.save(state_of(folder) | {"agent": Creates(trap)}, tmp_path / "zip")
    for content in ((tmp_path / "zip").read_bytes(), pickle.dumps(Creates(trap))):
        (folder / "checkpoint.pt").write_bytes(content)
        for flag in ("--resume", "--evaluate"):
            result = run("ppo", flag, folder, runs=tmp_path)
            assert result.returncode == 1
            (line,) = result.stderr.splitlines()
            assert "checkpoint.pt cannot be read" in line
            assert not trap.exists()
    pickle.loads(pickle.dumps(Creates(trap))).close()
    assert trap.exists()  # the trap does work


def test_checkpoints_of_other_algorithms_are_refused(finished):
    for one in NAMES:
        for other in {*NAMES} - {one}:
            assert refusal(one, finished[other]).endswith(f"is of {other}.py")


# ── signals ─────────────────────────────────────────────────────────────────────────


def alive(group: int) -> bool:
    """Whether a process of the group still runs; one that was killed has a moment."""
    time.sleep(0.1)
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@pytest.mark.parametrize(
    ("number", "send", "vectorization"),
    [
        (signal.SIGINT, os.killpg, "sync"),
        (signal.SIGINT, os.killpg, "async"),  # Ctrl-C reaches all processes
        (signal.SIGTERM, os.kill, "sync"),
        (signal.SIGTERM, os.kill, "async"),
        (signal.SIGTERM, os.killpg, "async"),  # as a cluster's queue does it
    ],
)
def test_signals_end_the_run_within_5_seconds(number, send, vectorization, tmp_path):
    flags = [*PENDULUM, *small("ppo", 1024), "--vectorization", vectorization]
    process = start("ppo", *flags, runs=tmp_path)
    folder = started(tmp_path, process, rows=1)
    time.sleep(0.2)
    before = time.monotonic()
    send(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - before < 5
    assert process.returncode == 130
    assert err == ""
    assert "KeyboardInterrupt in iteration" in out
    assert f"to go on from step 0: python ppo.py --resume {folder}" in out
    assert not alive(process.pid)
    assert (folder / "checkpoint.pt").exists()


def test_a_stop_names_the_step_of_the_checkpoint(tmp_path):
    flags = [*PENDULUM, *small("ppo"), "--checkpoint-every", 320]
    process = start("ppo", *flags, runs=tmp_path)
    folder = started(tmp_path, process, rows=8)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    saved = state_of(folder)["at"]["step"]
    assert saved >= 320
    assert f"from step {saved:,}: " in out


# ── bad environments ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NaNObservation", "observation of environment 1 is not finite"),
        ("InfiniteReward", "reward of environment 1 is not finite"),
        ("NaNFinalObservation", "final_observation of environment 1 is not finite"),
        ("Raises", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_failing_environment_stops_the_run(env_id, message, vectorization, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo"), "--checkpoint-every", 1]
    flags += ["--vectorization", vectorization, "--eval-episodes", 0]
    pid = fork("ppo", *flags, runs=tmp_path)
    assert status(pid) == 1
    assert message in (tmp_path / ".stderr").read_text()
    out = (tmp_path / ".stdout").read_text()
    assert "in iteration 3; to go on from step 192" in out
    assert state_of(only_run(tmp_path))["at"]["iteration"] == 2
    assert not alive(pid)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("RaisesInEvaluation", "ZeroDivisionError"),
        ("NaNInEvaluation", "reward of environment 0 is not finite"),
    ],
)
def test_a_failure_in_an_evaluation_stops_the_run(env_id, message, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo"), "--checkpoint-every", 1]
    result = run("ppo", *flags, "--eval-every", 192, runs=tmp_path)
    assert result.returncode == 1, result.stderr
    assert message in result.stderr
    assert state_of(only_run(tmp_path))["at"]["iteration"] == 1


@pytest.mark.parametrize("env_id", ["Dies", "DiesInReset"])
def test_a_dying_worker_stops_the_run(env_id, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo"), "--checkpoint-every", 1]
    flags += ["--vectorization", "async", "--eval-episodes", 0]
    pid = fork("ppo", *flags, runs=tmp_path)
    assert status(pid) == 1
    last = (tmp_path / ".stderr").read_text().splitlines()[-1]
    assert last == "environment 1 left, exit status -9"
    out = (tmp_path / ".stdout").read_text()
    assert "EOFError in iteration 3; to go on from step 192" in out
    assert state_of(only_run(tmp_path))["at"]["iteration"] == 2
    assert not alive(pid)


TRAIN = """
import multiprocessing, sys
sys.path[:0] = {paths}
import ppo

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    ppo.train(ppo.parse())
"""


@pytest.mark.parametrize(
    ("env_id", "method"),
    [
        *product(["RaisesAtOnce"], ["sync", "fork", "spawn", "forkserver"]),
        *product(["RaisesUnpicklable"], ["fork", "spawn"]),
    ],
)
def test_a_users_own_traceback_is_whole(method, env_id, tmp_path):
    paths = [str(ROOT), str(ROOT / "tests")]
    start_method = "fork" if method == "sync" else method
    text = TRAIN.format(paths=paths, method=start_method)
    (tmp_path / "mine.py").write_text(text)
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo")]
    flags += ["--vectorization", "sync" if method == "sync" else "async"]
    flags += ["--eval-episodes", 0, "--runs-dir", tmp_path / "runs"]
    result = subprocess.run(
        [sys.executable, tmp_path / "mine.py", *map(str, flags)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1, result.stderr
    assert "to go on from step 0" in result.stdout
    if env_id == "RaisesAtOnce":
        assert "in deeper\n    return 1.0 if self.count" in result.stderr
        assert "ZeroDivisionError: integer modulo by zero" in result.stderr
    else:
        assert "faulty.CannotBePickled: a lock inside" in result.stderr


@pytest.mark.parametrize(
    ("algorithm", "vectorization"),
    [("ppo", "sync"), ("ppo", "async"), ("reinforce", "sync")],
)
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("WrongShape", "an observation that is not of Box(-inf, inf, (2,), float32)"),
        ("WrongShapeLater", "an observation that is not of Box"),
        ("OldReset", "an observation that is not of Box"),
        ("OverflowReward", "reward of environment 0 is not finite in float32"),
        ("Quits", ""),
    ],
)
def test_what_cannot_be_learned_from_stops_the_run(
    env_id, message, algorithm, vectorization, tmp_path
):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small(algorithm)]
    flags += ["--vectorization", vectorization, "--eval-episodes", 0]
    result = run(algorithm, *flags, runs=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "to go on from step 0" in result.stdout


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("env_id", "warning"),
    [("ArrayReward", "must be a float"), ("Fractions", "dtype to be int64")],
)
def test_gymnasiums_warnings_are_seen_and_the_run_goes_on(
    env_id, warning, vectorization, tmp_path
):
    flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo")]
    flags += ["--vectorization", vectorization, "--total-timesteps", 300]
    process = start("ppo", *flags, runs=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert warning in err
    assert len(rows_without_times(only_run(tmp_path))) == 4


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
@pytest.mark.parametrize(
    ("env_id", "more"),
    [
        ("CloseBeforeReset", []),
        ("CloseFails", []),
        ("OneInstance", ["--num-envs", 1, "--eval-episodes", 0]),
    ],
)
def test_what_close_does_loses_no_run(env_id, more, algorithm, tmp_path):
    flags = ["--env-id", f"faulty:{env_id}-v0", "--total-timesteps", 300]
    result = run(algorithm, *flags, *small(algorithm), *more, runs=tmp_path)
    folder = only_run(tmp_path)
    assert state_of(folder)["at"]["step"] >= 300
    last = rows_without_times(folder)[-1]
    assert int(last["step"]) >= 300
    assert (last["eval/return_mean"] == "") == ("--eval-episodes" in more)
    if env_id == "CloseFails":
        assert "the physics server is gone" in result.stderr
    else:
        assert result.returncode == 0, result.stderr


def test_rewards_of_any_unit_learn_alike(tmp_path):
    """10²¹ overflows when it is squared in float32; 10⁻⁷ drowns in a floor of 10⁻⁸."""
    losses = []
    for env_id in ("Reward", "HugeReward", "TinyReward"):
        flags = ["--env-id", f"faulty:{env_id}-v0", *small("ppo", 512)]
        flags += ["--total-timesteps", 2048, "--eval-episodes", 0]
        assert run("ppo", *flags, runs=tmp_path / env_id).returncode == 0
        table = rows_without_times(only_run(tmp_path / env_id))
        losses.append([float(row["train/value_loss"]) for row in table])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-3)
    assert min(losses[0]) > 0.01


def test_where_episodes_are_cut_is_said(tmp_path):
    flags = [*small("ppo"), "--total-timesteps", 100, "--eval-episodes", 0]
    limited = run("ppo", "--env-id", "faulty:OneStep-v0", *flags, runs=tmp_path)
    assert "are cut" not in limited.stdout
    endless = run("ppo", "--env-id", "faulty:Endless-v0", *flags, runs=tmp_path)
    text = "episodes are cut after 10,000 steps: no limit is registered"
    assert text in endless.stdout
    flags += ["--env-id", "faulty:OneStep-v0", "--checkpoint-every", 200]
    reset = run("ppo", *flags, runs=tmp_path)
    assert "episodes are cut after 100 steps: --checkpoint-every" in reset.stdout


def test_reinforce_cuts_no_episode_at_a_checkpoint(tmp_path):
    flags = [*small("reinforce", 32), "--total-timesteps", 300, "--eval-episodes", 0]
    flags += ["--env-id", "tasks:Hundred-v0", "--checkpoint-every", 50]
    result = run("reinforce", *flags, runs=tmp_path)
    table = rows_without_times(only_run(tmp_path))
    assert {row["train/episode_length"] for row in table} == {"100.0"}
    assert "--checkpoint-every" not in result.stdout


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_batch_of_one_step_is_learned_from(algorithm, tmp_path):
    """Diagnostics that are not numbers stop nothing."""
    script = SCRIPTS[algorithm]
    known = script.Config.__dataclass_fields__.keys()
    shape = {"num_envs": 1, "unroll_length": 1, "num_minibatches": 1, "num_epochs": 1}
    shape |= {"normalize_advantages": False, "value_layers": (4,)}
    config = {"env_id": "faulty:OneStep-v0", "policy_layers": (4,), "eval_episodes": 0}
    config |= {"total_timesteps": 9, "runs_dir": str(tmp_path)}
    config |= {name: value for name, value in shape.items() if name in known}
    assert len(rows_without_times(script.train(script.Config(**config)))) == 8
    if algorithm != "reinforce":
        with pytest.raises(ValueError, match="standardised"):
            script.Config(**config | {"normalize_advantages": True})


@pytest.mark.filterwarnings("ignore:.*not within the observation space")
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
        row.pop("train/explained_variance", None)  # nan where there is no reward
        assert all(value == "" or abs(float(value)) < 1e12 for value in row.values())


# ── memory ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_memory_does_not_grow(vectorization, tmp_path):
    flags = [*PENDULUM, *small("ppo", 64), "--vectorization", vectorization]
    flags += ["--total-timesteps", 64 * 130, "--eval-every", 640]
    process = start("ppo", *flags, runs=tmp_path)
    size = {}
    for rows in (20, 120):
        started(tmp_path, process, rows)
        memory = Path(f"/proc/{process.pid}/status").read_text()
        size[rows] = int(memory.split("VmRSS:")[1].split()[0])
    process.communicate(timeout=60)
    assert size[120] < 1.02 * size[20], size
