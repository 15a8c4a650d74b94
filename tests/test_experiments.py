"""docs/experiments on a tiny experiment: run, stop, go on, collect, plot."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
from common import (
    ROOT,
    environment,
    only_run,
    rows,
    rows_without_times,
    run,
    small,
)

FOLDER = ROOT / "docs" / "experiments"
sys.path.insert(0, str(FOLDER))

import collect  # noqa: E402
import run as harness  # noqa: E402
import tables  # noqa: E402

# 3 iterations, of 2, 1 and 1 batches, with an evaluation each. The environment can be
# held in the second, so that a stop comes there however fast the machine is.
BATCH = 8 * 128
STEPS, HELD_AFTER = 4 * BATCH, 2 * BATCH
CHOICE = ["figure4", "--algorithm", "a2c", "ppo", "--env-id", "tasks:Held-v0"]
CHOICE += ["--seeds", "5", "--total-timesteps", str(STEPS)]
EXTRA = ["--", "--unroll-length=128", "--checkpoint-every=1", "--value-layers=16"]
PATIENCE = 120  # seconds that anything here may take


def start(runs: Path, **variables: str) -> subprocess.Popen:
    command = [sys.executable, str(FOLDER / "run.py"), *CHOICE, "--jobs", "2"]
    return subprocess.Popen(
        [*command, "--runs-dir", str(runs), *EXTRA],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(runs: Path) -> tuple[int, str]:
    process = start(runs)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def files(runs: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in runs.glob("[!.]*/*")}


def by_algorithm(runs: Path) -> dict[str, Path]:
    """The folder of each run; fails if an algorithm has two."""
    folders = [path.parent for path in runs.glob("[!.]*/checkpoint.pt")]
    names = [json.loads((f / "config.json").read_text())["algorithm"] for f in folders]
    assert len({*names}) == len(names)
    return dict(zip(names, folders, strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two complete runs that were stopped in their midst."""
    runs = tmp_path_factory.mktemp("experiments") / "runs"
    process, deadline = start(runs, HOLD=__file__), time.monotonic() + PATIENCE
    while sum(map(bool, map(harness.progress, runs.glob("[!.]*")))) < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            break  # told below
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    with harness.sole_user(runs):  # no training is left behind
        before = by_algorithm(runs)
    assert [*map(harness.progress, before.values())] == [HELD_AFTER] * 2, output
    kept = {folder: rows_without_times(folder) for folder in before.values()}
    status, output = finish(runs)
    assert status == 0, output
    assert output.count("resumed") == 2
    after = by_algorithm(runs)
    assert after.keys() == {"a2c", "ppo"}
    assert before == after
    for folder in after.values():
        assert [row["iteration"] for row in rows(folder)] == ["1", "2", "3"]
    for folder, lines in kept.items():
        assert rows_without_times(folder)[: len(lines)] == lines
    return runs


def test_what_is_done_is_not_run_again(runs):
    before = files(runs)
    status, output = finish(runs)
    assert status == 0, output
    assert "2 of them done before" in output
    assert files(runs) == before


def test_a_failure_is_shown_and_the_others_go_on(runs, tmp_path):
    unborn = tmp_path / "killed-before-its-first-checkpoint"
    unborn.mkdir()
    shutil.copy(by_algorithm(runs)["a2c"] / "config.json", unborn)
    damaged = tmp_path / by_algorithm(runs)["ppo"].name
    shutil.copytree(by_algorithm(runs)["ppo"], damaged)
    lines = (damaged / "progress.csv").read_text().splitlines(keepends=True)
    (damaged / "progress.csv").write_text("".join(lines[:-1]))
    (damaged / "checkpoint.pt").write_bytes(b"not one")
    status, output = finish(tmp_path)
    assert status == 1
    assert "FAILED tasks:Held-v0 ppo" in output
    assert f"{damaged / 'checkpoint.pt'} cannot be read" in output
    assert "1 of 2 runs done" in output
    assert rows_without_times(by_algorithm(tmp_path)["a2c"]) == rows_without_times(
        by_algorithm(runs)["a2c"]  # that one was stopped and resumed, this one not
    )


