"""The volume pipeline against the same thing done by hand, slice by slice, with the plain forward pass."""

import numpy as np
import pytest
import torch

from brasyn_dist.brats import BRATS, MODALITIES, VIEWS, ImageSize, image_shape
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference import synthesis as volume
from brasyn_dist.inference.synthesis import (
    Member,
    SynthesisOptions,
    brain_mask,
    full_batches,
    stack_modalities,
    synthesise_case,
    synthesise_volume,
    to_integers,
)
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing import slicing
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.inference.small import SHAPE, brain, four, small_generator

AXES = {"axial": 2, "sagittal": 0, "coronal": 1}


def by_hand(
    generator: Generator, images: np.ndarray, available: list[str], target: str, view: str
) -> np.ndarray:
    """Method, section 7, one slice at a time and all of them, in numpy but for the network's plain forward pass."""
    mean, std, top = (np.array(PUBLISHED.column(c)) for c in ("mean", "std", "clip_max"))
    wanted, axis = MODALITIES.index(target), AXES[view]
    mask = torch.tensor([[m in available for m in MODALITIES]])
    result = np.zeros(images.shape[1:], np.float32)
    for k in range(images.shape[1 + axis]):
        planes = np.take(images, k, axis + 1).astype(float)
        before = [(48 - n) // 2 for n in planes.shape[1:]]
        x = np.full((4, 48, 48), -1.0)
        for m, name in enumerate(MODALITIES):
            if name in available:
                score = (np.minimum(planes[m], top[m]) - mean[m]) / std[m]
                inside = np.where(planes[m] > 0, score, -1)
                x[m, before[0] : before[0] + inside.shape[0], before[1] : before[1] + inside.shape[1]] = (
                    inside
                )
        with torch.no_grad():
            image, _ = generator(
                torch.from_numpy(x[None]).float(),
                mask,
                torch.tensor([wanted]),
                torch.tensor([VIEWS.index(view)]),
            )
        inner = image[0, 0].numpy()[before[0] :, before[1] :][: planes.shape[1], : planes.shape[2]]
        result[(slice(None),) * axis + (k,)] = np.maximum(inner * std[wanted] + mean[wanted], 0)
    votes = sum((images[MODALITIES.index(m)] <= 0).astype(int) for m in available)
    result[votes >= (2 if len(available) > 1 else 1)] = 0
    return result


@pytest.mark.parametrize(
    ("view", "available", "target"),
    [
        ("axial", ["t1c", "t1n", "t2w"], "t2f"),
        ("sagittal", ["t1c", "t1n", "t2f"], "t2w"),
        ("coronal", ["t1n", "t2w"], "t1c"),
        ("sagittal", ["t2f"], "t1n"),
    ],
)
def test_equals_the_method_by_hand(
    generator: Generator, view: str, available: list[str], target: str
) -> None:
    images = four(brain())
    images[:, 20:24, 18:22, 14:16] *= -1  # negative voxels inside the brain count as background
    expected = by_hand(generator, images, available, target, view)
    result = synthesise_volume(generator, torch.from_numpy(images), available, target, view).numpy()
    assert result.dtype == np.float32 and expected.max() > 100
    np.testing.assert_array_equal(result == 0, expected == 0)
    np.testing.assert_allclose(result, expected, atol=0.05)  # intensities, of about a thousand


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("available", [["t1c", "t1n", "t2w"], ["t1n", "t2w"], ["t2w"]])
def test_leaving_out_slices_without_brain_is_exact(
    generator: Generator, view: str, available: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.from_numpy(four(brain()))
    runs: list[int] = []

    def every_slice(rows: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        runs.append(len(rows))
        every = torch.arange(SHAPE[AXES[view]])
        return list(full_batches(every, batch_size))

    some = synthesise_volume(generator, images, available, "t2f", view, SynthesisOptions(batch_size=4))
    monkeypatch.setattr(volume, "full_batches", every_slice)
    every = synthesise_volume(generator, images, available, "t2f", view, SynthesisOptions(batch_size=4))
    assert torch.equal(some, every)
    assert 0 < runs[0] < SHAPE[AXES[view]]


def test_only_slices_with_brain_reach_the_network(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((4, *SHAPE), np.int16)
    images[:, 10:30, 10:30, 7:14] = 500
    seen: list[int] = []
    plain = type(generator).synthesise

    def counting(self: Generator, x: torch.Tensor, *args: int) -> torch.Tensor:
        seen.append(len(x))
        return plain(self, x, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(generator), "synthesise", counting)
    synthesise_volume(
        generator, torch.from_numpy(images), ["t1c", "t1n"], "t2f", "axial", SynthesisOptions(batch_size=3)
    )
    assert seen == [3, 3, 3]  # 7 slices, the last batch filled up


def test_every_view_truly_runs_and_the_mean_is_taken_after_masking(generator: Generator) -> None:
    images, available = four(brain()), ["t1c", "t1n", "t2w"]
    single = {v: by_hand(generator, images, available, "t2f", v) for v in VIEWS}
    for a, b in (("axial", "sagittal"), ("axial", "coronal"), ("sagittal", "coronal")):
        assert np.abs(single[a] - single[b]).max() > 20
    members = [Member(view, generator, None, "") for view in VIEWS]  # type: ignore[arg-type]
    result = synthesise_case(members, images, available, ["t2f"])["t2f"]
    assert result.dtype == np.int32
    np.testing.assert_allclose(result, sum(single.values()) / 3, atol=0.55)
    (one,) = synthesise_case(members[:1], images, available, ["t2f"]).values()
    np.testing.assert_allclose(one, single["axial"], atol=0.55)


def test_a_view_embedding_is_given_its_view(generator: Generator) -> None:
    """A cube of one value has equal slices in all views: only the embedding can tell them apart."""
    images = torch.zeros((4, 48, 48, 48), dtype=torch.int16)
    images[:, 12:36, 12:36, 12:36] = 900
    results = [
        synthesise_volume(generator, images, ["t1c"], "t2f", view).movedim(AXES[view], 0)[20]
        for view in VIEWS
    ]
    without = small_generator(view_embedding=False)
    same = [
        synthesise_volume(without, images, ["t1c"], "t2f", view).movedim(AXES[view], 0)[20] for view in VIEWS
    ]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert len({float(r.sum()) for r in results}) == 3


def test_two_models_are_averaged(generator: Generator) -> None:
    images, other = four(brain()), small_generator(view_embedding=False, seed=1)
    members = [Member("axial", generator, None, "a"), Member("sagittal", other, None, "b")]  # type: ignore[arg-type]
    result = synthesise_case(members, images, ["t1c"], ["t2w"])["t2w"]
    expected = by_hand(generator, images, ["t1c"], "t2w", "axial") + by_hand(
        other, images, ["t1c"], "t2w", "sagittal"
    )
    np.testing.assert_allclose(result, expected / 2, atol=0.55)


def test_planes_that_are_not_available_are_not_looked_at(generator: Generator) -> None:
    images = four(brain())
    spoilt = images.copy()
    spoilt[2:] = np.random.default_rng(1).integers(-3000, 30000, spoilt[2:].shape)
    results = [
        synthesise_volume(generator, torch.from_numpy(i), ["t1c", "t1n"], "t2f", "axial")
        for i in (images, spoilt)
    ]
    assert torch.equal(*results)


def test_brain_mask_counts_votes() -> None:
    images = torch.tensor([[5, 5, 0, 0, 0, -3], [5, 5, 5, 0, 0, 1], [5, 0, 5, 5, 0, 1], [0, 0, 0, 0, 0, 9]])
    images = images.view(4, 6, 1, 1)
    for names, expected in (
        (["t1c", "t1n", "t2f"], [1, 1, 1, 0, 0, 1]),
        (["t1c", "t1n"], [1, 1, 1, 0, 0, 1]),
        (["t1c", "t2f"], [1, 1, 1, 1, 0, 1]),
        (["t1c"], [1, 1, 0, 0, 0, 0]),
        (["t2w"], [0, 0, 0, 0, 0, 1]),
    ):
        assert brain_mask(images, BRATS.indices(names)).flatten().int().tolist() == expected, names


def test_a_slice_does_not_depend_on_its_batch(generator: Generator) -> None:
    images = torch.from_numpy(four(brain()))
    whole = synthesise_volume(
        generator, images, ["t1c", "t2w"], "t1n", "sagittal", SynthesisOptions(batch_size=4)
    )
    cut = images.clone()
    cut[:, 25:] = 0
    part = synthesise_volume(
        generator, cut, ["t1c", "t2w"], "t1n", "sagittal", SynthesisOptions(batch_size=4)
    )
    assert torch.equal(part[:25], whole[:25]) and not part[25:].any()
    for size in (1, 31):
        other = synthesise_volume(
            generator, images, ["t1c", "t2w"], "t1n", "sagittal", SynthesisOptions(batch_size=size)
        )
        torch.testing.assert_close(other, whole, atol=0.05, rtol=0)


def test_full_batches() -> None:
    batches = [b.tolist() for b in full_batches(torch.tensor([3, 4, 5, 8, 9]), 2)]
    assert batches == [[3, 4], [5, 8], [9, 9]]
    assert list(full_batches(torch.tensor([], dtype=torch.int64), 2)) == []
    assert [b.tolist() for b in full_batches(torch.tensor([1, 2]), 2)] == [[1, 2]]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [48, (32, 48), (48, 16)])
def test_slices_are_those_that_training_saw(view: str, size: ImageSize) -> None:
    images = four(brain())
    slices = volume.to_slices(torch.from_numpy(images), view)
    expected = slicing.extract_slices(images, view)
    np.testing.assert_array_equal(slices.numpy(), expected)
    padding = volume.padding_to(slices.shape[-2:], size)
    padded = torch.nn.functional.pad(slices, padding)
    np.testing.assert_array_equal(padded.numpy(), slicing.pad_or_crop(expected, image_shape(size)))
    cropped = torch.nn.functional.pad(padded, [-n for n in padding])
    if size == 48:
        np.testing.assert_array_equal(cropped.numpy(), expected)
    assert cropped.shape == slices.shape


def test_mixed_precision_is_close(generator: Generator) -> None:
    images = torch.from_numpy(four(brain()))
    results = [
        synthesise_volume(generator, images, ["t1c", "t2w"], "t1n", "axial", SynthesisOptions(precision=p))
        for p in ("no", "bf16")
    ]
    assert results[1].dtype == torch.float32
    difference = (results[1] - results[0]).abs().max()
    assert 0 < difference < 0.05 * results[0].max()


def test_a_network_that_sees_a_rectangle_works_on_the_middle_of_each_slice() -> None:
    """The result for slices that are larger than the window equals that for the same slices cropped before."""
    config = GeneratorConfig(image_size=(32, 48), base_channels=8, view_embedding=True)
    generator = build_generator(config, 0).eval()
    generator.preprocessing = Preprocessing(PUBLISHED)
    images = four(brain(shape=(40, 60, 7)))
    images[:, :4], images[:, -4:], images[:, :, :6], images[:, :, -6:] = 0, 0, 0, 0
    available = ["t1c", "t1n", "t2w"]
    whole = synthesise_volume(generator, torch.from_numpy(images), available, "t2f", "axial")
    middle = synthesise_volume(generator, torch.from_numpy(images[:, 4:-4, 6:-6]), available, "t2f", "axial")
    assert middle.shape == (32, 48, 7) and middle.max() > 0
    assert torch.equal(whole[4:-4, 6:-6], middle) and whole.count_nonzero() == middle.count_nonzero()


def test_a_scanners_scale_passes_through_the_network() -> None:
    """Normalisation `case`: a case that counts twice as much gives the same network output, on the scale predicted for it."""
    generator = small_generator()
    scale = IntensityScaleModel.fit(np.random.default_rng(0).lognormal(6, 0.5, (9, 4)))
    generator.preprocessing = Preprocessing(PUBLISHED, VIEWS, "case", scale)
    images, available, present = four(brain()), ["t1c", "t1n", "t2w"], (0, 1, 3)
    medians = [int(np.percentile(v[v > 0], 50, method="lower")) for v in images[list(present)]]
    volumes = []
    for factor in (1, 2):
        unit = scale.predict(present, [factor * m for m in medians], 2)
        found = synthesise_volume(generator, torch.from_numpy(images * factor), available, "t2f", "axial")
        volumes.append(found / unit)
    torch.testing.assert_close(volumes[1], volumes[0], rtol=1e-4, atol=1e-5)
    assert float(volumes[0].max()) > 0
    # By hand, one slice: divided by the medians, minus 1; what comes out plus 1, times the predicted median.
    k, mask = SHAPE[2] // 2, torch.tensor([[True, True, False, True]])
    x = np.full((4, 48, 48), -1.0)
    before = [(48 - n) // 2 for n in SHAPE[:2]]
    for m, median in zip(present, medians):
        inner = images[m, :, :, k] / median - 1
        x[m, before[0] : before[0] + SHAPE[0], before[1] : before[1] + SHAPE[1]] = np.maximum(inner, -1)
    with torch.no_grad():
        image, _ = generator(torch.from_numpy(x[None]).float(), mask, torch.tensor([2]), torch.tensor([0]))
    inner = image[0, 0].numpy()[before[0] :, before[1] :][: SHAPE[0], : SHAPE[1]]
    brain_XY = brain_mask(torch.from_numpy(images), present)[:, :, k].numpy()
    expected = np.where(brain_XY, np.maximum(inner + 1, 0), 0)
    np.testing.assert_allclose(volumes[0][:, :, k].numpy(), expected, rtol=1e-4, atol=1e-5)
    generator.preprocessing = Preprocessing(PUBLISHED, VIEWS, "case")
    with pytest.raises(CheckpointError, match="scales"):
        synthesise_volume(generator, torch.from_numpy(images), available, "t2f", "axial")


def test_errors_say_what_is_wrong(generator: Generator) -> None:
    images, members = four(brain()), [Member("axial", generator, None, "")]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no brain: t1c, t2w are background"):
        synthesise_case(members, images * 0, ["t1c", "t2w"], ["t2f"])
    broken = small_generator()
    broken.decoder.output.bias.data.fill_(float("nan"))
    with pytest.raises(DataError, match="t2f: the network's output is not finite"):
        synthesise_case([Member("axial", broken, None, "")], images, ["t1c"], ["t2f"])  # type: ignore[arg-type]
    broken.preprocessing = None
    with pytest.raises(CheckpointError, match="statistics"):
        synthesise_volume(broken, torch.from_numpy(images), ["t1c"], "t2f", "axial")
    large = torch.ones((4, 50, 50, 3), dtype=torch.int16)
    lost = 3 * (50 * 50 - 48 * 48)
    with pytest.raises(
        DataError, match=f"{lost} voxels of the brain lie outside the 48 x 48 pixels of axial slices"
    ):
        synthesise_volume(generator, large, ["t1c"], "t2f", "axial")


def test_integers_and_planes() -> None:
    assert to_integers(torch.tensor([0.4, 0.6, 70000.2]), "t1c").tolist() == [0, 1, 70000]
    planes = stack_modalities(("t1n", "t2w"), np.array([[[[7]]], [[[9]]]], np.int16))
    assert planes.dtype == np.int16 and planes[:, 0, 0, 0].tolist() == [0, 7, 0, 9]
    other = stack_modalities(["adc"], np.array([[[[7]]]], np.int16), ModalitySet("m", ("dwi", "adc")))
    assert other[:, 0, 0, 0].tolist() == [0, 7]
