"""Tensor provenance: the module calls, inputs and joins that produced each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.pytree import tree_leaves

__all__ = ["FunctionRecorder", "Sources", "TensorProvenance"]

Sources = dict[int, tuple[str, ...]]
"""Source nodes of a tensor, and for each the notable functions that were applied since."""

_MAX_NAMED = 3
_JOINS = {
    **dict.fromkeys(("cat", "concat", "concatenate", "hstack", "vstack"), "concat"),
    **dict.fromkeys(("add", "radd", "iadd"), "+"),
    **dict.fromkeys(("sub", "rsub", "isub", "subtract"), "−"),
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), "×"),
    **dict.fromkeys(("div", "rdiv", "truediv", "rtruediv", "divide"), "÷"),
    **dict.fromkeys(("matmul", "rmatmul", "mm", "bmm", "baddbmm", "einsum"), "matmul"),
    **dict.fromkeys(("stack", "maximum", "minimum", "where", "lerp"), ""),
    "scaled_dot_product_attention": "attention",
}
"""Functions that join several tensors, with their label; empty: the function's own name."""
_NAMED = frozenset(
    "max amax min amin mean sum softmax log_softmax relu leaky_relu gelu silu elu tanh sigmoid normalize topk "
    "interpolate dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool1d "
    "adaptive_avg_pool1d adaptive_max_pool2d adaptive_avg_pool2d segment_reduce scatter_reduce cumsum norm".split()
)
"""Functions of one tensor that are named at an arrow, unlike reshapes, casts and the like."""


class TensorProvenance:
    """Sources of all live tensors. `join(name, operands)` makes a node and returns its index.

    Results of kernels outside torch are traced through the autograd graph, if they require gradients.
    """

    def __init__(self, join: Callable[[str, list[tuple[Tensor, Sources]]], int]) -> None:
        self._sources: Any = WeakTensorKeyDictionary()
        self._by_gradient: dict[Any, Sources] = {}
        self._join = join

    def get_sources(self, tensor: Tensor) -> Sources:
        """Return the sources of a tensor; empty for parameters, constants and tensors that were made unseen."""
        sources = self._sources.get(tensor)
        if sources is not None:
            return dict(sources)
        return self._search_graph(tensor.grad_fn)

    def set(self, tensor: Tensor, sources: Sources) -> None:
        self._sources[tensor] = sources
        if tensor.grad_fn is not None:
            self._by_gradient[tensor.grad_fn] = sources

    def add_call(self, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        """Record that a function computed `results` from `operands`."""
        sourced = [(tensor, sources) for tensor in operands if tensor.numel() and (sources := self.get_sources(tensor))]
        if not sourced or not results:
            return
        merged = _merge_sources([sources for _, sources in sourced])
        joined = _JOINS.get(name)
        if joined is not None and len({frozenset(sources) for _, sources in sourced}) > 1:
            merged = {self._join(joined or name, sourced): ()}
        elif name in _NAMED:
            merged = {source: _append_function(functions, name) for source, functions in merged.items()}
        for tensor in results:
            self.set(tensor, merged)

    def _search_graph(self, node: Any) -> Sources:
        histories: list[Sources] = []
        waiting, visited = [node], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node in self._by_gradient:
                histories.append(self._by_gradient[node])
            else:
                waiting += [previous for previous, _ in node.next_functions]
        return _merge_sources(histories)


class FunctionRecorder(TorchFunctionMode):
    """Mode that reports every torch function called from Python while `is_on()` to a TensorProvenance."""

    def __init__(self, flow: TensorProvenance, is_on: Callable[[], bool]) -> None:
        super().__init__()
        self._flow = flow
        self._is_on = is_on

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not self._is_on():
            return result
        changed = args[0] if name == "__setitem__" else result
        results = [tensor for _, tensor in tree_leaves(changed)]
        if results:
            operands = [tensor for _, tensor in tree_leaves((args, kwargs or {}))]
            self._flow.add_call(name.strip("_"), operands, results)
        return result


def _merge_sources(parts: list[Sources]) -> Sources:
    merged: Sources = {}
    for part in parts:
        for source, functions in part.items():
            merged[source] = tuple(dict.fromkeys((*merged.get(source, ()), *functions)))[-_MAX_NAMED:]
    return merged


def _append_function(functions: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*functions, name)))[-_MAX_NAMED:]
