"""Losses of classes: cross entropy, distillation and Lovasz-softmax against references, with their gradients."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import jaccard_score
from torch import Tensor
from torch.nn import functional as F

from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from sightline.ops.boxes.focal import lovasz_of_image
from sightline.parts.losses.classification import (
    ClassLoss,
    CrossEntropy,
    Distillation,
    LovaszSoftmax,
    resolve_class_weights,
)
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


@run_each("weights", [None, (0.5, 0.0, 2.0, 1.0, 3.0, 0.25)])
@run_each("ignore_index", [None, 255, 2])
def test_without_smoothing_it_is_torch(weights: tuple[float, ...] | None, ignore_index: int | None) -> None:
    logits, label = samples()
    label[:3] = torch.tensor([2, 4, 2])
    if ignore_index is not None:
        label[4] = ignore_index
    loss = CrossEntropy(num_classes=6, ignore_index=ignore_index, class_weights=weights)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    other = -100 if ignore_index is None else ignore_index
    arguments = {"weight": weight, "ignore_index": other}
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


def test_weights_are_not_part_of_a_checkpoint() -> None:
    assert not CrossEntropy(num_classes=2, class_weights=(1.0, 2.0)).state_dict()


def test_wrong_number_of_weights_names_both() -> None:
    component = ComponentConfig("cross_entropy", {"class_weights": [1.0, 2.0]})
    with pytest.raises(ConfigError, match=r"class_weights: found 2 for 3 classes"):
        registry.losses.build(component, facts={"num_classes": 3})


@pytest.mark.parametrize("make", [CrossEntropy, LovaszSoftmax, Distillation])
@run_each("num_classes, ignore_index, is_refused", [(1, None, True), (1, 255, True), (2, 0, True), (2, 255, False)])
def test_one_class_leaves_nothing_to_learn(
    make: Callable[..., ClassLoss], num_classes: int, ignore_index: int | None, is_refused: bool
) -> None:
    """A run of it had the loss 0 and a mean IoU of 1."""
    refused = pytest.raises(
        ConfigError, match=r"the data have one class( that is not ignored)?, so that nothing is left"
    )
    with refused if is_refused else contextlib.nullcontext():
        make(num_classes=num_classes, ignore_index=ignore_index)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 5), (4,)])
def test_wrong_shape_names_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits: found the shape .*expected \(4, 3\)"):
        CrossEntropy(num_classes=3)(logits=torch.zeros(shape), label=torch.zeros(4, dtype=torch.int64))


# --- class weights ----------------------------------------------------------------------------------------------------


def weights(rule: str, counts: tuple[int, ...] | None, ignore_index: int | None = None) -> list[float]:
    made = resolve_class_weights(
        rule,  # type: ignore[arg-type]
        loss="cross_entropy",
        num_classes=3 if counts is None else len(counts),
        class_counts=counts,
        ignore_index=ignore_index,
    )
    assert made is not None
    return made.tolist()


@pytest.mark.parametrize("scans", ["single", "multi"])
def test_weights_of_semantic_kittis_scripts(shared: Path, scans: str) -> None:
    """The weights of all labelled scans by the reference's script, from its shares of 10^12 points."""
    with np.load(shared / "golden" / "lidar" / "semantic_kitti_scripts.npz", allow_pickle=False) as golden:
        frequency, expected = golden[f"weights/frequency_{scans}"], golden[f"weights/inverse_{scans}"]
    found = weights("inverse", tuple((frequency * 1e12).round().astype(int).tolist()), ignore_index=0)
    assert abs(frequency.sum() - 1) < 2e-6, "the script's shares are rounded"
    assert np.allclose(found[1:], expected[1:], rtol=2e-6)
    assert found[0] == 0
    sidewalk = weights("inverse", (856_077, 143_923))[1], weights("inverse_log", (856_077, 143_923))[1]
    assert np.round(sidewalk, 2).tolist() == [6.90, 6.59]


def test_weights_of_few_labels_by_hand() -> None:
    assert weights("inverse", (3, 1)) == pytest.approx([1 / 0.751, 1 / 0.251], abs=1e-12)
    assert weights("inverse_log", (3, 1)) == pytest.approx([1 / math.log(1.77), 1 / math.log(1.27)], abs=1e-12)


