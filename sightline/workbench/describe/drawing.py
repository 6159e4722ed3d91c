"""Drawing of a model from its trace.

Figure: module calls as boxes or as frames around others, and arrows between boxes.

SVG drawing of a figure: boxes in a column in order of execution, arrows, and lanes for skip connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightline.draw.charts import Drawing
from sightline.workbench.describe.trace import Edge, Node, Shape, Trace

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


_WIDTH, _MARGIN, _INSET = 300, 26, 14
_GAP, _TITLE_PX, _FRAME_END = 34, 22, 10
_STUB, _LANE = 108, 20
_HEAD = 74
_FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
_INK, _MUTED, _LINE, _FRAME = "#27313d", "#6b7785", "#4a5563", "#c3ccd6"
_LOOKS = {
    "input": ("#e8f5ec", "#3fa66b"),
    "output": ("#f3ebfa", "#8e6cc0"),
    "join": ("#ffffff", "#7f8c99"),
    "linear": ("#e4effa", "#3b82c4"),
    "block": ("#edf2f8", "#33608f"),
    "norm": ("#e3f4f4", "#2a9aa0"),
    "activation": ("#fdf0e2", "#e07b2e"),
    "dropout": ("#f3f4f6", "#9aa3ad"),
    "pooling": ("#f0eaf8", "#8e6cc0"),
}
_LOOKS_BY_FAMILY = {
    **dict.fromkeys(("linear", "conv", "sparse", "rnn"), "linear"),
    **dict.fromkeys(("batchnorm", "normalization", "instancenorm"), "norm"),
    **dict.fromkeys(("pooling", "adaptive", "upsampling"), "pooling"),
    **{family: family for family in ("activation", "dropout")},
}
_LANE_INKS = ("#3b82c4", "#e07b2e", "#3fa66b", "#8e6cc0", "#b0568a", "#2a9aa0", "#a07a2a", "#d9534f")


def draw(figure: Figure, *, title: str, subtitle: str, num_samples: int) -> str:
    """Draw a figure as a self-contained SVG document; the same figure gives the same text.

    A leading axis of `num_samples`, or a multiple of it, is written with B.
    """
    column = _Column(figure)
    lanes = _Lanes(figure.arrows)
    page = _Page()
    for frame, node in figure.frames.items():
        column.draw_frame(page, frame, node)
    for arrow in figure.arrows:
        if arrow.target == arrow.source + 1:
            column.draw_down(page, arrow, num_samples)
    for number, source in enumerate(lanes.sources):
        column.draw_lane(page, lanes, source, _LANE_INKS[number % len(_LANE_INKS)], num_samples)
    for index, box in enumerate(figure.boxes):
        column.draw_box(page, index, box, num_samples)
    width = column.right + (_STUB + lanes.count * _LANE if lanes.count else 0) + _MARGIN
    return page.document(max(width, 420), column.bottom + 40, title, subtitle)


def show_shape(shape: Shape, num_samples: int) -> str:
    """Format a shape as `B x 1024 x 64`; a leading axis that is a multiple of `num_samples` is written with B."""
    if not shape:
        return "one number"
    lengths = [str(length) for length in shape]
    if num_samples > 1 and shape[0] and shape[0] % num_samples == 0:
        times = shape[0] // num_samples
        lengths[0] = "B" if times == 1 else f"{times}·B"
    return " × ".join(lengths)


def _show_shapes(shapes: Sequence[Shape], num_samples: int) -> str:
    return " and ".join(show_shape(shape, num_samples) for shape in shapes)


def short_number(number: float) -> str:
    """Format a number with three digits and a unit prefix: 1.81 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


