"""The paper's figures from our runs, what the paper lacks, and any runs of your own.

    python docs/experiments/plot.py           # the CSVs that are in git
    python docs/experiments/plot.py runs/*    # your runs, into figures/
    python docs/experiments/plot.py runs/* --columns train/episode_return train/entropy

Writes PNG and SVG. Lines are means over seeds, bands ± one standard deviation; a thin
dashed line across a panel is the paper's value at its end. Runs are told apart by the
settings in which they differ, as their config.json has them.
"""

import argparse
import csv
import json
import sys
from ast import literal_eval
from collections import defaultdict
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

try:
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install -r docs/requirements.txt")

from collect import RESULTS, read_csv
from paper import PAPER_1M, PAPER_8M
from run import ALGORITHMS, FREE, TASKS, Parser, begin, elsewhere

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
MARKERS = [{"marker": marker, "markersize": 4} for marker in (None, "o", "s", "^")]
SOLID_FIRST = (3, 4, 2, 1, 5, 6, 0)  # of several settings of one algorithm
RETURN, KL = "eval/return_mean", "train/kl"
AXES = {RETURN: "Episode reward", KL: "KL divergence"}
AXES |= {"train/episode_return": "Episode reward in training"}
FILES = {RETURN: "returns", KL: "kl"}
SYMBOLS = {"epsilon": "ε", "gamma": "γ", "gae_lambda": "λ", "delta": "δ"}
# A panel, a band, and what changes no result
UNTOLD = FREE | {"env_id", "seed", "eval_every", "eval_episodes", "checkpoint_every"}
DRAWS = 2000  # bootstrap samples
# The paper's return at the end of a panel: by figure, series and environment
PAPER = {
    stem: {
        (algorithm, "", env_id): value
        for algorithm, row in values.items()
        for env_id, value in zip(TASKS, row, strict=True)
    }
    for stem, values in (("figure4", PAPER_8M), ("figure4_1M", PAPER_1M))
}
A2C = "a2c", "entropy_coefficient=0.1", "HalfCheetah-v4"  # the run of Figure 4
PAPER["figure6"] = {A2C: PAPER_8M["a2c"][0]}
PAPER["decay"] = PAPER["figure4"]
TARGET = {"linestyle": (0, (5, 3)), "linewidth": 0.8, "zorder": 1.5}

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


class Run:
    """The curves of one run: steps and values of each column."""

    def __init__(self, algorithm, variant, env_id, seed, total: int, curves: dict):
        self.series, self.env_id, self.seed = (algorithm, variant), env_id, int(seed)
        self.curves = {name: np.array(curve) for name, curve in curves.items()}
        self.last = max(curve[0][-1] for curve in self.curves.values())
        self.complete = self.last >= total


def from_rows(rows: list[dict]) -> list[Run]:
    """The runs of a CSV of collect.py."""
    groups, names = defaultdict(list), ("algorithm", "variant", "env_id", "seed")
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    runs = []
    for key, group in groups.items():
        steps, returns, kl = (
            [float(row[name]) for row in group]
            for name in ("step", "return_mean", "kl")
        )
        curves, total = {RETURN: (steps, returns), KL: (steps, kl)}, group[0]
        runs.append(Run(*key, int(total["total_timesteps"]), curves))
    return in_order(runs)


def in_order(runs: list[Run]) -> list[Run]:
    """That of legends and panels."""
    env_ids = [*TASKS, *sorted({run.env_id for run in runs} - {*TASKS})]
    return sorted(runs, key=lambda r: (env_ids.index(r.env_id), *rank(r.series)))


def rank(series: tuple[str, str]) -> tuple:
    """The paper's algorithms in its order, then any others; their settings by size."""
    algorithm, variant = series
    values = [read_value(word.partition("=")[2]) for word in variant.split()]
    numbers = [x if isinstance(x, int | float) else -1 for x in values]
    return [*ALGORITHMS, algorithm].index(algorithm), algorithm, numbers, variant


def read_value(text: str):
    """Of a setting, as config.json had it, or the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_config(folder: Path) -> tuple[str, dict] | None:
    """Algorithm and settings, whatever their names, if this is the folder of a run."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / "config.json").read_bytes())
        algorithm, config = content["algorithm"], content["config"]
        if {"env_id", "seed", "total_timesteps"} <= config.keys():
            return str(algorithm), config
    return None


