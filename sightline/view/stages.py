"""Viewed samples: the stages of a sample, colourings of its points, and the numbers that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sightline.contract.types import Surroundings
from sightline.draw.pictures import UNLABELLED, Axis, Frame, apply_colormap, label_colors
from sightline.parts.tasks.segment import WRONG
from sightline.view.panels import ImagePanel
from sightline.view.skeletons import JointFigure

_RIGHT = np.array([196, 201, 208], dtype=np.uint8)
_UP: dict[Axis, int] = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True, eq=False)
class ClassColoring:
    """Colouring by class: `codes` (N,) int64 are indices into its classes, negative for points without one.

    `numbers` (C,) int64 are the labels of the classes in the data, `palette` (C, 3) uint8 their colours.
    """

    name: str
    codes: np.ndarray
    class_names: tuple[str, ...]
    numbers: np.ndarray
    palette: np.ndarray

    @classmethod
    def from_labels(
        cls, name: str, labels: np.ndarray, class_names: Sequence[str], *, ignore_index: int | None = None
    ) -> ClassColoring:
        """Colour labels (N,) by the fixed palette: unnamed ones are shown as numbers, negative ones are unlabelled."""
        labels = labels.astype(np.int64)
        if ignore_index is not None:
            labels = np.where(labels == ignore_index, -1, labels)
        count = len(class_names)
        nameless = np.unique(labels[labels >= count])
        codes = np.where(labels < count, labels, count + np.searchsorted(nameless, labels))
        numbers = np.concatenate([np.arange(count), nameless])
        return cls(name, codes, (*class_names, *map(str, nameless.tolist())), numbers, label_colors(numbers))

    def labels(self) -> np.ndarray:
        """Return the label of each point in the data, (N,) int64; -1 for points without a class."""
        return np.append(self.numbers, -1)[np.maximum(self.codes, -1)]

    def colors(self) -> np.ndarray:
        """Return the colours (N, 3) uint8."""
        return np.concatenate([self.palette, UNLABELLED[None]])[np.maximum(self.codes, -1)]

    def legend(self) -> list[tuple[str, np.ndarray, int]]:
        """List name, colour (3,) uint8 and number of points of each class that occurs; `unlabelled` last."""
        present, counts = np.unique(self.codes[self.codes >= 0], return_counts=True)
        rows = [
            (self.class_names[code], self.palette[code], count)
            for code, count in zip(present.tolist(), counts.tolist(), strict=True)
        ]
        num_unlabelled = int((self.codes < 0).sum())
        return [*rows, ("unlabelled", UNLABELLED, num_unlabelled)] if num_unlabelled else rows

    def counts(self) -> dict[str, int]:
        """Count the points of each class that occurs, by name."""
        return {name: count for name, _, count in self.legend()}


@dataclass(frozen=True, eq=False)
class RgbColoring:
    """Colouring by `rgb` (N, 3) uint8: the points' own colours, or values shown by a colour map."""

    name: str
    rgb: np.ndarray

    def colors(self) -> np.ndarray:
        """Return the colours (N, 3) uint8."""
        return self.rgb

    @classmethod
    def from_values(cls, name: str, values: np.ndarray) -> RgbColoring:
        """Colour values (N,) by a colour map, from the lowest to the highest."""
        return cls(name, apply_colormap(values))


@dataclass(frozen=True, eq=False)
class HeightColoring:
    """Colouring by height along the up axis, low points dark, for clouds without other fields."""

    heights: np.ndarray
    name: str = "height"

    def colors(self) -> np.ndarray:
        """Return the colours (N, 3) uint8."""
        return apply_colormap(self.heights)


Coloring = ClassColoring | RgbColoring | HeightColoring


@dataclass(frozen=True, eq=False)
class Stage:
    """Stage of a sample: `points` (N, 3), float32 or float64, and their colourings, the default one first.

    `description` is a further line of text, `figures` the same in numbers. `is_right`: the prediction for the whole
    sample is correct, or an exact property of the stage was verified. `skeletons` are in the frame of the points.
    `panels` are flat pictures of the stage. `surroundings` decide which of its points a picture leaves out. `shows`
    names what it is of, where transforms make something else of a sample: of what is the same, the last stage counts.
    """

    stage: str
    points: np.ndarray
    colorings: tuple[Coloring, ...]
    unit: str = ""
    description: str = ""
    is_right: bool | None = None
    skeletons: tuple[JointFigure, ...] = ()
    panels: tuple[ImagePanel, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    surroundings: Surroundings = "none"
    shows: str = ""

    def coloring(self, name: str) -> Coloring | None:
        """Return the colouring of this name, or None."""
        return next((coloring for coloring in self.colorings if coloring.name == name), None)

    @property
    def is_flat(self) -> bool:
        """True if the stage has pictures only."""
        return bool(self.panels) and not len(self.points)

    def extent(self) -> tuple[list[float], list[float]] | None:
        """Return the lowest and highest coordinate per axis over the finite points; None if there are none."""
        finite = self.points[np.isfinite(self.points).all(axis=1)]
        return (finite.min(axis=0).tolist(), finite.max(axis=0).tolist()) if len(finite) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of a picture's caption as plain values."""
        extent = self.extent()
        return {
            "stage": self.stage,
            "num_points": len(self.points),
            "num_not_finite": int((~np.isfinite(self.points).all(axis=1)).sum()),
            "extent": None if extent is None else {"min": extent[0], "max": extent[1]},
            "unit": self.unit,
            "description": self.description,
            "classes": {c.name: c.counts() for c in self.colorings if isinstance(c, ClassColoring)},
            **({"figures": dict(self.figures)} if self.figures else {}),
        }

    def lines(self) -> list[str]:
        """Return the caption as lines: points, extent along the axes, and the description."""
        if self.is_flat or (self.skeletons and not len(self.points)):
            return [self.description] if self.description else []
        numbers = self.to_dict()
        gaps = f", {numbers['num_not_finite']:,} of them not finite" if numbers["num_not_finite"] else ""
        lines = [f"{numbers['num_points']:,} points{gaps}"]
        if (extent := numbers["extent"]) is not None:
            spans = zip("xyz", extent["min"], extent["max"], strict=True)
            description = ", ".join(f"{axis} {low:.4g} to {high:.4g}" for axis, low, high in spans)
            lines.append(f"{description}{f' ({self.unit})' if self.unit else ''}")
        return [*lines, self.description] if self.description else lines


@dataclass(frozen=True, eq=False)
class ViewedSample:
    """Sample or file to view: its stages, the raw one first, and `facts` for its caption and the JSON.

    `has_more`: some of its stages are those of `--all`, whether or not they are among them.
    """

    name: str
    stages: tuple[Stage, ...]
    up_axis: Frame = "z"
    facts: Mapping[str, Any] = field(default_factory=dict)
    has_more: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"name": self.name, **self.facts, "stages": [stage.to_dict() for stage in self.stages]}


def error_coloring(prediction: np.ndarray, target: np.ndarray, num_classes: int) -> ClassColoring:
    """Colour correct predictions (N,) grey and wrong ones red; points whose label is not a class are unlabelled."""
    is_counted = (target >= 0) & (target < num_classes)
    codes = np.where(is_counted, (prediction != target).astype(np.int64), -1)
    return ClassColoring("error", codes, ("right", "wrong"), np.arange(2), np.stack([_RIGHT, WRONG]))


def height_coloring(points: np.ndarray, up_axis: Axis) -> HeightColoring:
    """Colour points (N, 3) by their height along the up axis."""
    return HeightColoring(points[:, _UP[up_axis]])
