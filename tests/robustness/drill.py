"""Kill inference and sharding again and again, rerun them, and compare the results to an undisturbed run, byte for byte.

    python -m tests.robustness.drill {infer,shard} --kills 100 --seed 1 --out DIR

All processes of a command get SIGKILL at a random moment; then the same command is started again. When it ends by
itself, its files are compared and removed, and it starts from the beginning. tests/distributed/drill.py does this for training.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.distributed.launch import kill
from tests.distributed.warm import WarmRun
from tests.inference.small import export, write_subject
from tests.small import small_cases

CASES = 4
RESULTS = ("*.nii.gz", "*.tar", "index.json")


def infer_words(folder: Path) -> list[str]:
    """Two processes share the cases."""
    weights, cases = folder / "weights", folder / "cases"
    if not weights.exists():
        export(weights, ["axial"])
        for seed in range(CASES):
            write_subject(cases, f"BraTS-GLI-{seed:05d}-000", ("t1c", "t1n", "t2w"), seed)
    return ["--weights", str(weights), "--input", str(cases), "--lease", "5", "--output"]


def shard_words(folder: Path) -> list[str]:
    """One process and its two workers."""
    cases = sorted(map(str, small_cases(folder / "cases").iterdir()))
    options = [
        "--views",
        "axial",
        "--minimum-foreground",
        "200",
        "--samples-per-shard",
        "20",
        "--workers",
        "2",
    ]
    return [*cases, *options, "--out"]


COMMANDS = {"infer": (infer_words, 2), "shard": (shard_words, 1)}


def results(out: Path) -> dict[str, bytes]:
    """The files that must not depend on interruptions."""
    return {str(p.relative_to(out)): p.read_bytes() for glob in RESULTS for p in out.rglob(glob)}


def drill(command: str, folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Numbers of kills that hit and of comparisons. Raises AssertionError if anything differs or fails."""
    folder.mkdir(parents=True)
    words, processes = COMMANDS[command][0](folder), COMMANDS[command][1]
    rng, log, out = random.Random(seed), folder / "log", folder / "out"

    def start(output: Path) -> WarmRun:
        program = f"brasyn_dist.cli.{command}"
        return WarmRun((*words, str(output)), log, processes, small=(), program=program)

    def finish(run: WarmRun) -> None:
        assert run.wait(600) == 0, log.read_text()[-4000:]

    finish(start(folder / "warm"))
    begun = time.monotonic()
    finish(start(folder / "undisturbed"))
    seconds, expected = time.monotonic() - begun, results(folder / "undisturbed")
    assert expected
    hits = compared = 0
    while hits < kills or out.exists():
        run = start(out)
        if hits < kills:
            try:
                assert run.wait(rng.uniform(0, seconds)) == 0, log.read_text()[-4000:]
            except subprocess.TimeoutExpired:
                kill(run)
                hits += 1
                print(f"kill {hits}: {len(results(out))} of {len(expected)} files are there", flush=True)
                continue
        else:
            finish(run)
        actual = results(out)
        differing = [name for name in {*expected, *actual} if actual.get(name) != expected.get(name)]
        assert not differing, f"after {hits} kills these differ: {differing}"
        assert not list(out.rglob(".tmp-*")), f"after {hits} kills temporary files are left"
        compared += 1
        shutil.rmtree(out)
    return hits, compared


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    begun = time.monotonic()
    hits, compared = drill(options.command, options.out.resolve(), options.kills, options.seed)
    seconds = time.monotonic() - begun
    print(
        f"{options.command}: {hits} kills, {compared} times equal to the undisturbed run, in {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
