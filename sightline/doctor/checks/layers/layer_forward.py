"""Layers and losses whose forward pass is not that of their type, by references in plain NumPy."""

from __future__ import annotations

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.oracles.results import FORWARD, OracleResult

__all__ = ["layer_forward", "result_location"]


@check("G24", "layer-forward", "deep")
def layer_forward(context: Context) -> list[Finding]:
    """In float64 a layer, or a class derived from it, gives what plain loops give, to 1e-10."""
    return [_of_row(context, row) for row in context.oracle_results if row.is_wrong_forward]


def _of_row(context: Context, row: OracleResult) -> Finding:
    causes: tuple[str, ...] = ("model.structure", "sys.backend")
    if row.is_loss:
        squares = context.squared_losses.get(row.place)
        is_divided = squares is not None and not 0.5 <= squares.factor <= 2  # halves and doubles are forms
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
    """Where a row's loss stands in the config, or where the class of its layer is written."""
    if row.is_loss:
        return context.place(context.loss_path(row.place))
    file, line = row.file
    return (
        context.place("model", layer=row.place)
        if file is None
        else FindingLocation(file=file, line=line, layer=row.place)
    )
