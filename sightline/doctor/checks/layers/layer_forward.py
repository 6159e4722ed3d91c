"""Layers and losses whose forward pass differs from a NumPy reference of their type."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.oracles.results import FORWARD, OracleResult

__all__ = ["layer_forward", "result_location"]


@check("G24", "layer-forward", "deep")
def layer_forward(context: Context) -> list[Finding]:
    """The float64 output of a layer, or of a class derived from it, equals its NumPy reference within 1e-10.

    Finds: Layers and losses whose forward pass differs from a NumPy reference of their type.
    """
    return [_finding_forward(context, row) for row in context.oracle_results if row.is_wrong_forward]


def _finding_forward(context: Context, row: OracleResult) -> Finding:
    causes: tuple[str, ...] = ("model.structure", "sys.backend")
    if row.is_loss:
        squares = context.squared_losses.get(row.place)
        is_divided = (
            squares is not None and not 0.5 <= squares.factor <= 2
        )  # factors of 0.5 and 2 are common definitions
        causes = ("loss.normaliser", "loss.form") if is_divided else ("loss.form", "loss.normaliser", "loss.sign")
    if "running" in row.note or "evaluation" in row.note:
        causes = ("model.norm_mode", "model.structure", "sys.backend")
    note = f" ({row.note})" if row.note else ""
    return layer_forward.finding(
        result_location(context, row),
        f"the {'loss' if row.is_loss else 'layer'} '{row.place}' does not compute the definition of its type{note}",
        causes=causes,
        measured=f"{row.kind}: off by {row.forward:.3g} of its largest value, in float64",
        expected=f"at most {FORWARD:g}: the same as its definition in NumPy, loop by loop",
        action="compare it with its definition; a layer that is meant to differ should derive from nn.Module"
        if not row.is_loss
        else "return the SUM from forward, and from count what it is divided by; then compare it with its definition",
        evidence={"layers": row.count, "off": row.forward},
    )


def result_location(context: Context, row: OracleResult) -> FindingLocation:
    """Return the config path of a row's loss, or the file and line of its layer's class."""
    if row.is_loss:
        return context.place(context.loss_path(row.place))
    file, line = row.file
    return (
        context.place("model", layer=row.place)
        if file is None
        else FindingLocation(file=file, line=line, layer=row.place)
    )
