"""The RetinaNet of CrowdDet, whole: maps, decoded rows, losses and gradients of one image, from one forward pass.

Theirs has boxes with widths of one pixel more, anchors of its own grid in another order, ratios first, images of blue,
green, red that are padded to 64 x 128, a bilinear pyramid, and a normaliser that is a running mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.detect.losses import sigmoid_focal, smooth_l1
from sightline.areas.detect.retinanet import MaxIoU
from sightline.ops.boxes.codes import decode_deltas, encode_deltas
from sightline.ops.boxes.overlaps import box_iou
from sightline.ops.boxes.priors import IGNORED, Priors
from tests.detect_parity import load_detect_golden, load_theirs, our_name
from tests.golden_parity import (
    OUTPUT_BOUND,
    Golden,
    assert_gradients_and_buffers,
    assert_near_largest,
    load_golden,
)
from tests.lidar_parity import assert_buffers, theirs_of
from tests.models.detection.test_parity import detector
from tests.published_layouts import LAYOUTS

pytestmark = pytest.mark.shared

STRIDES = (8, 16, 32, 64, 128)
PLUS_ONE = torch.tensor([0, 0, 1, 1])
NUM_SUREST = 1000
"""Of a level, which evaluation keeps."""


def corners_of_crowddet(shared: Path, maps: tuple[tuple[int, int], ...]) -> Tensor:
    """Anchors (P, 4) with their last pixels, float32: the published ones of the first cell, moved."""
    golden = load_golden(shared, "anchors", area="detect")
    rows = []
    for place, (height, width) in enumerate(maps):
        y, x = (torch.arange(count, dtype=torch.float32) * STRIDES[place] for count in (height, width))
        shifts = torch.stack([x.expand(height, width), y[:, None].expand(height, width)] * 2, dim=2)
        rows.append((shifts[:, :, None] + golden.tensor(f"crowddet/P{3 + place}")[:9]).flatten(0, 2))
    return torch.cat(rows)


class Pass(NamedTuple):
    """The one pass: model and golden numbers, stages and levels, logits and deltas (P, n), and anchors."""

    model: nn.Module
    golden: Golden
    stages: list[Tensor]
    levels: list[Tensor]
    logits: Tensor
    codes: Tensor
    maps: tuple[tuple[int, int], ...]
    corners: Tensor

    @property
    def priors(self) -> Priors:
        """Half-open anchors, float64."""
        return Priors("anchors", self.corners.double() + PLUS_ONE, STRIDES, self.maps, (9,) * len(self.maps))


@pytest.fixture(scope="module")
def forward(shared: Path) -> Pass:
    """Batch norms are frozen and the network has no dropout: training and evaluation have the same outputs."""
    golden = load_detect_golden(shared, "crowddet_retinanet")
    blocks = {"backbone": {"norm": "frozen_bn", "frozen_stages": 2}, "neck": {"upsample": "bilinear"}}
    model = detector("resnet50", "retina", 1, **blocks)
    assert sum(each.numel() for each in model.parameters()) == golden.info["trainable_parameters"]
    load_theirs(golden, model, LAYOUTS["crowddet_retinanet"])
    stages: list[Tensor] = []
    levels: list[Tensor] = []
    for stage in model.backbone.stages:
        stage.register_forward_hook(lambda _, __, found: stages.append(found.detach()))
    model.neck.register_forward_hook(lambda _, __, found: levels.extend(each.detach() for each in found))
    mean, std = (
        torch.tensor(golden.info["constructor"][f"image_{each}"], dtype=torch.float64)[:, None, None]
        for each in ("mean", "std")
    )
    found = model(image=nn.functional.pad((golden.tensor("in.image") - mean) / std, (0, 32)))
    maps = tuple((height, width) for height, width in found["level_shapes"][0].tolist())
    outputs = found["logits"][0], found["codes"][0]
    return Pass(model, golden, stages, levels, *outputs, maps, corners_of_crowddet(shared, maps))


def test_maps_and_outputs_are_those_of_crowddet(forward: Pass) -> None:
    """Levels come from the coarsest to the finest there."""
    for place, each in enumerate(forward.stages):
        theirs_of(forward.golden, each, f"eval.tap.C5.{place}")
    for place, each in enumerate(reversed(forward.levels)):
        theirs_of(forward.golden, each, f"eval.tap.fpn.{place}")
    for place, rows in enumerate(reversed(forward.priors.level_slices)):
        theirs_of(forward.golden, forward.logits[rows].detach()[None], f"eval.tap.head.0.{place}")
        theirs_of(forward.golden, forward.codes[rows].detach()[None], f"eval.tap.head.1.{place}")


def test_decoded_rows_are_those_of_crowddet(forward: Pass) -> None:
    """Per level the 1,000 surest: boxes, whose sides lie past their last pixels, scores and classes.

    Sizes and centres of anchors are float32 there, the rest is float64.
    """
    theirs = forward.golden.tensor("eval.out")
    sizes = forward.corners[:, 2:] - forward.corners[:, :2] + 1
    centres, half = (forward.corners[:, :2] + 0.5 * sizes).double(), sizes.double() / 2
    anchors = torch.cat([centres - half, centres + half], dim=1)
    for level in reversed(forward.priors.level_slices):
        scores, order = forward.logits[level].detach()[:, 0].sigmoid().sort(descending=True)
        order = order[:NUM_SUREST]
        boxes = decode_deltas(anchors[level][order], forward.codes[level].detach()[order])
        ours = torch.cat([boxes, scores[:NUM_SUREST, None], torch.ones(len(boxes), 1)], dim=1)
        expected, theirs = theirs[: len(ours)], theirs[len(ours) :]
        expected = expected[expected[:, 4].argsort(descending=True)]
        for column, what in ((slice(0, 4), "boxes"), (slice(4, 5), "scores"), (slice(5, 6), "classes")):
            assert_near_largest(ours[:, column], expected[:, column], OUTPUT_BOUND, what)
    assert not len(theirs)


def test_losses_and_gradients_are_those_of_crowddet(forward: Pass) -> None:
    """The fifth box, which the image's own count leaves out, is no target; the normaliser has had one step."""
    golden, priors = forward.golden, forward.priors
    count = int(golden.arrays["in.im_info"][0, 5])
    boxes = golden.tensor("in.gt_boxes")[0, :count, :4] + PLUS_ONE
    found = MaxIoU(low_quality="overwrite")(priors, boxes, torch.zeros(count, dtype=torch.bool)).matched
    overlap = box_iou(boxes, priors.coordinates)
    assert ((overlap == overlap.amax(dim=1, keepdim=True)).sum(dim=1) == 1).all(), "ties, that theirs breaks at random"
    positive = found >= 0
    normaliser = 0.9 * 100 + 0.1 * max(int(positive.sum()), 1)
    weight = (found != IGNORED)[:, None].double()
    focal = sigmoid_focal(forward.logits, positive[:, None], weight=weight) / normaliser
    true = encode_deltas(priors.coordinates[positive], boxes[found[positive]])
    smooth = smooth_l1(forward.codes[positive], true, beta=golden.info["constructor"]["beta"]) / normaliser
    for value, name in (
        (focal, "train.out.retina_focal_loss"),
        (smooth, "train.out.retina_smooth_l1"),
        (focal + smooth, "train.loss"),
    ):
        assert_near_largest(value.detach(), golden.tensor(name), OUTPUT_BOUND, name)
    (focal + smooth).backward()
    names = LAYOUTS["crowddet_retinanet"]
    assert_gradients_and_buffers(golden, forward.model, lambda key: our_name(key, names))
    assert_buffers(golden, forward.model, lambda key: our_name(key, names))
