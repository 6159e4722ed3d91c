"""Trace of a forward pass: calls of modules in order, with shapes, parameters, cost, and the calls that feed each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.weak import WeakTensorKeyDictionary

from sightline.compression.parametrised import weight_sizes
from sightline.contract.errors import RunError
from sightline.contract.pytree import tree_leaves
from sightline.instrument import Inputs, ModuleCall, copy_module, record
from sightline.instrument.random_state import preserve_random_state
from sightline.ops.operator import OPERATORS

Shape = tuple[int, ...]
BATCH = -1
"""Index of the model's inputs among the sources of a call."""


@dataclass
class Node:
    """Call of a module; `path` is empty for the model itself.

    `call` counts the calls of this module from 1, `depth` the calls around this one. `parameters` counts those of the
    module itself, and of modules in it that are never called, that no earlier row counted; `shared` those that one did.
    `macs` are the multiply-accumulates of the traced batch that ran in this call and in no call inside it.
    `sources` are the calls whose results it reads.
    """

    path: str
    class_name: str
    call: int
    depth: int
    parent: int | None
    inputs: list[tuple[str, Shape]]
    sources: frozenset[int] = frozenset()
    outputs: list[tuple[str, Shape]] = field(default_factory=list)
    parameters: int = 0
    shared: int = 0
    macs: int = 0
    is_transparent: bool = False


@dataclass(frozen=True)
class Trace:
    """Trace of one forward pass of `num_samples` samples: calls in order, and the calls that made the outputs."""

    calls: tuple[Node, ...]
    output_sources: frozenset[int]
    num_samples: int
    parameters: int
    trainable: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates (MACs) of the whole batch."""
        return sum(call.macs for call in self.calls)


def trace(model: nn.Module, forward: Callable[[nn.Module], object], *, num_samples: int) -> Trace:
    """Trace `forward(copy of the model)` in the model's current mode; functions outside the model are left out.

    The model, its buffers and the global random states do not change. Raises RunError if the forward pass fails, naming
    the module and the shapes of its inputs.
    """
    copied = copy_module(model)
    tracer = _Tracer(copied)
    hooks = {"enter": tracer.enter, "leave": tracer.leave, "functions": tracer.note_function}
    with preserve_all_rng_states(), tracer.flops, record(copied, **hooks):  # type: ignore[arg-type]
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
        calls=tuple(tracer.nodes),
        output_sources=tracer.output_sources,
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


def _count_pairs(values: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor, *_: Any, **__: Any) -> int:
    """Count the operations of a sparse convolution: two for each pair of rows, and of channels."""
    return 2 * int((table >= 0).sum()) * weight.shape[1] * weight.shape[2]


_count_pairs._get_raw = True  # type: ignore[attr-defined]  # torch's own mark of a count that takes tensors, not shapes


def _count_attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Count the operations of fused attention on a CPU, for which torch has no rule."""
    return int(sdpa_flop_count(query, key, value))


class _Tracer:
    """Hooks on the modules of a model, torch's counter of operations, and the sources of tensors between calls."""

    def __init__(self, model: nn.Module) -> None:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        sparse = OPERATORS.get("convolve_voxels")  # of a model that has imported it
        of_voxels = {} if sparse is None else {sparse.definition.overloadpacket: _count_pairs}
        self.flops = FlopCounterMode(display=False, custom_mapping={fused: _count_attention, **of_voxels})
        self.nodes: list[Node] = []
        self.output_sources = frozenset[int]()
        self._num_flops = 0
        self._at = dict(model.named_modules())
        self._modules: dict[int, nn.Module] = {}
        self._stack: list[int] = []
        self._has_inner: set[int] = set()
        self._sources: Any = WeakTensorKeyDictionary()

    def enter(self, call: ModuleCall, module: nn.Module, inputs: Inputs) -> None:
        self._count_flops()
        args, kwargs = inputs
        tensors = list(tree_leaves({**{str(index): value for index, value in enumerate(args)}, **kwargs}))
        if not self._stack:
            for _, tensor in tensors:
                self._sources[tensor] = frozenset({BATCH})
        node = Node(
            call.path,
            call.class_name,
            call.call_index + 1,
            depth=len(self._stack),
            parent=self._stack[-1] if self._stack else None,
            inputs=_list_shapes(tensors),
            sources=self._join_sources(tensors),
        )
        self._modules[len(self.nodes)] = module
        self._stack.append(len(self.nodes))
        self.nodes.append(node)

    def leave(self, call: ModuleCall, module: nn.Module, inputs: Inputs, outputs: Any) -> None:
        self._count_flops()
        index = self._stack.pop()
        node, tensors = self.nodes[index], list(tree_leaves(outputs))
        node.outputs = _list_shapes(tensors)
        input_ids = {id(tensor) for _, tensor in tree_leaves(inputs)}
        node.is_transparent = index not in self._has_inner and all(id(tensor) in input_ids for _, tensor in tensors)
        if not node.is_transparent:
            if node.parent is not None:
                self._has_inner.add(node.parent)
            for _, tensor in tensors:
                sources = self._join_sources([("", tensor)]) if index in self._has_inner else frozenset[int]()
                inner = frozenset(source for source in sources if self._is_inside(source, index))
                self._sources[tensor] = inner if inner and inner == sources else inner | {index}
        if node.parent is None:
            self.output_sources |= self._join_sources(tensors)

    def note_function(self, call: ModuleCall | None, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note the sources of the results of a torch function that is called from Python inside the model."""
        if call is None:
            return
        is_assignment = getattr(function, "__name__", "") == "__setitem__"
        results = list(tree_leaves(args[0] if is_assignment else result))
        sources = self._join_sources(list(tree_leaves((args, kwargs)))) if results else frozenset[int]()
        if sources:
            for _, tensor in results:
                self._sources[tensor] = sources

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

    def _count_flops(self) -> None:
        """Count what was computed since the last call of this method for the innermost module."""
        total = self.flops.get_total_flops()
        if self._stack:
            self.nodes[self._stack[-1]].macs += (total - self._num_flops) // 2
        self._num_flops = total

    def _join_sources(self, tensors: list[tuple[str, Tensor]]) -> frozenset[int]:
        """Join the sources of tensors; parameters, constants and tensors that were made unseen have none."""
        return frozenset[int]().union(*(self._sources.get(tensor, ()) for _, tensor in tensors))

    def _is_inside(self, index: int | None, outer: int) -> bool:
        while index is not None and index not in (outer, BATCH):
            index = self.nodes[index].parent
        return index == outer


def _list_shapes(tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Shape]]:
    return [(name, tuple(tensor.shape)) for name, tensor in tensors]
