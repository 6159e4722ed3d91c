"""Base of range-image networks: input check, output and memory format."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from sightline.contract.model import Model
from sightline.layers.range_image import assert_range_images


class RangeImageOutput(TypedDict):
    """`logits` (S, H, W, num_classes) of every pixel, before any softmax."""

    logits: Tensor


class RangeImageNetwork(Model):
    """Network from range images to logits of the same size; subclasses define `forward_logits`.

    With `channels_last`, weights and values have their channels together in memory.
    """

    size_divisors: tuple[int, int] = (1, 1)
    """Divisors of the rows and the columns of an image."""

    def __init__(self, *, in_channels: int, channels_last: bool) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels_last = channels_last

    def forward(self, *, image: Tensor) -> RangeImageOutput:
        """Predict from `image` (S, in_channels, H, W), normalised.

        Raises ValueError for other channels and impossible sizes.
        """
        assert_range_images(image, in_channels=self.in_channels, multiples=self.size_divisors)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return {"logits": self.forward_logits(image).permute(0, 2, 3, 1)}

    def forward_logits(self, image: Tensor) -> Tensor:
        """Compute logits (S, num_classes, H, W) from images (S, in_channels, H, W)."""
        raise NotImplementedError

    def _order(self) -> None:
        """Convert the weights to the requested memory format; called once all layers exist."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
