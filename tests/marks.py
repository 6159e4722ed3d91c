"""Marks of parametrised tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["list_long_cases", "long_but"]


def long_but(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values of a parametrised test; those that are not kept run in `make test-long` alone."""
    return [
        value
        if value in kept
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
        for value in values
    ]


def list_long_cases() -> dict[str, str]:
    """Return what tests/long_cases.txt says: ids below tests/, and what of their kind `make test` still runs."""
    lines = Path(__file__).with_name("long_cases.txt").read_text().splitlines()
    pairs = (line.split("\t") for line in lines if not line.startswith("#"))
    return {name: reason for name, reason in pairs}
