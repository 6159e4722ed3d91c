"""COCO instances, and every export in that format: images with boxes of classes in a JSON file.

Reader of COCO instances: images, categories and boxes of a JSON file, as any tool exports them.

Bounding boxes of COCO masks: polygons and run-length encodings (RLE).
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.detect.sets.image_listing import (
    MAX_PX,
    AnnotationFaults,
    BoxCorners,
    CategoryIds,
    FaultPolicy,
    ListedImage,
    ListedImageSet,
    box_column,
    guess_split,
    is_valid_box,
    parse_number,
    plan_image_set,
    survey_images,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.labelled_images import BoxColumns, LabelledImages
from sightline.areas.detect.sets.records import box_facts
from sightline.contract import registry
from sightline.contract.arguments import ExifUse
from sightline.contract.errors import DataError
from sightline.contract.types import DataInfo
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.files.input_files import expand_home, list_folders, parse_json_content, read_file
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import summarise_folder
from sightline.store.prepared.prepared_writer import PreparationPlan, Progress

_MAX_SHIFT = 60
"""Maximum bit offset within one run length: no real file needs more, and unlimited text takes quadratic time."""


def mask_to_box(segmentation: Any, size_px: tuple[int, int] | None = None) -> tuple[float, float, float, float]:
    """Compute the bounding box (xyxy) of polygons [[x, y, x, y, ...], ...] or of an RLE mask {size, counts}.

    Raises ValueError or TypeError for anything else, for an empty mask, and for one that is not of the height and width
    `size_px` of its image. Source: pycocotools, maskApi.c.
    """
    if isinstance(segmentation, dict):
        height, width = _parse_integers(segmentation.get("size") or (0, 0))
        counts = segmentation.get("counts")
        if not (1 <= height <= MAX_PX and 1 <= width <= MAX_PX) or counts is None:
            raise ValueError("a mask needs size and counts")
        if size_px not in (None, (height, width)):
            raise ValueError(f"the mask has {height} x {width} pixels, its image {size_px[0]} x {size_px[1]}")
        runs = _decode_rle(counts) if isinstance(counts, str) else _parse_integers(counts)
        if min(runs, default=0) < 0 or sum(runs) != height * width:
            raise ValueError(f"the counts of a mask of {height} x {width} pixels do not add up to these")
        return _rle_to_box(runs, height)
    tables = [np.array(polygon) for polygon in segmentation]
    if any(table.dtype.kind not in "iuf" for table in tables):
        raise TypeError("corners of polygons are numbers")
    points = np.concatenate([table.astype(np.float64).reshape(-1, 2) for table in tables])
    low, high = points.min(axis=0), points.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _parse_integers(values: Any) -> list[int]:
    """Convert values to int. Raises ValueError, TypeError or OverflowError for anything but whole numbers."""
    numbers = [int(value) for value in values]
    if any(isinstance(value, str) or value != number for value, number in zip(values, numbers, strict=True)):
        raise ValueError("size and counts of a mask are whole numbers")
    return numbers


def _rle_to_box(counts: list[int], height: int) -> tuple[float, float, float, float]:
    """Compute the bounding box (xyxy) of an uncompressed COCO RLE mask (column-major)."""
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    starts, stops = ends[:-1:2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        raise ValueError("the mask is empty")
    left, right = starts // height, (stops - 1) // height
    is_long = right > left  # runs on in the next column, so it touches bottom and top
    top = np.where(is_long, 0, starts % height).min()
    bottom = np.where(is_long, height, (stops - 1) % height + 1).max()
    return float(left.min()), float(top), float(right.max() + 1), float(bottom)


def _decode_rle(text: str) -> list[int]:
    """Decode COCO's compressed RLE text: 5 bits per character; from the third count on, differences to counts[-2]."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > _MAX_SHIFT:
            raise ValueError("the text of a mask's counts is damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


COLUMNS = {
    "boxes": box_column((4,), "float64"),
    "label": box_column((), "int64"),
    "area": box_column((), "float64"),
    "is_ignored": box_column((), "bool"),
}
"""Stored columns of a box: left, top, right, bottom; class; area as stated in the file; is ignored."""
_Row = tuple[BoxCorners, int, float, bool]
_KEYS = ("images", "annotations", "categories")


def find_coco(source: Path, *, annotations: Sequence[str] | None, images: str | None) -> ListedImageSet:
    """List the images of a JSON file of COCO instances, or of a folder with such files.

    `annotations` and `images` are the paths of the JSON files and of the images' folder in it. Raises DataError for a
    folder without such files, for a file in another format, for an id of two images, and for splits whose categories
    differ.
    """
    root = expand_home(source).resolve()
    if root.is_file():
        root, annotations = root.parent, annotations or (root.name,)
    documents = find_annotation_files(root, annotations)
    tables = {path: read_categories(document, path) for path, document in documents.items()}
    (first, classes), *others = tables.items()
    for path, table in others:
        if table != classes:
            raise DataError(f"{path}: its categories are not those of {first}; export both with the same ones")
    faults, notes = (
        AnnotationFaults(),
        [line for path, document in documents.items() for line in _note_twice(document, path)],
    )
    listed = [
        image
        for path, document in documents.items()
        for image in _list_images(root, path, document, classes, images, faults)
    ]
    layout = "instances_json" if len(documents) == 1 else "instances_jsons"
    return ListedImageSet(root, layout, classes, listed, COLUMNS, "boxes", faults, notes)


def _note_twice(document: Mapping[str, Any], path: Path) -> list[str]:
    """Return a note on repeated annotation ids, of which pycocotools keeps the last annotation."""
    ids = [annotation.get("id") for annotation in document["annotations"] if isinstance(annotation, dict)]
    counts = Counter(number for number in ids if type(number) is int)
    repeated = [number for number, count in counts.items() if count > 1]
    num_more = sum(counts[number] - 1 for number in repeated)
    return [f"{path}: {num_more} annotations have the id of another, first: {repeated[0]}"] if repeated else []


def find_annotation_files(root: Path, annotations: Sequence[str] | None) -> dict[Path, Mapping[str, Any]]:
    """Read the JSON files of COCO instances below `root`: path → document.

    These are the files in `annotations`, else those called instances_*.json, else those with the keys of the format.
    """
    if annotations is not None:
        return {root / name: _check_instances(_read_json(root / name), root / name) for name in annotations}
    if not root.is_dir():
        raise DataError(f"{root}: there is no such file or folder; give a JSON file of COCO instances, or its folder")
    folders = [root, *list_folders(root)]
    files = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    named = [path for path in files if path.name.startswith("instances_")]
    read = {path: _read_json(path) for path in named or files}
    documents = {path: document for path, document in read.items() if named or _is_instances(document)}
    if not documents:
        raise DataError(
            f"{root}: holds {summarise_folder(root)}, no JSON file with {', '.join(_KEYS)} in it or in a "
            "folder of it; give the "
            "file itself"
        )
    splits = [guess_split(path.relative_to(root)) for path in documents]
    if len(set(splits)) < len(splits):
        names = ", ".join(path.relative_to(root).as_posix() for path in documents)
        raise DataError(
            f"{root}: {names} are not one file for each of train, val and test; choose by annotations=[FILE, FILE]"
        )
    return {path: _check_instances(document, path) for path, document in documents.items()}


def _read_json(path: Path) -> Any:
    return parse_json_content(read_file(path), where=str(path), advice="export it again")


def _is_instances(document: Any) -> bool:
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in _KEYS)


