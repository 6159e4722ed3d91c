"""What a probe gives: figures, tables for a person, and all of it in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sightline.probe.features import Features

__all__ = ["Outcome", "Probe", "Table"]


@dataclass(frozen=True)
class Table:
    """Rows under columns; accuracies are shares, 0 to 1."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """`metrics` by name, `chance` by the same names where guessing has a level of its own, and how it was measured.

    `warnings` are what a reader of the figures must know, `details` all the rest in plain values.
    """

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    protocol: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Probe(Protocol):
    """Learns from the training features and is scored on those of the test part; the same input gives the same bits."""

    def __call__(self, train: Features, test: Features) -> Outcome: ...
