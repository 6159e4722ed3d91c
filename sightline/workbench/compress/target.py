"""Target of a compression: its budget, the bits to choose from, and the layers that no search lowers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sightline.compression.policy import FP16, FP32, WeightFormat
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest

BudgetOn = Literal["file", "codebook", "weights"]
"""Bytes that a budget counts: the file, codes with codebooks, or codes alone, as in HAQ."""


@dataclass(frozen=True)
class CompressionTarget:
    """Target of a compression: exactly one of `ratio` (of float32) and `num_bytes`, counted by `on`, and its options.

    No search lowers the first and the last `protect_ends` layers, and those that match a pattern of `protect`, such as
    `head.*`: they have `protect_bits`. `activations` are the bits of quantised inputs.
    """

    ratio: float | None = None
    num_bytes: int | None = None
    on: BudgetOn = "file"
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    kind: Literal["codebook", "linear"] = "codebook"
    per_channel: bool = False
    protect: tuple[str, ...] = ()
    protect_ends: int = 0
    protect_bits: int = 8
    calibration: int = 256
    seed: int = 0
    activations: int | None = None

    def protected_choices(self, names: Sequence[str]) -> dict[str, WeightFormat]:
        """Return the format of each protected layer of `names` (in the model's order).

        Raises ConfigError for a pattern without a match, with the nearest name.
        """
        floats = {choice.bits: choice for choice in (FP16, FP32)}
        choice = floats.get(self.protect_bits, WeightFormat(self.kind, self.protect_bits))
        if missing := [pattern for pattern in self.protect if not fnmatch.filter(names, pattern)]:
            hints = ((pattern, suggest(pattern, names, otherwise="")) for pattern in missing)
            raise ConfigError(*(f"--protect: no layer is called '{pattern}'{hint}" for pattern, hint in hints))
        ends = {*names[: self.protect_ends], *names[max(0, len(names) - self.protect_ends) :]}
        return {
            name: choice
            for name in names
            if name in ends or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.protect)
        }
