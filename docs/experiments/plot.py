"""The paper's figures from our runs, and what the paper lacks: intervals.

    python docs/experiments/plot.py                      # the CSVs that are in git
    python docs/experiments/plot.py runs/* --out figures # any runs or CSVs of your own

Writes PNG and SVG. Lines are means over seeds, bands ± one standard deviation.
"""

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from collect import RESULTS, read_csv, read_run
from matplotlib.figure import Figure
from run import ALGORITHMS, TASKS, Parser, begin, changes, load_run, read_flags

FIGURES = Path(__file__).parent / "figures"
NAMES = dict(zip(ALGORITHMS, "REINFORCE A2C TRPO PPO V-MPO".split(), strict=True))
# Colours of Okabe and Ito; the dashes tell the lines apart without any.
STYLES = [
    {"color": "#000000", "linestyle": ":"},
    {"color": "#E69F00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
    {"color": "#CC79A7", "linestyle": (0, (3, 1))},
    {"color": "#56B4E9", "linestyle": (0, (8, 2))},
]
AXES = {"return_mean": "Episode reward", "kl": "KL divergence"}
DRAWS = 2000  # bootstrap samples

matplotlib.rcParams |= {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "policy gradients",  # the same file each time
}

# ── data ────────────────────────────────────────────────────────────────────────────


def read_runs(folders: list[Path]) -> list[dict]:
    """Evaluations of any runs; their variant is what differs from the defaults."""
    rows, runs = [], [(folder, *load_run(folder)) for folder in folders]
    lengths = {config["total_timesteps"] for _, _, config in runs}
    for folder, algorithm, config in runs:
        words = changes(config, read_flags(algorithm, []))
        if len(lengths) > 1:  # the learning rate falls over it
            words.append(f"{config['total_timesteps'] / 1e6:g}M")
        found = read_run(folder, folder.name, algorithm, " ".join(words))
        if not found:
            print(f"{folder}: left out, no evaluation yet", file=sys.stderr)
        rows += found
    return rows


class Run:
    """The evaluations of one run, as arrays."""

    def __init__(self, rows: list[dict]):
        first, self.seed = rows[0], int(rows[0]["seed"])
        self.series = first["algorithm"], first["variant"]
        self.env_id = first["env_id"]
        for name in ("step", *AXES):
            setattr(self, name, np.array([float(row[name]) for row in rows]))
        self.complete = self.step[-1] >= float(first["total_timesteps"])


def to_runs(rows: list[dict]) -> list[Run]:
    """One a seed and folder, in the order that legends and panels have."""
    groups = defaultdict(list)
    for row in rows:
        names = "experiment", "algorithm", "variant", "env_id", "seed"
        groups[tuple(str(row[name]) for name in names)].append(row)
    runs, known = [*map(Run, groups.values())], [*TASKS]
    known += sorted({run.env_id for run in runs} - {*TASKS})
    return sorted(
        runs, key=lambda r: (known.index(r.env_id), ALGORITHMS.index(r.series[0]))
    )


def over_seeds(runs: list[Run], column: str) -> tuple[np.ndarray, ...]:
    """Steps, mean, std and minimum, up to where the shortest of the runs has come."""
    end = min(run.step[-1] for run in runs)
    steps = np.unique(np.concatenate([run.step for run in runs]))
    steps = steps[steps <= end]
    values = [np.interp(steps, run.step, getattr(run, column)) for run in runs]
    return steps, np.mean(values, 0), np.std(values, 0), np.min(values, 0)


def label(series: tuple[str, str]) -> str:
    """As in the paper: "A2C, 5 epochs"."""
    algorithm, variant = series
    words = [re.sub(r"num_(\w+)=(\S+)", r"\2 \1", word) for word in variant.split()]
    words = [re.sub(r"^1 (\w+)s$", r"1 \1", word) for word in words]
    words = [word.replace("_", " ").replace("=", " ") for word in words]
    return ", ".join([NAMES[algorithm], *words])


# ── figures ─────────────────────────────────────────────────────────────────────────


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=200)
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    print(f"{path}.png, {path.name}.svg")


def styles(series: list[tuple[str, str]]) -> dict:
    """An algorithm looks the same in every figure that has it once."""
    once = len({algorithm for algorithm, _ in series}) == len(series)
    indices = [ALGORITHMS.index(s[0]) if once else i for i, s in enumerate(series)]
    return {s: STYLES[i % len(STYLES)] for s, i in zip(series, indices, strict=True)}


