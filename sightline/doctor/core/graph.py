"""The last operation that made a tensor, by the autograd graph: what values it can give at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["hidden_outputs", "last_operation", "output_range"]

_MOST_STEPS = 64
_SHAPES = frozenset(
    "View UnsafeView ReshapeAlias Permute Transpose T Unsqueeze Squeeze Clone ToCopy Slice Select Expand Alias "
    "Contiguous AsStrided Narrow Flip MoveDim Index".split()
)
"""Operations that move values and leave them what they are."""
_INF = math.inf
_RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, _INF),
    "Threshold": (0.0, _INF),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
    "LogSoftmax": (-_INF, 0.0),
    "LogSigmoid": (-_INF, 0.0),
    "Softplus": (0.0, _INF),
    "Exp": (0.0, _INF),
    "Abs": (0.0, _INF),
    "Gelu": (-0.17, _INF),
    "Silu": (-0.2785, _INF),
    "Elu": (-1.0, _INF),
}


def last_operation(tensor: Tensor) -> str:
    """Its name, such as `Relu` or `Convolution`, behind all that only moves values; empty for what has no history."""
    return _name(_last_node(tensor))


def output_range(operation: str) -> tuple[float, float]:
    """The values that an operation can give; all of them where nothing else is known."""
    return _RANGES.get(operation, (-_INF, _INF))


def hidden_outputs(outputs: Mapping[str, Any]) -> frozenset[str]:
    """The names of outputs that another output is computed from, such as the features that logits are made of."""
    ends = {name: _last_node(value) for name, value in outputs.items() if isinstance(value, Tensor)}
    before = {name: _nodes_before(node) for name, node in ends.items()}
    return frozenset(
        name for name, node in ends.items() if node is not None and any(node in nodes for nodes in before.values())
    )


def _nodes_before(node: Any) -> set[Any]:
    found: set[Any] = set()
    waiting = [] if node is None else [node]
    while waiting:
        new = {each for each, _ in waiting.pop().next_functions if each is not None} - found
        found |= new
        waiting += new
    return found


def _last_node(tensor: Tensor) -> Any:
    node = tensor.grad_fn
    for _ in range(_MOST_STEPS):
        if node is None or _name(node) not in _SHAPES or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return node


def _name(node: Any) -> str:
    """`SafeSoftmaxBackward0` and the like without what torch adds."""
    if node is None:
        return ""
    plain = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
    return plain.lstrip("_").removeprefix("Safe")