def _check_instances(document: Any, path: Path) -> Mapping[str, Any]:
    if not _is_instances(document):
        contents = ", ".join(document) if isinstance(document, dict) else f"a {type(document).__name__}"
        raise DataError(f"{path}: lists of {', '.join(_KEYS)} are needed, it has {contents}; export COCO instances")
    instances: Mapping[str, Any] = document
    return instances


def read_categories(document: Mapping[str, Any], path: Path) -> CategoryIds:
    """Read the categories of a COCO document. Raises DataError for one without an id or a name, and for two alike."""
    try:
        pairs = [(_parse_id(category["id"]), str(category["name"])) for category in document["categories"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a category lacks a whole number 'id' or a 'name' ({error}); export it again"
        ) from error
    names = dict(pairs)
    if len(names) < len(pairs):
        raise DataError(f"{path}: two categories have one id; export it again")
    return CategoryIds.from_ids(names, where=str(path))


def _list_images(
    root: Path,
    path: Path,
    document: Mapping[str, Any],
    classes: CategoryIds,
    images: str | None,
    faults: AnnotationFaults,
) -> list[ListedImage]:
    entries = images_by_id(document, path)
    sizes = {key: _stated_size(entry) for key, entry in entries.items()}
    names = {key: str(entry["file_name"]).replace("\\", "/") for key, entry in entries.items()}
    boxes = _read_boxes(document, names, sizes, classes, faults)
    folder = root / images if images is not None else find_image_folder(root, path, names.values())
    split = guess_split(path.relative_to(root))
    listed = []
    for key, entry in entries.items():
        image_path = resolve_unicode_name(folder, names[key])
        if not image_path.is_relative_to(root) or ".." in image_path.parts or "\0" in names[key]:
            faults.add("images that are missing or damaged", f"'{entry['file_name']}' is not below {root}")
            continue
        read = partial(_make_columns, tuple(boxes[key]))
        listed.append(
            ListedImage(split, image_path.relative_to(root).as_posix(), image_path, read, key, sizes[key], (path,))
        )
    return listed


def _stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    stated = entry.get("height"), entry.get("width")
    return None if None in stated else (_parse_id(stated[0]), _parse_id(stated[1]))


def images_by_id(document: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    """Return the images of a document by their id. Raises DataError for an id or a file that occurs twice."""
    entries: dict[int, Mapping[str, Any]] = {}
    ids: dict[str, int] = {}
    for entry in document["images"]:
        try:
            key, name = _parse_id(entry["id"]), str(entry["file_name"])
            _ = [_parse_id(entry[side]) for side in ("height", "width") if entry.get(side) is not None]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: the image {str(entry)[:80]} lacks a file_name, or whole numbers as id, height and width "
                f"({error}); export it again"
            ) from error
        if key in entries:
            raise DataError(
                f"{path}: '{entries[key]['file_name']}' and '{name}' both have the id {key}; number them anew"
            )
        if name in ids:
            raise DataError(f"{path}: '{name}' has the ids {ids[name]} and {key}; keep one of them")
        entries[key], ids[name] = entry, key
    return entries


def _read_boxes(
    document: Mapping[str, Any],
    names: Mapping[int, str],
    sizes: dict[int, tuple[int, int] | None],
    classes: CategoryIds,
    faults: AnnotationFaults,
) -> defaultdict[int, list[_Row]]:
    """Read the boxes of every image by image id, in the order of the file; unusable ones are added to `faults`.

    An image whose size the file does not state has that of its first mask, which is added to `sizes`.
    """
    label_by_category = {number: label for label, number in enumerate(classes.ids)}
    boxes: defaultdict[int, list[_Row]] = defaultdict(list)
    for annotation in document["annotations"]:
        image_id = _get_id(annotation, "image_id")
        if image_id not in names:
            faults.add("annotations of images that are not in the file", str(annotation)[:80])
            continue
        where = f"{names[image_id]}: annotation {annotation.get('id')}"
        category = _get_id(annotation, "category_id")
        if category not in label_by_category:
            faults.add("boxes of unknown categories", f"{where} has the category {annotation.get('category_id')}")
            continue
        try:
            box = annotation_box(annotation, sizes[image_id])
            if sizes[image_id] is None and not annotation.get("bbox") and isinstance(annotation["segmentation"], dict):
                height, width = _parse_integers(annotation["segmentation"]["size"])
                sizes[image_id] = height, width
            is_ignored = is_marked(annotation)
            stated = annotation.get("area")
            area = (box[2] - box[0]) * (box[3] - box[1]) if stated is None else parse_number(stated)
            if not (is_valid_box(box, is_ignored=is_ignored) and abs(area) <= MAX_PX**2):
                raise ValueError(f"width and height above 0, and numbers of pixels up to {MAX_PX:,}, are needed")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            stated = annotation.get("bbox", "missing")
            faults.add("impossible boxes", f"{where}: bbox is {stated} ({error})")
            continue
        boxes[image_id].append((box, label_by_category[category], area, is_ignored))
    return boxes


def is_marked(annotation: Mapping[str, Any]) -> bool:
    """Return True if an annotation is marked as ignored (iscrowd, ignore). Raises TypeError for a mark that is text."""
    marks = [annotation.get(key) or 0 for key in ("iscrowd", "ignore")]
    return any([mark is True or parse_number(mark) != 0 for mark in marks])


def annotation_box(annotation: Mapping[str, Any], size_px: tuple[int, int] | None) -> BoxCorners:
    """Return left, top, right, bottom of the bbox, else of the mask, in an image of the height and width `size_px`.

    Raises ValueError, TypeError if both lack, and for a mask of another size.
    """
    if annotation.get("bbox"):
        return xywh_to_xyxy(annotation["bbox"])
    if not annotation.get("segmentation"):
        raise ValueError("there is neither bbox nor segmentation")
    return mask_to_box(annotation["segmentation"], size_px)


def _make_columns(boxes: Sequence[_Row], size_px: tuple[int, int], faults: AnnotationFaults) -> dict[str, np.ndarray]:
    return {
        name: np.array([row[position] for row in boxes], dtype=column.dtype).reshape(-1, *column.shape)
        for position, (name, column) in enumerate(COLUMNS.items())
    }


def find_image_folder(root: Path, path: Path, names: Iterable[str]) -> Path:
    """Return the folder with most of the images, among the usual ones next to an annotation file."""
    split = path.stem.removeprefix("instances_")
    folders = (path.parent, root, root / "images", root / split, root / "images" / split, path.parent / "images")
    names = list(names)
    return max(
        dict.fromkeys(folders), key=lambda folder: sum(_exists(resolve_unicode_name(folder, name)) for name in names)
    )


def resolve_unicode_name(folder: Path, name: str) -> Path:
    """Return the path of an existing file whose name matches in any Unicode form (NFC, NFD), else `folder / name`."""
    forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next((path for form in forms if _exists(path := folder / form)), folder / name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def _get_id(annotation: Any, key: str) -> int:
    """Return the id under `key` as an integer, or -1, which is never an id, for anything else."""
    try:
        return _parse_id(annotation[key])
    except (LookupError, TypeError, ValueError):
        return -1


def _parse_id(value: Any) -> int:
    """Return an id as int. Raises ValueError for anything but a whole number from 0 to 2^63."""
    if isinstance(value, bool | str) or not 0 <= value < 2**63 or int(value) != value:
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


@registry.data.add("coco")
class Coco(LabelledImages):
    """Images with boxes of COCO instances, prepared by `sightline data prepare coco`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Crowds are ignored, and
    boxes narrower or lower than `ignore_below_px` pixels of the file. Where the files state no test part, `tested` are
    beginnings of names, or the last `test_share` is tested; COCO's own validation images are the test part. Source: Lin
    et al. 2014, Microsoft COCO.
    """

    spec = SetSpec(name="coco")

    @classmethod
    def expected_info(cls, *, classes: tuple[str, ...] = ()) -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        published = json.loads(Path(__file__).with_name("coco.json").read_text(encoding="utf-8"))
        return DataInfo(box_facts(classes or tuple(published["classes"].values()), BoxColumns().box_type), BOX_FIELDS)

    @classmethod
    def plan(
        cls,
        root: Path,
        *,
        target: Path,
        progress: Progress,
        annotations: tuple[str, ...] | None = None,
        images: str | None = None,
        faulty: FaultPolicy = "refuse",
        exif: ExifUse | None = None,
    ) -> PreparationPlan:
        """Plan to list the images of a JSON file, or of a folder with some, and to keep their boxes.

        `annotations` (files) and `images` (a folder) are paths below the source, for other than the usual names. Raises
        DataError as `find_coco`, and for images and boxes that cannot be used unless `faulty` is `leave_out`.
        """
        listed = find_coco(root, annotations=annotations, images=images)
        options = {"annotations": None if annotations is None else list(annotations), "images": images}
        return plan_image_set(
            listed, set_name=cls.set_name, faulty=faulty, options=options, progress=progress, target=target, exif=exif
        )

    @classmethod
    def survey(
        cls,
        source: Path,
        *,
        annotations: tuple[str, ...] | None = None,
        images: str | None = None,
        exif: ExifUse | None = None,
    ) -> dict[str, Any]:
        """Survey images, sizes, classes and faults of unprepared files. Raises as `find_coco`."""
        return survey_images(find_coco(source, annotations=annotations, images=images), exif=exif)
