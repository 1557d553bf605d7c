"""Random crops and neighbouring slices of training samples: pure functions, the right pixels, the right slices."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import VIEWS
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.loading.augmentation import crop_shifts
from brasyn_dist.data.loading.loader import SliceStream
from brasyn_dist.data.loading.reader import SampleReader
from brasyn_dist.data.loading.sampler import SampleOrder
from tests.data.shard_sets import truth_by_key, write_set

CROP, WINDOW = (16, 18), (24, 32)


def test_shifts_depend_on_seed_batch_and_position_alone() -> None:
    whole = crop_shifts(CROP, WINDOW, 3, 5, 12)
    np.testing.assert_array_equal(crop_shifts(CROP, WINDOW, 3, 5, 20)[:12], whole)
    assert (crop_shifts(CROP, WINDOW, 3, 6, 12) != whole).any()
    assert (crop_shifts(CROP, WINDOW, 4, 5, 12) != whole).any()


def test_every_position_in_the_window_is_equally_likely() -> None:
    shifts = crop_shifts(CROP, WINDOW, 0, 0, 20_000)
    for axis, room in enumerate(np.array(WINDOW) - CROP):
        values, counts = np.unique(shifts[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(room + 1) - room // 2)
        assert np.abs(counts / len(shifts) * (room + 1) - 1).max() < 0.15


@pytest.mark.parametrize("codec", ["npy.zst", "npy"])
def test_a_shifted_window_holds_these_pixels_of_the_slice(tmp_path: Path, codec: str) -> None:
    selection = write_set(tmp_path, codec=codec).select("train")
    truth, reader = truth_by_key(selection.index), SampleReader(selection)
    for shift in ((0, 0), (3, -2), (-9, 9)):
        planes, labels = np.full((4, *CROP), 9, "int16"), np.full(CROP, 9, "uint8")
        reader.read_into(0, planes, labels, shift)
        expected = np.pad(truth[selection.key(0)], [(0, 0), (40, 40), (40, 40)])
        row, column = (
            40 + (n - size) // 2 + d for n, size, d in zip(expected[0, 80:, 80:].shape, CROP, shift)
        )
        expected = expected[:, row : row + CROP[0], column : column + CROP[1]]
        np.testing.assert_array_equal(planes, expected[:4])
    reader.close()


def wanted_neighbours(selection: Selection, sample: int, context: int) -> list[str]:
    """Keys by brute force over all slices of the volume."""
    kept = {}
    case, view, index = (int(selection.column(name)[sample]) for name in ("case", "view", "index"))
    for other in range(len(selection)):
        if (selection.column("case")[other], selection.column("view")[other]) == (case, view):
            kept[int(selection.column("index")[other])] = selection.key(other)
    found = []
    for offset in [d for d in range(-context, context + 1) if d]:
        step = 1 if offset > 0 else -1
        found.append(next(kept[i] for i in range(index + offset, index - step, -step) if i in kept))
    return found


@pytest.mark.parametrize("context", [1, 2])
def test_neighbours_are_the_nearest_kept_slices(tmp_path: Path, context: int) -> None:
    index = write_set(tmp_path, views=VIEWS)
    whole = index.select("train")
    # Gaps in the volumes: every fourth sample is left out.
    selection = Selection(index, np.delete(whole.rows, np.s_[::4]))
    for sample in range(len(selection)):
        found = [selection.key(n) for n in selection.neighbours(sample, context)]
        assert found == wanted_neighbours(selection, sample, context)


def test_the_stream_reads_neighbours_with_the_same_window(tmp_path: Path) -> None:
    selection = write_set(tmp_path).select("train")
    order = SampleOrder(0, selection.shard, 4)

    def shifts(k: int) -> np.ndarray:
        return crop_shifts(CROP, WINDOW, 0, k, 4)

    with SliceStream(
        selection, order, slice(1, 3), 2, 4, image_size=CROP, shifts=shifts, context=1
    ) as stream:
        batches = list(stream)
    assert [batch.index for batch in batches] == [2, 3]
    reader = SampleReader(selection)
    for batch in batches:
        assert batch.context.shape == (2, 2, 4, *CROP)
        for row, sample in enumerate(order.batch(batch.index)[1:3]):
            shift = shifts(batch.index)[1 + row]
            for place, number in enumerate([selection.neighbours(int(sample), 1)[0], int(sample)]):
                planes, labels = np.empty((4, *CROP), "int16"), np.empty(CROP, "uint8")
                reader.read_into(number, planes, labels, shift)
                actual = batch.planes[row] if place else batch.context[row, 0]
                np.testing.assert_array_equal(actual.numpy(), planes)
    reader.close()
