"""Kill a run of two processes again and again, and compare what it ends with to an undisturbed one, byte for byte.

    python -m tests.distributed.drill --kills 100 --seed 1 --out DIR

The kinds of blows come in turn, each at a random moment of its kind; all are SIGKILL:

    any moment        launcher and ranks at once, as when a node loses power
    while starting    the same, before the first step
    during a save     the same, while a checkpoint is being written
    inside a batch    the same, between the four updates of a batch
    a worker          one rank; the launcher ends the other
    the launcher      torchrun alone; its ranks notice, save and leave
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from brasyn_dist.common.processes import descendants
from tests.distributed.launch import (
    Running,
    command,
    final_state,
    kill,
    logged_step,
    saved_step,
    start,
    wait_until,
)
from tests.distributed.warm import WarmRun
from tests.small import small_shard_set

KINDS = ("any moment", "while starting", "during a save", "inside a batch", "a worker", "the launcher")
LAUNCHER = KINDS[-1]


def drill(out: Path, kills: int, seed: int, steps: int, every_steps: int = 3) -> dict[str, int]:
    """Run the drill below `out`. Returns how many kills of each kind hit; raises AssertionError if anything differs."""
    shards = small_shard_set(out / "shards")
    options = (
        f"data.shards={shards}", f"training.max_steps={steps}", f"checkpoint.every_steps={every_steps}",
        f"validation.every_steps={steps // 3}", "telemetry.log_every=1", f"runs_dir={out / 'runs'}",
    )  # fmt: skip
    assert WarmRun((*options, "name=undisturbed"), out / "undisturbed.log").wait(3600) == 0
    expected = final_state(out / "runs/undisturbed", steps)

    random_numbers, run_dir, log = random.Random(seed), out / "runs/disturbed", out / "disturbed.log"
    arguments = (*options, "name=disturbed")

    def compare() -> None:
        actual = final_state(run_dir, steps)
        differing = [name for name in expected if actual[name] != expected[name]]
        assert not differing, f"after {hits} kills these differ: {differing}"

    hits = dict.fromkeys(KINDS, 0)
    while (done := sum(hits.values())) < kills:
        kind = KINDS[done % len(KINDS)]
        # Each attempt may advance the run by a share of it: the last kills must still find it running.
        goal = min(steps - 2, steps * (done + 1) // (kills + 1))
        before = written(run_dir)
        process = start(command(arguments), log) if kind == LAUNCHER else WarmRun(arguments, log)
        blow = Blow(process, kind, goal, run_dir, log, before)
        if blow.strike(random_numbers):
            hits[kind] += 1
            print(
                f"kill {done + 1} ({kind}): logged step {logged_step(run_dir)}, saved {saved_step(run_dir)}"
            )
        else:  # it finished before the blow: compare, and begin again
            compare()
            shutil.rmtree(run_dir)
    assert WarmRun(arguments, log).wait(3600) == 0, log.read_text()[-4000:]
    compare()
    return hits


def written(run_dir: Path) -> int:
    """Changes when a resumed run writes to its metrics: until then, their last step is that of the attempt before."""
    metrics = run_dir / "metrics.jsonl"
    return metrics.stat().st_mtime_ns if metrics.exists() else 0


class Blow:
    """One kill of one attempt."""

    def __init__(self, process: Running, kind: str, goal: int, run_dir: Path, log: Path, before: int) -> None:
        self.process, self.kind, self.goal = process, kind, goal
        self.run_dir, self.log, self.before = run_dir, log, before

    def strike(self, random_numbers: random.Random) -> bool:
        """Wait for the moment, then kill. False if the run ended first."""
        delay = random_numbers.uniform(0, 1)
        if self.kind == "while starting":
            time.sleep(delay)
        elif self._wait(
            lambda: written(self.run_dir) != self.before and logged_step(self.run_dir) >= self.goal
        ):
            if self.kind == "during a save":
                self._wait(lambda: any((self.run_dir / "checkpoints").glob(".tmp-step-*")))
                time.sleep(delay * 0.01)
            elif self.kind == "inside a batch":
                self._wait(lambda: logged_step(self.run_dir) % 4 in (1, 2, 3))
            else:
                time.sleep(delay * 0.3)
        alive = self.process.poll() is None
        self._kill(random_numbers)
        return alive

    def _wait(self, condition: Callable[[], bool]) -> bool:
        return wait_until(self.process, condition, self.log, timeout=600)

    def _kill(self, random_numbers: random.Random) -> None:
        victims = descendants(self.process.pid)
        if self.kind == "a worker" and victims:
            os.kill(random_numbers.choice(victims), signal.SIGKILL)
            assert self.process.wait(60) != 0
        elif self.kind == LAUNCHER and victims:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
            deadline = time.monotonic() + 60
            while any(Path(f"/proc/{v}").exists() for v in victims):
                assert time.monotonic() < deadline, (
                    f"ranks outlive their launcher:\n{self.log.read_text()[-2000:]}"
                )
                time.sleep(0.01)
        else:
            kill(self.process)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the run; default: three for each kill")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    begun = time.monotonic()
    hits = drill(options.out.resolve(), options.kills, options.seed, options.steps or 3 * options.kills)
    print(f"{hits}: all bit-identical to the undisturbed run, in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
