"""Suppression of turned boxes and of circles against the numbers of public code, loops over all pairs, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.boxes.rotated_overlaps import box3d_iou_bev
from sightline.ops.boxes.rotated_suppression import box3d_nms, circle_nms
from sightline.ops.operator import OPERATORS
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "nms_rotated", area="boxes3d")


@run_each("case", range(8))
def test_kept_detections_are_those_of_public_code(golden: Golden, case: int) -> None:
    given, rule = (
        [golden.tensor(f"case{case:02}/in_{name}") for name in ("boxes", "scores")],
        golden.info["cases"][case],
    )
    if rule.get("kind") == "circle_nms":
        kept = circle_nms(given[0][:, :2], given[1], rule["threshold"], max_kept=rule["post"])
    else:
        kept = box3d_nms(*given, rule["thr"], max_candidates=rule["pre"], max_kept=rule["post"])
    assert kept.tolist() == golden.arrays[f"case{case:02}/keep"].tolist()


def test_classes_are_suppressed_by_themselves_or_together(golden: Golden) -> None:
    """The file has three scores for each box, of which those of at least 0.3 count, in the order of the classes."""
    boxes, scores = golden.tensor("case08/in_boxes"), golden.tensor("case08/in_scores")
    label, row = (scores.T >= 0.3).nonzero(as_tuple=True)
    kept = box3d_nms(boxes[row], scores[row, label], 0.2, label)
    by_class = kept[label[kept].argsort(stable=True)]
    assert torch.equal(scores[row, label][by_class], golden.tensor("case08/scores"))
    assert torch.equal(label[by_class].int(), golden.tensor("case08/labels"))
    assert torch.equal(boxes[row][by_class], golden.tensor("case08/boxes"))
    best = scores.amax(dim=1)
    rows = (best >= 0.3).nonzero()[:, 0]
    kept = rows[box3d_nms(boxes[rows], best[rows], 0.2)]
    assert kept.tolist() == golden.arrays["case08/agnostic_keep"].tolist()
    assert torch.equal(best[kept], golden.tensor("case08/agnostic_scores"))


def suppress_in_loops(hits: np.ndarray, scores: list[float], labels: list[int], most: int, limit: int) -> list[int]:
    """Keep, by all pairs: a second form of the rule, which counts the candidates and the kept of each class itself."""
    kept: list[int] = []
    taken, returned = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    returned_rows = []
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        taken[labels[row]] += 1
        if taken[labels[row]] <= most and not any(hits[other, row] and labels[other] == labels[row] for other in kept):
            kept.append(row)
            returned[labels[row]] += 1
            returned_rows += [row] * (returned[labels[row]] <= limit)
    return returned_rows


def draw_detections(count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of which many overlap and some are equal, scores in threes that are equal, and three classes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 7, generator=generator)
    boxes = torch.cat([12 * drawn[:, :3], 3 * drawn[:, 3:6] + 0.5, 6.2 * drawn[:, 6:]], dim=1)
    boxes[::7] = boxes[3]
    return boxes, (5 * drawn[:, 0] * drawn[:, 1]).round() / 5, torch.randint(-1, 2, (count,), generator=generator)


@run_each("num_classes, most, limit", [(1, 1000, 1000), (3, 1000, 1000), (3, 20, 6), (1, 40, 1), (3, 1, 9)])
def test_kept_detections_are_those_of_loops_over_all_pairs(num_classes: int, most: int, limit: int) -> None:
    for seed in range(3):
        boxes, scores, labels = draw_detections(120, seed=seed)
        labels = labels if num_classes > 1 else torch.zeros_like(labels)
        given = labels if num_classes > 1 else None
        limits = {"max_candidates": most, "max_kept": limit}
        squared = (boxes[:, None, :2].double() - boxes[:, :2].double()).square().sum(dim=2)
        for kept, hits in (
            (box3d_nms(boxes, scores, 0.1, given, **limits), box3d_iou_bev(boxes, boxes) > 0.1),
            (circle_nms(boxes[:, :2], scores, 2.0, given, **limits), squared <= 2.0),
        ):
            assert kept.tolist() == suppress_in_loops(hits.numpy(), scores.tolist(), labels.tolist(), most, limit)


def test_by_hand() -> None:
    """Two cars of 4 x 2 m, half a metre apart, share 7 of 9 m²; one across shares 4 of 12; one has no area."""
    boxes = torch.tensor(
        [[0.0, 0, 0, 4, 2, 1, 0], [0.5, 0, 9, 4, 2, 1, 0], [0, 0, 0, 4, 2, 1, math.pi / 2], [9, 9, 9, 0, 2, 1, 0]]
    )
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([0, 0, 1, 1])
    assert box3d_nms(boxes, scores, 0.3).tolist() == [1, 3]
    assert box3d_nms(boxes, scores, 0.34).tolist() == [1, 2, 3]
    assert box3d_nms(boxes, scores, 0.8).tolist() == [1, 2, 0, 3]
    assert box3d_nms(boxes, scores, 0.3, labels).tolist() == [1, 2, 3]
    assert box3d_nms(boxes, scores, 0.8, max_kept=1).tolist() == [1]
    assert box3d_nms(boxes, scores, 0.8, labels, max_kept=1).tolist() == [1, 2]
    assert box3d_nms(boxes, scores, 0.8, labels, max_candidates=1).tolist() == [1, 2]
    assert box3d_nms(boxes, torch.ones(4), 0.3).tolist() == [0, 3]
    assert circle_nms(boxes[:, :2], scores, 0.25).tolist() == [1, 3]
    assert circle_nms(boxes[:, :2], scores, 0.24).tolist() == [1, 2, 3]
    assert circle_nms(boxes[:0, :2], scores[:0], 0.25).tolist() == []
    boxes[1, 0] = math.nan
    assert box3d_nms(boxes, scores, 0.3).tolist() == [1, 2, 3]
    assert circle_nms(boxes[:, :2], scores, 0.25).tolist() == [1, 2, 3]


def test_boxes_of_any_format_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes of float32 with scores of float64 too: the plain forms are 10 to 100 times as slow."""
    for name in ("keep_apart", "bev_overlap"):
        monkeypatch.setattr(OPERATORS[name], "plain", None)
    boxes, scores, _ = draw_detections(9, seed=0)
    for dtype in (torch.float16, torch.float32, torch.float64):
        for other in (torch.float32, torch.float64):
            box3d_nms(boxes.to(dtype), scores.to(other), 0.5)
            box3d_iou_bev(boxes.to(dtype), boxes.to(other))


