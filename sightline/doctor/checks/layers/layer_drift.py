"""Layers whose float32 error is larger than rounding explains, for example because sums run in half precision."""

from __future__ import annotations

from sightline.doctor.checks.layers.layer_forward import result_location
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.results import OracleResult

__all__ = ["layer_drift"]


@check("G25", "layer-drift", "deep", severity="warning", causes=("model.numerics", "sys.backend"))
def layer_drift(context: Context) -> list[Finding]:
    """The median float32 error of a layer is at most 1e-5 of its largest output, on inputs exact in both formats.

    Finds: Layers whose float32 error is larger than rounding explains, for example because sums run in half precision.

    The limit is 1e-3 for modules with sub-modules, or sixteen times the change that rounding all inputs causes in
    float64 if that is larger. The median is used because rounding changes all values a little, whereas another choice
    of neighbours changes a few values a lot.
    """
    drifting = [row for row in context.oracle_results if row.is_drifting and not row.is_wrong_forward]
    inner = [row for row in drifting if not any(_contains(row, other) for other in drifting)]
    return [_finding_drift(context, row) for row in inner]


def _contains(row: OracleResult, other: OracleResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


def _finding_drift(context: Context, row: OracleResult) -> Finding:
    return layer_drift.finding(
        result_location(context, row),
        f"'{row.place}' loses more precision in float32 than rounding explains",
        measured=f"{row.kind}: the median error is {row.drift:.3g} of the largest value",
        expected=f"at most {row.drift_limit:.3g}: 1e-5 (1e-3 for modules with sub-modules), or sixteen times "
        "the effect of rounding its inputs",
        action="look for half precision inside, for differences of large numbers, and for long sums in one variable",
        evidence={"layers": row.count},
    )