def test_a_class_that_never_occurs_weighs_nothing_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert weights("inverse", (0, 5, 0, 15), ignore_index=0)[2] == 0
    (message,) = caplog.messages
    assert "absent-class-weight: cross_entropy.class_weights: classes 2 do not occur" in message


def test_a_rule_needs_the_counts_of_the_data_set() -> None:
    with pytest.raises(ConfigError, match="inverse needs the fact class_counts, which this data set does not state"):
        weights("inverse", None)


# --- The distillation loss: golden numbers, SciPy, its gradients, and ignored points ---


def test_values_and_gradients_are_the_golden_ones(shared: Path) -> None:
    golden = load_golden(shared, "distillation", area="compress")
    for case in golden.info["cases"]:
        student, teacher, y, kl, ce, total, gradient = (
            golden.tensor(f"case{case['case']:02d}/{name}")
            for name in ("student", "teacher", "y", "kl", "ce", "total", "grad_student")
        )
        logits, label = student.clone().requires_grad_(), y.long()
        teacher = teacher.clone().requires_grad_()
        loss = Distillation(num_classes=student.shape[-1], temperature=case["T"])
        own = CrossEntropy(num_classes=student.shape[-1])
        divergence = loss(logits=logits, teacher_logits=teacher, label=label) / loss.count(label=label)
        entropy_loss = own(logits=logits, label=label) / own.count(label=label)
        whole = (1 - case["alpha"]) * entropy_loss + case["alpha"] * divergence
        whole.backward()
        assert divergence.item() == pytest.approx(case["T"] ** 2 * kl.item(), rel=1e-12, abs=1e-14)
        assert entropy_loss.item() == pytest.approx(ce.item(), rel=1e-12)
        assert whole.item() == pytest.approx(total.item(), rel=1e-12)
        assert torch.allclose(logits.grad, gradient, rtol=1e-12, atol=1e-14)
        assert teacher.grad is None


def test_points_that_are_ignored_count_nothing_whatever_they_hold() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 40, 5, generator=draws, dtype=torch.float64)
    label = torch.randint(0, 5, (3, 40), generator=draws)
    loss = Distillation(num_classes=5, ignore_index=2, temperature=3.0)
    found = loss(logits=logits, teacher_logits=teacher, label=label)
    is_counted = (label != 2).numpy()
    rows = entropy(softmax(teacher.numpy() / 3, axis=-1), softmax(logits.numpy() / 3, axis=-1), axis=-1)
    assert found.item() == pytest.approx(9 * rows[is_counted].sum(), rel=1e-12)
    assert loss.count(label=label).item() == is_counted.sum()
    moved = torch.where((label == 2)[..., None], 100.0, teacher)
    assert loss(logits=logits, teacher_logits=moved, label=label).item() == found.item()
    none = logits.clone().requires_grad_()
    loss(logits=none, teacher_logits=teacher, label=torch.full_like(label, 2)).backward()
    assert not none.grad.any()


def test_an_equal_student_costs_nothing_and_shifts_of_logits_do_not_matter() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss, label = Distillation(num_classes=4), torch.zeros(6, dtype=torch.int64)
    assert loss(logits=logits + 7, teacher_logits=logits, label=label).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="logits: found the shape"):
        loss(logits=logits, teacher_logits=logits[:, :3], label=label)


def test_distillation_of_large_logits_is_finite() -> None:
    logits, teacher = 1e4 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 1])
    assert Distillation(num_classes=3)(logits=logits, teacher_logits=teacher, label=label).isfinite()


# --- the Lovász-softmax loss ------------------------------------------------------------------------------------------


CASES = [case for case in range(14) if case not in (4, 7, 9, 12)]  # those of chosen classes and of none: below


