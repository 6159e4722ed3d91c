"""Geometric transforms of clouds: scale, rotate, shift, flip, jitter, normalise.

Pure and batched: `points` (B, N, 3), `normals` (B, N, 3) and 3D `boxes` (B, M, 7) with their `velocity` (B, M, 2) come
in, the fields that change go out. Each cloud draws
from its own stream and meets only element-wise arithmetic or sums of a fixed order, so that a cloud gets the same bits
alone and in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sightline.contract import registry
from sightline.contract.arguments import NonNegativeFloat, PositiveFloat, Probability, UpAxis
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.ops.points.rotations import axis_rotation, quaternion_matrix, rotate_points, uniform_quaternion
from sightline.ops.waits import is_recording
from sightline.parts.transforms.moved_boxes import flip_boxes, scale_boxes, shift_boxes, turn_boxes


@registry.transforms.add("normalize_unit_sphere")
class NormalizeUnitSphere(Transform):
    """Normalisation of clouds to the unit sphere: mean at the origin, farthest point at distance 1.

    Zero for equal points.
    Draws nothing; normals are unchanged.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import NormalizeUnitSphere
    >>> points = torch.tensor([[[1.0, 0, 0], [5.0, 0, 0]]])
    >>> NormalizeUnitSphere()(Draws.from_seed(0), points=points)
    {'points': tensor([[[-1.,  0.,  0.],
             [ 1.,  0.,  0.]]])}

    Source: Qi et al. 2017 (PointNet), section 5.1, and its code for the mean.
    """

    moves_points = True
    makes_unit_sphere = True

    def __call__(self, draws: Draws, *, points: Tensor) -> dict[str, Tensor]:
        return {"points": to_unit_sphere(points)}

    def split_for_graph(self) -> tuple[None, Callable[..., dict[str, Tensor]]]:
        """Return nothing to do outside, and the whole transform, inside."""
        return None, lambda points: {"points": to_unit_sphere(points)}


@registry.transforms.add("scale")
class Scale(Transform):
    """Random scaling of each cloud about the origin by factors uniform in [low, high): one per axis, or one for all.

    Normals follow as S^-1 n, normalised, if the axes differ. 3D boxes follow one factor for all axes; raises DataError
    for boxes with `isotropic: false`, of which they would no longer be boxes.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Scale
    >>> points = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> Scale(low=2.0, high=2.0)(Draws.from_seed(0), points=points)
    {'points': tensor([[[2., 4., 6.]]])}

    Source: Wang et al. 2019 (DGCNN), its training code (per axis, 2/3 to 3/2); Qi et al. 2017 (PointNet++), its
    training code (one factor, 0.8 to 1.25).
    """

    moves_points = True

    def __init__(self, *, low: PositiveFloat = 2 / 3, high: PositiveFloat = 3 / 2, isotropic: bool = False) -> None:
        if low > high:
            raise ConfigError(f"scale: low {low:g} is above high {high:g}; exchange them")
        self.low = low
        self.high = high
        self.isotropic = isotropic

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        boxes: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if boxes is not None and not self.isotropic:
            raise DataError("scale: a box that is stretched along the axes is no box; set isotropic: true")
        num_factors = 1 if self.isotropic else 3
        factors_B1C = draws.uniform(1, num_factors, low=self.low, high=self.high).to(points.dtype)
        changed = {"points": points * factors_B1C, **scale_boxes(factors_B1C, boxes, velocity)}
        if normals is not None and not self.isotropic:
            changed["normals"] = scale_normals(normals, factors_B1C)
        return changed


@registry.transforms.add("rotate")
class Rotate(Transform):
    """Random rotation of each cloud about the origin, with its normals, by an angle uniform in [-max, max).

    The `axis` `up` is the data set's own up axis; `any` draws uniformly from all rotations of space. The axis goes
    through the origin, or through the middle of the cloud's bounding box (`about: middle`). A cloud is rotated with a
    `probability`. 3D boxes turn about z alone; raises DataError for boxes and another axis.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Rotate
    >>> points = torch.tensor([[[3.0, 4.0, 7.0]]])
    >>> turned = Rotate(up_axis="z")(Draws.from_seed(0), points=points)["points"]
    >>> turned[..., 2], turned[..., :2].norm(dim=2)  # height and distance from the axis stay
    (tensor([[7.]]), tensor([[5.]]))

    Source: Qi et al. 2017 (PointNet), section 5.1 (about the up axis); Shoemake 1992 (all rotations); Choy et al. 2019
    (Minkowski networks), training code (tilts of pi / 64 about x and y).
    """

    moves_points = True

    def __init__(
        self,
        *,
        up_axis: UpAxis,
        axis: Literal["up", "x", "y", "z", "any"] = "up",
        max_angle_rad: NonNegativeFloat = math.pi,
        about: Literal["origin", "middle"] = "origin",
        probability: Probability = 1.0,
    ) -> None:
        if axis == "any" and max_angle_rad < math.pi:
            raise ConfigError(
                f"rotate: max_angle_rad {max_angle_rad:g} has no meaning for axis 'any', which turns by every angle; "
                "name one axis, or leave max_angle_rad out"
            )
        self.axis: Literal["x", "y", "z", "any"] = up_axis if axis == "up" else axis
        self.max_angle_rad = max_angle_rad
        self.is_about_middle = about == "middle"
        self.probability = probability

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        boxes: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if boxes is not None and self.axis != "z":
            raise DataError(f"rotate: boxes stand upright and turn about z, found axis '{self.axis}'; set axis: z")
        matrix = self._matrix(draws)
        if self.probability < 1:
            is_turned = draws.stream("gate").uniform(1, 1) < self.probability
            matrix = torch.where(is_turned, matrix, torch.eye(3, dtype=matrix.dtype, device=matrix.device))
        if not self.is_about_middle:
            return {**_rotate_fields(matrix, points, normals), **turn_boxes(matrix, boxes, velocity)}
        middle = (points.amin(dim=1, keepdim=True) + points.amax(dim=1, keepdim=True)) / 2
        turned = _rotate_fields(matrix, points - middle, normals)
        moved_boxes = turn_boxes(matrix, shift_boxes(-middle, boxes).get("boxes"), velocity)
        return {
            **turned,
            "points": turned["points"] + middle,
            **moved_boxes,
            **shift_boxes(middle, moved_boxes.get("boxes")),
        }

    def _matrix(self, draws: Draws) -> Tensor:
        if self.axis == "any":
            return quaternion_matrix(uniform_quaternion(draws.uniform(3)))
        return axis_rotation(self.axis, draws.uniform(low=-self.max_angle_rad, high=self.max_angle_rad))


_Ranges = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


@registry.transforms.add("translate")
class Translate(Transform):
    """Random translation of each cloud, uniform in [-max_shift, max_shift), or in the `ranges` of x, y, z.

    `relative` measures the shift of an axis in extents of the cloud's bounding box along it. Points of LiDAR scans
    without a return stay at the origin, as with `jitter`.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Translate
    >>> points = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]])
    >>> Translate(ranges=((2.0, 2.0), (0.0, 0.0), (-1.0, -1.0)))(Draws.from_seed(0), points=points)
    {'points': tensor([[[ 2.,  0., -1.],
             [ 3.,  0., -1.]]])}

    Source: Wang et al. 2019 (DGCNN), its training code (absolute, 0.2); Afham et al. 2022 (CrossPoint), its training
    code (relative, 0.5); Cortinhal et al. 2020 (SalsaNext), its training code (ranges [-5, 5], [-3, 3], [-1, 0]).
    """

    moves_points = True

    def __init__(
        self, *, max_shift: NonNegativeFloat = 0.2, relative: bool = False, ranges: _Ranges | None = None
    ) -> None:
        if ranges is not None and max_shift != 0.2:
            raise ConfigError("translate: ranges stand in place of max_shift; take one of them out")
        if any(low > high for low, high in ranges or ()):
            raise ConfigError(
                f"translate: of ranges {[list(bounds) for bounds in ranges or ()]} each must begin with its low"
            )
        self.max_shift = max_shift
        self.relative = relative
        low, high = torch.tensor(ranges or [(0.0, 0.0)]).T
        self.spans = None if ranges is None else [*zip(low.tolist(), (high - low).tolist(), strict=True)]

    def __call__(
        self, draws: Draws, *, points: Tensor, remission: Tensor | None = None, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.spans is None:
            shift_B13 = draws.uniform(1, 3, low=-self.max_shift, high=self.max_shift).to(points.dtype)
        else:
            columns = zip(draws.uniform(1, 3).unbind(2), self.spans, strict=True)
            shift_B13 = torch.stack([unit * span + low for unit, (low, span) in columns], dim=2).to(points.dtype)
        shift_B13 = shift_B13 * bounding_box_size(points) if self.relative else shift_B13
        return {"points": keep_missing(points, points + shift_B13, remission), **shift_boxes(shift_B13, boxes)}


@registry.transforms.add("jitter")
class Jitter(Transform):
    """Jitter: independent normal noise on every coordinate, clipped to +-clip; normals are unchanged.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Jitter
    >>> points = torch.zeros(1, 100, 3)
    >>> Jitter(std=0.1, clip=0.05)(Draws.from_seed(0), points=points)["points"].abs().max()  # clipped
    tensor(0.0500)

    Source: Qi et al. 2017 (PointNet), section 5.1; 0.01 and 0.05 are those of its training code (the paper: 0.02).
    """

    def __init__(self, *, std: NonNegativeFloat = 0.01, clip: NonNegativeFloat = 0.05) -> None:
        self.std = std
        self.clip = clip

    def __call__(self, draws: Draws, *, points: Tensor, remission: Tensor | None = None) -> dict[str, Tensor]:
        standard_BN3 = draws.normal(points.shape[1], 3).to(points.dtype)
        disturbed = points + clipped_noise(standard_BN3, std=self.std, clip=self.clip)
        return {"points": keep_missing(points, disturbed, remission)}


@registry.transforms.add("flip")
class Flip(Transform):
    """Random flip of each cloud, with its normals and 3D boxes, along each named axis with a probability.

    Raises DataError for boxes and the axis z.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import Flip
    >>> points = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> Flip(axes=("x",), probability=1.0)(Draws.from_seed(0), points=points)
    {'points': tensor([[[-1.,  2.,  3.]]])}

    Source: the scene training of POSTECH-CVLab's Point Transformer, after Zhao et al. 2021 (x and y, one half each).
    """

    moves_points = True

    def __init__(
        self, *, axes: tuple[Literal["x", "y", "z"], ...] = ("x", "y"), probability: Probability = 0.5
    ) -> None:
        if len(set(axes)) < len(axes):
            raise ConfigError(f"flip: axes {', '.join(axes)} name an axis twice; two flips undo each other")
        self.share = [probability * (axis in axes) for axis in "xyz"]
        self.probability = probability

    def __call__(
        self,
        draws: Draws,
        *,
        points: Tensor,
        normals: Tensor | None = None,
        boxes: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if boxes is not None and self.share[2]:
            raise DataError("flip: boxes stand upright, and a flip along z would hang them; take z out of axes")
        columns = zip(draws.uniform(1, 3).unbind(2), self.share, strict=True)
        is_mirrored_B13 = torch.stack([column < share for column, share in columns], dim=2)
        sign_B13 = torch.where(is_mirrored_B13, -1.0, 1.0).to(points.dtype)
        changed = {"points": points * sign_B13, **flip_boxes(sign_B13, boxes, velocity)}
        if normals is not None:
            changed["normals"] = normals * sign_B13
        return changed


@registry.transforms.add("clip_points")
class ClipPoints(Transform):
    """Clipping of coordinates to an extent: points outside move to its border, with their labels. Draws nothing.

    `extent_m` are the lowest x, y, z and the highest. Points of LiDAR scans without a return stay at the origin. In
    evaluation the points that moved are scored like all others, in the voxels of the border.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.points import ClipPoints
    >>> points = torch.tensor([[[1.0, 50.0, -9.0]]])
    >>> ClipPoints(extent_m=(-35.2, -35.2, -4.0, 35.2, 35.2, 2.0))(Draws.from_seed(0), points=points)["points"]
    tensor([[[ 1.0000, 35.2000, -4.0000]]])

    Source: Wu et al. 2022 (Point Transformer V2), its code for SemanticKITTI (35.2 m, -4 to 2 m).
    """

    moves_points = True

    def __init__(self, *, extent_m: tuple[float, float, float, float, float, float]) -> None:
        if any(low >= high for low, high in zip(extent_m[:3], extent_m[3:], strict=True)):
            raise ConfigError(f"clip_points: extent_m {[*extent_m]} has to begin with the lowest x, y and z")
        self.extent_m = extent_m

    def __call__(self, draws: Draws, *, points: Tensor, remission: Tensor | None = None) -> dict[str, Tensor]:
        low, high = points.new_tensor(self.extent_m).chunk(2)
        return {"points": keep_missing(points, points.clamp(low, high), remission)}


def to_unit_sphere(points: Tensor) -> Tensor:
    """Normalise clouds (B, N, 3) to mean 0 and largest norm 1; clouds of equal points become zero."""
    # From the first point, so that equal points are exactly zero before a rounded mean can set them apart.
    relative = points - points[:, :1]
    centred = relative - _sum_over_points(relative) / points.shape[1]
    return centred / _positive_or_one(_norm(centred).amax(dim=1, keepdim=True))


def scale_normals(normals: Tensor, factors: Tensor) -> Tensor:
    """Transform unit normals (B, N, 3) of surfaces scaled by `factors` (B, 1, 3) along the axes: normalise(S^-1 n).

    Source: the transform of a gradient under a linear map, its inverse transpose.
    """
    stretched = normals / factors
    return stretched / _positive_or_one(_norm(stretched))


def clipped_noise(standard: Tensor, *, std: float, clip: float) -> Tensor:
    """Scale standard normal numbers by `std` and clip them to +-`clip`."""
    return (standard * std).clamp(-clip, clip)


def bounding_box_size(points: Tensor) -> Tensor:
    """Return the side lengths (B, 1, 3) of the bounding boxes of clouds (B, N, 3)."""
    return points.amax(dim=1, keepdim=True) - points.amin(dim=1, keepdim=True)


def keep_missing(points: Tensor, moved: Tensor, remission: Tensor | None) -> Tensor:
    """Return the moved points; in LiDAR scans, which have remissions, points without a return stay at the origin."""
    if remission is None:
        return moved
    return torch.where((points != 0).any(dim=-1, keepdim=True), moved, points)


def _rotate_fields(matrix: Tensor, points: Tensor, normals: Tensor | None) -> dict[str, Tensor]:
    changed = {"points": rotate_points(points, matrix.to(points.dtype))}
    if normals is not None:
        changed["normals"] = rotate_points(normals, matrix.to(normals.dtype))
    return changed


def _sum_over_points(points: Tensor) -> Tensor:
    """Sum points to (B, 1, 3) in an order that depends on N alone: halves are added until one row is left."""
    if is_recording():  # a graph holds clouds of any size
        return points.sum(dim=1, keepdim=True)
    while (length := points.shape[1]) > 1:
        half = length // 2
        folded = points[:, :half] + points[:, half : 2 * half]
        points = torch.cat((folded, points[:, 2 * half :]), dim=1) if length % 2 else folded
    return points


def _norm(vectors: Tensor) -> Tensor:
    """Compute lengths (..., 1), written out: a library reduction may round differently for another batch size."""
    x, y, z = vectors.split(1, dim=-1)
    return torch.sqrt(x * x + y * y + z * z)


def _positive_or_one(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))
