"""The curves of attempts, as lines that `view.curves` draws and as panels over the rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.chart import ChartPanel, Series, render_svg
from sightline.doctor.overfit.fit_attempt import FitCurve
from sightline.doctor.overfit.optimizer_grid import OptimizerResult
from sightline.view.curves import encode_curves

__all__ = ["draw_curves", "draw_verdicts"]

_LEAST = 1e-4
"""A smaller share is drawn here: below a hundredth an attempt has ended, wherever it landed."""


def draw_curves(curves: Mapping[str, FitCurve]) -> str:
    """Every loss of several attempts over their steps, one curve for each name."""
    return encode_curves({name: _lines(curve) for name, curve in curves.items()})


def draw_verdicts(verdicts: Sequence[OptimizerResult]) -> str:
    """The best attempt of each optimiser, a panel for each number format; below, how far each rate came."""
    formats = list(dict.fromkeys(verdict.precision for verdict in verdicts))
    above = []
    for precision in formats:
        series = [_share(v.optimizer, v.best) for v in verdicts if v.precision == precision]
        drawn = tuple(each for each in series if each.points)
        above.append(ChartPanel(f"share of the way left, {precision}", "step", drawn, x_scale="linear"))
    below = [panel for v in verdicts if v.precision == formats[0] and (panel := _rates(v)) is not None]
    return render_svg([[panel if panel.series else None for panel in above], below] if formats else [])


def _share(name: str, curve: FitCurve) -> Series:
    points = [(float(step), max(share, _LEAST)) for step, share in enumerate(curve.shares) if not math.isnan(share)]
    return Series(name, tuple(points))


def _rates(verdict: OptimizerResult) -> ChartPanel | None:
    points = [(c.rate, max(c.lowest, _LEAST)) for c in verdict.curves if c.rate > 0 and not math.isnan(c.lowest)]
    if not points:
        return None
    return ChartPanel(f"{verdict.optimizer}: lowest share", "rate", (Series(verdict.optimizer, tuple(sorted(points))),))


def _lines(curve: FitCurve) -> list[dict[str, Any]]:
    lines = []
    for step, loss in enumerate(curve.losses):
        share = curve.shares[step]
        terms = {f"loss/{name}": values[step] for name, values in curve.terms.items()} if len(curve.terms) > 1 else {}
        left = None if math.isnan(share) else share
        lines.append({"step": step, "split": "", "loss/total": loss, **terms, "share left": left})
    return lines
