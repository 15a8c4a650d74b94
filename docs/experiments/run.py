"""The paper's experiments: many trainings, resumed where they stopped, none run twice.

    python docs/experiments/run.py figure7 --jobs 2
    python docs/experiments/run.py figure4 --seeds 0 --total-timesteps 1_000_000
    python docs/experiments/run.py figure4 --algorithm ppo -- --device cuda

Stop it with Ctrl-C, go on with the same command. Flags after `--` are the scripts'.
Which run belongs to which cell of an experiment is read from the run's config.json.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for the five scripts
sys.path.append(os.getcwd())  # for module:Name-v0

ALGORITHMS = ("reinforce", "a2c", "trpo", "ppo", "vmpo")
EVALUATIONS = 30  # about as many in each run, however long it is
POLL_SECONDS = 0.5
STOP_SECONDS = 60  # that a script has to finish the write in hand
TAIL = 12  # lines of a failed run's log to show
ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
RESERVED = {"--env-id", "--seed", "--total-timesteps", "--precision"}
RESERVED |= {"--runs-dir", "--resume", "--evaluate"}
FREE = {"device", "vectorization", "track", "wandb_project", "capture_video", "render"}
FREE |= {"runs_dir", "resume", "evaluate"}  # they do not change the results
NOT_SETTINGS = FREE | {"env_id", "seed", "total_timesteps", "precision"}
NOT_SETTINGS |= {"eval_every", "eval_episodes", "checkpoint_every"}


class Experiment(NamedTuple):
    total_timesteps: int
    algorithms: tuple[str, ...]
    env_ids: tuple[str, ...] = ("HalfCheetah-v4",)
    variants: tuple[str, ...] = ("",)  # "flag=value" each


TASKS = ("HalfCheetah-v4", "Ant-v4", "Humanoid-v4", "Hopper-v4")
COEFFICIENTS = tuple(f"entropy_coefficient={c}" for c in (0.1, 0.01, 0))
EXPERIMENTS = {
    "figure4": Experiment(8_000_000, ALGORITHMS, TASKS),  # and Figure 5, Table 3
    "figure6": Experiment(8_000_000, ("a2c",), variants=COEFFICIENTS),
    "figure7": Experiment(
        1_000_000, ("a2c", "reinforce"), variants=("num_epochs=1", "num_epochs=5")
    ),
    # Beside the same two of figure4, whose rate hardly falls
    "decay": Experiment(8_000_000, ("a2c", "ppo"), variants=("learning_rate_decay=1",)),
}


@dataclass(frozen=True, eq=False)
class Cell:
    """One training: a row of the experiment's plan."""

    experiment: str
    algorithm: str
    variant: str
    flags: tuple[str, ...]
    config: dict  # as these flags make it

    @property
    def name(self) -> str:
        words = self.config["env_id"], self.algorithm, self.variant
        return " ".join([*filter(None, words), f"seed {self.config['seed']}"])

    @property
    def identity(self) -> str:
        return identity(self.algorithm, self.config)

    def steps(self, run: Path | None) -> int:
        return min(progress(run), self.config["total_timesteps"]) if run else 0

    def done(self, run: Path | None) -> bool:
        return self.steps(run) == self.config["total_timesteps"]


# ── command line ────────────────────────────────────────────────────────────────────


class Parser(argparse.ArgumentParser):
    """One line for a mistake, instead of the whole usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser(about: str) -> Parser:
    """The flags that choose cells."""
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=about, formatter_class=style, allow_abbrev=False)
    add = parser.add_argument
    add("names", nargs="+", choices=EXPERIMENTS, help="the experiments")
    add("--total-timesteps", type=int, help="steps of each run; default: the paper's")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--env-id", nargs="+", help="default: the experiment's")
    add("--algorithm", nargs="+", choices=ALGORITHMS, help="default: the experiment's")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    add("--runs-dir", type=Path, default=Path("runs"), help="default: runs")
    return parser


def parse(parser: Parser, arguments: list[str] | None):
    """The options, and the cells that they choose."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, extra = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    cells = [make_cells(name, options, extra) for name in dict.fromkeys(options.names)]
    return options, [*chain(*cells)]


