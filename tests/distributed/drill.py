"""Kill a run of two processes again and again, and compare what it ends with to an undisturbed one, byte for byte.

    python -m tests.distributed.drill --kills 50 --seed 1 --out DIR

Kills (SIGKILL to everything at once) come, in turn, at a random moment, while a checkpoint is being written, and between
the four updates of a batch.
"""

import argparse
import random
import shutil
import sys
import time
from pathlib import Path

from tests.distributed.launch import (
    command,
    final_state,
    kill,
    logged_step,
    run,
    saved_step,
    start,
    wait_until,
)
from tests.small import small_shard_set

KINDS = ("any moment", "during a save", "inside a batch")


def drill(out: Path, kills: int, seed: int, steps: int, every_steps: int = 3) -> dict[str, int]:
    """Run the drill below `out`. Returns how many kills of each kind hit; raises AssertionError if anything differs."""
    shards = small_shard_set(out / "shards")
    options = (
        f"data.shards={shards}", f"training.max_steps={steps}", f"checkpoint.every_steps={every_steps}",
        f"validation.every_steps={steps // 3}", "telemetry.log_every=1", f"runs_dir={out / 'runs'}",
    )  # fmt: skip
    assert run(command((*options, "name=undisturbed")), out / "undisturbed.log") == 0
    expected = final_state(out / "runs/undisturbed", steps)

    random_numbers, run_dir, log = random.Random(seed), out / "runs/disturbed", out / "disturbed.log"
    arguments = command((*options, "name=disturbed"))
    hits = dict.fromkeys(KINDS, 0)
    while sum(hits.values()) < kills:
        kind = KINDS[sum(hits.values()) % len(KINDS)]
        # Each attempt may advance the run by a share of it: the last kills must still find it running.
        goal = min(steps - 2, steps * (sum(hits.values()) + 1) // (kills + 1))
        process = start(arguments, log)
        if strike(process, kind, goal, run_dir, log, random_numbers):
            hits[kind] += 1
            print(
                f"kill {sum(hits.values())} ({kind}): logged step {logged_step(run_dir)}, saved {saved_step(run_dir)}"
            )
        else:
            shutil.rmtree(run_dir)  # it finished before the blow: begin again
    assert run(arguments, log) == 0, log.read_text()[-4000:]
    actual = final_state(run_dir, steps)
    differing = [name for name in expected if actual[name] != expected[name]]
    assert not differing, f"after {hits} kills these differ: {differing}"
    return hits


def strike(process, kind: str, goal: int, run_dir: Path, log: Path, random_numbers: random.Random) -> bool:
    """Wait for the moment, then kill. False if the run ended first."""
    begun = wait_until(process, lambda: logged_step(run_dir) >= goal or process.poll() is not None, log)
    if kind == "during a save":
        begun = begun and wait_until(process, lambda: any((run_dir / "checkpoints").glob(".tmp-step-*")), log)
        time.sleep(random_numbers.uniform(0, 0.01))
    elif kind == "inside a batch":
        begun = begun and wait_until(process, lambda: logged_step(run_dir) % 4 in (1, 2, 3), log)
    else:
        time.sleep(random_numbers.uniform(0, 1.0))
    alive = begun and process.poll() is None
    kill(process)
    return alive


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    begun = time.monotonic()
    hits = drill(options.out.resolve(), options.kills, options.seed, options.steps)
    print(f"{hits}: all bit-identical to the undisturbed run, in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
