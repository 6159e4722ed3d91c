"""Files of predicted labels in the layout that SemanticKITTI's evaluator and its server read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sightline.data.scans.scan_reading import SCAN_SUFFIXES

__all__ = ["label_path", "scan_name", "without_endings"]


def scan_name(path: Path) -> str | None:
    """`08/000000` of `.../08/velodyne/000000.bin`; None for a file of another layout."""
    sequence = path.absolute().parent.parent.name
    return f"{sequence}/{path.stem}" if path.parent.name == "velodyne" and sequence.isdecimal() else None


def label_path(name: str | None) -> Path | None:
    """Where the labels of the scan `08/000000` go: `sequences/08/predictions/000000.label`; None for other names."""
    found = re.fullmatch(r"(\d+)/(\d+)", name or "")
    return found and Path("sequences", found[1], "predictions", f"{found[2]}.label")


def without_endings(names: Sequence[str]) -> list[str]:
    """The names of scans without the endings of their files, as `predict` calls what it writes; those that would meet
    keep them."""
    stems = [
        str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(SCAN_SUFFIXES) else name for name in names
    ]
    times = Counter(stems)
    return [stem if times[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]