NAME = f"figure4_{STEPS / 1e6:g}M"


def collected(runs: Path, *out: str) -> list[dict[str, str]]:
    """The CSV in results/ in the current folder, or in that of the flag."""
    collect.main([*CHOICE, "--runs-dir", str(runs), *out, *EXTRA])
    return collect.read_csv(Path(out[-1] if out else "results") / f"{NAME}.csv")


def test_collect(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what is in git stays as it is
    table = collected(runs)
    assert len(table) == 6
    for name, folder in by_algorithm(runs).items():
        lines = [row for row in table if row["algorithm"] == name]
        for line, row in zip(lines, rows(folder), strict=True):
            assert line["step"] == row["step"]
            assert float(line["kl"]) == pytest.approx(float(row["train/kl"]), 1e-4)
            mean = float(row["eval/return_mean"])
            assert float(line["return_mean"]) == pytest.approx(mean, 1e-4)
        assert {line["seed"] for line in lines} == {"5"}
        assert {line["variant"] for line in lines} == {
            "unroll_length=128 value_layers=[16]"
        }
        assert lines[0]["commit"]
        assert all(lines[0][package] for package in collect.VERSIONS)
    # rows of other cells stay, those of the same cells are replaced
    path = tmp_path / "results" / f"{NAME}.csv"
    with open(path, "a", newline="") as file:
        csv.DictWriter(file, collect.COLUMNS).writerow(table[0] | {"seed": "6"})
    assert len(collected(runs, "--out", "results")) == 7
    # unless they come from a run that went further
    further = str(10 * int(table[0]["step"]))
    with open(path, "a", newline="") as file:
        csv.DictWriter(file, collect.COLUMNS).writerow(table[0] | {"step": further})
    assert len(collected(runs)) == 8


def test_plot(runs, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    pytest.importorskip("rliable")
    import plot

    collected(runs, "--out", str(tmp_path))
    results = str(tmp_path / f"{NAME}.csv")
    plot.main([results, *map(str, runs.glob("[!.]*")), "--out", str(tmp_path)])
    plot.draw_clipping(tmp_path / "figure3")
    names = {"figure3", NAME, NAME.replace("4", "5", 1), "returns", "kl"}
    names |= {"comparison", NAME.replace("figure4", "comparison")}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    for name in names:
        picture = image.imread(tmp_path / f"{name}.png")[..., :3]
        assert 0.01 < (picture < 0.7).any(axis=-1).mean() < 0.5
        text = (tmp_path / f"{name}.svg").read_text()
        assert "</svg>" in text
        assert "bootstrap" not in text  # of one seed in one environment


OURS = [  # flags, and what the one line must name
    ("", "names"),
    ("figure9", "figure9"),
    ("figure7 --algorithm ppo", "--algorithm ppo: figure7 has a2c, reinforce"),
    ("figure7 --env-id Nothing-v0", "--env-id Nothing-v0"),
    ("figure7 --env-id tasks:Images-v0", "must be vectors"),
    ("figure7 --jobs 0", "--jobs"),
    ("figure7 --seeds one", "--seeds"),
    ("figure7 -- --seed=1", "--seed cannot stand after --"),
]
THEIRS = [  # the script's own complaint
    ("figure7 --total-timesteps 0", "total_timesteps: 0 is not from 1"),
    ("figure7 --seeds -1", "seed: -1 is not from 0"),
    ("figure7 -- --nothing 1", "--nothing"),
]


@pytest.mark.parametrize(("flags", "named"), OURS + THEIRS)
def test_mistakes(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        harness.main(flags.split())
    shown = capsys.readouterr()
    text = shown.err if stop.value.code == 2 else f"{stop.value.code}\n"
    assert named in text
    assert text.count("\n") == 1 or (flags, named) in THEIRS, text
    assert shown.out == ""
    assert [*tmp_path.iterdir()] == []


def test_no_runs_to_collect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="nowhere: no evaluations of figure7"):
        collect.main(["figure7", "--runs-dir", "nowhere"])
    assert [*tmp_path.iterdir()] == []


def test_results_in_git_change_only_where_they_are_named(monkeypatch):
    pytest.importorskip("matplotlib")
    import plot

    monkeypatch.chdir(FOLDER)
    kept = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    table = str(collect.RESULTS / "figure7.csv")
    for program, words in [(collect, ["figure7"]), (plot, [table])]:
        with pytest.raises(SystemExit, match="--out: .* is in git here; name it"):
            program.main(words)
    assert kept == {path: path.read_bytes() for path in kept}
    named = harness.elsewhere("--out", Path("results"), Path("results"), FOLDER)
    assert named == Path("results")
    monkeypatch.chdir(ROOT)
    assert harness.elsewhere("--out", None, Path("results"), collect.RESULTS)


def test_columns_are_found_by_name(tmp_path):
    (tmp_path / "progress.csv").write_text("train/kl,step,iteration\n0.1,20,3\n")
    assert harness.progress(tmp_path) == 20
    (tmp_path / "progress.csv").write_text("train/kl,step,iteration\n")
    assert harness.progress(tmp_path) == 0


def test_two_at_once_are_refused(tmp_path):
    arguments = ["figure7", "--runs-dir", str(tmp_path)]
    with harness.sole_user(tmp_path), pytest.raises(SystemExit, match="at work"):
        harness.main(arguments)


SHARED = {"learning_rate": 3e-4, "eval_every": 100, "runs_dir": "runs", "num_envs": 8}


def own_run(
    folder: Path, algorithm="ppo", rows=3, scores=(1, 2, 4), **settings
) -> Path:
    """The folder of a run, as a variant of a script might leave it."""
    config = {"env_id": "Ant-v4", "seed": 0, "total_timesteps": 300} | SHARED | settings
    folder.mkdir(parents=True)
    content = json.dumps({"algorithm": algorithm, "config": config})
    (folder / "config.json").write_text(content)
    names = "step,train/kl,eval/return_mean,train/episode_return"
    lines = [f"{100 * i + 100},1e-3,{x},{i}\n" for i, x in enumerate(scores)]
    (folder / "progress.csv").write_text(f"{names}\n{''.join(lines[:rows])}")
    return folder


OWN_RUNS = [  # the settings of some runs, and the lines that they make
    ([{}], ["PPO"]),
    ([{"seed": 0}, {"seed": 1, "eval_every": 50, "runs_dir": "others"}], ["PPO"]),
    ([{}, {"env_id": "Mine-v0", "total_timesteps": 600}], ["PPO"]),
    ([{}, {"algorithm": "a2c"}], ["A2C", "PPO"]),
    ([{"algorithm": "mine"}, {}], ["PPO", "mine"]),
    ([{"num_epochs": 10}, {"algorithm": "a2c", "num_epochs": 1}], ["A2C", "PPO"]),
    ([{"num_epochs": 10}, {"num_epochs": 1}], ["PPO, 10 epochs", "PPO, 1 epoch"]),
    ([{"epsilon": 0.1}, {"epsilon": 0.2}], ["PPO, ε 0.1", "PPO, ε 0.2"]),
    ([{"target_kl": 0.02}, {}], ["PPO, target kl 0.02", "PPO"]),
    (
        [{"target_kl": None}, {"target_kl": 1}],
        ["PPO, no target kl", "PPO, target kl 1"],
    ),
    ([{"new": "a b"}, {"new": True}], ["PPO, new ab", "PPO, new"]),
    ([{"width": [64, 64]}, {"width": [8]}], ["PPO, width 64 64", "PPO, width 8"]),
    (
        [{"total_timesteps": 2_000_000}, {}],
        ["PPO, 2M steps", "PPO, 0.0003M steps"],
    ),
    (
        [{"learning_rate": 1e-5}, {"algorithm": "a2c"}],
        ["A2C, learning rate 0.0003", "PPO, learning rate 1e-05"],
    ),
]


@pytest.mark.parametrize(("settings", "labels"), OWN_RUNS)
def test_own_runs_are_told_apart_by_what_differs(settings, labels, tmp_path):
    pytest.importorskip("matplotlib")
    import plot

    for i, kind in enumerate(settings):
        own_run(tmp_path / str(i), **kind)
    folders = plot.find_folders([tmp_path])
    runs = plot.read_runs(folders, [plot.RETURN, plot.KL])
    assert len(runs) == len(settings)
    assert {plot.label(run.series) for run in runs} == {*labels}


def test_seeds_are_a_mean_and_twins_count_once(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    import plot

    own_run(tmp_path / "a")
    own_run(tmp_path / "b", seed=1, scores=(3, 4, 8, 9))
    own_run(tmp_path / "c", rows=2)  # as a, and not as far
    with open(tmp_path / "a" / "progress.csv", "a") as file:
        file.write("400,1e-3,9")  # a row that is being written
    folders = plot.find_folders([tmp_path])
    runs = plot.read_runs(folders, [plot.RETURN, "train/episode_return"])
    assert capsys.readouterr().err == (
        f"{tmp_path / 'c'}: left out for its twin {tmp_path / 'a'}\n"
    )
    steps, mean, std, lowest = plot.over_seeds(runs, plot.RETURN)
    assert steps.tolist() == [100, 200, 300]
    assert mean.tolist() == [2, 3, 6]
    assert std.tolist() == [1, 1, 2]
    assert lowest.tolist() == [1, 2, 4]
    assert plot.over_seeds(runs, "train/episode_return")[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("env_ids", [["Ant-v4"], ["Ant-v4", "Mine-v0"]])
def test_the_legend_is_inside_the_picture_and_hides_nothing(
    count, env_ids, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    import plot

    saved = []
    monkeypatch.setattr(plot, "save", lambda figure, path: saved.append(figure))
    for i in range(count):
        for env_id in env_ids:
            kind = {"env_id": env_id, "a_new_and_very_long_name_of_a_flag": 10**i}
            own_run(tmp_path / env_id / str(i), scores=(i, 2 * i, 0), **kind)
    plot.main([str(tmp_path / env_id) for env_id in env_ids])
    for figure in saved[:2]:
        figure.draw_without_rendering()
        of_panel = [axes.get_legend() for axes in figure.axes]
        (legend,) = filter(None, [*of_panel, *figure.legends])
        box = legend.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert len(legend.get_texts()) == count
        panels = [axes for axes in figure.axes if legend in figure.legends]
        for axes in panels:
            assert not axes.get_tightbbox().overlaps(box)
            assert axes.bbox.height > 150  # at 100 dots per inch
    if count == 1:
        assert saved[0].axes[0].get_legend() or len(env_ids) == 2


def test_plot_of_what_the_user_asks(tmp_path, monkeypatch, capsys):
    """Training returns, of a run without evaluations too; what is no run is told."""
    pytest.importorskip("matplotlib")
    import plot

    monkeypatch.chdir(tmp_path)
    own_run(tmp_path / "runs" / "a", scores=("", "", ""))
    own_run(tmp_path / "runs" / "b", seed=1)
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "empty").mkdir()
    paths = [str(path) for path in sorted((tmp_path / "runs").iterdir())]
    plot.main([*paths, "--columns", "train/kl", "train/episode_return"])
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{path} is not the folder of a run: left out" for path in paths[2:]
    ]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = "kl", "episode_return"
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}


def test_plot_mistakes(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import plot

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    own_run(tmp_path / "good")
    own_run(tmp_path / "unborn", rows=0)
    own_run(tmp_path / "damaged", scores=("x", 1))
    (tmp_path / "empty").mkdir()
    kept = str(collect.RESULTS / "figure7.csv")
    cases = {
        ("bad.csv",): "bad.csv is not a whole file of collect.py's",
        ("missing.csv",): "missing.csv cannot be read",
        ("missing",): "missing is not there",
        ("empty",): "none of these is the folder of a run",
        ("unborn",): "none of these runs has eval/return_mean or train/kl yet",
        ("damaged",): "progress.csv is damaged: could not convert",
        ("good", "--columns", "train/nothing"): "has no train/nothing; it has step,",
        (kept, "--columns", "train/entropy"): "--columns: .* name folders of runs",
        ("good", "--out", "bad.csv"): "--out bad.csv",
    }
    for words, told in cases.items():
        with pytest.raises(SystemExit, match=told) as stop:
            plot.main([*words])
        assert "\n" not in stop.value.code


def test_strip(tmp_path):
    """Frames of a run, in the colours that they had, in a small file."""
    image = pytest.importorskip("matplotlib.image")
    import strip

    flags = ["--env-id", "HalfCheetah-v4", "--total-timesteps", 2048, *small("ppo")]
    assert run("ppo", *flags, runs=tmp_path / "runs").returncode == 0
    folder, path = only_run(tmp_path / "runs"), tmp_path / "strip.png"
    strip.main([str(folder), "--first", "3", "--out", str(path)])
    assert path.stat().st_size < 150_000
    right = image.imread(path)[:, 600:, :3]
    orange = (right[..., 0] > 1.2 * right[..., 2]) & (right[..., 0] > 0.4)
    assert 0.002 < orange.mean() < 0.1  # the robot
    with pytest.raises(SystemExit, match="ended after 1000 steps"):
        strip.main([str(folder), "--first", "1000", "--out", str(path)])


def test_the_tables_are_those_of_the_results(tmp_path):
    pages = {name: (ROOT / name).read_text() for name in tables.PAGES}
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        emptied = re.sub(r"(?s)(<!-- [^e].*? -->).*?(<!-- end -->)", r"\1\n\2", text)
        assert len(emptied) < len(text)
        (tmp_path / name).write_text(emptied)
    tables.main(["--root", str(tmp_path)])
    assert pages == {name: (tmp_path / name).read_text() for name in pages}
    (tmp_path / "docs/hyperparameters.md").write_text("nothing to fill")
    with pytest.raises(SystemExit, match=r"hyperparameters\.md lacks <!-- decay -->"):
        tables.main(["--root", str(tmp_path)])


def write_results(path, lines, **columns):
    """A CSV of runs of 100 steps: (algorithm, environment, seed, step, return) each."""
    usual = dict.fromkeys(collect.COLUMNS, "0") | {"variant": ""}
    usual |= {"total_timesteps": "100", "kl": "0.01"} | columns
    names = "algorithm", "env_id", "seed", "step", "return_mean"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, collect.COLUMNS)
        writer.writeheader()
        writer.writerows(usual | dict(zip(names, x, strict=True)) for x in lines)


def test_a_score_is_the_mean_over_seeds_of_complete_runs(tmp_path, monkeypatch):
    lines = [(0, 50, 9), (0, 110, 1000), (1, 110, 2000), (2, 99, 9)]
    content = [("ppo", "Ant-v4", *line) for line in lines]
    write_results(tmp_path / "figure4.csv", content)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    ant = tables.cells(tables.PAPER_8M).splitlines()[2].split(" | ")[2]
    assert ant == "*1,500 ± 500 (2 seeds)* [5,671]"
    ant = tables.cells({"ppo": (0, 1500, 0, 0)}).splitlines()[2]
    assert "| 1,500 ± 500 (2 seeds) [1,500] |" in ant
    ant = tables.cells(tables.PAPER_8M, tables.mean_score)
    assert "| *1,500* [5,671] |" in ant
    ended = [row.split(" | ")[2:5] for row in tables.ends().splitlines()]
    assert ended[2:] == [["0", "1,000 ± 0", "1,000"], ["1", "2,000 ± 0", "2,000"]]


def test_a_score_before_the_end_is_that_of_the_line(tmp_path, monkeypatch):
    """A quarter of the way from 100 to 500, and from 300 to 700."""
    ends = 900_000, 1_300_000
    lines = [("ppo", "Ant-v4", 0, *row) for row in zip(ends, (100, 500), strict=True)]
    lines += [("ppo", "Ant-v4", 1, *row) for row in zip(ends, (300, 700), strict=True)]
    write_results(tmp_path / "figure4.csv", lines[::-1])
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    read = partial(tables.returns_at, 1e6)
    for paper, text in ((300, "300 ± 100 (2 seeds)"), (301, "*300 ± 100 (2 seeds)*")):
        ant = tables.cells({"ppo": (7, paper, 7, 7)}, read=read)
        assert f"| {text} [{paper}] |" in ant
    one, eight = tables.frameworks().splitlines()[-2:]
    assert one == "| **ours** | v4 | 1 | – | 300 ± 100 (2 seeds) | – | – |"
    assert eight == "| **ours** | v4 | 8 | – | 600 ± 100 (2 seeds) | – | – |"


def test_the_minutes_of_runs_are_a_range_and_of_one_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    ant = "ppo", "Ant-v4"
    write_results(tmp_path / "decay.csv", [(*ant, 0, 110, 1)], elapsed_seconds="2680")
    write_results(tmp_path / "figure4.csv", [(*ant, 0, 110, 1)], elapsed_seconds="60")
    more = tmp_path / "more.csv"
    write_results(more, [(*ant, 1, 110, 1)], elapsed_seconds="620")
    with open(tmp_path / "figure4.csv", "a") as file:
        file.write(more.read_text().split("\n", 1)[1])
    more.unlink()
    minutes = [row.split(" | ")[4] for row in tables.provenance().splitlines()[2:]]
    assert minutes == ["45", "1 to 10"]


def test_a_falling_rate_beside_the_usual(tmp_path, monkeypatch):
    """PPO's two seeds of figure4 beside one whose rate falls; A2C has none yet."""
    cheetah = harness.TASKS[0]
    lines = [("ppo", cheetah, 0, 110, 1000), ("ppo", cheetah, 1, 110, 2000)]
    lines += [("vmpo", cheetah, 0, 110, 5), ("ppo", "Ant-v4", 0, 110, 5)]
    write_results(tmp_path / "figure4.csv", lines)
    falling = {"variant": "learning_rate_decay=1"}
    write_results(tmp_path / "decay.csv", [("ppo", cheetah, 0, 110, 3000)], **falling)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    a2c, ppo = tables.decay().splitlines()[2:]
    assert a2c == "| A2C | – | – | 4,140 |"
    assert ppo == "| PPO | 1,500 ± 500 (2 seeds): 1,000, 2,000 | 3,000 | 6,414 |"
    plot, drawn = pytest.importorskip("plot"), []
    monkeypatch.setattr(plot, "draw_curves", lambda *drawing: drawn.append(drawing))
    monkeypatch.setattr(plot, "draw_comparison", lambda *_: None)
    csvs = [str(tmp_path / f"{name}.csv") for name in ("decay", "figure4")]
    plot.main([*csvs, "--out", str(tmp_path / "figures")])
    runs, panels, path, _ = drawn[0]
    assert path.name == "decay"
    assert panels == [(cheetah, plot.RETURN), (cheetah, plot.KL)]
    found = [(*run.series, run.env_id, run.seed) for run in runs]
    usual = [("ppo", "", cheetah, seed) for seed in (0, 1)]
    assert sorted(found) == [*usual, ("ppo", "learning_rate_decay=1", cheetah, 0)]


def test_the_interquartile_mean_over_the_paper(tmp_path, monkeypatch):
    """Of PPO's 0.5, 1, 1.5, 3 the middle two; A2C has one seed, so no interval."""
    pytest.importorskip("rliable")
    lines = [("ppo", "Ant-v4", 0, 110, 50), ("ppo", "Ant-v4", 1, 110, 100)]
    lines += [("ppo", "Hopper-v4", 0, 110, 300), ("ppo", "Hopper-v4", 1, 110, 600)]
    lines += [("a2c", "Hopper-v4", 0, 110, 100), ("a2c", "Ant-v4", 0, 90, 100)]
    write_results(tmp_path / "figure4.csv", lines)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    paper = {"ppo": (7, 100, 7, 200), "a2c": (7, 100, None, 400)}
    ppo, a2c, both = tables.ratios(paper).splitlines()[2:]
    # The middle two of a draw: (0.5 + 1.5) / 2 at least, (1 + 3) / 2 at most
    assert ppo == "| PPO | 2 | 1 | 2 | 1.25 | 1.00 to 2.00 |"
    assert a2c == "| A2C | 1 | 0 | 1 | 0.25 | – |"
    assert both == "| **all** | 3 | 1 | 1 | 0.75 | – |"


def test_a_cell_is_above_the_paper_by_all_of_its_seeds(tmp_path, monkeypatch):
    """As it is in the table of cells, however few seeds the other cells have."""
    pytest.importorskip("rliable")
    lines = [("ppo", "Ant-v4", 0, 110, 120), ("ppo", "Ant-v4", 1, 110, 60)]
    lines += [("ppo", "Hopper-v4", 0, 110, 50)]
    write_results(tmp_path / "figure4.csv", lines)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    paper = {"ppo": (7, 100, 7, 100)}
    assert "| *90 ± 30 (2 seeds)* [100] |" in tables.cells(paper)
    ppo = tables.ratios(paper).splitlines()[2]
    assert ppo.startswith("| PPO | 2 | 0 | 1 |")


def test_what_is_below_the_paper_and_by_how_much(tmp_path, monkeypatch):
    """900, 1,000 and 1,100: a std of 100, so a standard error of 57.7."""
    lines = [("ppo", "Ant-v4", seed, 110, 900 + 100 * seed) for seed in range(3)]
    lines += [("ppo", "Hopper-v4", 0, 110, 50), ("ppo", "Humanoid-v4", 0, 110, 50)]
    lines += [("a2c", "Ant-v4", 0, 90, 50)]
    write_results(tmp_path / "figure4.csv", lines)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    paper = {"ppo": (7, 2000, 50, 200), "a2c": (7, 100, None, 7)}
    assert tables.shortfalls(paper).splitlines()[2:] == [
        "| PPO | Ant-v4 | 3 | 1,000 | 2,000 | 50.0 % | 17.3 |",
        "| PPO | Hopper-v4 | 1 | 50 | 200 | 75.0 % | – |",
    ]


def test_the_paper_is_a_line_across(tmp_path, monkeypatch):
    plot = pytest.importorskip("plot")
    found = []
    monkeypatch.setattr(plot, "save", lambda figure, path: found.append(figure))
    lines = [("ppo", "Ant-v4", 0, step, step) for step in (50, 110)]
    lines += [("vmpo", "Hopper-v4", 0, step, step) for step in (20, 40)]
    write_results(tmp_path / "figure4.csv", lines)
    monkeypatch.setattr(plot, "draw_comparison", lambda *_: None)
    plot.main([str(tmp_path / "figure4.csv"), "--out", str(tmp_path)])
    for figure, across in zip(
        found, ({5671: "#0072B2", 2150: "#D55E00"}, {}), strict=True
    ):
        assert len({axes.get_xlim() for axes in figure.axes}) == 1
        flat = [
            x for axes in figure.axes for x in axes.lines if len({*x.get_ydata()}) < 2
        ]
        flat = {x.get_ydata()[0]: x.get_color() for x in flat}
        assert {y: color for y, color in flat.items() if y > 1000} == across
        assert ("the paper" in str(figure.legends[0].texts)) == bool(across)


def test_the_paper_cells():
    """Table 3's 20 cells; A2C's are shared by three figures where they are the same."""
    parser = harness.make_parser("")
    names = ["figure4", "figure6", "figure7", "decay"]
    _, cells = harness.parse(parser, [*names, "--seeds", "0"])
    assert [sum(c.experiment == name for c in cells) for name in names] == [20, 3, 4, 2]
    assert len({cell.identity for cell in cells}) == 28
    for cell in cells:
        assert cell.config["eval_every"] == cell.config["total_timesteps"] // 30
        flags = [*cell.flags, "--vectorization=async", "--runs-dir=elsewhere"]
        same = harness.read_flags(cell.algorithm, flags)
        assert harness.identity(cell.algorithm, same) == cell.identity
        other = same | {"learning_rate_decay": 0.5}
        assert harness.identity(cell.algorithm, other) != cell.identity


@pytest.mark.parametrize("env_id", harness.TASKS)
def test_bodies_touch_where_the_papers_environments_have_them_touch(env_id):
    """From 3.5.0 on MuJoCo adds the margins of two geoms: contact is twice as early."""
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    env.action_space.seed(0)
    while not env.data.ncon:
        env.step(env.action_space.sample())
    margin = env.data.contact.includemargin.max()
    assert margin == env.model.geom_margin.max()
