"""What all assigners promise: empty images, regions, ties, permuted boxes, memory, refusals; and the report."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.peak_memory import peak_of_run
from sightline.areas.detect.fcos import ATSS, FCOS
from sightline.areas.detect.free_anchor import FreeAnchor
from sightline.areas.detect.ota import OTA
from sightline.areas.detect.retinanet import MaxIoU
from sightline.areas.detect.yolo import SimOTA
from sightline.contract import registry
from sightline.contract.errors import MissingExtraError
from sightline.instrument.work import WorkCounter
from sightline.ops import numba_kernels
from sightline.ops.boxes.priors import AnchorShapes, Priors, make_anchors, make_points
from sightline.parts.boxes.assigner import BACKGROUND, IGNORED, Assigner, Assignment, PriorPredictions
from sightline.parts.boxes.assignment_report import report_assignment
from tests.cases import run_each
from tests.marks import long_but
from tests.ops.boxes.crowds import crowd

STRIDES = (8, 16, 32)
MAPS = ((12, 16), (6, 8), (3, 4))
SQUARES = AnchorShapes((1.0,), (1.0,), base_strides=4)
ANCHORS = make_anchors(MAPS, STRIDES, SQUARES, dtype=torch.float64)
POINTS = make_points(MAPS, STRIDES, dtype=torch.float64)


def guesses(priors: Priors) -> PriorPredictions:
    """Boxes of 20 x 40 pixels about each prior, a little off, and logits of three classes; the same every time."""
    draw = torch.Generator().manual_seed(4)
    size = torch.tensor([20.0, 40.0]) * (0.7 + 0.6 * torch.rand(len(priors), 2, generator=draw))
    centres = priors.centres + 4 * torch.randn(len(priors), 2, generator=draw)
    boxes = torch.cat([centres - size / 2, centres + size / 2], dim=1).to(priors.coordinates.dtype)
    return PriorPredictions(
        torch.randn(len(priors), 3, generator=draw), boxes, torch.randn(len(priors), generator=draw)
    )


def guessing(assigner: Assigner) -> Callable[..., Assignment]:
    """An assigner that needs predictions, with these and with the label 1 for all boxes."""

    def assign(priors: Priors, boxes: Tensor, is_ignored: Tensor) -> Assignment:
        return assigner(priors, boxes, is_ignored, torch.ones(len(boxes), dtype=torch.int64), guesses(priors))

    return assign


PAIRS: dict[str, tuple[Callable[[Priors, Tensor, Tensor], Assignment], Priors]] = {
    "max_iou": (MaxIoU(), ANCHORS),
    "max_iou_overwrite": (MaxIoU(low_quality="overwrite"), ANCHORS),
    "max_iou_detectron": (MaxIoU(low_quality="detectron"), ANCHORS),
    "fcos": (FCOS(), POINTS),
    "atss_anchors": (ATSS(), ANCHORS),
    "atss_points": (ATSS(), POINTS),
    "simota": (guessing(SimOTA()), POINTS),
    "ota": (guessing(OTA()), POINTS),
    "free_anchor": (FreeAnchor(bag_size=9), ANCHORS),
}
each_pair = pytest.mark.parametrize("pair", PAIRS)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def none_ignored(boxes: Tensor) -> Tensor:
    return torch.zeros(len(boxes), dtype=torch.bool)


@each_pair
def test_an_image_without_boxes_is_background(pair: str) -> None:
    assigner, priors = PAIRS[pair]
    found = assigner(priors, torch.empty(0, 4), flags())
    assert found.matched.tolist() == [BACKGROUND] * len(priors)
    assert found.matched.dtype == torch.int64
    assert found.num_claims.sum() == 0


@each_pair
@pytest.mark.parametrize("maps", [((0, 0), (0, 0), (0, 0)), ((4, 4), (2, 2), (0, 0)), ((4, 4), (0, 0), (1, 1))])
def test_levels_without_priors_take_no_part(pair: str, maps: tuple[tuple[int, int], ...]) -> None:
    """An image may be smaller than a stride. The others are assigned as if they were all; without any, none is."""
    assigner, priors = PAIRS[pair]
    filled = {stride: size for stride, size in zip(STRIDES, maps, strict=True) if size[0]}
    make = partial(make_anchors, shapes=SQUARES) if priors.kind == "anchors" else make_points
    crowds = [torch.empty(0, 4), crowd(3, count=4, height=32, width=32), torch.tensor([[4.0, 4, 28, 30]] * 30)]
    for boxes in crowds:
        found = assigner(make(maps, STRIDES, dtype=torch.float64), boxes, none_ignored(boxes))
        assert found.matched.dtype == found.num_claims.dtype == torch.int64
        if not filled:
            assert found.matched.shape == found.num_claims.shape == (0,)
        elif not isinstance(assigner, FCOS):  # whose limits are between levels
            alone = assigner(make([*filled.values()], [*filled], dtype=torch.float64), boxes, none_ignored(boxes))
            assert torch.equal(found.matched, alone.matched)
            assert torch.equal(found.num_claims, alone.num_claims)


@run_each(
    "assigner, dtype",
    itertools.product((SimOTA(), OTA()), (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)),
)
def test_labels_of_few_bits_are_assigned_as_those_of_int64(assigner: Assigner, dtype: torch.dtype) -> None:
    """As an index, torch takes uint8 for a mask."""
    boxes, label = crowd(1, count=6), torch.tensor([0, 1, 2, 1, 0, 2])
    arguments = POINTS, boxes, none_ignored(boxes)
    narrow, wide = (assigner(*arguments, labels, guesses(POINTS)).matched for labels in (label.to(dtype), label))
    assert torch.equal(narrow, wide)
    assert (wide >= 0).any()


@each_pair
def test_regions_hide_background_and_are_no_targets(pair: str) -> None:
    """A region over the left half of the image, and a person in it; the person's priors stay."""
    assigner, priors = PAIRS[pair]
    boxes = torch.tensor([[-100.0, -100, 64, 200], [16, 16, 48, 80]])
    found = assigner(priors, boxes, flags(1, 0)).matched
    alone = assigner(priors, boxes[1:], flags(0)).matched
    assert not (found == 0).any()
    assert torch.equal(found == 1, alone == 0)
    assert (found == 1).any()
    is_left, rest = priors.centres[:, 0] < 64, found != 1
    assert (found[is_left & rest] == IGNORED).all()
    assert (found[~is_left & rest & (alone == BACKGROUND)] == BACKGROUND).all()
    only = assigner(priors, boxes[:1], flags(1)).matched
    assert torch.equal(only == IGNORED, is_left)
    assert (only != 0).all()