SOME, SCORES = torch.rand(3, 7), torch.rand(3)


@run_each(
    "changes, message",
    [
        ({"boxes": SOME[:, :4]}, r"boxes: found \(3, 4\) torch\.float32, expected numbers \(N, 7\)"),
        ({"scores": SCORES[:2]}, r"scores: found the shape \(2,\) for 3 boxes, expected one of each"),
        ({"scores": SCORES + math.nan}, "scores: 3 of 3 are nan, not a number"),
        ({"scores": SCORES > 0}, r"scores: found torch\.bool, expected numbers"),
        ({"scores": SCORES.to("meta")}, "scores: found on meta, boxes on cpu"),
        ({"labels": SCORES}, r"labels: found torch\.float32, expected whole numbers"),
        ({"max_kept": 0}, "max_kept: found 0, allowed is a number of at least 1"),
        ({"max_candidates": -1}, "max_candidates: found -1"),
        ({"iou_threshold": 1.5}, "iou_threshold: found 1.5, allowed is a number from 0 to 1"),
        ({"iou_threshold": math.nan}, "iou_threshold: found nan"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box3d_nms(**{"boxes": SOME, "scores": SCORES, "iou_threshold": 0.5} | changes)


def test_circles_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"centres: found \(3, 7\) torch\.float32, expected numbers \(N, 2\)"):
        circle_nms(SOME, SCORES, 1.0)
    with pytest.raises(ValueError, match="squared_radius: found -1, allowed is a number, at least 0"):
        circle_nms(SOME[:, :2], SCORES, -1)
