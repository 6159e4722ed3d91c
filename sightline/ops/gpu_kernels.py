"""GPU kernels in Triton, compiled at their first launch; nothing is imported, and no compiler needed, before it.

A kernel is a function of pointers and numbers in Triton's language, `tl`. Each product is rounded before it is added
(`enable_fp_fusion=False`), so that the bits are those of the plain form.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, update_wrapper
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor


class _Language:
    """Stand-in for `triton.language`, which a kernel gets when it is compiled."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("triton.language"), name)


tl: Any = _Language()


class GpuKernel:
    """Kernel that Triton compiles at its first launch, once for each combination of types and constants."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._jitted: Any = None
        update_wrapper(cast(Any, self), function)

    @property
    def jitted(self) -> Any:
        """The function in Triton's form (cached). Kernels that it calls by name are in that form, too."""
        if self._jitted is None:
            triton = importlib.import_module("triton")
            plain: Any = self.function
            inner = {
                name: value.jitted
                for name in plain.__code__.co_names
                if isinstance(value := plain.__globals__.get(name), GpuKernel)
            }
            language = {"tl": importlib.import_module("triton.language")}
            function = FunctionType(plain.__code__, plain.__globals__ | language | inner, plain.__name__)
            update_wrapper(function, plain)
            self._jitted = triton.jit(function)
        return self._jitted

    def launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Run a program for every place of the grid, on the device of the tensors; without any place, nothing."""
        if all(grid):
            with torch.cuda.device_of(self._find_first(arguments)):  # else Triton takes the current one
                self.jitted[grid](*arguments, **constants, enable_fp_fusion=False)

    def _find_first(self, arguments: Sequence[Any]) -> Tensor:
        """Return the first tensor. Raises ValueError for tensors of several devices."""
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        devices = {str(tensor.device): None for tensor in tensors}
        if len(devices) > 1:
            name = self.function.__name__.strip("_")
            raise ValueError(f"{name}: found tensors on {' and '.join(devices)}; move all of them to one device")
        return tensors[0]


def gpu_kernel(function: Callable[..., Any]) -> Any:
    """Decorate a kernel; its parameters annotated as `tl.constexpr` are known when it is compiled."""
    return GpuKernel(function)


@cache
def has_triton() -> bool:
    """Return True if Triton is installed; PyTorch for CUDA brings it on Linux."""
    return importlib.util.find_spec("triton") is not None


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()
