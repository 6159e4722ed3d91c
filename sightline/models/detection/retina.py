"""The head of RetinaNet: a class and a box at every anchor. Source: Lin et al. 2017, Focal Loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sightline import registry
from sightline.arguments import Count
from sightline.models.detection.head import DenseHead, HeadOutput, Prior, at_priors

__all__ = ["RetinaHead"]


@registry.heads.add("retina")
class RetinaHead(DenseHead):
    """Logits and box deltas at `num_anchors` anchors of each cell; 6,463,220 parameters of 80 classes and 9 anchors.

    On five levels of 256 channels. Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.
    """

    priors = "anchors"
    assigners = frozenset({"max_iou", "atss", "free_anchor"})

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        num_classes: int,
        num_anchors: Count = 9,
        num_convs: Count = 4,
        prior: Prior = 0.01,
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
        """Maps (B, channels, H, W), finest first. `codes` are dx and dy in widths and heights, and log dw, log dh."""
        logits = [self.classes(self.class_tower(each)) for each in maps]
        codes = [self.boxes(self.box_tower(each)) for each in maps]
        return {"logits": at_priors(logits, self.num_classes), "codes": at_priors(codes, 4)}
