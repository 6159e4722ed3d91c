"""Where tensors come from: which module calls, inputs and joins a tensor was made of, through any functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.pytree import tree_leaves

__all__ = ["FunctionRecorder", "Sources", "TensorProvenance"]

Sources = dict[int, tuple[str, ...]]
"""The nodes that a tensor comes from, and for each the functions on the way that a reader would name."""

_MOST_NAMED = 3
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
"""Functions that make one tensor of several; the word or sign for each, or nothing where its own name is."""
_NAMED = frozenset(
    "max amax min amin mean sum softmax log_softmax relu leaky_relu gelu silu elu tanh sigmoid normalize topk "
    "interpolate dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool1d "
    "adaptive_avg_pool1d adaptive_max_pool2d adaptive_avg_pool2d segment_reduce scatter_reduce cumsum norm".split()
)
"""Functions of one tensor that are named beside an arrow; reshapes, casts and the like are not."""


class TensorProvenance:
    """The sources of every tensor that lives. `join(name, operands)` makes a node and returns its number.

    A tensor that comes out of a kernel outside of torch is found through the autograd graph where it needs a gradient.
    """

    def __init__(self, join: Callable[[str, list[tuple[Tensor, Sources]]], int]) -> None:
        self._sources: Any = WeakTensorKeyDictionary()
        self._of_gradient: dict[Any, Sources] = {}
        self._join = join

    def get_sources(self, tensor: Tensor) -> Sources:
        """The sources of a tensor; empty for parameters, constants and what torch did not see being made."""
        known = self._sources.get(tensor)
        if known is not None:
            return dict(known)
        return self._of_history(tensor.grad_fn)

    def set(self, tensor: Tensor, sources: Sources) -> None:
        self._sources[tensor] = sources
        if tensor.grad_fn is not None:
            self._of_gradient[tensor.grad_fn] = sources

    def passed(self, name: str, operands: list[Tensor], results: list[Tensor]) -> None:
        """A function made `results` of `operands`."""
        given = [(tensor, sources) for tensor in operands if tensor.numel() and (sources := self.get_sources(tensor))]
        if not given or not results:
            return
        merged = _merged([sources for _, sources in given])
        joined = _JOINS.get(name)
        if joined is not None and len({frozenset(sources) for _, sources in given}) > 1:
            merged = {self._join(joined or name, given): ()}
        elif name in _NAMED:
            merged = {source: _extended(words, name) for source, words in merged.items()}
        for tensor in results:
            self.set(tensor, merged)

    def _of_history(self, node: Any) -> Sources:
        found: list[Sources] = []
        waiting, visited = [node], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node in self._of_gradient:
                found.append(self._of_gradient[node])
            else:
                waiting += [before for before, _ in node.next_functions]
        return _merged(found)


class FunctionRecorder(TorchFunctionMode):
    """Reports to a `Flow` every function of torch that is called from Python while `is_on()`."""

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
            self._flow.passed(name.strip("_"), operands, results)
        return result


def _merged(parts: list[Sources]) -> Sources:
    merged: Sources = {}
    for part in parts:
        for source, words in part.items():
            merged[source] = tuple(dict.fromkeys((*merged.get(source, ()), *words)))[-_MOST_NAMED:]
    return merged


def _extended(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*words, name)))[-_MOST_NAMED:]
