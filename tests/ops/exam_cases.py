"""The rows of the exam of operators: one for each operator and kind of arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEVICELESS = torch.device("meta")


@dataclass(frozen=True)
class OperatorCase:
    """Arguments of an operator, made for a float format.

    `tolerance` 0 asks for equal bits; else it is a share of the largest number of a result. `differentiable` are the
    places of arguments with a gradient. `table` makes the arguments of a large case, on the meta device: the launches
    of its GPU kernel are built for each architecture.
    """

    operator: str
    label: str
    make: Callable[[torch.dtype], tuple[Any, ...]]
    tolerance: float = 0.0
    differentiable: tuple[int, ...] = ()
    table: Callable[[], tuple[Any, ...]] | None = None

    def __str__(self) -> str:
        return f"{self.operator}-{self.label}"


def clouds(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Clouds drawn from a normal distribution; the second has many points at few places, and so ties."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    drawn[1:2] = torch.randint(0, 4, drawn[1:2].shape, generator=generator).double() / 8
    return drawn.to(dtype)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICELESS)


def indices(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int64)


def _sample(num_points: int, num_samples: int, limit: float = torch.inf, barred: float = -1.0) -> Any:
    first = torch.tensor([0, num_points // 2, num_points - 1])
    return lambda dtype: (clouds(dtype, 3, num_points, 3), first, num_samples, limit, barred)


def _sample_packed(dtype: torch.dtype) -> tuple[Any, ...]:
    sizes, counts = [70, 0, 70, 33, 1], [9, 0, 9, 33, 1]
    offsets, sample_offsets = (torch.tensor([0, *torch.tensor(each).cumsum(0).tolist()]) for each in (sizes, counts))
    points = clouds(dtype, 2, 87, 3).flatten(0, 1)
    return points, offsets, torch.tensor([3, 0, 69, 0, 0]), sample_offsets, sizes, counts, torch.inf


CASES = [
    OperatorCase(
        "farthest_points",
        "all",
        _sample(37, 37),
        table=lambda: (empty(24, 1024, 3), indices(24), 512, torch.inf, -1.0),
    ),
    OperatorCase(
        "farthest_points",
        "barred",
        _sample(100, 30, 0.9, 1.5),
        table=lambda: (empty(8, 8192, 3), indices(8), 1024, torch.inf, -1.0),
    ),
    OperatorCase(
        "farthest_points",
        "several channels",
        lambda dtype: (clouds(dtype, 2, 40, 5), torch.tensor([1, 2]), 9, torch.inf, -1.0),
        table=lambda: (empty(1, 65536, 3), indices(1), 4096, torch.inf, -1.0),
    ),
    OperatorCase(
        "packed_farthest_points",
        "ragged",
        _sample_packed,
        table=lambda: (*(empty(16384, 3), indices(5), indices(4), indices(5), [4096] * 4, [1024] * 4, torch.inf),),
    ),
]
