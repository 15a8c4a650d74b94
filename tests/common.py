"""What several test modules need: the five scripts, and ways to run them."""

import csv
import importlib
import os
import select
import signal
import subprocess
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # before any fork; and the tests run one at a time
# A shell's background job ignores Ctrl-C, and so would the runs that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

NAMES = ("reinforce", "a2c", "trpo", "ppo", "vmpo")
SCRIPTS = {name: importlib.import_module(name) for name in NAMES}
CRITICS = [SCRIPTS[name] for name in NAMES if name != "reinforce"]


def make_environments(script, config):
    """Those that `train` would make."""
    make = [partial(script.make_environment, config)] * config.num_envs
    return script.Environments(make, config, config.vectorization)


def command(algorithm: str, *flags, runs: Path) -> list[str]:
    script = [sys.executable, str(ROOT / f"{algorithm}.py")]
    return [*script, "--runs-dir", str(runs), *map(str, flags)]


# What a user's shell need not say, though this one may
UNSAID = {"PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8"}


def environment(**variables: str) -> dict[str, str]:
    """One thread, and the test folder importable for `--env-id faulty:Name-v0`."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    said = {name: x for name, x in os.environ.items() if name not in UNSAID}
    return said | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables


def run_command(algorithm: str, *flags, runs: Path, cwd: Path, **variables):
    """Run a script through its command line, as a user would."""
    return subprocess.run(
        command(algorithm, *flags, runs=runs),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def fork(algorithm: str, *flags, runs: Path, **variables) -> int:
    """The same in a forked process, which has imported everything already; its pid.

    Its output goes to `runs/.stdout` and `runs/.stderr`.
    """
    runs.mkdir(exist_ok=True)
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        warnings.resetwarnings()  # shown, as to a user
        os.chdir(runs)
        os.environ.update(environment(**variables))
        sys.argv = command(algorithm, *flags, runs=runs)[1:]
        sys.stdout, sys.stderr = (open(f".std{x}", "w") for x in ("out", "err"))  # noqa: SIM115
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stderr.fileno(), 2)
        SCRIPTS[algorithm].main()
        code = 0
    except SystemExit as stop:  # as Python would end here
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def status(pid: int, timeout: float = 120) -> int:
    """The exit status of a forked process, which is killed if it does not end."""
    handle = os.pidfd_open(pid)
    in_time, _, _ = select.select([handle], [], [], timeout)
    os.close(handle)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert in_time, f"still running after {timeout} s"
    return code


def run(algorithm: str, *flags, runs: Path, **variables):
    """Run a script's command line in a forked process, to its end."""
    code = status(fork(algorithm, *flags, runs=runs, **variables))
    texts = [(runs / name).read_text() for name in (".stdout", ".stderr")]
    return subprocess.CompletedProcess(flags, code, *texts)


def only_run(runs: Path) -> Path:
    """The one run folder in `runs`."""
    (folder,) = [path for path in runs.iterdir() if (path / "config.json").exists()]
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def rows_without_times(folder: Path) -> list[dict[str, str]]:
    untimed = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in rows(folder)
    ]
    assert untimed
    return untimed


# a batch that takes a fraction of a second
SMALL = ("--policy-layers", 16, "--eval-episodes", 2, "--eval-every", 150)


def small(algorithm: str, steps: int = 64) -> list:
    """Flags for short iterations of this algorithm."""
    if algorithm == "reinforce":
        return [*SMALL, "--unroll-length", steps]
    shape = ["--num-envs", 2, "--unroll-length", steps // 2, "--num-minibatches", 2]
    return [*SMALL, "--value-layers", 16, *shape]
