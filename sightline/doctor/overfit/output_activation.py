"""How a model's outputs end: the last operation that bounds them, and the same model without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["OutputActivation", "WithoutActivation", "ending_of"]

_PASSING = frozenset(
    "View Reshape UnsafeView Permute Transpose T Squeeze Unsqueeze Expand Clone ToCopy Alias Slice Select AsStrided "
    "Copy Unfold SwapAxes".split()
)
"""Operations that move numbers and do not change them, as autograd names them."""

_RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "LogSoftmax": (-math.inf, 0.0),
    "Softplus": (0.0, math.inf),
    "Hardtanh": (-1.0, 1.0),
    "Clamp": (-math.inf, math.inf),
    "ClampMin": (-math.inf, math.inf),
    "ClampMax": (-math.inf, math.inf),
}
"""The bounds of an operation's results; those of a clamp are read off the outputs themselves."""

_FUNCTIONS = {
    **dict.fromkeys(("relu", "relu_"), "Relu"),
    **dict.fromkeys(("sigmoid", "sigmoid_"), "Sigmoid"),
    **dict.fromkeys(("tanh", "tanh_"), "Tanh"),
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "softplus": "Softplus",
    **dict.fromkeys(("hardtanh", "hardtanh_", "relu6"), "Hardtanh"),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), "Clamp"),
    **dict.fromkeys(("clamp_min", "clamp_min_"), "ClampMin"),
    **dict.fromkeys(("clamp_max", "clamp_max_"), "ClampMax"),
}


@dataclass(frozen=True)
class OutputActivation:
    """An output's last operation: its name, the range of its results, which of all such calls it is, and its module.

    `zeros` is the share of outputs that are exactly zero, `low` and `high` their range in this pass.
    """

    output: str
    operation: str
    bounds: tuple[float, float]
    call: int
    layer: str | None
    zeros: float
    low: float
    high: float


class _Calls(TorchFunctionMode):
    """Counts calls of bounding functions and keeps what each gave, with the module that it ran in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[tuple[Any, str]] = []
        self._stack: list[str] = []
        self.handles = []
        for name, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(lambda *_, at=name: self._stack.append(at)))
            self.handles.append(module.register_forward_hook(self._leave))

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in _FUNCTIONS and isinstance(result, Tensor) and self._stack:
            self.nodes.append((result.grad_fn, self._stack[-1]))
        return result


class WithoutActivation:
    """A model whose bounding function of a certain number gives what it was given; stands in for the model."""

    def __init__(self, model: nn.Module, call: int) -> None:
        self._model = model
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Without(self._call):
            return self._model(*args, **kwargs)


class _Without(TorchFunctionMode):
    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call
        self._seen = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _FUNCTIONS:
            self._seen += 1
            if self._seen - 1 == self._call:
                return args[0] if args else (kwargs or {})["input"]
        return function(*args, **(kwargs or {}))


def ending_of(model: nn.Module, forward: Any, read: tuple[str, ...]) -> OutputActivation | None:
    """The first of the outputs `read` that ends in a bounding operation; `forward(model)` gives the outputs.

    The model is a copy to be used up; gradients must be on.
    """
    calls = _Calls(model)
    try:
        with calls:
            outputs: Mapping[str, Tensor] = forward(model)
    finally:
        for handle in calls.handles:
            handle.remove()
    for name in read:
        node = _last_change(outputs[name].grad_fn)
        kind = _kind(node)
        if kind not in _RANGES:
            continue
        place = next((i for i in reversed(range(len(calls.nodes))) if calls.nodes[i][0] == node), None)
        if place is None:
            continue
        value = outputs[name].detach()
        low, high = float(value.min()), float(value.max())
        bounds = _RANGES[kind] if not kind.startswith("Clamp") else (low, high)
        zeros = float((value == 0).double().mean())
        return OutputActivation(name, kind.lower(), bounds, place, calls.nodes[place][1] or None, zeros, low, high)
    return None


def _last_change(node: Any) -> Any:
    """The operation that made an output's numbers, before those that only moved them."""
    while node is not None and _kind(node).removeprefix("Unsafe") in _PASSING and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _kind(node: Any) -> str:
    """`Relu` of `ReluBackward0`."""
    return "" if node is None else node.name().split("::")[-1].partition("Backward")[0].lstrip("_")
