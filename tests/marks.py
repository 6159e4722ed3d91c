"""Marks of parametrised tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["long_but"]


def long_but(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values of a parametrised test; those that are not kept run in `make test-long` alone."""
    return [
        value
        if value in kept
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
        for value in values
    ]
