"""Boxes that were found in images, in pixels of their files, and the files of results that hold them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sightline.data.boxes.image_listing import MAX_PX, CategoryIds
from sightline.data.boxes.records import BoxRecord
from sightline.data.files.input_files import parse_json_content, read_file
from sightline.errors import DataError

__all__ = ["BoxImages", "DetectionResults", "Detections", "ImageRef", "SetIndex", "duplicate_image_ids", "read_results"]


_parsed = partial(parse_json_content, advice="write the results again")


class ImageRef(NamedTuple):
    """What names an image in files of results, and its height and width in pixels, turned as its boxes are."""

    name: str
    image_id: int
    height: int
    width: int


class SetIndex(NamedTuple):
    """All images of a set, by id and name, and all its classes: files of results may be about more than one part."""

    images: frozenset[int | str] = frozenset()
    category_ids: frozenset[int] = frozenset()


@runtime_checkable
class BoxImages(Protocol):
    """A part of a set of images with boxes that files of results can be about."""

    classes: CategoryIds

    def __len__(self) -> int: ...

    def record(self, index: int) -> BoxRecord: ...

    def image(self, index: int) -> ImageRef: ...

    def set_index(self) -> SetIndex: ...


@dataclass(frozen=True)
class Detections:
    """The boxes found in one image, in its file's pixels: (D, 4) left, top, right, bottom, float64, not clipped.

    `scores` (D,) float64, `label` (D,) int64 from 0. Arrays are read-only. Files of results give back the same bits of
    what float32 holds, else the last but one. Raises ValueError for arrays that do not belong together.
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
                f"{self.image.name}: {len(self.boxes)} boxes, {len(self.scores)} scores and {len(self.label)} classes"
            )

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a COCO file of results; `category_ids` are those of the classes, in their order."""
        return [
            {"image_id": self.image.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for box, score, label in self._rows()
        ]

    def to_odgt(self) -> dict[str, Any]:
        """A line of a CrowdHuman file of results, for `json.dumps`; class k has the tag k + 1."""
        found = [{"box": box, "score": score, "tag": label + 1} for box, score, label in self._rows()]
        return {"ID": self.image.name, "width": self.image.width, "height": self.image.height, "dtboxes": found}

    def _rows(self) -> Iterable[tuple[list[float], float, int]]:
        """Boxes as left, top, width, height."""
        boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        return zip(boxes.tolist(), self.scores.tolist(), self.label.tolist(), strict=True)


class DetectionResults(NamedTuple):
    """Detections of images in their order, of some perhaps none; and how many rows are of `Others`."""

    detections: list[Detections]
    num_other_images: int
    num_other_classes: int


def read_results(path: Path, dataset: BoxImages) -> DetectionResults:
    """The detections of a part's images in a COCO file of results, or in CrowdHuman's lines (.odgt).

    The former is a list of rows of image_id (or the name of the image, or the `file_name` of the annotations),
    category_id, bbox (left, top, width, height) and score; lines have ID, and dtboxes of box, score and perhaps tag.
    Raises DataError with the row, counted from 0, or the line, from 1, for an image or a class that the set does not
    have, an id or a file name that two images of the part have, and a box or score that cannot be meant.
    """
    images = [dataset.image(index) for index in range(len(dataset))]
    place_of = {key: place for place, image in enumerate(images) for key in (image.image_id, image.name)}
    twice = duplicate_image_ids(images)
    ends = _name_ends(image.name for image in images)
    label_of = {number: label for label, number in enumerate(dataset.classes.ids)}
    others = dataset.set_index()
    other_ends = _name_ends(key for key in others.images if isinstance(key, str))
    rows: list[list[tuple[float, ...]]] = [[] for _ in images]
    num_others = [0, 0]
    for at, row in (_lines if path.suffix == ".odgt" else _rows)(path):
        try:
            key, category = row["image_id" if "image_id" in row else "file_name"], row["category_id"]
            place, label = place_of.get(key), label_of.get(category)
            listed = [*row["bbox"], row["score"]]
            numbers = np.array([] if any(isinstance(each, bool) for each in (key, category, *listed)) else listed)
        except (KeyError, TypeError, ValueError):
            numbers = np.zeros(0)
        is_number = numbers.shape == (5,) and numbers.dtype.kind in "iuf"
        is_meant = is_number and np.isfinite(numbers).all() and (numbers[2:4] >= 0).all()
        if not is_meant or (abs(numbers[:4]) > MAX_PX).any():
            raise DataError(
                f"{path}: {at} is {str(row)[:160]}; it needs image_id, category_id, bbox (left, top, and width and "
                f"height from 0 on, each up to {MAX_PX:,} pixels) and score, all finite numbers"
            )
        if key in twice:
            raise DataError(f"{path}: {at} is of one of {twice[key]}; give the name of the file as its image_id")
        file_name = _file_name(key) if place is None and isinstance(key, str) else None
        named = ends.get(file_name, [])
        if len(named) > 1:
            raise DataError(
                f"{path}: {at} is of one of {len(named)} images called '{key}' ({', '.join(named[:2])}); give the "
                "whole name as its image_id"
            )
        place = place_of[named[0]] if named else place
        if place is None and key not in others.images and file_name not in other_ends:
            raise DataError(
                f"{path}: {at}: the set has no image {key!r}; its first is {images[0][1]}, '{images[0][0]}'"
            )
        if label is None and category not in others.category_ids:
            raise DataError(f"{path}: {at}: the set has no category {category!r}, but {', '.join(map(str, label_of))}")
        if place is None or label is None:
            num_others[0 if place is None else 1] += 1
        else:
            left, top, width, height, score = numbers.tolist()
            rows[place].append((left, top, left + width, top + height, score, label))
    tables = [np.array(each, dtype=np.float64).reshape(-1, 6) for each in rows]
    found = [Detections(image, *np.split(t, (4, 5), axis=1)) for image, t in zip(images, tables, strict=True)]
    return DetectionResults(found, *num_others)


def duplicate_image_ids(images: Iterable[ImageRef]) -> dict[int, str]:
    """The ids that several images have, each from an annotation file of its own, and these images in words."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for image in images:
        names[image.image_id].append(image.name)
    return {
        key: f"{len(each)} images with the id {key} ({', '.join(each[:2])})" for key, each in names.items() if each[1:]
    }


