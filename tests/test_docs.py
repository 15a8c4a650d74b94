"""The docs: links lead somewhere, tests that are named exist, snippets run.

What their tables quote of the code is compared in test_reading.py.
"""

import csv
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unicodedata import category

import pytest
import test_theory
import torch
from common import ROOT, environment, only_run, rows_without_times, run, small

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


# ── links ───────────────────────────────────────────────────────────────────────────


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ +(.+?)#* *$", prose(text), flags=re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = [c for c in heading if c in "-_ " or category(c)[0] in "LMN"]
        name = "".join(kept).replace(" ", "-")
        found.append(f"{name}-{n}" if (n := found.count(name)) else name)
    return {*found, *re.findall(r'<a (?:id|name)="([^"]+)"', text)}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to files and headings that are not there."""
    broken = []
    inline = re.sub(r"`[^`\n]*`", "", prose(text))
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)", inline):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            content = text if target == page else target.read_text()
            broken += [link] * (anchor not in anchors(content))
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken_links(page, page.read_text())


def test_a_broken_link_is_found():
    page = ROOT / "docs" / "theory.md"
    good = "[a](ppo.md#run-it) ![b](../README.md) [c](#here) [d](https://e.org/#f)"
    assert broken_links(page, f"## Here?\n{good}") == []
    bad = ["nowhere.md", "ppo.md#nowhere", "#there", "../ppo.md"]
    assert broken_links(page, " ".join(f"[x]({link})" for link in bad)) == bad


# ── names of tests, and figures ─────────────────────────────────────────────────────


def defined(path: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", path.read_text(), flags=re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_test_that_a_page_names_exists(page):
    files = sorted((ROOT / "tests").glob("test_*.py"))
    exist = set().union(*map(defined, files)) | {path.stem for path in files}
    assert not set(re.findall(r"\btest_\w+", page.read_text())) - exist


def test_the_theory_page_tells_of_each_test():
    lines = (ROOT / "docs" / "theory.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    named = re.findall(r"\| `(test_\w+)` \|$", "\n".join(rows), flags=re.M)
    assert sorted(named) == sorted(defined(ROOT / "tests" / "test_theory.py"))


def test_the_theory_page_has_the_angles_that_are_tested():
    text = (ROOT / "docs" / "theory.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+)° \| ([\d.]+)° \|$", text, flags=re.M)
    assert tuple(tuple(map(float, row)) for row in rows) == test_theory.ANGLES


def test_the_kls_of_one_epoch_are_those_that_the_pages_name():
    """docs/reinforce.md and docs/errata.md, of docs/experiments/results/figure7.csv."""
    with open(ROOT / "docs/experiments/results/figure7.csv", newline="") as file:
        table = [
            row for row in csv.DictReader(file) if row["variant"] == "num_epochs=1"
        ]
    for algorithm, low, high in (("reinforce", 1e-6, 4e-5), ("a2c", 1e-4, 2e-3)):
        kls = [float(row["kl"]) for row in table if row["algorithm"] == algorithm]
        assert low / 2 < min(kls)
        assert high / 2 < max(kls) < high
    for page in "reinforce.md", "errata.md":
        assert "10⁻⁶ to 4·10⁻⁵" in (ROOT / "docs" / page).read_text()


# ── docs/your-own-work.md ───────────────────────────────────────────────────────────


def blocks() -> dict[str, list[str]]:
    """The fenced blocks of the page, by heading; the language is their first line."""
    text, found = (ROOT / "docs" / "your-own-work.md").read_text(), {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        fences = re.findall(r"^```(\w+)\n(.*?)^```$", body, flags=re.M | re.S)
        found[heading] = [f"{language}\n{code}" for language, code in fences]
    return found


BLOCKS = blocks()
USED = []  # blocks that a test has run; the last test asks for all


def block(heading: str, number: int, language: str) -> str:
    """The code of a block."""
    USED.append((heading, number))
    name, _, code = BLOCKS[heading][number].partition("\n")
    assert name == language
    return code


def smaller(code: str, **replacements: str) -> str:
    """With other numbers; each must be there to be replaced."""
    for old, new in replacements.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def execute(code: str, namespace: dict | None = None) -> dict:
    """As a script in the current folder, or as the next lines of one."""
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    exec(compile(code, "docs/your-own-work.md", "exec"), namespace)
    return namespace


STUB = f"""#!/usr/bin/env bash
# The user's python, but a short run of the script in question
script=$1; shift
[[ " $* " == *" --total-timesteps "* ]] || set -- "$@" --total-timesteps 100
[ -e "$script" ] || script={ROOT}/$script
exec {sys.executable} "$script" "$@" {" ".join(map(str, small("ppo")))}
"""


def shell(code: str, folder: Path) -> str:
    """Run by bash in a folder in which `python` makes short runs; what it printed."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").write_text(STUB)
    (folder / "bin" / "python").chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    options = {"cwd": folder, "env": environment(PATH=path), "timeout": 300}
    options |= {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", code], **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command(code: str, folder: Path) -> str:
    """The same of one line, faster: in a fork of this process."""
    python, script, *flags = shlex.split(code)
    assert python == "python"
    result = run(Path(script).stem, *small("ppo"), *flags, runs=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, runs/RUN."""
    folder = tmp_path_factory.mktemp("finished")
    flags = ["--env-id", "Pendulum-v1", *small("ppo"), "--total-timesteps", 128]
    assert run("ppo", *flags, runs=folder / "runs").returncode == 0
    only_run(folder / "runs").rename(folder / "runs" / "RUN")
    return folder


LOAD, EXPORT = "Load a policy and act with it", "Export it"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_load_act_and_export(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    here = execute(block(LOAD, 0, "python"))
    assert block(LOAD, 0, "python").count("\n") <= 17
    with open("runs/RUN/progress.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    execute(block(LOAD, 1, "python"), here)
    printed = capsys.readouterr().out
    assert f"return {here['score']:.1f}" in printed
    assert here["score"] < 0
    assert float(last["eval/return_mean"]) < 0
    # the same action as the script's own evaluation
    agent, statistics = here["agent"], here["agent"].statistics
    # As in training: far from there tanh saturates, and hides what differs
    observations = statistics.mean + statistics.deviation * torch.randn(5, 3)
    observations = observations.float()
    with torch.no_grad():
        expected = agent.policy.to_environment(agent.policy(observations).mode)
    assert expected.abs().median() < 1.5  # of 2
    for seen, action in zip(observations, expected, strict=True):
        torch.testing.assert_close(torch.tensor(here["act"](seen.numpy())), action)
    execute(block(EXPORT, 0, "python"), here)
    there = execute(block(EXPORT, 1, "python"))
    with torch.no_grad():
        for actor in there["actor"], there["older"]:
            torch.testing.assert_close(actor(observations), expected)


def test_an_environment_of_ones_own(tmp_path):
    heading = "Your own environment, with arguments"
    (tmp_path / "catch.py").write_text(block(heading, 0, "python"))
    (tmp_path / "moon.py").write_text(block(heading, 2, "python"))
    for number, name in ((1, "FastCatch"), (3, "Moon")):
        code = smaller(block(heading, number, "bash"), **{"200000": "100"})
        assert f"ppo: {name}-v0, " in command(code, tmp_path)
    check = "import gymnasium as gym, catch, moon\n"
    check += "assert gym.make('FastCatch-v0').unwrapped.speed == 0.5\n"
    check += "assert gym.make('Catch-v0').unwrapped.speed == 0.1\n"
    check += "assert gym.make('Moon-v0').unwrapped.g == 1.62\n"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, timeout=120)


def patched(text: str, diff: str) -> str:
    """With the lines of a diff, whose others must be there, together, and once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert old != new
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_a_variant(tmp_path, monkeypatch):
    """It ends after the first epoch where any KL is too much, as with one epoch."""
    heading = "A variant of an algorithm"
    text = (ROOT / "ppo.py").read_text()
    (tmp_path / "ppo.py").write_text(text)
    shell(block(heading, 0, "bash"), tmp_path)
    copy, added = tmp_path / "ppo_target_kl.py", 0
    for number in (1, 2, 3):
        diff = block(heading, number, "diff")
        copy.write_text(patched(copy.read_text(), diff))
        added += len(re.findall(r"^\+", diff, flags=re.M))
    assert added == 1 + 5  # its name, and five lines
    line = smaller(block(heading, 4, "bash"), **{"HalfCheetah-v4": "Pendulum-v1"})
    shell(line, tmp_path)
    assert "__ppo_target_kl__" in only_run(tmp_path / "runs").name
    monkeypatch.syspath_prepend(tmp_path)
    variant, results = importlib.import_module("ppo_target_kl"), []
    base = variant.Config("Pendulum-v1", 0, 100, num_envs=2, unroll_length=32)
    for i, (epochs, target_kl) in enumerate([(5, 0.0), (1, 9.0), (5, 9.0)]):
        more = {"eval_episodes": 0, "runs_dir": str(tmp_path / f"runs{i}")}
        config = replace(base, num_epochs=epochs, target_kl=target_kl, **more)
        results.append(rows_without_times(variant.train(config)))
    assert results[0] == results[1] != results[2]


def test_a_sweep_in_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = "128, num_envs=2, unroll_length=32, num_minibatches=2, eval_episodes=1"
    code = smaller(block("Sweeps", 0, "python"), **{"200_000": sizes})
    execute(code)
    assert len([*Path("sweep").glob("epsilon-*/*/checkpoint.pt")]) == 4
    printed = capsys.readouterr().out
    assert len(re.findall(r"^0\.[13] [01] -[\d.]+$", printed, flags=re.M)) == 4


def test_a_sweep_in_a_shell(tmp_path):
    numbers = {"0 1 2": "0 1", "1e6": "100", "Hopper-v4": "Pendulum-v1"}
    shell(smaller(block("Sweeps", 1, "bash"), **numbers), tmp_path)
    seeds = [path.name.split("__")[2] for path in (tmp_path / "sweep").iterdir()]
    assert sorted(seeds) == ["0", "1"]


def test_long_runs(finished, tmp_path):
    code = smaller(block("Long runs", 0, "bash"), **{"Ant-v4": "Pendulum-v1"})
    shell(code + "wait", tmp_path)
    assert "done; play it" in (tmp_path / "ant.log").read_text()
    shutil.copytree(finished / "runs", tmp_path / "runs", dirs_exist_ok=True)
    folder = tmp_path / "runs" / "RUN"
    flags = [" --total-timesteps 256", ""]  # the first as if it had been stopped
    numbers = [{}, {"16e6": "4e2"}]
    lengths = [len(rows_without_times(folder))]
    for i in range(2):
        code = smaller(block("Long runs", i + 1, "bash").strip(), **numbers[i])
        command(code + flags[i], tmp_path)
        lengths.append(len(rows_without_times(folder)))
    assert lengths == [1, 3, 6]


def test_a_plot(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    here = execute(block("Plots of your own runs", 0, "python"))
    assert Path("returns.png").stat().st_size > 5000
    assert here["steps"]
    assert len(here["plt"].gca().lines) == 1
    here["plt"].close()


def test_each_snippet_is_run():
    """By the tests above, when they have run."""
    source = Path(__file__).read_text()
    for heading, found in BLOCKS.items():
        assert found, heading
        assert f'"{heading}"' in source
    if len({heading for heading, _ in USED}) == len(BLOCKS):
        every = {
            (heading, n) for heading in BLOCKS for n in range(len(BLOCKS[heading]))
        }
        assert {*USED} == every
