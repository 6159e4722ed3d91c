"""Checks of single layers: outputs against the type that they derive from, gradients against finite differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sightline.doctor.finding import FindingLocation
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.oracles.results import FORWARD, GRADIENT, OracleResult


@check("layer-forward", "deep", causes=("model.structure", "sys.backend"), expected=f"at most {FORWARD:g}")
def layer_forward(context: Context) -> Iterator[Fault]:
    """The output of a layer of a class derived from a type of torch's is what that type computes.

    Finds: Layers whose forward pass differs from that of the type that they derive from.
    """
    for row in context.oracle_results:
        if row.is_wrong_forward:
            yield Fault(
                f"the layer '{row.place}' does not compute the definition of its type"
                + (f" ({row.note})" if row.note else ""),
                where=result_location(context, row),
                measured=f"{row.kind}: off by {row.forward:.3g} of its largest value",
                action="compare it with its definition; a layer that is meant to differ should derive from nn.Module",
                evidence={"layers": row.count, "off": row.forward},
            )


def result_location(context: Context, row: OracleResult) -> FindingLocation:
    """Return the file and line of a layer's class."""
    file, line = row.file
    return (
        context.place("model", layer=row.place)
        if file is None
        else FindingLocation(file=file, line=line, layer=row.place)
    )


def _contains(row: OracleResult, other: OracleResult) -> bool:
    """Return True if the other layer is inside this one; the whole model contains all layers."""
    return row is not other and (row.place.startswith("(") or other.place.startswith(f"{row.place}."))


@check(
    "layer-gradient",
    "deep",
    causes=("model.numerics", "loss.inplace"),
    expected=f"at most {GRADIENT:g}; correct gradients are a factor of ten below",
    action="look for a custom backward, for .data, detach() and no_grad, and for in-place edits; an intended "
    "surrogate gradient is declared by @sightline.surrogate_gradient or surrogate_gradient = True",
)
def layer_gradient(context: Context) -> Iterator[Fault]:
    """The float64 gradient of each tensor equals finite differences.

    Finds: Layers whose backward pass is not the derivative of their forward pass.

    Only the innermost layer with a wrong gradient is reported, not the modules that contain it.
    """
    wrong = [row for row in context.oracle_results if row.is_wrong_backward]
    for row in wrong:
        if any(_contains(row, other) for other in wrong):
            continue
        yield Fault(
            f"the gradient of '{row.weakest}' in '{row.place}' is not the derivative of what it computes",
            where=result_location(context, row),
            measured=f"{row.kind}: off by {row.gradient_error:.3g} of its size, in float64",
            evidence={"layers": row.count, "around": [other.place for other in wrong if _contains(other, row)]},
        )


_COLUMNS = ("layer", "of them", "first", "its type", "gradient", "verdict")


@check("unverified-layers", "deep", severity="note", causes=("model.structure",), config_path="model")
def unverified_layers(context: Context) -> Fault | None:
    """Every kind of layer that is not torch's own agrees with finite differences, as a table shows.

    Finds: Layers that could not be run alone.

    The verdict is `checked`, `torch's` for its own code, `declared` for a surrogate gradient on purpose. Correct
    gradients do not make a correct forward pass.
    """
    rows = context.oracle_results
    if not rows:
        return None
    counted = Counter(row.verdict for row in rows)
    declared = sorted({name for row in rows for name in row.declared})
    doubtful = [row for row in rows if row.verdict in ("declared", "not checked")]
    return Fault(
        ", ".join(f"{counted[verdict]} {verdict}" for verdict in _VERDICTS if counted[verdict])
        + f" of {len(rows)} kinds of layers"
        + (f"; surrogate gradients of {', '.join(declared)}" if declared else ""),
        measured="; ".join(_describe(row) for row in doubtful) or "all agree with finite differences",
        expected="correct gradients of each",
        action="nothing; see the tests of a layer that could not be checked",
        evidence={"table": {"title": "layers", "columns": list(_COLUMNS), "rows": [_make_cells(row) for row in rows]}},
    )


_VERDICTS = ("checked", "torch's", "declared", "not checked", "wrong")


def _describe(row: OracleResult) -> str:
    kind = row.kind.split("(", 1)[0]
    reason = f"surrogate gradient of {', '.join(row.declared)}" if row.declared else row.note
    return f"{kind} '{row.place}' {row.verdict}" + (f" ({reason})" if reason else "")


def _make_cells(row: OracleResult) -> list[object]:
    numbers = [None if value is None else f"{value:.1e}" for value in (row.forward, row.gradient_error)]
    return [row.kind, row.count, row.place, *numbers, row.verdict]
