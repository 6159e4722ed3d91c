"""Paths of predicted label files in the layout of the SemanticKITTI evaluator and server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sightline.data.scans.scan_reading import SCAN_SUFFIXES

__all__ = ["label_path", "scan_name", "without_endings"]


def scan_name(path: Path) -> str | None:
    """Return `08/000000` for `.../08/velodyne/000000.bin`; None for a file in another layout."""
    sequence = path.absolute().parent.parent.name
    return f"{sequence}/{path.stem}" if path.parent.name == "velodyne" and sequence.isdecimal() else None


def label_path(name: str | None) -> Path | None:
    """Return `sequences/08/predictions/000000.label` for the scan `08/000000`; None for other names."""
    match = re.fullmatch(r"(\d+)/(\d+)", name or "")
    return match and Path("sequences", match[1], "predictions", f"{match[2]}.label")


def without_endings(names: Sequence[str]) -> list[str]:
    """Remove the file suffixes of scan names, as `predict` names its files; names that would collide keep them."""
    stems = [
        str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(SCAN_SUFFIXES) else name for name in names
    ]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
