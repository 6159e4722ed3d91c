"""Toy of the real detector of 3D boxes, small: ragged frames, some without points or boxes, and anchors by class."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import nn

from sightline.areas.boxes3d.metrics.boxes3d_ap import Boxes3dAp
from sightline.areas.boxes3d.metrics.boxes3d_errors import Boxes3dErrors
from sightline.areas.boxes3d.pointpillars import PointPillars
from sightline.areas.boxes3d.task import Detect3d
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, declared_outputs
from sightline.contract.types import ComponentConfig
from sightline.store.boxes3d.box_sample import BOX3D_FIELDS, make_sample3d
from sightline.store.boxes3d.box_table import make_box_table
from tests.contract.toy import Made, Toy

CLASSES = ("cart", "post")
LOSSES = {"anchor_class": 1.0, "anchor_box": 2.0, "anchor_direction": 0.2}
_SIZES = np.array([[1.6, 0.8, 0.8], [0.5, 0.5, 1.6]])


def _frame(draw: np.random.Generator) -> dict[str, Any]:
    """Up to three boxes full of points on a square of 8 m, one in five of them ignored, and points around them."""
    count = int(draw.integers(0, 4))
    label = draw.integers(0, 2, count)
    middles = np.column_stack([draw.uniform(-3, 3, (count, 2)), draw.normal(0, 0.1, count)])
    boxes = np.column_stack([middles, _SIZES[label] * draw.uniform(0.9, 1.1, (count, 3)), draw.uniform(-3, 3, count)])
    inside = [middle + draw.normal(0, 0.2, (int(draw.integers(1, 9)), 3)) for middle in middles]
    around = draw.uniform(-5, 5, (int(draw.integers(0, 12)), 3))
    table = make_box_table(boxes, label, CLASSES, is_ignored=draw.random(count) < 0.2)
    return make_sample3d(np.concatenate([around, *inside]), {}, table)


class _Pillars(PointPillars):
    """Its batch norms are as they are in evaluation: those of micro-batches would differ."""

    def __init__(self) -> None:
        block = {"num_layers": 1, "width": 4, "up_width": 4, "up_stride": 1}
        super().__init__(
            num_classes=2,
            in_channels=3,
            extent_m=(-4.0, -4.0, -1.0, 4.0, 4.0, 1.0),
            pillar_m=(1.0, 1.0),
            max_points=4,
            max_pillars=12,
            encoder_widths=(4, 4),
            blocks=({**block, "stride": 1}, {**block, "stride": 1}),  # type: ignore[typeddict-item]
        )

    def train(self, mode: bool = True) -> _Pillars:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _detect(model: nn.Module, keys: frozenset[str]) -> Any:
    losses = {name: registry.losses.build(ComponentConfig(name, {}), facts={}) for name in LOSSES}
    anchors = {
        name: {"size": tuple(size), "bottom": -size[2] / 2, "positive": 0.4, "negative": 0.25}
        for name, size in zip(CLASSES, _SIZES.tolist(), strict=True)
    }
    return Detect3d(
        model=model,
        losses=losses,
        batch_keys=AvailableKeys("the toy", keys),
        output_keys=AvailableKeys("the toy's model", declared_outputs(model.forward, owner="the toy's model")),
        anchors=anchors,  # type: ignore[arg-type]
        class_names=CLASSES,
        score=0.0,
        most=20,
    )


FRAMES: dict[str, Toy] = {
    "detect3d": Toy(
        _Pillars,
        _detect,
        Made(_frame, **BOX3D_FIELDS),
        LOSSES,
        tuple(partial(metric, class_names=CLASSES) for metric in (Boxes3dAp, Boxes3dErrors)),
        predicts=Detect3d.predicts,
    )
}
