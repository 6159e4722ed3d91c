"""Cross entropy against torch, NumPy, the authors' smoothing, and its own floor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from sightline import registry
from sightline.errors import ConfigError
from sightline.losses.classification import CrossEntropy
from sightline.types import ComponentConfig
from tests.cases import run_each
from tests.golden_parity import load_golden


def mean(loss: CrossEntropy, logits: Tensor, label: Tensor) -> Tensor:
    return loss(logits=logits, label=label) / loss.count(label=label)


def samples(num_classes: int = 6, count: int = 9) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(count, num_classes, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, num_classes, (count,))


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(6)])
def test_smoothing_agrees_with_the_reference(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_label_smoothing")
    logits, label = golden.tensor(f"{case}.logits").requires_grad_(), golden.tensor(f"{case}.gold")
    num_classes = logits.shape[1]
    plain = mean(CrossEntropy(num_classes=num_classes), logits, label)
    smoothed = mean(CrossEntropy(num_classes=num_classes, label_smoothing=0.2), logits, label)
    # Sums of at most 50 x 7 terms: a few times 1e-16 of the largest term.
    torch.testing.assert_close(plain, golden.tensor(f"{case}.plain"), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(smoothed, golden.tensor(f"{case}.loss"), rtol=1e-13, atol=1e-14)
    smoothed.backward()
    torch.testing.assert_close(logits.grad, golden.tensor(f"{case}.grad"), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("num_classes", "published"), [(40, 1.2331), (50, 1.2788)])
def test_floor_of_smoothing(num_classes: int, published: float) -> None:
    """The loss is least where the answer is the smoothed target itself: the target's entropy, and no gradient."""
    target = torch.full((1, num_classes), 0.2 / (num_classes - 1), dtype=torch.float64)
    target[0, 3] = 0.8
    logits = target.log().requires_grad_()
    floor = CrossEntropy(num_classes=num_classes, label_smoothing=0.2)(logits=logits, label=torch.tensor([3]))
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2 / (num_classes - 1))
    assert floor.item() == pytest.approx(entropy, rel=1e-14)
    assert floor.item() == pytest.approx(published, abs=5e-5)
    floor.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-15)


@run_each("smoothing", [0.0, 0.1, 1.0])
@run_each("weights", [None, (0.5, 0.0, 2.0, 1.0, 3.0, 0.25)])
@run_each("ignore_index", [None, 255, 2])
def test_over_all_classes_it_is_torch(
    smoothing: float, weights: tuple[float, ...] | None, ignore_index: int | None
) -> None:
    logits, label = samples()
    label[:3] = torch.tensor([2, 4, 2])
    if ignore_index is not None:
        label[4] = ignore_index
    loss = CrossEntropy(
        num_classes=6,
        ignore_index=ignore_index,
        label_smoothing=smoothing,
        smoothing_over="all",
        class_weights=weights,
    )
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    other = -100 if ignore_index is None else ignore_index
    arguments = {"weight": weight, "ignore_index": other, "label_smoothing": smoothing}
    torch.testing.assert_close(mean(loss, logits, label), F.cross_entropy(logits, label, **arguments))
    total = F.cross_entropy(logits, label, reduction="sum", **arguments)
    torch.testing.assert_close(loss(logits=logits, label=label), total, rtol=1e-13, atol=0)


def test_over_the_others_it_is_a_sum_over_written_out_targets() -> None:
    logits, label = samples()
    weights = np.array([0.5, 0.0, 2.0, 1.0, 3.0, 0.25])
    target = np.full((9, 6), 0.3 / 5)
    target[np.arange(9), label] = 0.7
    expected = -(weights * target * log_softmax(logits.detach().numpy(), axis=1)).sum()
    loss = CrossEntropy(num_classes=6, label_smoothing=0.3, class_weights=tuple(weights.tolist()))
    assert loss(logits=logits, label=label).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("smoothing_over", ["others", "all"])
def test_gradients_agree_with_finite_differences(smoothing_over: str) -> None:
    logits, label = samples(num_classes=4, count=5)
    label[1] = 9
    loss = CrossEntropy(
        num_classes=4,
        ignore_index=9,
        label_smoothing=0.2,
        smoothing_over=smoothing_over,
        class_weights=(1.0, 2.0, 0.5, 0.0),
    )
    assert torch.autograd.gradcheck(lambda values: loss(logits=values, label=label), (logits,))


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_all_ignored_is_zero_with_zero_gradients(weights: tuple[float, ...] | None) -> None:
    loss = CrossEntropy(num_classes=3, ignore_index=-1, label_smoothing=0.1, class_weights=weights)
    logits, label = torch.randn(4, 3, requires_grad=True), torch.full((4,), -1)
    total = loss(logits=logits, label=label)
    total.backward()
    assert total.item() == 0
    assert loss.count(label=label).item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_an_ignored_target_is_as_if_it_were_not_there() -> None:
    loss = CrossEntropy(num_classes=6, ignore_index=255, label_smoothing=0.2)
    logits, label = samples()
    label[2] = 255
    kept = torch.arange(9) != 2
    without = loss(logits=logits[kept], label=label[kept])
    torch.testing.assert_close(loss(logits=logits, label=label), without, rtol=1e-14, atol=0)
    assert loss.count(label=label) == 8


def test_parts_add_up() -> None:
    loss = CrossEntropy(num_classes=6, class_weights=(1.0, 2.0, 0.5, 1.0, 0.0, 3.0))
    logits, label = samples()
    sums = sum(loss(logits=a, label=b) for a, b in zip(logits.split(4), label.split(4), strict=True))
    counts = sum(loss.count(label=part) for part in label.split(4))
    torch.testing.assert_close(sums / counts, mean(loss, logits, label), rtol=1e-14, atol=0)


def test_counts_are_whole_numbers_without_weights() -> None:
    count = CrossEntropy(num_classes=3).count(label=torch.tensor([0, 1, 2, 2]))
    assert (count.item(), count.dtype) == (4, torch.int64)


def test_weights_are_not_part_of_a_checkpoint() -> None:
    assert not CrossEntropy(num_classes=2, class_weights=(1.0, 2.0)).state_dict()


def test_wrong_number_of_weights_names_both() -> None:
    component = ComponentConfig("cross_entropy", {"class_weights": [1.0, 2.0]})
    with pytest.raises(ConfigError, match=r"class_weights: found 2 for 3 classes"):
        registry.losses.build(component, facts={"num_classes": 3})


def test_one_class_has_no_others() -> None:
    with pytest.raises(ConfigError, match="one class has no others"):
        CrossEntropy(num_classes=1, label_smoothing=0.1)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 5), (4,)])
def test_wrong_shape_names_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits: found the shape .*expected \(4, 3\)"):
        CrossEntropy(num_classes=3)(logits=torch.zeros(shape), label=torch.zeros(4, dtype=torch.int64))
