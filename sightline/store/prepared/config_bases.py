"""Shipped configs that a config for files of the user's own builds on, and which of them it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ConfigBase(NamedTuple):
    """Shipped config that configs for a set of the user's own files build on, and what speaks for it.

    It is the base of sets of fewer than `num_samples` to train on, or of any number (None).
    """

    name: str
    reason: str = ""
    num_samples: int | None = None


def choose_base(bases: Sequence[ConfigBase], num_samples: int | None) -> ConfigBase:
    """Return the first base that holds for a number of samples to train on; None if it is not known."""
    return next(
        row for row in bases if row.num_samples is None or (num_samples is not None and num_samples < row.num_samples)
    )
