"""Planted bugs and their healthy twins, in small plain programs: a row a case, a module a family of relations."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Run = Callable[[bool, Any, Any], Any]
"""Program `run(has_bug, watch, check)`: it calls `check(model, loss, batches)`, or trains under `watch(model)`."""


class Case(NamedTuple):
    """Program with a bug, and the causes one of which a finding of it must name; without the bug it is healthy."""

    name: str
    run: Run
    causes: str


def list_cases() -> Iterator[tuple[str, Case]]:
    """Yield the family and the case of each row."""
    for module in pkgutil.iter_modules(__path__):
        for case in importlib.import_module(f"{__name__}.{module.name}").CASES:
            yield module.name, case
