"""Collection of the files to predict, from the given files and folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sightline.data.files.cloud_files import is_cloud_file, list_skipped_files
from sightline.predict.predictor import Refusal

__all__ = ["collect_files"]

logger = logging.getLogger(__name__)


def collect_files(paths: Iterable[Path], *, suffixes: Sequence[str]) -> tuple[list[Path], list[Refusal]]:
    """Collect the given files and, sorted, those with one of `suffixes` in and below the given folders.

    Folders without such files, or that cannot be read, are returned as refusals. Each file occurs once. Numbers in
    names are sorted as numbers: frame_10 follows frame_9. A given file is never skipped, regardless of its suffix;
    skipped files in a folder are named in a warning. Broken links and pipes are among the files. From a folder in
    KITTI's layouts the files in folders `velodyne` are taken: poses and calibrations are text, too.
    """
    files: dict[Path, None] = {}
    refused = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
            files.setdefault(path)
            continue
        try:
            os.scandir(path).close()  # rglob silently skips folders without permission
        except OSError as error:
            refused.append(Refusal(path, f"{path}: cannot be read ({error.strerror}); check its permissions"))
            continue
        matches = [file for file in path.rglob("*") if is_cloud_file(file, suffixes=suffixes)]
        scans = [file for file in matches if file.parent.name == "velodyne"]
        selected = sorted(scans or matches, key=_make_sort_key)
        files |= dict.fromkeys(selected)
        if skipped := list_skipped_files(path, suffixes=suffixes):
            logger.warning("%s: %s", path, skipped)
        if not selected:
            refused.append(Refusal(path, f"{path}: holds no file of the kinds {', '.join(suffixes)}"))
    return list(files), refused


def _make_sort_key(path: Path) -> tuple[list[list[tuple[bool, int, str]]], Path]:
    """Make a sort key of paths: folder by folder, with numbers in names compared as numbers."""
    parts = [[part for part in re.split(r"(\d+)", name) if part] for name in path.parts]
    key = [[(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name] for name in parts]
    return key, path
