"""Every run of the thesis is started from its file in configs/, on phantom data, at reduced width.

The paths in the files (such as `runs/r3`) are not changed: the tests run in the folder that contains `runs`.
"""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from brasyn_dist.cli.train import main as train
from brasyn_dist.config import Config, DataConfig, RunConfig, load_config
from brasyn_dist.inference.ensemble import load_inference
from brasyn_dist.training import cost_model
from brasyn_dist.training.schedule import scaled_rate
from tests.small import small_shard_set

CONFIGS = Path(__file__).parents[1] / "configs/thesis"
UPDATES = 2
COMMON = (
    f"training.max_steps={UPDATES}", "training.global_batch_size=4", "runtime.threads=1",
    "runtime.precision=no", "optimizer.warmup_steps=1", "validation.slices=1", "validation.panels=1",
    "telemetry.log_every=1", "data.shards=shards",
)  # fmt: skip
GENERATOR = (
    "generator.image_size=48", "generator.base_channels=8", "generator.heads=2",
    "generator.transformer_layers=1",
    "discriminator.image_size=48", "discriminator.base_channels=8",
)  # fmt: skip
SEGMENTER = ("segmenter.image_size=48", "segmenter.widths=[8,16]")

ALWAYS = {"reconstruction", "adversarial", "classification"}
SECOND_PASS = {"cycle", "feature"}
DUAL = {"ssim_healthy", "ssim_tumour"}
TERMS = {
    "r1": ALWAYS | SECOND_PASS,
    "r2": ALWAYS | SECOND_PASS | DUAL,
    "r3": ALWAYS | SECOND_PASS | DUAL,
    "r4": ALWAYS | SECOND_PASS | {"ssim_brain"},
    "r5": ALWAYS,
    "r6": ALWAYS | SECOND_PASS | DUAL | {"tversky"},
    "r7": ALWAYS | SECOND_PASS | DUAL | {"tversky"},
    "r8": ALWAYS | SECOND_PASS | DUAL,
    "r8_three_views_embedding": ALWAYS | SECOND_PASS | DUAL,
    "published/r6": ALWAYS | SECOND_PASS | DUAL | {"tversky"},
    "hfgan": ALWAYS | SECOND_PASS,
    "segmenter": {"tversky"},
}
"""The objective of each run, by the names of its terms in metrics.jsonl."""
NEEDS = {
    "r6": ("r3", "segmenter"),
    "r7": ("r3", "segmenter"),
    "published/r6": ("published/r3", "segmenter"),
}


class Runs:
    """Trains a run, and those it starts from, when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def __call__(self, name: str) -> Path:
        run_dir = self.work / "runs" / name
        if not run_dir.exists():
            for other in NEEDS.get(name, ()):
                self(other)
            size = SEGMENTER if name == "segmenter" else GENERATOR
            assert train(["--config", str(CONFIGS / f"{name}.yaml"), *COMMON, *size]) == 0
        return run_dir


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs-of-the-thesis")
    small_shard_set(folder / "shards", views=("axial", "sagittal", "coronal"))
    case = next((folder / "shards-cases/train_gli").iterdir())
    (folder / "cases").mkdir()
    (folder / "cases" / case.name).symlink_to(case)
    return folder


@pytest.fixture
def runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(work)
    return Runs(work)


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_trains_with_its_objective(runs: Runs, name: str):
    run_dir = runs(name)
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", UPDATES)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [
        {k for k in line if not k.startswith("discriminator") and not k.endswith("_norm")}
        - {"step", "kind", "epoch", "rate"}
        for line in lines
        if line["kind"] == "train"
    ]
    assert found == [TERMS[name]] * UPDATES
    views = json.loads((run_dir / "export/config.json").read_text())["views"]
    assert views == list(load_run(name).data.views)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r6", "r7"])
def test_fine_tuning_starts_from_r3_and_goes_slowly(runs: Runs, name: str):
    """Adam moves a weight by at most about the rate: after two updates the network is still almost R3's."""
    tuned = load_file(runs(name) / "export/model.safetensors")
    origin = load_file(runs("r3") / "export/model.safetensors")
    moved = max(float((tuned[k] - origin[k]).abs().max()) for k in origin)
    assert 0 < moved < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "members"),
    [("r9", [("r6", "axial"), ("r7", "sagittal")]), ("r10", [("r8", "axial"), ("r8", "sagittal")])],
)
def test_inference_over_the_views_of_its_runs(runs: Runs, name: str, members: list[tuple[str, str]]):
    from brasyn_dist.inference.api import infer_batch

    hashes = [
        json.loads((runs(run) / "export/config.json").read_text())["weights_sha256"] for run, _ in members
    ]
    out = runs.work / name
    infer_batch("cases", out, weights=CONFIGS / f"{name}.yaml", modalities=["t2f"], say=lambda text: None)
    assert len(list(out.glob("*-t2f.nii.gz"))) == 1
    written = json.loads((out / "manifest.json").read_text())["identity"]["members"]
    assert [(m["weights_sha256"], m["view"]) for m in written] == [
        (sha256, view) for sha256, (_, view) in zip(hashes, members)
    ]


