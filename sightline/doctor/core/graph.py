"""Last operation of a tensor in the autograd graph, and the range of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["hidden_outputs", "last_operation", "output_range"]

_MAX_STEPS = 64
_SHAPE_OPERATIONS = frozenset(
    "View UnsafeView ReshapeAlias Permute Transpose T Unsqueeze Squeeze Clone ToCopy Slice Select Expand Alias "
    "Contiguous AsStrided Narrow Flip MoveDim Index".split()
)
"""Operations that move values without changing them."""
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
    """Return the name of the last operation that changed values, such as `Relu`; "" for a tensor without history."""
    return _get_name(_find_last_node(tensor))


def output_range(operation: str) -> tuple[float, float]:
    """Return the minimum and maximum of an operation's output; infinite if unknown."""
    return _RANGES.get(operation, (-_INF, _INF))


def hidden_outputs(outputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of outputs from which other outputs are computed, such as features before logits."""
    last_nodes = {name: _find_last_node(value) for name, value in outputs.items() if isinstance(value, Tensor)}
    ancestors = {name: _find_ancestors(node) for name, node in last_nodes.items()}
    return frozenset(
        name
        for name, node in last_nodes.items()
        if node is not None and any(node in nodes for nodes in ancestors.values())
    )


def _find_ancestors(node: Any) -> set[Any]:
    ancestors: set[Any] = set()
    waiting = [] if node is None else [node]
    while waiting:
        new = {parent for parent, _ in waiting.pop().next_functions if parent is not None} - ancestors
        ancestors |= new
        waiting += new
    return ancestors


def _find_last_node(tensor: Tensor) -> Any:
    node = tensor.grad_fn
    for _ in range(_MAX_STEPS):
        if node is None or _get_name(node) not in _SHAPE_OPERATIONS or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return node


def _get_name(node: Any) -> str:
    """Return a node's name without torch's additions: `SafeSoftmaxBackward0` becomes `Softmax`."""
    if node is None:
        return ""
    plain = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
    return plain.lstrip("_").removeprefix("Safe")
