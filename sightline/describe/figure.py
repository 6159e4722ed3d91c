"""Figure of a trace: module calls as boxes or as frames around others, and arrows between boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightline.describe.trace import Edge, Node, Shape, Trace

_MAX_BOXES = 24
"""Maximum number of boxes of a drawing without a given depth."""

_MAX_SHAPES = 2


@dataclass(frozen=True)
class FigureBox:
    """Box of the figure: a call, an input, a join or an output; `frames` are the calls around it, outermost first.

    It represents `times` equal calls in a row, the last with the path `last_path`. `parameters` and `macs` are those of
    everything inside one of them, for one batch.
    """

    node: Node
    frames: tuple[int, ...]
    parameters: int
    macs: int
    outputs: tuple[Shape, ...]
    times: int = 1
    last_path: str = ""


@dataclass(frozen=True)
class Arrow:
    """Arrow between two boxes (indices into `Figure.boxes`): shapes at the target, and functions passed."""

    source: int
    target: int
    shapes: tuple[Shape, ...]
    through: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """Figure: boxes in order of execution, arrows between them, and calls drawn as frames (by index in the trace)."""

    boxes: tuple[FigureBox, ...]
    arrows: tuple[Arrow, ...]
    frames: dict[int, Node]


def build_figure(trace: Trace, *, depth: int | None = None) -> Figure:
    """Build the figure of a trace, with calls down to `depth` (1: those of the model's own forward).

    Without `depth`, calls are expanded level by level while there are few boxes. Calls that readers regard as one step
    stay closed: those with one inner call, or with a single inner call that multiplies. Equal calls in a row, each with
    only the previous one as input, are one box.
    """
    tree = _Tree(trace)
    opened = tree.expand_to_depth(depth) if depth is not None else tree.expand_automatically()
    indices, boxes = tree.boxes(opened)
    shown = {index: number for number, index in enumerate(indices)}
    edges: dict[tuple[int, int], list[Edge]] = {}
    for edge in trace.edges:
        source, target = tree.source_box(edge, opened, shown), tree.target_box(edge, opened, shown)
        if source is not None and target is not None and source < target:
            edges.setdefault((source, target), []).append(edge)
    arrows = [_make_arrow(source, target, box_edges) for (source, target), box_edges in edges.items()]
    folded_boxes, folded_arrows = _merge_equal_boxes(boxes, arrows)
    used = {frame for box in folded_boxes for frame in box.frames}
    return Figure(tuple(folded_boxes), tuple(folded_arrows), {index: trace.nodes[index] for index in sorted(used)})


def _make_arrow(source: int, target: int, edges: list[Edge]) -> Arrow:
    """Make the arrow of these edges, from those into their first target; without indices if there are values."""
    first = [edge for edge in edges if edge.target == edges[0].target]
    shown = [edge for edge in first if edge.is_real] or first
    shapes = tuple(dict.fromkeys(edge.shape for edge in shown))
    return Arrow(source, target, shapes[:_MAX_SHAPES], shown[0].through)


class _Tree:
    """Tree of the calls of a trace."""

    def __init__(self, trace: Trace) -> None:
        self.nodes = trace.nodes
        self.children: list[list[int]] = [[] for _ in self.nodes]
        self.parameters = [node.parameters for node in self.nodes]
        self.macs = [node.macs for node in self.nodes]
        self.layers = [int(node.kind == "call" and node.macs > 0) for node in self.nodes]
        for index in reversed(range(len(self.nodes))):
            parent = self.nodes[index].parent
            if parent is None:
                continue
            if not self.nodes[index].is_transparent:
                self.children[parent].insert(0, index)
            for totals in (self.parameters, self.macs, self.layers):
                totals[parent] += totals[index]
        self.roots = [index for index, node in enumerate(self.nodes) if node.parent is None]

    def expand_to_depth(self, depth: int) -> set[int]:
        return {i for i, node in enumerate(self.nodes) if node.depth < depth and self._has_calls(i)}

    def expand_automatically(self) -> set[int]:
        opened = {index for index in self.roots if self._has_calls(index)}
        while True:
            level = {
                child
                for index in opened
                for child in self.children[index]
                if child not in opened and self.layers[child] > 1 and self._is_worth_opening(child)
            }
            if not level or len(self.visible(opened | level)) > _MAX_BOXES:
                return opened
            opened |= level

    def visible(self, opened: set[int]) -> list[int]:
        """List the nodes that are boxes, in order."""

        def walk(index: int) -> list[int]:
            if index not in opened:
                return [index]
            return [inner for child in self.children[index] for inner in walk(child)]

        return [inner for root in self.roots for inner in walk(root)]

    def boxes(self, opened: set[int]) -> tuple[list[int], list[FigureBox]]:
        indices = self.visible(opened)
        boxes = [
            FigureBox(
                self.nodes[index],
                tuple(frame for frame in self._parents(index) if self.nodes[frame].parent is not None),
                self.parameters[index],
                self.macs[index],
                tuple(shape for _, shape in self.nodes[index].outputs),
            )
            for index in indices
        ]
        return indices, boxes

    def source_box(self, edge: Edge, opened: set[int], shown: dict[int, int]) -> int | None:
        """Find the source box of an edge; for a tensor passed through an expanded call, the last box in it."""
        index: int = edge.source
        while index in opened:
            if not self.children[index]:
                return None
            index = self.children[index][-1]
        return self._box(index, shown)

    def target_box(self, edge: Edge, opened: set[int], shown: dict[int, int]) -> int | None:
        """Find the target box of an edge; None for an expanded call, whose inner boxes have their own arrows."""
        return None if edge.target in opened else self._box(edge.target, shown)

    def _box(self, index: int | None, shown: dict[int, int]) -> int | None:
        while index is not None and index not in shown:
            index = self.nodes[index].parent
        return None if index is None else shown[index]

    def _parents(self, index: int) -> list[int]:
        parents: list[int] = []
        parent = self.nodes[index].parent
        while parent is not None:
            parents.insert(0, parent)
            parent = self.nodes[parent].parent
        return parents

    def _is_worth_opening(self, index: int) -> bool:
        """Return True for several inner calls, or for any if this is its caller's only call."""
        parent = self.nodes[index].parent
        is_only_one = parent is not None and len(self._calls(parent)) == 1
        return len(self._calls(index)) >= (1 if is_only_one else 2)

    def _has_calls(self, index: int) -> bool:
        return bool(self._calls(index))

    def _calls(self, index: int) -> list[int]:
        return [child for child in self.children[index] if self.nodes[child].kind == "call"]


def _merge_equal_boxes(boxes: Sequence[FigureBox], arrows: Sequence[Arrow]) -> tuple[list[FigureBox], list[Arrow]]:
    """Merge runs of equal boxes into one box each."""
    leaving: dict[int, list[int]] = {}
    entering: dict[int, list[int]] = {}
    for arrow in arrows:
        leaving.setdefault(arrow.source, []).append(arrow.target)
        entering.setdefault(arrow.target, []).append(arrow.source)
    merged: list[FigureBox] = []
    merged_index: list[int] = []
    for index, box in enumerate(boxes):
        is_chained = index > 0 and leaving.get(index - 1) == [index] and entering.get(index) == [index - 1]
        if is_chained and _is_alike(boxes[index - 1], box):
            merged[-1] = replace(merged[-1], times=merged[-1].times + 1, last_path=box.node.path)
        else:
            merged.append(box)
        merged_index.append(len(merged) - 1)
    merged_arrows = [replace(a, source=merged_index[a.source], target=merged_index[a.target]) for a in arrows]
    return merged, [arrow for arrow in merged_arrows if arrow.source != arrow.target]


def _is_alike(first: FigureBox, second: FigureBox) -> bool:
    return first.node.kind == "call" and _appearance(first) == _appearance(second)


def _appearance(box: FigureBox) -> tuple[object, ...]:
    node = box.node
    shapes = tuple(shape for _, shape in node.inputs)
    return (node.kind, node.class_name, shapes, box.outputs, box.parameters, box.macs, box.frames, node.shared)
