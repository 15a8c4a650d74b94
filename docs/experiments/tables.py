"""The tables of docs/results.md, from the CSVs that are in git.

    python docs/experiments/tables.py

Rewrites what stands between a line `<!-- NAME -->` and `<!-- end -->` there. A score is
the last evaluation's mean return, averaged over seeds, ± the std over seeds.
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev

from collect import RESULTS, read_csv
from run import ALGORITHMS, TASKS, Parser, begin

PAGE = Path(__file__).resolve().parents[1] / "results.md"
NAMES = dict(zip(ALGORITHMS, "REINFORCE A2C TRPO PPO V-MPO".split(), strict=True))
# Read off the paper's Figure 4 at 8 and 1 M steps, ± 10 %; PPO's are of its Table 3.
PAPER_8M = {
    "ppo": (6414, 5671, 7633, 2616),
    "vmpo": (5150, 2500, 900, 2400),
    "trpo": (4700, 3500, 800, 2200),
    "a2c": (4150, 970, 700, 2500),
    "reinforce": (1500, 850, 370, 600),
}
PAPER_1M = {
    "ppo": (4332, 1258, 700, 895),
    "vmpo": (2600, 1000, 450, 800),
    "trpo": (3500, 1600, 400, 1900),
    "a2c": (None,) * 4,
    "reinforce": (None,) * 4,
}
# Table 3: framework, MuJoCo version, million steps, then the tasks as in TASKS
TABLE_3 = (
    ("CleanRL", "v4", "1", 2906, None, 742, 2052),
    ("Baselines", "v1", "1", 1669, None, None, 2316),
    ("SB3", "v3", "1", 5819, 1327, None, 2410),
    ("RLlib", "v2", "44", 9664, None, None, None),
    ("ACME", "v2", "10", 6800, 5200, 6600, 2550),
    ("the paper", "v4", "1", *PAPER_1M["ppo"]),
    ("the paper", "v4", "8", *PAPER_8M["ppo"]),
)


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


def score(runs: list[list[dict]]) -> str:
    """Mean ± std over seeds of the last evaluation."""
    if not runs:
        return "–"
    values = [float(rows[-1]["return_mean"]) for rows in runs]
    text = f"{round(mean(values)):,}"  # no -0
    if len(values) > 1:
        text += f" ± {pstdev(values):,.0f} ({len(values)} seeds)"
    return text


def number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(stem: str, paper: dict[str, tuple]) -> str:
    """Ours and [the paper's], a row for each algorithm; ours *slanted* where lower."""
    runs, rows = read_runs(stem), []
    for algorithm, theirs in paper.items():
        row = [NAMES[algorithm]]
        for env_id, value in zip(TASKS, theirs, strict=True):
            found = runs[algorithm, "", env_id]
            text = score(found)
            if found and value:
                ours = mean(float(rows[-1]["return_mean"]) for rows in found)
                text = f"*{text}*" if ours < value else text
            row.append(f"{text} [{number(value)}]" if value or found else "–")
        rows.append(row)
    return table(["", *TASKS], rows)


def frameworks() -> str:
    """The paper's Table 3 and our column, as rows."""
    rows = [[*row[:3], *map(number, row[3:])] for row in TABLE_3]
    for stem, million in (("figure4_1M", "1"), ("figure4", "8")):
        runs = read_runs(stem)
        scores = [score(runs["ppo", "", env_id]) for env_id in TASKS]
        rows.append(["**ours**", "v4", million, *scores])
    return table(["", "MuJoCo", "million steps", *TASKS], rows)


def way(stem: str) -> str:
    """How each kind of run ended, the best that it had been, and its largest KL."""
    rows = []
    for (algorithm, variant, env_id), runs in read_runs(stem).items():
        best = [max(float(row["return_mean"]) for row in rows) for rows in runs]
        kl = [max(float(row["kl"]) for row in rows) for rows in runs]
        name = ", ".join(filter(None, [NAMES[algorithm], variant.replace("=", " ")]))
        row = [name, env_id, str(len(runs)), score(runs), f"{round(mean(best)):,}"]
        rows.append([*row, f"{max(kl):.1g}"])
    headers = ["", "environment", "seeds", "last evaluation", "best evaluation"]
    return table([*headers, "largest KL at an evaluation"], rows)


def provenance() -> str:
    """What each CSV's runs were made by, and how long one took."""
    rows = []
    for path in sorted(RESULTS.glob("*.csv")):
        runs = [runs for cell in read_runs(path.stem).values() for runs in cell]
        if not runs:
            continue
        last = [rows[-1] for rows in runs]
        minutes = [float(row["elapsed_seconds"]) / 60 for row in last]

        def values(name, last=last) -> str:
            return ", ".join(sorted({row[name] for row in last}))

        row = [f"`{path.name}`", str(len(runs)), values("precision"), values("commit")]
        row.append(f"{min(minutes):.0f} to {max(minutes):.0f}")
        row += [values(name) for name in ("torch", "gymnasium", "mujoco")]
        rows.append(row)
    headers = ["", "complete runs", "precision", "commit", "minutes a run"]
    return table([*headers, "torch", "gymnasium", "mujoco"], rows)


TABLES = {
    "cells at 8M": lambda: cells("figure4", PAPER_8M),
    "cells at 1M": lambda: cells("figure4_1M", PAPER_1M),
    "Table 3": frameworks,
    "Figure 7": lambda: way("figure7"),
    "provenance": provenance,
}


def main(arguments: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: results.md")
    page = parser.parse_args(arguments).page
    try:
        text = page.read_text()
        for name, make in TABLES.items():
            block = re.compile(
                rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.S
            )
            if len(block.findall(text)) != 1:
                sys.exit(f"{page} lacks <!-- {name} --> … <!-- end -->")
            filled = f"\n{make()}\n\n"
            text = block.sub(lambda match, f=filled: match[1] + f + match[2], text)
        page.write_text(text)
    except OSError as error:
        sys.exit(f"{page}: {error.strerror}")
    print(page)
    return 0


if __name__ == "__main__":
    begin(main)