def _name_ends(names: Iterable[str]) -> dict[str | None, list[str]]:
    """The names of images by all that follows a `/` in them, and by the whole: file names lie below some folder."""
    found: defaultdict[str | None, list[str]] = defaultdict(list)
    for name in names:
        parts = _file_name(name).split("/")
        for first in range(len(parts)):
            found["/".join(parts[first:])].append(name)
    return found


def _file_name(name: str) -> str:
    """A file name in one spelling: slashes as on Linux, no `.` between them, letters with accents composed."""
    return unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).as_posix())


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parsed(read_file(path), where=str(path))
    if not isinstance(rows, list):
        held = f"an object with {', '.join(rows)}" if isinstance(rows, dict) else f"a {type(rows).__name__}"
        raise DataError(f"{path}: a list of rows is needed, found {held}; write COCO results, with the ids of the set")
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The boxes of lines as rows of COCO's keys; tag k is the category k."""
    seen: set[str] = set()
    for number, text in enumerate(read_file(path).splitlines(), start=1):
        if not text.strip():
            continue
        line = _parsed(text, where=f"{path}: line {number}")
        try:
            name, boxes = str(line["ID"]), line["dtboxes"]
            rows = [
                {**box, "bbox": box.get("box"), "image_id": name, "category_id": box.get("tag", 1)} for box in boxes
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: line {number}: ID and dtboxes are needed ({error!r})") from error
        if name in seen:
            raise DataError(f"{path}: line {number}: the image '{name}' is there twice; keep one of the lines")
        seen.add(name)
        yield from ((f"line {number}, box {place}", row) for place, row in enumerate(rows))
