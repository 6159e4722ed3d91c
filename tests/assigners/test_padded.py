"""Assigners and suppressions of padded batches, and of boxes in space: the same bits as one image at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.areas.detect.output import Adaptive, GreedyNMS, SoftLinear
from sightline.contract import registry
from sightline.ops.boxes.codes import decode_boxes, encode_deltas3d
from sightline.ops.boxes.priors import BACKGROUND, IGNORED, Priors
from sightline.ops.boxes.suppression import SuppressionResult
from sightline.parts.boxes.assigner import Assigner, Assignment
from sightline.parts.boxes.assignment_report import compare_assigners, report_assignment, summarise_assigners
from sightline.parts.boxes.padded import PaddedBoxes
from sightline.parts.boxes.suppression import Suppression, suppress_batch
from tests.assigners.test_assigners import PAIRS, guesses, guessing
from tests.cases import run_each
from tests.ops.boxes.crowds import crowd
from tests.tasks.detectors import make_task
from tests.tasks.test_own_assigner import LOSSES, task_of


def batch_of(counts: tuple[int, ...] = (6, 0, 9)) -> tuple[Tensor, Tensor, Tensor]:
    """Crowds of some people in each image, float64: all boxes, offsets, and regions among the last image's."""
    boxes = torch.cat([crowd(seed, count=count, height=96, width=128) for seed, count in enumerate(counts)])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    is_ignored = torch.arange(len(boxes)) % 5 == 4
    return boxes.double(), offsets, is_ignored


def moved_behind_padding(padded: PaddedBoxes) -> PaddedBoxes:
    """The same boxes in their order, with rows that are none before, between and behind them: NaN, and ignored."""
    num_images, most = padded.is_box.shape
    rows = [2 * row + 1 for row in range(most)]
    boxes = torch.full((num_images, 2 * most + 2, padded.boxes.shape[2]), math.nan, dtype=padded.boxes.dtype)
    is_box = torch.zeros(num_images, 2 * most + 2, dtype=torch.bool)
    is_ignored = torch.ones_like(is_box)
    boxes[:, rows], is_box[:, rows], is_ignored[:, rows] = padded.boxes, padded.is_box, padded.is_ignored
    boxes[~is_box] = math.nan
    labels = None if padded.labels is None else torch.full(is_box.shape, -7)
    if labels is not None and padded.labels is not None:
        labels[:, rows] = padded.labels
    return PaddedBoxes(boxes, is_box, is_ignored, labels)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_padded_batch_is_assigned_as_its_images_are(pair: str) -> None:
    boxes, offsets, is_ignored = batch_of()
    called, priors = PAIRS[pair]
    assigner: Any = called
    predicted, labels = None, None
    if not isinstance(called, Assigner):  # one that needs predictions, and has them bound
        assigner = next(cell.cell_contents for cell in called.__closure__ if isinstance(cell.cell_contents, Assigner))  # type: ignore[attr-defined]
        predicted, labels = [guesses(priors)] * 3, torch.ones(len(boxes), dtype=torch.int64)
        called = guessing(assigner)
    padded = PaddedBoxes.from_rows(boxes, offsets, is_ignored, labels)
    assert padded.boxes.shape == (3, 9, 4)
    assert padded.is_box.sum(dim=1).tolist() == [6, 0, 9]
    for form in (padded, moved_behind_padding(padded)):
        found = assigner.assign_batch(priors, form, predicted)
        assert len(found) == 3
        for image, assignment in enumerate(found):
            rows = slice(int(offsets[image]), int(offsets[image + 1]))
            alone = called(priors, boxes[rows], is_ignored[rows])
            assert torch.equal(assignment.matched, alone.matched)
            assert torch.equal(assignment.num_claims, alone.num_claims)


class Nearest3d(Assigner):
    """An anchor predicts the box whose middle is nearest from above, within 2 m."""

    prior_kinds = frozenset({"anchors", "points"})
    num_sides = 7

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        assert boxes.shape[1] == 7
        distance, box = torch.cdist(priors.centres, boxes[:, :2]).min(dim=1)
        matched = torch.where(distance <= 2, box, BACKGROUND)
        return Assignment(matched, (matched >= 0).long())


