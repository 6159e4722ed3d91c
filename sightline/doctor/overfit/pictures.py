"""Pictures of attempts: loss curves for `view.curves`, and panels over the learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.chart import ChartPanel, Series, render_svg
from sightline.doctor.overfit.fit_attempt import FitCurve
from sightline.doctor.overfit.optimizer_grid import OptimizerResult
from sightline.view.curves import curves_of

__all__ = ["draw_curves", "draw_verdicts"]

_MIN_SHARE = 1e-4
"""Smallest share drawn: below a hundredth an attempt has ended, and its exact share does not matter."""


def draw_curves(curves: Mapping[str, FitCurve]) -> str:
    """Draw every loss of several attempts over their steps, one curve for each name."""
    return curves_of({name: _curve_lines(curve) for name, curve in curves.items()})


def draw_verdicts(verdicts: Sequence[OptimizerResult]) -> str:
    """Draw the best attempt of each optimiser, one panel per number format; below, the lowest share of each rate."""
    formats = list(dict.fromkeys(verdict.precision for verdict in verdicts))
    format_panels = []
    for precision in formats:
        series = [_share_series(v.optimizer, v.best) for v in verdicts if v.precision == precision]
        visible_series = tuple(curve for curve in series if curve.points)
        format_panels.append(
            ChartPanel(f"share of the way left, {precision}", "step", visible_series, x_scale="linear")
        )
    rate_panels = [panel for v in verdicts if v.precision == formats[0] and (panel := _rate_panel(v)) is not None]
    return render_svg([[panel if panel.series else None for panel in format_panels], rate_panels] if formats else [])


def _share_series(name: str, curve: FitCurve) -> Series:
    points = [(float(step), max(share, _MIN_SHARE)) for step, share in enumerate(curve.shares) if not math.isnan(share)]
    return Series(name, tuple(points))


def _rate_panel(verdict: OptimizerResult) -> ChartPanel | None:
    points = [(c.rate, max(c.lowest, _MIN_SHARE)) for c in verdict.curves if c.rate > 0 and not math.isnan(c.lowest)]
    if not points:
        return None
    return ChartPanel(f"{verdict.optimizer}: lowest share", "rate", (Series(verdict.optimizer, tuple(sorted(points))),))


def _curve_lines(curve: FitCurve) -> list[dict[str, Any]]:
    lines = []
    for step, loss in enumerate(curve.losses):
        share = curve.shares[step]
        terms = {f"loss/{name}": values[step] for name, values in curve.terms.items()} if len(curve.terms) > 1 else {}
        remaining = None if math.isnan(share) else share
        lines.append({"step": step, "split": "", "loss/total": loss, **terms, "share left": remaining})
    return lines
