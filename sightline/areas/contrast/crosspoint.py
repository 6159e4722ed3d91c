"""CrossPoint: clouds and images of the same objects in one embedding space. Source: Afham et al. 2022."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from sightline.contract import registry
from sightline.contract.arguments import ImageEncoder, PointEncoder, Width
from sightline.contract.model import Encoder, Model

_IMAGE_HIDDEN = 512


class IntraPointOutput(TypedDict):
    """`first` and `second` (B, embedding): projections of two clouds of every object, not normalised."""

    first: Tensor
    second: Tensor


class CrossPointOutput(IntraPointOutput):
    """IntraPointOutput with `pictured` (B, embedding): projections of an image of every object."""

    pictured: Tensor


@registry.models.add("intrapoint")
class IntraPoint(Encoder, Model):
    """IntraPoint: a point encoder with a projection head, for contrast between two augmented clouds of every object.

    Only what the losses read is computed. `encode` returns the encoder's own feature, which probes and fine-tuning
    use; the head serves the losses alone. Its hidden layer is `hidden` wide: the authors take the width of
    their encoder's last map. Source: Afham et al. 2022, section 3.1.
    """

    def __init__(self, *, points: PointEncoder, embedding: Width = 256, hidden: Width = 1024) -> None:
        super().__init__()
        self.points = points
        self.feature_width: int = points.feature_width
        self.points_head = projection_head(self.feature_width, hidden, embedding, has_bias=True)

    def forward(self, *, points: Tensor, other_points: Tensor) -> IntraPointOutput:
        """Predict from `points` and `other_points` (B, N, 3): two views of the same objects, in any unit.

        Both go through the encoder in one pass, so that its batch statistics are of both.
        """
        first, second = self._project(points, other_points)
        return {"first": first, "second": second}

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the encoder's feature of each cloud: `points` (B, N, 3) -> (B, feature_width)."""
        encoded: Tensor = self.points.encode(points=points, features=features)
        return encoded

    def _project(self, points: Tensor, other_points: Tensor) -> tuple[Tensor, ...]:
        return self.points_head(self.points.encode(points=torch.cat([points, other_points]))).chunk(2)


@registry.models.add("crosspoint")
class CrossPoint(IntraPoint):
    """CrossPoint: a point encoder and an image encoder with a projection head each, into one space.

    Only what the losses read is computed. `encode` returns the point encoder's own feature, which
    probes and fine-tuning use; heads and images serve the losses alone. `hidden` is the width of the point head's
    hidden layer; that of the image head's is 512. Source: Afham et al. 2022, section 3.
    """

    def __init__(
        self, *, points: PointEncoder, images: ImageEncoder, embedding: Width = 256, hidden: Width = 1024
    ) -> None:
        super().__init__(points=points, embedding=embedding, hidden=hidden)
        self.images = images
        self.images_head = projection_head(images.feature_width, _IMAGE_HIDDEN, embedding, has_bias=False)

    def forward(  # type: ignore[override]
        self, *, points: Tensor, other_points: Tensor, image: Tensor
    ) -> CrossPointOutput:
        """Predict from `points` and `other_points` (B, N, 3) as for IntraPoint; `image` (B, 3, H, W), normalised."""
        first, second = self._project(points, other_points)
        return {"first": first, "second": second, "pictured": self.images_head(self.images.encode(image=image))}


def projection_head(in_width: int, hidden: int, out_width: int, *, has_bias: bool) -> nn.Sequential:
    """Build a projection head: linear, batch norm, ReLU, linear: (B, in_width) -> (B, out_width).

    Source: Chen et al. 2020, SimCLR, section 4.2.
    """
    return nn.Sequential(
        nn.Linear(in_width, hidden, bias=has_bias),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_width, bias=has_bias),
    )
