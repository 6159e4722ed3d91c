"""Projection of LiDAR scans to range images, and rings from the order of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import Count
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.transform import Transform
from sightline.contract.types import Field
from sightline.ops.dtypes import widen_labels
from sightline.ops.views.projection import (
    Projection,
    RangeView,
    Rows,
    gather_to_image,
    project_scans,
    rows_by_file_order,
)

Channels = tuple[float, float, float, float, float]
"""One number each for range, x, y, z and remission."""


@registry.transforms.add("project")
class Project(Transform):
    """Spherical projection of each scan to the range image of its nearest returns, with the pixel of every point.

    Adds `image` (B, 5, H, W), range, x, y, z and remission less `input_mean` over `input_std`, 0 in empty pixels
    (`empty: normalized`: as if all five were 0); `append_mask` adds 1 for filled and 0 for empty pixels as a sixth
    channel. `range_image` (B, H, W) is in metres, -1 where empty, and `label` becomes that of the nearest return,
    `ignore_index` where empty. Of all points there are `whole_label`, `nearest`, the pixel row * W + column of their
    own image, and `point_range`. `rows` as in `ops.views.projection.RangeView`. Draws nothing; transforms that
    move or drop points come before it.
    Raises DataError for rings outside the image and points that are not finite; ConfigError for a view without area.

    >>> import torch
    >>> from sightline.areas.scans.range_projection import Project
    >>> from sightline.contract.draws import Draws
    >>> view = {"fov_deg": (10.0, -10.0), "azimuth_deg": (180.0, -180.0), "height": 2, "width": 4, "ignore_index": 0}
    >>> project = Project(**view, input_mean=(0.0,) * 5, input_std=(1.0,) * 5)
    >>> points = torch.tensor([[[3.0, -3, 0.1], [6, -6, 0.1], [-2, 2, -0.1]]])  # two on the right in front, one behind
    >>> project(Draws.from_seed(0), points=points, remission=torch.zeros(1, 3, 1))["range_image"]  # the nearest, in m
    tensor([[[-1.0000, -1.0000,  4.2438, -1.0000],
             [ 2.8302, -1.0000, -1.0000, -1.0000]]])

    Source: Milioto et al. 2019 (RangeNet++), section III-A; Wu et al. 2018 and 2019 (SqueezeSeg, without zeros; V2,
    with the mask).
    """

    adds: Mapping[str, Field] = {
        "image": Field("channels H W", "float32"),
        "range_image": Field("H W", "float32", unit="m", low=-1.0),
        "label": Field("H W", "int64", unit="class", low=0),
        "whole_label": Field("whole points", "int64", unit="class", collate="concatenate", offsets="whole_offsets"),
        "nearest": Field("whole points", "int64", unit="pixel", low=0, collate="concatenate", offsets="whole_offsets"),
        "point_range": Field(
            "whole points", "float32", unit="m", low=0.0, collate="concatenate", offsets="whole_offsets"
        ),
    }

    def __init__(
        self,
        *,
        fov_deg: tuple[float, float],
        azimuth_deg: tuple[float, float],
        input_mean: Channels,
        input_std: Channels,
        ignore_index: int,
        beams_deg: tuple[float, ...] = (),
        height: Count = 64,
        width: Count = 2048,
        rows: Rows = "pitch",
        empty: Literal["zero", "normalized"] = "zero",
        append_mask: bool = False,
    ) -> None:
        self.view = RangeView(height, width, rows, fov_deg, azimuth_deg, beams_deg)
        self.mean, self.std = torch.tensor(input_mean), torch.tensor(input_std)
        if not (self.std > 0).all():
            raise ValueError(f"input_std {input_std}: every deviation must be positive")
        self.ignore_index = ignore_index
        self.empty = torch.zeros(5) if empty == "zero" else -self.mean / self.std
        self.append_mask = append_mask

    @property
    def facts(self) -> Mapping[str, object]:  # type: ignore[override]
        """The number of channels, for the models."""
        return {"in_channels": 6 if self.append_mask else 5}

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        remission: Tensor,
        label: Tensor | None = None,
        ring: Tensor | None = None,
    ) -> dict[str, Tensor]:
        shape, packed = points.shape[:2], points.flatten(0, 1)
        projection = self._project(packed, torch.arange(shape[0] + 1) * shape[1], ring)
        channels = torch.cat((projection.ranges[:, None], packed, remission.flatten(0, 1)), dim=1)
        image = gather_to_image(projection.point_index, (channels - self.mean) / self.std, empty=self.empty)
        if self.append_mask:
            image = torch.cat((image, (projection.point_index >= 0).to(image)[..., None]), dim=3)
        fields = {
            "image": image.permute(0, 3, 1, 2).contiguous(),
            "range_image": gather_to_image(projection.point_index, projection.ranges, empty=-1),
            "nearest": projection.pixel.view(shape),
            "point_range": projection.ranges.view(shape),
        }
        if label is not None:
            label = widen_labels(label)
            fields["label"] = gather_to_image(projection.point_index, label.flatten(), empty=self.ignore_index)
            fields["whole_label"] = label.clone()
        return fields

    def _project(self, points: Tensor, offsets: Tensor, ring: Tensor | None) -> Projection:
        try:
            return project_scans(points, view=self.view, offsets=offsets, ring=None if ring is None else ring.flatten())
        except ValueError as error:
            raise DataError(f"project: {error}") from error


@registry.transforms.add("ring_from_order")
class RingFromOrder(Transform):
    """The `ring` of each point's laser, 0 to `num_beams` - 1, from a file that lists one laser after another.

    It comes first, before points are rotated, moved or dropped; then `project` may use `rows: ring` after all of them.
    Points after the last laser count to it. Draws nothing.

    >>> import torch
    >>> from sightline.areas.scans.range_projection import RingFromOrder
    >>> from sightline.contract.draws import Draws
    >>> turn = [[1.0, 0.1, 0], [-1, 1, 0], [-1, -1, 0], [1, -0.1, 0]]  # a laser's points, all around
    >>> RingFromOrder(num_beams=2)(Draws.from_seed(0), points=torch.tensor([turn + turn]))
    {'ring': tensor([[0, 0, 0, 0, 1, 1, 1, 1]])}

    Source: Triess et al. 2020, scan unfolding.
    """

    adds: Mapping[str, Field] = {"ring": Field("points", "int64", low=0, collate="concatenate")}

    def __init__(self, *, num_beams: int) -> None:
        self.num_beams = num_beams

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        rings = torch.stack([rows_by_file_order(cloud) for cloud in points])
        return {"ring": rings.clamp(max=self.num_beams - 1)}
