"""Processes of torchrun beside the threads of one, on the same cores.

    python docs/benchmark/scaling.py
    python docs/benchmark/scaling.py --env-id Ant-v4 --algorithm ppo --no-peers

One process with as many threads as there are processes on the other side, and where
there is one, Stable-Baselines3 (PPO, A2C) or sb3-contrib (TRPO) with those threads; all
in turns. Writes scaling.csv, a row for each measurement, and prints the table.
Flags after `--` are the scripts'.
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from speed import (
    MEASURED,
    NAMES,
    PEERS,
    ROOT,
    begin,
    measure,
    peer_versions,
    read_flags,
    spread,
    table,
)
from speed import parse as parse_speed

CELL = ["env_id", "algorithm", "precision"]
COLUMNS = [*CELL, "side", "repeat", *MEASURED[:3]]
SIDES = {"threads": "one process", "processes": "torchrun", "peer": "peer"}


def ours(side: str, algorithm: str, flags: list[str], options) -> dict[str, float]:
    """Steps per second in the last iterations of a training by the command line."""
    count, script = options.threads, str(ROOT / f"{algorithm}.py")
    launch = [sys.executable, script]
    if side == "processes":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch, count = [*launcher, "--nproc-per-node", str(count), script], 1
    config = read_flags(algorithm, flags)
    batch = config["num_envs"] * config["unroll_length"]
    total = (2 + options.iterations) * batch  # the first two are one iteration
    with tempfile.TemporaryDirectory() as runs:
        length = ["--total-timesteps", str(total), "--eval-episodes", "0"]
        command = [*launch, *flags, *length, "--runs-dir", runs]
        threads = os.environ | {"OMP_NUM_THREADS": str(count)}
        run = subprocess.run(command, env=threads, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{run.stderr}")
        (progress,) = Path(runs).glob("*/progress.csv")
        with open(progress, newline="") as file:
            rows = [*csv.DictReader(file)][-options.iterations :]
    # The harmonic mean: all iterations have as many steps
    return {
        name: len(rows) / sum(1 / float(row[f"time/{name}"]) for row in rows)
        for name in MEASURED[:3]
    }


def cells(options, extra: list[str]):
    """What to measure, each with its flags."""
    for env_id in options.env_id:
        for algorithm in options.algorithm:
            for precision in options.precision or ["float32", "bfloat16"]:
                if precision == "float32" or algorithm == "ppo" or options.precision:
                    flags = ["--env-id", env_id, "--precision", precision, *extra]
                    yield (env_id, algorithm, precision), flags


def measure_all(path: Path, options, extra: list[str]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for repeat in range(options.repeats):
            for cell, flags in cells(options, extra):
                for side in list(SIDES)[:: -1 if repeat % 2 else 1]:
                    if side != "peer":
                        rates = ours(side, cell[1], flags, options)
                    elif options.no_peers or cell[1] not in PEERS:
                        continue
                    else:
                        request = {"algorithm": cell[1], "flags": flags}
                        request["config"] = read_flags(cell[1], flags)
                        request["iterations"] = options.iterations
                        (rates,) = measure("peer", request, " ".join(cell), options)
                    row = dict(zip(CELL, cell, strict=True))
                    row |= {"side": side, "repeat": repeat}
                    row |= {name: f"{rates[name]:.6g}" for name in MEASURED[:3]}
                    writer.writerow(row)
                    file.flush()
                    print(*row.values(), file=sys.stderr)


def results_table(path: Path) -> str:
    """Medians with their range, and ratios of what was measured in the same repeat."""
    with open(path, newline="") as file:
        found = {
            (*(row[name] for name in CELL), row["side"], row["repeat"]): row
            for row in csv.DictReader(file)
        }
    repeats = dict.fromkeys(key[-1] for key in found)

    def values(cell, side, name):
        keys = [(*cell, side, repeat) for repeat in repeats]
        return {k[-1]: float(found[k][name]) for k in keys if k in found}

    def ratio(cell, other, name) -> str:
        ours, theirs = (values(cell, side, name) for side in ("processes", other))
        ratios = [ours[i] / theirs[i] for i in ours if i in theirs]
        return spread(ratios, "{:.2f}") if ratios else "–"

    lines = []
    for cell in dict.fromkeys(key[:3] for key in found):
        env_id, algorithm, precision = cell
        line = [env_id, NAMES[algorithm], precision]
        for side in SIDES:
            speeds = values(cell, side, "steps_per_second").values()
            line.append(spread(speeds, "{:,.0f}") if speeds else "–")
        line += [ratio(cell, "threads", name) for name in MEASURED[:3]]
        lines.append([*line, ratio(cell, "peer", "steps_per_second")])
    headers = [*("environment", "algorithm", "precision"), *SIDES.values()]
    headers += ["torchrun / one process", "rollout", "update", "torchrun / peer"]
    return table("Steps per second, and ratios", headers, lines)


def main(arguments: list[str] | None = None) -> int:
    options, extra = parse_speed(arguments)
    options.algorithm = [x for x in options.algorithm if x != "reinforce"]
    if not options.no_peers and not options.redraw:
        peer_versions(options)  # refuses an environment without them
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "scaling.csv"
    if not options.redraw:
        measure_all(path, options, extra)
    print(results_table(path))
    return 0


if __name__ == "__main__":
    begin(main)
