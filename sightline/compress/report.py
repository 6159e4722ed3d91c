"""Comparison of compressed models with the float model, and its drawings.

Comparison of searches: table rows, the Pareto front of loss and bytes, and its hypervolume.

SVG pictures of compression: results of searches, and the bits of each layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sightline.compress.policy import LayerCost, Policy
from sightline.compress.search.base import SearchResult
from sightline.draw.charts import CHART_STYLE, COLORS, FAINT, ChartPanel, Drawing, Scale, Series, render_svg

Point = tuple[float, float]
"""Point (bytes, loss); lower is better for both."""


def search_rows(found: Iterable[SearchResult]) -> list[dict[str, Any]]:
    """Build one row per search, lowest loss first; `overhead seconds` excludes the evaluations."""
    return [
        {
            "method": result.method,
            "loss": result.loss,
            "bytes": result.bytes,
            "evaluations": result.num_evaluated,
            "new evaluations": result.num_new,
            "seconds": result.seconds,
            "overhead seconds": result.seconds - result.evaluation_seconds,
            "raisable layers": len(result.untried_raises),
        }
        for result in sorted(found, key=lambda result: (result.loss, result.bytes))
    ]


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the Pareto front: the points that no other point dominates, sorted by bytes, without duplicates."""
    front: list[Point] = []
    for size, loss in sorted(points):
        if not front or loss < front[-1][1]:
            front.append((size, loss))
    return front


def hyper_volume(points: Iterable[Point], *, reference: Point) -> float:
    """Compute the area between the front and a reference that is worse in both numbers; points beyond it are ignored.

    Source: Zitzler and Thiele 1999.
    """
    front = pareto_front(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    pairs = itertools.pairwise([*front, reference])
    return sum((following - size) * (reference[1] - loss) for (size, loss), (following, _) in pairs)


_FRONT = "Pareto front"
_MIN_LOG_RATIO = 20.0
"""Ratio of the largest to the smallest loss above which their axis is logarithmic."""
_ROW, _HEAD, _BARS, _END = 16, 44, 300, 130
_LETTER = 6.2
"""Approximate width of a letter, at a font size of 11 pixels."""
_COLOR_OF = {"codebook": COLORS[1], "linear": COLORS[3], "fp16": COLORS[0], "fp32": COLORS[0]}
_INPUT = COLORS[2]


def pareto_svg(found: Mapping[str, Sequence[Point]], *, counted: str) -> str:
    """Draw loss over kilobytes of `counted`: a mark per (bytes, loss) of each method, and the Pareto front."""
    points = [point for method_points in found.values() for point in method_points]
    series = [Series(_FRONT, _in_kilobytes(pareto_front(points)))]
    series += [Series(name, _in_kilobytes(method_points), has_line=False) for name, method_points in found.items()]
    losses = [loss for _, loss in points]
    scale: Scale = "logarithmic" if min(losses) > 0 and max(losses) > _MIN_LOG_RATIO * min(losses) else "linear"
    panel = ChartPanel("loss", f"kilobytes of the {counted}", tuple(series), x_scale="linear", y_scale=scale)
    return render_svg([[panel]], panel_width=560, panel_height=300)


def _in_kilobytes(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple((size / 1e3, loss) for size, loss in points)


def bits_svg(policy: Policy, layers: Sequence[LayerCost]) -> str:
    """Draw a bar per layer, in the model's order: bits of its weights, and a thin bar for those of its input."""
    x_bars = round(20 + _LETTER * max(len(layer.name) for layer in layers))
    width, height = x_bars + _BARS + _END, _HEAD + _ROW * len(layers) + 10
    kinds = dict.fromkeys(policy[layer.name].kind for layer in layers)
    max_bits = max(8, *(policy[layer.name].bits for layer in layers))
    legend: list[tuple[str, str]] = [(kind, _COLOR_OF[kind]) for kind in kinds]
    if any(policy[layer.name].activation for layer in layers):
        legend.append(("input", _INPUT))
    drawing = Drawing()
    for index, (name, color) in enumerate(legend):
        drawing.add("rect", x=x_bars + 90 * index, y=9, width=14, height=10, fill=color)
        drawing.add("text", name, x=x_bars + 90 * index + 19, y=18)
    for bits in range(0, max_bits + 1, max_bits // 8):
        x = f"{x_bars + _BARS * bits / max_bits:.1f}"
        drawing.add("line", x1=x, x2=x, y1=_HEAD - 4, y2=height - 8, stroke=FAINT)
        drawing.add("text", str(bits), x=x, y=_HEAD - 8, text_anchor="middle", font_size=10)
    for index, layer in enumerate(layers):
        choice, top = policy[layer.name], _HEAD + _ROW * index
        bars = [(choice.bits, top + 2, 9, _COLOR_OF[choice.kind])]
        bars += [(choice.activation.bits, top + 11, 3, _INPUT)] if choice.activation else []
        drawing.add("text", layer.name, x=x_bars - 6, y=top + 11, text_anchor="end")
        for bits, y, thickness, color in bars:
            length = f"{_BARS * bits / max_bits:.1f}"
            drawing.add("rect", x=x_bars, y=y, width=length, height=thickness, fill=color)
        end = f"{x_bars + _BARS * max(bar[0] for bar in bars) / max_bits + 5:.1f}"
        drawing.add("text", f"{choice.bits} · {layer.num_weights:,} weights", x=end, y=top + 11, font_size=10)
    return drawing.encode(width, height, **CHART_STYLE)
