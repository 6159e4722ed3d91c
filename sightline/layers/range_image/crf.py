"""Conditional random field (CRF) over range images, with unrolled inference. Source: Zheng et al. 2015, CRF as RNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.layers.range_image.columns import CircularPad

__all__ = ["Compat", "RangeImageCRF"]

Compat = Literal["mean_field", "as_published"]


class RangeImageCRF(nn.Module):
    """CRF that refines logits (S, C, H, W) by those of nearby pixels: pixels close in space tend to share a class.

    A mean-field step takes the class probabilities of the other pixels of a window, each weighted by a Gaussian of its
    distance in space, and subtracts their product with the learned compatibility from the input logits. Empty pixels
    count nothing. `sigma` is in units of the coordinates, `coefficient` the initial price of another class.
    `compat: as_published` does as the authors' code: it counts a pixel among its neighbours, uses `coefficient` for
    `sigma`, and adds to probabilities in place of logits, which bounds the confidence and prefers other classes.
    Source: Wu et al. 2018, SqueezeSeg, section III-C; Zheng et al. 2015, algorithm 1; layout of PRBonn/lidar-bonnetal.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        compat: Compat = "mean_field",
        iterations: int = 3,
        window: tuple[int, int] = (3, 5),
        sigma: float = 0.7,
        coefficient: float = 0.1,
        circular: bool = False,
    ) -> None:
        super().__init__()
        self.is_as_published = compat == "as_published"
        self.iterations = iterations
        self.reach = (window[0] // 2, window[1] // 2)
        self.sigma = coefficient if self.is_as_published else sigma
        self.wrap = CircularPad(self.reach[1]) if circular else None
        self.compat = nn.Linear(num_classes, num_classes)
        with torch.no_grad():
            self.compat.weight.copy_(coefficient * (1 - torch.eye(num_classes)))
        nn.init.zeros_(self.compat.bias)

    def forward(self, logits: Tensor, xyz: Tensor, mask: Tensor) -> Tensor:
        """Refine logits (S, C, H, W) with xyz (S, 3, H, W) and mask (S, H, W) of measured pixels -> (S, C, H, W)."""
        weights = self._weights(xyz, mask)
        values = logits
        for _ in range(self.iterations):
            probabilities = values.softmax(dim=1)
            message = torch.zeros_like(probabilities)
            for weight, shifted in zip(weights, self._windows(probabilities), strict=True):
                message = message + weight * shifted
            change = self.compat(message.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            values = probabilities + change if self.is_as_published else logits - change
        return values

    def _weights(self, xyz: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the weight (S, 1, H, W) of the pixel at every offset in the window."""
        filled = self._windows(mask[:, None].to(xyz.dtype))
        squares = ((shifted - xyz).square().sum(dim=1, keepdim=True) for shifted in self._windows(xyz))
        return [
            torch.exp(-square / (2 * self.sigma**2)) * is_filled
            for square, is_filled in zip(squares, filled, strict=True)
        ]

    def _windows(self, image: Tensor) -> Iterator[Tensor]:
        """Iterate over the image shifted to every offset in the window, with zeros outside."""
        (rows, columns), (height, width) = self.reach, image.shape[2:]
        wide = F.pad(image, (columns, columns, 0, 0)) if self.wrap is None else self.wrap(image)
        padded = F.pad(wide, (0, 0, rows, rows))
        for row in range(2 * rows + 1):
            for column in range(2 * columns + 1):
                if self.is_as_published or (row, column) != self.reach:
                    yield padded[:, :, row : row + height, column : column + width]