@pytest.mark.slow
def test_slices_of_their_own_range_are_synthesised_as_they_were_trained(runs: Runs):
    """HF-GAN's normalisation is saved with the weights and used by inference: intensities are plausible."""
    import nibabel

    from brasyn_dist.inference.api import infer_batch
    from brasyn_dist.models.registry import Generator

    assert Generator.from_pretrained(runs("hfgan")).preprocessing.normalisation == "slice"
    out = runs.work / "hfgan-cases"
    infer_batch("cases", out, weights="runs/hfgan", modalities=["t1n"], say=lambda text: None)
    (path,) = out.glob("*-t1n.nii.gz")
    values = nibabel.load(path).get_fdata()
    case = path.name.removesuffix("-t1n.nii.gz")
    inputs = nibabel.load(runs.work / f"cases/{case}/{case}-t1c.nii.gz").get_fdata()
    assert (values >= 0).all() and 0 < values.max() < 10 * inputs.max()
    assert (values[inputs == 0] == 0).mean() > 0.9


@pytest.mark.slow
def test_a_cases_scale_and_a_narrow_window(runs: Runs):
    """Normalisation `case` with cropped slices: training, validation, panels, export, synthesis."""
    import nibabel
    import numpy as np
    from PIL import Image

    from brasyn_dist.brats import MODALITIES
    from brasyn_dist.inference.api import infer_batch
    from brasyn_dist.models.registry import Generator

    options = [
        "name=scaled", "data.normalisation=case", "generator.image_size=[32,48]",
        "discriminator.image_size=[32,48]",
        "validation.every_steps=2",
    ]  # fmt: skip
    assert train(["--config", str(CONFIGS / "r3.yaml"), *COMMON, *GENERATOR, *options]) == 0
    run_dir = runs.work / "runs/scaled"
    index = json.loads((runs.work / "shards/index.json").read_text())
    exported = json.loads((run_dir / "export/config.json").read_text())
    table = zip(index["cases"]["split"], index["cases"]["cohort"])
    assert exported["scales"]["cases"] == list(table).count(("train", "train_gli"))
    generator = Generator.from_pretrained(run_dir)
    preprocessing = generator.preprocessing
    assert preprocessing.normalisation == "case" and generator.infuser.tokens == 3 * 2
    with Image.open(run_dir / "panels/step-00000002-t1c.png") as panel:
        assert panel.size == (7 * (32 + 2), 48 + 16 + 2)
    # Unseen scale: what is synthesised has the one that the three others of the case suggest.
    (case,) = (runs.work / "cases").iterdir()
    volumes = {m: np.asarray(nibabel.load(case / f"{case.name}-{m}.nii.gz").dataobj) for m in MODALITIES}
    infer_batch("cases", "scaled-out", weights="runs/scaled", modalities=["t1n"], say=lambda text: None)
    result = np.asarray(nibabel.load(f"scaled-out/{case.name}-t1n.nii.gz").dataobj)
    given = [int(np.percentile(v[v > 0], 50, method="lower")) for m, v in volumes.items() if m != "t1n"]
    assert preprocessing.intensity_scale is not None
    unit = preprocessing.intensity_scale.predict((0, 2, 3), given, 1)
    assert 0 < result.max() < 7 * unit
    (record,) = json.loads(Path("scaled-out/manifest.json").read_text())["cases"]
    assert record["scales"]["t1n"]["median"] == pytest.approx(unit, abs=0.01)
    assert record["scales"]["t1n"]["log_error"] > 0


