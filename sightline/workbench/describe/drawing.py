"""Drawing of a traced model as SVG: calls as boxes in the order of execution, and arrows where tensors flow."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.draw.charts import Drawing
from sightline.workbench.describe.trace import BATCH, Node, Shape, Trace

_MAX_BOXES = 24
"""Maximum number of boxes of a drawing without a given depth."""
_WIDTH, _HEIGHT, _GAP, _MARGIN, _HEAD = 320, 40, 30, 26, 74
_MIN_BEND, _MAX_BEND = 26, 190
_FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
_INK, _MUTED = "#27313d", "#6b7785"
_ARROW_INKS = ("#3b82c4", "#e07b2e", "#3fa66b", "#8e6cc0", "#b0568a", "#2a9aa0")
_LEGEND = "B: samples in a batch. In a box, right: parameters, multiply-accumulates per sample."


@dataclass(frozen=True)
class Box:
    """Box of the drawing: two lines of text on the left and on the right, the shapes it returns, and its colours."""

    name: str
    below: str
    shapes: tuple[Shape, ...]
    right: tuple[str, str] = ("", "")
    look: tuple[str, str] = ("#e8f5ec", "#3fa66b")


@dataclass(frozen=True)
class Figure:
    """Boxes in order of execution, and the arrows between them: pairs of indices of boxes."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int], ...]


def build_figure(trace: Trace, *, depth: int | None = None) -> Figure:
    """Build the figure of a trace, with calls down to `depth` (1: those of the model's own forward).

    Without `depth`, calls are opened level by level while there are few boxes.
    """
    if depth is None:
        deepest = max(call.depth for call in trace.calls)
        depths = [level for level in range(1, deepest + 1) if len(_list_visible(trace, level)) <= _MAX_BOXES]
        depth = max(depths, default=1)
    visible = _list_visible(trace, depth)
    closed = set(visible)
    box_of = {index: number for number, index in enumerate(visible, start=1)} | {BATCH: 0}
    for index in reversed(range(len(trace.calls))):  # an opened call stands for the last box in it
        box_of.setdefault(index, max((box_of[i] for i in visible if _is_inside(trace, i, index)), default=0))
    for index, call in enumerate(trace.calls):  # a call in a box for that box
        if call.parent is not None and call.parent in closed:
            closed.add(index)
            box_of[index] = box_of[call.parent]
    sources = [*((trace.calls[index].sources, box_of[index]) for index in visible)]
    sources.append((trace.output_sources, len(visible) + 1))
    pairs = {(box_of[source], target) for of_target, target in sources for source in of_target}
    whole = trace.calls[0]
    boxes = [_make_end(whole.inputs), *(_make_box(trace, index) for index in visible), _make_end(whole.outputs)]
    return Figure(tuple(boxes), tuple(sorted(pair for pair in pairs if pair[0] < pair[1])))


def _list_visible(trace: Trace, depth: int) -> list[int]:
    """List the calls that are boxes: those at `depth`, and those above it with at most one call inside.

    The model itself, and a call that is the only one in another, is opened for one call, too.
    """
    children: dict[int | None, list[int]] = {}
    for index, call in enumerate(trace.calls):
        if not call.is_transparent:
            children.setdefault(call.parent, []).append(index)

    def walk(index: int) -> list[int]:
        call, inner = trace.calls[index], children.get(index, [])
        is_opened = len(inner) > 1 or (len(inner) == 1 and len(children[call.parent]) == 1)
        return [box for child in inner for box in walk(child)] if is_opened and call.depth < depth else [index]

    return [box for root in children[None] for box in walk(root)]


def _is_inside(trace: Trace, index: int | None, outer: int) -> bool:
    while index is not None and index != outer:
        index = trace.calls[index].parent
    return index == outer


def _make_end(named: list[tuple[str, Shape]]) -> Box:
    """Make the box of the model's inputs or outputs."""
    names = ", ".join(name for name, _ in named if name) or "output"
    return Box(names, "", tuple(shape for _, shape in named))


