"""Labels of CrowdHuman, COCO, YOLO and KITTI in the neutral form; people_files.py reads those of sets of people."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sightline.data.boxes.annotations import BoxCorners, LabelledBox, LabelledImage, LabelledSet
from sightline.data.boxes.coco_files import (
    annotation_box,
    find_annotation_files,
    find_coco,
    find_image_folder,
    images_by_id,
    is_marked,
    read_categories,
    resolve_unicode_name,
)
from sightline.data.boxes.image_listing import (
    AnnotationFaults,
    CategoryIds,
    ListedImage,
    guess_split,
    is_valid_box,
    xywh_to_xyxy,
)
from sightline.data.boxes.odgt import BOX_KEYS, BoxType, is_ignored, read_odgt
from sightline.data.boxes.yolo_files import find_yolo, list_images
from sightline.data.files.image_files import read_header
from sightline.data.files.input_files import read_file
from sightline.data.store.prepared_set import summarise_folder
from sightline.errors import DataError

__all__ = ["KITTI_TYPES", "UNSTATED", "read_coco", "read_kitti", "read_lines", "read_yolo"]

KITTI_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
UNSTATED: Mapping[str, Any] = {
    "truncated": -1,
    "occluded": -1,
    "alpha": -10,
    "dimensions": (-1, -1, -1),
    "location": (-1000, -1000, -1000),
    "rotation_y": -10,
}
"""What KITTI's development kit writes for values that nobody stated, as for DontCare."""
_COCO_KEYS = frozenset({"image_id", "category_id", "bbox", "kind", "height", "vis_ratio", *BOX_KEYS.values()})
_COCO_IMAGE_KEYS = frozenset({"file_name", "width", "height"})


def read_lines(source: Path) -> LabelledSet:
    """The images of CrowdHuman's .odgt files, with all boxes of everybody; images need not be there.

    Ids count the sorted names of a file from 1. Raises DataError for a folder without such files, for one that is not
    as the format says, and for a name that two images below it have.
    """
    root = source.expanduser().resolve()
    files = [root] if root.is_file() else sorted([*root.glob("*.odgt"), *root.glob("annotations/*.odgt")])
    root = root.parent if root.is_file() else root
    if not files:
        held = f"holds {summarise_folder(root)}" if root.is_dir() else "there is no such folder"
        raise DataError(f"{root}: {held}, no .odgt file; give the folder with annotation_train.odgt")
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(root, may_lack=True):
        paths[path.stem].append(path)
    faults, images = AnnotationFaults(), []
    for file in files:
        split = guess_split(file.relative_to(root))
        lines = sorted(read_odgt(file), key=lambda line: f"{line['ID']}.jpg")
        for number, line in enumerate(lines, start=1):
            name = str(line["ID"])
            path, *twice = paths.get(name, [root / f"{name}.jpg"])
            if twice:
                raise DataError(f"{path}: {twice[0]} has the same name, and the boxes of '{name}' fit either; keep one")
            boxes = tuple(_people(line["gtboxes"], name, faults))
            own = {key: value for key, value in line.items() if key not in ("ID", "gtboxes")}
            place, there = path.relative_to(root).as_posix(), path if name in paths else None
            images.append(LabelledImage(place, split, boxes, there, number, extra=own, files=(file,)))
    return LabelledSet(root, images, faults, classes=CategoryIds(("person",), (1,)))


