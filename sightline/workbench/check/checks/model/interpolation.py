"""Interpolation between points: the weights of neighbours, by which features are averaged."""

from __future__ import annotations

from sightline.workbench.check.context import Context, step_check
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.neighbour_sums import NeighbourSum

_TOLERANCE = 1e-2
"""Rounding of a sum of weights that 16 bits explain."""
_SPREAD, _LARGE = 100.0, 10.0
"""Ratio of the sums, and the sum, from which weights are inverse distances that were not divided by their sum."""


@step_check(
    "G24",
    "neighbour-weights",
    severity="warning",
    causes=("model.geometry", "model.structure"),
    expected="weights that add up to 1, so that equal features stay what they are",
    action="divide the weights of the neighbours by their sum: weights / weights.sum(dim=-1, keepdim=True)",
)
def neighbour_weights(context: Context, step: DryRun) -> Fault | None:
    """Weights by which features of at most eight neighbours are summed do not add up to another number than 1.

    Finds: An interpolation between points whose weights are not divided by their sum, or that is scaled.

    Weights whose sums vary are judged only if they vary as inverse distances do: a layer may learn its weights.
    """
    for row in step.neighbour_sums:
        if _is_scaled(row) or _is_undivided(row):
            return Fault(
                f"features of {row.num_neighbours} neighbours are summed with weights that do not add up to 1",
                layer=row.layer or None,
                measured=f"sums {row.lowest:.6g} to {row.highest:.6g}, of weights {row.least:.3g} to {row.most:.3g}",
            )
    return None


def _is_scaled(row: NeighbourSum) -> bool:
    """Return True for one sum everywhere that is not 1, of weights that differ and are neither 0 alone nor 1."""
    is_constant = row.highest - row.lowest <= _TOLERANCE * row.highest and row.most - row.least > _TOLERANCE * row.most
    is_mask = row.least == 0 and row.most == 1
    return is_constant and row.least >= 0 and abs(row.highest - 1) > 2 * _TOLERANCE and not is_mask


def _is_undivided(row: NeighbourSum) -> bool:
    """Return True for sums that vary as inverse distances do, of which some are huge."""
    return row.least > 0 and row.highest > _LARGE and row.highest > _SPREAD * row.lowest
