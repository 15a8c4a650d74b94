"""The tables of scores in README.md and docs/, from the CSVs that are in git.

    python docs/experiments/tables.py

Rewrites what stands between `<!-- NAME -->` and `<!-- end -->` in a page. A score is
the last evaluation's mean return, averaged over seeds, ± the std over seeds; before the
end it is taken from the line through the evaluations, as in a figure.
"""

import argparse
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, pstdev, stdev

import numpy as np
from collect import RESULTS, read_csv
from paper import PAPER_1M, PAPER_8M, TABLE_3
from run import ALGORITHMS, TASKS, Parser, begin

DRAWS = 2000  # bootstrap samples
ROOT = Path(__file__).resolve().parents[2]
NAMES = dict(zip(ALGORITHMS, "REINFORCE A2C TRPO PPO V-MPO".split(), strict=True))


def read_runs(stem: str) -> dict[tuple, list[list[dict]]]:
    """The complete runs of a CSV, their evaluations in order, by what they ran."""
    path, runs = RESULTS / f"{stem}.csv", defaultdict(list)
    for row in read_csv(path) if path.exists() else []:
        key = row["algorithm"], row["variant"], row["env_id"]
        runs[*key, row["seed"]].append(row)
    cells = defaultdict(list)
    for (*key, _), rows in runs.items():
        rows.sort(key=lambda row: int(row["step"]))
        if int(rows[-1]["step"]) >= int(rows[-1]["total_timesteps"]):
            cells[*key].append(rows)
    return cells


def mean_score(returns: list[float]) -> str:
    """Mean over seeds."""
    return f"{round(mean(returns)):,}" if returns else "–"  # no -0


def score(returns: list[float]) -> str:
    """Mean ± std over seeds."""
    text = mean_score(returns)
    if len(returns) > 1:
        text += f" ± {pstdev(returns):,.0f} ({len(returns)} seeds)"
    return text


def last_returns(runs: list[list[dict]]) -> list[float]:
    return [float(rows[-1]["return_mean"]) for rows in runs]


def returns_at(step: float, runs: list[list[dict]]) -> list[float]:
    """On each run's line through its evaluations, as a figure has it."""
    columns = "step", "return_mean"
    lines = [[[float(row[name]) for row in rows] for name in columns] for rows in runs]
    return [float(np.interp(step, *line)) for line in lines]


def number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(paper: dict[str, tuple], score=score, read: Callable = last_returns) -> str:
    """Ours and [the paper's], a row for each algorithm; ours *slanted* where lower."""
    runs, rows = read_runs("figure4"), []
    for algorithm, theirs in paper.items():
        row = [NAMES[algorithm]]
        for env_id, value in zip(TASKS, theirs, strict=True):
            found = read(runs[algorithm, "", env_id])
            text = score(found)
            if found and mean(found) < value:
                text = f"*{text}*"
            row.append(f"{text} [{value:,}]")
        rows.append(row)
    return table(["", *TASKS], rows)


def shortfalls(paper: dict[str, tuple]) -> str:
    """The cells whose mean is below the paper's: by how much of that, and of their own
    standard error, the std of a mean over so many seeds.
    """
    runs, rows = read_runs("figure4"), []
    for algorithm, theirs in paper.items():
        for env_id, value in zip(TASKS, theirs, strict=True):
            ours = last_returns(runs[algorithm, "", env_id])
            if not ours or mean(ours) >= value:
                continue
            below, errors = value - mean(ours), "–"
            if len(ours) > 1:
                errors = f"{below / (stdev(ours) / math.sqrt(len(ours))):.1f}"
            row = [NAMES[algorithm], env_id, str(len(ours)), mean_score(ours)]
            rows.append([*row, f"{value:,}", f"{100 * below / value:.1f} %", errors])
    headers = ["", "environment", "seeds", "mean", "the paper", "below it by"]
    return table([*headers, "standard errors"], rows)


def ratios(paper: dict[str, tuple]) -> str:
    """Last returns over the paper's, by algorithm and in all: how many cells' means are
    not below 1; then, of as many first seeds as all cells have, the interquartile mean,
    and what other seeds in the same cells could make of it.
    """
    runs, cells = read_runs("figure4"), defaultdict(list)
    for algorithm, theirs in paper.items():
        for env_id, value in zip(TASKS, theirs, strict=True):
            ours = last_returns(runs[algorithm, "", env_id])
            if ours:
                cells[NAMES[algorithm]].append([x / value for x in ours])
    cells["**all**"] = [cell for row in cells.values() for cell in row]
    rows = []
    for name, row in cells.items():
        count = min(map(len, row), default=0)  # of seeds that all these cells have
        if not count:
            continue
        above = sum(mean(cell) >= 1 for cell in row)
        scores = np.array([cell[:count] for cell in row]).T
        text = [f"{len(row)}", f"{above}", f"{count}"]
        rows.append([name, *text, *interquartile_mean(scores)])
    headers = ["", "environments", "not below the paper", "first seeds of each"]
    return table([*headers, "interquartile mean", "95 % interval"], rows)


