"""Pictures of compression as SVG: what searches found, and the bits of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from sightline.chart import COLORS, FAINT, INK, ChartPanel, Scale, Series, render_svg
from sightline.compress.comparison import Point, pareto_front
from sightline.compress.cost import LayerCost
from sightline.compress.policy import Policy

__all__ = ["bits_svg", "pareto_svg"]

_FRONT = "Pareto front"
_WIDE_SPREAD = 20.0
"""Between the largest and the least loss: their axis is then logarithmic."""
_ROW, _HEAD, _BARS, _END = 16, 44, 300, 130
_LETTER = 6.2
"""Width of a letter, about, in 11 pixels."""
_COLOR_OF = {"codebook": COLORS[1], "linear": COLORS[3], "fp16": COLORS[0], "fp32": COLORS[0]}
_INPUT = COLORS[2]


def pareto_svg(found: Mapping[str, Sequence[Point]], *, counted: str) -> str:
    """Loss over kilobytes of what is `counted`: a mark for each (bytes, loss) of a method, a line through the front."""
    points = [point for each in found.values() for point in each]
    series = [Series(_FRONT, _in_kilobytes(pareto_front(points)))]
    series += [Series(name, _in_kilobytes(each), has_line=False) for name, each in found.items()]
    losses = [loss for _, loss in points]
    scale: Scale = "logarithmic" if min(losses) > 0 and max(losses) > _WIDE_SPREAD * min(losses) else "linear"
    panel = ChartPanel("loss", f"kilobytes of the {counted}", tuple(series), x_scale="linear", y_scale=scale)
    return render_svg([[panel]], panel_width=560, panel_height=300)


def _in_kilobytes(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple((size / 1e3, loss) for size, loss in points)


def bits_svg(policy: Policy, layers: Sequence[LayerCost]) -> str:
    """A bar per layer, in the order of the model: the bits of its weights, and below, thin, those of its input."""
    left = round(20 + _LETTER * max(len(layer.name) for layer in layers))
    width, height = left + _BARS + _END, _HEAD + _ROW * len(layers) + 10
    kinds = dict.fromkeys(policy[layer.name].kind for layer in layers)
    most = max(8, *(policy[layer.name].bits for layer in layers))
    legend: list[tuple[str, str]] = [(kind, _COLOR_OF[kind]) for kind in kinds]
    if any(policy[layer.name].activation for layer in layers):
        legend.append(("input", _INPUT))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, (name, color) in enumerate(legend):
        parts.append(f'<rect x="{left + 90 * place}" y="9" width="14" height="10" fill="{color}"/>')
        parts.append(f'<text x="{left + 90 * place + 19}" y="18">{name}</text>')
    for bits in range(0, most + 1, most // 8):
        x = left + _BARS * bits / most
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_HEAD - 4}" y2="{height - 8}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEAD - 8}" text-anchor="middle" font-size="10">{bits}</text>')
    for place, layer in enumerate(layers):
        choice, top = policy[layer.name], _HEAD + _ROW * place
        length = _BARS * choice.bits / most
        parts.append(f'<text x="{left - 6}" y="{top + 11}" text-anchor="end">{escape(layer.name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{top + 2}" width="{length:.1f}" height="9" fill="{_COLOR_OF[choice.kind]}"/>'
        )
        if choice.activation is not None:
            thin = _BARS * choice.activation.bits / most
            parts.append(f'<rect x="{left}" y="{top + 11}" width="{thin:.1f}" height="3" fill="{_INPUT}"/>')
            length = max(length, thin)
        text = f"{choice.bits} · {layer.num_weights:,} weights"
        parts.append(f'<text x="{left + length + 5:.1f}" y="{top + 11}" font-size="10">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
