"""The rows of the exam of columns: an example call or two of every public function of `sightline.ops`.

A row states the axes of its arguments and results by letters. From these the columns make what they need: other sizes,
none of some, a batch of calls, half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Axis = str | int
Sizes = Mapping[str, int]
SIZES = {"B": 2, "S": 2, "N": 12, "M": 5, "E": 7}
"""Clouds, segments, points or boxes, queries or other boxes, of an example call."""


@dataclass(frozen=True)
class Argument:
    """An argument of a call: its axes, and how it is drawn for a shape, in float64 if its numbers are real."""

    axes: tuple[Axis, ...]
    draw: Callable[[tuple[int, ...], Sizes, torch.Generator], Tensor]
    rows: str = ""  # the letter of the rows that offsets and batch vectors are of

    def make(self, sizes: Sizes, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        drawn = self.draw(size_of(self.axes, sizes), sizes, generator)
        return drawn.to(dtype) if drawn.is_floating_point() else drawn


@dataclass(frozen=True)
class Row:
    """An example call of a public function.

    `results` are the axes of its results, None for one whose size depends on values. `none` are letters that may be 0,
    `refused` those of which 0 is refused in one line. `differentiable` are the arguments with a gradient: the others
    stand for numbers, and may be tensors with a gradient all the same. `traits` say which columns have no meaning, and
    `reads` how often the host reads numbers of a device, other than in checks of values.
    """

    name: str
    arguments: Mapping[str, Argument]
    call: Callable[..., Any]
    results: tuple[tuple[Axis | None, ...], ...]
    none: str = ""
    refused: str = ""
    differentiable: frozenset[str] = frozenset()
    traits: frozenset[str] = frozenset()
    label: str = ""
    reads: int = 0

    def __post_init__(self) -> None:
        if not {"B", "S"} & self.letters:
            object.__setattr__(self, "traits", self.traits | {NO_BATCH})

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    @property
    def letters(self) -> set[str]:
        """The sizes that this call has."""
        axes = (axis for argument in self.arguments.values() for axis in (*argument.axes, *argument.rows))
        return {letter for axis in axes if isinstance(axis, str) for letter in axis if letter in SIZES}

    @property
    def free(self) -> str:
        """The size that a graph leaves free: the batch, or else the rows."""
        return next(letter for letter in "BNM" if letter in self.letters)

    def make(self, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: int) -> tuple[Tensor, ...]:
        """Make the arguments for sizes other than those of `SIZES`."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(argument.make({**SIZES, **sizes}, generator, dtype) for argument in self.arguments.values())

    def shapes(self, **sizes: int) -> list[tuple[int | None, ...]]:
        """The shapes that the results have, None where a size depends on values."""
        return [size_of(axes, {**SIZES, **sizes}) for axes in self.results]


def size_of(axes: tuple[Any, ...], sizes: Sizes) -> tuple[Any, ...]:
    """Sizes of axes: a letter, a letter and a number to add ("S+1"), a number, or None."""
    return tuple(sizes[axis[0]] + int(axis[1:] or 0) if isinstance(axis, str) else axis for axis in axes)


# --- arguments --------------------------------------------------------------------------------------------------------


def normal(*axes: Axis) -> Argument:
    return Argument(axes, lambda shape, sizes, generator: torch.randn(shape, generator=generator, dtype=torch.float64))


def unit(*axes: Axis) -> Argument:
    return Argument(axes, lambda shape, sizes, generator: torch.rand(shape, generator=generator, dtype=torch.float64))


def sides(*axes: Axis) -> Argument:
    """Lengths of 0.5 to 1.5."""
    return Argument(axes, lambda shape, sizes, generator: torch.rand(shape, generator=generator).double() + 0.5)


def boxes(*axes: Axis, is_square: bool = False) -> Argument:
    """Boxes of which many overlap."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        corners = 10 * torch.rand(shape, generator=generator, dtype=torch.float64)
        sides = corners[..., 2:3] if is_square else corners[..., 2:]
        return torch.cat([corners[..., :2], corners[..., :2] + sides + 2], dim=-1)

    return Argument((*axes, 4), draw)


def upright_boxes(*axes: Axis) -> Argument:
    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.cat([drawn[..., :3], drawn[..., 3:].abs() + 1], dim=-1)

    return Argument((*axes, 7), draw)


def whole(high: int | str, *axes: Axis) -> Argument:
    """Whole numbers below a number, or below a size."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        limit = sizes[high] if isinstance(high, str) else high
        return torch.randint(0, max(1, limit), shape, generator=generator)

    return Argument(axes, draw)


def mask(*axes: Axis) -> Argument:
    """Not all, and the first of each row."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(shape, generator=generator) < 0.7
        drawn[..., :1] = True
        return drawn

    return Argument(axes, draw)


def offsets(letter: str) -> Argument:
    """Offsets of all segments of the rows, equal but for the last."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        first = torch.arange(sizes["S"]) * (sizes[letter] // max(1, sizes["S"]))
        return torch.cat([first, torch.tensor([sizes[letter]])])

    return Argument(("S+1",), draw, rows=letter)


def batch(letter: str) -> Argument:
    """The segment of each row, in rising order."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        return (torch.arange(shape[0]) * 2) // max(1, shape[0])

    return Argument((letter,), draw)


def quaternions(*axes: Axis) -> Argument:
    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)

    return Argument((*axes, 4), draw)


def faces(*axes: Axis) -> Argument:
    """Triangles of the first rows of `N` vertices."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        return torch.arange(math.prod(shape)).reshape(shape) % max(3, sizes["N"])

    return Argument((*axes, 3), draw)


def own_cells(*axes: Axis) -> Argument:
    """Cells of a grid, no two alike."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        row = torch.arange(shape[0])
        return torch.stack([row // 4, row % 4, row % 3], dim=1)

    return Argument((*axes, 3), draw)


def chain(*axes: Axis) -> Argument:
    """The row before, itself, and the row after; -1 before the first and after the last."""

    def draw(shape: tuple[int, ...], sizes: Sizes, generator: torch.Generator) -> Tensor:
        near = torch.arange(shape[0])[:, None] + torch.tensor([-1, 0, 1])
        return torch.where(near < shape[0], near, -1).int()

    return Argument((*axes, 3), draw)


# --- what has no meaning ----------------------------------------------------------------------------------------------

NUMPY = "NumPy"
RAGGED = "ragged"
NO_FLOATS = "no floats"
NO_BATCH = "no batch"
BY_VALUES = "by values"


def names(*values: str) -> frozenset[str]:
    return frozenset(values)
