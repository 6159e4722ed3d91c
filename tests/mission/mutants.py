"""One edit a row that breaks its feature and raises nothing: a value changes, and the row must turn red."""

from __future__ import annotations

from tests.mission.trial import Edit

__all__ = ["MUTANTS", "UNBREAKABLE"]

MUTANTS: dict[str, Edit] = {
    # --- clouds: S0.1 to S0.18
    # --- clouds: S0.19 to S0.35
    # --- volumes and fitting: S1
    # --- compressed: S2
    # --- pedestrians: S3
    "S3.4": Edit(
        "areas/detect/sets/coco.py",
        'return xywh_to_xyxy(annotation["bbox"])',
        'return tuple(float(number) for number in annotation["bbox"])',
    ),
    # --- scans: S4
}
"""Edits by the numbers of rows; `python -m tests.mission --mutants` applies each to a copy of the package."""

UNBREAKABLE: dict[str, str] = {}
"""Rows that no edit of the package breaks in silence, each with the reason."""
