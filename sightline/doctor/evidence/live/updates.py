"""Updates of a loop: those that are lost in rounding, never made, or made twice of the same gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rounded(NamedTuple):
    """Shares of the weights with a gradient that keep their bits, at the measured updates of a loop so far."""

    shares: list[float]
    optimizer: str
    dtype: torch.dtype
    rate: float


class Repeated(NamedTuple):
    """Backward passes before an update since the last one, and whether anything has written to its gradients."""

    optimizer: str
    num_updates: int
    num_backward: int
    is_written: bool
    has_gradients: bool


class Idle(NamedTuple):
    """Optimiser without an update, the parameters that it holds, all with gradients, and the updates of another."""

    optimizer: str
    names: list[str]
    num_updates: int
