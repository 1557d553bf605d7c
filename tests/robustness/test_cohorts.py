"""Kind 1, whole cohorts: label editions, patients, and every cohort of the challenge from shards to scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import CAVITY
from brasyn_dist.data.case_folders import find_cohorts, with_linked_cohorts
from brasyn_dist.data.format.codec import decode_slice
from brasyn_dist.data.label_editions import with_label_editions
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.patients import read_patients_file
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import ReferenceVolume, challenge_ssim, scale_to_unit, ssim_map
from brasyn_dist.phantom import write_case as write_phantom
from tests.data.case_files import brain, write_case
from tests.robustness.cohorts import OPTIONS, SHAPE, cohort, rewrite

# Label editions and the resection cavity


def cavity_cohort(root: Path) -> Path:
    """Two cases of 2024: one with all labels, one with a cavity and no enhancing tumour."""
    cohort(root, "BraTS-GLI-00000-100", "BraTS-GLI-00001-100")
    for number in (0, 1):
        path = root / f"BraTS-GLI-0000{number}-100/BraTS-GLI-0000{number}-100-seg.nii.gz"

        def change(a: np.ndarray, number: int = number) -> np.ndarray:
            a = np.where(a == 3, 2, a) if number else a
            where = np.argwhere(a == 2)[:60]
            a[tuple(where.T)] = 4
            return a.astype(np.uint8)

        rewrite(path, change)
    return root


def test_the_cavity_is_a_label_of_its_own_in_shards(tmp_path, caplog):
    root = cavity_cohort(tmp_path / "gli")
    make_shards([root], tmp_path / "out", OPTIONS)
    index = open_shard_set(tmp_path / "out")
    assert index.header.options["label_editions"] == {"gli": "brats2024"}
    assert "4 without 3 in 1 file (BraTS-GLI-00001-100)" in caplog.text
    found: dict[str, np.ndarray] = {}
    for row in range(len(index)):
        column = {name: int(v[row]) for name, v in index.columns.items()}
        data = (tmp_path / "out" / index.shards[column["shard"]].name).read_bytes()
        labels = decode_slice(data[column["offset"] : column["offset"] + column["size"]], "npy.zst")[-1]
        name = index.header.cases[column["case"]].name
        found[name] = found.get(name, 0) + np.bincount(labels.ravel(), minlength=5)
        assert column["tumour_pixels"] == np.isin(labels, (1, 2, 3)).sum()
    assert all(counts[CAVITY] > 0 for counts in found.values())
    assert found["BraTS-GLI-00001-100"][3] == 0, "a cavity is no enhancing tumour"


def test_a_mixed_cohort_is_refused_before_anything_is_written(tmp_path):
    root = cohort(tmp_path / "gli", "BraTS-GLI-00000-000")
    write_case(root, "BraTS-GLI-00001-000", 1, shape=SHAPE, enhancing=4)
    with pytest.raises(DataError, match="gli: value 3 in 1 file .*--label-edition"):
        make_shards([root], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_links_into_several_cohorts_keep_their_cohorts_and_editions(tmp_path):
    """As `brasyn study` links the evaluation cases into one folder."""
    cohort(tmp_path / "ssa", "BraTS-SSA-00000-000", enhancing=4)
    cohort(tmp_path / "gli", "BraTS-GLI-00000-000")
    links = tmp_path / "references"
    links.mkdir()
    for case in tmp_path.glob("*/BraTS-*"):
        (links / case.name).symlink_to(case, target_is_directory=True)
    cases, _ = with_label_editions(with_linked_cohorts(find_cohorts([links])[0]))
    assert {c.cohort: c.label_order for c in cases} == {"ssa": "brats2021", "gli": "brats2023"}


def test_the_cavity_is_in_no_region_of_the_scores():
    images, labels = brain(0)
    labels[14:18, 17:23, 10:14] = CAVITY
    real, synthetic = images["t2w"], np.roll(images["t2w"], 1, 0)
    scores = ReferenceVolume(real, labels).scores(synthetic)
    head = real > 0
    tumour, healthy = head & np.isin(labels, (1, 2, 3)), head & (labels == 0)
    x, y = (scale_to_unit(v).astype(np.float64) for v in (synthetic, real))
    similarity = ssim_map(x * head, y * head, 1.0)
    for name, mask in (("tumour", tumour), ("healthy", healthy)):
        assert scores[f"ssim/{name}"] == pytest.approx(similarity[mask].mean(), abs=1e-9)
        masked = challenge_ssim(x * head, y * head, mask)
        assert scores[f"challenge_ssim/{name}"] == pytest.approx(masked, abs=1e-9)
        error = np.abs(synthetic[mask].astype(float) - real[mask]).mean()
        assert scores[f"mae/{name}"] == pytest.approx(error)


def test_losses_leave_the_cavity_out():
    import torch

    from brasyn_dist.losses.tversky import one_hot_labels
    from brasyn_dist.training.segmenter_task import confusion_matrix
    from brasyn_dist.training.validation import slice_scores

    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[0, :4], labels[0, 12:] = 3, CAVITY
    assert one_hot_labels(labels, 4, torch.float32).sum((0, 2)).tolist() == [192, 0, 0, 64]
    assert confusion_matrix(labels, torch.zeros_like(labels)).sum(1).tolist() == [192, 0, 0, 64]
    truth = torch.rand(1, 1, 16, 16) + 1
    wrong = truth.clone()
    wrong[0, 0, 12:] = 0
    everywhere = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    scores = slice_scores(wrong, truth, everywhere, labels, 3, torch.tensor([True]), 2.0)
    far = slice_scores(truth, truth, everywhere, labels, 3, torch.tensor([True]), 2.0)
    assert scores["ssim_tumour"] == far["ssim_tumour"], "the cavity is no tumour"
    assert scores["ssim_healthy"][0] > 0.6, "most of what is wrong lies in the cavity"


# Patients


def test_one_patient_is_never_on_both_sides(tmp_path, caplog):
    """Time points of two collections, a copy, and a renamed case of a second cohort."""
    write_phantom(tmp_path / "gli", "BraTS-GLI-00000-000", 0, shape=(40, 40, 32))
    for name in ("BraTS-GLI-00000-001", "UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "BraTS-GLI-00002-000"):
        write_phantom(tmp_path / "gli", name, sum(map(ord, name)), shape=(40, 40, 32))
    for folder, name in (("gli", "BraTS-GLI-00000-000 (1)"), ("other", "BraTS2021_00000")):
        target = tmp_path / folder / name
        target.mkdir(parents=True)
        for path in (tmp_path / "gli/BraTS-GLI-00000-000").iterdir():
            kind = path.name.removeprefix("BraTS-GLI-00000-000-")
            (target / f"{name}-{kind}").write_bytes(path.read_bytes())
    write_phantom(tmp_path / "other", "BraTS2021_00001", 99, shape=(40, 40, 32))
    for seed in range(5):
        options = ShardOptions(("axial",), seed, 0.5, minimum_foreground=50)
        index = make_shards([tmp_path / "gli", tmp_path / "other"], tmp_path / f"out{seed}", options)
        split = {c.name: c.split for c in index.header.cases}
        for names in (
            ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00000-000 (1)", "BraTS2021_00000"),
            ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
        ):
            assert len({split[name] for name in names}) == 1, seed
        assert set(split.values()) == {"train", "val"}
    assert "BraTS2021_00000 has a volume of BraTS-GLI-00000-000: treated as one patient" in caplog.text


def test_a_file_gives_the_patients(tmp_path):
    root = cohort(tmp_path / "gli", *(f"s{n}" for n in range(4)))
    (tmp_path / "p.csv").write_text("s0,P1\ns3,P1\nelsewhere,P9\n")
    patients = tuple(sorted(read_patients_file(tmp_path / "p.csv").items()))
    for seed in range(4):
        options = ShardOptions(("axial",), seed, 0.4, minimum_foreground=50, patients=patients)
        index = make_shards([root], tmp_path / f"out{seed}", options)
        split = {c.name: c.split for c in index.header.cases}
        assert split["s0"] == split["s3"]
        assert [c.patient for c in index.header.cases] == ["P1", "s1", "s2", "P1"]
        assert "P9" not in json.dumps(index.header.to_dict()), "of another set"


# Cohorts of the challenge, from shards to scores

COHORTS = {
    "train_men": ("BraTS-MEN-0000{}-000", {1: 1, 2: 2, 3: 3}, None),
    "train_ssa": ("BraTS-SSA-0000{}-000", {1: 1, 2: 2, 3: 3}, None),
    "train_ped": ("BraTS-PED-0000{}-000", {1: 3, 2: 4, 3: 1}, "ped"),
    "train_gli_2024": ("BraTS-GLI-0000{}-101", {1: 1, 2: 2, 3: 3, 4: 4}, "brats2024"),
}


@pytest.mark.slow
def test_every_cohort_works_from_shards_to_scores(tmp_path):
    from brasyn_dist.cli import evaluate, infer, train

    for name, (stem, stored, _) in COHORTS.items():
        for number in range(2):
            folder = write_phantom(tmp_path / name, stem.format(number), number, shape=(48, 48, 40))
            path = next(folder.glob("*-seg.nii.gz"))
            rewrite(path, lambda a, stored=stored: with_values(a, stored), np.uint8)
    out, roots = tmp_path / "shards", sorted(tmp_path / name for name in COHORTS)
    options = ShardOptions(("axial",), minimum_foreground=200, validation_fraction=0.5)
    index = make_shards(roots, out, options)
    assert index.header.options["label_editions"] == {n: e for n, (_, _, e) in COHORTS.items() if e}
    small = [
        "training.max_steps=2", "training.global_batch_size=4", "validation.slices=2", "telemetry.report=false",
        "runtime.threads=1", f"runs_dir={tmp_path / 'runs'}", f"data.shards={out}",
    ]  # fmt: skip
    network = ["generator.image_size=48", "discriminator.image_size=48", "generator.base_channels=8",
               "discriminator.base_channels=8"]  # fmt: skip
    segmenter = ["task=segmenter", "segmenter.image_size=48", "segmenter.widths=[8,16]", "name=s"]
    assert train.main([*segmenter, *small]) == 0
    guided = ["objective.tversky=5", f"objective.segmenter={tmp_path / 'runs/s'}", "name=g"]
    assert train.main([*guided, *network, *small]) == 0
    for name in COHORTS:
        predictions, scores = tmp_path / f"{name}-out", tmp_path / f"{name}-scores"
        weights = str(tmp_path / "runs/g")
        arguments = ["--input", str(tmp_path / name), "--output", str(predictions), "--modality", "t2f"]
        assert infer.main(["--weights", weights, *arguments]) == 0
        references = ["--references", str(tmp_path / name), "--predictions", str(predictions)]
        more = ["--segmenter", str(tmp_path / "runs/s"), "--no-baselines", "--out", str(scores)]
        assert evaluate.main([*references, *more]) == 0
        means = json.loads((scores / "summary.json").read_text())["means"]
        assert "ssim/tumour" in json.dumps(means) and "dice/ET" in json.dumps(means)


def with_values(labels: np.ndarray, stored: dict[int, int]) -> np.ndarray:
    """Canonical labels as an edition stores them; a cavity of 40 voxels where the edition has one."""
    labels = labels.copy()
    if CAVITY in stored:
        labels[tuple(np.argwhere(labels == 2)[:40].T)] = CAVITY
    result = np.zeros_like(labels)
    for label, value in stored.items():
        result[labels == label] = value
    return result
