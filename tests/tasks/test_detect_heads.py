"""Heads with objectness and with two predictions at each prior: scores, codings, second boxes, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.areas.detect import output
from sightline.areas.detect.output import DetectionFilter, GreedyNMS
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.ops.boxes.codes import decode_boxes
from sightline.ops.boxes.priors import BACKGROUND, make_anchors, make_points
from sightline.ops.boxes.suppression import SuppressionResult
from tests.tasks.detectors import make_task

STRIDES, MAPS = (8, 16), ((2, 3), (1, 2))


class All(GreedyNMS):
    """Keeps all, and notes of which proposal each is."""

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor, **more: Any) -> SuppressionResult:
        self.proposals = more.get("proposal")
        order = scores.argsort(descending=True, stable=True)
        return SuppressionResult(order, scores[order])


def built(head: str, **arguments: Any) -> nn.Module:
    levels = {"channels": (8, 8), "strides": STRIDES, "num_classes": 2}
    made: nn.Module = registry.heads.get_entry(head).builder(**levels, **arguments)
    return made


class Bare(nn.Module):
    """A model that is its head alone."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *, image: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


def detect(head: nn.Module, losses: tuple[str, ...], **block: Any) -> Any:
    outputs = ("logits", "codes", "level_shapes", "objectness")
    return make_task(Bare(head), losses, outputs, **{"assigner": {"name": "max_iou"}, **block})


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# --- codings ---------------------------------------------------------------------------------------------------------


def test_sigmoid_coding_is_that_of_the_paper() -> None:
    """b = (sigmoid(t) + cell) * stride, and the side of the prior times e^t, cell by cell, two anchors each."""
    sizes = [[(10.0, 13.0), (16.0, 30.0)], [(30.0, 61.0), (62.0, 45.0)]]
    priors = make_anchors(MAPS, STRIDES, sizes, dtype=torch.float64)
    raw = torch.randn(1, len(priors), 4, dtype=torch.float64)
    boxes = decode_boxes(priors.coordinates, built("yolov3", num_anchors=2).to_deltas(raw, priors))[0]
    row = 0
    for stride, (height, width), level in zip(STRIDES, MAPS, sizes, strict=True):
        for y, x, (w, h) in ((y, x, size) for y in range(height) for x in range(width) for size in level):
            tx, ty, tw, th = raw[0, row].tolist()
            middle = [(1 / (1 + math.exp(-t)) + cell) * stride for t, cell in ((tx, x), (ty, y))]
            half = [w * math.exp(tw) / 2, h * math.exp(th) / 2]
            expected = [middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]
            assert boxes[row].tolist() == pytest.approx(expected, rel=1e-12)
            row += 1
    assert built("yolov3", num_anchors=2, coding="deltas").to_deltas(raw, priors) is raw


def test_yolox_decodes_from_the_corners_of_cells() -> None:
    """x = (t + cell) * stride and w = e^t * stride, of what its box layer gives."""
    head = built("yolox").double().eval()
    raw: list[Tensor] = []
    for layer in head.boxes:
        layer.register_forward_hook(lambda _, __, found: raw.append(found))
    priors = make_points(MAPS, STRIDES, dtype=torch.float64)
    codes = head([torch.randn(1, 8, *size, dtype=torch.float64) for size in MAPS])["codes"]
    boxes, row = decode_boxes(priors.coordinates, codes)[0], 0
    for stride, values in zip(STRIDES, raw, strict=True):
        for y, x in np.ndindex(*values.shape[2:]):
            tx, ty, tw, th = values[0, :, y, x].tolist()
            middle, half = (
                ((tx + x) * stride, (ty + y) * stride),
                (math.exp(tw) * stride / 2, math.exp(th) * stride / 2),
            )
            expected = [middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]
            assert boxes[row].tolist() == pytest.approx(expected, rel=1e-12)
            row += 1


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_products_with_objectness() -> None:
    """0.8 * 0.5 = 0.4 stays above 0.3, 0.9 * 0.3 = 0.27 does not, though its class alone is above."""
    priors = make_points(((1, 2),), (8,), dtype=torch.float64)
    outputs = {
        "logits": torch.tensor([[[logit(0.8)], [logit(0.9)]]], dtype=torch.float64),
        "objectness": torch.tensor([[logit(0.5), logit(0.3)]], dtype=torch.float64),
        "codes": torch.ones(1, 2, 4, dtype=torch.float64),
    }
    select = DetectionFilter(All(), min_score=0.3, max_per_level=10, max_detections=10)
    found = select.suppress(*select.decode(outputs, priors))
    assert found.tolist() == [pytest.approx([3, 3, 5, 5, 0.4, 0])]


