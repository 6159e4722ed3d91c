"""Heads with centre-ness: FCOS, at points, and ATSS, at one anchor per cell. Source: Tian et al. 2019, FCOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Count
from sightline.geometry.boxes.priors import PriorKind
from sightline.layers.detection.norms import make_group_norm
from sightline.layers.images import ConvBlock
from sightline.models.detection.head import CentreOutput, DenseHead, PriorProbability, flatten_to_priors

__all__ = ["ATSSHead", "FCOSHead"]


@registry.heads.add("fcos")
class FCOSHead(DenseHead):
    """FCOS head: logits, distances to the sides of a box and centre-ness at a point per cell; 4,920,666 parameters.

    For 80 classes, on five levels of 256 channels, with group norm in the towers. `codes` are left, top, right, bottom
    in pixels: `relu` of the scaled value times the level's stride, as the authors' code does since the paper, or `exp`
    of it, as in the paper. `centreness_on`: the tower that centre-ness is read from, in the paper that of classes.
    `scales`: the scalar that each level learns. Source: Tian et al. 2019, FCOS, section 3; layout of tianzhi0549/FCOS.
    """

    priors: ClassVar[PriorKind] = "points"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_convs: Count = 4,
        distances: Literal["relu", "exp"] = "relu",
        centreness_on: Literal["box", "cls"] = "box",
        scales: bool = True,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            priors_per_cell=1,
            num_convs=num_convs,
            norm=make_group_norm,
        )
        self.distances, self.centreness_on = distances, centreness_on
        self.centreness = ConvBlock(in_channels=channels[0], out_channels=1, kernel_size=3)
        self.scales = nn.Parameter(torch.ones(len(strides))) if scales else None
        self._start(prior)

    def forward(self, maps: Sequence[Tensor]) -> CentreOutput:
        """Predict at all priors from maps (B, channels, H, W) of every level, finest first."""
        logits, codes, centreness = [], [], []
        for level, values in enumerate(maps):
            of_class, of_box = self.class_tower(values), self.box_tower(values)
            logits.append(self.classes(of_class))
            raw = self.boxes(of_box)
            codes.append(self._code(raw if self.scales is None else self.scales[level] * raw, self.strides[level]))
            centreness.append(self.centreness(of_box if self.centreness_on == "box" else of_class))
        return {
            "logits": flatten_to_priors(logits, self.num_classes),
            "codes": flatten_to_priors(codes, 4),
            "centreness": flatten_to_priors(centreness, 1)[..., 0],
        }

    def _code(self, values: Tensor, stride: int) -> Tensor:
        """Convert a level's box outputs to box codes."""
        return values.exp() if self.distances == "exp" else values.relu() * stride


@registry.heads.add("atss")
class ATSSHead(FCOSHead):
    """ATSS head: logits, box deltas and centre-ness at one anchor per cell; 4,920,666 parameters for 80 classes.

    On five levels of 256 channels; otherwise as fcos. `codes` are deltas as those of retina.
    Source: Zhang et al. 2020, ATSS, section 3.1 and 4; layout of sfzhang15/ATSS.
    """

    priors = "anchors"

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_convs: Count = 4,
        prior: PriorProbability = 0.01,
    ) -> None:
        super().__init__(channels=channels, strides=strides, num_classes=num_classes, num_convs=num_convs, prior=prior)

    def _code(self, values: Tensor, stride: int) -> Tensor:
        return values
