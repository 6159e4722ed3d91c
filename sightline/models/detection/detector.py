"""Object detector: images to predictions at priors, with any backbone, neck and head."""

from __future__ import annotations

from typing import NotRequired, cast

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.arguments import Backbone, Head, Neck
from sightline.binding import model_output_keys
from sightline.models.detection.head import HeadOutput

__all__ = ["Detector", "DetectorOutput"]


class DetectorOutput(HeadOutput):
    """Output of the head, and `level_shapes` (B, L, 2) int64, on the host: rows and columns of each level's map.

    The levels are the same for every image of the batch.
    """

    centreness: NotRequired[Tensor]
    objectness: NotRequired[Tensor]
    density: NotRequired[Tensor]
    level_shapes: Tensor


@registry.models.add("detector")
class Detector(nn.Module):
    """Object detector: a backbone, a neck on its maps and a head on those of the neck, each of `sightline list`.

    Each states its `channels` and `strides` for the next. With resnet50, fpn, retina and 80 classes it has 33,839,924
    parameters, with fcos 32,297,370. With `channels_last`, weights and values have their channels together in memory.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, figure 3.
    """

    def __init__(self, *, backbone: Backbone, neck: Neck, head: Head, channels_last: bool = False) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.channels_last = channels_last
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.output_keys = model_output_keys(head, owner="the head") | {"level_shapes"}

    def forward(self, *, image: Tensor) -> DetectorOutput:
        """Predict from `image` (B, in_channels, H, W), normalised; rows and columns of any number."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        maps = self.neck(self.backbone(image))
        shapes = torch.tensor([level_map.shape[2:] for level_map in maps], device="cpu").expand(len(image), -1, -1)
        return cast(DetectorOutput, {**self.head(maps), "level_shapes": shapes})