def draw_curves(runs: list[Run], panels: list[tuple[str, str]], path: Path) -> None:
    """A panel for each (environment, column), a line for each algorithm and variant."""
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((3.6 * across, 2.7 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    style, lines = styles([*dict.fromkeys(run.series for run in runs)]), {}
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (env_id, column) in zip(grid, panels, strict=False):
        for series, look in style.items():
            same = [r for r in runs if (r.env_id, r.series) == (env_id, series)]
            if not same:
                continue
            steps, mean, std, lowest = over_seeds(same, column)
            low = mean - std
            if column == "kl":  # a logarithmic axis has no room for values below 0
                low, mean = np.maximum(low, lowest), np.where(mean > 0, mean, np.nan)
            steps = steps / 1e6
            look = look | {"marker": "." if len(steps) == 1 else None}
            (lines[series],) = axes.plot(steps, mean, label=label(series), **look)
            if len(same) > 1:
                shade = {"color": look["color"], "alpha": 0.18, "linewidth": 0}
                axes.fill_between(steps, low, mean + std, **shade)
        axes.set(title=env_id.removesuffix("-v4"), ylabel=AXES[column])
        axes.set(xlabel="Environment steps (million)")
        if column == "kl":
            axes.set_yscale("log")
    handles = [lines[series] for series in style]
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(5, max(1, 56 * across // (longest + 8)))  # what fits
    below = {"loc": "outside lower center", "frameon": False, "columnspacing": 1.2}
    figure.legend(handles=handles, ncols=columns, **below)
    save(figure, path)


def draw_clipping(path: Path) -> None:
    """Figure 3, from the loss that ppo.py learns by."""
    import torch  # only here: it takes seconds

    from ppo import Config, policy_loss

    epsilon, ratios = Config().epsilon, torch.linspace(0, 1.7, 341)
    figure = Figure((7.2, 2.6), layout="constrained")
    for axes, sign in zip(figure.subplots(1, 2), (1, -1), strict=True):
        data = torch.zeros(1), torch.tensor([float(sign)]), epsilon
        objective = [-policy_loss(ratio.log()[None], *data).item() for ratio in ratios]
        axes.plot(ratios, objective, color="#0072B2")
        axes.plot(1, sign, "o", color="#D55E00")
        bound, text = 1 + sign * epsilon, "1 + ε" if sign > 0 else "1 − ε"
        axes.axvline(1, color="gray", linestyle=":", linewidth=1)
        axes.axvline(bound, color="gray", linestyle="--", linewidth=1)
        axes.set_xticks([0, 1, bound], ["0", "1", text])
        axes.set(title="A > 0" if sign > 0 else "A < 0", yticks=[0, sign])
        axes.set(xlabel="$r_θ$", ylabel=r"$J_\mathrm{PPO}(θ)$")
        axes.grid(False)
    save(figure, path)


def improvement(x: np.ndarray, y: np.ndarray) -> float:
    """P(X > Y) + P(X = Y) / 2 of runs in the same environment; [R, E] each."""
    return ((x[:, None] > y).mean() + (x[:, None] >= y).mean()) / 2


def last_returns(runs: list[Run]) -> tuple[np.ndarray, list, list]:
    """Of complete runs in environments that all series have, [R, E, S]; S; E."""
    found = defaultdict(lambda: defaultdict(list))
    for run in sorted(filter(lambda run: run.complete, runs), key=lambda run: run.seed):
        found[run.env_id][run.series].append(run.return_mean[-1])
    series = [*dict.fromkeys(series for of_env in found.values() for series in of_env)]
    env_ids = [env_id for env_id, of_env in found.items() if len(of_env) == len(series)]
    count = min((len(found[e][s]) for e in env_ids for s in series), default=0)
    table = [[found[e][s][:count] for s in series] for e in env_ids]
    shape = len(env_ids), len(series), count
    return np.moveaxis(np.array(table).reshape(shape), 2, 0), series, env_ids


def draw_comparison(runs: list[Run], path: Path) -> None:
    """Interquartile mean and probability of improvement over environments."""
    table, series, env_ids = last_returns(runs)
    if len(series) < 2 or not env_ids:
        wanted = "two algorithms with complete runs of the same environment"
        print(f"{path.name}: left out, it takes {wanted}", file=sys.stderr)
        return
    from rliable import library, metrics  # only here: it takes seconds

    low, high = table.min((0, 2), keepdims=True), table.max((0, 2), keepdims=True)
    table = (table - low) / np.maximum(high - low, 1e-12)
    pairs = [(i, j) for i in range(len(series)) for j in range(i + 1, len(series))]

    def statistics(table: np.ndarray) -> np.ndarray:
        means = [metrics.aggregate_iqm(table[..., i]) for i in range(len(series))]
        better = [improvement(table[..., i], table[..., j]) for i, j in pairs]
        return np.array(means + better)

    colors = [styles(series)[s]["color"] for s in series]
    order = np.argsort(statistics(table)[: len(series)])[::-1]  # the best on top
    table, colors = table[..., order], [colors[i] for i in order]
    names = [label(series[i]) for i in order]
    np.random.seed(0)  # noqa: NPY002, the generator that rliable draws from
    # Environments are drawn, and runs in each of them, for each algorithm its own.
    options = {"task_bootstrap": True, "reps": DRAWS}
    found = library.get_interval_estimates({"": table}, statistics, **options)
    points, intervals = (estimate[""] for estimate in found)
    names += [f"{names[i]} > {names[j]}" for i, j in pairs]
    colors += ["#000000"] * len(pairs)
    left, right = slice(len(series)), slice(len(series), None)
    letters = sum(max(map(len, names[part])) for part in (left, right))
    size = 5 + 0.07 * letters, 0.9 + 0.24 * max(5, len(pairs))
    figure = Figure(size, layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), (left, right), strict=True):
        y = range(len(names[part]))
        look = {"color": colors[part], "zorder": 3}
        axes.hlines(y, *intervals[:, part], linewidth=3, alpha=0.5, **look)
        axes.scatter(points[part], y, **look)
        axes.set_yticks(y, names[part])
        axes.set(xlim=(-0.03, 1.03), ylim=(len(y) - 0.5, -0.5))
    worst_to_best = "0 worst, 1 best run in an environment"
    figure.axes[0].set_xlabel(f"Interquartile mean of the last return\n{worst_to_best}")
    figure.axes[1].set_xlabel("Probability of improvement")
    figure.axes[1].axvline(0.5, color="gray", linestyle="--", linewidth=1)
    where = ", ".join(env_id.removesuffix("-v4") for env_id in env_ids)
    title = f"{where}; {len(table)} seeds; 95 % bootstrap intervals"
    figure.suptitle(title.replace("; 1 seeds", "; 1 seed"), fontsize=9)
    save(figure, path)


def draw_all(stem: str, rows: list[dict], out: Path) -> None:
    """The figures that these evaluations are for."""
    runs = to_runs(rows)
    env_ids = [*dict.fromkeys(run.env_id for run in runs)]
    if stem.startswith(("figure6", "figure7")):
        panels = [(env_id, column) for env_id in env_ids for column in AXES]
        draw_curves(runs, panels, out / stem)
        return
    names = ["returns", "kl", "comparison"]
    if stem.startswith("figure4"):
        suffix = stem.removeprefix("figure4")
        names = [name + suffix for name in ("figure4", "figure5", "comparison")]
    for name, column in zip(names, AXES, strict=False):
        draw_curves(runs, [(env_id, column) for env_id in env_ids], out / name)
    draw_comparison(runs, out / names[2])


def main(arguments: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style)
    what = "CSVs of collect.py or folders of runs; default: those in git"
    parser.add_argument("paths", nargs="*", type=Path, help=what)
    where = "folder for the pictures; default: docs/experiments/figures, or with paths "
    parser.add_argument("--out", type=Path, help=where + "figures/ in this folder")
    options = parser.parse_args(arguments)
    paths = options.paths or sorted(RESULTS.glob("*.csv"))
    out = options.out or (Path("figures") if options.paths else FIGURES)
    data = {path.stem: read_csv(path) for path in paths if path.suffix == ".csv"}
    if folders := [path for path in paths if path.suffix != ".csv"]:
        data["runs"] = read_runs(folders)
        if not data["runs"]:
            sys.exit("none of these runs has an evaluation yet")
    try:
        if not options.paths:
            draw_clipping(out / "figure3")
        for stem, rows in data.items():
            draw_all(stem, rows, out)
    except OSError as error:
        sys.exit(f"--out {out}: {error.strerror}")
    return 0


if __name__ == "__main__":
    begin(main)
