"""The files to predict: those named, and those in and below the folders named."""

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
    """The files named and, sorted, those with one of `suffixes` in and below the folders named; and what is missing.

    Each file comes once. Numbers in names are sorted as numbers: frame_10 follows frame_9. A file that is named is
    never passed over, whatever its ending; those of other kinds in a folder are named in a warning. Broken links and
    pipes are among the files. Of a folder in KITTI's layouts the files in folders `velodyne` are taken: poses and
    calibrations are text, too.
    """
    files: dict[Path, None] = {}
    refused = []
    for path in paths:
        if not os.path.isdir(path):  # not the path's own question, which raises for a name that is too long
            files.setdefault(path)
            continue
        try:
            os.scandir(path).close()  # a search passes over what it may not open
        except OSError as error:
            refused.append(Refusal(path, f"{path}: cannot be read ({error.strerror}); check its permissions"))
            continue
        held = [each for each in path.rglob("*") if is_cloud_file(each, suffixes=suffixes)]
        scans = [each for each in held if each.parent.name == "velodyne"]
        inside = sorted(scans or held, key=_order_of)
        files |= dict.fromkeys(inside)
        if passed_over := list_skipped_files(path, suffixes=suffixes):
            logger.warning("%s: %s", path, passed_over)
        if not inside:
            refused.append(Refusal(path, f"{path}: holds no file of the kinds {', '.join(suffixes)}"))
    return list(files), refused


def _order_of(path: Path) -> tuple[list[list[tuple[bool, int, str]]], Path]:
    """What paths are sorted by: folder after folder, in which whole numbers come first, by their size."""
    parts = [[part for part in re.split(r"(\d+)", name) if part] for name in path.parts]
    key = [[(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name] for name in parts]
    return key, path
