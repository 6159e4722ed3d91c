"""Layers that lose more in float32 than rounding takes, as where sums run in half precision."""

from __future__ import annotations

from sightline.doctor.checks.layers.layer_forward import result_location
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.results import OracleResult

__all__ = ["layer_drift"]


@check("G25", "layer-drift", "deep", severity="warning", causes=("model.numerics", "sys.backend"))
def layer_drift(context: Context) -> list[Finding]:
    """The middle value of a layer's float32 output is that of float64, on numbers that both hold, nearly.

    Up to 1e-5 of the largest (1e-3 for what is made of other layers), or sixteen times what rounding all that goes in
    does to it in float64. The middle one, since a neighbour chosen otherwise changes few values a lot, and rounding all
    of them a little.
    """
    drifting = [row for row in context.oracle_results if row.drifts and not row.is_wrong_forward]
    inner = [row for row in drifting if not any(_holds(row, other) for other in drifting)]
    return [_of_row(context, row) for row in inner]


def _holds(row: OracleResult, other: OracleResult) -> bool:
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


def _of_row(context: Context, row: OracleResult) -> Finding:
    return layer_drift.finding(
        result_location(context, row),
        f"'{row.place}' is far less exact in float32 than float32 is",
        measured=f"{row.kind}: the middle value is off by {row.drift:.3g} of the largest",
        expected=f"at most {row.drift_limit:.3g}: 1e-5 (1e-3 for what is made of others), or sixteen times "
        "what rounding of its inputs does to it",
        action="look for half precision inside, for differences of large numbers, and for sums of many in one variable",
        evidence={"layers": row.count},
    )