def test_a_region_hides_anchors_of_which_it_covers_more_than_half() -> None:
    """The anchor reaches from 0 to 32; a large region that just touches it would have a tiny IoU with it."""
    priors = make_anchors([(1, 1)], (32,), [[(32.0, 32.0)]])
    for left, expected in ((15.9, IGNORED), (16.0, BACKGROUND), (16.1, BACKGROUND)):
        region = torch.tensor([[left, -1000, 2000, 1000]])
        assert MaxIoU()(priors, region, flags(1)).matched.tolist() == [expected]


def test_a_point_lies_in_a_region_from_its_first_side_up_to_its_last() -> None:
    points = make_points([(1, 1)], (8,))
    for left, right, expected in ((4.0, 5.0, IGNORED), (3.0, 4.0, BACKGROUND), (3.0, 4.1, IGNORED)):
        region = torch.tensor([[left, 0, right, 8]])
        assert FCOS()(points, region, flags(1)).matched.tolist() == [expected]


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "max_iou_overwrite"])  # the last box wins there
def test_the_order_of_boxes_decides_nothing_but_ties(pair: str) -> None:
    """What a prior is to predict has the same corners; of equal boxes it may be the other."""
    assigner, priors = PAIRS[pair]
    for seed in range(0, 40, 2):
        boxes = crowd(seed, count=14, height=64, width=96)
        boxes[3] += 500
        is_ignored = torch.arange(14) % 5 == 4
        order = torch.randperm(14, generator=torch.Generator().manual_seed(seed))
        found, permuted = assigner(priors, boxes, is_ignored), assigner(priors, boxes[order], is_ignored[order])
        assert torch.equal(found.num_claims, permuted.num_claims)
        one, other = found.matched, permuted.matched
        assert torch.equal(one.clamp(max=0), other.clamp(max=0))
        positive = one >= 0
        assert torch.equal(boxes[one[positive]], boxes[order][other[positive]]), seed


@each_pair
def test_inputs_are_unchanged_and_calls_repeat(pair: str) -> None:
    assigner, priors = PAIRS[pair]
    boxes, rows = crowd(3), priors.coordinates.clone()
    kept = boxes.clone().requires_grad_()
    first = assigner(priors, kept, none_ignored(boxes))
    second = assigner(priors, boxes.float(), none_ignored(boxes))
    assert torch.equal(first.matched, assigner(priors, boxes, none_ignored(boxes)).matched)
    assert torch.equal(kept, boxes)
    assert torch.equal(priors.coordinates, rows)
    assert not first.matched.requires_grad
    assert (first.matched != second.matched).float().mean() < 0.02, "rounding of corners to float32 decides ties alone"


