"""Codes of the runtime moment: what `sightline.watch` and a training run judge while a loop trains.

What each code expects, its causes and what to do are rows of runtime_rules.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.workbench.check.checks.model.no_gradient import no_gradient
from sightline.workbench.check.checks.optimiser.non_finite import non_finite
from sightline.workbench.check.context import FindingBuilder
from sightline.workbench.check.core.finding import Fault


def _read_rules() -> list[FindingBuilder]:
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return [FindingBuilder(**{**row, "causes": tuple(row["causes"])}) for row in rows]


RUNTIME_RULES = (*_read_rules(), no_gradient, non_finite)
_BY_CODE = {rule.code: rule for rule in RUNTIME_RULES}


def find_rule(code: str) -> FindingBuilder:
    """Return the rule of a code."""
    return _BY_CODE[code]


def report(code: str, summary: str, **fields: Any) -> tuple[FindingBuilder, Fault]:
    """Pair the rule of a code with a fault; `fields` are those of `Fault`."""
    return find_rule(code).with_fault(summary, **fields)
