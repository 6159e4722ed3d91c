"""GPU kernels in Triton, compiled at their first launch; nothing is imported, and no compiler needed, before it.

A kernel is a function of pointers and numbers in Triton's language, `tl`. Each product is rounded before it is added
(`enable_fp_fusion=False`), so that the bits are those of the plain form. The type of a computation is that of what a
pointer points to, so that one kernel takes float32 and float64.
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


_MOST_PROGRAMS = 2**31 - 1
"""Programs of a launch along its first axis; the others have room for 65,535, and are not used."""


class GpuKernel:
    """Kernel that Triton compiles at its first launch, once for each combination of types and constants.

    Parameters that are annotated as `tl.constexpr` are constants, those with a type are numbers, the others pointers.
    Numbers vary with the sizes of clouds: none of their values is compiled for, as Triton does for 1 and multiples of
    16. Pointers are compiled for their alignment.
    """

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
            self._jitted = triton.jit(function, do_not_specialize=self.numbers)
        return self._jitted

    @property
    def numbers(self) -> list[str]:
        """Names of the parameters that are numbers, in a type that the kernel states."""
        return [name for name, kind in self.function.__annotations__.items() if "constexpr" not in str(kind)]

    def launch(self, num_programs: int, *arguments: Any, **constants: Any) -> None:
        """Run programs 0 .. num_programs - 1 on the device of the tensors; without any, nothing.

        Raises ValueError for more than a GPU can number, and for tensors of several devices. Programs have one number,
        from which a kernel takes cloud, block and channels apart.
        """
        if num_programs > _MOST_PROGRAMS:
            name = self.function.__name__.strip("_")
            raise ValueError(
                f"{name}: {num_programs} programs are needed, and a launch has at most {_MOST_PROGRAMS}; give fewer "
                "clouds or points at a time"
            )
        if num_programs:
            with torch.cuda.device_of(self._find_first(arguments)):  # else Triton takes the current one
                self.jitted[(num_programs,)](*arguments, **constants, enable_fp_fusion=False)

    def _find_first(self, arguments: Sequence[Any]) -> Tensor:
        """Return the first tensor. Raises ValueError for tensors of several devices."""
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        devices = {str(tensor.device): None for tensor in tensors}
        if len(devices) > 1:
            name = self.function.__name__.strip("_")
            raise ValueError(f"{name}: found tensors on {' and '.join(devices)}; move all of them to one device")
        return tensors[0]


def gpu_kernel(function: Callable[..., Any]) -> Any:
    """Decorate a kernel, as `GpuKernel` describes it."""
    return GpuKernel(function)


@gpu_kernel
def as_type(number, dtype):  # type: ignore[no-untyped-def]
    """Round a number to the type of a computation."""
    return tl.full((), number, dtype)


@gpu_kernel
def divide_exactly(part, total):  # type: ignore[no-untyped-def]
    """Divide, rounded to nearest, in both types."""
    return part / total if part.dtype == tl.float64 else tl.div_rn(part, total)


@gpu_kernel
def clamp_index(index, count):  # type: ignore[no-untyped-def]
    """Move an index outside of 0 .. count - 1 to the nearest inside; the check of values names it when it is read."""
    return tl.minimum(tl.maximum(index, 0), count - 1)


@cache
def has_triton() -> bool:
    """Return True if Triton is installed; PyTorch for CUDA brings it on Linux."""
    return importlib.util.find_spec("triton") is not None


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()
