"""What a run expects of itself at a step: a quantity and its bounds. Names only, no expressions."""

from __future__ import annotations

from typing import Literal, NamedTuple, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from sightline.arguments import Index

__all__ = ["STATISTICS", "Expectation", "Quantity", "check_expectation", "parse_quantity"]

STATISTICS = ("min", "max", "mean", "std", "zeros", "grad_norm")
"""Of a tensor: what its numbers are, the share that is exactly zero, and the norm of the gradient that comes back."""
_ALONE = ("loss", "share", "grad_norm")
_FORMS = (
    "loss, loss.NAME, share, grad_norm, output.STATISTIC, output.NAME.STATISTIC or layer.PATH.STATISTIC; "
    f"statistics are {', '.join(STATISTICS)}"
)


class Expectation(TypedDict):
    """After `step` optimiser steps the quantity lies within these bounds, one or both; in both verbs, or `only` one."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    quantity: str
    step: Index
    at_least: NotRequired[float]
    at_most: NotRequired[float]
    only: NotRequired[Literal["fit_one", "train"]]


class Quantity(NamedTuple):
    """A quantity taken apart: of what (`loss`, `share`, `grad_norm`, `output`, `layer`), which one, which statistic."""

    kind: str
    name: str = ""
    statistic: str = ""


def parse_quantity(text: str) -> Quantity | None:
    """What `layer.head.0.max` asks for; None where it asks for nothing that there is."""
    kind, _, rest = text.partition(".")
    if text in _ALONE:
        return Quantity(text)
    if kind == "loss" and rest:
        return Quantity(kind, rest)
    name, _, statistic = rest.rpartition(".")
    if statistic not in STATISTICS or (kind == "layer" and not name) or kind not in ("output", "layer"):
        return None
    return Quantity(kind, name, statistic)


def check_expectation(expectation: Expectation) -> str:
    """What is wrong with an entry whose values have the right types; nothing where it is sound."""
    if parse_quantity(expectation["quantity"]) is None:
        return f"found the quantity '{expectation['quantity']}', allowed is {_FORMS}"
    low, high = expectation.get("at_least"), expectation.get("at_most")
    if low is None and high is None:
        return f"'{expectation['quantity']}' has no bound; give at_least, at_most or both"
    if low is not None and high is not None and low > high:
        return f"'{expectation['quantity']}': at_least {low:g} is above at_most {high:g}"
    return ""
