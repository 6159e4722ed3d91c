"""Target of a compression: its budget, the bits to choose from, and the layers that no search lowers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from sightline.compression.policy import FP16, FP32, WeightFormat
from sightline.contract.arguments import Index, QuantisedKind
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest

BudgetOn = Literal["file", "codebook", "weights"]
"""Bytes that a budget counts: the file, codes with codebooks, or codes alone, as in HAQ."""


class Protect(TypedDict):
    """Layers that no search lowers: the `first` and `last` ones by number, and `names` by patterns such as `head.*`."""

    first: NotRequired[Index]
    last: NotRequired[Index]
    names: NotRequired[tuple[str, ...]]
    bits: NotRequired[Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32]]


def protected_choices(
    protect: Protect, names: Sequence[str], *, kind: QuantisedKind = "codebook"
) -> dict[str, WeightFormat]:
    """Return the format of each protected layer of `names` (in the model's order): 8 bits by default.

    Raises ConfigError for a pattern without a match, with the nearest name.
    """
    bits = protect.get("bits", 8)
    floats = {item.bits: item for item in (FP16, FP32)}
    choice = floats.get(bits, WeightFormat(kind, bits))
    patterns = protect.get("names", ())
    missing = [item for item in patterns if not fnmatch.filter(names, item)]
    if missing:
        raise ConfigError(
            *(f"protect.names: no layer is called '{item}'{suggest(item, names, otherwise='')}" for item in missing)
        )
    last = len(names) - protect.get("last", 0)
    return {
        name: choice
        for index, name in enumerate(names)
        if index < protect.get("first", 0) or index >= last or any(fnmatch.fnmatchcase(name, item) for item in patterns)
    }


@dataclass(frozen=True)
class CompressionOptions:
    """Compression target and options; exactly one of `ratio` (of float32) and `num_bytes`, counted by `budget_on`."""

    ratio: float | None = None
    num_bytes: int | None = None
    budget_on: BudgetOn = "file"
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    kind: Literal["codebook", "linear"] = "codebook"
    per_channel: bool = False
    protect: Protect = field(default_factory=lambda: Protect())
    calibration: int = 256
    seed: int = 0
    activations: int | None = None
