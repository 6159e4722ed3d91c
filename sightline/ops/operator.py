"""Operators: one operation in up to three implementations, between which torch dispatches by device.

The plain form in torch is the definition: it runs anywhere. A kernel for CPUs (numba) or GPUs (Triton) takes its place
where the library is installed and the kernel takes the numbers. Checks of values run with the operation, so that a
compiled graph holds one node for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.library import custom_op, infer_schema

from sightline.ops.gpu_kernels import has_triton
from sightline.ops.numba_kernels import can_use_numba
from sightline.ops.waits import is_recording, is_transformed

P = ParamSpec("P")
R = TypeVar("R")

OPERATORS: dict[str, Operator[..., Any]] = {}
"""Operators by name, those of imported modules."""


class Operator(Generic[P, R]):
    """Operator `sightline::<name>`, called like its plain form: by position, with tensors and numbers.

    `plain` is the definition, `cpu` and `gpu` the kernels, None without one; `launches` the kernels that a call runs on
    CUDA by Triton. Graphs that are recorded (`torch.export`, TorchScript) get the operations of `graph`, by default the
    plain form's, since they must not depend on this package. Transforms of `torch.func` get the plain form.
    """

    def __init__(
        self,
        plain: Callable[P, R],
        *,
        launches: int | None,
        check: Callable[..., None] | None,
        extra_dtype: torch.dtype | None,
    ) -> None:
        self.name = plain.__name__.strip("_")
        self.plain: Callable[P, R] = plain
        self.graph: Callable[P, R] = plain
        self.cpu: Callable[..., R] | None = None
        self.gpu: Callable[..., R] | None = None
        self.launches = launches
        self._extra_dtype = extra_dtype
        self._takes: Callable[..., bool] = lambda *arguments: True
        self._check = check or (lambda *arguments: None)
        plain.__annotations__ = get_type_hints(plain)
        schema = infer_schema(plain, mutates_args=())
        self.definition = custom_op(f"sightline::{self.name}", self._run_plain, mutates_args=(), schema=schema)
        OPERATORS[self.name] = self

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """Compute by the implementation of the tensors' device."""
        if is_recording():
            return self.graph(*arguments, **named)
        if is_transformed():
            return self._run_plain(*arguments, **named)
        result: R = self.definition(*arguments, **named)
        return result

    def _run_plain(self, *arguments: Any, **named: Any) -> R:
        self._check(*arguments, **named)
        plain: Callable[..., R] = self.plain
        return plain(*arguments, **named)

    def fake(self, function: Callable[..., R]) -> Callable[..., R]:
        """Decorate the function that makes results of the right shapes without computing them."""
        self.definition.register_fake(function)
        return function

    def cpu_kernel(self, function: Callable[..., R]) -> Callable[..., R]:
        """Decorate the kernel of CPUs, for tensors of float32, or all of float64."""

        def run(*arguments: Any) -> R:
            self._check(*arguments)
            floats = [value for value in arguments if isinstance(value, Tensor) and value.is_floating_point()]
            is_taken = can_use_numba(*floats, extra_dtype=self._extra_dtype)
            form: Callable[..., R] = function if is_taken else self.plain
            return form(*arguments)

        self.cpu = function
        self.definition.register_kernel("cpu")(run)
        return function

    def gpu_kernel(self, takes: Callable[..., bool] | None = None) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorate the launches of the GPU's kernel, for tensors all in float32 or float64 if `takes` is True."""

        def decorate(function: Callable[..., R]) -> Callable[..., R]:
            def run(*arguments: Any) -> R:
                self._check(*arguments)
                form: Callable[..., R] = function if self.takes(*arguments) and has_triton() else self.plain
                return form(*arguments)

            self.gpu, self._takes = function, takes or self._takes
            self.definition.register_kernel("cuda")(run)
            return function

        return decorate

    def takes(self, *arguments: Any) -> bool:
        """Return True if the GPU's kernel takes these arguments: one float format, of the form that it states."""
        dtypes = {value.dtype for value in arguments if isinstance(value, Tensor) and value.is_floating_point()}
        is_taken = any(dtypes - {self._extra_dtype} <= {kind} for kind in (torch.float32, torch.float64))
        return is_taken and self._takes(*arguments)

    def gradient(self, setup: Callable[..., None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the backward pass; `setup(ctx, inputs, output)` saves what it needs."""

        def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
            self.definition.register_autograd(backward, setup_context=setup)
            return backward

        return decorate


def operator(
    *,
    launches: int | None = None,
    check: Callable[..., None] | None = None,
    extra_dtype: torch.dtype | None = None,
) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Decorate the plain form of an operator; its name, less underscores, is the operator's.

    `check` is called with the arguments before each computation, on values: it raises, or defers to a step's end.
    The kernels widen tensors of `extra_dtype`, which may be mixed with float32.
    """
    return lambda plain: Operator(plain, launches=launches, check=check, extra_dtype=extra_dtype)
