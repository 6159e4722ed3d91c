"""What every loss is: a sum over what it counts, and that count; the engine divides once, over everything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["Loss"]


class Loss(nn.Module, ABC):
    """A loss term. `count` names batch keys alone, so that a whole step can be counted before its first forward pass.

    `forward` names batch keys and model outputs and returns a scalar SUM over the counted items; `count` returns a
    scalar >= 0, the number (or summed weight) that the sum is divided by after adding over micro-batches and processes.
    """

    assigner: ClassVar[str | None] = None
    """The one assigner whose targets it is a loss of; arguments that both name must be equal. None for any."""

    def __init__(self) -> None:  # the registry reads signatures; that of nn.Module would take anything
        super().__init__()

    @abstractmethod
    def count(self, *args: Any, **kwargs: Any) -> Tensor: ...

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor: ...
