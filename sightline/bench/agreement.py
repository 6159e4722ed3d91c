"""When two answers are the same numbers: exactly, up to equal distances, or within a stated tolerance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sightline.bench.case import Comparator

__all__ = ["allclose", "equal", "farthest_each_time", "same_neighbours"]

ROUNDINGS = 10 * 2.0**-24
"""Of a squared distance in three channels, in float32: five each on both sides of a comparison, relative."""


def equal(inputs: Any, expected: Tensor, actual: Tensor) -> str | None:
    """Index for index."""
    if expected.shape != actual.shape:
        return f"shape {tuple(actual.shape)}, the baseline's is {tuple(expected.shape)}"
    differs = expected != actual
    if not differs.any():
        return None
    place = tuple(differs.nonzero()[0].tolist())
    return (
        f"{int(differs.sum())} of {actual.numel()} entries differ, first {place}: {actual[place]}, not "
        f"{expected[place]}"
    )


def same_neighbours(inputs: dict[str, Any], expected: Tensor, found: Tensor) -> str | None:
    """Index for index, except among neighbours at exactly equal distances, of which a form may take any.

    `inputs["points"]` (B, N, C); answers (B, N, K), nearest first. The clouds of this room are rounded so that float32
    holds every squared distance exactly, in the expanded form too; so no tolerance is needed.
    """
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, the baseline's is {tuple(expected.shape)}"
    differs = (expected != found).any(dim=-1)
    cloud, query = differs.nonzero(as_tuple=True)
    points = inputs["points"].double()
    for name, index in (("the baseline", expected), ("it", found)):
        rows = index[cloud, query].sort(dim=-1).values
        if (rows[:, 1:] == rows[:, :-1]).any():
            return f"{name} names a neighbour twice"
    distances = [
        (points[cloud[:, None], index[cloud, query]] - points[cloud, query][:, None]).square().sum(dim=-1)
        for index in (expected, found)
    ]
    wrong = (distances[0] != distances[1]).any(dim=-1)
    if not wrong.any():
        return None
    row = int(wrong.nonzero()[0])
    where = f"cloud {int(cloud[row])}, point {int(query[row])}"
    return f"{int(wrong.sum())} of {differs.numel()} points have other neighbours, first {where}"


def farthest_each_time(inputs: dict[str, Any], expected: Tensor, found: Tensor) -> str | None:
    """Every point after the first is the farthest from those before it, to the roundings of float32; no more is asked.

    `inputs["points"]` (B, N, 3); answers (B, M). Distances are taken in float64 along the answer itself, so that one
    tie decided otherwise, or another first point, does not make all that follows wrong.
    """
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, the baseline's is {tuple(expected.shape)}"
    for cloud, (points, chosen) in enumerate(zip(inputs["points"].double(), found, strict=True)):
        channels = points.T.contiguous()
        nearest = channels.new_full((len(points),), float("inf"))
        for place, index in enumerate(chosen.tolist()):
            if place > 0 and not nearest[index] >= nearest.max() * (1 - ROUNDINGS):
                return f"cloud {cloud}, place {place}: point {index} is not the farthest from those before it"
            nearest = nearest.minimum((channels - channels[:, index, None]).square().sum(dim=0))
    return None


def allclose(tolerance: float) -> Comparator:
    """No number of a tensor, or of a mapping of them, is off by more than `tolerance` times the tensor's largest."""

    def rule(inputs: Any, expected: Any, found: Any) -> str | None:
        if not isinstance(expected, dict):
            expected, found = {"answer": expected}, {"answer": found}
        if expected.keys() != found.keys():
            return f"it gives {sorted(found)}, the baseline {sorted(expected)}"
        for name, before in expected.items():
            after = found[name]
            if before.shape != after.shape:
                return f"{name}: shape {tuple(after.shape)}, the baseline's is {tuple(before.shape)}"
            off = float((after.double() - before.double()).abs().max())
            scale = float(before.double().abs().max())
            if not off <= tolerance * scale:
                return (
                    f"{name}: off by {off:.2e} where the largest number is {scale:.2e}; allowed is {tolerance:g} of it"
                )
        return None

    return rule
