"""Expectations of a config: ranges, stated beforehand, of what layers return in a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from sightline.contract.arguments import Count

Range = tuple[float | None, float | None]
"""Lowest and highest value that is allowed; null where there is no bound."""


class Expectation(TypedDict):
    """Expected output of a layer, before the first step of a fit (`at: first`), after its last (`last`), or at both.

    `std` is the standard deviation, `zeros` the share of exact zeros, `gradient` the norm of the loss's gradient by the
    output, and `weight_gradient` that by the layer's own parameters. A size of `shape` is null where any is right.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    layer: str
    at: NotRequired[Literal["first", "last", "both"]]
    shape: NotRequired[tuple[Count | None, ...]]
    mean: NotRequired[Range]
    std: NotRequired[Range]
    min: NotRequired[Range]
    max: NotRequired[Range]
    zeros: NotRequired[Range]
    gradient: NotRequired[Range]
    weight_gradient: NotRequired[Range]


def find_fault(expectation: Expectation) -> str:
    """Describe the fault of an entry whose values have valid types; empty without a fault."""
    stated = {name: value for name, value in expectation.items() if name not in ("layer", "at", "shape")}
    if not stated and "shape" not in expectation:
        return f"'{expectation['layer']}' states nothing; give a range, as std: [1e-3, null]"
    for name, value in stated.items():
        assert isinstance(value, Sequence)
        low, high = value
        if low is None and high is None:
            return f"{name}: [null, null] bounds nothing; give a lowest or a highest value"
        if low is not None and high is not None and low > high:
            return f"{name}: the lowest value {low:g} is above the highest {high:g}"
    return ""
