"""Interface and outcome of probes: metrics, tables for the terminal, and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sightline.errors import DataError
from sightline.probe.features import Features

__all__ = ["Outcome", "Probe", "Table", "UnprobableError", "assert_fits"]


class UnprobableError(DataError):
    """Raised for data that cannot be probed: no classes, no test split, or too few or too many samples."""


@dataclass(frozen=True)
class Table:
    """Table with columns and rows; accuracies are fractions in [0, 1]."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a probe: `metrics` by name, `chance` for metrics with their own chance level, and the protocol.

    `warnings` are notes for readers of the metrics, `details` everything else as plain values.
    """

    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    protocol: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Probe(Protocol):
    """Probe: trained on training features and scored on test features; deterministic to the bit.

    `most_rows` is the maximum number of training features, None for no limit.
    """

    most_rows: ClassVar[int | None]

    def __call__(self, train: Features, test: Features) -> Outcome: ...


def assert_fits(probe: Probe, num_samples: int) -> None:
    """Raise UnprobableError if the training split is too large for a probe, before features are computed."""
    if probe.most_rows is not None and num_samples > probe.most_rows:
        raise UnprobableError(
            f"probe: the training part has {num_samples} samples, {type(probe).__name__} takes {probe.most_rows} at "
            "most; give data.fraction=SHARE if the data set has it, or another method"
        )
