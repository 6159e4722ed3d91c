"""Readers of CrowdHuman, COCO, YOLO and KITTI labels; people_files.py reads the data sets of people."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.areas.detect.sets.annotations import (
    BOX_KEYS,
    BoxCorners,
    BoxType,
    LabelledBox,
    LabelledImage,
    LabelledSet,
    is_ignored,
    read_odgt,
)
from sightline.areas.detect.sets.coco import CocoImage, read_coco_set
from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    CategoryIds,
    ListedImage,
    guess_split,
    is_valid_box,
    list_images,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.yolo_txt import find_yolo
from sightline.contract.errors import DataError
from sightline.store.files.image_files import read_header
from sightline.store.files.input_files import expand_home, read_file
from sightline.store.prepared.prepared_set import describe_contents

KITTI_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
UNSTATED: Mapping[str, Any] = {
    "truncated": -1,
    "occluded": -1,
    "alpha": -10,
    "dimensions": [-1, -1, -1],
    "location": [-1000, -1000, -1000],
    "rotation_y": -10,
}
"""Placeholders of KITTI's development kit for values that are not labelled, as in DontCare."""
_COCO_KEYS = frozenset({"image_id", "category_id", "bbox", "kind", "height", "vis_ratio", *BOX_KEYS.values()})
_COCO_IMAGE_KEYS = frozenset({"file_name", "width", "height"})


def read_lines(source: Path) -> LabelledSet:
    """Read CrowdHuman's .odgt files with all boxes of every person; images may be missing.

    Ids count the sorted names of a file from 1. Raises DataError for a folder without such files, for a file in another
    format, and for a name that two images below it have.
    """
    root = expand_home(source).resolve()
    files = [root] if root.is_file() else sorted([*root.glob("*.odgt"), *root.glob("annotations/*.odgt")])
    root = root.parent if root.is_file() else root
    if not files:
        raise DataError(f"{root}: {describe_contents(root)}, no .odgt file; give the folder with annotation_train.odgt")
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(root, may_lack=True):
        paths[path.stem].append(path)
    faults, images = AnnotationFaults(), []
    for file in files:
        split = guess_split(file.relative_to(root))
        lines = sorted(read_odgt(file), key=lambda line: f"{line['ID']}.jpg")
        for number, line in enumerate(lines, start=1):
            name = str(line["ID"])
            path, *duplicates = paths.get(name, [root / f"{name}.jpg"])
            if duplicates:
                raise DataError(
                    f"{path}: {duplicates[0]} has the same name, and the boxes of '{name}' fit either; keep one"
                )
            boxes = tuple(_odgt_boxes(line["gtboxes"], name, faults))
            extra = {key: value for key, value in line.items() if key not in ("ID", "gtboxes")}
            relative_path, image_path = path.relative_to(root).as_posix(), path if name in paths else None
            images.append(LabelledImage(relative_path, split, boxes, image_path, number, extra=extra, files=(file,)))
    return LabelledSet(root, images, faults, classes=CategoryIds(("person",), (1,)))


