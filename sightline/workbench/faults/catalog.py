"""Catalogue of all cases: the rows of `cases.json`, each with its plant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightline.workbench.faults.case import FaultCase, HealthyCase
from sightline.workbench.faults.classify import CLASSIFY_PLANTS
from sightline.workbench.faults.compress import COMPRESS_PLANTS
from sightline.workbench.faults.contrast import CONTRAST_PLANTS
from sightline.workbench.faults.detect import DETECT_PLANTS
from sightline.workbench.faults.files import FILE_PLANTS
from sightline.workbench.faults.healthy import HEALTHY_PLANTS
from sightline.workbench.faults.loops import LOOPS
from sightline.workbench.faults.pose import POSE_PLANTS
from sightline.workbench.faults.ranks import RANK_LOOPS
from sightline.workbench.faults.segment import SEGMENT_PLANTS

_PLANTS = {
    **CLASSIFY_PLANTS,
    **SEGMENT_PLANTS,
    **CONTRAST_PLANTS,
    **POSE_PLANTS,
    **DETECT_PLANTS,
    **COMPRESS_PLANTS,
    **FILE_PLANTS,
    **HEALTHY_PLANTS,
}
"""Plants by the ids of cases; a row without one has overrides alone, or is the bench itself."""


def _read_rows(name: str) -> list[dict[str, Any]]:
    rows = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return [{**row, "overrides": tuple(row.get("overrides", ())), "plant": _PLANTS.get(row["id"])} for row in rows]


FAULTS = tuple(
    FaultCase(**{**row, "pits": tuple(row.get("pits", ()))}, loop={**LOOPS, **RANK_LOOPS}.get(row["id"]))
    for row in _read_rows("cases.json")
)
"""Faults, in the order of the open faults O1 to O80, then the others."""
HEALTHY = tuple(HealthyCase(**row) for row in _read_rows("healthy.json"))
"""Healthy runs: the controls H1 to H16, correct parts of a user's own, and the benches as they are."""
