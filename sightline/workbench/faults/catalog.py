"""Catalogue of all cases: the rows of `cases.json`, each with its plant."""

from __future__ import annotations

import json
from pathlib import Path

from sightline.faults.case import FaultCase, HealthyCase
from sightline.faults.classify import CLASSIFY_PLANTS
from sightline.faults.compress import COMPRESS_PLANTS
from sightline.faults.contrast import CONTRAST_PLANTS
from sightline.faults.detect import DETECT_PLANTS
from sightline.faults.pose import POSE_PLANTS
from sightline.faults.segment import SEGMENT_PLANTS

_PLANTS = (
    CLASSIFY_PLANTS | SEGMENT_PLANTS | CONTRAST_PLANTS | POSE_PLANTS | DETECT_PLANTS | COMPRESS_PLANTS
)  # by the ids of cases; a row without a plant has overrides alone


def _read_rows(name: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return rows


FAULTS = tuple(
    FaultCase(
        id=row["id"],
        bench=row["bench"],
        cause=row["cause"],
        title=row["title"],
        names=row.get("names", ""),
        overrides=tuple(row.get("overrides", ())),
        plant=_PLANTS.get(row["id"]),
    )
    for row in _read_rows("cases.json")
)
HEALTHY: tuple[HealthyCase, ...] = tuple(
    HealthyCase(id=bench, title=f"the bench {bench}", bench=bench)
    for bench in ("CLS", "SEG", "SSL", "LID", "POSE", "DET", "CMP")
)
