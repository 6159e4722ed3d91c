"""Files of results: detections of frames in KITTI's rows, and in our own text and JSON, whose records name their frame.

KITTI's results are a folder with a text file for each frame, called by its id, of rows of 16 words: class, truncated,
occluded, alpha, the image box, height, width, length, the middle of the bottom in the rectified camera's frame, the
turn about its y axis, and score. Our own forms have boxes of the product, in the frame of the scanner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes3d.box_table import BoxTable, ImageBoxes, make_box_table
from sightline.store.boxes3d.conversions import FLAT_CAMERA, boxes_from_camera, boxes_to_camera
from sightline.store.boxes3d.kitti_rows import KittiRow
from sightline.store.boxes3d.label_rows import check_sizes, parse_name, parse_words
from sightline.store.boxes3d.txt_boxes import is_txt, read_txt
from sightline.store.files.input_files import list_files, parse_json_content, read_file
from sightline.store.files.text_tables import split_lines

__all__ = ["OWN_JSON", "format_json", "format_kitti", "format_text", "join_names", "read_results"]

OWN_JSON = "boxes3d.json"
"""Name of the file in which an evaluation saves detections."""
_FORM = "sightline 3D boxes"
_VERSION = 1
_HEADER = "# frame x y z dx dy dz yaw score class"
_KITTI_WORDS = (15, 16)
"""Words of a label, and of a detection."""
_ADVICE = "write the results again"
_KEYS = {"boxes": 7, "image": 5}
"""Numbers of an entry of each list of a frame."""


class _Rows(NamedTuple):
    """Boxes of a frame as they are read: `numbers` (8) of each are the box and score, `image` (7) KITTI's columns."""

    names: list[str]
    numbers: list[list[float]]
    image: list[list[float]]


def read_results(path: Path, cameras: Mapping[str, np.ndarray], *, are_labels: bool = False) -> dict[str, BoxTable]:
    """Read results: frame id → its detections, in the order of the files, scores and names of classes as stated.

    `path` is a folder of KITTI's rows, or of rows of `txt_boxes` with a column of scores; or `boxes3d.json` or another
    file of our own form, or a folder with one JSON file. `cameras` has the matrix (4, 4) from the scanner to the
    rectified camera of frames that have one; KITTI's rows of others are read as from a camera that stands in the
    scanner and looks ahead. A frame that is stated without boxes is an empty table. With `are_labels` rows need no
    score, and DontCare is a region of no class. Raises DataError with the file and the line or entry for anything that
    is not a box with a class and a finite score.
    """
    if path.is_dir():
        own = [path / OWN_JSON] if (path / OWN_JSON).is_file() else [*list_files(path, {".json"})]
        texts = [file for file in list_files(path, {".txt"}) if file.parent == path]
        if not own and texts:
            if any(is_txt(read_file(file)) for file in texts):
                return _make_tables({file.stem: _read_plain(file, are_labels=are_labels) for file in texts}, None)
            read = {file.stem: _read_kitti(file, are_labels=are_labels) for file in texts}
            return _make_tables(read, cameras)
        if len(own) != 1:
            raise DataError(
                f"{path}: found {len(own)} JSON files and no text file of a frame; give the folder of results, "
                "FRAME.txt for each frame, or a file of our own form"
            )
        path = own[0]
    content = read_file(path)
    if path.suffix.lower() == ".json":
        return _make_tables(_read_json(content, path), None)
    return _make_tables(_read_text(content, path, are_labels=are_labels), None)


def _make_tables(read: Mapping[str, _Rows], cameras: Mapping[str, np.ndarray] | None) -> dict[str, BoxTable]:
    """Make the tables of frames, boxes of a camera brought to the scanner; None if they are there already."""
    class_names = join_names(rows.names for rows in read.values())
    index = {name: number for number, name in enumerate(class_names)}
    tables = {}
    for frame, rows in read.items():
        numbers = np.array(rows.numbers, dtype=np.float64).reshape(-1, 8)
        boxes, image = numbers[:, :7], np.array(rows.image, dtype=np.float64).reshape(-1, 7)
        if cameras is not None:
            boxes = boxes_from_camera(boxes, cameras.get(frame, FLAT_CAMERA))
        occluded = np.where(np.isnan(image[:, 5]), -1, image[:, 5]).astype(np.int64)
        tables[frame] = make_box_table(
            boxes,
            np.array([index.get(name, -1) for name in rows.names], dtype=np.int64),
            class_names,
            score=numbers[:, 7],
            is_ignored=np.array([name == _REGION for name in rows.names], dtype=bool),
            frame=frame,
            image=ImageBoxes(image[:, :4], image[:, 4], occluded, image[:, 6]),
        )
    return tables


_REGION = "DontCare"


