"""Autograd graph of a tensor: its nodes, the last operation that changed values, and the range of these."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

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
    return get_node_name(last_node(tensor))


def hidden_outputs(outputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of outputs from which other outputs are computed, such as features before logits."""
    last_nodes = {name: last_node(value) for name, value in outputs.items() if isinstance(value, Tensor)}
    ancestors = {name: {*iter_nodes([node])} - {node} for name, node in last_nodes.items()}
    return frozenset(
        name
        for name, node in last_nodes.items()
        if node is not None and any(node in nodes for nodes in ancestors.values())
    )


def iter_nodes(roots: Iterable[Any], *, until: Iterable[Any] = ()) -> Iterator[Any]:
    """Iterate over the nodes of an autograd graph from some on, breadth first, without those of `until`.

    None, as tensors without history have it, is skipped.
    """
    skipped = {None, *until}
    waiting = deque(root for root in dict.fromkeys(roots) if root not in skipped)
    known = skipped.union(waiting)
    while waiting:
        node = waiting.popleft()
        yield node
        for parent, _ in node.next_functions:
            if parent not in known:
                known.add(parent)
                waiting.append(parent)


def last_node(tensor: Tensor) -> Any:
    """Return the node of the last operation that changed values; None for a tensor without history."""
    return skip_shape_operations(tensor.grad_fn)


def skip_shape_operations(node: Any) -> Any:
    """Return the first node, from one of the autograd graph on, that changes values."""
    for _ in range(_MAX_STEPS):
        if node is None or get_node_name(node) not in _SHAPE_OPERATIONS or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return node


def get_node_name(node: Any) -> str:
    """Return a node's name without torch's additions: `SafeSoftmaxBackward0` becomes `Softmax`."""
    if node is None:
        return ""
    plain = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
    return plain.lstrip("_").removeprefix("Safe")
