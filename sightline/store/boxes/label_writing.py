"""Numbers, splits and documents in the files of labels that are written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from sightline.store.boxes.label_table import BoxCorners, LabelledImage, is_valid_box

SPLIT_WORDS = {"train": "train", "validation": "val", "test": "test", "all": ""}
"""Split → the word for it in names of files and folders; empty for images of no split."""
_DECIMALS = 9
"""Digits of a pixel: fewer than those in which widths and corners differ by rounding."""


def plain(number: float) -> int | float:
    """Round a number to 1e-9; whole numbers become int."""
    rounded = round(number, _DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded


def xyxy_to_xywh(box: BoxCorners) -> list[int | float]:
    """Return left, top, width and height of a box, as they are written."""
    left, top, right, bottom = box
    return [plain(left), plain(top), plain(right - left), plain(bottom - top)]


def round_box(box: BoxCorners, *, is_ignored: bool) -> BoxCorners:
    """Round a box to whole pixels, at least one wide and high; ignored boxes may stay empty."""
    left, top, right, bottom = (float(round(number)) for number in box)
    if not is_valid_box((left, top, right, bottom), is_ignored=is_ignored):
        right, bottom = max(right, left + 1), max(bottom, top + 1)
    return left, top, right, bottom


def group_by_split(images: Sequence[LabelledImage]) -> dict[str, list[LabelledImage]]:
    """Group images by the word of their split, in their order."""
    groups: defaultdict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        groups[SPLIT_WORDS[image.split]].append(image)
    return groups


def name_file(stem: str, word: str, suffix: str) -> str:
    """Return the name of a file of a split: stem_word.suffix, or stem.suffix for images of no split."""
    return f"{stem}_{word}{suffix}" if word else f"{stem}{suffix}"


def city_path(image: LabelledImage, folder: str) -> str:
    """Return folder/SPLIT/CITY/NAME.png; the city is the folder that the image is in."""
    path = PurePosixPath(image.name)
    return f"{folder}/{SPLIT_WORDS[image.split]}/{path.parent.name or 'images'}/{path.stem}.png"


def json_bytes(document: Any, *, indent: int | None = 1) -> bytes:
    """Encode a document as JSON, with a line break at its end."""
    return (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode()
