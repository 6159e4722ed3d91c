"""Layers and losses whose backward pass is not the derivative of their forward pass."""

from __future__ import annotations

from sightline.doctor.checks.layers.layer_forward import result_location
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.results import OracleResult

__all__ = ["layer_gradient"]


@check("G24", "layer-gradient", "deep")
def layer_gradient(context: Context) -> list[Finding]:
    """The float64 gradient of each tensor equals finite differences; for losses the second derivative as well.

    Finds: Layers and losses whose backward pass is not the derivative of their forward pass.

    Only the innermost layer with a wrong gradient is reported, not the modules that contain it.
    """
    wrong = [row for row in context.oracle_results if row.is_wrong_backward]
    inner = [row for row in wrong if not any(_contains(row, other) for other in wrong)]
    return [_finding_gradient(context, row, [other.place for other in wrong if _contains(other, row)]) for row in inner]


def _contains(row: OracleResult, other: OracleResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    if row is other or row.is_loss or other.is_loss:
        return False
    return row.place.startswith("(") or other.place.startswith(f"{row.place}.")


def _finding_gradient(context: Context, row: OracleResult, containers: list[str]) -> Finding:
    causes = ("loss.detached", "loss.inplace", "loss.form") if row.is_loss else ("model.numerics", "loss.inplace")
    is_gradient = row.gradient_error is not None and not row.gradient_error <= row.tolerance
    suffix = "" if is_gradient else " (of the second derivative)"
    return layer_gradient.finding(
        result_location(context, row),
        f"the gradient of '{row.weakest}' in '{row.place}' is not the derivative of what it computes{suffix}",
        causes=causes,
        measured=f"{row.kind}: off by {row.gradient_error if is_gradient else row.second:.3g} of its size, in float64",
        expected=f"at most {row.tolerance:g}; correct gradients are a factor of ten below",
        action="look for a custom backward, for .data, detach() and no_grad, and for in-place edits; an intended "
        "surrogate gradient is declared by @sightline.surrogate_gradient or surrogate_gradient = True",
        evidence={"layers": row.count, "around": containers},
    )