def join_names(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of classes of all frames, each once, without that of regions, in the order of the files."""
    return tuple(dict.fromkeys(name for of_frame in names for name in of_frame if name != _REGION))


# --- KITTI's rows -----------------------------------------------------------------------------------------------------


def _read_kitti(path: Path, *, are_labels: bool) -> _Rows:
    """Read the rows of a frame; boxes are x, y, z, length, height, width, turn, as `boxes_from_camera` takes them."""
    rows = _Rows([], [], [])
    for number, line in enumerate(split_lines(_decode(read_file(path), path)), start=1):
        words, where = line.split(), f"{path}:{number}"
        if not words:
            continue
        if len(words) not in _KITTI_WORDS[0 if are_labels else 1 :]:
            needed = "15 of a label" if are_labels else "16, the last is the score"
            raise DataError(f"{where}: has {len(words)} words, KITTI's rows have {needed}; {_ADVICE}")
        row = KittiRow.parse(words, where)
        height, width, length = row.size_hwl
        box = [*row.bottom, length, height, width, row.turn]
        if not (are_labels and row.name == _REGION):
            check_sizes(box, where)
        truncated = math.nan if row.truncated == -1 else row.truncated
        alpha = math.nan if row.alpha == -10 else row.alpha
        rows.names.append(row.name)
        rows.numbers.append([*box, row.score])
        rows.image.append([*row.corners_px, truncated, row.occluded, alpha])
    return rows


def _read_plain(path: Path, *, are_labels: bool) -> _Rows:
    """Read a frame's rows of the product's boxes whose columns are named, as `txt_boxes` reads them."""
    labels, rows = read_txt(path), _Rows([], [], [])
    stated, form = labels.frames[""], labels.forms["txt"]
    for box, numbers in zip(stated, form.reading.to_boxes(form.rows(stated)).tolist(), strict=True):
        if math.isnan(box.score) and not are_labels:
            raise DataError(
                f"{box.where}: has no score; name the columns in a first line, x,y,z,dx,dy,dz,yaw,class,score"
            )
        rows.names.append(box.name)
        rows.numbers.append([*numbers, box.score])
        rows.image.append([math.nan] * 7)
    return rows


def format_kitti(table: BoxTable, camera: np.ndarray = FLAT_CAMERA) -> str:
    """Write the detections of a frame as KITTI's rows of 16 words, from which all is read back to 1e-6.

    `camera` (4, 4) leads from the scanner to the rectified camera. What the table does not state of an image is written
    as KITTI's own marks: -1, -1, -10, and an image box of zeros. Raises DataError for a class name with white space.
    """
    boxes = boxes_to_camera(table.boxes, camera)
    image = table.image or _unknown_image(len(table))
    lines = []
    for row, (box, label) in enumerate(zip(boxes, table.label, strict=True)):
        name = table.class_names[label]
        if len(name.split()) != 1:
            raise DataError(f"'{name}': KITTI's rows hold no class name with white space; write JSON")
        truncated, alpha = _or_mark(image.truncated[row], -1), _or_mark(image.alpha[row], -10)
        corners = np.nan_to_num(image.corners_px[row], nan=0.0)
        x, y, z, length, height, width, turn = box
        numbers = (alpha, *corners, height, width, length, x, y, z, turn, float(table.score[row]))
        words = [_number(value) for value in numbers]
        lines.append(f"{name} {_number(truncated)} {int(image.occluded[row])} {' '.join(words)}\n")
    return "".join(lines)


def _unknown_image(count: int) -> ImageBoxes:
    unknown = np.full(count, np.nan)
    return ImageBoxes(np.full((count, 4), np.nan), unknown, np.full(count, -1, dtype=np.int64), unknown.copy())


def _or_mark(value: float, mark: float) -> float:
    return mark if math.isnan(value) else float(value)


def _number(value: float) -> str:
    text = f"{value:.7f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


# --- our own text -----------------------------------------------------------------------------------------------------


def _read_text(content: bytes, path: Path, *, are_labels: bool) -> dict[str, _Rows]:
    """Read lines of frame, seven numbers of the box, score and class; a line of a frame alone is one without boxes."""
    frames: dict[str, _Rows] = {}
    for number, line in enumerate(split_lines(_decode(content, path)), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        frame, *rest = words
        rows = frames.setdefault(frame, _Rows([], [], []))
        where = f"{path}:{number}"
        if not rest:
            continue
        if len(rest) < 9:
            raise DataError(
                f"{where}: has {len(words)} words; a line is {_HEADER[2:]}, or a frame alone that has no box; {_ADVICE}"
            )
        has_score = not (are_labels and rest[7].lower() == "nan")
        values = [*parse_words(rest[: 7 + has_score], where), *([] if has_score else [math.nan])]
        check_sizes(values, where)
        rows.names.append(parse_name(" ".join(rest[8:]), f"{where}: class"))
        rows.numbers.append(values)
        rows.image.append([math.nan] * 7)
    return frames


def format_text(tables: Mapping[str, BoxTable]) -> str:
    """Write the detections of all frames as lines of frame, box, score and class: read back bit for bit.

    What images state is not written. Raises DataError for a frame id with white space.
    """
    lines = [_HEADER]
    for frame, table in tables.items():
        if len(frame.split()) != 1 or frame.startswith("#"):
            raise DataError(f"'{frame}': lines of text hold no frame id with white space, or with # first; write JSON")
        lines += [] if len(table) else [frame]
        for box, score, label in zip(table.boxes.tolist(), table.score.tolist(), table.label.tolist(), strict=True):
            numbers = " ".join(repr(value) for value in (*box, score))
            lines.append(f"{frame} {numbers} {table.class_names[label]}")
    return "\n".join(lines) + "\n"


# --- our own JSON -----------------------------------------------------------------------------------------------------


def _read_json(content: bytes, path: Path) -> dict[str, _Rows]:
    document = parse_json_content(content, where=str(path), advice=_ADVICE)
    if not isinstance(document, dict) or document.get("form") != _FORM:
        raise DataError(
            f'{path}: is no file of our results, which begins with {{"form": "{_FORM}"}}, each record of which '
            f"names its frame; {_ADVICE}"
        )
    if document.get("version") != _VERSION:
        raise DataError(f"{path}: is of version {document.get('version')}, this program reads {_VERSION}; {_ADVICE}")
    entries = document.get("frames")
    if not isinstance(entries, list):
        raise DataError(f"{path}: has no list 'frames'; {_ADVICE}")
    frames: dict[str, _Rows] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: frames[{number}]"
        frame = entry.get("frame") if isinstance(entry, dict) else None
        if not isinstance(frame, str) or not frame:
            raise DataError(f"{where}: states no id of its 'frame'; results are matched by it; {_ADVICE}")
        if frame in frames:
            raise DataError(f"{where}: is the frame '{frame}' for the second time; join the two")
        frames[frame] = _read_entry(entry, where)
    return frames


def _read_entry(entry: Mapping[str, Any], where: str) -> _Rows:
    lists = {name: entry.get(name, []) for name in ("boxes", "score", "class")}
    lists["image"] = entry.get("image", [[None] * 5] * len(lists["boxes"]) if _is_list(lists["boxes"]) else [])
    if not all(map(_is_list, lists.values())) or len({*map(len, lists.values())}) != 1:
        raise DataError(f"{where}: boxes, score and class, and image if it is there, must be lists of one length")
    for row in range(len(lists["boxes"])):
        numbers = [lists["boxes"][row], [lists["score"][row]]]
        is_sound = all(_is_list(part) and all(map(_is_finite, part)) for part in numbers)
        image = lists["image"][row]
        is_sound &= _is_list(image) and len(image) == _KEYS["image"] and len(numbers[0]) == _KEYS["boxes"]
        if not is_sound or not all(value is None or _is_finite(value) for value in image):
            raise DataError(f"{where}, box {row}: needs 7 finite numbers, a score, and 5 numbers if it states an image")
        lists["class"][row] = parse_name(lists["class"][row], f"{where}.class[{row}]")
        check_sizes(numbers[0], f"{where}, box {row}")
    stated = [[math.nan if value is None else float(value) for value in image] for image in lists["image"]]
    return _Rows(
        [*lists["class"]],
        [[*map(float, (*box, score))] for box, score in zip(lists["boxes"], lists["score"], strict=True)],
        [[*image[:4], math.nan, math.nan, image[4]] for image in stated],
    )


def format_json(tables: Mapping[str, BoxTable]) -> str:
    """Write the detections of all frames as JSON: read back bit for bit, with image boxes and angles if stated."""
    frames = []
    for frame, table in tables.items():
        entry: dict[str, Any] = {"frame": frame, "boxes": table.boxes.tolist(), "score": table.score.tolist()}
        entry["class"] = [table.class_names[label] for label in table.label]
        if table.image is not None:
            rows = np.column_stack([table.image.corners_px, table.image.alpha])
            entry["image"] = [[None if math.isnan(value) else value for value in row] for row in rows.tolist()]
        frames.append(json.dumps(entry))
    about = f'{{"form": "{_FORM}", "version": {_VERSION}, "frames": [\n'
    return about + ",\n".join(frames) + "\n]}\n"


# --- checks -----------------------------------------------------------------------------------------------------------


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and -1e300 < value < 1e300


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text in UTF-8 (byte {error.start}); {_ADVICE}") from None
