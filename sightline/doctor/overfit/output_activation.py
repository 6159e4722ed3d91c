"""Output activation: the last operation that bounds a model's outputs, and the model without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["OutputActivation", "WithoutActivation", "find_output_activation"]

_COPYING = frozenset(
    "View Reshape UnsafeView Permute Transpose T Squeeze Unsqueeze Expand Clone ToCopy Alias Slice Select AsStrided "
    "Copy Unfold SwapAxes".split()
)
"""Operations that copy numbers without changing them, by autograd's names."""

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
"""Bounds of an operation's results; those of a clamp are taken from the outputs."""

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
    """Last operation of an output: its name, range, index among all bounding calls, and module.

    `zeros` is the share of outputs that are exactly zero, `low` and `high` are their range in this pass.
    """

    output: str
    operation: str
    bounds: tuple[float, float]
    call: int
    layer: str | None
    zeros: float
    low: float
    high: float


class _ActivationRecorder(TorchFunctionMode):
    """Mode that records the autograd node of each bounding function's result, and the module that called it."""

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
    """Replacement of a model in which the bounding function number `call` is the identity."""

    def __init__(self, model: nn.Module, call: int) -> None:
        self._model = model
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _SkipActivation(self._call):
            return self._model(*args, **kwargs)


class _SkipActivation(TorchFunctionMode):
    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call
        self._num_calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _FUNCTIONS:
            self._num_calls += 1
            if self._num_calls - 1 == self._call:
                return args[0] if args else (kwargs or {})["input"]
        return function(*args, **(kwargs or {}))


def find_output_activation(model: nn.Module, forward: Any, read: tuple[str, ...]) -> OutputActivation | None:
    """Find the first of the outputs `read` that ends in a bounding operation; `forward(model)` returns the outputs.

    The model must be a copy that may be changed; gradients must be enabled.
    """
    calls = _ActivationRecorder(model)
    try:
        with calls:
            outputs: Mapping[str, Tensor] = forward(model)
    finally:
        for handle in calls.handles:
            handle.remove()
    for name in read:
        node = _last_computing_node(outputs[name].grad_fn)
        kind = _kind(node)
        if kind not in _RANGES:
            continue
        index = next((i for i in reversed(range(len(calls.nodes))) if calls.nodes[i][0] == node), None)
        if index is None:
            continue
        value = outputs[name].detach()
        low, high = float(value.min()), float(value.max())
        bounds = _RANGES[kind] if not kind.startswith("Clamp") else (low, high)
        zeros = float((value == 0).double().mean())
        return OutputActivation(name, kind.lower(), bounds, index, calls.nodes[index][1] or None, zeros, low, high)
    return None


def _last_computing_node(node: Any) -> Any:
    """Return the operation that computed an output's numbers, before those that only copied them."""
    while node is not None and _kind(node).removeprefix("Unsafe") in _COPYING and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _kind(node: Any) -> str:
    """Return the operation's name, such as `Relu` for `ReluBackward0`."""
    return "" if node is None else node.name().split("::")[-1].partition("Backward")[0].lstrip("_")
