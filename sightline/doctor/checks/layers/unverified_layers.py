"""Layers without an independent reference, or that could not be run alone."""

from __future__ import annotations

from collections import Counter

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.results import OracleResult

__all__ = ["unverified_layers"]

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
