"""Rules of events in a live loop: `watch` judges each where it happens; what they say are rows of events.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.doctor.finding import Fault, Finding, FindingLocation
from sightline.doctor.rules import RULES, Rule

_READS = ("events",)
"""Evidence of no check: these rules are judged while a loop runs."""


def _read_rules() -> list[Rule]:
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return [
        Rule(
            row["code"],
            row.get("severity", "error"),
            tuple(row["causes"]),
            row["expected"],
            row["action"],
            lambda **evidence: None,
            _READS,
        )
        for row in rows
    ]


_EVENTS = {rule.code: rule for rule in _read_rules()}
RULES.extend(_EVENTS.values())


def report(
    code: str,
    summary: str,
    *,
    layer: str | None = None,
    param: str | None = None,
    sample: int | None = None,
    step: int | None = None,
    **fields: Any,
) -> Finding:
    """Build the finding of an event by the rule of its code; `fields` are those of `Fault`."""
    where = FindingLocation(layer=layer, param=param, sample=sample, step=step)
    return _EVENTS[code].build(Fault(summary, where=where, **fields))
