"""Checks of single layers against references: outputs, gradients, drift, layers that no reference covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sightline.doctor.finding import FindingLocation
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.oracles.results import FORWARD, OracleResult


@check("layer-forward", "deep", expected=f"at most {FORWARD:g}: the same as its definition in NumPy, loop by loop")
def layer_forward(context: Context) -> Iterator[Fault]:
    """The float64 output of a layer, or of a class derived from it, equals its NumPy reference within 1e-10.

    Finds: Layers and losses whose forward pass differs from a NumPy reference of their type.
    """
    for row in context.oracle_results:
        if row.is_wrong_forward:
            note = f" ({row.note})" if row.note else ""
            yield Fault(
                f"the {'loss' if row.is_loss else 'layer'} '{row.place}' does not compute the definition of its type"
                f"{note}",
                where=result_location(context, row),
                causes=_order_causes(context, row),
                measured=f"{row.kind}: off by {row.forward:.3g} of its largest value, in float64",
                action="compare it with its definition; a layer that is meant to differ should derive from nn.Module"
                if not row.is_loss
                else "return the SUM from forward, and from count what it is divided by; then compare it with its "
                "definition",
                evidence={"layers": row.count, "off": row.forward},
            )


def _order_causes(context: Context, row: OracleResult) -> tuple[str, ...]:
    if "running" in row.note or "evaluation" in row.note:
        return "model.norm_mode", "model.structure", "sys.backend"
    if not row.is_loss:  # nobody wrote torch's own layers here
        return ("sys.backend", "model.structure") if row.file[0] is None else ("model.structure", "sys.backend")
    squares = context.squared_losses.get(row.place)
    is_divided = squares is not None and not 0.5 <= squares.factor <= 2  # factors of 0.5 and 2 are common definitions
    return ("loss.normaliser", "loss.form") if is_divided else ("loss.form", "loss.normaliser", "loss.sign")


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


@check("layer-drift", "deep", severity="warning", causes=("model.numerics", "sys.backend"))
def layer_drift(context: Context) -> Iterator[Fault]:
    """The median float32 error of a layer is at most 1e-5 of its largest output, on inputs exact in both formats.

    Finds: Layers whose float32 error is larger than rounding explains, for example because sums run in half precision.

    The limit is 1e-3 for modules with sub-modules, or sixteen times the change that rounding all inputs causes in
    float64 if that is larger. The median is used because rounding changes all values a little, whereas another choice
    of neighbours changes a few values a lot.
    """
    drifting = [row for row in context.oracle_results if row.is_drifting and not row.is_wrong_forward]
    for row in drifting:
        if not any(_contains(row, other) for other in drifting):
            yield Fault(
                f"'{row.place}' loses more precision in float32 than rounding explains",
                where=result_location(context, row),
                measured=f"{row.kind}: the median error is {row.drift:.3g} of the largest value",
                expected=f"at most {row.drift_limit:.3g}: 1e-5 (1e-3 for modules with sub-modules), or sixteen times "
                "the effect of rounding its inputs",
                action="look for half precision inside, for differences of large numbers, and for long sums in one "
                "variable",
                evidence={"layers": row.count},
            )


def _contains(row: OracleResult, other: OracleResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


@check(
    "layer-gradient",
    "deep",
    action="look for a custom backward, for .data, detach() and no_grad, and for in-place edits; an intended "
    "surrogate gradient is declared by @sightline.surrogate_gradient or surrogate_gradient = True",
)
def layer_gradient(context: Context) -> Iterator[Fault]:
    """The float64 gradient of each tensor equals finite differences; for losses the second derivative as well.

    Finds: Layers and losses whose backward pass is not the derivative of their forward pass.

    Only the innermost layer with a wrong gradient is reported, not the modules that contain it.
    """
    wrong = [row for row in context.oracle_results if row.is_wrong_backward]
    layers = [row for row in wrong if not row.is_loss]
    for row in wrong:
        if not row.is_loss and any(_contains(row, other) for other in layers):
            continue
        is_gradient = row.gradient_error is not None and not row.gradient_error <= row.tolerance
        suffix = "" if is_gradient else " (of the second derivative)"
        yield Fault(
            f"the gradient of '{row.weakest}' in '{row.place}' is not the derivative of what it computes{suffix}",
            where=result_location(context, row),
            causes=("loss.detached", "loss.inplace", "loss.form")
            if row.is_loss
            else ("model.numerics", "loss.inplace"),
            measured=f"{row.kind}: off by {row.gradient_error if is_gradient else row.second:.3g} of its size, in "
            "float64",
            expected=f"at most {row.tolerance:g}; correct gradients are a factor of ten below",
            evidence={
                "layers": row.count,
                "around": [other.place for other in layers if not row.is_loss and _contains(other, row)],
            },
        )


_COLUMNS = ("layer", "of them", "first", "NumPy", "gradient", "second", "float32", "verdict")


@check("unverified-layers", "deep", severity="note", causes=("model.structure",), config_path="model")
def unverified_layers(context: Context) -> Fault | None:
    """Every kind of layer and every loss agrees with a NumPy reference and with finite differences, as a table shows.

    Finds: Layers without an independent reference, or that could not be run alone.

    The verdict is `checked` for both, `half-checked` for correct gradients without a reference, `declared` for a
    surrogate gradient on purpose. Correct gradients do not make a correct forward pass.
    """
    rows = context.oracle_results
    if not rows:
        return None
    counted = Counter(row.verdict for row in rows)
    declared = sorted({name for row in rows for name in row.declared})
    doubtful = [row for row in rows if row.verdict in ("half-checked", "declared", "not checked")]
    return Fault(
        ", ".join(f"{counted[verdict]} {verdict}" for verdict in _VERDICTS if counted[verdict])
        + f" of {len(rows)} kinds of layers and losses"
        + (f"; surrogate gradients of {', '.join(declared)}" if declared else ""),
        measured="; ".join(_describe(row) for row in doubtful) or "all agree with NumPy",
        expected="a reference in NumPy and correct gradients, for each",
        action="nothing; see the tests of a layer without a reference",
        evidence={"table": {"title": "layers", "columns": list(_COLUMNS), "rows": [_make_cells(row) for row in rows]}},
    )


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
