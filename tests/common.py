"""What several test modules need: the five scripts, and ways to run them."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = ("reinforce", "a2c", "trpo", "ppo", "vmpo")
SCRIPTS = {name: importlib.import_module(name) for name in NAMES}
CRITICS = [SCRIPTS[name] for name in NAMES if name != "reinforce"]


def command(algorithm: str, *flags, runs: Path) -> list[str]:
    script = [sys.executable, str(ROOT / f"{algorithm}.py")]
    return [*script, "--runs-dir", str(runs), *map(str, flags)]


def environment(**variables: str) -> dict[str, str]:
    """One thread, and the test folder importable for `--env-id faulty:Name-v0`."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables


def run(algorithm: str, *flags, runs: Path, cwd: Path | None = None, **variables):
    """Run a script through its command line, as a user would."""
    runs.mkdir(exist_ok=True)
    return subprocess.run(
        command(algorithm, *flags, runs=runs),
        cwd=cwd or runs,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


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
SMALL = ("--policy-layers", 16, "--eval-episodes", 2, "--eval-every", 2)


def small(algorithm: str, steps: int = 64) -> list:
    """Flags for short iterations of this algorithm."""
    if algorithm == "reinforce":
        return [*SMALL, "--unroll-length", steps]
    shape = ["--num-envs", 2, "--unroll-length", steps // 2, "--num-minibatches", 2]
    return [*SMALL, "--value-layers", 16, *shape]
