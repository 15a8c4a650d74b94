"""Kill runs at random, go on, and compare: 40 times over the five scripts.

    python tests/stress_resume.py [kills per script, 8 unless given]

Half of them under sync, with checkpoints that come later than an episode's end, half
under async, with checkpoints that come sooner.

Not collected by pytest. Prints a tally and exits with 1 if any run differs.
"""

import sys
import tempfile
import time
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from common import NAMES, only_run, run, small  # noqa: E402
from test_faults import PENDULUM, assert_same_run, kill_and_resume  # noqa: E402


def main(kills: int) -> int:
    failed, survived = [], 0
    for number, (algorithm, kind) in enumerate(product(NAMES, ("sync", "async"))):
        steps, started = 400 if algorithm == "reinforce" else 256, time.monotonic()
        count = kills // 2 + kills % 2 * (kind == "sync")
        flags = [*PENDULUM, *small(algorithm, steps), "--num-epochs", 2]
        flags += ["--checkpoint-every", 3 * steps if kind == "sync" else 250]
        flags += ["--eval-every", 4 * steps, "--vectorization", kind]
        flags += ["--total-timesteps", 8 * count * steps]
        with tempfile.TemporaryDirectory() as base:
            base = Path(base)
            whole = run(algorithm, *flags, runs=base / "whole")
            assert whole.returncode == 0, whole.stderr
            folder, came_from = kill_and_resume(
                algorithm, flags, base / "killed", count, seed=number
            )
            survived += len(came_from)
            try:
                assert_same_run(only_run(base / "whole"), folder)
                verdict = "the same bits"
            except AssertionError as error:
                failed.append(f"{algorithm} {kind}")
                verdict = f"DIFFERENT: {error}"
        seconds = time.monotonic() - started
        last = f"resumed from iterations {came_from}"
        print(f"{algorithm} {kind}: {last}, {verdict} ({seconds:.0f} s)", flush=True)
    total = len(NAMES) * kills
    print(f"{survived} of {total} kills survived; differing: {failed or 'none'}")
    return 1 if failed or survived < total else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