def load_run(name: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml", (), RunConfig)


def of_every_run(folder: Path) -> dict[str, Config]:
    return {n: load_config(folder / f"{n}.yaml") for n in ("r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8")}


def test_what_text_and_paper_say_of_each_run():
    """Method, sections 6 and 10. Written out here once more, so that a slip in a base file shows."""
    runs = of_every_run(CONFIGS) | {"hfgan": load_config(CONFIGS / "hfgan.yaml")}
    for name, run in runs.items():
        assert run.name == name
        assert run.order.availability == ("three" if name in ("r3", "r5", "r7", "r8") else "any"), name
        assert run.data.cohorts == (() if name == "r8" else ("train_gli",)), name
        assert run.training.updates_per_batch == 4 and run.training.global_batch_size == 64
        assert run.training.ema_decay == 0 and run.discriminator.base_channels == 32
        assert run.optimizer.clip_norm == 0.1 and run.optimizer.discriminator_ratio == 0.1
        weights = run.objective
        assert (weights.reconstruction, weights.adversarial, weights.classification) == (10, 0.25, 0.25)
        assert run.data.normalisation == ("slice" if name == "hfgan" else "zscore")
        assert (run.tversky.classes, weights.mask_background) == ("sum", False)
        generator = run.generator
        described = (generator.decoder, generator.early_fusion, generator.residual_block, generator.attention)
        assert described == ("described",) * 4
        assert (generator.convolutions_per_block, generator.position_embedding) == (2, "sinusoidal")
    views = {name: run.data.views for name, run in runs.items()}
    assert views == dict.fromkeys(runs, ("axial",)) | {"r7": ("sagittal",), "r8": ("axial", "sagittal")}
    assert runs["r1"].runtime.precision == "fp16"
    rates = {name: run.optimizer.base_rate for name, run in runs.items()}
    assert rates == dict.fromkeys(runs, 5e-4) | {"r6": 5e-5, "r7": 5e-5}
    for name in ("r6", "r7"):
        assert runs[name].checkpoint.init_from == "runs/r3"
        assert (runs[name].objective.tversky, runs[name].objective.segmenter) == (5.0, "runs/segmenter")


def test_what_the_published_code_did_in_each_run():
    runs = of_every_run(CONFIGS / "published")
    batches = {name: run.training.global_batch_size for name, run in runs.items()}
    assert list(batches.values()) == [64, 48, 48, 48, 128, 32, 32, 32]
    for name, run in runs.items():
        assert run.order.availability == ("any" if name in ("r1", "r2", "r4", "r5") else "three"), name
        assert run.discriminator.base_channels == 64 and run.tversky.classes == "mean"
        assert run.objective.mask_background == (name in ("r6", "r7", "r8"))
        assert run.optimizer.base_rate == pytest.approx(5e-6 if name in ("r6", "r7") else 5e-5)
        generator = run.generator
        published = (generator.decoder, generator.early_fusion, generator.residual_block, generator.attention)
        assert published == ("published",) * 4
        assert (generator.convolutions_per_block, generator.position_embedding) == (1, "learned")
        assert run.run_dir == Path("runs/published") / name
    assert {runs[name].checkpoint.init_from for name in ("r6", "r7")} == {"runs/published/r3"}


SLICES = {
    "axial": (158_867, 20_723, 9_156),
    "sagittal": (158_976, 20_765, 9_246),
    "coronal": (194_472, 25_857, 11_541),
}
"""Training slices of GLI, MET and MET additional (T, Table 4.3)."""
TEN_EPOCHS = 1_588_670
"""Slices of 10 epochs of axial GLI."""
BATCHES = {
    **dict.fromkeys(("r1", "r2", "r3", "r4", "r5", "hfgan", "ablation_no_attention"), TEN_EPOCHS / 64),
    **dict.fromkeys(
        ("r8", "r8_view_embedding", "r8_three_views", "r8_three_views_embedding"), TEN_EPOCHS / 64
    ),
    "r6": 3 * 158_867 / 64,
    "r7": 3 * 158_976 / 64,
    "published/r1": TEN_EPOCHS / 64,
    **dict.fromkeys(("published/r2", "published/r3", "published/r4"), TEN_EPOCHS / 48),
    "published/r5": TEN_EPOCHS / 128,
    "published/r6": 3 * 158_867 / 32,
    "published/r7": 3 * 158_976 / 32,
    **dict.fromkeys(("published/r8", "published/r8_view_embedding"), 5 * 377_733 / 32),
}
"""Global batches of each run: 10 epochs of axial GLI; R6 and R7 three epochs more; published R8 5 epochs of two views."""


@pytest.fixture(scope="module")
def measured() -> cost_model.Cost:
    return cost_model.measure(load_config(CONFIGS / "r3.yaml", GENERATOR))


@pytest.mark.parametrize("file", BATCHES)
def test_dry_run_prints_the_updates_of_the_source(file: str, work: Path, measured, monkeypatch, capsys):
    """On a shard set with as many slices as the thesis had: four updates for each batch."""

    def slices(index: object, data: DataConfig) -> range:
        cohorts = 1 if data.cohorts == ("train_gli",) else 3
        return range(sum(sum(SLICES[view][:cohorts]) for view in data.views))

    monkeypatch.setattr(cost_model, "choose_training", slices)
    monkeypatch.setattr(cost_model, "measure", lambda config, modality_set: measured)
    words = ["--config", str(CONFIGS / f"{file}.yaml"), "--dry-run", f"data.shards={work / 'shards'}"]
    assert train([*words, *GENERATOR]) == 0
    batches = math.ceil(BATCHES[file])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("steps"))
    assert line.split()[1:5] == [str(4 * batches), "=", str(batches), "global"]