class _Page(Drawing):
    """Drawing with the texts, rectangles and arrows of a figure."""

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        style = {"font_size": 11, "fill": _INK, "text_anchor": "start"} | style
        self.add("text", text, x=float(x), y=float(y), **style)

    def rectangle(self, x: float, y: float, width: float, height: float, radius: float, **style: object) -> None:
        size = {"width": float(width), "height": float(height), "rx": float(radius)}
        self.add("rect", x=float(x), y=float(y), **size, stroke_width=1.2, **style)

    def path(self, points: Sequence[tuple[float, float]], *, ink: str, has_head: bool) -> None:
        """Draw a line through these points with rounded corners and, with `has_head`, an arrow head at its end."""
        commands = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for previous, corner, following in zip(points, points[1:], points[2:], strict=False):
            start, end = _round_corner(corner, previous), _round_corner(corner, following)
            commands.append(f"L{start[0]:g} {start[1]:g} Q{corner[0]:g} {corner[1]:g} {end[0]:g} {end[1]:g}")
        commands.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
        self.add("path", d=" ".join(commands), fill="none", stroke=ink, stroke_width=1.3)
        if has_head:
            (x, y), is_down = points[-1], points[-2][0] == points[-1][0]
            back = [(x - 3.6, y - 7), (x + 3.6, y - 7)] if is_down else [(x + 7, y - 3.2), (x + 7, y + 3.2)]
            self.add("polygon", points=" ".join(f"{a:g},{b:g}" for a, b in [(x, y), *back]), fill=ink)

    def document(self, width: float, height: float, title: str, subtitle: str) -> str:
        self.text(_MARGIN, 32, title, font_size=18, font_weight=600)
        self.text(_MARGIN, 52, subtitle, font_size=11.5, fill=_MUTED)
        self.text(_MARGIN, height - 14, _LEGEND, font_size=10, fill=_MUTED)
        head = Drawing()
        head.add("title", title)
        head.add("desc", subtitle)
        return self.encode(float(width), float(height), head.elements, role="img", font_family=_FONT)


_LEGEND = "B: samples in a batch. In a box, right: parameters, multiply-accumulates per sample."


class _Lanes:
    """Assignment of vertical lanes to sources with far targets: overlapping ones differ, short ones are inside."""

    def __init__(self, arrows: Sequence[Arrow]) -> None:
        far = [arrow for arrow in arrows if arrow.target != arrow.source + 1]
        self.arrows_by_source: dict[int, list[Arrow]] = {}
        for arrow in far:
            self.arrows_by_source.setdefault(arrow.source, []).append(arrow)
        self.sources = sorted(self.arrows_by_source)
        self.lane_by_source: dict[int, int] = {}
        lanes: list[list[tuple[int, int]]] = []
        for source in sorted(self.sources, key=lambda source: (self._end(source) - source, source)):
            span = (source, self._end(source))
            lane = next((n for n, spans in enumerate(lanes) if not any(_overlap(span, s) for s in spans)), len(lanes))
            if lane == len(lanes):
                lanes.append([])
            lanes[lane].append(span)
            self.lane_by_source[source] = lane
        self.count = len(lanes)

    def _end(self, source: int) -> int:
        return max(arrow.target for arrow in self.arrows_by_source[source])


