"""How fast the five scripts are: beside Stable-Baselines3, and beside the machine.

    python docs/benchmark/speed.py
    python docs/benchmark/speed.py --env-id Hopper-v4 --algorithm ppo a2c --repeats 5
    python docs/benchmark/speed.py --profile

Writes speed.csv, a row for each measurement, speed.json, what was measured on what, and
the chart speed.png and speed.svg, into benchmark/ of the folder where it is called or
into --output; prints the tables. Flags after `--` are the scripts'. The results in git
are of a whole measurement: `--output docs/benchmark` refuses a part of one.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "experiments"))

from run import (  # noqa: E402
    ALGORITHMS,
    ROOT,
    TASKS,
    Parser,
    begin,
    check_environment,
    current_commit,
    elsewhere,
    read_flags,
)

PEERS = {"ppo": "SB3", "a2c": "SB3", "trpo": "sb3-contrib"}
NAMES = {"ppo": "PPO", "a2c": "A2C", "trpo": "TRPO"}
NAMES |= {"vmpo": "V-MPO", "reinforce": "REINFORCE"}
PACKAGES = ["torch", "gymnasium", "mujoco", "numpy"]
PEER_PACKAGES = [*PACKAGES, "stable-baselines3", "sb3-contrib"]
MEASURED = ["steps_per_second", "rollout_steps_per_second", "update_steps_per_second"]
MEASURED += ["peak_memory_mib", "startup_seconds"]


class Cell(NamedTuple):
    """What a process measures."""

    env_id: str
    algorithm: str
    precision: str
    implementation: str  # ours, peer, limit; help: how long `ppo.py --help` takes


COLUMNS = [*Cell._fields, "repeat", *MEASURED]


# ── command line ────────────────────────────────────────────────────────────────────


def parse(arguments: list[str] | None):
    """The options, and the flags for the scripts."""
    arguments = sys.argv[1:] if arguments is None else arguments
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style, allow_abbrev=False)
    add, kinds = parser.add_argument, ("float32", "bfloat16")
    add("--env-id", nargs="+", default=TASKS, help="default: the paper's four")
    add("--algorithm", nargs="+", choices=ALGORITHMS, default=[*NAMES])
    about = "default: float32, and bfloat16 of PPO"
    add("--precision", nargs="+", choices=kinds, help=about)
    add("--repeats", type=int, default=3, help="of everything; default: 3")
    add("--iterations", type=int, default=1, help="in each measurement; default: 1")
    add("--threads", type=int, default=2, help="of a measurement; default: 2")
    peers = ROOT / ".peers" / "bin" / "python"
    add("--peer-python", type=Path, default=peers, help="default: .peers/bin/python")
    add("--no-peers", action="store_true", help="measure our scripts alone")
    add("--output", type=Path, help="folder; default: benchmark")
    add("--redraw", action="store_true", help="tables and chart of its speed.csv again")
    add("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments[:cut])
    for name in ("repeats", "iterations", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    options.output = elsewhere("--output", options.output, Path("benchmark"), FOLDER)
    flags, whole = arguments[cut + 1 :], parser.parse_args([])
    free = {"peer_python": 0, "output": 0, "redraw": 0, "profile": 0}
    part = bool(flags) or vars(whole) | free != vars(options) | free
    if part and options.output.resolve() == FOLDER and not options.redraw:
        parser.error(f"--output {options.output} has the results in git, of the whole")
    return options, flags


def peer_versions(options) -> dict[str, str]:
    """Of the peers and what they run on; refuses an environment without them."""
    code = "import json, sys; from importlib.metadata import version\n"
    code += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    command = [options.peer_python, "-c", code, *PEER_PACKAGES]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(found.stdout)
    except (OSError, subprocess.CalledProcessError):
        make = "python3 -m venv .peers && "
        make += ".peers/bin/pip install -r docs/benchmark/requirements.txt"
        text = f"--peer-python {options.peer_python}: no Stable-Baselines3, sb3-contrib"
        text += f" there; make it, in the root of the repository: {make}; or --no-peers"
        sys.exit(text)


class Job(NamedTuple):
    """A process, and the cells that it measures."""

    cells: list[Cell]
    request: dict


def make_jobs(options, flags: list[str]) -> list[Job]:
    """What to measure, ours beside its peer, and in their midst the limit."""
    jobs = [Job([Cell("", "ppo", "", "help")], {})]
    for env_id in dict.fromkeys(options.env_id):
        check_environment(env_id)
        near = []
        for algorithm in dict.fromkeys(options.algorithm):
            usual = ["float32", "bfloat16"][: 2 if algorithm == "ppo" else 1]
            precisions = options.precision or usual
            if algorithm == "reinforce":  # has no critic, which is what it is for
                precisions = precisions[:1]
            for i, precision in enumerate(dict.fromkeys(precisions)):
                words = ["--env-id", env_id, "--precision", precision, *flags]
                request = {"algorithm": algorithm, "flags": words}
                request |= {"config": read_flags(algorithm, words)}
                request["iterations"] = options.iterations
                near.append(Job([Cell(env_id, algorithm, precision, "ours")], request))
                if i == 0 and algorithm in PEERS and not options.no_peers:
                    cell = Cell(env_id, algorithm, "float32", "peer")
                    near.append(Job([cell], request))
        ours = [job for job in near if job.cells[0].implementation == "ours"]
        cells = [job.cells[0]._replace(implementation="limit") for job in ours]
        of = [(job.request["algorithm"], job.request["config"]) for job in ours]
        near.insert(len(near) // 2, Job(cells, {"of": of}))
        jobs += near
    return jobs


# ── measuring ───────────────────────────────────────────────────────────────────────


def run(command: list, name: str, options) -> tuple[str, float]:
    """What a process prints and the seconds that it takes."""
    kinds = "OMP", "MKL", "OPENBLAS"
    threads = {f"{kind}_NUM_THREADS": str(options.threads) for kind in kinds}
    ways = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    start = time.perf_counter()
    process = subprocess.run(command, **ways, env=os.environ | threads)
    if process.returncode:
        *_, last = ["no message", *process.stderr.strip().splitlines()]
        sys.exit(f"{name} ended with status {process.returncode}: {last}")
    return process.stdout, time.perf_counter() - start


def measure(kind: str, request: dict, name: str, options) -> list[dict]:
    """What measure.py answers, for each of the cells."""
    if kind == "help":
        command = [sys.executable, ROOT / "ppo.py", "--help"]
        return [{"startup_seconds": run(command, name, options)[1]}]
    python = options.peer_python if kind == "peer" else sys.executable
    content = json.dumps(request | {"started": time.time()})
    command = [python, FOLDER / "measure.py", kind, content]
    return json.loads(run(command, name, options)[0].splitlines()[-1])


def measure_all(jobs: list[Job], path: Path, options) -> None:
    """Repeat everything; each row is on disk before the next is measured."""
    with open(path, "w", newline="") as file:
        writer, start = csv.DictWriter(file, COLUMNS), time.perf_counter()
        writer.writeheader()
        for repeat in range(options.repeats):
            # There and back: what a process leaves to the next one falls on both sides.
            for job in jobs[:: -1 if repeat % 2 else 1]:
                first = job.cells[0]
                name = " ".join(filter(None, first))
                rows = measure(first.implementation, job.request, name, options)
                for cell, row in zip(job.cells, rows, strict=True):
                    row = {key: f"{value:.6g}" for key, value in row.items()}
                    writer.writerow(cell._asdict() | {"repeat": repeat} | row)
                file.flush()
                passed = time.perf_counter() - start
                print(f"{passed:5.0f} s: repeat {repeat + 1}, {name}", file=sys.stderr)


def describe(options, flags: list[str], peers: dict[str, str]) -> dict:
    """The machine and the software of a measurement."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": current_commit(),
        "processor": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "peer_versions": peers,
        "threads": options.threads,
        "iterations": options.iterations,
        "flags": flags,
    }


