"""Boxes as rows of text: x y z dx dy dz yaw class, with blanks or commas, a line of names above them or none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes3d.conversions import BoxReading, YawUnit
from sightline.store.boxes3d.label_rows import Form, LabelFile, StatedBox, check_sizes, parse_name, parse_words, show
from sightline.store.files.input_files import read_file
from sightline.store.files.text_tables import split_lines

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "x": ("cx", "center_x", "centre_x", "pos_x"),
    "y": ("cy", "center_y", "centre_y", "pos_y"),
    "z": ("cz", "center_z", "centre_z", "pos_z"),
    "dx": ("l", "length"),
    "dy": ("w", "width"),
    "dz": ("h", "height"),
    "yaw": ("heading", "heading_angle", "rot_z", "rotation_z", "theta"),
    "class": ("label", "name", "category", "type", "class_name", "category_name", "object_type"),
    "score": ("confidence",),
    "track": ("track_id", "obj_id", "object_id", "instance"),
}
"""Columns by the name that is written, each with other names that are read."""
_NAMES = {other: name for name, others in _COLUMNS.items() for other in (name, *others)}
_NEEDED = tuple(_COLUMNS)[:8]
_NUMBERS = _NEEDED[:7]
_COMMENTS = ("#", "//")
_FORM = "x y z dx dy dz yaw class"
_MIN_TURN_RAD = 2 * math.pi + 0.01
"""Angles beyond it are degrees."""
_MIN_WHOLE = 3
"""Different whole angles other than 0 that are degrees, where all are whole."""


def is_txt(content: bytes) -> bool:
    """Return True for rows of seven numbers and a class that is no number, or for such a line of names."""
    for line in split_lines(content.decode("utf-8", "replace").removeprefix("\ufeff")):
        words = _split(line)
        if words:
            return _read_names(words) is not None or (
                len(words) >= len(_NEEDED) and all(map(_is_number, words[:7])) and not _is_number(words[7])
            )
    return False


def read_txt(path: Path) -> LabelFile:
    """Read a text file; one without rows has a frame without boxes. The data decide how numbers are to be read.

    Without names the class is the rest of a line, and may contain blanks. Raises DataError with the line.
    """
    content = read_file(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16 text, two bytes a character; save it as UTF-8")
    try:
        lines = split_lines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    names: Sequence[str] | None = None
    boxes, notes = list[StatedBox](), list[str]()
    for number, line in enumerate(lines, start=1):
        words = _split(line)
        if not words:
            continue
        if not boxes and names is None and not _is_number(words[0]) and (read := _read_names(words)) is not None:
            names = read
            unread = [word for word, name in zip(words, names, strict=True) if not name]
            notes += [f"columns of boxes are not read: {', '.join(map(show, unread))}"] if unread else []
            continue
        boxes.append(_read_row(words, names, f"{path}:{number}", is_comma="," in line))
    form = Form(BoxReading(unit=guess_unit([box.numbers[6] for box in boxes])), frozenset())
    return LabelFile(path, "txt", {"": boxes}, {"txt": form}, tuple(notes))


def guess_unit(angles: Sequence[float]) -> YawUnit:
    """Return the unit of angles by their values: `deg` for those beyond a turn of radians, or all whole; else `rad`."""
    whole = {angle for angle in angles if angle == round(angle)} - {0.0}
    is_whole = len(whole) >= _MIN_WHOLE and all(angle == round(angle) for angle in angles)
    return "deg" if is_whole or any(abs(angle) > _MIN_TURN_RAD for angle in angles) else "rad"


def exceeds_turn(angles: Sequence[float]) -> bool:
    """Return True if an angle can be no radian: it is beyond a turn."""
    return any(abs(angle) > _MIN_TURN_RAD for angle in angles)


def _split(line: str) -> list[str]:
    """Return the words of a line, none of a comment or an empty line."""
    line = line.strip()
    if not line or line.startswith(_COMMENTS):
        return []
    return [word.strip() for word in line.removesuffix(",").split(",")] if "," in line else line.split()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_names(words: Sequence[str]) -> list[str] | None:
    """Return the columns that a line names, "" for one that is not read; None if it lacks one that is needed."""
    names = [_NAMES.get(word.lower().strip("\"'"), "") for word in words]
    return names if all(names.count(needed) == 1 for needed in _NEEDED) else None


def _read_row(words: Sequence[str], names: Sequence[str] | None, where: str, *, is_comma: bool) -> StatedBox:
    if names is not None:
        if len(words) != len(names) and (is_comma or len(words) < len(names) or names[-1] != "class"):
            raise DataError(f"{where}: has {len(words)} columns, its line of names has {len(names)}; correct the line")
        joined = [*words[: len(names) - 1], " ".join(words[len(names) - 1 :])]
        values = {name: word for name, word in zip(names, joined, strict=True) if name}
    else:
        if len(words) < len(_NEEDED):
            raise DataError(f"{where}: has {len(words)} columns; a box has {_FORM}: correct the line")
        rest = words[7:]
        if len(rest) > 1 and (is_comma or any(map(_is_number, rest))):
            raise DataError(
                f"{where}: has {len(words)} columns, {_FORM} are 8; name the columns in a line above the boxes, as in "
                f"'{_FORM.replace(' ', ',')},score', if there are others"
            )
        values = {**dict(zip(_NUMBERS, words, strict=False)), "class": " ".join(rest)}
    numbers = parse_words([values[name] for name in _NUMBERS], where)
    check_sizes(numbers, where)
    name = parse_name(values["class"].strip("\"'"), f"{where}: class")
    score = parse_words([values["score"]], where)[0] if values.get("score") else math.nan
    return StatedBox(name, tuple(numbers), where, score=score, track=values.get("track", ""))


def write_txt(names: Sequence[str], boxes: np.ndarray, scores: np.ndarray) -> bytes:
    """Write the boxes (M, 7) of a frame, blanks in names as `_`; scores are a column only where one is stated."""
    return "".join(_format_rows(names, boxes, scores)).encode()


def _format_rows(names: Sequence[str], boxes: np.ndarray, scores: np.ndarray) -> Iterator[str]:
    has_scores = bool(np.isfinite(scores).any())
    if has_scores:
        yield f"{_FORM} score\n".replace(" ", ",")
    separator = "," if has_scores else " "
    for name, box, score in zip(names, boxes, scores, strict=True):
        words = [
            *(f"{number:.9g}" for number in box),
            "_".join(name.split()),
            *([f"{score:.9g}"] if has_scores else []),
        ]
        yield separator.join(words) + "\n"