def make_cells(name: str, options, extra: list[str]) -> list[Cell]:
    """All cells of an experiment, the first seed of each before the second of any."""
    experiment, cells = EXPERIMENTS[name], []
    algorithms = options.algorithm or experiment.algorithms
    if missing := set(algorithms) - set(experiment.algorithms):
        has = ", ".join(experiment.algorithms)
        sys.exit(f"--algorithm {missing.pop()}: {name} has {has}")
    total = options.total_timesteps
    total = experiment.total_timesteps if total is None else total
    given = {word.split("=")[0].replace("_", "-") for word in extra}
    if reserved := given & RESERVED:
        sys.exit(f"{reserved.pop()} cannot stand after --: run.py sets it")
    env_ids = options.env_id or experiment.env_ids
    for algorithm, variant in product(dict.fromkeys(algorithms), experiment.variants):
        shared = ["--total-timesteps", str(total), "--precision", options.precision]
        shared += ["--eval-every", str(max(1, total // EVALUATIONS))]
        shared += [f"--{variant.replace('_', '-')}"] if variant else []
        usual = read_flags(algorithm, shared)
        for env_id, seed in product(dict.fromkeys(env_ids), options.seeds):
            flags = ("--env-id", env_id, "--seed", str(seed), *shared, *extra)
            config = read_flags(algorithm, flags)
            text = " ".join([variant] * bool(variant) + changes(config, usual))
            cells.append(Cell(name, algorithm, text, flags, config))
    return sorted(cells, key=lambda cell: options.seeds.index(cell.config["seed"]))


def read_flags(algorithm: str, flags: Iterable[str]) -> dict:
    """What config.json would have of them; the script complains if they are wrong."""
    config = importlib.import_module(algorithm).parse([*flags])
    return json.loads(json.dumps(asdict(config)))  # lists for tuples


def changes(config: dict, usual: dict) -> list[str]:
    """The settings of the algorithm that are not as usual, "name=value" each."""
    return [
        f"{name}={str(value).replace(' ', '')}"
        for name, value in config.items()
        if name not in NOT_SETTINGS and value != usual.get(name)
    ]


def begin(main) -> None:
    """Run a program; Ctrl-C ends it without a traceback."""
    sys.stdout.reconfigure(line_buffering=True)  # a file of it grows while it works
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def elsewhere(flag: str, given: Path | None, usual: Path, in_git: Path) -> Path:
    """The folder to write into, which is the one in git only if that is said."""
    if given is None and usual.resolve() == in_git.resolve():
        sys.exit(f"{flag}: {usual} is in git here; name it, or another folder")
    return given or usual


# ── runs on disk ────────────────────────────────────────────────────────────────────


def identity(algorithm: str, config: dict) -> str:
    """What the results of a run depend on."""
    config = {name: value for name, value in config.items() if name not in FREE}
    return json.dumps([algorithm, config], sort_keys=True)


def load_run(run: Path) -> tuple[str, dict]:
    """Algorithm and configuration of a run, by its config.json."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((run / "config.json").read_bytes())
        if content["algorithm"] in ALGORITHMS:
            return content["algorithm"], content["config"]
    sys.exit(f"{run} is not the folder of a run: it has no config.json of ours")


def find_runs(runs_dir: Path) -> dict[str, Path]:
    """The folder of each identity, the one that has come furthest."""
    runs = {}
    for path in runs_dir.glob("[!.]*/checkpoint.pt"):  # none can go on without
        with contextlib.suppress(SystemExit):  # another program's
            key, run = identity(*load_run(path.parent)), path.parent
            runs[key] = max(runs.get(key, run), run, key=progress)
    return runs


def progress(run: Path) -> int:
    """The last step in progress.csv, 0 where there is none."""
    try:
        names, *_, last = (run / "progress.csv").read_text().splitlines()
        return int(dict(zip(names.split(","), last.split(","), strict=False))["step"])
    except (OSError, ValueError, KeyError):
        return 0


def current_commit() -> str:
    """The commit of the scripts, marked if they differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = [*git, "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(head, capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    scripts = [f"{algorithm}.py" for algorithm in ALGORITHMS]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *scripts])
    return found.stdout.strip() + "-dirty" * changed.returncode


# ── running ─────────────────────────────────────────────────────────────────────────


class Job:
    """A script at work on a cell."""

    def __init__(self, cell: Cell, run: Path | None, commit: str, runs_dir, lock):
        self.cell, self.run, self.commit = cell, None, commit
        if run:
            self.set_run(run)
        name = re.sub(r"[^\w.=-]+", "_", f"{cell.experiment} {cell.name}")[:200]
        self.log = runs_dir / ".logs" / f"{name}.log"
        where = ["--resume", run] if run else ["--runs-dir", runs_dir]
        command = [sys.executable, ROOT / f"{cell.algorithm}.py", *cell.flags, *where]
        with open(self.log, "a") as log:
            print("$", *command, file=log, flush=True)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,  # Ctrl-C comes from us, and once
                pass_fds=[lock],  # held until the last training has ended
            )

    def set_run(self, run: Path) -> None:
        """Note the commit in commit.txt, which names all that this run had."""
        self.run, path = run, run / "commit.txt"
        known = path.read_text().split() if path.exists() else []
        path.write_text("\n".join([*dict.fromkeys([*known, self.commit]), ""]))

    def steps(self) -> int:
        """How far it has come; learns which folder a new run has made."""
        if not self.run:
            run = find_runs(self.log.parents[1]).get(self.cell.identity)
            if run:
                self.set_run(run)
        return self.cell.steps(self.run)

    def failure(self) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        head = f"FAILED {self.cell.name}, exit status {self.process.returncode}"
        return "\n    ".join([f"{head}; the end of {self.log}:", *tail])


class Runner:
    """The cells that wait, the jobs at work, and the display over all of them."""

    def __init__(self, cells: list[Cell], options, lock: int):
        self.cells, self.options, self.lock = cells, options, lock
        self.commit, found = current_commit(), find_runs(options.runs_dir)
        self.runs = {cell: found.get(cell.identity) for cell in cells}
        self.steps = {cell: cell.steps(run) for cell, run in self.runs.items()}
        self.waiting = [cell for cell in cells if not cell.done(self.runs[cell])]
        self.done, self.failed, self.jobs = len(cells) - len(self.waiting), [], []
        logs = options.runs_dir / ".logs"
        print(f"{len(cells)} runs, {self.done} of them done before; logs in {logs}")
        total = sum(cell.config["total_timesteps"] for cell in cells)
        shown = {"total": total, "initial": sum(self.steps.values()), "unit": " steps"}
        shown |= {"unit_scale": True, "smoothing": 0, "dynamic_ncols": True}
        self.bar = tqdm(**shown, disable=None)

    def start(self) -> None:
        """Give a free place to the next cell."""
        if not self.waiting or len(self.jobs) == self.options.jobs:
            return
        cell = self.waiting.pop(0)
        run, runs_dir = self.runs[cell], self.options.runs_dir
        self.jobs.append(Job(cell, run, self.commit, runs_dir, self.lock))
        self.bar.write(f"{'resumed' if run else 'started'} {cell.name}")

    def poll(self) -> None:
        """See what has ended and how far the others are."""
        for job in [*self.jobs]:
            ended = job.process.poll() is not None  # asked first: then steps are final
            self.steps[job.cell] = job.steps()
            if not ended:
                continue
            self.jobs.remove(job)
            if job.process.returncode or not job.cell.done(job.run):
                self.failed.append(job)
                self.bar.write(job.failure())
            else:
                self.done += 1
                self.bar.write(f"finished {job.cell.name} in {job.run}")
        counts = f"{self.done}/{len(self.cells)} done, {len(self.jobs)} running"
        self.bar.set_description(f"{counts}, {len(self.failed)} failed", refresh=False)
        self.bar.n = sum(self.steps.values())
        self.bar.refresh()

    def stop(self) -> None:
        """Have the scripts stop as at Ctrl-C; they can be resumed."""
        for job in self.jobs:
            job.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for job in self.jobs:
            try:
                job.process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(job.process.pid, signal.SIGKILL)  # harmless to what is saved
                job.process.wait()
            job.steps()  # the last chance to note the commit of a folder just made
        self.bar.close()


def run_cells(cells: list[Cell], options, lock: int) -> int:
    """Work through the cells; returns the exit status."""
    stopped, runner = [], Runner(cells, options, lock)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: stopped.append(number))
    try:
        while (runner.waiting or runner.jobs) and not stopped:
            runner.start()
            time.sleep(POLL_SECONDS)
            runner.poll()
        if stopped:
            runner.bar.write(f"stopping {len(runner.jobs)} running")
    finally:
        runner.stop()
    for job in runner.failed:
        print(f"failed: {job.cell.name}, see {job.log}")
    again = "; stopped, the same command goes on" if stopped else ""
    print(f"{runner.done} of {len(cells)} runs done{again}")
    return 130 if stopped else int(bool(runner.failed))


def check_environment(env_id: str) -> None:
    """Refuse one that no script can make, before anything is started."""
    script = importlib.import_module("ppo")
    env = script.make_environment(script.Config(env_id=env_id))
    with contextlib.suppress(Exception):  # some cannot be closed before a reset
        env.close()


@contextlib.contextmanager
def sole_user(runs_dir: Path):
    """A lock on the folder: two programs that start the same cells run them twice."""
    try:
        (runs_dir / ".logs").mkdir(parents=True, exist_ok=True)
        lock = os.open(runs_dir / ".lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        at_work = "another run.py, or a training that one left behind, is at work there"
        sys.exit(f"--runs-dir {runs_dir}: {at_work}")
    except OSError as error:
        sys.exit(f"--runs-dir {runs_dir}: {error.strerror}")
    try:
        yield lock
    finally:
        os.close(lock)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="at once; default: 1")
    options, cells = parse(parser, arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, not {options.jobs}")
    for env_id in dict.fromkeys(cell.config["env_id"] for cell in cells):
        check_environment(env_id)
    unique = {cell.identity: cell for cell in reversed(cells)}  # the first ones win
    with sole_user(options.runs_dir) as lock:
        return run_cells([*reversed(unique.values())], options, lock)


if __name__ == "__main__":
    begin(main)
