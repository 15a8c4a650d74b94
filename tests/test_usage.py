"""A person's mistakes: one line that says what is wrong, status 2, nothing touched."""

import json
import shutil
import subprocess
import sys
from typing import get_type_hints

import pytest
from common import SCRIPTS, command, environment, only_run, small

PPO = SCRIPTS["ppo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run to resume and evaluate."""
    runs = tmp_path_factory.mktemp("runs")
    flags = ["--env-id", "Pendulum-v1", *small("ppo"), "--total-timesteps", 60]
    arguments = [str(flag) for flag in [*flags, "--runs-dir", runs]]
    PPO.train(PPO.parse(arguments))
    return only_run(runs)


NUMBERS = {  # flag: values out of range, of the wrong type, or missing
    "--seed": ["-1", "2147483648", "x", "1.5"],
    "--total-timesteps": ["0", "-5", "nan", "1e6"],
    "--learning-rate": ["0", "-1e-3", "nan", "inf", "fast"],
    "--gamma": ["-0.1", "1.01", "nan"],
    "--max-grad-norm": ["0", "-1", "inf"],
    "--policy-layers": ["0", "32 -1", "a"],
    "--value-layers": ["0", "1.5"],
    "--num-envs": ["0", "-8", "8.0"],
    "--unroll-length": ["0", "nan"],
    "--num-minibatches": ["0", "3", "16385"],
    "--num-epochs": ["0", "ten"],
    "--gae-lambda": ["-1", "2", "nan"],
    "--entropy-coefficient": ["-0.1", "nan", "inf"],
    "--epsilon": ["0", "-0.2", "nan"],
    "--eval-every": ["0", "-1"],
    "--eval-episodes": ["0", "x"],
    "--checkpoint-every": ["0", "0.5"],
}
OTHER = [  # flags, and what the line must name
    ("--device tpu", "--device"),
    ("--device cuda", "--device cuda"),
    ("--precision float16", "--precision"),
    ("--vectorization threads", "--vectorization"),
    ("--env-id HalfCheeta-v4", "HalfCheetah"),
    ("--env-id HalfCheetah-v99", "--env-id HalfCheetah-v99"),
    ("--env-id nowhere:Thing-v0", "nowhere"),
    ("--env-id a:b:c-v0", "--env-id a:b:c-v0"),
    ("--env-id", "--env-id"),
    ("--env-id tasks:Broken-v0", "is not installed"),
    ("--env-id tasks:Images-v0", "observation"),
    ("--env-id tasks:ManyActions-v0", "MultiDiscrete"),
    ("--env-id tasks:Unbounded-v0", "bounded Box"),
    ("--env-id tasks:Integers-v0", "Box of floats"),
    ("--no-such-flag", "--no-such-flag"),
    ("stray", "stray"),
    ("--render", "--evaluate"),
    ("--resume /nowhere", "/nowhere"),
    ("--evaluate /nowhere", "/nowhere"),
    ("--resume {folder} --evaluate {folder}", "--resume and --evaluate"),
    ("--resume=", "--resume and --evaluate"),
    ("--evaluate=", "--resume and --evaluate"),
    ("--resume {folder} --gamma 0.5", "--gamma"),
    ("--resume {folder} --env-id CartPole-v1", "--env-id"),
    ("--resume {folder} --total-timesteps 99999", "--total-timesteps"),
    ("--resume {folder} --seed 9", "--seed"),
    ("--evaluate {folder} --env-id CartPole-v1", "--env-id"),
    ("--evaluate {folder} --eval-episodes 0", "--eval-episodes"),
    ("--evaluate {folder} --render", "--render: there is no display"),
    ("--evaluate {folder}/progress.csv", "config.json"),
    ("--evaluate {folder} --capture-video", "--capture-video"),  # pygame is not ours
    ("--env-id CartPole-v1 --capture-video", "--capture-video"),
    ("--env-id tasks:Nowhere-v0", "tasks:Nowhere-v0"),
    ("--runs-dir /proc/none", "--runs-dir"),
]
TABLE = [(f"{flag} {v}", flag) for flag, values in NUMBERS.items() for v in values]
TABLE += OTHER


def everything(folder) -> dict:
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def call(arguments: str, capfd, monkeypatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ppo.py", *arguments.split()])
    monkeypatch.setattr(PPO.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        PPO.main()
    out, err = capfd.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize(("arguments", "named"), TABLE)
def test_a_mistake_gets_one_line(
    arguments, named, folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    before = everything(folder)
    code, out, err = call(arguments.format(folder=folder), capfd, monkeypatch)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("ppo.py: ")
    assert named in line
    assert len(line) > len("ppo.py: ") + len(named) + 8  # says more than the name
    assert out == ""
    assert everything(folder) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_of_every_script_has_a_range(name):
    """The flags that only one algorithm has, too."""
    script, tried = SCRIPTS[name], 0
    hints = get_type_hints(script.Config, include_extras=True)
    for field, kind in hints.items():
        if getattr(kind, "__origin__", None) is tuple:
            kind = kind.__args__[0]
        if not hasattr(kind, "__metadata__"):
            assert kind not in (int, float), field
            continue
        low, high = kind.__metadata__
        flag = "--" + field.replace("_", "-")
        nan = [] if kind.__origin__ is int else ["nan"]
        for value in (low - 1, 2 * high + 1, *nan):
            with pytest.raises(script.UsageError, match=f"{flag} must be from"):
                script.parse([flag, str(value)])
            tried += 1
    assert tried >= 30


def test_no_minibatch_of_reinforce_is_empty():
    with pytest.raises(SCRIPTS["reinforce"].UsageError, match="--num-minibatches"):
        SCRIPTS["reinforce"].parse(["--num-minibatches", "11", "--unroll-length", "10"])


def test_tracking_without_a_login_writes_nothing(tmp_path):
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    home |= {"WANDB_API_KEY": "", "WANDB_CONFIG_DIR": str(tmp_path / "wandb")}
    result = subprocess.run(
        command("ppo", "--env-id", "Pendulum-v1", "--track", runs=tmp_path / "runs"),
        env=environment(**home, WANDB_MODE="online"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("ppo.py: --track: ")
    assert "wandb login" in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_table_is_long_enough():
    assert len(TABLE) >= 60


@pytest.mark.parametrize(
    ("flag", "package"), [("track", "wandb"), ("capture-video", "moviepy")]
)
def test_a_missing_package_is_named(flag, package, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = PPO.importlib.util.find_spec
    absent = lambda name, *rest: None if name == package else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(PPO.importlib.util, "find_spec", absent)
    code, _, err = call(f"--{flag}", capfd, monkeypatch)
    assert code == 2
    assert f"--{flag} needs {package}: pip install {package}" in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_folder_is_not_touched(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PPO.time, "strftime", lambda _: "now")
    taken = tmp_path / "runs" / "Pendulum-v1__ppo__0__now"
    taken.mkdir(parents=True)
    (taken / "config.json").write_text("mine")
    code, _, err = call("--env-id Pendulum-v1", capfd, monkeypatch)
    assert code == 2
    assert "exists" in err or "not empty" in err
    assert everything(tmp_path).keys() == {
        tmp_path / "runs",
        taken,
        taken / "config.json",
    }
    assert (taken / "config.json").read_text() == "mine"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("gamma", "gama"),
        lambda text: text.replace("0.99", "7"),
        lambda text: text.replace("0.99", '"x"'),
        lambda text: text.replace('"ppo"', '"a2c"'),
        lambda text: text.replace('"ppo"', "5"),
    ],
)
def test_a_damaged_config_is_refused(damage, folder, tmp_path, capfd, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "run")
    text = (copy / "config.json").read_text()
    assert json.loads(text)["algorithm"] == "ppo"
    (copy / "config.json").write_text(damage(text))
    for flag in ("--resume", "--evaluate"):
        code, _, err = call(f"{flag} {copy}", capfd, monkeypatch)
        assert code == 2
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "iteration,step\n", "garbage"])
def test_a_damaged_table_is_refused(content, folder, tmp_path, capfd, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "progress.csv").write_text(content)
    code, _, err = call(f"--resume {copy}", capfd, monkeypatch)
    assert code == 2
    assert "progress.csv lacks row 1" in err
    assert (copy / "progress.csv").read_text() == content
