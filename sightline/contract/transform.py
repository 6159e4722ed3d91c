"""Base class of transforms: changes of the fields of a batch, before the network gets it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sightline.contract.types import Field


class Transform(ABC):
    """Transform: a pure function of a batch and its random streams, from the fields it names to those it changes.

    The first axis of each field is the batch; clouds of different sizes come one by one. A field with a default, such
    as `normals: Tensor | None = None`, may be missing. In a notebook, `Draws.from_seed(0, num_samples=B)` gives the
    streams.

    One that returns further fields declares them in `adds`. One that drops or reorders points declares it by
    `chooses_points = True`: a data set with another field of points is then refused, whose rows it would part from
    them.
    """

    adds: Mapping[str, Field] = MappingProxyType({})
    """Name → `Field` of each field that it adds."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """Facts that replace those of the data set, such as `in_channels`."""
    chooses_points: bool = False
    """True if it drops or reorders points."""
    moves_pixels: bool = False
    """True if it moves the content of an image."""
    moves_points: bool = False
    """True if it moves a cloud as a whole, so that boxes in its frame have to move with it."""
    makes_unit_sphere: bool = False
    """True if it normalises clouds to the unit sphere about their mean."""
    num_passes: int | None = None
    """How many passes of `evaluate.votes` it has views for, of one that takes `pass_number`."""
    until_epoch: int | None = None
    """The epoch from which one that takes `draw_samples` gets None for it, counted from 0."""
    split_for_graph: Callable[[], tuple[Transform | None, Callable[..., Any]]] | None = None
    """`split_for_graph()`: of one that an exported file can contain, the transform that is left outside, or None.

    It returns it with a function of the fields inside.
    """

    @classmethod
    def size_arguments(cls, stated: Mapping[str, Any], *, height: int, width: int) -> dict[str, Any]:
        """Return those arguments that are sizes of images, for images of `height` x `width` pixels; {} without any.

        `stated` are the arguments in the config. Raises ConfigError if these sizes follow no single height and width.
        """
        return {}

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the fields that change, by name; called as `(draws, *, fields...)` with those that it names."""
