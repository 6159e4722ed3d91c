"""Trace of a forward pass: module calls in order, shapes, parameters, cost, and the flow of tensors.

Tensor provenance: the module calls, inputs and joins that produced each tensor.

Multiply-accumulates (MACs) of operators, from the shapes of their arguments.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.contract.errors import RunError
from sightline.contract.pytree import tree_leaves
from sightline.instrument import Inputs, ModuleCall, copy_module, record
from sightline.instrument.random_state import preserve_random_state
from sightline.parts.quantisation.parametrised import weight_sizes

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


def _merge_sources(parts: list[Sources]) -> Sources:
    merged: Sources = {}
    for part in parts:
        for source, functions in part.items():
            merged[source] = tuple(dict.fromkeys((*merged.get(source, ()), *functions)))[-_MAX_NAMED:]
    return merged


def _append_function(functions: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*functions, name)))[-_MAX_NAMED:]


Rule = Callable[[Sequence[Any], Any], int]
"""Rule that computes multiply-accumulates from an operator's arguments and result."""


def count_macs(operator: Any, arguments: Sequence[Any], result: Any) -> int:
    """Count the multiply-accumulates of a call of an ATen operator (`torch.ops.aten.mm`); 0 if not counted.

    Counted are matrix products (einsum arrives as `bmm`, a linear layer as `addmm`), convolutions with groups and
    their transposes, and fused attention: two products of (L, E) with (E, S) and (L, S) with (S, V) per head. A bias,
    normalisation, pooling, activations and searches among points are not. Kernels outside torch (numba, NumPy, an
    extension) are no operators: of a custom autograd function only the matrix products by torch are counted.
    """
    rule = _RULES.get(getattr(operator, "overloadpacket", operator))
    return 0 if rule is None else rule(arguments, result)


def _product(first: int, second: int) -> Rule:
    """Make the rule of a product of two arguments, by index: entries of the first times columns of the second."""

    def rule(arguments: Sequence[Any], result: Any) -> int:
        left, right = arguments[first], arguments[second]
        return int(left.numel() * (right.shape[-1] if right.ndim > 1 else 1))

    return rule


def _convolution(arguments: Sequence[Any], result: Tensor) -> int:
    """Count a convolution: the weights of one filter per output entry or, if transposed, per input entry."""
    values, weight, is_transposed = arguments[0], arguments[1], bool(arguments[6])
    per_entry = math.prod(weight.shape[1:])  # the weight's second axis is channels / groups in both forms
    return int((values if is_transposed else result).numel() * per_entry)