# ── results ─────────────────────────────────────────────────────────────────────────


def read_results(path: Path) -> dict[Cell, dict[str, dict[str, float]]]:
    """Value by cell, column and repeat."""
    results = defaultdict(lambda: defaultdict(dict))
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                cell = Cell(*(row[name] for name in Cell._fields))
                for name in MEASURED:
                    if row[name]:
                        results[cell][name][row["repeat"]] = float(row[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} is not a speed.csv: {error}")
    if not any(cell.env_id for cell in results):
        sys.exit(f"{path} has no measurement yet")
    return results


def comparison(cell: Cell) -> tuple[Cell | None, str]:
    """What ours is compared with, if anything, and whose it is."""
    if cell.algorithm in PEERS:
        peer = cell._replace(implementation="peer", precision="float32")
        return peer, PEERS[cell.algorithm]
    if cell.algorithm == "vmpo":
        return cell._replace(algorithm="ppo"), "our PPO"
    return None, "–"


def spread(values, form: str) -> str:
    """Median and range."""
    low, middle, high = (form.format(f(values)) for f in (min, median, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def table(title: str, headers: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join([f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines)])


def tables(results) -> str:
    """Medians with their range, and ratios of what was measured in the same repeat."""

    def value(cell, column, form="{:,.0f}") -> str:
        values = results[cell][column] if cell in results else {}
        return spread(values.values(), form) if values else "–"

    def ratio(cell, other, column, form) -> str:
        ours = results[cell][column]
        theirs = results[other][column] if other in results else {}
        ratios = [ours[i] / theirs[i] for i in ours if i in theirs]
        return spread(ratios, form) if ratios else "–"

    speeds, memory = {name: [] for name in MEASURED[:3]}, []
    for cell in [cell for cell in results if cell.implementation == "ours"]:
        (other, peer), limit = comparison(cell), cell._replace(implementation="limit")
        name = [cell.env_id, NAMES[cell.algorithm], cell.precision]
        for column, rows in speeds.items():
            row = [*name, value(cell, column), value(other, column), peer]
            row.append(ratio(cell, other, column, "{:.2f}"))
            row += [value(limit, column), ratio(cell, limit, column, "{:.0%}")]
            rows.append(row)
        row = [value(c, "peak_memory_mib") for c in (cell, other)]
        row += [value(c, "startup_seconds", "{:.1f}") for c in (cell, other)]
        memory.append([*name, *row, peer])
    key = ["environment", "algorithm", "precision"]
    headers = [*key, "ours", "theirs", "who", "ours / theirs", "limit", "of the limit"]
    titles = "Steps per second", "Rollout, steps per second", "Update, steps per second"
    texts = [table(t, headers, r) for t, r in zip(titles, speeds.values(), strict=True)]
    headers = [*key, "MiB, ours", "theirs", "start-up s, ours", "theirs", "who"]
    texts.append(table("Peak memory, and seconds to the first step", headers, memory))
    waited = value(Cell("", "ppo", "", "help"), "startup_seconds", "{:.1f}")
    return "\n".join([*texts, f"\n`python ppo.py --help` takes {waited} s."])


# ── chart ───────────────────────────────────────────────────────────────────────────

# Colours of Okabe and Ito; the hatches tell the bars apart without any.
BARS = {  # by precision and implementation
    ("float32", "ours"): {"label": "ours", "color": "#0072B2"},
    ("bfloat16", "ours"): {"label": "ours, bfloat16", "color": "#56B4E9"},
    ("float32", "peer"): {"label": "SB3, sb3-contrib", "color": "#E69F00"},
}
BARS["bfloat16", "ours"]["hatch"], BARS["float32", "peer"]["hatch"] = "//", ".."
LIMIT = "the machine's limit"


def draw_panel(axes, results, env_id: str, algorithms: list[str]) -> dict:
    """The bars of an environment, limits as frames; returns them by label."""
    handles = {}
    for x, algorithm in enumerate(algorithms):
        bars = [(Cell(env_id, algorithm, *kind), look) for kind, look in BARS.items()]
        bars = [(cell, look) for cell, look in bars if cell in results]
        for i, (cell, look) in enumerate(bars):
            at = x + 0.27 * (i - (len(bars) - 1) / 2)
            values = [*results[cell][MEASURED[0]].values()]
            middle = median(values)
            error = [[middle - min(values)], [max(values) - middle]]
            bar = {"width": 0.25, "edgecolor": "white", "linewidth": 0} | look
            handles[look["label"]] = axes.bar(at, middle, yerr=error, capsize=2, **bar)
            limit = cell._replace(implementation="limit")
            if cell.implementation == "ours" and limit in results:
                height = median(results[limit][MEASURED[0]].values())
                bar = {"width": 0.25, "fill": False, "edgecolor": "black"}
                handles[LIMIT] = axes.bar(at, height, linestyle=":", **bar)
    axes.set(title=env_id, ylabel="steps per second")
    axes.set_xticks(range(len(algorithms)), [NAMES[name] for name in algorithms])
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def draw(results, path: Path) -> None:
    """A panel for each environment, as PNG and SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    env_ids = [*dict.fromkeys(cell.env_id for cell in results if cell.env_id)]
    algorithms = {cell.algorithm for cell in results if cell.env_id}
    algorithms = [name for name in NAMES if name in algorithms]
    down, across = -(-len(env_ids) // 2), min(2, len(env_ids))
    matplotlib.rcParams |= {"font.size": 9, "svg.hashsalt": "speed"}
    figure = Figure((4.6 * across, 2.8 * down + 0.5), layout="constrained")
    grid, handles = figure.subplots(down, across, squeeze=False).ravel(), {}
    for axes in grid[len(env_ids) :]:
        axes.remove()
    for axes, env_id in zip(grid, env_ids, strict=False):
        handles |= draw_panel(axes, results, env_id, algorithms)
    labels = [look["label"] for look in BARS.values()] + [LIMIT]
    labels = [label for label in labels if label in handles]
    legend = {"loc": "outside lower center", "ncols": 2 * across, "frameon": False}
    figure.legend([handles[label] for label in labels], labels, **legend)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


# ── main ────────────────────────────────────────────────────────────────────────────


def show_profile(job: Job, options) -> None:
    """A table of where the time of an iteration goes."""
    cell = job.cells[0]
    (seconds,) = measure("profile", job.request, f"profile {' '.join(cell)}", options)
    total = sum(seconds.values())
    rows = [[k, f"{1000 * s:,.0f}", f"{s / total:.1%}"] for k, s in seconds.items()]
    rows.append(["together", f"{1000 * total:,.0f}", "100 %"])
    title = f"{NAMES[cell.algorithm]}, {cell.env_id}, {cell.precision}, one iteration"
    print(table(title, ["", "ms", "share"], rows))


def main(arguments: list[str] | None = None) -> int:
    options, flags = parse(arguments)
    if not options.profile and not importlib.util.find_spec("matplotlib"):
        sys.exit("needs matplotlib: pip install -r docs/requirements.txt")
    path = options.output / "speed.csv"
    try:
        if not options.redraw:
            options.no_peers |= options.profile
            peers = {} if options.no_peers else peer_versions(options)
            jobs = make_jobs(options, flags)
            if options.profile:
                kinds = [job.cells[0].implementation for job in jobs]
                show_profile(jobs[kinds.index("ours")], options)
                return 0
            about = json.dumps(describe(options, flags, peers), indent=2) + "\n"
            options.output.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").write_text(about)
            measure_all(jobs, path, options)
        results = read_results(path)
        print(tables(results))
        draw(results, path)
    except OSError as error:
        sys.exit(f"--output {options.output}: {error}")
    print(f"\n{path}, and beside it speed.json, speed.png and speed.svg")
    return 0


if __name__ == "__main__":
    begin(main)