@run_each("case", CASES)
def test_value_and_gradient_are_those_of_the_reference(shared: Path, case: int) -> None:
    """Of a whole batch at once the reference is one image; per image it is the mean of all of them."""
    folder = shared / "golden" / "lidar"
    info = json.loads((folder / "lovasz_softmax.json").read_text())["cases"][case]
    with np.load(folder / "lovasz_softmax.npz", allow_pickle=False) as golden:
        logits, label, value, gradient = (
            torch.from_numpy(golden[f"case{case:02d}/{name}"]) for name in ("logits", "label", "loss", "grad_logits")
        )
    logits = logits.double().movedim(1, -1).contiguous().requires_grad_()
    loss = LovaszSoftmax(num_classes=logits.shape[-1], ignore_index=info["ignore"])
    given = {"logits": logits, "label": label.long()}
    if not info["per_image"]:
        given = {"logits": logits.flatten(0, 1)[None], "label": label.long().flatten(0, 1)[None]}
    # the reference divides by all images, those without a label among them
    found = loss(**given) / (len(label) if info["per_image"] else 1)
    found.backward()
    assert found.item() == pytest.approx(value.item(), abs=1e-12)
    assert torch.allclose(logits.grad, gradient.double().movedim(1, -1), rtol=0, atol=1e-12)


def test_perfect_predictions_cost_nothing_and_wrong_ones_the_jaccard_loss() -> None:
    """Of probabilities that are 0 or 1 it is 1 - IoU, averaged over the classes that labels have."""
    random = np.random.default_rng(0)
    for _ in range(5):
        label, guess = random.integers(0, 4, (2, 60))
        ious = jaccard_score(label, guess, labels=np.unique(label), average=None)
        probabilities = torch.eye(4, dtype=torch.float64)[torch.from_numpy(guess)]
        found = lovasz_of_image(probabilities, torch.from_numpy(label))
        assert found.item() == pytest.approx(1 - ious.mean(), abs=1e-12)
        perfect = torch.eye(4, dtype=torch.float64)[torch.from_numpy(label)]
        assert lovasz_of_image(perfect, torch.from_numpy(label)).item() == 0


def test_a_label_below_the_classes_is_not_the_last_of_them() -> None:
    with pytest.raises(ValueError, match="label: found class -1; the lowest is 0, or give the ignore index"):
        LovaszSoftmax(num_classes=3)(logits=torch.randn(1, 4, 3), label=torch.tensor([[0, 1, 2, -1]]))


def test_joined_clouds_are_images_of_their_own() -> None:
    torch.manual_seed(0)
    logits, label, offsets = torch.randn(9, 3), torch.randint(0, 3, (9,)), torch.tensor([0, 4, 4, 9])
    loss = LovaszSoftmax(num_classes=3)
    together = loss(logits=logits, label=label, offsets=offsets)
    alone = [loss(logits=logits[None, a:b], label=label[None, a:b]) for a, b in ((0, 4), (4, 9))]
    assert together.item() == pytest.approx(sum(each.item() for each in alone), abs=1e-6)
    assert loss.count(label=label, offsets=offsets) == 2, "the cloud without points counts nothing"
    with pytest.raises(ValueError, match="and no offsets; expected images or joined clouds"):
        loss(logits=logits, label=label)


def test_where_all_is_ignored_loss_and_gradient_are_zero() -> None:
    logits = torch.full((2, 2, 2, 3), 1e4, dtype=torch.float16, requires_grad=True)
    loss = LovaszSoftmax(num_classes=3, ignore_index=0)
    label = torch.zeros(2, 2, 2, dtype=torch.int64)
    found = loss(logits=logits, label=label)
    found.backward()
    assert found.item() == 0
    assert not logits.grad.any()
    assert loss.count(label=label) == 0


def test_images_without_a_label_change_nothing() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(3, 2, 4, 3), torch.randint(1, 3, (3, 2, 4))
    label[1] = 0
    loss = LovaszSoftmax(num_classes=3, ignore_index=0)
    assert loss.count(label=label) == 2
    kept = [0, 2]
    assert loss(logits=logits, label=label) == loss(logits=logits[kept], label=label[kept])


MANY_WEIGHTS = tuple(1 + number % 3 for number in range(300))
OF_LABELS: tuple[Callable[..., ClassLoss], ...] = (
    CrossEntropy,
    partial(CrossEntropy, label_smoothing=0.2, class_weights=MANY_WEIGHTS),
    LovaszSoftmax,
    Distillation,
)


