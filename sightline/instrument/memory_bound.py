"""Bound on the memory of what is built: tensors that a machine cannot hold are refused before they are made."""

from __future__ import annotations

import math
import os
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.contract.errors import UserError


def measure_machine() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_EMPTY = ("empty", "zeros", "ones", "full", "rand", "randn")
_FACTORIES = {
    getattr(getattr(torch.ops.aten, name), "memory_format" if name == "empty" else "default") for name in _EMPTY
}
"""Operations that make a tensor of the size that is their first argument."""


class MemoryBound(TorchDispatchMode):
    """Context in which tensors of the CPU that are made of a size alone take `max_bytes` at most, while they live.

    All parameters are made so. What is made is the same as without the context. Raises UserError before a tensor that
    would be too much.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes, self._num_bytes = max_bytes, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in _FACTORIES or getattr(kwargs.get("device"), "type", "cpu") != "cpu":
            return function(*args, **kwargs)
        num_bytes = math.prod(map(int, args[0])) * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
        if self._num_bytes + num_bytes > self._max_bytes:
            raise UserError(
                f"its tensors would take {(self._num_bytes + num_bytes) / 1e9:,.3g} GB or more, this machine has "
                f"{self._max_bytes / 1e9:,.3g} GB of memory"
            )
        made: Tensor = function(*args, **kwargs)
        self._num_bytes += num_bytes
        weakref.finalize(made.untyped_storage(), self._forget, num_bytes)
        return made

    def _forget(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes
