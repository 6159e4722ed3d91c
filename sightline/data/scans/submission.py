"""Files of predicted labels in the layout that SemanticKITTI's evaluator and its server read."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["label_place", "scan_name"]


def scan_name(path: Path) -> str | None:
    """`08/000000` of `.../08/velodyne/000000.bin`; None for a file of another layout."""
    sequence = path.absolute().parent.parent.name
    return f"{sequence}/{path.stem}" if path.parent.name == "velodyne" and sequence.isdecimal() else None


def label_place(name: str | None) -> Path | None:
    """Where the labels of the scan `08/000000` go: `sequences/08/predictions/000000.label`; None for other names."""
    found = re.fullmatch(r"(\d+)/(\d+)", name or "")
    return found and Path("sequences", found[1], "predictions", f"{found[2]}.label")
