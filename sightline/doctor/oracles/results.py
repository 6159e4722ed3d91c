"""Result of the oracles for one kind of layer, or for one loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DRIFT", "EXACT_GRADIENT", "FORWARD", "GRADIENT", "OracleResult", "class_location"]

FORWARD = 1e-10
"""Maximum error of a float64 output against its NumPy reference, relative to the largest value or 1."""
GRADIENT = 1e-3
"""Maximum relative error of a gradient against finite differences; whole models stay below 1e-4."""
EXACT_GRADIENT = 1e-5
"""Maximum relative error of a gradient of losses, and of torch's layers on inputs away from edges (below 1e-7)."""
DRIFT = 1e-5
"""Maximum median error of a layer's float32 output against float64, relative to the largest value."""


@dataclass(frozen=True)
class OracleResult:
    """Errors of a kind of layer, or of a loss, against its oracles; None for what was not compared.

    `kind` is the type and arguments, `place` the first such module (or the loss), `count` the number of modules.
    `gradient_error` and `second` are errors of first and second derivatives, `weakest` is the tensor with the largest
    gradient error, and `tolerance` its limit; `drift_limit` is the float32 error that rounding explains. `declared`
    names surrogate gradients, which are not compared.
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
        """`wrong`, `declared` (a surrogate gradient), `checked`, `half-checked` (gradients only) or `not checked`."""
        if self.is_wrong_forward or self.is_wrong_backward or self.is_drifting:
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
    def is_drifting(self) -> bool:
        return self.drift is not None and not self.drift <= self.drift_limit


def class_location(cls: Any) -> tuple[str | None, int | None]:
    """Return the file and first line of a class; None for classes of installed libraries."""
    try:
        file, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return None, None
    return (file, line) if file and "site-packages" not in Path(file).parts else (None, None)
