"""Comparison of searches: table rows, the Pareto front of loss and bytes, and its hypervolume."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from sightline.compress.search.base import SearchResult

__all__ = ["hyper_volume", "pareto_front", "search_rows"]

Point = tuple[float, float]
"""Point (bytes, loss); lower is better for both."""


def search_rows(found: Iterable[SearchResult]) -> list[dict[str, Any]]:
    """Build one row per search, lowest loss first; `overhead seconds` excludes the evaluations."""
    return [
        {
            "method": result.method,
            "loss": result.loss,
            "bytes": result.bytes,
            "evaluations": result.num_evaluated,
            "new evaluations": result.num_new,
            "seconds": result.seconds,
            "overhead seconds": result.seconds - result.evaluation_seconds,
            "raisable layers": len(result.untried_raises),
        }
        for result in sorted(found, key=lambda result: (result.loss, result.bytes))
    ]


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto front: the points that no other point dominates, sorted by bytes, without duplicates."""
    front: list[Point] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


def hyper_volume(points: Iterable[Point], *, reference: Point) -> float:
    """Compute the area between the front and a reference that is worse in both numbers; points beyond it are ignored.

    Source: Zitzler and Thiele 1999.
    """
    front = pareto_front(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    pairs = itertools.pairwise([*front, reference])
    return sum((following - size) * (reference[1] - loss) for (size, loss), (following, _) in pairs)