def find_folders(paths: list[Path]) -> list[Path]:
    """These, or the runs in them; what is none is told and left out."""
    found = []
    for path in paths:
        if not path.exists():
            sys.exit(f"{path} is not there")
        inside = sorted(file.parent for file in path.glob("*/config.json"))
        if not load_config(path) and not inside:
            print(f"{path} is not the folder of a run: left out", file=sys.stderr)
        found += [path] if load_config(path) else filter(load_config, inside)
    if not found:
        sys.exit("none of these is the folder of a run")
    return found


def read_progress(folder: Path, columns: list[str]) -> dict[str, tuple[list, list]]:
    """Steps and values of the columns, where they have some."""
    path, curves = folder / "progress.csv", {}
    if not path.exists():
        return {}
    lines = path.read_text().splitlines(keepends=True)
    lines = [line for line in lines if line.endswith("\n")]  # a run may be writing one
    rows = [*csv.DictReader(lines)]
    try:
        for name in columns if rows else []:
            if name not in rows[0]:
                sys.exit(f"{path} has no {name}; it has {', '.join(rows[0])}")
            with_it = [row for row in rows if row[name]]
            values = [[float(row[key]) for row in with_it] for key in ("step", name)]
            curves |= {name: values} if with_it else {}
    except (KeyError, TypeError, ValueError) as error:
        sys.exit(f"{path} is damaged: {error}")
    return curves


def differences(runs: list[tuple[str, dict]]) -> list[str]:
    """Names of the settings in which runs differ that are drawn in one panel.

    Where each algorithm has a value of its own, that is told by the algorithm's name.
    But those that all scripts have, up to num_envs, have the same default in all.
    """
    names = dict.fromkeys(name for _, config in runs for name in config)
    shared, told = [*takewhile(lambda name: name != "num_envs", runs[0][1])], []
    for name in [name for name in names if name not in UNTOLD]:
        values = defaultdict(lambda: defaultdict(set))
        for algorithm, config in runs:
            panel = values[config["env_id"]]
            panel[algorithm].add(repr(config.get(name, "–")))
        for panel in values.values():
            within = max(map(len, panel.values())) > 1
            if within or (name in shared and len(set.union(*panel.values())) > 1):
                told.append(name)
                break
    return told


def read_runs(folders: list[Path], columns: list[str]) -> list[Run]:
    """Any runs; their variant is what they differ in, and of equal ones one counts."""
    loaded = [(folder, *load_config(folder)) for folder in folders]
    loaded = [(*run, read_progress(run[0], columns)) for run in loaded]
    for folder, *_, curves in loaded:
        if not curves:
            print(f"{folder}: left out, no {' or '.join(columns)} yet", file=sys.stderr)
    loaded = [run for run in loaded if run[-1]]
    if not loaded:
        sys.exit(f"none of these runs has {' or '.join(columns)} yet")
    told, found = differences([run[1:3] for run in loaded]), {}
    far = [max(steps[-1] for steps, _ in run[-1].values()) for run in loaded]
    for i in np.argsort(far, kind="stable"):
        folder, algorithm, config, curves = loaded[i]
        words = [(name, config[name]) for name in told if name in config]
        variant = " ".join(f"{k}={str(v).replace(' ', '')}" for k, v in words)
        key = algorithm, variant, config["env_id"], config["seed"]
        if key in found:
            print(f"{found[key][0]}: left out for its twin {folder}", file=sys.stderr)
        found[key] = folder, Run(*key, config["total_timesteps"], curves)
    return in_order([run for _, run in found.values()])


def over_seeds(runs: list[Run], column: str) -> tuple[np.ndarray, ...]:
    """Steps, mean, std and minimum, up to where the shortest of the runs has come."""
    curves = [run.curves[column] for run in runs]
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[steps <= min(steps[-1] for steps, _ in curves)]
    values = [np.interp(steps, *curve) for curve in curves]
    return steps, np.mean(values, 0), np.std(values, 0), np.min(values, 0)


def tell(word: str) -> str:
    """A setting, "name=value", as a legend has it: "5 epochs", "no squash actions"."""
    name, _, text = word.partition("=")
    value = read_value(text)
    words = SYMBOLS.get(name, name.removeprefix("num_").replace("_", " "))
    if isinstance(value, bool) or value is None:
        return words if value else f"no {words}"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    elif isinstance(value, float):
        value = f"{value:g}"
    if name == "total_timesteps":
        return f"{value / 1e6:g}M steps"
    if name.startswith("num_"):
        return f"{value} {words.removesuffix('s') if value == 1 else words}"
    return f"{words} {value}"


