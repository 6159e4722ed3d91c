"""Base class of losses: a sum over items and their count; the engine divides once, over the whole step."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sightline.contract.errors import CountError

TEACHER_PREFIX = "teacher_"
"""Beginning of the keys of a teacher's outputs."""
_FORMATS = frozenset({torch.float32, torch.float64})
"""Dtypes of parameters; lower formats come from autocast, which handles them itself."""


class Loss(nn.Module, ABC):
    """Loss term: a sum over counted items (`forward`) and their number (`count`).

    `count` names batch keys, and keys that the task computes before the forward pass (such as `target` of boxes), so
    that a whole step can be counted first.

    `forward` names these keys and model outputs and returns a scalar SUM over the counted items; `count` returns a
    scalar >= 0, the number (or summed weight) that the sum is divided by after adding over micro-batches and processes.
    Parameters (`nn.Parameter`) of a loss are trained with the model's.
    """

    assigner: ClassVar[str | None] = None
    """Assigner that provides the loss's targets; arguments that both name must be equal. None for any."""

    def __init__(self) -> None:  # the registry reads signatures; that of nn.Module would take anything
        super().__init__()

    @abstractmethod
    def count(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the number of counted items, or their summed weight, as a scalar ()."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum of the loss over the counted items, as a scalar ()."""


def bad_count_error(name: str, count: Tensor | float) -> CountError:
    """Make the error of a loss whose count (a scalar) is negative or not finite."""
    return CountError(
        f"losses.{name}: its count is {float(count):g}, a finite number of at least 0 is needed: the loss's sum is "
        "divided by it; mend what 'count' returns (a difference, 0/0, a number format that is too small)"
    )


def teacher_keys(loss: type[Loss]) -> set[str]:
    """Return the teacher keys that a class of losses reads, in its count and in its sum."""
    names = (name for function in (loss.count, loss.forward) for name in inspect.signature(function).parameters)
    return {name for name in names if name.startswith(TEACHER_PREFIX)}


def learns(loss: nn.Module) -> bool:
    """Return True if a loss has parameters that require a gradient."""
    return any(parameter.requires_grad for parameter in loss.parameters())


def cast_forward(loss: Loss) -> Callable[..., Tensor]:
    """Return the forward of a loss (scalar result, shape ()), with its parameters cast to its inputs' dtype and device.

    Training gives them both alike. Code that repeats a step in float64 or on another device has no copy of the losses.
    """
    if not learns(loss):
        return loss.forward

    @wraps(loss.forward)
    def forward(**inputs: Any) -> Tensor:
        state = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
        float_inputs = [value for value in inputs.values() if isinstance(value, Tensor) and value.dtype in _FORMATS]
        formats = {value.dtype for value in float_inputs}
        cast = {
            name: tensor.to(float_inputs[0].device, *formats if tensor.dtype in _FORMATS - formats else ())
            for name, tensor in state.items()
            if len(formats) == 1
        }
        if all(cast[name] is state[name] for name in cast):
            return loss.forward(**inputs)
        return torch.func.functional_call(loss, cast, (), inputs)

    return forward
