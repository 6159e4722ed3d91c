"""Reader of CrowdHuman annotation files (.odgt, one JSON object per line) and their ignore marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sightline.data.files.input_files import read_file
from sightline.errors import DataError
from sightline.regular_files import parse_json

__all__ = ["BOX_KEYS", "BoxType", "is_ignored", "read_odgt"]

BoxType = Literal["full", "visible", "head"]
BOX_KEYS: Mapping[BoxType, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}
"""Kinds of boxes and their keys in the file; each box is left, top, width, height."""


def read_odgt(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file. Raises DataError with the line for bad JSON, no ID or gtboxes, or a repeated ID."""
    lines: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            key, boxes = str(line["ID"]), line["gtboxes"]
            marks = [box.get(mark) or {} for box in boxes for mark in ("extra", "head_attr")]
            if key.startswith("/") or ".." in key.split("/"):
                raise ValueError(f"the ID '{key[:80]}' leads out of the folder")
            if not all(isinstance(mark, dict) and not isinstance(mark.get("ignore"), str) for mark in marks):
                raise TypeError("extra and head_attr must be objects, and their ignore a number")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: is not a line of .odgt with ID and gtboxes ({error}); get it again"
            ) from error
        if key in lines:
            raise DataError(f"{path}:{number}: the image '{key}' appears twice; keep one of the lines")
        lines[key] = line
    if not lines:
        raise DataError(f"{path}: contains no lines; the file is empty or damaged")
    return list(lines.values())


def is_ignored(person: Mapping[str, Any], box: BoxType) -> bool:
    """Return True if a box is to be ignored: not a person, or marked `ignore`; head boxes have a mark of their own."""
    marks = [person.get("extra") or {}, (person.get("head_attr") or {}) if box == "head" else {}]
    return person.get("tag") != "person" or any(mark.get("ignore", 0) != 0 for mark in marks)
