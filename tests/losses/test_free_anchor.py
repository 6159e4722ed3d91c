"""FreeAnchor's two losses against the published numbers, a literal form, and what has to leave them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.detect.free_anchor import (
    FreeAnchor,
    FreeAnchorNegative,
    FreeAnchorPositive,
    anchor_bags,
    bag_losses,
)
from sightline.ops.boxes.codes import encode_deltas
from sightline.ops.boxes.overlaps import iou
from sightline.ops.boxes.priors import Priors
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED
from tests.assigners.test_golden import PLUS_ONE, case_of
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.ops.boxes.crowds import crowd

WEIGHTS = torch.tensor([10.0, 10.0, 5.0, 5.0], dtype=torch.float64)


def losses(given: dict[str, Tensor], **how: Any) -> tuple[Tensor, Tensor]:
    return FreeAnchorPositive(**how)(**given), FreeAnchorNegative(**how)(**given)


def one_image(boxes: Tensor, label: Tensor, **given: Tensor) -> dict[str, Tensor]:
    """The arguments of an image with these boxes, none of them ignored."""
    target = torch.zeros(1, len(given["priors"]), dtype=torch.int64)
    regions = torch.zeros(len(boxes), dtype=torch.bool)
    offsets = torch.tensor([0, len(boxes)])
    return {"boxes": boxes, "label": label, "is_ignored": regions, "box_offsets": offsets, "target": target, **given}


@run_each("name", ["loss_freeanchor", "loss_freeanchor_plus1"])
@run_each("case", range(10))
def test_both_losses_are_the_published_ones(shared: Path, name: str, case: int) -> None:
    """Their deltas are ten and five times ours; of old boxes, a width is a pixel more than x2 - x1."""
    golden = load_golden(shared, name, area="detect")
    stored, more = case_of(golden, case), PLUS_ONE if name.endswith("plus1") else 0
    anchors, boxes = golden.tensor("anchors") + more, stored["gt"] + more
    bags, theirs = anchor_bags(anchors, boxes, 50)[0], stored["bag_index"].long()
    is_same = (bags.sort(dim=1).values == theirs).all(dim=1)
    pairs = (iou(anchors[each], boxes[:, None]).sort(dim=1).values for each in (bags, theirs))
    assert torch.stack([*pairs]).diff(dim=0).abs().max() < 1e-12, "another one of equal overlaps at most"
    assert is_same.all() or name.endswith("plus1")
    logits, deltas = (stored[key].clone().requires_grad_() for key in ("cls_logits", "box_deltas"))
    given = one_image(boxes, stored["classes"] - 1, priors=anchors, logits=logits[None], codes=(deltas / WEIGHTS)[None])
    positive, negative = losses(given)
    if not is_same.all():  # of equal overlaps, their choice
        positive = torch.stack(
            [FreeAnchorPositive()(**of_bag(given, box, bag)) for box, bag in enumerate(theirs)]
        ).sum()
    found = torch.stack([positive, negative]) / len(boxes)
    assert found.tolist() == pytest.approx(stored["loss_positive_negative"].tolist(), rel=1e-9)
    for mine, key in zip(torch.autograd.grad(found.sum(), (logits, deltas)), ("grad_cls", "grad_box"), strict=True):
        published = stored[key].double()
        assert (mine - published).abs().max() <= 1e-6 * published.abs().max(), key


def of_bag(given: dict[str, Tensor], box: int, bag: Tensor) -> dict[str, Tensor]:
    """One box of an image, with this bag."""
    target = torch.full_like(given["target"], BACKGROUND)
    target[0, bag] = 0
    rows = {name: given[name][[box]] for name in ("boxes", "label", "is_ignored")}
    return {**given, **rows, "target": target, "box_offsets": torch.tensor([0, 1])}


@pytest.mark.parametrize("name", ["loss_freeanchor", "loss_freeanchor_plus1"])
def test_bags_of_probabilities_have_the_published_losses(shared: Path, name: str) -> None:
    """With a probability of 1 among them, whose weight is limited."""
    golden = load_golden(shared, name, area="detect")
    bags = {key.partition("/")[0] for key in golden.arrays if key.startswith("bag")}
    assert len(bags) == 6
    for bag in range(6):
        p = golden.tensor(f"bag{bag}/prob").clone().requires_grad_()
        found = bag_losses(p.log())
        expected = golden.tensor(f"bag{bag}/loss")
        assert (found - expected).abs().max() < 1e-12
        (gradient,) = torch.autograd.grad(found.sum(), p)
        off = (gradient - golden.tensor(f"bag{bag}/grad")).abs().max()
        weight = min(1e12, 1 / max(1e-12, 1 - p.max().item()))
        assert off < p.shape[1] * weight * torch.finfo(p.dtype).eps, "sums of members with such a weight are rounded"
    by_hand = bag_losses(torch.tensor([[0.1, 0.5, 0.9]], dtype=torch.float64).log())
    assert float(by_hand) == pytest.approx(0.259825, abs=1e-6)


def scene(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A crowd of two classes whose anchors predict boxes near by; the last box is an ignore region."""
    draw = torch.Generator().manual_seed(seed)
    boxes, label = crowd(seed, count=9, dtype=dtype), torch.randint(0, 2, (9,), generator=draw)
    anchors = (boxes.repeat(40, 1) + 6 * torch.randn(360, 4, generator=draw)).to(dtype)
    anchors[:, 2:] = torch.maximum(anchors[:, 2:], anchors[:, :2] + 2)
    codes = 0.8 * encode_deltas(anchors, boxes.repeat(40, 1)) + 0.05 * torch.randn(360, 4, generator=draw)
    logits = torch.randn(1, 360, 2, generator=draw).to(dtype)
    given = one_image(boxes, label, priors=anchors, logits=logits, codes=codes.to(dtype)[None])
    given["is_ignored"][-1] = True
    priors = Priors("anchors", anchors, (8,), ((1, 360),), (1,))
    matched = FreeAnchor(bag_size=12)(priors, boxes, given["is_ignored"]).matched
    target = torch.where(matched >= 0, label[matched.clamp(min=0)], matched)
    target[::5] = torch.where(target[::5] == BACKGROUND, IGNORED, target[::5])
    return {**given, "target": target[None]}


