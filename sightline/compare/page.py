"""HTML page of a comparison: one self-contained file."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from importlib import resources

from sightline.chart import ChartPanel, Series, render_svg
from sightline.compare.comparison import VariantComparison
from sightline.compare.layerwise import LayerComparison
from sightline.compare.measure import INFINITE_RATIO, MAX_ROUNDING_UNITS

__all__ = ["comparison_svg", "describe_row", "encode_comparison_page", "verdict"]

_MIN_RATIO = 1e-3
"""Smallest ratio drawn, in units of rounding: a logarithmic axis has no zero."""
_MAX_RATIO = 1e12


def encode_comparison_page(comparison: VariantComparison, *, title: str) -> str:
    """Encode the page: verdict, plot of every layer's ratio in order, losses over steps, and table."""
    rows = "".join(_table_row(row) for row in comparison.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    page = resources.files("sightline.compare").joinpath("page.html").read_text(encoding="utf-8")
    content = {
        "ROWS": rows,
        "NOTES": notes,
        "FIGURE": comparison_svg(comparison),
        "VARIANT": html.escape(f"{comparison.variant}, against {comparison.reference}"),
        "VERDICT": html.escape(verdict(comparison)),
        "TITLE": html.escape(title),
    }
    for mark in content:
        assert f"%{mark}%" in page, f"page.html has lost its place for {mark}"
    # in one pass, so that nothing inserted is taken for a mark
    return re.sub(f"%({'|'.join(content)})%", lambda match: content[match[1]], page)


def verdict(comparison: VariantComparison) -> str:
    """Summarise a comparison in one line."""
    step = comparison.parts_at_step
    parted = "" if step is None else f"; the losses diverge at step {step}"
    trace = comparison.trace
    if trace is not None and trace.is_none_from is not None:
        parted += f"; from step {trace.is_none_from} on both have losses or gradients that are NaN or infinite"
    if comparison.guilty_rows:
        return f"they diverge first at {describe_row(comparison.guilty_rows[0])}{parted}"
    return f"every layer agrees{parted}" if parted else "equal: rounding explains every difference"


def describe_row(row: LayerComparison) -> str:
    """Describe a row: layer, pass, tensor and deviation."""
    deviation = row.deviation
    where = f", in the code of {row.inside} after it" if row.inside else ""
    kind = f" ({row.class_name})" if row.class_name else ""
    if deviation.note:
        description = deviation.note
    else:
        description = (
            f"off by {deviation.relative_error:.2g} of its largest value, "
            f"rounding explains {deviation.relative_bound:.2g}"
        )
    return f"{row.layer}{kind}{where}, {row.which} pass, {row.what}: {description}"


def comparison_svg(comparison: VariantComparison) -> str:
    """Render an SVG: every row's units of rounding with the bound, in order of execution, and losses over steps."""
    panels: list[ChartPanel | None] = []
    for which in ("forward", "backward"):
        rows = [row for row in comparison.rows if row.which == which]
        if rows:
            panels.append(_ratio_panel(which, rows))
    trace = comparison.trace
    if trace is not None and len(trace.losses) > 1:
        steps = range(len(trace.losses))
        differences = [_clamp_for_axis(abs(a - b)) for a, b in zip(trace.losses, trace.expected, strict=True)]
        bound = [_clamp_for_axis(tolerance) for tolerance in trace.tolerated]
        series = (
            Series("difference of the losses", tuple(zip(map(float, steps), differences, strict=True))),
            Series("what rounding explains", tuple(zip(map(float, steps), bound, strict=True))),
        )
        panels.append(ChartPanel("losses over optimiser steps", "step", series, x_scale="linear"))
    return render_svg([panels]) if panels else ""


def _ratio_panel(which: str, rows: Sequence[LayerComparison]) -> ChartPanel:
    ratios = tuple(
        (float(index), min(max(row.deviation.ratio, _MIN_RATIO), _MAX_RATIO)) for index, row in enumerate(rows)
    )
    line = ((0.0, MAX_ROUNDING_UNITS), (float(max(1, len(rows) - 1)), MAX_ROUNDING_UNITS))
    series = (Series("units of rounding", ratios), Series("bound", line))
    return ChartPanel(f"{which} pass", "layers in the order of execution", series, x_scale="linear")


def _table_row(row: LayerComparison) -> str:
    deviation = row.deviation
    ratio = "beyond measure" if deviation.ratio >= INFINITE_RATIO else f"{deviation.ratio:.3g}"
    cells = [row.layer, row.class_name, row.which, row.what, ratio, f"{deviation.relative_error:.2e}"]
    cells += [f"{deviation.relative_bound:.2e}", _remark(row)]
    marked = ' class="wrong"' if row.is_guilty else ""
    return f"<tr{marked}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n"


def _remark(row: LayerComparison) -> str:
    parts = [row.deviation.note, f"in the code of {row.inside}" if row.inside else ""]
    if row.deviation.undefined:
        parts.append(
            f"{row.deviation.undefined} of {row.deviation.entries} entries depend on decisions that rounding changes"
        )
    return "; ".join(filter(None, parts))


def _clamp_for_axis(value: float) -> float:
    """Clamp a value to the range of the logarithmic axis; NaN and infinity to its upper end."""
    return 1e30 if math.isnan(value) else max(min(value, 1e30), 1e-12)