@pytest.mark.parametrize("at_once", [0, 3 * 15 * 2, 10**9])
@pytest.mark.parametrize("is_lost", [False, True])
def test_images_are_decoded_together_as_one_by_one(
    at_once: int, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest of each level with ties in the order of priors, also where an image has none; NaN are kept."""
    monkeypatch.setattr(output, "_ENTRIES_AT_ONCE", {"cpu": at_once})
    priors = make_anchors(((3, 4), (1, 3)), STRIDES, [[(8.0, 8.0)], [(16.0, 16.0)]], dtype=torch.float64)
    torch.manual_seed(0)
    scores = torch.randint(1, 8, (5, 15, 3)) / 10.0  # many are equal
    scores[2] = 0.1
    logits = scores.double().logit()
    if is_lost:
        logits[3, 7, 1] = torch.nan
    # As many images at once as are decoded together: on some processors the last digit depends on where a value is.
    probabilities = torch.cat([part.sigmoid() for part in logits.split(max(1, min(5, at_once // 45)))])
    outputs = {"logits": logits, "codes": torch.randn(5, 15, 4, dtype=torch.float64)}
    decoded = DetectionFilter(All(), min_score=0.25, max_per_level=6, max_detections=10).decode(outputs, priors)
    for image, found in enumerate(decoded):
        expected = []
        for rows in priors.level_slices:
            entries = [
                (-math.inf if math.isnan(p) else -p, prior, label)
                for prior in range(rows.start, rows.stop)
                for label, p in enumerate(probabilities[image, prior].tolist())
                if not p <= 0.25
            ]
            expected += [(prior, label) for _, prior, label in sorted(entries)[:6]]
        assert found.proposal is not None
        assert list(zip(found.proposal.tolist(), found.detections[:, 5].int().tolist(), strict=True)) == expected
        index = torch.tensor([prior for prior, _ in expected], dtype=torch.int64)
        boxes = decode_boxes(priors.coordinates[index], outputs["codes"][image, index])
        assert torch.equal(found.detections[:, :4], boxes)
    assert not len(decoded[2].detections)


def test_two_predictions_of_a_prior_are_one_proposal() -> None:
    """Six predictions of three anchors on two levels, one a level at most twice, with their own boxes."""
    priors = make_anchors(((1, 2), (1, 1)), STRIDES, [[(8.0, 8.0)], [(16.0, 16.0)]], dtype=torch.float64)
    scores = torch.tensor([[0.9, 0.2], [0.6, 0.7], [0.3, 0.8]], dtype=torch.float64)
    codes = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    codes[0, :, 1, 0] = 1.0  # the second prediction lies a width further to the right
    outputs = {"logits": scores.logit()[None, :, :, None], "codes": codes}
    suppression = All()
    select = DetectionFilter(suppression, min_score=0.05, max_per_level=2, max_detections=10)
    found = select.suppress(*select.decode(outputs, priors))
    assert suppression.proposals.tolist() == [0, 1, 2, 2], "of the finer level the two surest"
    assert found[:, 4].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.3])
    assert found[:, :4].tolist() == [[0, 0, 8, 8], [16, 0, 32, 16], [16, 0, 24, 8], [0, 0, 16, 16]]


# --- second boxes ----------------------------------------------------------------------------------------------------


def pair_task(**assigner: Any) -> Any:
    head = built("retina_emd", num_anchors=1, num_convs=1)
    return detect(
        head,
        ("earth_mover",),
        assigner={"name": "max_iou", "boxes_per_prior": 2, **assigner},
        anchors={"sizes": [[(8, 8)], [(16, 16)]]},
    )


def test_second_boxes_are_rows_of_the_batch() -> None:
    """Two boxes share an anchor of the second image; the third box there is far below the thresholds of any other."""
    image = torch.zeros(2, 3, 16, 24)
    boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [8, 1, 16, 9], [9, 8, 17, 16]])
    batch = {
        "image": image,
        "boxes": boxes,
        "label": torch.tensor([1, 0, 1, 0]),
        "is_ignored": torch.zeros(4, dtype=torch.bool),
        "box_offsets": torch.tensor([0, 1, 4]),
    }
    context = pair_task().context(nn.Identity(), batch)
    assert context["priors"].shape == (8, 4)
    assert context["target"][1, 1] == 0
    assert context["matched_boxes"][1, 1].tolist() == boxes[1].tolist()
    assert context["second_match"][1, 1] == 2
    assert (context["second_match"][0] == BACKGROUND).all(), "of one box there is no second"
    assert not context["is_unmatched"].any()
    batch["is_ignored"][2] = True
    ignored = pair_task(low_quality=None).context(nn.Identity(), batch)["second_match"]
    assert ignored[1, 1] == -2, "background in an ignored region is ignored, for the second prediction, too"


@pytest.mark.parametrize(
    ("head", "losses", "block", "message"),
    [
        (
            "retina_emd",
            ("earth_mover",),
            {"assigner": {"name": "max_iou"}},
            "max_iou needs boxes at each prior: 1; RetinaEMDHead offers 2; set task.assigner.boxes_per_prior=2",
        ),
        (
            "retina",
            ("sigmoid_focal",),
            {"assigner": {"name": "max_iou", "boxes_per_prior": 2}},
            "max_iou needs boxes at each prior: 2; RetinaHead offers 1; set task.assigner.boxes_per_prior=1",
        ),
        (
            "retina_emd",
            ("sigmoid_focal",),
            {"assigner": {"name": "max_iou", "boxes_per_prior": 2}},
            "losses: sigmoid_focal needs boxes at each prior: 1; RetinaEMDHead offers 2; take earth_mover",
        ),
        (
            "retina",
            ("earth_mover",),
            {},
            "losses: earth_mover needs boxes at each prior: 2; RetinaHead offers 1; take the head retina_emd",
        ),
    ],
)
def test_pairs_and_singles_are_not_mixed(head: str, losses: tuple[str, ...], block: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(built(head), losses, **block)


FREE = ("free_anchor_positive", "free_anchor_negative")


@pytest.mark.parametrize(
    ("losses", "assigner", "message"),
    [
        (
            FREE,
            {"name": "max_iou"},
            "losses: free_anchor_positive needs targets of free_anchor; max_iou offers max_iou; set task.assigner.name",
        ),
        (
            FREE,
            {"name": "free_anchor", "bag_size": 9},
            "positive has bag_size=50, its assigner free_anchor 9; state the",
        ),
        (
            ("sigmoid_focal", "box_smooth_l1"),
            {"name": "free_anchor"},
            "needs the loss free_anchor_negative or free_anchor_positive; the config offers box_smooth_l1, ",
        ),
    ],
)
def test_losses_of_bags_need_the_assigner_of_bags(losses: tuple[str, ...], assigner: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(built("retina"), losses, assigner=assigner)
    detect(built("retina"), FREE, assigner={"name": "free_anchor"})
