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


def boxes(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Boxes of which many overlap, some are equal, some have no area and some corners are the wrong way round."""
    corners = (clouds(dtype, 2, count, 4, seed=seed) * 8).flatten(0, 1)[: 2 * count : 2]
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 6], dim=1)


def _detections(num_proposals: int) -> Any:
    labels, proposals = torch.arange(70) % 3, torch.arange(num_proposals) // 2
    return lambda dtype: (
        boxes(dtype, 70, 2),
        torch.linspace(1, 0, 70, dtype=dtype),
        labels,
        torch.full((70,), 0.3, dtype=dtype),
        proposals,
    )


def _weakened(is_linear: bool, limit: float) -> Any:
    detections = _detections(0)
    return lambda dtype: (*detections(dtype)[:3], torch.full((70,), limit, dtype=dtype), is_linear, 0.01)


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
    *(
        OperatorCase(
            name,
            "all pairs",
            lambda dtype: (boxes(dtype, 37, 0), boxes(dtype, 70, 1)),
            table=lambda: (empty(10_000, 4), empty(1000, 4)),
        )
        for name in ("box_iou", "box_ioa")
    ),
    *(
        OperatorCase(
            "keep_greedily",
            f"{num_proposals} proposals",
            _detections(num_proposals),
            table=lambda count=num_proposals: (
                *(empty(30_000, 4), empty(30_000), indices(30_000), empty(30_000)),
                indices(30_000 if count else 0),
            ),
        )
        for num_proposals in (0, 70)
    ),
    OperatorCase("weaken", "linear", _weakened(True, 0.3)),
    OperatorCase("weaken", "Gaussian", _weakened(False, 0.5), tolerance=1e-6),
]
