"""What a drawing of a trace shows: which calls as boxes, which as frames around others, and the arrows between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightline.describe.trace import Edge, Node, Shape, Trace

__all__ = ["Arrow", "Figure", "FigureBox", "build_figure"]

_MOST_BOXES = 24
"""Boxes that still make one drawing, where the depth is not given."""

_MOST_SHAPES = 2


@dataclass(frozen=True)
class FigureBox:
    """One thing drawn: a call, an input, a join or an output; `frames` are the calls around it, outermost first.

    `times` is how many equal calls in a row it represents, `last_path` the path of the last of them. `parameters` and
    `macs` are those of everything inside, of one of them and of one batch.
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
    """Tensors from one box to another (places in `Figure.boxes`), as they arrive, and functions on the way."""

    source: int
    target: int
    shapes: tuple[Shape, ...]
    through: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """Boxes in the order of execution, the arrows between them, and the calls that are frames (places in a trace)."""

    boxes: tuple[FigureBox, ...]
    arrows: tuple[Arrow, ...]
    frames: dict[int, Node]


def build_figure(trace: Trace, *, depth: int | None = None) -> Figure:
    """What to draw of a trace: calls down to `depth` (1 is those that the model's own forward makes).

    Without `depth`, calls are opened level by level while the boxes stay few. What a reader takes for one step stays
    closed: a call around one other, and one in which a single call multiplies. Equal calls in a row, each fed by the
    one before alone, are one box.
    """
    tree = _Tree(trace)
    opened = tree.opened_to(depth) if depth is not None else tree.opened_by_itself()
    places, boxes = tree.boxes(opened)
    shown = {index: number for number, index in enumerate(places)}
    edges: dict[tuple[int, int], list[Edge]] = {}
    for edge in trace.edges:
        source, target = tree.source_box(edge, opened, shown), tree.target_box(edge, opened, shown)
        if source is not None and target is not None and source < target:
            edges.setdefault((source, target), []).append(edge)
    arrows = [_arrow(source, target, along) for (source, target), along in edges.items()]
    folded_boxes, folded_arrows = _folded(boxes, arrows)
    used = {frame for box in folded_boxes for frame in box.frames}
    return Figure(tuple(folded_boxes), tuple(folded_arrows), {index: trace.nodes[index] for index in sorted(used)})


def _arrow(source: int, target: int, edges: list[Edge]) -> Arrow:
    """The arrow for these edges: those into the first call that they reach, indices left out where there are values."""
    first = [edge for edge in edges if edge.target == edges[0].target]
    shown = [edge for edge in first if edge.is_real] or first
    shapes = tuple(dict.fromkeys(edge.shape for edge in shown))
    return Arrow(source, target, shapes[:_MOST_SHAPES], shown[0].through)


class _Tree:
    """A trace as a tree of calls."""

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

    def opened_to(self, depth: int) -> set[int]:
        return {i for i, node in enumerate(self.nodes) if node.depth < depth and self._has_calls(i)}

    def opened_by_itself(self) -> set[int]:
        opened = {index for index in self.roots if self._has_calls(index)}
        while True:
            level = {
                child
                for index in opened
                for child in self.children[index]
                if child not in opened and self.layers[child] > 1 and self._is_worth_opening(child)
            }
            if not level or len(self.visible(opened | level)) > _MOST_BOXES:
                return opened
            opened |= level

    def visible(self, opened: set[int]) -> list[int]:
        """The nodes that are boxes, in order."""

        def walk(index: int) -> list[int]:
            if index not in opened:
                return [index]
            return [inner for child in self.children[index] for inner in walk(child)]

        return [inner for root in self.roots for inner in walk(root)]

    def boxes(self, opened: set[int]) -> tuple[list[int], list[FigureBox]]:
        places = self.visible(opened)
        boxes = [
            FigureBox(
                self.nodes[index],
                tuple(frame for frame in self._around(index) if self.nodes[frame].parent is not None),
                self.parameters[index],
                self.macs[index],
                tuple(shape for _, shape in self.nodes[index].outputs),
            )
            for index in places
        ]
        return places, boxes

    def source_box(self, edge: Edge, opened: set[int], shown: dict[int, int]) -> int | None:
        """The box that an arrow leaves; of an open call through which a tensor merely passes, the last box in it."""
        index: int = edge.source
        while index in opened:
            if not self.children[index]:
                return None
            index = self.children[index][-1]
        return self._box(index, shown)

    def target_box(self, edge: Edge, opened: set[int], shown: dict[int, int]) -> int | None:
        """The box that an arrow enters; none for an open call, since the boxes inside it have arrows of their own."""
        return None if edge.target in opened else self._box(edge.target, shown)

    def _box(self, index: int | None, shown: dict[int, int]) -> int | None:
        while index is not None and index not in shown:
            index = self.nodes[index].parent
        return None if index is None else shown[index]

    def _around(self, index: int) -> list[int]:
        around: list[int] = []
        parent = self.nodes[index].parent
        while parent is not None:
            around.insert(0, parent)
            parent = self.nodes[parent].parent
        return around

    def _is_worth_opening(self, index: int) -> bool:
        """Several calls inside, or any where this one is all that its caller calls."""
        parent = self.nodes[index].parent
        is_only_one = parent is not None and len(self._calls(parent)) == 1
        return len(self._calls(index)) >= (1 if is_only_one else 2)

    def _has_calls(self, index: int) -> bool:
        return bool(self._calls(index))

    def _calls(self, index: int) -> list[int]:
        return [child for child in self.children[index] if self.nodes[child].kind == "call"]


def _folded(boxes: Sequence[FigureBox], arrows: Sequence[Arrow]) -> tuple[list[FigureBox], list[Arrow]]:
    """Runs of equal boxes as one each."""
    leaving: dict[int, list[int]] = {}
    entering: dict[int, list[int]] = {}
    for arrow in arrows:
        leaving.setdefault(arrow.source, []).append(arrow.target)
        entering.setdefault(arrow.target, []).append(arrow.source)
    kept: list[FigureBox] = []
    place_of: list[int] = []
    for place, box in enumerate(boxes):
        is_chained = place > 0 and leaving.get(place - 1) == [place] and entering.get(place) == [place - 1]
        if is_chained and _is_alike(boxes[place - 1], box):
            kept[-1] = replace(kept[-1], times=kept[-1].times + 1, last_path=box.node.path)
        else:
            kept.append(box)
        place_of.append(len(kept) - 1)
    moved = [replace(a, source=place_of[a.source], target=place_of[a.target]) for a in arrows]
    return kept, [arrow for arrow in moved if arrow.source != arrow.target]


def _is_alike(first: FigureBox, second: FigureBox) -> bool:
    return first.node.kind == "call" and _looks(first) == _looks(second)


def _looks(box: FigureBox) -> tuple[object, ...]:
    node = box.node
    shapes = tuple(shape for _, shape in node.inputs)
    return (node.kind, node.class_name, shapes, box.outputs, box.parameters, box.macs, box.frames, node.shared)
