"""Description of a published model: its counterpart in ours, its recipe, and sizes read from its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["BY_NORMALS", "OBJECTS", "AxisSize", "ImageSide", "NumModules", "PublishedModel", "PublishedProtocol"]


class AxisSize(NamedTuple):
    """Number read from one axis of one of our tensors: less `others`, divided by `divisor`."""

    name: str
    axis: int
    divisor: int = 1
    others: int = 0

    def read(self, weights: Mapping[str, Tensor]) -> int:
        return (weights[self.name].shape[self.axis] - self.others) // self.divisor


class NumModules(NamedTuple):
    """Number of modules directly below one of ours."""

    name: str

    def read(self, weights: Mapping[str, Tensor]) -> int:
        return len({name.removeprefix(f"{self.name}.").split(".")[0] for name in weights if self._is_below(name)})

    def _is_below(self, name: str) -> bool:
        return name.startswith(f"{self.name}.")


class ImageSide(NamedTuple):
    """Side of a square image in pixels: one position is the class token's, the others are patches'."""

    positions: str
    patches: str

    def read(self, weights: Mapping[str, Tensor]) -> int:
        return math.isqrt(weights[self.positions].shape[1] - 1) * weights[self.patches].shape[2]


@dataclass(frozen=True)
class PublishedProtocol:
    """Protocol of published weights: the task, the data set, its metrics and the quoted number.

    `arguments` are those of the data set for a number of channels per point, or for images if there are no points.
    """

    task: str
    data: str
    metrics: tuple[Mapping[str, Any], ...]
    metric: str
    batch_size: int
    arguments: Mapping[int, Mapping[str, Any]]


BY_NORMALS: Mapping[int, Mapping[str, Any]] = {3: {"normals": "none"}, 6: {"normals": "file"}}
OBJECTS = PublishedProtocol("classify", "modelnet40", ({"name": "accuracy"},), "overall_accuracy", 64, BY_NORMALS)


@dataclass(frozen=True)
class PublishedModel:
    """Model as its authors published it.

    `from_shapes` are arguments that follow from the weights, `assumed` those that do not, as in the authors' own recipe
    for the data set of `protocol`; `losses`, `evaluate`, `task` and `up_axis` are that recipe's losses, evaluation
    transforms, arguments of the task and frame. `takes_first_points`: their clouds are a set's first points; else the
    evaluation transforms choose among all. `encoders` are the blocks of the model, by argument; their own
    arguments are named with a dot. `trains` are the recipe's training transforms. `keeps_head`: a head for other
    classes than the data set's is an error; else it is left out. `has_image_file`: the image branch is a second file.
    `parts` are the files of a folder that contains the network in parts, and the prefix of the names in each.
    `class_places` are the indices of the classes of `protocol` among those of the file, if these have gaps.
    """

    model: str
    num_classes: AxisSize | None
    in_channels: AxisSize | None
    from_shapes: Mapping[str, AxisSize | NumModules | ImageSide] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[Mapping[str, Any], ...] = ({"name": "cross_entropy"},)
    evaluate: tuple[Mapping[str, Any], ...] = ()
    up_axis: str | None = "y"
    protocol: PublishedProtocol = OBJECTS
    task: Mapping[str, Any] = field(default_factory=dict)
    takes_first_points: bool = True
    encoders: Mapping[str, str] = field(default_factory=dict)
    trains: tuple[Mapping[str, Any], ...] = ()
    keeps_head: bool = True
    has_image_file: bool = False
    num_joints: AxisSize | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    class_places: Sequence[int] = ()
