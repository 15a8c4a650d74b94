"""docs/benchmark on a tiny configuration, without the peers."""

import csv
import json
import re
import sys
from statistics import median

import pytest
from common import ROOT

sys.path.insert(0, str(ROOT / "docs" / "benchmark"))

import measure  # noqa: E402
import speed  # noqa: E402

TINY = ["--unroll-length", "32", "--policy-layers", "8", "--value-layers", "8"]
IN_GIT = str(speed.FOLDER)
FIRST = "env_id,algorithm,precision,implementation,repeat"


def read(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_speed(tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    choice = ["--env-id", "Pendulum-v1", "--algorithm", "ppo", "--precision", "float32"]
    ways = ["--repeats", "1", "--threads", "1", "--no-peers", "--output", str(tmp_path)]
    assert speed.main([*choice, *ways, "--", *TINY]) == 0
    rows = {row["implementation"]: row for row in read(tmp_path / "speed.csv")}
    assert {*rows} == {"help", "ours", "limit"}
    assert float(rows["help"]["startup_seconds"]) > 0
    for name in speed.MEASURED:
        assert float(rows["ours"][name]) > 0
    for row in (rows["ours"], rows["limit"]):
        whole, *parts = (float(row[name]) for name in speed.MEASURED[:3])
        assert whole == pytest.approx(1 / sum(1 / part for part in parts), rel=1e-4)
    about = json.loads((tmp_path / "speed.json").read_text())
    assert about["threads"] == 1
    assert about["flags"] == TINY
    assert "| Pendulum-v1 | PPO | float32 |" in capsys.readouterr().out
    assert image.imread(tmp_path / "speed.png").std() > 0
    assert (tmp_path / "speed.svg").exists()


def test_profile(capsys):
    """No function that it takes the time of has another name now."""
    choice = ["--env-id", "Pendulum-v1", "--algorithm", "ppo", "--precision", "float32"]
    flags = ["--", *TINY, "--unroll-length", "256"]
    assert speed.main([*choice, "--threads", "1", "--profile", *flags]) == 0
    shown = capsys.readouterr().out
    for label in set(measure.LABELS) - {measure.SIMULATOR}:
        share = re.search(rf"\| {label} \| \d+ \| (.*)% \|", shown)[1]
        assert float(share) > 0, shown


def test_ratios(tmp_path):
    """Medians, ranges, and ratios of what was measured in the same repeat."""
    lines = [
        f"{FIRST},{','.join(speed.MEASURED)}",
        "Ant-v4,ppo,float32,ours,0,300,1,1,500,2",
        "Ant-v4,ppo,float32,peer,0,100,1,1,400,4",
        "Ant-v4,ppo,float32,limit,0,600,1,1,,",
        "Ant-v4,ppo,float32,peer,1,400,1,1,400,4",
        "Ant-v4,ppo,float32,ours,1,800,1,1,500,2",
        "Ant-v4,ppo,bfloat16,ours,1,1000,1,1,500,2",
        "Ant-v4,vmpo,float32,ours,0,150,1,1,500,2",
    ]
    (tmp_path / "speed.csv").write_text("\n".join(lines))
    text = speed.tables(speed.read_results(tmp_path / "speed.csv"))
    ppo = "| 550 (300–800) | 250 (100–400) | SB3 | 2.50 (2.00–3.00) | 600 | 50% |"
    assert f"| Ant-v4 | PPO | float32 {ppo}" in text
    assert "| bfloat16 | 1,000 | 250 (100–400) | SB3 | 2.50 | – | – |" in text
    assert "| V-MPO | float32 | 150 | 550 (300–800) | our PPO | 0.50 | – | – |" in text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--peer-python", "/none/python"], "--peer-python /none/python: no Stable-"),
        (["--env-id", "No-v0", "--no-peers"], "--env-id No-v0"),
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--algorithm", "dqn"], "--algorithm: invalid choice"),
        (["--redraw", "--output", "/none"], "/none/speed.csv is not a speed.csv"),
        (["--output", IN_GIT, "--env-id", "Ant-v4"], "has the results in git"),
        (["--output", IN_GIT, "--repeats", "1"], "has the results in git"),
        (["--output", IN_GIT, "--no-peers"], "has the results in git"),
        (["--output", IN_GIT, "--", "--num-envs", "4"], "has the results in git"),
    ],
)
def test_mistakes(flags, named, capsys):
    pytest.importorskip("matplotlib")
    kept = {path: path.read_bytes() for path in speed.FOLDER.glob("speed.*")}
    with pytest.raises(SystemExit) as stop:
        speed.main(flags)
    assert kept == {path: path.read_bytes() for path in kept}
    text = capsys.readouterr().err if stop.value.code == 2 else stop.value.code
    assert named in text


def test_the_results_are_elsewhere_than_those_in_git(monkeypatch):
    for words in ([], ["--env-id", "Ant-v4"]):
        options, _ = speed.parse(words)
        assert options.output.resolve() != speed.FOLDER
    whole = ["--output", IN_GIT, "--peer-python", "python"]
    assert speed.parse(whole)[0].output == speed.FOLDER
    monkeypatch.chdir(speed.FOLDER.parent)
    with pytest.raises(SystemExit, match="--output: benchmark is in git here"):
        speed.parse([])


def test_the_summary_is_of_the_measurements():
    """The README's table of ratios, and its chart's claims, are those of speed.csv."""
    results = speed.read_results(speed.FOLDER / "speed.csv")
    page = (speed.FOLDER / "README.md").read_text()
    block = page[page.index("| | our goal |") :].split("\n\n")[0]
    header, _, *lines = (
        [x.strip() for x in y.split("|")[1:-1]] for y in block.split("\n")
    )
    names = {name: key for key, name in speed.NAMES.items()}
    assert len(lines) == 5
    for name, _, *told in lines:
        algorithm, _, precision = name.partition(", ")
        for env_id, number in zip(header[2:], told, strict=True):
            kind = names[algorithm], precision or "float32", "ours"
            cell = speed.Cell(f"{env_id}-v4", *kind)
            other, _ = speed.comparison(cell)
            ours, theirs = (results[x]["steps_per_second"] for x in (cell, other))
            assert number == f"{median(ours[i] / theirs[i] for i in ours):.2f}", name
