"""Detections of images in pixels of their files, and result files that contain them (COCO, CrowdHuman)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import NameEnds
from sightline.store.boxes.label_table import MAX_PX, CategoryIds
from sightline.store.boxes.records import BoxRecord
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
        boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)
        rows = zip(boxes.tolist(), self.scores.tolist(), self.label.tolist(), strict=True)
        return [
            {"image_id": self.image.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for box, score, label in rows
        ]


class DetectionResults(NamedTuple):
    """Detections per image, in order (possibly none), the numbers of rows about other images and classes, and notes."""

    detections: list[Detections]
    num_other_images: int
    num_other_classes: int
    notes: Sequence[str] = ()


def read_results(path: Path, dataset: BoxImages, *, category_offset: int = 0) -> DetectionResults:
    """Read the detections of a split's images from a COCO result file, or from CrowdHuman's lines (.odgt).

    A COCO result file is a list of rows of image_id or file_name, category_id, bbox (left, top, width, height) and
    score; lines have ID, and dtboxes of box, score and perhaps tag. Category ids are `category_offset` above those of
    the set. Images are known as `_ImageKeys` says. Raises DataError with the row, counted from 0, or the line, from 1,
    for an image or a class that the set does not have, for a key that fits two images of the split, and for an invalid
    box or score.
    """
    images = [dataset.image(index) for index in range(len(dataset))]
    rows, name_row = (_read_lines if path.suffix == ".odgt" else _read_rows)(path)
    columns = _to_columns(rows)
    if columns is None:
        index = next(index for index, row in enumerate(rows) if _to_columns([row]) is None)
        raise DataError(
            f"{path}: {name_row(index)} is {str(rows[index])[:160]}; it needs image_id, category_id, bbox (left, top, "
            f"and width and height from 0 on, each up to {MAX_PX:,} pixels) and score, all finite numbers"
        )
    set_index = dataset.set_index()
    places, notes = _ImageKeys(images, set_index).find(columns.keys, path, name_row)
    image = np.array([places[key] for key in columns.keys], dtype=np.int64)
    labels = _match_categories(columns.categories, dataset.classes, set_index, category_offset, path, name_row)
    label = np.array([labels[number] for number in columns.categories], dtype=np.int64)
    chosen = np.flatnonzero((image >= 0) & (label >= 0))
    chosen = chosen[np.argsort(image[chosen], kind="stable")]
    numbers, label_sorted = columns.numbers[chosen], label[chosen]
    boxes = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1)
    ends = np.searchsorted(image[chosen], np.arange(len(images) + 1)).tolist()
    detections = [
        Detections(image_index, boxes[start:stop], numbers[start:stop, 4], label_sorted[start:stop])
        for image_index, start, stop in zip(images, ends[:-1], ends[1:], strict=True)
    ]
    return DetectionResults(detections, int((image < 0).sum()), int(((image >= 0) & (label < 0)).sum()), notes)


_Key = tuple[int | str | None, str | None]
"""What names the image of a row: image_id and file_name, None for one that is not there."""
_OTHER = -1
"""Stands for images, and classes, of the set that the split, or the config, has not chosen."""


class _Columns(NamedTuple):
    keys: list[_Key]
    categories: list[int]
    numbers: np.ndarray


def _to_columns(rows: Sequence[Any]) -> _Columns | None:
    """Return keys, category ids, and boxes with scores (N, 5) of rows; None if one is invalid."""
    try:
        keys = [(row.get("image_id"), row.get("file_name")) for row in rows]
        categories = [row["category_id"] for row in rows]
        values = [[*row["bbox"], row["score"]] for row in rows]
        numbers = np.array(values).reshape(-1, 5)
        kinds = {type(value) for row in values for value in row} | {*map(type, categories)}
        key_kinds = {(type(number), type(name)) for number, name in keys}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    known = {(number, name) for number in (int, float, str, _NONE) for name in (str, _NONE)} - {(_NONE, _NONE)}
    if not (kinds <= {int, float} and key_kinds <= known and numbers.dtype.kind in "iuf") or len(numbers) != len(rows):
        return None
    table = numbers.astype(np.float64)
    is_near = bool((np.abs(table[:, :4]) <= MAX_PX).all() and (table[:, 2:4] >= 0).all())
    return _Columns(keys, categories, table) if is_near and np.isfinite(table).all() else None


_NONE = type(None)


class _ImageKeys:
    """Index of the images of a split, and of those of the set beyond it, by all that result files call them.

    The image_id of a row is an id of the set, a name or the end of one, with or without suffix. If it is none of this,
    the file_name decides.
    """

    def __init__(self, images: Sequence[ImageRef], set_index: SetIndex) -> None:
        self._images, self._set_index = images, set_index
        self._indices: defaultdict[int | str, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            self._indices[image.image_id].append(index)
            self._indices[image.name].append(index)
        beyond = sorted(key for key in set_index.images if isinstance(key, str))
        self._names = dict.fromkeys([*(image.name for image in images), *beyond])

    @cached_property
    def _ends(self) -> NameEnds:
        return NameEnds(self._names)

    def find(
        self, keys: Sequence[_Key], path: Path, name_row: Callable[[int], str]
    ) -> tuple[dict[_Key, int], Sequence[str]]:
        """Return the index of the image of each key, `_OTHER` for one beyond the split, and a note on unusual keys."""
        distinct = dict.fromkeys(keys)
        matches_by_key = {key: self._match(key) for key in distinct}
        indices = {}
        for key, matches in matches_by_key.items():
            inside = [index for index in matches if index != _OTHER]
            if not matches or len(inside) > 1:
                raise DataError(f"{path}: {name_row(keys.index(key))}{self._explain(key, inside)}")
            indices[key] = inside[0] if inside else _OTHER
        unusual = [
            (image_id or name, self._images[index].name)
            for (image_id, name), index in indices.items()
            if index != _OTHER and image_id not in (self._images[index].image_id, self._images[index].name)
        ]
        notes = [
            f"{len(unusual)} images are known by parts of their names, first: {key!r} is '{n}'"
            for key, n in unusual[:1]
        ]
        return indices, notes

    def _match(self, key: _Key) -> list[int]:
        """Return the images that fit image_id and file_name, or the one of the two that the set has."""
        image_id, name = key
        by_id = [] if image_id is None else self._indices.get(image_id) or self._match_name(image_id)
        by_name = [] if name is None else self._match_name(name)
        return [index for index in by_id if index in by_name] if by_id and by_name else by_id or by_name

    def _match_name(self, name: int | str) -> list[int]:
        if name in self._set_index.images:
            return self._indices.get(name, [_OTHER])
        names = self._ends.find(name) if isinstance(name, str) else []
        return [index for match in names for index in self._indices.get(match, [_OTHER])]

    def _explain(self, key: _Key, inside: Sequence[int]) -> str:
        image_id, name = key
        if inside:
            names = ", ".join(self._images[index].name for index in inside[:2])
            called = f"called '{image_id or name}'" if isinstance(image_id, str | _NONE) else f"with the id {image_id}"
            return f" is of one of {len(inside)} images {called} ({names}); give the whole name as its image_id"
        if self._match((image_id, None)) and self._match((None, name)):
            return (
                f": the set has another image {image_id!r} than '{name}'; leave image_id or file_name out of the rows"
            )
        named, first = name if image_id is None else image_id, self._images[0]
        return f": the set has no image {named!r}; its first is {first.image_id}, '{first.name}'"


def _match_categories(
    categories: Sequence[int],
    classes: CategoryIds,
    set_index: SetIndex,
    offset: int,
    path: Path,
    name_row: Callable[[int], str],
) -> dict[int, int]:
    """Return the label of each category id, `_OTHER` for a class that the config does not choose."""
    labels = {number + offset: label for label, number in enumerate(classes.ids)}
    known = labels.keys() | {number + offset for number in set_index.category_ids}
    distinct = dict.fromkeys(categories)
    unknown = next((number for number in distinct if number not in known), None)
    if unknown is not None:
        steps = [step for step in (1, -1) if all(number - step in known for number in distinct)]
        first = min(known, default=0) - offset
        advice = [
            f"; ids count from {first + offset + step}, the set's from {first}: category_offset={offset + step}"
            for step in steps
        ]
        raise DataError(
            f"{path}: {name_row(categories.index(unknown))}: the set has no category {unknown!r}, but "
            f"{', '.join(map(str, labels))}{''.join(advice[:1])}"
        )
    return {number: labels.get(number, _OTHER) for number in distinct}


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


def _read_rows(path: Path) -> tuple[list[Any], Callable[[int], str]]:
    rows = _parse_json(read_file(path), where=str(path))
    if not isinstance(rows, list):
        contents = f"an object with {', '.join(rows)}" if isinstance(rows, dict) else f"a {type(rows).__name__}"
        raise DataError(
            f"{path}: a list of rows is needed, found {contents}; write COCO results, with the ids of the set"
        )
    return rows, "row {}".format


def _read_lines(path: Path) -> tuple[list[Any], Callable[[int], str]]:
    """Return the boxes of CrowdHuman's lines as rows with COCO's keys, and their names; tag k is the category k."""
    names: set[str] = set()
    results: list[Any] = []
    places: list[str] = []
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
        results += rows
        places += [f"line {number}, box {index}" for index in range(len(rows))]
    return results, places.__getitem__
