"""Views of a cloud at test time, one for each pass of `evaluate.votes`: turned about z, scaled, mirrored."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, Literal, NotRequired

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import TypedDict

from sightline.contract import registry
from sightline.contract.arguments import PositiveFloat, UpAxis
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.transform import Transform
from sightline.ops.points.rotations import axis_rotation, rotate_points


class View(TypedDict):
    """View of a cloud: mirrored at the plane through the origin across an axis, turned about the up axis, scaled."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    turn_deg: NotRequired[float]
    scale: NotRequired[PositiveFloat]
    mirror: NotRequired[Literal["x", "y", "z"]]


_TURNS = (0.0, 90.0, 180.0, 270.0)
_VIEWS: dict[str, tuple[Any, ...]] = {
    "scannet": (*({"turn_deg": t, "scale": s} for s, t in product((1.0, 0.95, 1.05), _TURNS)), {"turn_deg": 180.0}),
    "scales": tuple({"turn_deg": t, "scale": s} for t, s in product((0.0, 180.0), (1.0, 0.9, 0.95, 1.05, 1.1))),
    "turns": tuple({"turn_deg": t} for t in _TURNS),
    "mirrors": (*({"turn_deg": t} for t in _TURNS), *({"turn_deg": t, "mirror": "x"} for t in _TURNS)),
}


@registry.transforms.add("views")
class Views(Transform):
    """View number n of a list for pass n of `evaluate.votes`; the first of a list is the cloud as it is.

    `views` are a list, or the name of one. Pointcept's: `scannet`, 13 (four turns at scales of 1, 0.95 and 1.05, and a
    flip), `scales`, 10 for S3DIS and nuScenes (five scales, each with and without a flip), and `turns`, 4 for
    SemanticKITTI. Its flip is one along x and y, which is half a turn, so that the last of `scannet` is the third
    again; no view of these is mirrored. `mirrors`, 8, are made here: four turns, each as it is and mirrored. Turns and
    mirrors are about the origin, normals follow, and nothing is drawn.

    >>> import torch
    >>> from sightline.contract.draws import Draws
    >>> from sightline.parts.transforms.views import Views
    >>> points = torch.tensor([[[3.0, 1.0, 2.0]]])
    >>> turned = Views(up_axis="z", views="turns")(Draws.from_seed(0), 2, points=points)["points"]
    >>> turned.round()  # by half of a turn
    tensor([[[-3., -1.,  2.]]])

    Source: Wu et al. 2022 and 2024 (Point Transformer V2 and V3), their test code.
    """

    moves_points = True

    def __init__(
        self, *, up_axis: UpAxis, views: Literal["scannet", "scales", "turns", "mirrors"] | tuple[View, ...] = "turns"
    ) -> None:
        listed = _VIEWS[views] if isinstance(views, str) else views
        if not listed or _is_changed(listed[0]):
            raise ConfigError("views: the first is for the pass without transforms.vote; begin the list with {}")
        self.up_axis, self.views, self.num_passes = up_axis, listed, len(listed)

    def __call__(
        self, draws: Draws, pass_number: int, *, points: Tensor, normals: Tensor | None = None
    ) -> dict[str, Tensor]:
        view = self.views[pass_number]
        sign = points.new_tensor([-1.0 if axis == view.get("mirror") else 1.0 for axis in "xyz"])
        matrix = _turn_about(self.up_axis, view.get("turn_deg", 0.0)).to(points.dtype)
        changed = {"points": rotate_points(points * sign, matrix) * view.get("scale", 1.0)}
        if normals is not None:
            changed["normals"] = rotate_points(normals * sign.to(normals.dtype), matrix.to(normals.dtype))
        return changed


def _is_changed(view: View) -> bool:
    return view.get("turn_deg", 0.0) % 360 != 0 or view.get("scale", 1.0) != 1 or "mirror" in view


def _turn_about(axis: Literal["x", "y", "z"], degrees: float) -> Tensor:
    """Return a rotation matrix (1, 3, 3), float64; by quarters of a turn it is exact, so that equal views are equal."""
    matrix = axis_rotation(axis, torch.tensor([math.radians(degrees)], dtype=torch.float64))
    return matrix.round() if degrees % 90 == 0 else matrix
