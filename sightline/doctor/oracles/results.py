"""What the layer oracles found of one kind of layer, or of one loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DRIFT", "EXACT_GRADIENT", "FORWARD", "GRADIENT", "OracleResult", "class_location"]

FORWARD = 1e-10
"""By how much a float64 output may miss its NumPy reference, relative to the largest value of it, or to 1."""
GRADIENT = 1e-3
"""By how much a gradient may miss the finite difference, relative to its size; whole models stay below 1e-4."""
EXACT_GRADIENT = 1e-5
"""The same for losses, and for layers of torch's types on inputs away from every edge: these stay below 1e-7."""
DRIFT = 1e-5
"""By how much the middle value of a layer's float32 output may miss float64, relative to the largest value."""


@dataclass(frozen=True)
class OracleResult:
    """A kind of layer, or a loss: what it was compared with, and by how much it is off; None where nothing was.

    `kind` is its type and arguments, `place` the first module of it (or the loss), `count` how many there are. `slope`
    and `second` are of first and second derivatives, `weakest` is the tensor whose gradient is off most, and
    `tolerance` by how much it may be; `drift_limit` is how much of float32 rounding explains. `declared` names
    surrogate gradients, which are not compared.
    """

    kind: str
    place: str
    count: int = 1
    is_loss: bool = False
    forward: float | None = None
    gradient_error: float | None = None
    second: float | None = None
    drift: float | None = None
    weakest: str = ""
    tolerance: float = GRADIENT
    drift_limit: float = DRIFT
    declared: tuple[str, ...] = ()
    note: str = ""
    file: tuple[str | None, int | None] = (None, None)

    @property
    def verdict(self) -> str:
        """`wrong`, or `declared` where the gradient is a surrogate, or how much of it was compared: `checked`,
        `half-checked` (gradients alone), `not checked`."""
        if self.is_wrong_forward or self.is_wrong_backward or self.drifts:
            return "wrong"
        if self.declared:
            return "declared"
        if self.gradient_error is None and self.forward is None:
            return "not checked"
        return "half-checked" if self.forward is None else "checked"

    @property
    def is_wrong_forward(self) -> bool:
        return self.forward is not None and not self.forward <= FORWARD

    @property
    def is_wrong_backward(self) -> bool:
        return any(value is not None and not value <= self.tolerance for value in (self.gradient_error, self.second))

    @property
    def drifts(self) -> bool:
        return self.drift is not None and not self.drift <= self.drift_limit


def class_location(cls: Any) -> tuple[str | None, int | None]:
    """Where a class that is not of an installed library is written."""
    try:
        file, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None
    return (file, line) if file and "site-packages" not in Path(file).parts else (None, None)