@each_pair
def test_assignments_are_the_same_without_kernels(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assigner, priors = PAIRS[pair]
    boxes = crowd(5, count=30)
    is_ignored = torch.arange(30) % 6 == 5
    compiled = assigner(priors, boxes, is_ignored)
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    plain = assigner(priors, boxes, is_ignored)
    assert torch.equal(plain.matched, compiled.matched)
    assert torch.equal(plain.num_claims, compiled.num_claims)


@pytest.mark.parametrize(("left", "expected"), [(3.98, 0), (3.995, BACKGROUND), (4.0, BACKGROUND)])
def test_a_centre_less_than_a_hundredth_of_a_pixel_inside_is_not_inside_for_atss(left: float, expected: int) -> None:
    """Worked by hand: the IoU with the first anchor, about 1/3, is above the limit, (1/3 + 0 + 0) / 3 + 1/3 / 3^0.5."""
    rows = torch.tensor([[0.0, 0, 8, 8], [100, 0, 108, 8], [200, 0, 208, 8]])
    boxes = torch.tensor([[left, 0.0, 12, 8]])
    found = ATSS()(Priors("anchors", rows, (8,), ((1, 3),), (1,)), boxes, none_ignored(boxes)).matched
    assert found.tolist() == [expected, BACKGROUND, BACKGROUND]


def test_more_boxes_than_anchors_leave_some_without() -> None:
    priors = make_anchors([(1, 2)], (8,), SQUARES)
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 9, 9], [4, 0, 12, 8]])
    found = MaxIoU()(priors, boxes, none_ignored(boxes)).matched
    assert len({*found.tolist()}) == 2
    assert (found >= 0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    "kind", long_but(["atss", "simota"], ["max_iou", "fcos", "atss", "simota", "ota", "free_anchor"])
)
def test_a_crowd_stays_far_below_a_gigabyte(kind: str) -> None:
    """300 boxes and 100,000 priors: one matrix in float32 would take 114 MiB, and its temporaries a gigabyte."""
    assign, boxes, is_ignored = large_crowd(kind)
    assign(boxes[:20], is_ignored[:20])  # compiles the kernels
    assert peak_of_run(lambda: assign(boxes, is_ignored)) < 2**28


def large_crowd(kind: str) -> tuple[Callable[..., Assignment], Tensor, Tensor]:
    """An assigner over 100,000 priors, 300 boxes, and which of them are ignored."""
    maps, strides = ((240, 320), (120, 160), (60, 80), (30, 40)), (8, 16, 32, 64)
    built: Assigner = registry.assigners.get_entry(kind).builder()
    is_of_points = "anchors" not in built.prior_kinds
    priors = make_points(maps, strides) if is_of_points else make_anchors(maps, strides, SQUARES)
    assert len(priors) >= 100_000
    boxes = crowd(0, count=300, height=1920, width=2560, dtype=torch.float32)
    given, labels = guesses(priors) if built.needs_predictions else None, torch.zeros(300, dtype=torch.int64)

    def assign(boxes: Tensor, is_ignored: Tensor) -> Assignment:
        return built(priors, boxes, is_ignored, labels[: len(boxes)], given)

    return assign, boxes, torch.arange(300) % 15 == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["simota", "ota", "free_anchor"])
def test_predictions_cost_no_more_than_geometry(kind: str) -> None:
    """At most three times the numbers that FCOS writes for the same boxes and priors."""
    written = {}
    for name in ("fcos", kind):
        assign, *given = large_crowd(name)
        with WorkCounter() as work:
            assign(*given)
        written[name] = work.num_numbers
    assert written[kind] < 3 * written["fcos"]


def test_regions_alone_are_cheap_too() -> None:
    priors = make_points(((240, 320),), (8,))
    regions = crowd(1, count=300, height=1920, width=2560, dtype=torch.float32)
    assert peak_of_run(lambda: FCOS()(priors, regions, torch.ones(300, dtype=torch.bool))) < 2**28


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_wrong_calls_are_refused() -> None:
    box = torch.tensor([[0.0, 0, 8, 8]])
    for assigner, priors, boxes, is_ignored, text in (
        (MaxIoU(), POINTS, box, flags(0), "MaxIoU: found points as priors, takes anchors"),
        (FCOS(), ANCHORS, box, flags(0), "FCOS: found anchors as priors, takes points"),
        (ATSS(), ANCHORS, box[0], flags(0), r"found boxes \(4,\) and is_ignored \(1,\)"),
        (ATSS(), ANCHORS, box, flags(0, 0), r"is_ignored \(2,\); expected \(M, 4\) and \(M,\)"),
        (ATSS(), ANCHORS, box, torch.zeros(1), r"is_ignored is torch.float32, expected torch.bool"),
        (FCOS(), POINTS, box / 0, flags(0), r"boxes\[0\] is \[nan, nan, inf, inf\]; give finite corners"),
        (SimOTA(), POINTS, box, flags(0), "SimOTA: needs labels and predictions at 252 priors, found none"),
    ):
        with pytest.raises(ValueError, match=text):
            assigner(priors, boxes, is_ignored)


