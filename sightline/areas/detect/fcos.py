"""FCOS and ATSS: heads with centre-ness, at points and at one anchor per cell, and which boxes they are trained on.

Their losses are sigmoid_focal, box_overlap and centreness. Sources: Tian et al. 2019, FCOS; Zhang et al. 2020, ATSS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sightline.areas.detect.networks import DenseHead, HeadOutput, PriorProbability, flatten_to_priors
from sightline.contract import registry
from sightline.contract.arguments import Count, NonNegativeFloat
from sightline.layers.images import ConvBlock
from sightline.layers.norms import make_group_norm
from sightline.ops.boxes.codes import encode_distances
from sightline.ops.boxes.overlaps import box_area, box_centres, column_blocks, iou
from sightline.ops.boxes.priors import PriorKind, Priors
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.parts.boxes.assigner import BACKGROUND, Assigner, Assignment, argmax_by_group


class CentreOutput(HeadOutput):
    """HeadOutput with `centreness` (B, P), before the sigmoid."""

    centreness: Tensor


@registry.heads.add("fcos")
class FCOSHead(DenseHead):
    """FCOS head: logits, distances to the sides of a box and centre-ness at a point per cell; 4,920,666 parameters.

    The number is for 80 classes, on five levels of 256 channels, with group norm in the towers.
    `codes` are the distances from the point to the left, top, right and bottom side, in pixels. With `distances: relu`
    a distance is relu(scale * output) times the level's stride, as in the authors' later code; with `exp` it is
    exp(scale * output), as in the paper. `scales`: each level learns its `scale`; without, it is 1.
    `centreness_on` names the tower whose maps predict centre-ness; in the paper it is that of classes, `cls`.
    Source: Tian et al. 2019, FCOS, section 3; layout of tianzhi0549/FCOS.
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


_LIMIT_STRIDES = 8
"""Upper limit of a level's range in strides, as published: 64 pixels for the stride 8 and so on."""


@registry.assigners.add("fcos")
class FCOS(Assigner):
    """FCOS: points near the middle of a box, whose farthest side is within their level's range; the smallest box wins.

    A point near the middle is less than `radius` strides from it in x and in y; with a radius of 0, any point in the
    box is near. A level takes a point if the distance to the box's farthest side is within the level's range, which
    ends where the next one's begins, at eight strides of the level. Both ranges contain the limit. A small box may get
    no point.
    Source: Tian et al. 2019, section 3.2; the centre region is that of their code and of Tian et al. 2020.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"points"})

    def __init__(self, *, radius: NonNegativeFloat = 1.5) -> None:
        self.radius = radius

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match points (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        matched = torch.full((len(priors),), BACKGROUND, device=boxes.device)
        num_claims = torch.zeros_like(matched)
        order = box_area(boxes).argsort(stable=True)
        limits = [-1.0, *(float(_LIMIT_STRIDES * stride) for stride in priors.strides[:-1]), torch.inf]
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


_SIDE_STRIDES = 8
_MIN_INSIDE_PX = 0.01


@registry.assigners.add("atss")
class ATSS(Assigner):
    """ATSS: priors of the `topk` nearest cells of each level with an IoU of at least mean plus deviation.

    The centre of a prior has to be inside the box; of several boxes the one with the highest IoU wins. Points count
    as squares of eight strides, the anchors of the paper. A small or doubled box may get no prior.
    Source: Zhang et al. 2020, algorithm 1; the deviation is the unbiased one of their code.
    """

    prior_kinds: ClassVar[frozenset[PriorKind]] = frozenset({"anchors", "points"})

    def __init__(self, *, topk: Count = 9) -> None:
        self.topk = topk

    def match(self, priors: Priors, boxes: Tensor) -> Assignment:
        """Match priors (P) to boxes (M, 4): `matched` and `num_claims` (P,)."""
        candidates = self._candidates(priors, boxes)
        overlap = iou(priors.to_boxes(_SIDE_STRIDES)[candidates], boxes[:, None])
        limit = overlap.mean(dim=1) + overlap.std(dim=1, correction=min(1, overlap.shape[1] - 1))
        inside = encode_distances(priors.centres[candidates], boxes[:, None]).amin(dim=2) > _MIN_INSIDE_PX
        is_positive = ((overlap >= limit[:, None]) & inside).flatten()
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(candidates).flatten()
        prior = candidates.flatten()
        matched = argmax_by_group(prior, overlap.flatten(), box, len(priors), is_positive)
        num_claims = torch.zeros_like(matched).index_add_(0, prior, is_positive.long())
        return Assignment(torch.where(matched >= 0, matched, BACKGROUND), num_claims)

    def _candidates(self, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the priors (M, K) of the nearest cells of every level: the anchors of a cell have one centre."""
        centres, candidates = priors.centres, []
        for rows, per_cell in zip(priors.level_slices, priors.priors_per_cell, strict=True):
            cells = centres[rows][::per_cell]
            if not (count := min(self.topk, len(cells))):  # of an image that is smaller than the level's stride
                continue
            nearest_cells = nearest_neighbours(cells[None], num_neighbours=count, queries=box_centres(boxes)[None])[0]
            steps = torch.arange(per_cell, device=boxes.device)
            candidates.append((rows.start + nearest_cells[:, :, None] * per_cell + steps).flatten(1))
        return torch.cat(candidates, dim=1)
