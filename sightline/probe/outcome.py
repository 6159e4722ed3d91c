"""What a probe gives: figures, tables for a person, and all of it in plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sightline.errors import DataError
from sightline.probe.features import Features

__all__ = ["Outcome", "Probe", "Table", "UnprobableError", "assert_fits"]


class UnprobableError(DataError):
    """Data that a probe cannot learn from: without classes or a part to test on, too little of it or too much."""


@dataclass(frozen=True)
class Table:
    """Rows under columns; accuracies are shares, 0 to 1."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """`metrics` by name, `chance` by the same names where guessing has a level of its own, and how it was measured.

    `warnings` are notes for a reader of the figures, `details` all the rest in plain values.
    """

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    protocol: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Probe(Protocol):
    """Learns from the training features and is scored on those of the test part; the same input gives the same bits.

    `most_rows` is how many training features it takes at most, None for any number.
    """

    most_rows: ClassVar[int | None]

    def __call__(self, train: Features, test: Features) -> Outcome: ...


def assert_fits(probe: Probe, num_samples: int) -> None:
    """Raises UnprobableError where a training part is too large for a probe; known before features are computed."""
    if probe.most_rows is not None and num_samples > probe.most_rows:
        raise UnprobableError(
            f"probe: the training part has {num_samples} samples, {type(probe).__name__} takes {probe.most_rows} at "
            "most; give data.fraction=SHARE where the set has it, or another method"
        )