def interquartile_mean(scores: np.ndarray) -> tuple[str, str]:
    """Of [seeds, cells], with its bootstrap interval over the seeds in each cell."""
    from rliable import library, metrics  # only here: it takes seconds

    np.random.seed(0)  # noqa: NPY002, the generator that rliable draws from
    points, intervals = library.get_interval_estimates(
        {"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=DRAWS
    )
    low, high = intervals[""].ravel()
    known = len(scores) > 1  # one seed cannot be drawn otherwise
    return f"{points[''][0]:.2f}", f"{low:.2f} to {high:.2f}" if known else "–"


def ends() -> str:
    """How each complete run ended, the best that it had been, and what it took."""
    runs, rows = read_runs("figure4"), []
    for algorithm, env_id in product(PAPER_8M, TASKS):
        cell = sorted(runs[algorithm, "", env_id], key=lambda r: int(r[0]["seed"]))
        for evaluations in cell:
            returns = [float(row["return_mean"]) for row in evaluations]
            last, std = evaluations[-1], float(evaluations[-1]["return_std"])
            row = [NAMES[algorithm], env_id, last["seed"]]
            row += [f"{returns[-1]:,.0f} ± {std:,.0f}", f"{max(returns):,.0f}"]
            row.append(f"{float(last['elapsed_seconds']) / 60:.0f}")
            rows.append([*row, last["precision"], last["mujoco"], last["commit"]])
    headers = ["", "environment", "seed", "last evaluation", "best evaluation"]
    return table([*headers, "minutes", "precision", "mujoco", "commit"], rows)


def distinct(rows: list[dict], column: str) -> str:
    return ", ".join(sorted({row[column] for row in rows}))


def frameworks() -> str:
    """The paper's Table 3 and our column, as rows."""
    rows = [[*row[:3], *map(number, row[3:])] for row in TABLE_3]
    runs = [read_runs("figure4")["ppo", "", env_id] for env_id in TASKS]
    for million, read in (("1", partial(returns_at, 1e6)), ("8", last_returns)):
        rows.append(["**ours**", "v4", million, *map(score, map(read, runs))])
    return table(["", "MuJoCo", "million steps", *TASKS], rows)


def way(stem: str) -> str:
    """How each kind of run ended, the best that it had been, and its largest KL."""
    rows = []
    for (algorithm, variant, env_id), runs in read_runs(stem).items():
        best = [max(float(row["return_mean"]) for row in rows) for rows in runs]
        kl = [max(float(row["kl"]) for row in rows) for rows in runs]
        name = ", ".join(filter(None, [NAMES[algorithm], variant.replace("=", " ")]))
        ended = score(last_returns(runs))
        row = [name, env_id, str(len(runs)), ended, f"{round(mean(best)):,}"]
        rows.append([*row, f"{max(kl):.1g}"])
    headers = ["", "environment", "seeds", "last evaluation", "best evaluation"]
    return table([*headers, "largest KL at an evaluation"], rows)


def decay() -> str:
    """Mean and seeds of HalfCheetah's last evaluations, with and without a decay."""
    usual, falling, rows = read_runs("figure4"), read_runs("decay"), []
    for algorithm in ("a2c", "ppo"):
        row, paper = [NAMES[algorithm]], PAPER_8M[algorithm][0]
        for runs, variant in ((usual, ""), (falling, "learning_rate_decay=1")):
            found = last_returns(runs[algorithm, variant, TASKS[0]])
            seeds = ", ".join(f"{round(value):,}" for value in found)
            row.append(f"{score(found)}: {seeds}" if len(found) > 1 else score(found))
        rows.append([*row, number(paper)])
    return table(["", "0.005, the default", "1, to zero", "the paper"], rows)


def provenance() -> str:
    """What each CSV's runs were made by, and how long one took."""
    rows = []
    for path in sorted(RESULTS.glob("*.csv")):
        runs = [runs for cell in read_runs(path.stem).values() for runs in cell]
        if not runs:
            continue
        last = [rows[-1] for rows in runs]
        minutes = sorted(round(float(row["elapsed_seconds"]) / 60) for row in last)

        row = [f"`{path.name}`", str(len(runs))]
        row += [distinct(last, name) for name in ("precision", "commit")]
        row.append(" to ".join(map(str, dict.fromkeys([minutes[0], minutes[-1]]))))
        row += [distinct(last, name) for name in ("torch", "gymnasium", "mujoco")]
        rows.append(row)
    headers = ["", "complete runs", "precision", "commit", "minutes a run"]
    return table([*headers, "torch", "gymnasium", "mujoco"], rows)


PAGES = {
    "README.md": {"scores": lambda: cells(PAPER_8M, mean_score)},
    "docs/results.md": {
        "cells at 8M": lambda: cells(PAPER_8M),
        "below the paper": lambda: shortfalls(PAPER_8M),
        "over the paper": lambda: ratios(PAPER_8M),
        "runs at 8M": ends,
        "cells at 1M": lambda: cells(PAPER_1M, read=partial(returns_at, 1e6)),
        "Table 3": frameworks,
        "Figure 6": lambda: way("figure6"),
        "Figure 7": lambda: way("figure7"),
        "provenance": provenance,
    },
    "docs/hyperparameters.md": {"decay": decay},
}


def main(arguments: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style)
    where = f"folder of {', '.join(PAGES)}; default: the repository"
    parser.add_argument("--root", type=Path, default=ROOT, help=where)
    root = parser.parse_args(arguments).root
    for page, tables in PAGES.items():
        try:
            fill(root / page, tables)
        except OSError as error:
            sys.exit(f"{root / page}: {error.strerror}")
        print(root / page)
    return 0


def fill(page: Path, tables: dict[str, Callable[[], str]]) -> None:
    """Put each table where the page has its name."""
    text = page.read_text()
    for name, make in tables.items():
        block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
        if len(block.findall(text)) != 1:
            sys.exit(f"{page} lacks <!-- {name} --> … <!-- end -->")
        filled = f"\n{make()}\n\n"
        text = block.sub(lambda match, f=filled: match[1] + f + match[2], text)
    page.write_text(text)


if __name__ == "__main__":
    begin(main)
