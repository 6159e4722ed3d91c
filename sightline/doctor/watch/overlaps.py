"""Overlaps of boxes in the graph of a loss: two negative extents, of boxes that do not meet, make a positive area."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sightline.doctor.autograd_graph import get_node_name, skip_shape_operations
from sightline.doctor.rules import find_by
from sightline.doctor.rules.loss_graph import graph_slip
from sightline.doctor.watch.loop import Found, Hook, Loop, Monitor
from sightline.doctor.watch.loss_graph import LossGraph, get_axis, get_saved, list_parents
from sightline.instrument import watch_gradient

_PARTS = frozenset(("Unbind", "Split", "SplitWithSizes"))
_NUM_GRAPHS, _MAX_NODES = 3, 300
"""Graphs of losses that `watch` reads for overlaps, and the nodes of each: overlaps stand near its end."""


class OverlapMonitor(Monitor):
    """Products of extents in the first losses; their gradients are read in the backward pass of the loop."""

    def __init__(self) -> None:
        self._num_graphs = 0
        self._counts: list[tuple[Tensor, int]] = []

    def before_backward_measured(self, loop: Loop, root: Tensor) -> None:
        self._counts.clear()
        if self._num_graphs < _NUM_GRAPHS and root.grad_fn is not None:
            self._num_graphs += 1
            for node, is_apart in list_products(LossGraph(root.grad_fn, _MAX_NODES)):
                self._follow(loop, node, is_apart)

    def _follow(self, loop: Loop, node: Any, is_apart: Tensor) -> None:
        def receive(_: Any, gradients: tuple[Tensor | None, ...]) -> None:
            if gradients[0] is not None:
                self._counts.append((_count(gradients[0], is_apart), is_apart.numel()))

        watch_gradient(node, Hook(loop, receive, what="overlaps of boxes"))

    def after_backward_measured(self, loop: Loop) -> Iterator[Found]:
        for count, size in self._counts:

            def judge(value: float, size: int = size) -> Iterator[Found]:
                if value:
                    yield from find_by(graph_slip, slip="boxes apart", numbers={"number": int(value), "size": size})

            yield from loop.reader.read(count, judge)
        self._counts.clear()


def list_products(graph: LossGraph) -> Iterator[tuple[Any, Tensor]]:
    """Iterate over the products of extents in a graph, each with True where an even number of them is below zero.

    An extent is a minimum of two tensors minus a maximum of two, as the overlap of two boxes along an axis. One that is
    clamped is none.
    """
    for node in graph.nodes:
        name, edges = get_node_name(node), node.next_functions
        if name not in ("Mul", "Prod") or not all(_is_extent(parent) for parent, _ in edges):
            continue
        if name == "Mul" and edges[0] != edges[1]:
            yield node, (get_saved(node, "self") < 0) & (get_saved(node, "other") < 0)
        elif name == "Prod" and (dim := get_saved(node, "dim")) is not None:
            extents = get_saved(node, "self")
            num_below = (extents < 0).sum(get_axis(dim, extents.ndim), keepdim=get_saved(node, "keepdim"))
            yield node, (num_below > 0) & (num_below % 2 == 0)


def _is_extent(node: Any) -> bool:
    sides = list_parents(difference) if get_node_name(difference := _skip_parts(node)) == "Sub" else ()
    ends = [*map(_skip_parts, sides)]
    if [*map(get_node_name, ends)] != ["Minimum", "Maximum"]:
        return False
    right, left = ({edge for edge in end.next_functions if edge[0] is not None} for end in ends)
    return not right & left  # of the same tensors it is a distance, below zero


def _skip_parts(node: Any) -> Any:
    """Return the first node that changes values, past those that take columns apart."""
    while get_node_name(node := skip_shape_operations(node)) in _PARTS:
        node = node.next_functions[0][0]
    return node


def _count(gradient: Tensor, is_apart: Tensor) -> Tensor:
    return ((gradient != 0) & is_apart).sum()