class Circles(Suppression):
    """Drops a detection whose middle is within 1 m of a better one's of its class."""

    num_sides = 7

    def __init__(self) -> None:
        super().__init__(per_class=True)

    def keep(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> SuppressionResult:
        kept: list[int] = []
        for row in scores.argsort(descending=True, stable=True).tolist():
            near = [other for other in kept if (boxes[row, :2] - boxes[other, :2]).norm() <= 1]
            if not any(labels[row] == labels[other] for other in near):
                kept.append(row)
        return SuppressionResult(torch.tensor(kept, dtype=torch.int64), scores[kept])


def car(x: float, y: float, yaw: float = 0.0) -> list[float]:
    return [x, y, -1.0, 4.0, 2.0, 1.5, yaw]


ROW = Priors(
    "anchors", torch.tensor([car(x, 0.0, yaw) for x in (0, 5, 10, 15) for yaw in (0, 1.5)]), (5,), ((1, 4),), (2,)
)
"""Four cells in a row, 5 m apart, with two anchors each."""


def test_boxes_in_space_are_assigned_and_regions_hide_anchors_below_them() -> None:
    """A region of 4 x 2 m at (10, 2.0): turned by a quarter it reaches down to y = 0, and to no other anchor."""
    boxes = torch.tensor([car(1, 0), car(14, 1), car(10, 2)])
    for yaw, hidden in ((0.0, BACKGROUND), (math.pi / 2, IGNORED)):
        boxes[2, 6] = yaw
        found = Nearest3d()(ROW, boxes, torch.tensor([False, False, True]))
        assert found.matched.tolist() == [0, 0, BACKGROUND, BACKGROUND, hidden, hidden, 1, 1]
    [none, same] = Nearest3d().assign_batch(
        ROW, PaddedBoxes.from_rows(boxes, torch.tensor([0, 0, 3]), torch.tensor([False, False, True]))
    )
    assert none.matched.tolist() == [BACKGROUND] * 8
    assert torch.equal(same.matched, found.matched)


def test_the_report_of_boxes_in_space_is_in_metres() -> None:
    """Cars of 4 x 2 m: the root of 8 m2. The first has both anchors of the first cell, the other those of the last."""
    boxes, is_ignored = torch.tensor([car(1, 0), car(14, 1), car(10, 2)]), torch.tensor([False, False, True])
    report = report_assignment(Nearest3d()(ROW, boxes, is_ignored), ROW, boxes, is_ignored)
    assert report["positives_per_box"] == [2, 2, 0]
    assert report["box_m"] == pytest.approx([math.sqrt(8), math.sqrt(8), -1])
    assert compare_assigners({"nearest": [report]})[0]["of_size"] == {"2-4": {"boxes": 2, "positives": 2.0}}
    rows, table = summarise_assigners([{"assigners": {"nearest": report}}]) or ({}, None)
    assert rows["assigners"][0]["assigner"] == "nearest"
    assert table is not None
    assert "2-4 m (2)" in table.columns


class OfClass3d(Nearest3d):
    """Nearest3d, of which the two anchors of a cell are of the classes 0 and 1."""

    needs_labels = True

    def match(self, priors: Priors, boxes: Tensor, labels: Tensor) -> Assignment:  # type: ignore[override]
        distance = torch.cdist(priors.centres, boxes[:, :2])
        kind = torch.arange(len(priors)) % priors.priors_per_cell[0]
        distance, box = distance.masked_fill(kind[:, None] != labels, torch.inf).min(dim=1)
        matched = torch.where(distance <= 2, box, BACKGROUND)
        return Assignment(matched, (matched >= 0).long())


def test_an_assigner_of_classes_reads_labels_without_predictions() -> None:
    boxes, labels = torch.tensor([car(1, 0), car(14, 1)]), torch.tensor([1, 0], dtype=torch.uint8)
    no_region = torch.zeros(2, dtype=torch.bool)
    padded = PaddedBoxes.from_rows(boxes, torch.tensor([0, 2]), no_region, labels)
    for found in (OfClass3d()(ROW, boxes, no_region, labels), *OfClass3d().assign_batch(ROW, padded)):
        assert found.matched.tolist() == [-1, 0, -1, -1, -1, -1, 1, -1]
    with pytest.raises(ValueError, match="OfClass3d: needs the labels of boxes, found none"):
        OfClass3d().assign_batch(ROW, padded._replace(labels=None))


SPOTS = torch.tensor([[2.0, 1.0], [2.0, 1.001], [0.0, 0.0], [4.001, 0.0]])


def test_sides_of_a_region_in_space_are_inside() -> None:
    region = torch.tensor([[2.0, 0, 0, 4, 2, 1, 0]])
    points = Priors("points", SPOTS, (1,), ((1, 4),), (1,))
    found = Nearest3d()(points, region, torch.tensor([True]))
    assert found.matched.tolist() == [IGNORED, BACKGROUND, IGNORED, BACKGROUND]


@pytest.mark.parametrize(
    ("suppression", "reads"),
    [(GreedyNMS(), ()), (SoftLinear(min_score=0.3), ()), (Adaptive(), ("density",)), (Circles(), ())],
)
def test_a_padded_batch_is_suppressed_as_its_images_are(suppression: Suppression, reads: tuple[str, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    is_box = torch.rand(3, 12, generator=draw) < torch.tensor([0.7, 0.0, 1.0])[:, None]
    boxes = torch.rand(3, 12, suppression.num_sides, generator=draw)
    boxes[..., 2:4] += boxes[..., :2] + 2
    scores, labels = torch.rand(3, 12, generator=draw), torch.randint(0, 2, (3, 12), generator=draw)
    more = {name: torch.rand(3, 12, generator=draw) for name in reads}
    boxes[~is_box], scores[~is_box] = math.nan, math.nan
    found = suppress_batch(suppression, boxes, scores, labels, is_box, **more)
    assert found.indices.shape == found.scores.shape == (3, 12)
    sizes = set()
    for image in range(3):
        rows = is_box[image].nonzero().flatten()
        alone = suppression(
            *(values[image, rows] for values in (boxes, scores, labels)),
            **{name: values[image, rows] for name, values in more.items()},
        )
        size = len(alone.indices)
        sizes.add(size)
        assert torch.equal(found.indices[image, :size], rows[alone.indices])
        assert torch.equal(found.scores[image, :size], alone.scores)
        assert found.indices[image, size:].tolist() == [-1] * (12 - size)
        assert not found.scores[image, size:].any()
    assert min(sizes) == 0 < max(sizes) < 12


def test_circles_of_boxes_in_space_by_hand() -> None:
    boxes = torch.tensor([car(0, 0), car(0.5, 0), car(0, 0.8), car(3, 0)])
    found = Circles()(boxes, torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 0]))
    assert found.indices.tolist() == [1, 2, 3]


def test_codes_of_boxes_in_space_by_hand() -> None:
    """An anchor of 3 x 4 m has a diagonal of 5 m; the box is one to the right, two back, half a height up."""
    anchor = torch.tensor([0.0, 0, -1, 3, 4, 2, 0.25], dtype=torch.float64)
    box = torch.tensor([5.0, -10, 0, 6, 4, 1, 1.75], dtype=torch.float64)
    codes = encode_deltas3d(anchor, box)
    assert codes.tolist() == pytest.approx([1, -2, 0.5, math.log(2), 0, -math.log(2), 1.5])
    assert torch.allclose(decode_boxes(anchor, codes), box, rtol=0, atol=1e-12)


GOOD = PaddedBoxes.from_rows(torch.tensor([car(1, 0)]), torch.tensor([0, 1]), torch.tensor([False]))


@run_each(
    "changed, told",
    [
        ({"boxes": torch.zeros(1, 1, 4)}, "found boxes \\(1, 4\\)"),
        ({"boxes": torch.zeros(1, 7)}, "expected \\(B, M, D\\)"),
        ({"is_box": torch.ones(1, 2, dtype=torch.bool)}, "is_box \\(1, 2\\)"),
        ({"is_ignored": torch.zeros(1, 1)}, "is_ignored is torch.float32"),
        ({"boxes": torch.full((1, 1, 7), math.nan)}, "give finite numbers"),
        ({"labels": torch.zeros(1, 3).long()}, "labels \\(1, 3\\): expected \\(1, 1\\)"),
    ],
)
def test_other_batches_are_refused(changed: dict[str, Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Nearest3d().assign_batch(ROW, GOOD._replace(**changed))


def test_boxes_and_anchors_of_other_numbers_are_refused() -> None:
    [flat, *_] = [priors for _, priors in PAIRS.values()]
    with pytest.raises(ValueError, match="its boxes have 7 numbers"):
        Nearest3d()(flat, torch.zeros(1, 7), torch.tensor([False]))
    with pytest.raises(ValueError, match=r"expected \(N, 7\), \(N,\), \(N,\)"):
        Circles()(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match=r"is_box \(1, 2\); expected \(B, M, 7\) and \(B, M\)"):
        suppress_batch(Circles(), torch.zeros(1, 1, 7), *torch.zeros(2, 1, 1), torch.ones(1, 2, dtype=torch.bool))


def test_a_detector_of_images_refuses_parts_for_boxes_in_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (registry.assigners, registry.suppressions):
        kind.names()
        monkeypatch.setattr(kind, "_entries", dict(kind._entries))
    registry.assigners.add("nearest_3d")(Nearest3d)
    registry.suppressions.add("circles")(Circles)
    with pytest.raises(Exception, match="nearest_3d needs numbers of a box: 7; the task detect offers 4; take "):
        task_of("retina", {"name": "nearest_3d"})
    _, model = task_of("retina", {"name": "max_iou"})
    with pytest.raises(Exception, match="Circles needs numbers of a box: 7; the task detect offers 4; take one"):
        make_task(
            model,
            LOSSES["retina"],
            frozenset({"logits", "codes", "level_shapes"}),
            assigner={"name": "max_iou"},
            suppression={"name": "circles"},
            anchors={"scales": [1.0], "ratios": [1.0, 2.0]},
        )


def test_a_batch_of_no_image_is_none() -> None:
    empty = PaddedBoxes.from_rows(
        torch.zeros(0, 7), torch.tensor([0]), torch.zeros(0, dtype=torch.bool), torch.zeros(0).long()
    )
    assert empty.boxes.shape == (0, 0, 7)
    assert Nearest3d().assign_batch(ROW, empty) == []
