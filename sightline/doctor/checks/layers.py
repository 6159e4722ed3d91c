"""Checks of single layers against references: outputs, gradients, drift, layers that no reference covers."""

from __future__ import annotations

from collections import Counter

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.oracles.results import FORWARD, OracleResult


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


@check("G24", "layer-gradient", "deep")
def layer_gradient(context: Context) -> list[Finding]:
    """The float64 gradient of each tensor equals finite differences; for losses the second derivative as well.

    Finds: Layers and losses whose backward pass is not the derivative of their forward pass.

    Only the innermost layer with a wrong gradient is reported, not the modules that contain it.
    """
    wrong = [row for row in context.oracle_results if row.is_wrong_backward]
    inner = [row for row in wrong if not any(_contains_gradients(row, other) for other in wrong)]
    return [
        _finding_gradient(context, row, [other.place for other in wrong if _contains_gradients(other, row)])
        for row in inner
    ]


def _contains_gradients(row: OracleResult, other: OracleResult) -> bool:
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


_COLUMNS = ("layer", "of them", "first", "NumPy", "gradient", "second", "float32", "verdict")


@check("G24", "unverified-layers", "deep", severity="note", causes=("model.structure",), config_path="model")
def unverified_layers(context: Context) -> list[Finding]:
    """Every kind of layer and every loss agrees with a NumPy reference and with finite differences, as a table shows.

    Finds: Layers without an independent reference, or that could not be run alone.

    The verdict is `checked` for both, `half-checked` for correct gradients without a reference, `declared` for a
    surrogate gradient on purpose. Correct gradients do not make a correct forward pass.
    """
    rows = context.oracle_results
    if not rows:
        return []
    counted = Counter(row.verdict for row in rows)
    declared = sorted({name for row in rows for name in row.declared})
    doubtful = [row for row in rows if row.verdict in ("half-checked", "declared", "not checked")]
    return [
        unverified_layers.finding(
            context,
            ", ".join(f"{counted[verdict]} {verdict}" for verdict in _VERDICTS if counted[verdict])
            + f" of {len(rows)} kinds of layers and losses"
            + (f"; surrogate gradients of {', '.join(declared)}" if declared else ""),
            measured="; ".join(_describe(row) for row in doubtful) or "all agree with NumPy",
            expected="a reference in NumPy and correct gradients, for each",
            action="nothing; see the tests of a layer without a reference",
            evidence={
                "table": {"title": "layers", "columns": list(_COLUMNS), "rows": [_make_cells(row) for row in rows]}
            },
        )
    ]


_VERDICTS = ("checked", "half-checked", "declared", "not checked", "wrong")


def _describe(row: OracleResult) -> str:
    kind = row.kind.split("(", 1)[0]
    reason = f"surrogate gradient of {', '.join(row.declared)}" if row.declared else row.note
    return f"{kind} '{row.place}' {row.verdict}" + (f" ({reason})" if reason else "")


def _make_cells(row: OracleResult) -> list[object]:
    numbers = [
        None if value is None else f"{value:.1e}" for value in (row.forward, row.gradient_error, row.second, row.drift)
    ]
    return [row.kind, row.count, row.place, *numbers, row.verdict]
