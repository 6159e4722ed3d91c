"""FCOS: points near the middle of a box are positive, on the level whose range contains their distances."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sightline import registry
from sightline.arguments import NonNegativeFloat, PositiveFloat
from sightline.assigners.base import BACKGROUND, Assigner, Assignment
from sightline.geometry.boxes.overlaps import box_areas, box_centres, column_blocks
from sightline.geometry.boxes.priors import PriorKind, Priors

__all__ = ["FCOS"]

_LIMIT_STRIDES = 8
"""Upper limit of a level's range in strides, as published: 64 pixels for the stride 8 and so on."""


@registry.assigners.add("fcos")
class FCOS(Assigner):
    """FCOS: points near the middle of a box, whose farthest side is within their level's range; the smallest box wins.

    Near is closer than `radius` strides in x and in y; 0: anywhere in the box. `limits_px` are the largest distances of
    all levels but the last (by default eight strides), and each the smallest of the next level; a distance equal to a
    limit is within both ranges. A small box may get no point. Source: Tian et al. 2019, section 3.2; the centre region
    is that of their code and of Tian et al. 2020.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})

    def __init__(self, *, radius: NonNegativeFloat = 1.5, limits_px: tuple[PositiveFloat, ...] | None = None) -> None:
        if limits_px is not None and list(limits_px) != sorted(set(limits_px)):
            raise ValueError(f"limits_px: found {list(limits_px)}, expected rising limits")
        self.radius = radius
        self.limits_px = limits_px

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match points (P) to boxes (M, 4): `matched` and `num_candidates` (P,)."""
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        order = box_areas(boxes).argsort(stable=True)
        limits = [-1.0, *self._limits(priors), torch.inf]
        for stride, rows, low, high in zip(priors.strides, priors.level_slices, limits[:-1], limits[1:], strict=True):
            region = self._regions(boxes[order], stride)[:, :, None]
            sides = boxes[order][:, :, None]
            points = priors.coordinates[rows]
            for part in column_blocks(len(boxes), len(points), boxes.device):
                is_claimed = _is_within(points[part], sides, region, low, high)
                claims, first = is_claimed.sum(dim=0), is_claimed.to(torch.uint8).argmax(dim=0)
                prior_rows = slice(rows.start + part.start, rows.start + part.start + len(claims))
                num_claims[prior_rows] = claims
                matched[prior_rows] = torch.where(claims > 0, order[first], BACKGROUND)
        return Assignment(matched, num_claims)

    def _limits(self, priors: Priors) -> tuple[float, ...]:
        limits = self.limits_px or tuple(float(_LIMIT_STRIDES * stride) for stride in priors.strides[:-1])
        if len(limits) != len(priors.strides) - 1:
            raise ValueError(
                f"limits_px: found {len(limits)} limits for {len(priors.strides)} levels; give one for each but the "
                "last"
            )
        return limits

    def _regions(self, boxes: Tensor, stride: int) -> Tensor:
        """Return the part (M, 4) of each box whose points may predict it."""
        if self.radius == 0:
            return boxes
        centres = box_centres(boxes)
        reach = self.radius * stride
        return torch.cat(
            [torch.maximum(centres - reach, boxes[:, :2]), torch.minimum(centres + reach, boxes[:, 2:])], dim=1
        )


def _is_within(points: Tensor, sides: Tensor, region: Tensor, low: float, high: float) -> Tensor:
    """Return a mask (M, p) of the points (p, 2) that boxes (M, 4, 1) claim."""
    x, y = points.T.contiguous()
    is_inside = (x > region[:, 0]) & (x < region[:, 2]) & (y > region[:, 1]) & (y < region[:, 3])
    farthest = torch.maximum(torch.maximum(x - sides[:, 0], sides[:, 2] - x), y - sides[:, 1])
    farthest = torch.maximum(farthest, sides[:, 3] - y)
    return is_inside & (farthest >= low) & (farthest <= high)
