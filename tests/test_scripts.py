"""Each script through its command line, as a user runs it."""

import json

import pytest
from common import NAMES, only_run, rows, run, run_command, small

MUJOCO, DISCRETE = "InvertedPendulum-v4", "CartPole-v1"


def check_run(folder, result, algorithm, env_id):
    """What every finished run leaves behind, and a clean console."""
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    config = json.loads((folder / "config.json").read_text())
    assert config["algorithm"] == algorithm
    assert config["config"]["env_id"] == env_id
    table = rows(folder)
    assert [int(row["iteration"]) for row in table] == [*range(1, len(table) + 1)]
    last, total = table[-1], config["config"]["total_timesteps"]
    assert int(table[-2]["step"]) < total <= int(last["step"])
    assert last["eval/return_mean"] != ""
    for name, value in last.items():
        if value != "":
            assert abs(float(value)) < 1e9, name
    empty = {name for name, value in last.items() if value == ""}
    assert empty <= {"train/episode_return", "train/episode_length"}
    critic = {"train/value_loss", "train/explained_variance"} <= last.keys()
    assert critic == (algorithm != "reinforce")
    assert ("train/std" in last) == (env_id != DISCRETE)
    return last


OWN_COLUMNS = {
    "reinforce": set(),
    "a2c": set(),
    "trpo": {"cg_residual", "line_search_steps", "step_accepted"},
    "ppo": {"clip_fraction"},
    "vmpo": {"eta", "nu_mean", "nu_std", "kl_mean", "kl_std", "temperature_loss"},
}


@pytest.mark.parametrize("algorithm", NAMES)
def test_mujoco_filmed_tracked_and_played_again(algorithm, tmp_path):
    runs, where = tmp_path / "runs", tmp_path / "somewhere"
    where.mkdir()
    flags = ["--env-id", MUJOCO, "--total-timesteps", 190, "--track", "--capture-video"]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    flags = [*flags, *small(algorithm)]
    result = run_command(algorithm, *flags, runs=runs, cwd=where, **offline)
    folder = only_run(runs)
    last = check_run(folder, result, algorithm, MUJOCO)
    shared = set(rows(folder)[0]) - {f"train/{name}" for name in OWN_COLUMNS[algorithm]}
    assert len(shared) == 18 - 2 * (algorithm == "reinforce")
    assert list(where.iterdir()) == []  # nothing strays into the working directory
    films = list((folder / "videos").glob("*.mp4"))
    assert films
    assert min(film.stat().st_size for film in films) > 1000
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))

    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    again = run_command(algorithm, "--evaluate", folder, runs=runs, cwd=where)
    assert again.returncode == 0, again.stderr
    score = {name: float(last[name]) for name in last if name.startswith("eval/")}
    assert str(score) in again.stdout
    assert before == {path: path.read_bytes() for path in folder.glob("*.*")}


@pytest.mark.parametrize("algorithm", NAMES)
def test_discrete_in_processes_of_their_own(algorithm, tmp_path):
    flags = ["--env-id", DISCRETE, "--total-timesteps", 190, *small(algorithm)]
    result = run(algorithm, *flags, "--vectorization", "async", runs=tmp_path)
    folder = only_run(tmp_path)
    check_run(folder, result, algorithm, DISCRETE)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "checkpoint.pt", "best.pt", "progress.csv")
    }
    assert "play it" in result.stdout


@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("reinforce", ["--baseline", "--entropy-coefficient", 0.01, "--num-epochs", 2]),
        ("a2c", ["--gae-lambda", 1, "--no-normalize-advantages", "--num-epochs", 2]),
        ("trpo", ["--fisher-fraction", 0.2, "--precision", "bfloat16"]),
        ("ppo", ["--no-squash-actions", "--entropy-coefficient", 0.01]),
        ("ppo", ["--no-normalize-observations", "--no-normalize-rewards"]),
        ("ppo", ["--precision", "bfloat16"]),
        ("vmpo", ["--importance-weights", "--normalize-advantages"]),
        ("vmpo", ["--no-top-half"]),
    ],
)
def test_options(algorithm, flags, tmp_path):
    shape = ["--env-id", "Pendulum-v1", "--total-timesteps", 190, *small(algorithm)]
    plain = run(algorithm, *shape, runs=tmp_path / "plain")
    other = run(algorithm, *shape, *flags, runs=tmp_path / "other")
    assert (plain.returncode, other.returncode) == (0, 0), other.stderr
    first = [rows(only_run(tmp_path / name))[0] for name in ("plain", "other")]
    entropies = {row["train/entropy"] for row in first}
    losses = {row.get("train/value_loss") for row in first}
    assert len(entropies) == 2 or len(losses) == 2  # the option does something
    assert all(float(e) == float(e) for e in entropies)


def test_a_run_goes_on_where_it_was_left(tmp_path):
    """The exactness of resuming is tested with the faults; here: that it goes on."""
    flags = ["--env-id", "Pendulum-v1", "--total-timesteps", 640, *small("ppo")]
    result = run("ppo", *flags, "--checkpoint-every", 1, runs=tmp_path)
    assert result.returncode == 0, result.stderr
    again = run("ppo", "--resume", only_run(tmp_path), runs=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(rows(only_run(tmp_path))) == 9  # the first has two batches
