"""The segmenter over whole volumes: against slice-by-slice calls, and through the evaluation."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.brats import MODALITIES, UNKNOWN_TYPE, VIEW_AXES, VIEWS, find_cases, tumour_type
from brasyn_dist.cli.evaluate import main
from brasyn_dist.config import SegmenterConfig
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.evaluation.segmentation_metrics import score_labels
from brasyn_dist.inference.segmentation import segment_volume
from brasyn_dist.models.segmenter import Segmenter, build_segmenter
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.data.case_files import brain, write_case

SHAPE = (26, 30, 20)
SIZE = 32


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """Untrained, its last layer scaled up so that all classes occur."""
    made = build_segmenter(SegmenterConfig(image_size=SIZE, widths=(8, 16)), 0).eval()
    made.preprocessing = Preprocessing(PUBLISHED, ("axial", "sagittal"))
    with torch.no_grad():
        made.output.weight *= 20
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    volumes, _ = brain(0, SHAPE)
    return np.stack([volumes[m] for m in MODALITIES])


def slice_by_slice(segmenter: Segmenter, images: np.ndarray, views: tuple[str, ...], kind: int) -> np.ndarray:
    """The same with numpy and one slice at a time: pad, z-score, softmax, add."""
    background = (images <= 0).sum(0) >= 2
    entries = [PUBLISHED.modalities[m] for m in MODALITIES]
    scores = np.stack([(np.minimum(v, e.clip_max) - e.mean) / e.std for v, e in zip(images, entries)])
    scores = np.where(images > 0, scores, -1).astype(np.float32)
    total = np.zeros((4, *images.shape[1:]))
    for view in views:
        axis = VIEW_AXES[view]
        for k in range(images.shape[1 + axis]):
            plane = np.take(scores, k, axis=1 + axis)
            before = [(SIZE - n) // 2 for n in plane.shape[1:]]
            square = np.full((4, SIZE, SIZE), -1, np.float32)
            window = tuple(slice(b, b + n) for b, n in zip(before, plane.shape[1:]))
            square[:, window[0], window[1]] = plane
            with torch.no_grad():
                told = torch.tensor([VIEWS.index(view)]), torch.tensor([kind])
                chances = segmenter(torch.from_numpy(square)[None], *told).softmax(1)[0].numpy()
            where = [slice(None)] * 4
            where[1 + axis] = k
            total[tuple(where)] += chances[:, window[0], window[1]]
    return np.where(background, 0, total.argmax(0))


@pytest.mark.parametrize("views", [("axial",), ("coronal", "sagittal"), None])
@pytest.mark.parametrize("kind", [0, UNKNOWN_TYPE])
def test_volume_mode_equals_one_slice_at_a_time(segmenter, images, views, kind: int):
    labels = segment_volume(segmenter, images, kind, views, batch_size=3)
    expected = slice_by_slice(segmenter, images, views or segmenter.preprocessing.views, kind)
    assert labels.dtype == np.uint8 and len(np.unique(labels)) > 2
    # Kernels differ with the batch's size in the last bits, which may turn a tie.
    assert np.mean(labels != expected) < 1e-3


def test_views_and_type_are_told(segmenter, images):
    made = [segment_volume(segmenter, images, kind, (view,)) for view in VIEWS for kind in (0, 1)]
    assert all((a != b).any() for i, a in enumerate(made) for b in made[i + 1 :])


def test_what_cannot_be_segmented(segmenter, images):
    with pytest.raises(DataError, match="no brain"):
        segment_volume(segmenter, np.zeros_like(images), 0)
    bare = build_segmenter(SegmenterConfig(image_size=SIZE, widths=(8, 16)), 0)
    with pytest.raises(CheckpointError, match="from_pretrained"):
        segment_volume(bare, images, 0)


@pytest.mark.usefixtures("no_report")
def test_the_evaluation_segments_the_completed_case(segmenter, tmp_path: Path, capsys):
    """The synthetic volume takes its place among the real ones, and the type follows the name."""
    for number, kind in enumerate(("GLI", "MET")):
        write_case(tmp_path / "references", f"BraTS-{kind}-0000{number}-000", number, shape=SHAPE)
    segmenter.save_pretrained(tmp_path / "export", step=1)
    (tmp_path / "predictions").mkdir()
    expected = {}
    for case in find_cases(tmp_path / "references"):
        volumes = read_case(case)
        synthetic = np.roll(volumes.images[2], 2, axis=0)
        write_like(tmp_path / f"predictions/{case.name}-t2f.nii.gz", synthetic, volumes.reference)
        completed = volumes.images.copy()
        completed[2] = synthetic
        made = segment_volume(segmenter, completed, tumour_type("", case.name))
        assert (made != segment_volume(segmenter, volumes.images, tumour_type("", case.name))).any()
        expected[case.name] = score_labels(made, volumes.labels)
    folders = [x for n in ("predictions", "references", "out") for x in (f"--{n}", str(tmp_path / n))]
    assert main([*folders, "--no-baselines", "--segmenter", str(tmp_path / "export")]) == 0
    with (tmp_path / "out/cases.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in expected[row["case"]].items():
                assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert main([*folders, "--segmenter", str(tmp_path / "nowhere")]) == 1
    assert "no exported segmenter" in capsys.readouterr().err
