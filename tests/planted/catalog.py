"""Cases: faults with their true cause, and healthy runs that only look odd; rows of two files, each with its plant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.doctor.finding import CAUSES
from tests.planted.classify import CLASSIFY_PLANTS
from tests.planted.compress import COMPRESS_PLANTS
from tests.planted.contrast import CONTRAST_PLANTS
from tests.planted.detect import DETECT_PLANTS
from tests.planted.files import FILE_PLANTS
from tests.planted.healthy import HEALTHY_PLANTS
from tests.planted.loops import LOOPS, Loop
from tests.planted.planting import Plant, Planter
from tests.planted.pose import POSE_PLANTS
from tests.planted.ranks import RANK_LOOPS
from tests.planted.segment import SEGMENT_PLANTS


@dataclass(frozen=True, kw_only=True)
class HealthyCase:
    """Run on a bench, changed by overrides of its config and by a plant; healthy, though it may look odd."""

    id: str
    title: str
    bench: str
    overrides: tuple[str, ...] = ()
    plant: Plant | None = None

    def plant_into(self, planter: Planter) -> None:
        """Change the bench as the case says."""
        planter.override(*self.overrides)
        if self.plant is not None:
            self.plant(planter)


@dataclass(frozen=True, kw_only=True)
class FaultCase(HealthyCase):
    """Fault in one seam of a bench (or, where our loop cannot have it, of a plain loop), and its true cause.

    `names` is a regular expression: a refusal or a warning that matches it names the cause in words. `pits` are the
    numbers of the pits in notes of real projects (P1 to P98) that it is.
    """

    cause: str
    names: str = ""
    pits: tuple[str, ...] = ()
    loop: Loop | None = None

    def __post_init__(self) -> None:
        assert self.cause in CAUSES, f"case {self.id} has a cause outside the vocabulary: {self.cause}"


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
