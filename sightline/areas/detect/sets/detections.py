"""Detections of images in pixels of their files, and result files that contain them (COCO, CrowdHuman)."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sightline.areas.detect.sets.image_listing import MAX_PX, CategoryIds
from sightline.areas.detect.sets.records import BoxRecord
from sightline.contract.errors import DataError
from sightline.store.files.input_files import parse_json_content, read_file

_parse_json = partial(parse_json_content, advice="write the results again")


class ImageRef(NamedTuple):
    """Identity of an image in result files, and its height and width in pixels after the EXIF rotation of its boxes."""

    name: str
    image_id: int
    height: int
    width: int


class SetIndex(NamedTuple):
    """All images of a set, by id and name, and all its classes: result files may contain more than one split."""

    images: frozenset[int | str] = frozenset()
    category_ids: frozenset[int] = frozenset()


@runtime_checkable
class BoxImages(Protocol):
    """Interface of a split of images with boxes for which result files can be read and written."""

    classes: CategoryIds

    def __len__(self) -> int: ...

    def record(self, index: int) -> BoxRecord: ...

    def image(self, index: int) -> ImageRef: ...

    def set_index(self) -> SetIndex: ...


@dataclass(frozen=True)
class Detections:
    """Detections of one image: boxes (D, 4) float64, left, top, right, bottom in pixels of its file, not clipped.

    `scores` (D,) float64, `label` (D,) int64 from 0. Arrays are read-only. Result files hold widths and heights: read
    back, right and bottom may differ by a rounding error of float64 (not if all corners were float32 values of usual
    size); all else is exact. Raises ValueError for arrays of different lengths.
    """

    image: ImageRef
    boxes: np.ndarray
    scores: np.ndarray
    label: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype, shape in (
            ("boxes", np.float64, (-1, 4)),
            ("scores", np.float64, (-1,)),
            ("label", np.int64, (-1,)),
        ):
            array = np.array(getattr(self, name), dtype=dtype).reshape(shape)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not len(self.boxes) == len(self.scores) == len(self.label):
            raise ValueError(
                f"{self.image.name}: found {len(self.boxes)} boxes, {len(self.scores)} scores and {len(self.label)} "
                "classes; give a score and a class for each box"
            )

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of a COCO result file; `category_ids` are the ids of the classes, in order."""
        return [
            {"image_id": self.image.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for box, score, label in self._rows()
        ]

    def to_odgt(self) -> dict[str, Any]:
        """Return a line of a CrowdHuman result file, for `json.dumps`; class k has the tag k + 1."""
        rows = [{"box": box, "score": score, "tag": label + 1} for box, score, label in self._rows()]
        return {"ID": self.image.name, "width": self.image.width, "height": self.image.height, "dtboxes": rows}

    def _rows(self) -> Iterable[tuple[list[float], float, int]]:
        """Iterate over boxes (left, top, width, height), scores and labels."""
        boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return zip(boxes.tolist(), self.scores.tolist(), self.label.tolist(), strict=True)


class DetectionResults(NamedTuple):
    """Detections per image, in order (possibly none), and the numbers of rows about other images and classes."""

    detections: list[Detections]
    num_other_images: int
    num_other_classes: int


def read_results(path: Path, dataset: BoxImages) -> DetectionResults:
    """Read the detections of a split's images from a COCO result file, or from CrowdHuman's lines (.odgt).

    A COCO result file is a list of rows of image_id (or the name of the image, or the `file_name` of the annotations),
    category_id, bbox (left, top, width, height) and score; lines have ID, and dtboxes of box, score and perhaps tag.
    Raises DataError with the row, counted from 0, or the line, from 1, for an image or a class that the set does not
    have, an id or a file name that two images of the split have, and an invalid box or score.
    """
    images = [dataset.image(index) for index in range(len(dataset))]
    index_by_key = {key: index for index, image in enumerate(images) for key in (image.image_id, image.name)}
    duplicates = duplicate_image_ids(images)
    ends = _name_ends(image.name for image in images)
    label_by_category = {number: label for label, number in enumerate(dataset.classes.ids)}
    others = dataset.set_index()
    other_ends = _name_ends(key for key in others.images if isinstance(key, str))
    rows: list[list[tuple[float, ...]]] = [[] for _ in images]
    num_others = [0, 0]
    for where, row in (_read_lines if path.suffix == ".odgt" else _read_rows)(path):
        try:
            key, category = row["image_id" if "image_id" in row else "file_name"], row["category_id"]
            index, label = index_by_key.get(key), label_by_category.get(category)
            values = [*row["bbox"], row["score"]]
            numbers = np.array([] if any(isinstance(value, bool) for value in (key, category, *values)) else values)
        except (KeyError, TypeError, ValueError):
            numbers = np.zeros(0)
        is_number = numbers.shape == (5,) and numbers.dtype.kind in "iuf"
        is_valid = is_number and np.isfinite(numbers).all() and (numbers[2:4] >= 0).all()
        if not is_valid or (abs(numbers[:4]) > MAX_PX).any():
            raise DataError(
                f"{path}: {where} is {str(row)[:160]}; it needs image_id, category_id, bbox (left, top, and width and "
                f"height from 0 on, each up to {MAX_PX:,} pixels) and score, all finite numbers"
            )
        if key in duplicates:
            raise DataError(
                f"{path}: {where} is of one of {duplicates[key]}; give the name of the file as its image_id"
            )
        file_name = _normalize_name(key) if index is None and isinstance(key, str) else None
        matches = ends.get(file_name, [])
        if len(matches) > 1:
            raise DataError(
                f"{path}: {where} is of one of {len(matches)} images called '{key}' ({', '.join(matches[:2])}); give "
                "the whole name as its image_id"
            )
        index = index_by_key[matches[0]] if matches else index
        if index is None and key not in others.images and file_name not in other_ends:
            raise DataError(
                f"{path}: {where}: the set has no image {key!r}; its first is {images[0][1]}, '{images[0][0]}'"
            )
        if label is None and category not in others.category_ids:
            raise DataError(
                f"{path}: {where}: the set has no category {category!r}, but {', '.join(map(str, label_by_category))}"
            )
        if index is None or label is None:
            num_others[0 if index is None else 1] += 1
        else:
            left, top, width, height, score = numbers.tolist()
            rows[index].append((left, top, left + width, top + height, score, label))
    tables = [np.array(image_rows, dtype=np.float64).reshape(-1, 6) for image_rows in rows]
    detections = [Detections(image, *np.split(t, (4, 5), axis=1)) for image, t in zip(images, tables, strict=True)]
    return DetectionResults(detections, *num_others)


def duplicate_image_ids(images: Iterable[ImageRef]) -> dict[int, str]:
    """Return the ids that several images have (from different annotation files), with a text that names the images."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for image in images:
        names[image.image_id].append(image.name)
    return {
        image_id: f"{len(group)} images with the id {image_id} ({', '.join(group[:2])})"
        for image_id, group in names.items()
        if group[1:]
    }


def _name_ends(names: Iterable[str]) -> dict[str | None, list[str]]:
    """Index image names by every path suffix: result files may state a name relative to any folder."""
    names_by_end: defaultdict[str | None, list[str]] = defaultdict(list)
    for name in names:
        parts = _normalize_name(name).split("/")
        for first in range(len(parts)):
            names_by_end["/".join(parts[first:])].append(name)
    return names_by_end


def _normalize_name(name: str) -> str:
    """Normalise a file name: forward slashes, no `.` parts, Unicode form NFC."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix())


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse_json(read_file(path), where=str(path))
    if not isinstance(rows, list):
        contents = f"an object with {', '.join(rows)}" if isinstance(rows, dict) else f"a {type(rows).__name__}"
        raise DataError(
            f"{path}: a list of rows is needed, found {contents}; write COCO results, with the ids of the set"
        )
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the boxes of CrowdHuman's lines as rows with COCO's keys; tag k is the category k."""
    names: set[str] = set()
    for number, text in enumerate(read_file(path).splitlines(), start=1):
        if not text.strip():
            continue
        line = _parse_json(text, where=f"{path}: line {number}")
        try:
            name, boxes = str(line["ID"]), line["dtboxes"]
            rows = [
                {**box, "bbox": box.get("box"), "image_id": name, "category_id": box.get("tag", 1)} for box in boxes
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: line {number}: ID and dtboxes are needed ({error!r})") from error
        if name in names:
            raise DataError(f"{path}: line {number}: the image '{name}' appears twice; keep one of the lines")
        names.add(name)
        yield from ((f"line {number}, box {index}", row) for index, row in enumerate(rows))
