"""Rule of slips in the graph of a live loss: operands that do not fit, and operations that are not what they seem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.doctor.finding import Fault
from sightline.doctor.rules import rule

_ROWS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@rule(
    "loss-form",
    "error",
    "loss.form",
    holds="a loss that compares each output with its own target",
    do="look at the shapes and the operations of the loss",
)
def graph_slip(slip: str, numbers: Mapping[str, Any]) -> Fault:
    """Say what a slip is by the row of its name, with the numbers and names of the graph in it."""
    row = _ROWS[slip]
    return Fault(
        row["says"].format(**numbers),
        measured=row["measured"].format(**numbers),
        expected=row["expected"],
        action=row["do"],
        causes=row.get("causes", ()),
    )
