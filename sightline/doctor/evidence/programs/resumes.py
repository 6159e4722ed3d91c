"""Part of what was saved that a loop goes on without."""

from __future__ import annotations

from typing import NamedTuple


class Continued(NamedTuple):
    """Part of a kind (`optimizer`, `schedule`, `average`) that stands beside the weights, and that the loop lacks.

    `part` and `weights` are paths in the `source`; `size` counts the parameters with a state, the steps, or tensors.
    `optimizer` names the one that goes on with the settings of the saved one, at a `rate`.
    """

    kind: str
    part: str
    size: int
    source: str
    weights: str
    optimizer: str
    rate: float