def _odgt_boxes(people: Any, name: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for index, person in enumerate(people):
        is_box_ignored = {"full": is_ignored(person, "full"), "head": is_ignored(person, "head")}
        try:
            boxes = {kind: _parse_xywh(person[key]) for kind, key in BOX_KEYS.items() if person.get(key) is not None}
            marks = [is_box_ignored.get(kind, is_box_ignored["full"]) for kind in boxes]
            corners = map(xywh_to_xyxy, boxes.values())
            if not boxes or not all(is_valid_box(box, is_ignored=m) for box, m in zip(corners, marks, strict=True)):
                raise ValueError("a box of finite numbers, with width and height above 0, is needed")
        except (ArithmeticError, TypeError, ValueError) as error:
            fault = f"{name}: box {index} is {str(dict(person))[:160]} ({error})"
            faults.add("impossible boxes", fault)
            continue
        extra = {key: value for key, value in person.items() if key not in BOX_KEYS.values()}
        yield LabelledBox("person", boxes, is_box_ignored["full"], extra=extra)


def _parse_xywh(box: Any) -> BoxCorners:
    """Return the four numbers of a box unchanged. Raises TypeError, ValueError for anything else."""
    left, top, width, height = box
    _ = xywh_to_xyxy(box)
    return left, top, width, height


def read_coco(source: Path, *, annotations: Sequence[str] | None = None, images: str | None = None) -> LabelledSet:
    """Read COCO instances with all their other values; images may be missing. Raises DataError as `read_coco_set`."""
    found = read_coco_set(source, annotations=annotations, images=images, has_details=True)
    labelled = []
    for path, split, images_of_file in found.files:
        for image in images_of_file:
            file = image.path if image.path is not None and image.path.is_file() else None
            name = image.name if file is None else file.relative_to(found.root).as_posix()
            extra = {key: value for key, value in image.entry.items() if key not in _COCO_IMAGE_KEYS}
            boxes = tuple(_coco_boxes(image, found.classes, f"{path}: {image.name}", found.faults))
            labelled.append(LabelledImage(name, split, boxes, file, image.image_id, image.size_px, extra, (path,)))
    return LabelledSet(found.root, labelled, found.faults, found.notes, found.classes)


def _coco_boxes(image: CocoImage, classes: CategoryIds, where: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    values = image.values
    rows = zip(values["boxes"].tolist(), values["label"].tolist(), values["is_ignored"].tolist(), strict=True)
    for (corners, label, is_box_ignored), annotation in zip(rows, image.annotations, strict=True):
        kinds = [kind for kind, key in BOX_KEYS.items() if annotation.get(key) is not None]
        try:
            boxes = {kind: _parse_xywh(annotation[BOX_KEYS[kind]]) for kind in kinds}
        except (ArithmeticError, TypeError, ValueError) as error:
            faults.add("impossible boxes", f"{where}: {str(annotation)[:120]} ({error!r})")
            continue
        if not boxes:
            left, top, right, bottom = corners
            bbox = annotation.get("bbox") or (left, top, right - left, bottom - top)
            boxes = {"full": _parse_xywh(bbox)}
        extra = {key: value for key, value in annotation.items() if key not in _COCO_KEYS}
        width, height = annotation["bbox"][2:] if annotation.get("bbox") else (0, 0)
        derived = {"area": width * height, "iscrowd": int(is_box_ignored), "ignore": int(is_box_ignored)}
        extra = {key: value for key, value in extra.items() if key not in derived or value != derived[key]}
        if "tag" in extra:  # from CrowdHuman: the flags were about the box that was chosen
            is_box_ignored = is_ignored(annotation, "full")
        yield LabelledBox(classes.names[label], boxes, is_box_ignored, annotation.get("kind"), extra)


def read_yolo(source: Path) -> LabelledSet:
    """Read YOLO's text files, boxes in pixels; polygons become their bounding boxes. Raises as `find_yolo`."""
    listed_set = find_yolo(source, names=None)
    images = []
    for listed in listed_set.images:
        size_px = read_header(listed.path).size_px(upright=True)
        boxes = tuple(_yolo_boxes(listed, size_px, listed_set.classes, listed_set.faults))
        image = LabelledImage(
            listed.name, listed.split, boxes, listed.path, listed.image_id, size_px, files=listed.files
        )
        images.append(image)
    return LabelledSet(listed_set.root, images, listed_set.faults, listed_set.notes, listed_set.classes)


def _yolo_boxes(
    image: ListedImage, size_px: tuple[int, int], classes: CategoryIds, faults: AnnotationFaults
) -> Iterator[LabelledBox]:
    values = image.read(size_px, faults)
    for (left, top, right, bottom), label in zip(values["boxes"].tolist(), values["label"].tolist(), strict=True):
        yield LabelledBox(classes.names[label], {"full": (left, top, right - left, bottom - top)})


def read_kitti(source: Path) -> LabelledSet:
    """Read the 2-D boxes of KITTI's label_2 next to image_2, in training/ or not; other columns are kept by name.

    Raises DataError for a folder without labels, and with the line number for a line without 15 or 16 columns.
    """
    root = expand_home(source).resolve()
    folders = [path for form in ("label_2", "*/label_2") for path in sorted(root.glob(form))]
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise DataError(
            f"{root}: {describe_contents(root)}; KITTI has label_2/000000.txt with image_2/: give the folder with them"
        )
    faults, images = AnnotationFaults(), []
    for number, file in enumerate(files, start=1):
        path = file.parent.parent / "image_2" / f"{file.stem}.png"
        split = guess_split(file.parent.parent.relative_to(root))
        boxes = tuple(_kitti_boxes(file, faults))
        name = path.relative_to(root).as_posix()
        images.append(LabelledImage(name, split, boxes, path if path.is_file() else None, number, files=(file,)))
    return LabelledSet(root, images, faults)


def _kitti_boxes(path: Path, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for number, line in enumerate(read_file(path).decode("utf-8", "replace").splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        try:
            values = [float(token) for token in tokens[1:]]
        except ValueError:
            values = []
        if len(values) not in (14, 15) or not all(map(math.isfinite, values)):
            raise DataError(f"{path}:{number}: '{line[:60]}' is not a type and 14 or 15 numbers; get the file again")
        left, top, right, bottom = values[3:7]
        is_box_ignored = tokens[0] == "DontCare"
        if not is_valid_box((left, top, right, bottom), is_ignored=is_box_ignored):
            faults.add("impossible boxes", f"{path}:{number}: '{line[:60]}' (width and height above 0)")
            continue
        extra = {"truncated": values[0], "occluded": int(values[1]), "alpha": values[2], "dimensions": values[7:10]}
        extra |= {"location": values[10:13], "rotation_y": values[13]} | ({"score": values[14]} if values[14:] else {})
        extra = {key: value for key, value in extra.items() if value != UNSTATED.get(key)}
        box: dict[BoxType, BoxCorners] = {"full": (left, top, right - left, bottom - top)}
        yield LabelledBox(tokens[0], box, is_box_ignored, extra=extra)
