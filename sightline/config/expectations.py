"""Expectations of a run at a step: a quantity and its bounds. Names only, no expressions."""

from __future__ import annotations

from typing import Literal, NamedTuple, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from sightline.arguments import Index

__all__ = ["STATISTICS", "Expectation", "Quantity", "check_expectation", "parse_quantity"]

STATISTICS = ("min", "max", "mean", "std", "zeros", "grad_norm")
"""Statistics of a tensor; `zeros` is the share of zeros, `grad_norm` the norm of its gradient."""
_SCALAR_QUANTITIES = ("loss", "share", "grad_norm")
_FORMS = (
    "loss, loss.NAME, share, grad_norm, output.STATISTIC, output.NAME.STATISTIC or layer.PATH.STATISTIC; "
    f"statistics are {', '.join(STATISTICS)}"
)


class Expectation(TypedDict):
    """Bounds of a quantity after `step` optimiser steps, one or both; in both verbs, or in `only` one."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    quantity: str
    step: Index
    at_least: NotRequired[float]
    at_most: NotRequired[float]
    only: NotRequired[Literal["fit_one", "train"]]


class Quantity(NamedTuple):
    """Parsed quantity: its kind (`loss`, `share`, `grad_norm`, `output`, `layer`), name and statistic."""

    kind: str
    name: str = ""
    statistic: str = ""


def parse_quantity(text: str) -> Quantity | None:
    """Parse a quantity like `layer.head.0.max`; None for an unknown one."""
    kind, _, remainder = text.partition(".")
    if text in _SCALAR_QUANTITIES:
        return Quantity(text)
    if kind == "loss" and remainder:
        return Quantity(kind, remainder)
    name, _, statistic = remainder.rpartition(".")
    if statistic not in STATISTICS or (kind == "layer" and not name) or kind not in ("output", "layer"):
        return None
    return Quantity(kind, name, statistic)


def check_expectation(expectation: Expectation) -> str:
    """Describe the fault of an entry whose values have valid types; empty without a fault."""
    if parse_quantity(expectation["quantity"]) is None:
        return f"found the quantity '{expectation['quantity']}', allowed is {_FORMS}"
    low, high = expectation.get("at_least"), expectation.get("at_most")
    if low is None and high is None:
        return f"'{expectation['quantity']}' has no bound; give at_least, at_most or both"
    if low is not None and high is not None and low > high:
        return f"'{expectation['quantity']}': at_least {low:g} is above at_most {high:g}"
    return ""