def test_dry_run_before_the_segmenter_is_trained(work: Path, tmp_path: Path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(CONFIGS / "r6.yaml"), "--dry-run", f"data.shards={work / 'shards'}"]
    assert train([*words, *GENERATOR]) == 0
    assert "runs/segmenter does not exist yet" in caplog.text


@pytest.mark.parametrize(("option", "remedy"), [("objective.segmenter", "brasyn train --config segmenter"),
                                                ("checkpoint.init_from", "finished run")])  # fmt: skip
def test_a_run_folder_that_does_not_exist_is_no_model_of_the_hub(
    option: str, remedy: str, work: Path, tmp_path: Path, monkeypatch, capsys
):
    """`runs/...` is meant as a folder, also where there is no folder `runs` yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("brasyn_dist.models.pretrained.download", None)
    options = {"objective.segmenter": "runs/nothing", "checkpoint.init_from": str(work / "r3")}
    options[option] = "runs/nothing"
    words = ["--config", "r6", f"data.shards={work / 'shards'}", *(f"{k}={v}" for k, v in options.items())]
    if option == "checkpoint.init_from":
        words.append("objective.tversky=0")
    assert train([*words, *GENERATOR]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "runs/nothing: no " in line and remedy in line


def test_every_run_of_a_source_has_a_dry_run():
    files = {str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml")}
    no_runs = {
        "base",
        "published/code",
        "segmenter",
        *(f"{d}{r}" for d in ("", "published/") for r in ("r9", "r10")),
    }
    assert files - no_runs == set(BATCHES)


def test_variants_of_r8():
    found = {p.stem: load_config(p) for p in CONFIGS.glob("r8*.yaml")}
    shapes = {(len(run.data.views), run.generator.view_embedding) for run in found.values()}
    assert len(found) == 4 and shapes == {(2, False), (2, True), (3, False), (3, True)}
    assert {run.training.samples for run in found.values()} == {TEN_EPOCHS}


def test_the_segmenters_training_is_that_of_the_published_code():
    segmenter = load_run("segmenter")
    assert segmenter.data.min_tumour_fraction == 0.001
    assert set(segmenter.data.views) == {"axial", "sagittal", "coronal"}
    optimizer = segmenter.optimizer
    assert scaled_rate(optimizer, segmenter.training.global_batch_size) == 2e-3
    assert segmenter.training.global_batch_size == 80
    assert (optimizer.weight_decay, optimizer.decay) == (1e-5, "polynomial")
    assert optimizer.weight_decay_form == "l2"


@pytest.mark.parametrize(("folder", "runs"), [("", "runs"), ("published", "runs/published")])
def test_fused_runs(folder: str, runs: str):
    assert [(m.weights, m.views) for m in load_inference(CONFIGS / folder / "r9.yaml").members] == [
        (f"{runs}/r6", ("axial",)), (f"{runs}/r7", ("sagittal",)),
    ]  # fmt: skip
    assert [(m.weights, m.views) for m in load_inference(CONFIGS / folder / "r10.yaml").members] == [
        (f"{runs}/r8", ("axial", "sagittal"))
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.parent.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_is_valid(path: Path):
    """Of a run, a plan of ablations or an inference."""
    text = path.read_text()
    if "\nmembers:" in text:
        load_inference(path)
    elif not path.name.startswith("ablations"):
        load_config(path, (), RunConfig)