def test_extremes_and_empty_images_are_finite() -> None:
    for logit in (-80.0, 80.0):
        given = scene(0, torch.float32)
        values = {"logits": torch.full_like(given["logits"], logit), "codes": 9 * torch.ones_like(given["codes"])}
        values = {name: value.requires_grad_() for name, value in values.items()}
        found = sum(losses({**given, **values}))
        assert isinstance(found, Tensor)
        assert found.isfinite()
        assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(found, list(values.values())))
    none = {**given, "is_ignored": torch.ones(9, dtype=torch.bool), **values}
    positive, negative = losses(none)
    assert positive == 0
    assert negative > 0
    assert FreeAnchorPositive().count(is_ignored=none["is_ignored"]) == 0
    torch.autograd.grad(positive, list(values.values()))


def test_without_anchors_both_losses_are_zero() -> None:
    """An image may be smaller than the stride; labels of 8 bits are no mask of the classes."""
    given = scene(0)
    narrow = losses({**given, "label": given["label"].to(torch.uint8), "target": given["target"].to(torch.int8)})
    assert [float(each) for each in narrow] == [float(each) for each in losses(given)]
    none = {name: given[name][:, :0] for name in ("logits", "codes", "target")} | {"priors": given["priors"][:0]}
    values = [none[name].requires_grad_() for name in ("logits", "codes")]
    positive, negative = losses({**given, **none})
    assert (float(positive.detach()), float(negative.detach())) == (0, 0)
    torch.autograd.grad(positive, values)


def test_bags_have_the_highest_overlaps_and_then_the_nearest() -> None:
    """A box beside all anchors takes the nearest ones; more than there are anchors are all of them."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8], [40, 0, 48, 8]])
    boxes = torch.tensor([[0.0, 0, 10, 8], [30, 0, 36, 8]])
    bags, overlap = anchor_bags(anchors, boxes, 3)
    assert bags.tolist() == [[0, 1, 2], [3, 2, 1]]
    assert overlap.tolist() == [[pytest.approx(0.8), pytest.approx(1 / 8), 0], [0, 0, 0]]
    assert anchor_bags(anchors, boxes, 9)[0].shape == (2, 4)
    priors = Priors("anchors", anchors, (8,), ((1, 4),), (1,))
    found = FreeAnchor(bag_size=1)(priors, boxes, torch.tensor([False, False]))
    assert found.matched.tolist() == [0, BACKGROUND, BACKGROUND, 1]


def test_points_are_refused() -> None:
    given = scene(0)
    for loss in (FreeAnchorPositive(), FreeAnchorNegative()):
        with pytest.raises(ValueError, match="found points as priors, expected anchors; take the head retina"):
            loss(**{**given, "priors": given["priors"][:, :2]})