def _people(people: Any, name: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for place, person in enumerate(people):
        is_out = {"full": is_ignored(person, "full"), "head": is_ignored(person, "head")}
        try:
            boxes = {kind: _four(person[key]) for kind, key in BOX_KEYS.items() if person.get(key) is not None}
            marks = [is_out.get(kind, is_out["full"]) for kind in boxes]
            corners = map(xywh_to_xyxy, boxes.values())
            if not boxes or not all(is_valid_box(box, is_ignored=m) for box, m in zip(corners, marks, strict=True)):
                raise ValueError("a box of finite numbers, with width and height above 0, is needed")
        except (ArithmeticError, TypeError, ValueError) as error:
            what = f"{name}: box {place} is {str(dict(person))[:160]} ({error})"
            faults.add("boxes that cannot be meant", what)
            continue
        own = {key: value for key, value in person.items() if key not in BOX_KEYS.values()}
        yield LabelledBox("person", boxes, is_out["full"], extra=own)


def _four(box: Any) -> BoxCorners:
    """Four numbers as they are. Raises TypeError, ValueError for anything else."""
    left, top, width, height = box
    _ = xywh_to_xyxy(box)
    return left, top, width, height


def read_coco(source: Path) -> LabelledSet:
    """The images and boxes of COCO instances with whatever else stands there. Raises DataError as `find_coco`."""
    found = find_coco(source, annotations=None, images=None)
    root = source.expanduser().resolve()
    names = (root.name,) if root.is_file() else None
    faults, images = AnnotationFaults(), []
    for path, document in find_annotation_files(found.root, names).items():
        label_of = {number: name for name, number in zip(*read_categories(document, path), strict=True)}
        entries = images_by_id(document, path)
        folder = find_image_folder(found.root, path, [str(each["file_name"]) for each in entries.values()])
        boxes: defaultdict[int, list[LabelledBox]] = defaultdict(list)
        for annotation in document["annotations"]:
            try:
                label, image_id = label_of[annotation["category_id"]], annotation["image_id"]
                if image_id not in entries:
                    raise ValueError(f"image {image_id} is not in the file")
                boxes[image_id].append(_of_annotation(annotation, label))
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                faults.add("boxes that cannot be meant", f"{path}: {str(annotation)[:120]} ({error!r})")
        for key, entry in entries.items():
            place = resolve_unicode_name(folder, str(entry["file_name"]))
            size_px = (entry["height"], entry["width"]) if entry.get("height") and entry.get("width") else None
            own = {name: value for name, value in entry.items() if name not in _COCO_IMAGE_KEYS}
            is_there = os.path.isfile(place) and place.is_relative_to(found.root)
            name = place.relative_to(found.root).as_posix() if is_there else str(entry["file_name"])
            split = guess_split(path.relative_to(found.root))
            file = place if is_there else None
            images.append(LabelledImage(name, split, tuple(boxes[key]), file, key, size_px, own, (path,)))
    return LabelledSet(found.root, images, faults, found.notes, found.classes)


def _of_annotation(annotation: Mapping[str, Any], label: str) -> LabelledBox:
    boxes = {kind: _four(annotation[key]) for kind, key in BOX_KEYS.items() if annotation.get(key) is not None}
    if not boxes and annotation.get("bbox"):
        boxes = {"full": _four(annotation["bbox"])}
    elif not boxes:
        left, top, right, bottom = annotation_box(annotation)
        boxes = {"full": (left, top, right - left, bottom - top)}
    own = {key: value for key, value in annotation.items() if key not in _COCO_KEYS}
    is_out = is_marked(annotation)
    width, height = annotation["bbox"][2:] if annotation.get("bbox") else (0, 0)
    follows = {"area": width * height, "iscrowd": int(is_out), "ignore": int(is_out)}
    own = {key: value for key, value in own.items() if key not in follows or value != follows[key]}
    if "tag" in own:  # from CrowdHuman: the flags were about the box that was chosen
        is_out = is_ignored(annotation, "full")
    return LabelledBox(label, boxes, is_out, annotation.get("kind"), own)


def read_yolo(source: Path) -> LabelledSet:
    """The images of YOLO's text files, boxes in pixels; polygons become the boxes about them. Raises as `find_yolo`."""
    found = find_yolo(source, names=None)
    images = []
    for each in found.images:
        size_px = read_header(each.path).size_px(upright=True)
        boxes = tuple(_in_pixels(each, size_px, found.classes, found.faults))
        image = LabelledImage(each.name, each.split, boxes, each.path, each.image_id, size_px, files=each.files)
        images.append(image)
    return LabelledSet(found.root, images, found.faults, found.notes, found.classes)


def _in_pixels(
    image: ListedImage, size_px: tuple[int, int], classes: CategoryIds, faults: AnnotationFaults
) -> Iterator[LabelledBox]:
    values = image.read(size_px, faults)
    for (left, top, right, bottom), label in zip(values["boxes"].tolist(), values["label"].tolist(), strict=True):
        yield LabelledBox(classes.names[label], {"full": (left, top, right - left, bottom - top)})


def read_kitti(source: Path) -> LabelledSet:
    """The 2-D boxes of KITTI's label_2, in training/ or not, beside image_2; all other columns are kept by name.

    Raises DataError for a folder without labels, and with the line for one that is not of 15 columns, or 16.
    """
    root = source.expanduser().resolve()
    folders = [path for form in ("label_2", "*/label_2") for path in sorted(root.glob(form))]
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        held = f"holds {summarise_folder(root)}" if root.is_dir() else "there is no such folder"
        raise DataError(f"{root}: {held}; KITTI has label_2/000000.txt with image_2/: give the folder with them")
    faults, images = AnnotationFaults(), []
    for number, file in enumerate(files, start=1):
        path = file.parent.parent / "image_2" / f"{file.stem}.png"
        split = guess_split(file.parent.parent.relative_to(root))
        boxes = tuple(_objects(file, faults))
        name = path.relative_to(root).as_posix()
        images.append(LabelledImage(name, split, boxes, path if path.is_file() else None, number, files=(file,)))
    return LabelledSet(root, images, faults)


def _objects(path: Path, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for number, line in enumerate(read_file(path).decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if len(values) not in (14, 15) or not all(map(math.isfinite, values)):
            raise DataError(f"{path}:{number}: '{line[:60]}' is not a type and 14 or 15 numbers; get the file again")
        left, top, right, bottom = values[3:7]
        is_out = words[0] == "DontCare"
        if not is_valid_box((left, top, right, bottom), is_ignored=is_out):
            faults.add("boxes that cannot be meant", f"{path}:{number}: '{line[:60]}' (width and height above 0)")
            continue
        own = {"truncated": values[0], "occluded": int(values[1]), "alpha": values[2], "dimensions": values[7:10]}
        own |= {"location": values[10:13], "rotation_y": values[13]} | ({"score": values[14]} if values[14:] else {})
        own = {key: value for key, value in own.items() if value != _plain(UNSTATED.get(key))}
        box: dict[BoxType, BoxCorners] = {"full": (left, top, right - left, bottom - top)}
        yield LabelledBox(words[0], box, is_out, extra=own)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
