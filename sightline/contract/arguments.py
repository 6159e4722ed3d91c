"""Types of constructor arguments: the annotation is the schema that a config value is checked against."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from sightline.contract.schema import Block
from sightline.contract.validation import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1), Le(2**31 - 1)]
"""A number of things, at least one."""
Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels of a layer."""
Index = Annotated[int, Ge(0), Le(2**31 - 1)]
"""An index or a number of things, from zero."""
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
"""A seed of random draws."""
Probability = Annotated[float, Ge(0.0), Le(1.0)]
"""A share or a probability, 0 to 1."""
PositiveFraction = Annotated[float, Gt(0.0), Le(1.0)]
"""A share of something, above 0, at most 1."""
FractionBelowOne = Annotated[float, Ge(0.0), Lt(1.0)]
"""A share from 0 to below 1."""
PositiveFloat = Annotated[float, Gt(0.0), Le(1e9)]
"""A positive quantity: a radius, a scale, a learning rate."""
NonNegativeFloat = Annotated[float, Ge(0.0), Le(1e9)]
"""A quantity that may be zero: a weight, a decay, a margin."""
UpAxis: TypeAlias = Literal["x", "y", "z"]
"""The axis that points up."""
LengthUnit: TypeAlias = Literal["m", "cm", "mm", "ft", "us_ft"] | PositiveFloat
"""The unit of coordinates in files, or its length in metres."""
PointEncoder = Annotated[Any, Block("point_encoders")]
"""A network from clouds to vectors: `feature_width`, and `encode(*, points, features) -> (B, feature_width)`."""
ImageEncoder = Annotated[Any, Block("image_encoders")]
"""A network from images to vectors: `feature_width`, and `encode(*, image) -> (B, feature_width)`."""
DataBlock = Annotated[Any, Block("data")]
"""A data set inside another."""
BackboneBlock = Annotated[Any, Block("backbones")]
"""A network from images to maps, finest first: `channels` and `strides`, and `(image) -> list of (B, C, H, W)`."""
NeckBlock = Annotated[Any, Block("necks")]
"""A network from a backbone's maps to others: `channels` and `strides` of these, and `(maps) -> list of maps`."""
HeadBlock = Annotated[Any, Block("heads")]
"""A network from maps to predictions at priors, as described in `sightline/areas/detect/networks.py`."""
AssignerBlock = Annotated[Any, Block("assigners")]
"""A rule that assigns boxes to priors: `(priors, boxes, is_ignored, ...) -> Assignment`."""
SuppressionBlock = Annotated[Any, Block("suppressions")]
"""A rule that drops overlapping detections: `(boxes, scores, labels, ...) -> SuppressionResult`."""
TransformBlock = Annotated[Any, Block("transforms")]
"""A transform inside another."""
ReferencePoint = Annotated[Any, Block("references")]
"""Position of the cube in a depth image: `of(order)`, as described in `sightline/areas/pose/sets/depth_frames.py`."""
QuantisedKind: TypeAlias = Literal["codebook", "linear", "fp16", "fp32"]
"""Storage of a weight: codebook, linear grid, half precision, or unchanged."""


class QuantisedActivation(TypedDict):
    """Linear grid of a layer's input: from 0, or from -`range` if `signed`, to `range`; one bit is the sign."""

    bits: Annotated[int, Ge(2), Le(8)]
    range: PositiveFloat
    signed: bool


class WeightQuantisation(TypedDict):
    """Quantisation of a weight by a policy; `bits` are those of a codebook or of a linear grid.

    With `activation` the input of the layer is quantised too.
    """

    kind: QuantisedKind
    bits: NotRequired[Annotated[int, Ge(1), Le(8)]]
    per_channel: NotRequired[bool]
    activation: NotRequired[QuantisedActivation]