def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"negative: found 0\.6, expected at most positive=0\.5"):
        MaxIoU(negative=0.6)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'scipy': pip install 'sightline\[detect\]'$"):
        MaxIoU()
    MaxIoU(low_quality=None)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_counts_by_hand() -> None:
    """Three anchors of 8 x 8 in a row, a box on the first, one upon it that gets none, a region on the last."""
    priors = Priors("anchors", torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]]), (8,), ((1, 3),), (1,))
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 6], [16, 0, 32, 16]])
    is_ignored = flags(0, 0, 1)
    found = MaxIoU(low_quality="detectron")(priors, boxes, is_ignored)
    assert report_assignment(found, priors, boxes, is_ignored) == {
        "num_positive": 1,
        "num_ambiguous": 1,
        "num_ignored": 1,
        "num_boxes": 2,
        "positives_per_box": [1, 0, 0],
        "positives_per_level": [1],
        "unmatched_boxes": [1],
        "box_px": pytest.approx([8.0, 48**0.5, -1.0]),
    }
    empty = FCOS()(POINTS, torch.empty(0, 4), flags())
    report = report_assignment(empty, POINTS, torch.empty(0, 4), flags())
    assert (report["num_positive"], report["positives_per_box"]) == (0, [])


def test_simota_by_hand() -> None:
    """Four points in a row, all predicting the box of the first three: its IoU is 1, so three points would be it.

    The fourth lies outside of the reach of 1.5 strides. With an objectness that rules the middle one out, the cost
    of that one is the highest of the three; `topk` of 2 then leaves it.
    """
    points = make_points(((1, 5),), (8,))
    box = torch.tensor([[0.0, 0, 24, 8]])
    predicted = PriorPredictions(torch.zeros(5, 1), box.repeat(5, 1), torch.tensor([0.0, -9, 0, 0, 0]))
    for topk, expected in ((9, [0, 0, 0, -1, -1]), (2, [0, -1, 0, -1, -1])):
        found = SimOTA(topk=topk)(points, box, flags(0), torch.tensor([0]), predicted)
        assert found.matched.tolist() == expected


def test_boxes_that_stand_twice_share_the_points_of_simota() -> None:
    boxes = torch.tensor([[20.0, 12, 76, 84]] * 6, dtype=torch.float64)
    labels, given = torch.ones(6, dtype=torch.int64), guesses(POINTS)
    none = none_ignored(boxes)
    assert {*SimOTA(guarantee=False)(POINTS, boxes, none, labels, given).matched.tolist()} == {BACKGROUND, 0}
    assert {*SimOTA()(POINTS, boxes, none, labels, given).matched.tolist()} == {BACKGROUND, *range(6)}


def test_ota_gives_a_box_without_candidates_its_cheapest_points() -> None:
    """A box between all points: nothing lies inside."""
    boxes = torch.tensor([[9.0, 9, 11, 11], [30, 20, 90, 90]], dtype=torch.float64)
    found = OTA()(POINTS, boxes, none_ignored(boxes), torch.ones(2, dtype=torch.int64), guesses(POINTS)).matched
    assert 1 <= int((found == 0).sum()) <= 3
    assert int((found == 1).sum()) > 3


def test_an_iou_equal_to_a_threshold_of_max_iou_reaches_it() -> None:
    """By hand: anchors that overlap a box of 10 x 20 by 1/2 and 2/5 exactly, and by a little less."""
    rows = torch.tensor([[0, 0, 10, 20], [0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 9.99], [0, 0, 10, 7.99]]).double()
    priors = Priors("anchors", rows, (8,), ((1, 5),), (1,))
    box = torch.tensor([[0.0, 0, 10, 20]], dtype=torch.float64)
    for low_quality in (None, "guarantee", "overwrite", "detectron"):
        found = MaxIoU(low_quality=low_quality)(priors, box, torch.tensor([False]))  # type: ignore[arg-type]
        assert found.matched.tolist() == [0, 0, IGNORED, IGNORED, BACKGROUND]
        assert found.num_claims.tolist() == [1, 1, 0, 0, 0]
    pair = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 10]], dtype=torch.float64)
    both = MaxIoU(low_quality=None, boxes_per_prior=2)(priors, pair, torch.tensor([False, False]))
    assert both.second_matched is not None
    assert both.second_matched.tolist()[:2] == [1, 0], "the other box overlaps the first two anchors by 1/2 exactly"