class _Column:
    """Layout of the column: positions of boxes and frames."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.entering: dict[int, list[int]] = {}
        for arrow in figure.arrows:
            if arrow.target != arrow.source + 1:
                self.entering.setdefault(arrow.target, []).append(arrow.source)
        for sources in self.entering.values():
            sources.sort(reverse=True)
        self._max_frames = max((len(box.frames) for box in figure.boxes), default=0)
        self.left = _MARGIN + self._max_frames * _INSET
        self.middle = self.left + _WIDTH / 2
        self.right = self.left + _WIDTH + self._max_frames * _INSET
        self.tops: list[float] = []
        self.heights = [self._height(index, box) for index, box in enumerate(figure.boxes)]
        self._frame_top: dict[int, float] = {}
        self._frame_bottom: dict[int, float] = {}
        self._compute_positions()

    def _compute_positions(self) -> None:
        y, open_frames = float(_HEAD), tuple[int, ...]()
        joined = {(arrow.source, arrow.target) for arrow in self.figure.arrows}
        for index, box in enumerate(self.figure.boxes):
            for frame in reversed([frame for frame in open_frames if frame not in box.frames]):
                y += _FRAME_END
                self._frame_bottom[frame] = y
            if index:
                y += _GAP if (index - 1, index) in joined else _GAP / 2
            for frame in [frame for frame in box.frames if frame not in open_frames]:
                self._frame_top[frame] = y
                y += _TITLE_PX
            self.tops.append(y)
            y += self.heights[index]
            open_frames = box.frames
        for frame in reversed(open_frames):
            y += _FRAME_END
            self._frame_bottom[frame] = y
        self.bottom = y

    def draw_frame(self, page: _Page, frame: int, node: Node) -> None:
        frames = next(box.frames for box in self.figure.boxes if frame in box.frames)
        level = frames.index(frame)
        spread = (self._max_frames - level) * _INSET
        top = self._frame_top[frame]
        height = self._frame_bottom[frame] - top
        look = {"fill": "#fafbfd", "stroke": _FRAME, "stroke_dasharray": "4 3"}
        page.rectangle(self.left - spread, top, _WIDTH + 2 * spread, height, 10, **look)
        path, edge = self._path(node, frames[:level]), self.left + _WIDTH + spread
        page.text(self.left - spread + 10, top + 15, _shorten_text(path, 28), font_size=10.5, fill=_MUTED)
        name = _shorten_text(node.class_name, 24)
        page.text(edge - 10, top + 15, name, font_size=10.5, fill=_MUTED, text_anchor="end")

    def draw_box(self, page: _Page, index: int, box: FigureBox, num_samples: int) -> None:
        top, height = self.tops[index], self.heights[index]
        fill, line = _LOOKS[_choose_look(box)]
        node = box.node
        if node.kind != "call":
            width = self._width(box)
            page.rectangle(self.middle - width / 2, top, width, height, height / 2, fill=fill, stroke=line)
            text = f"{node.path}   {show_shape(box.outputs[0], num_samples)}" if node.kind == "input" else node.path
            weight = {} if node.kind == "join" else {"font_weight": 600}
            page.text(self.middle, top + height / 2 + 4, text, font_size=12, text_anchor="middle", **weight)
            return
        for offset in (6, 3) if box.times > 1 else ():
            page.rectangle(self.left + offset, top - offset, _WIDTH, height, 7, fill=fill, stroke=line)
        dash = {"stroke_dasharray": "5 3"} if node.shared else {}
        page.rectangle(self.left, top, _WIDTH, height, 7, fill=fill, stroke=line, **dash)
        self._write(page, box, top, height, num_samples)

    def _write(self, page: _Page, box: FigureBox, top: float, height: float, num_samples: int) -> None:
        node, left, right, middle = box.node, self.left + 12, self.left + _WIDTH - 12, top + height / 2
        name = _shorten_text(node.class_name, 26) + (f"  ×{box.times}" if box.times > 1 else "")
        path = self._path(node, box.frames)
        if box.times > 1:
            path += f" … {self._short(box.last_path, box.frames)}"
        if not _is_tall(box):
            page.text(left, middle + 4, name, font_size=12)
            page.text(
                right, top + height / 2 + 4, _shorten_text(path, 24), font_size=10, fill=_MUTED, text_anchor="end"
            )
            return
        middle, suffix = top + height / 2, " each" if box.times > 1 else ""
        page.text(left, middle - 3, name, font_size=13, font_weight=600)
        page.text(left, middle + 13, _shorten_text(path, 32), font_size=10.5, fill=_MUTED)
        if box.parameters or node.shared:
            counted = short_number(box.parameters) if box.parameters else "shared"
            page.text(right, middle - 3, counted + suffix, font_size=11, text_anchor="end")
        if box.macs:
            macs = f"{short_number(box.macs / num_samples)} MAC{suffix}"
            page.text(right, middle + 13, macs, font_size=10, fill=_MUTED, text_anchor="end")

    def draw_down(self, page: _Page, arrow: Arrow, num_samples: int) -> None:
        start, end = self.tops[arrow.source] + self.heights[arrow.source], self.tops[arrow.target]
        end -= 6 if self.figure.boxes[arrow.target].times > 1 else 0
        page.path([(self.middle, start), (self.middle, end)], ink=_LINE, has_head=True)
        if self.figure.boxes[arrow.source].node.kind == "input" and not arrow.through:
            return  # its shape is in the box
        closed = sum(f not in self.figure.boxes[arrow.target].frames for f in self.figure.boxes[arrow.source].frames)
        text = _show_shapes(arrow.shapes, num_samples)
        if arrow.through:
            text = f"{', '.join(arrow.through)}  →  {text}"
        page.text(self.middle + 8, start + closed * _FRAME_END + _GAP / 2 + 3, text, font_size=10.5, fill=_MUTED)

    def draw_lane(self, page: _Page, lanes: _Lanes, source: int, ink: str, num_samples: int) -> None:
        """Draw the arrows from a source through its lane to all its far targets."""
        x = self.right + _STUB - 10 + lanes.lane_by_source[source] * _LANE
        box = self.figure.boxes[source]
        start_y = self.tops[source] + self.heights[source] - 8
        start_x = self.middle + self._width(box) / 2
        arrows = sorted(lanes.arrows_by_source[source], key=lambda arrow: arrow.target)
        for arrow in arrows:
            entries = self.entering[arrow.target]
            step = self.heights[arrow.target] / (len(entries) + 1)
            end_y = self.tops[arrow.target] + step * (entries.index(source) + 1)
            end_x = self.middle + self._width(self.figure.boxes[arrow.target]) / 2
            page.path([(start_x, start_y), (x, start_y), (x, end_y), (end_x, end_y)], ink=ink, has_head=True)
            if arrow.through:
                page.text(end_x + 12, end_y - 3, ", ".join(arrow.through), font_size=9, fill=ink)
        shapes = next((arrow.shapes for arrow in arrows if not arrow.through), box.outputs[:1])
        if box.node.kind != "input":
            page.text(self.right + 6, start_y - 4, _show_shapes(shapes[-1:], num_samples), font_size=9.5, fill=ink)

    def _path(self, node: Node, frames: tuple[int, ...]) -> str:
        short = self._short(node.path, frames)
        return f"{short} (call {node.call})" if node.call > 1 else short

    def _short(self, path: str, frames: tuple[int, ...]) -> str:
        """Shorten a path relative to its innermost frame; a leading index keeps its parent's name: `head.0`."""
        if not frames:
            return path
        frame_path = self.figure.frames[frames[-1]].path
        short = path.removeprefix(f"{frame_path}.")
        return f"{frame_path.rpartition('.')[2]}.{short}" if short != path and short[0].isdigit() else short

    def _height(self, index: int, box: FigureBox) -> float:
        min_height = 46 if box.node.kind == "call" and _is_tall(box) else 27
        return max(min_height, 10 * (len(self.entering.get(index, ())) + 1))

    def _width(self, box: FigureBox) -> float:
        if box.node.kind == "call":
            return _WIDTH
        if box.node.kind == "join":
            return max(34, 8 * len(box.node.path) + 20)
        return 200


def _is_tall(box: FigureBox) -> bool:
    return bool(box.parameters or box.macs or box.node.shared or box.times > 1) or _choose_look(box) == "block"


def _choose_look(box: FigureBox) -> str:
    if box.node.kind != "call":
        return box.node.kind
    look = _LOOKS_BY_FAMILY.get(box.node.family, "block")
    return "block" if look == "activation" and box.macs else look  # torch files attention under activations


def _shorten_text(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"


def _round_corner(corner: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Return the point up to 6 px from a corner towards another point on the same axis."""
    direction = (towards[0] - corner[0], towards[1] - corner[1])
    length = max(abs(direction[0]), abs(direction[1]), 1e-9)
    reach = min(6.0, length / 2)
    return corner[0] + direction[0] / length * reach, corner[1] + direction[1] / length * reach


def _overlap(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return first[0] <= second[1] and second[0] <= first[1]
