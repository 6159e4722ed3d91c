"""Rules for the quantisation choices of a weight, shared by all readers of policies."""

from __future__ import annotations

from typing import Any

from sightline.arguments import WeightQuantisation
from sightline.schema import SchemaError, check_value

__all__ = ["choice_faults"]

_MIN_BITS = {"codebook": 1, "linear": 2}


def choice_faults(choice: Any) -> list[SchemaError]:
    """List everything wrong with a choice regardless of its weight, by key.

    Types, ranges, bits of floats, a 1-bit grid.
    """
    _, misfits = check_value(WeightQuantisation, choice)
    if misfits:
        return misfits
    kind, bits = choice["kind"], choice.get("bits")
    if kind not in _MIN_BITS:
        extra_keys = (key for key in ("bits", "per_channel") if choice.get(key))
        return [SchemaError(key, "is not for floating point; remove it") for key in extra_keys]
    allowed = f"give {_MIN_BITS[kind]} to 8"
    if bits is None:
        return [SchemaError("bits", f"is required and missing; {allowed}")]
    return (
        [] if bits >= _MIN_BITS[kind] else [SchemaError("bits", f"found {bits}, too few for a {kind} grid; {allowed}")]
    )
