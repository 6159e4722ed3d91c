"""Rules of events in a live loop: `watch` judges each where it happens; what they say are rows of events.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.doctor.finding import Fault, Finding, FindingLocation
from sightline.doctor.rules import RULES, Rule

_READS = ("events",)
"""Evidence of no check: these rules are judged while a loop runs."""
_TEXTS, _PLACES = ("says", "measured", "expected", "do"), ("layer", "param", "sample", "step")
_ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_FAULTS = {(row["code"], name): fault for row in _ROWS for name, fault in row["faults"].items()}
_EVENTS = {
    row["code"]: Rule(
        row["code"],
        row.get("severity", "error"),
        tuple(row["causes"]),
        row["expected"],
        row["action"],
        lambda **evidence: None,
        _READS,
        row.get("is_statistical", False),
    )
    for row in _ROWS
}
RULES.extend(_EVENTS.values())


def report(code: str, name: str, /, **words: Any) -> Finding:
    """Build the finding of an event by the rule of its code and the named row of its faults.

    A row has what it `says` and what is `measured`, with the names of `words` in braces; it may have `causes`, a
    `severity`, and what is `expected` and to `do` in place of the rule's. Words that name a place, `severity` and
    `causes` are set as well. A row's `mode` tells findings of a code apart.
    """
    row = _FAULTS[code, name]
    says, measured, expected, action = (row.get(key, "").format(**words) for key in _TEXTS)
    fault = Fault(
        says,
        measured=measured,
        expected=expected,
        action=action,
        causes=words.get("causes") or row.get("causes", ()),
        severity=words.get("severity") or row.get("severity"),
        where=FindingLocation(**{key: words[key] for key in _PLACES if key in words}),
        evidence={key: row[key] for key in ("mode", "stage") if key in row},
    )
    return _EVENTS[code].build(fault)
