"""Searches side by side: rows of a table, the policies that none beats in both loss and bytes, and their volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from sightline.compress.search.base import SearchResult

__all__ = ["hyper_volume", "pareto_front", "search_rows"]

Point = tuple[float, float]
"""Bytes and loss: less of either is better."""


def search_rows(found: Iterable[SearchResult]) -> list[dict[str, Any]]:
    """A row per search, least loss first; `overhead_seconds` is what a search took beside its evaluations."""
    return [
        {
            "method": each.method,
            "loss": each.loss,
            "bytes": each.bytes,
            "evaluations": each.num_evaluated,
            "new evaluations": each.num_new,
            "seconds": each.seconds,
            "overhead seconds": each.seconds - each.evaluation_seconds,
            "raisable layers": len(each.untried_raises),
        }
        for each in sorted(found, key=lambda each: (each.loss, each.bytes))
    ]


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other is at most equal to in both numbers, by bytes; equal ones once."""
    front: list[Point] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


def hyper_volume(points: Iterable[Point], *, reference: Point) -> float:
    """The area between the front and a reference that is worse in both numbers; points beyond it count nothing.

    Source: Zitzler and Thiele 1999.
    """
    front = pareto_front(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    pairs = itertools.pairwise([*front, reference])
    return sum((following - size) * (reference[1] - loss) for (size, loss), (following, _) in pairs)
