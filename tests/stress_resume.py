"""Kill runs at random, go on, and compare: 200 times over the five scripts.

    python tests/stress_resume.py [kills per script, 40 unless given]

Not collected by pytest. Prints a tally and exits with 1 if any run differs.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from common import NAMES, only_run, run, small  # noqa: E402
from test_faults import PENDULUM, assert_same_run, kill_and_resume  # noqa: E402


def main(kills: int) -> int:
    failed, survived = [], 0
    for number, algorithm in enumerate(NAMES):
        steps, started = 400 if algorithm == "reinforce" else 256, time.monotonic()
        flags = [*PENDULUM, *small(algorithm, steps), "--num-epochs", 2]
        flags += ["--checkpoint-every", 3, "--eval-every", 4]
        flags += ["--total-timesteps", 8 * kills * steps]
        with tempfile.TemporaryDirectory() as base:
            base = Path(base)
            whole = run(algorithm, *flags, runs=base / "whole")
            assert whole.returncode == 0, whole.stderr
            folder, came_from = kill_and_resume(
                algorithm, flags, base / "killed", kills, seed=number
            )
            survived += len(came_from)
            try:
                assert_same_run(only_run(base / "whole"), folder)
                verdict = "the same bits"
            except AssertionError as error:
                failed.append(algorithm)
                verdict = f"DIFFERENT: {error}"
        seconds = time.monotonic() - started
        last = f"resumed from iterations 0 to {max(came_from)}"
        count = len(came_from)
        print(
            f"{algorithm}: {count} kills, {last}, {verdict} ({seconds:.0f} s)",
            flush=True,
        )
    total = len(NAMES) * kills
    print(f"{survived} of {total} kills survived; differing: {failed or 'none'}")
    return 1 if failed or survived < total else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
