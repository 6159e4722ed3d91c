"""Autograd graph of a tensor: its nodes, and the last operation that changed values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

_MAX_STEPS = 64
_SHAPE_OPERATIONS = frozenset(
    "View UnsafeView ReshapeAlias Permute Transpose T Unsqueeze Squeeze Clone ToCopy Slice Select Expand Alias "
    "Contiguous AsStrided Narrow Flip MoveDim Index".split()
)
"""Operations that move values without changing them."""


def last_operation(tensor: Tensor) -> str:
    """Return the name of the last operation that changed values, such as `Relu`; "" for a tensor without history."""
    return get_node_name(last_node(tensor))


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
