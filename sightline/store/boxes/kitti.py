"""KITTI's 2D boxes: images with a text file of label_2 each, a row of type, box and 3D box for each object."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sightline.contract.errors import DataError
from sightline.store.boxes.image_listing import UnreadImages, guess_split, list_images
from sightline.store.boxes.label_table import (
    AnnotationFaults,
    CategoryIds,
    Files,
    LabelFormat,
    LabelledBox,
    LabelledImage,
    LabelledSet,
    is_valid_box,
)
from sightline.store.boxes.label_writing import plain
from sightline.store.boxes.yolo_txt import count_note
from sightline.store.files.input_files import expand_home, read_file
from sightline.store.prepared.prepared_set import describe_contents

_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
REGION = "DontCare"
_COLUMNS = (15, 16)
"""Words of a labelled object, and of a detection, which has a score, too."""
_UNSTATED = "-1 -1 -10"
_UNSTATED_3D = "-1 -1 -1 -1000 -1000 -1000 -10"
"""Truncation, occlusion and angle, and the 3D box, of an object that has none of them, as the devkit writes them."""
_FOLDERS = {"train": "training/", "validation": "validation/", "test": "testing/", "all": ""}


def read_kitti(source: Path) -> LabelledSet:
    """Read the 2D boxes of label_2/NAME.txt beside image_2/NAME.png, in training/ or not.

    DontCare regions are ignored. Types beyond KITTI's are classes, too; ids count from 1. An image without a text file
    is a fault. Raises DataError for a folder without text files.
    """
    root = expand_home(source).resolve()
    folders = [path for form in ("label_2", "*/label_2") for path in sorted(root.glob(form))]
    files = [file for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise DataError(
            f"{root}: {describe_contents(root)}; KITTI has training/label_2/000000.txt with training/image_2/: give "
            "the folder with them"
        )
    faults, unread = AnnotationFaults(), Counter[str]()
    paths: defaultdict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in filter(_is_image_2, list_images(root, may_lack=True)):
        paths[path.parents[1], path.stem].append(path)
    images = []
    for number, file in enumerate(files, start=1):
        path, *duplicates = paths.pop((file.parents[1], file.stem), [file.parents[1] / "image_2" / f"{file.stem}.png"])
        boxes = [*_read_rows(file, faults, unread)]
        if duplicates:
            faults.add("images that share a text file in label_2", f"{path} and {duplicates[0].name}")
            continue
        split, name = guess_split(file.parents[1].relative_to(root)), path.relative_to(root).as_posix()
        images.append(LabelledImage(split, name, path, boxes, number, files=(file,)))
    left = sorted(path for alike in paths.values() for path in alike)
    for path in left:
        if path.parents[1] / "label_2" in folders:
            faults.add("images without a text file in label_2", str(path))
    notes = count_note(
        [path for path in left if path.parents[1] / "label_2" not in folders],
        "images are in folders without label_2 and are left out",
    )
    notes += UnreadImages(root).list_notes()
    names = {box.class_name for image in images for box in image.boxes}
    ordered = [*(name for name in _TYPES if name in names), *sorted(names - {*_TYPES, REGION}), REGION]
    classes = CategoryIds(tuple(ordered), tuple(range(1, len(ordered) + 1)))
    return LabelledSet(root, "kitti_boxes", classes, images, faults, notes, unread)


def _is_image_2(path: Path) -> bool:
    return path.parent.name == "image_2"


def _read_rows(path: Path, faults: AnnotationFaults, unread: Counter[str]) -> Iterator[LabelledBox]:
    for number, line in enumerate(read_file(path).decode("utf-8", "replace").splitlines(), start=1):
        name, *words = line.split() or [""]
        if not name:
            continue
        try:
            if len(words) + 1 not in _COLUMNS:
                raise ValueError("a type and 14 numbers are needed")
            values = [float(word) for word in words]
            box = values[3], values[4], values[5], values[6]
            if not is_valid_box(box, is_ignored=name == REGION):
                raise ValueError("left, top, right and bottom in pixels are needed, width and height above 0")
        except ValueError as error:
            faults.add("impossible rows", f"{path}:{number}: '{line[:60]}' ({error})")
            continue
        unread["3D boxes"] += values[7] > 0
        unread["marks of occlusion or truncation"] += values[0] > 0 or values[1] > 0
        yield LabelledBox(name, box, is_ignored=name == REGION, line=number)


def write_kitti(labels: LabelledSet) -> Files:
    """Yield a text file for each image, without 3D boxes."""
    for image in labels.images:
        corners = [" ".join(str(plain(number)) for number in box.box or ()) for box in image.boxes]
        rows = [
            f"{box.class_name} {_UNSTATED} {text} {_UNSTATED_3D}\n"
            for box, text in zip(image.boxes, corners, strict=True)
        ]
        path = PurePosixPath(image.name)
        yield f"{path.parents[1] / 'label_2' / path.stem}.txt", "".join(rows).encode()


def _image_path(image: LabelledImage) -> str:
    return f"{_FOLDERS[image.split]}image_2/{PurePosixPath(image.name).name}"


def _fit(box: LabelledBox, size_px: tuple[int, int]) -> LabelledBox | str:
    """Return a box whose type is one word; ignored ones are DontCare."""
    if box.is_ignored:
        return box._replace(class_name=REGION)
    name = "_".join(box.class_name.split()) or "Misc"
    return f"boxes of the class {name}" if name == REGION else box._replace(class_name=name)


KITTI = LabelFormat(
    read=read_kitti,
    write=write_kitti,
    image_path=_image_path,
    holds=frozenset({"is_ignored", "undivided"}),
    fit=_fit,
)
