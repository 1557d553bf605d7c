"""The focal Tversky loss against loops over pixels in float64, its gradient against differences, and the hard cases."""

import math

import pytest
import torch

from brasyn_dist.config import TverskyConfig
from brasyn_dist.errors import ConfigError
from brasyn_dist.losses.tversky import focal_tversky, labelled_only

CLASSES, SIZE = 4, 6
METHOD = TverskyConfig(smoothing=1e-6)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of three samples: all classes, two of them, background alone."""
    noise = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(3, CLASSES, SIZE, SIZE, generator=noise, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (3, SIZE, SIZE), generator=noise)
    labels[1] = torch.where(labels[1] > 1, 2, 0)
    labels[2] = 0
    return logits, labels


def by_hand(config: TverskyConfig, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Of one sample (C, H, W), pixel by pixel, from the formula in Abraham and Khan (2019) with the method's exponent."""
    losses = []
    for c in range(CLASSES):
        hit = missed = wrong = 0.0
        for row in range(labels.shape[0]):
            for column in range(labels.shape[1]):
                powers = [math.exp(v) for v in logits[:, row, column].tolist()]
                p = powers[c] / sum(powers)
                if int(labels[row, column]) == c:
                    hit += p
                    missed += 1 - p
                else:
                    wrong += p
        index = (hit + config.smoothing) / (
            hit + config.false_negative * missed + config.false_positive * wrong + config.smoothing
        )
        losses.append((1 - index) ** config.exponent)
    return sum(losses) / CLASSES


@pytest.mark.parametrize("config", [TverskyConfig(), METHOD, TverskyConfig(0.6, 0.4, 1.0, 0.5)])
def test_equals_the_formula(config: TverskyConfig):
    logits, labels = inputs()
    expected = [by_hand(config, *sample) for sample in zip(logits, labels)]
    assert focal_tversky(config, logits, labels).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_methods_weights():
    """Method, section 5: 0.3 on false negatives, 0.7 on false positives, exponent 1.33."""
    config = TverskyConfig()
    assert (config.false_negative, config.false_positive, config.exponent) == (0.3, 0.7, 1.33)


def test_the_sum_over_classes_is_four_times_the_mean():
    """Text of the thesis, algorithm 1: with weight 5, a factor of 4 to the published code."""
    summed = focal_tversky(TverskyConfig(classes="sum"), *inputs())
    torch.testing.assert_close(summed, CLASSES * focal_tversky(TverskyConfig(), *inputs()))


def test_gradient_equals_differences():
    logits, labels = inputs()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_tversky(TverskyConfig(), x, labels), logits)


def test_a_sample_does_not_depend_on_its_batch():
    logits, labels = inputs()
    together = focal_tversky(TverskyConfig(), logits, labels)
    alone = torch.cat(
        [focal_tversky(TverskyConfig(), logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    )
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 60.0, 30000.0])
def test_finite_for_certain_and_for_empty_slices(dtype: torch.dtype, size: float):
    """Right and wrong beyond doubt, slices without tumour, under autocast; float32 whatever comes in."""
    labels = torch.zeros(4, 8, 8, dtype=torch.uint8)
    labels[2:, 2:5, 2:5] = 3
    logits = torch.zeros(4, CLASSES, 8, 8, dtype=dtype)
    logits[0, 0], logits[1, 3], logits[2, 0] = size, size, size
    logits[3] = size * torch.nn.functional.one_hot(labels[3].long(), CLASSES).permute(2, 0, 1)
    logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = focal_tversky(METHOD, logits, labels)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and logits.grad.isfinite().all()
    assert ((loss >= 0) & (loss <= 1)).all()
    if size:
        # Three classes that are not there and not predicted cost nothing; all is right in samples 0 and 3.
        assert loss[0] < 1e-4 and loss[3] < 1e-4 and min(loss[1], loss[2]) > 0.1


def test_smoothing_decides_what_absent_classes_cost():
    """A slice without enhancing tumour, a little of which is predicted: by the method's smoothing, which is meant for sums over
    batches, as bad as a lot of it; by ours nearly right, and better the less there is."""
    labels, costs = torch.zeros(1, 8, 8, dtype=torch.int64), []
    for pixels in (20.0, 0.6, 0.06):
        p = pixels / 64
        logits = torch.full((1, CLASSES, 8, 8), -60.0, dtype=torch.float64)
        logits[:, 0], logits[:, 3] = math.log(1 - p), math.log(p)
        costs.append([float(focal_tversky(config, logits, labels)) for config in (METHOD, TverskyConfig())])
    methods, ours = zip(*costs)
    assert methods[1] == pytest.approx(methods[2], abs=2e-3) and methods[2] > 0.24
    assert ours[0] > 0.2 > 0.08 > ours[1] > 2 * ours[2]


def test_slices_without_labels_count_as_zero():
    logits, labels = inputs()
    logits.requires_grad_()
    has_labels = torch.tensor([True, False, True])
    loss = labelled_only(focal_tversky(TverskyConfig(), logits, labels), has_labels)
    loss.sum().backward()
    assert loss[1] == 0 and loss[0] > 0 and loss[2] > 0
    assert (logits.grad[1] == 0).all() and logits.grad[0].abs().max() > 0


@pytest.mark.parametrize("values", [{"smoothing": 0.0}, {"exponent": 0.75}, {"false_negative": -0.1}])
def test_options_that_cannot_be_computed_are_refused(values: dict[str, float]):
    with pytest.raises(ConfigError, match="Tversky"):
        TverskyConfig(**values)
