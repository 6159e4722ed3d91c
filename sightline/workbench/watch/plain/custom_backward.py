"""Backward passes that users write: each `autograd.Function` of a loss's graph against its own finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.autograd_graph import iter_nodes
from sightline.layers.surrogates import find_surrogates
from sightline.workbench.check.checks.layers import layer_gradient
from sightline.workbench.watch.loop import Found

_MAX_CLASSES, _NUM_DRAWS = 4, 2
_STEPS = (1e-5, 1e-6)
_SMOOTH, _MAX_ERROR, _MIN_CHANGE = 1e-3, 1e-2, 1e-9


def judge_functions(value: Tensor, run: Callable[[], Any]) -> Iterator[Found]:
    """Yield the functions of the graph of `value` whose backward pass is not the derivative; `run` calls them again.

    Not judged: functions that are declared surrogates, that return their input (gradient reversal), that are constant
    in steps, or whose backward pass hands the gradient on as it is (straight-through). Where a function of each element
    is constant, as beyond a bound, a gradient leads back into its range, and is not judged either.
    """
    declared = find_surrogates([value])
    for kind in _list_classes(value)[:_MAX_CLASSES]:
        if kind.__name__ in declared or kind.__qualname__ in declared:
            continue
        with suppress(Exception):  # a function that float64, or a call outside of its layer, does not suit
            with _first_call(kind) as calls:
                run()
            error = _find_error(kind.apply, calls[0]) if calls else None
            if error is not None:
                yield layer_gradient.with_fault(
                    f"the backward pass of '{kind.__name__}' is not the derivative of its forward pass",
                    severity="warning",
                    causes=("model.numerics", "loss.inplace"),
                    measured=f"{error[0]:.4g} along a line on which finite differences give {error[1]:.4g}, in float64",
                    expected="the same number",
                    action="correct backward(), with torch.autograd.gradcheck; declare an intended surrogate by "
                    "@sightline.surrogate_gradient",
                )


def _list_classes(value: Tensor) -> list[Any]:
    kinds = (getattr(node, "_forward_cls", None) for node in iter_nodes([value.grad_fn]))
    return [kind for kind in dict.fromkeys(kinds) if kind is not None]


@contextmanager
def _first_call(kind: Any) -> Iterator[list[tuple[Any, ...]]]:
    """Context that collects copies of the arguments of the calls of an autograd function."""
    calls: list[tuple[Any, ...]] = []
    original, is_own = kind.apply, "apply" in vars(kind)

    def apply(*args: Any) -> Any:
        calls.append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args))
        return original(*args)

    kind.apply = staticmethod(apply)
    try:
        yield calls
    finally:
        if is_own:
            kind.apply = original
        else:
            del kind.apply


def _find_error(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[float, float] | None:
    """Return the slope that backward gives, and that of finite differences, if they differ in all draws."""
    generator = torch.Generator().manual_seed(0)
    doubled = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    places = [place for place, a in enumerate(doubled) if isinstance(a, Tensor) and a.is_floating_point()]
    output = function(*doubled)
    if not isinstance(output, Tensor) or any(
        output.shape == doubled[place].shape and torch.equal(output, doubled[place]) for place in places
    ):
        return None

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    errors: dict[int, list[tuple[float, float]]] = {place: [] for place in places}
    for _ in range(_NUM_DRAWS):
        ways = draw(output)
        leaves = [a.clone().requires_grad_() if place in places else a for place, a in enumerate(doubled)]
        gradients = torch.autograd.grad(
            (function(*leaves) * ways).sum(), [leaves[place] for place in places], allow_unused=True
        )
        for place, gradient in zip(places, gradients, strict=True):
            line = _follow_moving(function, doubled, place, draw(doubled[place]))
            slopes = [_measure_slope(function, doubled, place, line * step, ways) / step for step in _STEPS]
            if abs(slopes[0]) < _MIN_CHANGE or (gradient is not None and torch.equal(gradient, ways)):
                return None  # constant in steps, or straight-through
            if gradient is None or abs(slopes[0] - slopes[1]) > _SMOOTH * abs(slopes[0]):
                continue
            slope = float((gradient * line).sum())
            if abs(slope - slopes[0]) > _MAX_ERROR * max(abs(slope), abs(slopes[0])):
                errors[place].append((slope, slopes[0]))
    return next((found[0] for found in errors.values() if len(found) == _NUM_DRAWS), None)


def _follow_moving(function: Callable[..., Any], args: list[Any], place: int, line: Tensor) -> Tensor:
    """Return a line without the elements at which an output of the same shape stays the same."""
    ends = [function(*[a + step * line if at == place else a for at, a in enumerate(args)]) for step in (0.0, *_STEPS)]
    if ends[0].shape != line.shape:
        return line
    return line * ((ends[1] != ends[0]) | (ends[2] != ends[0]))


def _measure_slope(function: Callable[..., Any], args: list[Any], place: int, step: Tensor, ways: Tensor) -> float:
    high, low = (
        function(*[a + sign * step if at == place else a for at, a in enumerate(args)]) for sign in (1.0, -1.0)
    )
    return float(((high - low) * ways).sum()) / 2