def label(series: tuple[str, str]) -> str:
    """As in the paper: "A2C, 5 epochs"."""
    algorithm, variant = series
    return ", ".join([NAMES.get(algorithm, algorithm), *map(tell, variant.split())])


# ── figures ─────────────────────────────────────────────────────────────────────────


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=200)
    figure.savefig(f"{path}.svg", metadata={"Date": None})
    print(f"{path}.png, {path.name}.svg")


def styles(series: list[tuple[str, str]]) -> dict:
    """An algorithm looks the same in every figure that has it once."""
    algorithms = [algorithm for algorithm, _ in series]
    if len({*algorithms}) == len(series) and {*algorithms} <= {*ALGORITHMS}:
        indices = map(ALGORITHMS.index, algorithms)
    else:
        indices = [SOLID_FIRST[i % len(STYLES)] for i in range(len(series))]
    looks = [STYLES[i] | MARKERS[0] for i in indices]
    for i, look in enumerate(looks):
        look |= MARKERS[i // len(STYLES) % len(MARKERS)]  # where the styles come again
    return dict(zip(series, looks, strict=True))


def title(env_id: str, counts: set[int]) -> str:
    """With the number of seeds, where there are several to a line."""
    name, low, high = env_id.removesuffix("-v4"), min(counts), max(counts)
    seeds = f"{low} to {high}" if low < high else f"{high}"
    return name if high == 1 else f"{name} ({seeds} seeds)"


def draw_curves(
    runs: list[Run], panels: list[tuple[str, str]], path: Path, paper: dict
) -> None:
    """A panel for each (environment, column), a line for each algorithm and variant.

    `paper` has returns by algorithm, variant and environment, to be drawn across.
    """
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure((3.6 * across, 2.7 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    runs = [run for run in runs if run.curves.keys() & {column for _, column in panels}]
    style, lines = styles([*dict.fromkeys(run.series for run in runs)]), {}
    far, targets = max(run.last for run in runs), []
    scale, unit = (1e6, "million") if far >= 5e5 else (1e3, "thousand")
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (env_id, column) in zip(grid, panels, strict=False):
        here = [r for r in runs if r.env_id == env_id and column in r.curves]
        groups = {s: [run for run in here if run.series == s] for s in style}
        groups = {series: same for series, same in groups.items() if same}
        for series, same in groups.items():
            steps, mean, std, lowest = over_seeds(same, column)
            low = mean - std
            if column == KL:  # a logarithmic axis has no room for values below 0
                low, mean = np.maximum(low, lowest), np.where(mean > 0, mean, np.nan)
            steps = steps / scale
            look = style[series] | ({"marker": "o"} if len(steps) == 1 else {})
            (lines[series],) = axes.plot(steps, mean, label=label(series), **look)
            if len(same) > 1:
                shade = {"color": look["color"], "alpha": 0.18, "linewidth": 0}
                axes.fill_between(steps, low, mean + std, **shade)
            value = paper.get((*series, env_id)) if column == RETURN else None
            if value:
                targets.append(axes.axhline(value, color=look["color"], **TARGET))
        if path.name.startswith("figure"):  # runs of one length, seen at one scale
            axes.set_xlim(-0.03 * far / scale, 1.03 * far / scale)
        axes.set(title=title(env_id, {*map(len, groups.values())}))
        about = column.split("/")[-1].replace("_", " ").capitalize()
        axes.set(ylabel=AXES.get(column, about), xlabel=f"Environment steps ({unit})")
        if column == KL:
            axes.set_yscale("log")
    handles = [lines[series] for series in style]
    if targets:
        at = f"the paper at {far / 1e6:.0f} M"
        handles.append(Line2D([], [], color="gray", label=at, **TARGET))
    add_legend(figure, handles)
    save(figure, path)


def add_legend(figure: Figure, handles: list) -> None:
    """In the panel, if there is one and a free place in it; below, as wide as fits."""
    if len(figure.axes) == 1:
        (axes,) = figure.axes
        legend = axes.legend(
            handles=handles, loc="best", framealpha=1, edgecolor="none"
        )
        figure.draw_without_rendering()
        box = legend.get_window_extent()
        inside = axes.bbox.containsx(box.x0) and axes.bbox.containsy(box.y0)
        if inside and not crosses(axes, box):
            return
        legend.remove()
    below = {"loc": "outside lower center", "frameon": False, "columnspacing": 1.2}
    for columns in range(min(6, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, ncols=columns, **below)
        width = legend.get_window_extent().width
        if width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (rows - 1))
    figure.set_figwidth(max(figure.get_figwidth(), width / figure.dpi))


def crosses(axes, box) -> bool:
    """Whether a curve or the edge of a band passes under a box on the screen."""
    bands = [path for band in axes.collections for path in band.get_paths()]
    for path in [*(line.get_path() for line in axes.lines), *bands]:
        x, y = axes.transData.transform(path.vertices).T
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        t, dense = np.arange(len(x)), np.linspace(0, len(x) - 1, 50 * len(x))
        outline = np.column_stack([np.interp(dense, t, x), np.interp(dense, t, y)])
        if box.count_contains(outline):
            return True
    return False


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

    def scored(run: Run) -> bool:
        return run.complete and RETURN in run.curves

    found = defaultdict(lambda: defaultdict(list))
    for run in sorted(filter(scored, runs), key=lambda run: run.seed):
        found[run.env_id][run.series].append(run.curves[RETURN][1][-1])
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
        wanted = "complete runs of two kinds in the same environment"
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
    title = f"{where}; {len(table)} seed{'s' * (len(table) > 1)}"
    if table[..., 0].size > 1:
        title += "; 95 % bootstrap intervals"
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def draw_all(stem: str, runs: list[Run], columns: list[str], out: Path) -> None:
    """The figures that these runs are for."""
    env_ids = [*dict.fromkeys(run.env_id for run in runs)]
    if stem.startswith(("figure6", "figure7", "decay")):
        panels = [(env_id, column) for env_id in env_ids for column in columns]
        draw_curves(runs, panels, out / stem, PAPER.get(stem, {}))
        return
    files, comparison = FILES, "comparison"
    if stem.startswith("figure4"):
        suffix = stem.removeprefix("figure4")
        files = {RETURN: f"figure4{suffix}", KL: f"figure5{suffix}"}
        comparison += suffix
    for column in columns:
        here = dict.fromkeys(run.env_id for run in runs if column in run.curves)
        if here:
            name = files.get(column, column.split("/")[-1])
            panels = [(env_id, column) for env_id in here]
            draw_curves(runs, panels, out / name, PAPER.get(stem, {}))
        else:
            print(f"{column}: no run has it yet", file=sys.stderr)
    if RETURN in columns:
        draw_comparison(runs, out / comparison)


def main(arguments: list[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=style)
    what = "CSVs of collect.py or folders of runs; default: those in git"
    parser.add_argument("paths", nargs="*", type=Path, help=what)
    which = f"of progress.csv, a picture for each; default: {RETURN} {KL}"
    parser.add_argument("--columns", nargs="+", default=[RETURN, KL], help=which)
    where = "folder for the pictures; default: docs/experiments/figures, or with paths "
    parser.add_argument("--out", type=Path, help=where + "figures/ in this folder")
    options = parser.parse_args(arguments)
    columns = [*dict.fromkeys(options.columns)]
    paths = options.paths or sorted(RESULTS.glob("*.csv"))
    out = options.out or FIGURES
    if options.paths:
        out = elsewhere("--out", options.out, Path("figures"), FIGURES)
    csvs = [path for path in paths if path.suffix == ".csv"]
    if csvs and not {*columns} <= {RETURN, KL}:
        sys.exit(f"--columns: {csvs[0]} has {RETURN} and {KL}; name folders of runs")
    data = {path.stem: from_rows(read_csv(path)) for path in csvs}
    if others := [path for path in paths if path.suffix != ".csv"]:
        data["runs"] = read_runs(find_folders(others), columns)
    if "decay" in data:  # and the same with the usual rate
        wanted = {((run.series[0], ""), run.env_id) for run in data["decay"]}
        usual = [r for r in data.get("figure4", []) if (r.series, r.env_id) in wanted]
        data["decay"] = in_order(data["decay"] + usual)
    try:
        if not options.paths:
            draw_clipping(out / "figure3")
        for stem, runs in data.items():
            draw_all(stem, runs, columns, out)
    except OSError as error:
        sys.exit(f"--out {out}: {error.strerror}")
    return 0


if __name__ == "__main__":
    begin(main)