@run_each(
    "make, dtype, ignore_index",
    itertools.product(
        OF_LABELS, (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.bool), (None, -1, 1, 255)
    ),
)
def test_labels_of_any_integer_dtype_give_the_loss_of_int64(
    make: Callable[..., ClassLoss], dtype: torch.dtype, ignore_index: int | None
) -> None:
    """To the bit; 255 in 8 bits is the class 255, not -1, which torch takes for equal."""
    label = torch.randint(0, 300, (2, 30))
    label[0, :3], label[1, 0] = 255, 1
    label = label % 2 == 0 if dtype == torch.bool else label.clamp(max=127) if dtype == torch.int8 else label.to(dtype)
    wide = torch.tensor(label.tolist()).long()
    loss = make(num_classes=300, ignore_index=ignore_index)
    outputs = {"logits": torch.randn(2, 30, 300, dtype=torch.float64)}
    if isinstance(loss, Distillation):
        outputs["teacher_logits"] = torch.randn(2, 30, 300, dtype=torch.float64)
    assert torch.equal(loss(**outputs, label=label), loss(**outputs, label=wide))
    assert torch.equal(loss.count(label=label), loss.count(label=wide))
    if isinstance(loss, CrossEntropy) and loss.class_weights is None:
        assert int(loss.count(label=label)) == sum(int(number) != ignore_index for number in wide.flatten().tolist())


def test_labels_that_are_no_whole_numbers_are_refused() -> None:
    logits = torch.randn(3, 5)
    for make in (CrossEntropy, Distillation):
        loss = make(num_classes=5)
        outputs = {"logits": logits} | ({"teacher_logits": logits} if make is Distillation else {})
        with pytest.raises(ValueError, match=r"label: found torch\.float32, expected whole numbers"):
            loss(**outputs, label=torch.ones(3))


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(num_classes=5, ignore_index=-1),
        CrossEntropy(num_classes=5, ignore_index=-1, label_smoothing=0.2, class_weights=(1, 2, 0.5, 1, 3)),
        LovaszSoftmax(num_classes=5, ignore_index=-1),
        Distillation(num_classes=5, ignore_index=-1),
    ],
    ids=["cross_entropy", "smoothed", "lovasz", "distillation"],
)
def test_half_precision_logits_are_computed_in_float32(loss: ClassLoss) -> None:
    """Neither autocast nor logits of bf16 give sums of bf16's digits, which are 64 apart at 10,000; nor gradients."""
    generator = torch.Generator().manual_seed(0)
    names = ("logits", "teacher_logits") if isinstance(loss, Distillation) else ("logits",)
    halves = {name: (20 * torch.randn(2, 64, 32, 5, generator=generator)).bfloat16() for name in names}
    label = torch.randint(-1, 5, (2, 64, 32), generator=generator)

    def compute(dtype: torch.dtype, *, lowered: bool) -> tuple[Tensor, Tensor]:
        inputs = {name: value.to(dtype).requires_grad_() for name, value in halves.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            total = loss(**inputs, label=label)
        return total, torch.autograd.grad(total, inputs["logits"])[0]

    plain, gradient = compute(torch.float32, lowered=False)
    assert plain.dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        total, moved = compute(dtype, lowered=True)
        assert total.dtype == torch.float32
        assert torch.equal(total, plain)
        assert torch.equal(moved, gradient.to(dtype))


@pytest.mark.shared
@pytest.mark.parametrize("case", ["plain", "absent", "ignored", "one"])
def test_losses_of_points_are_those_of_pointcept(shared: Path, case: str) -> None:
    """Cross entropy and Lovász over a packed batch as one image, ignoring -1, and the gradient of their sum."""
    golden = load_golden(shared, "fn_losses", area="voxels")
    logits, label = golden.tensor(f"{case}.logits").clone().requires_grad_(), golden.tensor(f"{case}.label")
    num_classes = logits.shape[1]
    cross_entropy = CrossEntropy(num_classes=num_classes, ignore_index=-1)
    lovasz = LovaszSoftmax(num_classes=num_classes, ignore_index=-1)
    offsets = torch.tensor([0, len(label)])
    average = mean(cross_entropy, logits, label)
    extension = lovasz(logits=logits, label=label, offsets=offsets)
    (average + extension).backward()
    assert average.item() == pytest.approx(golden.tensor(f"{case}.ce").item(), rel=1e-12)
    assert extension.item() == pytest.approx(golden.tensor(f"{case}.lovasz").item(), rel=1e-12)
    assert logits.grad is not None
    assert (logits.grad - golden.tensor(f"{case}.g_total")).abs().max().item() <= 1e-12