def _attention(arguments: Sequence[Any], result: Any) -> int:
    """Count attention: products of (B, H, L, E) with (B, H, S, E), and of the weights with (B, H, S, V)."""
    query, key, value = arguments[:3]
    num_rows = math.prod(query.shape[:-1])
    return int(num_rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _linear(arguments: Sequence[Any], result: Tensor) -> int:
    return int(result.numel() * arguments[0].shape[-1])


_ATEN = torch.ops.aten
_RULES: dict[Any, Rule] = {
    **{operator: _product(0, 1) for operator in (_ATEN.mm, _ATEN.bmm, _ATEN.mv, _ATEN.dot, _ATEN.vdot)},
    **{
        operator: _product(1, 2)
        for operator in (_ATEN.addmm, _ATEN.baddbmm, _ATEN.addbmm, _ATEN.addmv, _ATEN._addmm_activation)
    },
    _ATEN.convolution: _convolution,
    _ATEN._convolution: _convolution,
    _ATEN.linear: _linear,
    **{
        operator: _attention
        for operator in (
            _ATEN._scaled_dot_product_flash_attention_for_cpu,
            _ATEN._scaled_dot_product_flash_attention,
            _ATEN._scaled_dot_product_efficient_attention,
            _ATEN._scaled_dot_product_cudnn_attention,
        )
    },
}


Shape = tuple[int, ...]
Kind = Literal["input", "call", "join", "output"]


@dataclass
class Node:
    """Node of a trace: an input, the call of a module, a function that joins several tensors, or an output.

    `path` is the module's, empty for the model itself; of an input or output it is the key, of a join the function.
    `call` counts the calls of this module from 1, `depth` the calls around this one. `parameters` counts those of the
    module itself, and of modules in it that are never called, that no earlier row counted; `shared` those that one did.
    `macs` are those of the traced batch that ran in this call and in no call inside it. `family` is the module of
    `torch.nn.modules` of the class: `linear`, `conv`, `batchnorm`; `module` for a user's own class.
    `defined_in` are the file and the line where the module's class begins; an empty text for one without a file.
    """

    kind: Kind
    path: str
    class_name: str = ""
    family: str = ""
    call: int = 1
    depth: int = 0
    parent: int | None = None
    inputs: list[tuple[str, Shape]] = field(default_factory=list)
    outputs: list[tuple[str, Shape]] = field(default_factory=list)
    parameters: int = 0
    shared: int = 0
    macs: int = 0
    is_transparent: bool = False
    defined_in: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Edge:
    """Edge of a trace: source and target (indices into `Trace.nodes`), shape at the target, functions passed.

    `is_real` is False for integers and booleans, such as indices and masks.
    """

    source: int
    target: int
    shape: Shape
    through: tuple[str, ...]
    is_real: bool = True


@dataclass(frozen=True)
class Trace:
    """Trace of one forward pass of `num_samples` samples, with nodes in order of execution."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    num_samples: int
    parameters: int
    trainable: int

    @property
    def calls(self) -> list[Node]:
        """Module calls, in order."""
        return [node for node in self.nodes if node.kind == "call"]

    @property
    def macs(self) -> int:
        """Multiply-accumulates (MACs) of the whole batch."""
        return sum(node.macs for node in self.nodes)


def trace(model: nn.Module, forward: Callable[[nn.Module], object], *, num_samples: int) -> Trace:
    """Trace `forward(copy of the model)` in the model's current mode; functions outside the model are left out.

    The model, its buffers and the global random states do not change. Raises RunError if the forward pass fails, naming
    the module and the shapes of its inputs.
    """
    copied = copy_module(model)
    tracer = _Tracer(copied)
    with preserve_all_rng_states(), tracer.watching():
        try:
            forward(copied)
        except Exception as error:
            raise RunError(
                f"{tracer.describe_location()}: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
    assert tracer.nodes, "the model was not called"
    tracer.count_parameters()
    sizes = weight_sizes(model)
    return Trace(
        nodes=tuple(tracer.nodes),
        edges=tuple(dict.fromkeys(tracer.edges)),
        num_samples=num_samples,
        parameters=sum(sizes.values()),
        trainable=sum(size for parameter, size in sizes.items() if parameter.requires_grad),
    )


@contextmanager
def preserve_all_rng_states() -> Iterator[None]:
    """Context that restores the global random states of Python, NumPy and torch, including CUDA devices."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with preserve_random_state(), torch.random.fork_rng(devices):
        yield


class _Tracer:
    """Tracer: hooks on the modules of a model, and modes that record functions and operators between them."""

    def __init__(self, model: nn.Module) -> None:
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self._at = dict(model.named_modules())
        self._modules: dict[int, nn.Module] = {}
        self._stack: list[int] = []
        self._has_inner: set[int] = set()
        self._flow = TensorProvenance(self._join)

    def watching(self) -> AbstractContextManager[Any]:
        return record(
            self._at, enter=self._enter, leave=self._leave, functions=self._note_function, operators=self._count_macs
        )

    def describe_location(self) -> str:
        """Describe the module in which the forward pass failed, and its inputs."""
        if not self._stack:
            return "outside of the model"
        node = self.nodes[self._stack[-1]]
        path = node.path or "the model itself"
        shapes = ", ".join(f"{name} {shape}" for name, shape in node.inputs) or "no tensors"
        number = f", call {node.call}" if node.call > 1 else ""
        return f"the forward pass failed in {path} ({node.class_name}{number}), given {shapes}"

    def count_parameters(self) -> None:
        """Count every parameter at the first call of its module, or of the nearest parent that is called."""
        called = set(self._modules.values())
        owned: dict[nn.Module, list[nn.Parameter]] = {module: [] for module in self._at.values()}
        for path, module in self._at.items():
            owner, parent_path = module, path
            while owner not in called and parent_path:
                parent_path = parent_path.rpartition(".")[0]
                owner = self._at[parent_path]
            owned[owner] += [parameter for parameter in module._parameters.values() if parameter is not None]
        sizes, counted = weight_sizes(self._at[""]), set[nn.Parameter]()
        for index, module in self._modules.items():
            for parameter in dict.fromkeys(owned[module]):
                if parameter in counted:
                    self.nodes[index].shared += sizes[parameter]
                else:
                    self.nodes[index].parameters += sizes[parameter]
            counted.update(owned[module])

    def _enter(self, call: ModuleCall, module: nn.Module, inputs: Inputs) -> None:
        args, kwargs = inputs
        tensors = list(tree_leaves({**{str(index): value for index, value in enumerate(args)}, **kwargs}))
        if not self._stack:
            self._add_inputs(tensors)
        kind: Any = type(module)
        node = Node(
            "call",
            call.path,
            call.class_name,
            _family(module),
            call=call.call_index + 1,
            depth=len(self._stack),
            parent=self._stack[-1] if self._stack else None,
            inputs=[(name, tuple(tensor.shape)) for name, tensor in tensors],
            defined_in=source_location(kind),
        )
        index = self._add(node)
        self._modules[index] = module
        self._connect([tensor for _, tensor in tensors], index)
        self._stack.append(index)

    def _leave(self, call: ModuleCall, module: nn.Module, inputs: Inputs, outputs: Any) -> None:
        index = self._stack.pop()
        node = self.nodes[index]
        tensors = list(tree_leaves(outputs))
        node.outputs = [(name, tuple(tensor.shape)) for name, tensor in tensors]
        input_ids = {id(tensor) for _, tensor in tree_leaves(inputs)}
        node.is_transparent = index not in self._has_inner and all(id(tensor) in input_ids for _, tensor in tensors)
        if not node.is_transparent:
            if node.parent is not None:
                self._has_inner.add(node.parent)
            for _, tensor in tensors:
                self._flow.set(tensor, self._inner_sources(index, self._flow.get_sources(tensor)))
        if node.parent is None:
            for name, tensor in tensors:
                self._connect(
                    [tensor], self._add(Node("output", name or "output", inputs=[(name, tuple(tensor.shape))]))
                )

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _add_inputs(self, tensors: list[tuple[str, Tensor]]) -> None:
        for name, tensor in tensors:
            shape = tuple(tensor.shape)
            self._flow.set(tensor, {self._add(Node("input", name, outputs=[(name, shape)])): ()})

    def _note_function(self, call: ModuleCall | None, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note the sources of the results of a torch function that is called from Python inside the model."""
        name = getattr(function, "__name__", "")
        if call is None:
            return
        results = [tensor for _, tensor in tree_leaves(args[0] if name == "__setitem__" else result)]
        if results:
            operands = [tensor for _, tensor in tree_leaves((args, kwargs))]
            self._flow.add_call(name.strip("_"), operands, results)

    def _count_macs(self, call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        if call is not None:
            self.nodes[self._stack[-1]].macs += count_macs(operator, args, result)

    def _connect(self, tensors: list[Tensor], target: int) -> None:
        for tensor in tensors:
            for source, functions in self._flow.get_sources(tensor).items():
                self.edges.append(Edge(source, target, tuple(tensor.shape), functions, tensor.is_floating_point()))

    def _join(self, name: str, operands: list[tuple[Tensor, Sources]]) -> int:
        index = self._add(Node("join", name, depth=len(self._stack), parent=self._stack[-1]))
        self._connect([tensor for tensor, _ in operands], index)
        return index

    def _inner_sources(self, index: int, sources: Sources) -> Sources:
        """Return the sources of an output inside this call, and the call itself for tensors passed through."""
        if index not in self._has_inner:
            return {index: ()}
        inner = {source: functions for source, functions in sources.items() if self._is_inside(source, index)}
        return inner if len(inner) == len(sources) and inner else {**inner, index: ()}

    def _is_inside(self, index: int | None, outer: int) -> bool:
        while index is not None and index != outer:
            index = self.nodes[index].parent
        return index == outer


@functools.cache
def source_location(kind: Any) -> tuple[str, int]:
    """Return file and line of a class; an empty file name if it was defined interactively or compiled."""
    try:
        return str(inspect.getsourcefile(kind) or ""), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return "", 0


def _family(module: nn.Module) -> str:
    """Return the module of `torch.nn.modules` that defines the nearest base class."""
    bases = (base.__module__ for base in type(module).__mro__)
    return next(name for name in bases if name.startswith("torch.nn.")).rpartition(".")[2]
