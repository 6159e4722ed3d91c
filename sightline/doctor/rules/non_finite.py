"""Rule of numbers that are not finite: where the first one is, of a checked batch, a live loop, or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.doctor.evidence.numerics import Origin
from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_ROWS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@rule(
    "non-finite",
    "error",
    "model.numerics optim.lr loss.form",
    holds="a finite loss and finite gradients",
    do="guard the division, root, logarithm or exponential there, or lower the learning rate",
)
def non_finite(origin: Origin | None) -> Fault | None:
    """Say where the first number that is not finite is, by the row of its place; the stage is in the evidence."""
    if origin is None:
        return None
    row = _ROWS[origin.place]
    says, expected, action = (row[key].format(**origin.words) for key in ("says", "expected", "do"))
    return Fault(
        says,
        measured=origin.measured,
        expected=expected,
        action=action,
        causes=origin.causes or row["causes"],
        where=origin.where,
        evidence={"stage": row.get("stage", origin.place), **origin.more},
    )
