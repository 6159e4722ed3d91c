"""RetinaNet heads: one class and box per anchor, or two of both. Source: Lin et al. 2017, Focal Loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count
from sightline.layers.images import ConvBlock
from sightline.models.detection.head import DenseHead, HeadOutput, PriorProbability, flatten_to_priors

__all__ = ["RetinaEMDHead", "RetinaHead", "RetinaOutput"]


class RetinaOutput(HeadOutput):
    """HeadOutput, optionally with `density` (B, P), 0 to 1: the highest IoU of a prior's object with another."""

    density: NotRequired[Tensor]


@registry.heads.add("retina")
class RetinaHead(DenseHead):
    """RetinaNet head: logits and box deltas at `num_anchors` anchors per cell; 6,463,220 parameters.

    For 80 classes and 9 anchors on five levels of 256 channels. With `density`, 1 x 1 convolutions reduce each map to a
    quarter of its channels, and 5 x 5 convolutions of these, logits and deltas predict the density, for the loss
    `box_density` and the suppression `adaptive`. Source: Lin et al. 2017, Focal Loss for Dense Object Detection,
    section 4; Liu et al. 2019, Adaptive NMS, section 3.3, whose layout was for a proposal network.
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
        density: bool = False,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=num_anchors,
            num_convs=num_convs,
        )
        self.output_keys = frozenset({"logits", "codes"} | ({"density"} if density else set()))
        self.density: nn.ModuleDict | None = None
        if density:
            width = max(1, channels[0] // 4)
            taken = width + num_anchors * (num_classes + 4)
            self.density = nn.ModuleDict(
                {
                    "reduce": ConvBlock(
                        in_channels=channels[0], out_channels=width, kernel_size=1, activation=nn.ReLU()
                    ),
                    "predict": ConvBlock(in_channels=taken, out_channels=num_anchors, kernel_size=5),
                }
            )
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> RetinaOutput:
        """Predict at all priors from maps (B, channels, H, W), finest first.

        `codes` are dx and dy in widths and heights, and log dw, log dh.
        """
        logits = [self.classes(self.class_tower(level_map)) for level_map in maps]
        codes = [self.boxes(self.box_tower(level_map)) for level_map in maps]
        output: RetinaOutput = {
            "logits": flatten_to_priors(logits, self.num_classes),
            "codes": flatten_to_priors(codes, 4),
        }
        if self.density is not None:
            rows = zip(map(self.density["reduce"], maps), logits, codes, strict=True)
            densities = [self.density["predict"](torch.cat(row, dim=1)) for row in rows]
            output["density"] = flatten_to_priors(densities, 1)[..., 0]
        return output


@registry.heads.add("retina_emd")
class RetinaEMDHead(DenseHead):
    """RetinaNet head with two predictions per anchor (EMD), for boxes that hide one another; 4,928,090 parameters.

    For 1 class and 9 anchors. `logits` (B, P, 2, num_classes) and `codes` (B, P, 2, 4); otherwise as retina. Both
    predictions are one proposal: the suppression `set` keeps both. Source: Chu et al. 2020, Detection in Crowded
    Scenes, section 3.
    """

    priors = "anchors"
    predictions_per_prior = 2

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=num_anchors,
            num_convs=num_convs,
        )
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        """Predict at all priors from maps (B, channels, H, W), finest first."""
        logits = flatten_to_priors(
            [self.classes(self.class_tower(level_map)) for level_map in maps], 2 * self.num_classes
        )
        codes = flatten_to_priors([self.boxes(self.box_tower(level_map)) for level_map in maps], 8)
        return {"logits": logits.unflatten(2, (2, -1)), "codes": codes.unflatten(2, (2, -1))}
