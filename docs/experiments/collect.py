"""The evaluations of an experiment's runs in one CSV: the only run data in git.

    python docs/experiments/collect.py figure7
    python docs/experiments/collect.py figure4 --seeds 0 --total-timesteps 1_000_000

Takes the words that run.py was given and writes results/figure7.csv, in the folder
where it is called unless --out names another, or results/figure4_1M.csv where runs are
of another length than the paper's. `--out docs/experiments/results` for those in git.
Rows that are in the file already stay there if they are of other cells, or of a run
that went further than the one in --runs-dir.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from run import (
    ALGORITHMS,
    EXPERIMENTS,
    begin,
    elsewhere,
    find_runs,
    make_parser,
    parse,
)

RESULTS = Path(__file__).parent / "results"
CELL = ["algorithm", "variant", "env_id", "seed"]
VERSIONS = ["torch", "gymnasium", "mujoco", "numpy"]
MEASURED = ["step", "return_mean", "return_std", "kl", "elapsed_seconds"]
COLUMNS = ["experiment", *CELL, "total_timesteps", "precision", *MEASURED]
COLUMNS += ["commit", *VERSIONS]


def read_run(run: Path, experiment: str, algorithm: str, variant: str) -> list[dict]:
    """A row for each evaluation in progress.csv; none if there is no such file yet."""
    if not (run / "progress.csv").exists():
        return []
    content, commit = json.loads((run / "config.json").read_text()), run / "commit.txt"
    config = content["config"]
    row = {"experiment": experiment, "algorithm": algorithm, "variant": variant}
    row |= {n: config[n] for n in ("env_id", "seed", "total_timesteps", "precision")}
    row["commit"] = "+".join(commit.read_text().split()) if commit.exists() else ""
    row |= {name: content.get(name, "") for name in VERSIONS}
    names = ["step", "eval/return_mean", "eval/return_std", "train/kl"]
    names.append("time/elapsed_seconds")
    try:
        with open(run / "progress.csv", newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["eval/return_mean"]]
        values = [[float(line[name]) for name in names] for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"{run / 'progress.csv'} is damaged: {error}")
    return [
        row
        | {"step": int(step), "elapsed_seconds": f"{seconds:.0f}"}
        | dict(zip(MEASURED[1:4], (f"{x:.6g}" for x in rest), strict=True))
        for step, *rest, seconds in values
    ]


def read_csv(path: Path) -> list[dict]:
    """The rows of a file that this program wrote."""
    try:
        with open(path, newline="") as file:
            rows = [*csv.DictReader(file)]
        for row in rows:
            [float(row[name]) for name in ("seed", "total_timesteps", *MEASURED)]
        known = {row["algorithm"] for row in rows} <= {*ALGORITHMS}
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}")
    except (csv.Error, KeyError, TypeError, ValueError):
        known = False
    if not known or not rows or [*rows[0]] != COLUMNS:
        sys.exit(f"{path} is not a whole file of collect.py's")
    return rows


def cell_of(row: dict) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in CELL)


def last_steps(rows: list[dict]) -> dict[tuple, int]:
    """How far the run of each cell went; 0 if there is none."""
    last = defaultdict(int)
    for row in rows:
        last[cell_of(row)] = max(last[cell_of(row)], int(row["step"]))
    return last


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    text = "folder for the CSVs; default: results"
    parser.add_argument("--out", type=Path, help=text)
    options, cells = parse(parser, arguments)
    options.out = elsewhere("--out", options.out, Path("results"), RESULTS)
    runs = find_runs(options.runs_dir)
    for name in options.names:
        chosen, new = [cell for cell in cells if cell.experiment == name], []
        found = [(cell, runs.get(cell.identity)) for cell in chosen]
        for cell, run in found:
            new += read_run(run, name, cell.algorithm, cell.variant) if run else []
        if not new:
            sys.exit(f"--runs-dir {options.runs_dir}: no evaluations of {name}")
        total = chosen[0].config["total_timesteps"]
        usual = total == EXPERIMENTS[name].total_timesteps
        path = options.out / f"{name}{'' if usual else f'_{total / 1e6:g}M'}.csv"
        old = read_csv(path) if path.exists() else []
        before, now = last_steps(old), last_steps(new)
        keys = {cell for cell in now if now[cell] >= before[cell]}
        new = [row for row in new if cell_of(row) in keys]
        rows = new + [row for row in old if cell_of(row) not in keys]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda r: (*cell_of(r), int(r["step"]))))
        done = sum(cell.done(run) for cell, run in found)
        print(f"{path}: {len(keys)} of {len(chosen)} runs, {done} of them complete")
    return 0


if __name__ == "__main__":
    begin(main)