def _make_box(trace: Trace, index: int) -> Box:
    node = trace.calls[index]
    inner = [call for number, call in enumerate(trace.calls) if _is_inside(trace, number, index)]
    parameters, macs = sum(call.parameters for call in inner), sum(call.macs for call in inner)
    counted = short_number(parameters) if parameters else "shared" if node.shared else ""
    cost = f"{short_number(macs / trace.num_samples)} MAC" if macs else ""
    look = ("#e4effa", "#3b82c4") if counted or macs else ("#f3f4f6", "#9aa3ad")
    return Box(node.class_name, _name_call(node), tuple(shape for _, shape in node.outputs), (counted, cost), look)


def _name_call(node: Node) -> str:
    path = node.path or "(model)"
    return f"{path} (call {node.call})" if node.call > 1 else path


def draw(figure: Figure, *, title: str, subtitle: str, num_samples: int) -> str:
    """Draw a figure as a self-contained SVG document; the same figure gives the same text.

    A leading axis of `num_samples`, or a multiple of it, is written with B.
    """
    page = Drawing()

    def write(x: float, y: float, text: str, **style: object) -> None:
        if text:
            page.add("text", text, x=float(x), y=float(y), **({"font_size": 11, "fill": _INK} | style))

    right, middle = _MARGIN + _WIDTH, _MARGIN + _WIDTH / 2
    tops = [_HEAD + number * (_HEIGHT + _GAP) for number in range(len(figure.boxes))]
    write(_MARGIN, 32, title, font_size=18, font_weight=600)
    write(_MARGIN, 52, subtitle, fill=_MUTED)
    for source, target in figure.arrows:
        start, end = tops[source] + _HEIGHT, tops[target]
        if target == source + 1:
            _draw_arrow(page, f"M{middle:g} {start:g} V{end:g}", (middle, end), _MUTED, is_down=True)
            continue
        bend = right + min(_MIN_BEND + 14 * (target - source), _MAX_BEND)
        leave, enter = start - 8, end + _HEIGHT * (source + 1) / (target + 1)
        curve = f"M{right:g} {leave:g} C{bend:g} {leave:g} {bend:g} {enter:g} {right + 6:g} {enter:g}"
        _draw_arrow(page, curve, (right, enter), _ARROW_INKS[source % len(_ARROW_INKS)], is_down=False)
    for box, top in zip(figure.boxes, tops, strict=True):
        fill, line = box.look
        size = {"width": float(_WIDTH), "height": float(_HEIGHT), "rx": 7.0}
        page.add("rect", x=float(_MARGIN), y=float(top), **size, fill=fill, stroke=line)
        write(_MARGIN + 12, top + 17, _shorten(box.name), font_size=13, font_weight=600)
        write(_MARGIN + 12, top + 33, _shorten(box.below), fill=_MUTED)
        write(right - 12, top + 17, box.right[0], text_anchor="end", fill=_MUTED)
        write(right - 12, top + 33, box.right[1], text_anchor="end", fill=_MUTED)
        shapes = " and ".join(show_shape(shape, num_samples) for shape in box.shapes[:2])
        write(middle + 8, top + _HEIGHT + 18, shapes, font_size=10.5, fill=_MUTED)
    bottom = tops[-1] + _HEIGHT + 46
    write(_MARGIN, bottom - 12, _LEGEND, font_size=10, fill=_MUTED)
    return page.encode(right + _MAX_BEND * 0.8, float(bottom), title, role="img", font_family=_FONT)


def _draw_arrow(page: Drawing, path: str, tip: tuple[float, float], ink: str, *, is_down: bool) -> None:
    page.add("path", d=path, fill="none", stroke=ink, stroke_width=1.3)
    x, y = tip
    back = [(x - 3.6, y - 7), (x + 3.6, y - 7)] if is_down else [(x + 7, y - 3.2), (x + 7, y + 3.2)]
    page.add("polygon", points=" ".join(f"{a:g},{b:g}" for a, b in [(x, y), *back]), fill=ink)


def show_shape(shape: Shape, num_samples: int) -> str:
    """Format a shape as `B x 1024 x 64`; a leading axis that is a multiple of `num_samples` is written with B."""
    if not shape:
        return "one number"
    lengths = [str(length) for length in shape]
    if num_samples > 1 and shape[0] and shape[0] % num_samples == 0:
        times = shape[0] // num_samples
        lengths[0] = "B" if times == 1 else f"{times}·B"
    return " × ".join(lengths)


def short_number(number: float) -> str:
    """Format a number with three digits and a unit prefix: 1.81 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _shorten(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"
