"""Operators: one operation in up to three implementations, between which torch dispatches by device.

The plain form in torch is the definition: it runs anywhere. A kernel for CPUs (numba) or GPUs (Triton) takes its place
where the library is installed and the kernel takes the numbers. Checks of values run with the operation, so that a
compiled graph holds one node for both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library, fallthrough_kernel, infer_schema, register_fake, register_vmap

from sightline.ops.gpu_kernels import has_triton
from sightline.ops.numba_kernels import can_use_numba, report_missing_numba
from sightline.ops.waits import is_recording, pending_checks

P = ParamSpec("P")
R = TypeVar("R")

OPERATORS: dict[str, Operator[..., Any]] = {}
"""Operators by name, those of imported modules."""

_SPACE = "sightline"
_LIBRARY = Library(_SPACE, "FRAGMENT")  # not `custom_op`, which imports torch's compiler and costs twice as much a call
_LOGGER = logging.getLogger("sightline.ops")
_REPORTED: set[tuple[str, str]] = set()
"""Operators that ran in their plain form on a GPU, and why."""


class Operator(Generic[P, R]):
    """Operator `sightline::<name>`, called like its plain form: by position, with tensors and numbers.

    `plain` is the definition, `cpu` and `gpu` the kernels, None without one; `launches` the kernels that a call runs on
    CUDA by Triton. Graphs that are recorded (`torch.export`, TorchScript) get the operations of `graph`, by default the
    plain form's, since they must not depend on this package. Where a gradient or a tangent of the result is wanted, the
    plain form runs, unless `gradient` states a backward pass and no transform of `torch.func` takes it apart. `vmap`
    calls the operator for each of its slices, or once for all that are `stacked`.
    """

    def __init__(
        self,
        plain: Callable[P, R],
        *,
        launches: int | None,
        check: Callable[..., None] | None,
        extra_dtype: torch.dtype | None,
        differentiable: bool,
        stacked: bool,
    ) -> None:
        self.name = plain.__name__.strip("_")
        self.plain: Callable[P, R] = plain
        self.graph: Callable[P, R] = plain
        self.cpu: Callable[..., R] | None = None
        self.gpu: Callable[..., R] | None = None
        self.launches, self.differentiable = launches, differentiable
        self._extra_dtype = extra_dtype
        self._takes: Callable[..., bool] = lambda *arguments: True
        self._check = check or (lambda *arguments: None)
        self._stacked = stacked
        self._tracked: Callable[..., R] | None = None
        plain.__annotations__ = get_type_hints(plain)
        _LIBRARY.define(self.name + infer_schema(plain, mutates_args=()), tags=[torch.Tag.pt2_compliant_tag])
        self.definition: Any = getattr(getattr(torch.ops, _SPACE), self.name).default
        """The operator as torch knows it, `torch.ops.sightline.<name>.default`."""
        _LIBRARY.impl(self.name, self._run_plain, "CompositeExplicitAutograd")
        if differentiable:
            _LIBRARY.impl(self.name, self._run_autograd, "Autograd", with_keyset=True)
        else:
            _LIBRARY.impl(self.name, fallthrough_kernel, "Autograd")
        register_vmap(f"{_SPACE}::{self.name}", self._run_vmap, lib=_LIBRARY)
        OPERATORS[self.name] = self

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """Compute by the implementation of the tensors' device."""
        if is_recording():
            return self.graph(*arguments, **named)
        result: R = self.definition(*arguments, **named)
        return result

    # --- what torch calls ---

    def _run_plain(self, *arguments: Any, **named: Any) -> R:
        self._check(*arguments, **named)
        plain: Callable[..., R] = self.plain
        return plain(*arguments, **named)

    def _run_autograd(self, keyset: Any, *arguments: Any) -> R:
        has_tangents = forward_ad._current_level >= 0
        if not (has_tangents or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments))):
            return self._run_below(keyset, arguments)
        if self._tracked is None or has_tangents or torch._C._functorch.maybe_current_level() is not None:
            return self._run_plain(*arguments)
        return self._tracked(keyset, *arguments)

    def _run_below(self, keyset: Any, arguments: Sequence[Any]) -> R:
        """Compute by the implementation of the tensors' device, without a gradient."""
        with torch._C._AutoDispatchBelowAutograd():
            result: R = self.definition.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
        return result

    def _run_vmap(self, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        """Compute for each slice of the tensors that have a dimension `in_dims`."""
        size, moved = info.batch_size, list(arguments)
        for argument, dim in enumerate(in_dims):
            if isinstance(dim, int):
                moved[argument] = arguments[argument].movedim(dim, 0)
            elif isinstance(arguments[argument], Tensor):
                moved[argument] = arguments[argument].expand(size, *arguments[argument].shape)
        results = self._run_slices(size, moved) if size else self._make_empty(moved)
        return (results[0], 0) if len(results) == 1 else (tuple(results), (0,) * len(results))

    def _run_slices(self, size: int, moved: Sequence[Any]) -> list[Tensor]:
        if self._stacked:
            merged = (value.flatten(0, 1) if isinstance(value, Tensor) else value for value in moved)
            of_all = _as_tuple(self.definition(*merged))
            return [result.unflatten(0, (size, len(result) // size)) for result in of_all]
        slices = ([_take(value, number) for value in moved] for number in range(size))
        return [*map(torch.stack, zip(*(_as_tuple(self.definition(*arguments)) for arguments in slices), strict=True))]

    def _make_empty(self, moved: Sequence[Any]) -> list[Tensor]:
        """Return the results of no slices, whose shapes are those of tensors without values."""
        slices = (v.new_empty(v.shape[1:], device="meta") if isinstance(v, Tensor) else v for v in moved)
        device = next(value.device for value in moved if isinstance(value, Tensor))
        shown = _as_tuple(self.definition(*slices))
        return [torch.empty((0, *result.shape), dtype=result.dtype, device=device) for result in shown]

    # --- what an operator's file states ---

    def fake(self, function: Callable[..., R]) -> Callable[..., R]:
        """Decorate the function that makes results of the right shapes without computing them."""
        register_fake(f"{_SPACE}::{self.name}", function, lib=_LIBRARY)
        return function

    def cpu_kernel(self, function: Callable[..., R]) -> Callable[..., R]:
        """Decorate the kernel of CPUs, for tensors of float32, or all of float64; of indices, also for such alone."""

        def run(*arguments: Any) -> R:
            arguments = _detach(arguments)
            self._check(*arguments)
            floats = [value for value in arguments if isinstance(value, Tensor) and value.is_floating_point()]
            is_taken = can_use_numba(*floats, extra_dtype=self._extra_dtype, of_indices=not self.differentiable)
            if not is_taken:
                report_missing_numba()
            form: Callable[..., R] = function if is_taken else self.plain
            return form(*arguments)

        self.cpu = function
        _LIBRARY.impl(self.name, run, "CPU")
        return function

    def gpu_kernel(self, takes: Callable[..., bool] | None = None) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Decorate the launches of the GPU's kernel, for tensors all in float32 or float64 if `takes` is True."""

        def decorate(function: Callable[..., R]) -> Callable[..., R]:
            def run(*arguments: Any) -> R:
                arguments = _detach(arguments)
                with pending_checks():
                    self._check(*arguments)
                    form: Callable[..., R] = function if self._fits_gpu(arguments) else self.plain
                    return form(*arguments)

            self.gpu, self._takes = function, takes or self._takes
            _LIBRARY.impl(self.name, run, "CUDA")
            return function

        return decorate

    def takes(self, *arguments: Any) -> bool:
        """Return True if the GPU's kernel takes these arguments: one float format, of the form that it states."""
        dtypes = {value.dtype for value in arguments if isinstance(value, Tensor) and value.is_floating_point()}
        is_taken = any(dtypes - {self._extra_dtype} <= {kind} for kind in (torch.float32, torch.float64))
        return is_taken and self._takes(*arguments)

    def _fits_gpu(self, arguments: Sequence[Any]) -> bool:
        """Return True if the GPU's kernel can run; else log why the plain form does, once for each reason."""
        is_taken = self.takes(*arguments)
        if is_taken and has_triton():
            return True
        if is_taken:
            reason = "Triton is not installed; pip install 'sightline[ops]'"
        elif self._takes(*arguments):
            dtypes = {str(value.dtype) for value in arguments if isinstance(value, Tensor)}
            reason = f"Its kernel does not take {', '.join(sorted(dtypes))}"
        else:
            reason = "Its kernel does not take such sizes"
        if (self.name, reason) not in _REPORTED:
            _REPORTED.add((self.name, reason))
            sizes = ", ".join(str(tuple(value.shape) if isinstance(value, Tensor) else value) for value in arguments)
            message = "sightline: %s(%s) runs on the GPU in torch: slower, with the same results. %s"
            _LOGGER.warning(message, self.name, sizes, reason)
        return False

    def gradient(self, setup: Callable[..., None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate the backward pass; `setup(ctx, inputs, output)` saves what it needs."""

        def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
            run_below = self._run_below

            class Tracked(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
                    output = run_below(keyset, arguments)
                    setup(ctx, arguments, output)
                    return output

                @staticmethod
                def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
                    return None, *_as_tuple(backward(ctx, *gradients))

            Tracked.__name__ = f"sightline_{self.name}"
            self._tracked = Tracked.apply
            return backward

        return decorate


def _detach(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments without their gradients, which reach the kernels of results that have none."""
    if not torch._C._any_requires_grad(*arguments):
        return arguments
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)


def _take(value: Any, number: int) -> Any:
    return value[number] if isinstance(value, Tensor) else value


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def operator(
    *,
    launches: int | None = None,
    check: Callable[..., None] | None = None,
    extra_dtype: torch.dtype | None = None,
    differentiable: bool = True,
    stacked: bool = False,
) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Decorate the plain form of an operator; its name, less underscores, is the operator's.

    `check` is called with the arguments before each computation, on values: it raises, or defers to a step's end.
    The kernels widen tensors of `extra_dtype`, which may be mixed with float32. Results without a gradient, such as
    indices, are not `differentiable`. If dimension 0 of all tensors, given and returned, are samples that do not depend
    on one another, the operator is `stacked`.
    """
    return lambda plain: Operator(
        plain,
        launches=launches,
        check=check,
        extra_dtype=extra_dtype,
        differentiable=differentiable,
        stacked=stacked,
    )
