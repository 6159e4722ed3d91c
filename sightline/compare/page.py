"""A comparison as one HTML page: everything in it, nothing from a network."""

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

_LEAST = 1e-3
"""Units of rounding below which a dot of the plot does not go: zero has no place on a logarithmic axis."""
_MOST_DRAWN = 1e12


def encode_comparison_page(comparison: VariantComparison, *, title: str) -> str:
    """The page: the verdict, a plot of the ratio of every layer in order, the losses over steps, and the table."""
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
    return re.sub(f"%({'|'.join(content)})%", lambda found: content[found[1]], page)


def verdict(comparison: VariantComparison) -> str:
    """What came of it, in a line."""
    step = comparison.parts_at_step
    parted = "" if step is None else f"; the losses part at step {step}"
    trace = comparison.trace
    if trace is not None and trace.is_none_from is not None:
        parted += f"; from step {trace.is_none_from} on both have losses or gradients that are NaN or infinite"
    if comparison.unexplained:
        return f"they diverge first at {describe_row(comparison.unexplained[0])}{parted}"
    return f"every layer agrees{parted}" if parted else "equal: rounding explains every difference"


def describe_row(row: LayerComparison) -> str:
    """A row in words: the layer, the pass, the tensor, and how far it is off."""
    deviation = row.deviation
    where = f", in the code of {row.inside} after it" if row.inside else ""
    kind = f" ({row.class_name})" if row.class_name else ""
    if deviation.note:
        how = deviation.note
    else:
        how = f"off by {deviation.measured:.2g} of its largest value, rounding explains {deviation.tolerated:.2g}"
    return f"{row.layer}{kind}{where}, {row.which} pass, {row.what}: {how}"


def comparison_svg(comparison: VariantComparison) -> str:
    """An SVG: units of rounding of every row in the order of execution beside the bound; the losses over the steps."""
    panels: list[ChartPanel | None] = []
    for which in ("forward", "backward"):
        rows = [row for row in comparison.rows if row.which == which]
        if rows:
            panels.append(_ratios(which, rows))
    trace = comparison.trace
    if trace is not None and len(trace.losses) > 1:
        steps = range(len(trace.losses))
        apart = [_drawn(abs(a - b)) for a, b in zip(trace.losses, trace.expected, strict=True)]
        bound = [_drawn(each) for each in trace.tolerated]
        series = (
            Series("difference of the losses", tuple(zip(map(float, steps), apart, strict=True))),
            Series("what rounding explains", tuple(zip(map(float, steps), bound, strict=True))),
        )
        panels.append(ChartPanel("losses over optimiser steps", "step", series, x_scale="linear"))
    return render_svg([panels]) if panels else ""


def _ratios(which: str, rows: Sequence[LayerComparison]) -> ChartPanel:
    ratios = tuple((float(place), min(max(row.deviation.ratio, _LEAST), _MOST_DRAWN)) for place, row in enumerate(rows))
    line = ((0.0, MAX_ROUNDING_UNITS), (float(max(1, len(rows) - 1)), MAX_ROUNDING_UNITS))
    series = (Series("units of rounding", ratios), Series("bound", line))
    return ChartPanel(f"{which} pass", "layers in the order of execution", series, x_scale="linear")


def _table_row(row: LayerComparison) -> str:
    deviation = row.deviation
    ratio = "beyond measure" if deviation.ratio >= INFINITE_RATIO else f"{deviation.ratio:.3g}"
    cells = [row.layer, row.class_name, row.which, row.what, ratio, f"{deviation.measured:.2e}"]
    cells += [f"{deviation.tolerated:.2e}", _remark(row)]
    marked = ' class="wrong"' if row.is_guilty else ""
    return f"<tr{marked}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n"


def _remark(row: LayerComparison) -> str:
    parts = [row.deviation.note, f"in the code of {row.inside}" if row.inside else ""]
    if row.deviation.undefined:
        parts.append(f"{row.deviation.undefined} of {row.deviation.entries} entries hang on decisions of rounding")
    return "; ".join(filter(None, parts))


def _drawn(value: float) -> float:
    """Within what a logarithmic axis shows; what is not finite lies at its upper end."""
    return 1e30 if math.isnan(value) else max(min(value, 1e30), 1e-12)
