"""One update is the same on 1, 2, 3 and 4 processes, with and without micro-batches: float64, real processes, all networks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.warm import WarmRun

pytestmark = pytest.mark.slow


def weights(
    folder: Path, processes: int, micro: int, updates: int, shares: tuple[float, ...] = ()
) -> dict[str, torch.Tensor]:
    out = folder / f"{processes}-{micro}-{updates}-{len(shares)}.safetensors"
    log = folder / "log"
    arguments = (str(micro), str(updates), str(out), *map(str, shares))
    process = WarmRun(arguments, log, processes, small=(), program="tests.distributed.split_worker")
    assert process.wait(300) == 0, log.read_text()[-3000:]
    return load_file(out)


@pytest.mark.parametrize(
    ("updates", "splits"),
    [(4, [(1, 2), (2, 4), (4, 8), (3, 2)]), (1, [(2, 2)])],
    ids=["four updates", "one update"],
)
def test_one_update_does_not_depend_on_the_split(tmp_path: Path, updates: int, splits: list[tuple[int, int]]):
    """(processes, micro-batch) against one process with all slices; three processes get uneven shares."""
    expected = weights(tmp_path, 1, 8, updates)
    assert {name.split(".")[0] for name in expected} == {"generator", "discriminator", "segmenter"}
    for processes, micro in splits:
        actual = weights(tmp_path, processes, micro, updates)
        assert actual.keys() == expected.keys()
        worst = max(float((actual[k] - expected[k]).abs().max()) for k in expected)
        assert worst < 1e-12, f"{processes} processes, micro-batches of {micro}: weights differ by {worst}"


def test_one_update_does_not_depend_on_the_shares_of_ranks(tmp_path: Path):
    """Ranks of different speed: 5, 2 and 1 of the 8 slices."""
    expected = weights(tmp_path, 1, 8, 4)
    actual = weights(tmp_path, 3, 8, 4, (5.0, 2.0, 1.0))
    worst = max(float((actual[k] - expected[k]).abs().max()) for k in expected)
    assert worst < 1e-12, f"weights differ by {worst}"
