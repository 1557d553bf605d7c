"""Panels show what they claim: the window, the sign of the difference, the outline, the way up."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES
from brasyn_dist.common.panels import (
    OUTLINE_COLOUR,
    difference_image,
    grey,
    grid,
    outline,
    panel_tiles,
    save_png,
    slice_panel,
    upright,
)


def test_window_is_fixed():
    tile = grey(np.array([[-1.0, 0.0, 1.0, 9.0]]), (-1.0, 1.0))
    assert tile[0, :, 0].tolist() == [0, 128, 255, 255]


def test_difference_is_red_above_and_blue_below():
    above, same, below = difference_image(np.array([[1.0, 0.0, -1.0]]), 1.0)[0]
    assert (
        above.tolist() == [255, 0, 0] and same.tolist() == [255, 255, 255] and below.tolist() == [0, 0, 255]
    )


def test_outline_is_the_inner_border():
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    edge = outline(mask)
    assert edge.sum() == 16 and not edge[2:5, 2:5].any() and edge[1, 1]


def test_front_and_top_are_up():
    """LPS: y grows to the back, z to the top. Front and top must come first among the rows."""
    axial, sagittal = np.zeros((4, 6)), np.zeros((4, 6))
    axial[1, 0] = 1  # x = 1, foremost
    sagittal[1, 5] = 1  # y = 1, topmost
    assert upright(axial)[0, 1] == 1 and upright(sagittal, "sagittal")[0, 1] == 1


def test_panel_has_every_tile_and_the_tumour(tmp_path: Path):
    inputs = np.random.default_rng(0).random((4, 20, 20))
    labels = np.zeros((20, 20), np.uint8)
    labels[5:12, 5:12] = 3
    panel = slice_panel(
        inputs,
        inputs[1],
        inputs[2],
        labels,
        np.array([True, False, True, True]),
        (0.0, 1.0),
        "axial",
        MODALITIES,
    )
    assert panel.shape == (16 + 20 + 2, 7 * 22, 3)
    yellow = (panel == OUTLINE_COLOUR).all(-1)
    assert yellow[:, 4 * 22 : 6 * 22].sum() == 2 * 24 and not yellow[:, : 4 * 22].any()
    save_png(tmp_path / "deep" / "panel.png", grid([panel, panel[:, :50]]))
    from PIL import Image

    with Image.open(tmp_path / "deep" / "panel.png") as image:
        assert image.size == (7 * 22, 2 * 38)


@pytest.mark.parametrize("shape", [(20, 20), (16, 24)])
def test_a_picture_gives_its_tiles_back(shape):
    rng = np.random.default_rng(0)
    slices = [rng.random((4, *shape)) for _ in range(2)]
    picture = grid(
        [
            slice_panel(
                x, x[1], x[2], None, np.array([True, False, True, True]), (0.0, 1.0), "axial", MODALITIES
            )
            for x in slices
        ]
    )
    rows = panel_tiles(picture, shape, 7)
    assert [len(row) for row in rows] == [7, 7]
    for x, row in zip(slices, rows):
        np.testing.assert_array_equal(row[0], grey(upright(x[0]), (0.0, 1.0)))
        np.testing.assert_array_equal(row[4], grey(upright(x[1]), (0.0, 1.0)))
        np.testing.assert_array_equal(row[6], difference_image(upright(x[2] - x[1]), 1.0))
    for other in (picture[:, :-1], picture[:-1], picture[:, :3]):
        with pytest.raises(ValueError, match="no rows of 7 tiles"):
            panel_tiles(other, shape, 7)
