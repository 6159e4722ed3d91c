"""Readers of WiderPerson, CityPersons and EuroCity Persons labels, as their archives are published."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.detect.sets.annotations import BoxCorners, BoxType, LabelledBox, LabelledImage, LabelledSet
from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    guess_split,
    is_valid_box,
    list_images,
    parse_number,
    xywh_to_xyxy,
)
from sightline.contract.errors import DataError
from sightline.store.files.input_files import expand_home, get_again, parse_json_content, read_file
from sightline.store.files.mat_files import read_mat
from sightline.store.files.text_tables import parse_count
from sightline.store.prepared.prepared_set import describe_contents

_BAD_BOX = "impossible boxes"
_BAD_IMAGE, _BAD_FILE = "images that are missing or damaged", "annotation files that are missing or damaged"
_WIDERPERSON_FAULTY = "011765"
"""An image whose published annotation does not fit it."""
_OCCLUDED_PATTERN = re.compile(r"(?:occluded|truncated)>([0-9]{1,3})")
_VISIBLE_BY_OCCLUSION = {10: 0.9, 40: 0.6, 80: 0.2}
"""ECP tag (percent occluded or truncated) → largest visible share of the person."""
_ECP_IGNORED = frozenset({"sitting-lying", "behind-glass"})
_ECP_KEYS = frozenset({"identity", "x0", "y0", "x1", "y1", "children"})
_FRAME_KEYS = frozenset({"identity", "imagewidth", "imageheight", "children"})


class PersonCategories(NamedTuple):
    """Kinds of people of a layout and their codes in its files; the kinds in `ignored` are not to be detected."""

    codes: Mapping[str, int | str]
    ignored: frozenset[str]

    def name_of_code(self, code: Any) -> str | None:
        """Return the kind of a code, or None if the layout does not have the code."""
        return next((kind for kind, kind_code in self.codes.items() if kind_code == code), None)


WIDERPERSON = PersonCategories(
    {"pedestrian": 1, "rider": 2, "partially_visible": 3, "ignored_region": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
)
CITYPERSONS = PersonCategories(
    {"ignored_region": 0, "pedestrian": 1, "rider": 2, "sitting": 3, "other": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
)
ECP = PersonCategories(
    {
        "pedestrian": "pedestrian",
        "rider": "rider",
        "crowd": "person-group-far-away",
        "rider_crowd": "rider+vehicle-group-far-away",
    },
    frozenset({"crowd", "rider_crowd"}),
)

_MAX_NAME_LENGTH = 250
"""Longest name of an image: a suffix of four letters is added, and file systems allow 255."""


def read_widerperson(source: Path) -> LabelledSet:
    """Read WiderPerson: the images in train.txt, val.txt and test.txt, and Annotations/NAME.jpg.txt.

    Images of test.txt without annotations are left out; the published test split has none. An annotation file that is
    damaged is a fault. Raises DataError for a folder without such lists.
    """
    root = expand_home(source).resolve()
    lists = [path for name in ("train", "val", "test") if (path := root / f"{name}.txt").is_file()]
    if not lists or not (root / "Annotations").is_dir():
        raise _layout_error(root, "train.txt and val.txt with Annotations/ and Images/", "WiderPerson")
    faults, images, num_unlabelled, notes = AnnotationFaults(), [], 0, []
    for file in lists:
        lines = read_file(file).decode("utf-8-sig", "replace").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        for number, name in enumerate(names, start=1):
            image = f"{name.removesuffix('.jpg')}.jpg"
            if len(image) > _MAX_NAME_LENGTH or "/" in image or "\0" in image:
                raise get_again(f"{file}: entry {number}: '{name[:40]}' is not the name of an image")
            labels = root / "Annotations" / f"{image}.txt"
            if name.removesuffix(".jpg") == _WIDERPERSON_FAULTY:
                notes.append(f"{labels} is left out: its published annotation does not fit the image")
            elif file.stem == "test" and not labels.is_file():
                num_unlabelled += 1
            else:
                path, split = root / "Images" / image, guess_split(Path(file.name))
                try:
                    boxes = tuple(_widerperson_boxes(labels, faults))
                except DataError as error:
                    faults.add(_BAD_FILE, str(error))
                    continue
                images.append(LabelledImage(f"Images/{image}", split, boxes, path, number, files=(file, labels)))
    notes += [f"{num_unlabelled} images of test.txt have no annotations and are left out"] if num_unlabelled else []
    return LabelledSet(root, images, faults, notes)


def _widerperson_boxes(path: Path, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    lines = read_file(path).decode("utf-8-sig", "replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or parse_count(lines[0].strip()) != len(lines) - 1:
        count = lines[0].strip()[:40] if lines else ""
        raise get_again(f"{path}:1: states '{count}' boxes, {max(len(lines) - 1, 0)} follow")
    for number, line in enumerate(lines[1:], start=2):
        try:
            code, left, top, right, bottom = map(_parse_number, line.split())
            kind = WIDERPERSON.name_of_code(code)
            if kind is None:
                raise ValueError("classes are 1 to 5")
            box = _require_valid_box((left, top, right - left, bottom - top), is_ignored=kind in WIDERPERSON.ignored)
        except (OverflowError, ValueError) as error:
            faults.add(_BAD_BOX, f"{path}:{number}: '{line.strip()[:60]}' ({error})")
            continue
        yield LabelledBox("person", {"full": box}, kind in WIDERPERSON.ignored, kind)


def read_citypersons(source: Path) -> LabelledSet:
    """Read CityPersons: the images in anno_train.mat and anno_val.mat; ids count the cells of a file from 1.

    The images are below leftImg8bit. Raises DataError for a folder without such files, and with the number of a damaged
    cell.
    """
    root = expand_home(source).resolve()
    files = sorted({*root.glob("anno_*.mat"), *root.glob("annotations/anno_*.mat"), *root.glob("*/*/anno_*.mat")})
    if not files:
        raise _layout_error(root, "anno_train.mat and anno_val.mat beside leftImg8bit/", "CityPersons")
    image_root = root / "leftImg8bit"
    paths: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(image_root if image_root.is_dir() else root):
        paths[path.name].append(path)
    faults, images = AnnotationFaults(), []
    for file in files:
        for number, cell in enumerate(read_mat(file, f"{file.stem}_aligned", kinds="O").ravel(), start=1):
            where = f"{file}: image {number}"
            try:
                name, city, rows = str(cell["im_name"]), str(cell["cityname"]), np.asarray(cell["bbs"])
                if not {"/", "\0"}.isdisjoint(name + city):
                    raise ValueError(f"'{city}' and '{name}' are no names of a folder and a file")
                if rows.size and (rows.ndim != 2 or rows.shape[1] != 10 or rows.dtype.kind not in "fiu"):
                    raise ValueError(f"bbs has the shape {rows.shape}")
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise get_again(f"{where}: cityname, im_name and bbs of 10 columns are needed ({error})") from error
            boxes = tuple(_citypersons_boxes(rows.reshape(-1, 10), f"{where}, {name}", faults))
            folders = (file.stem.removeprefix("anno_"), city)
            matches = [path for path in paths[name] if path.parts[-3:-1] == folders] or paths[name]
            image_path = matches[0] if len(matches) == 1 else None
            if image_path is None:
                count = f"there are {len(matches)} images" if matches else "there is no image"
                faults.add(_BAD_IMAGE, f"{where}: {count} '{name}' below {image_root}")
            split, published = (
                guess_split(Path(file.name)),
                f"leftImg8bit/{file.stem.removeprefix('anno_')}/{city}/{name}",
            )
            relative_path = published if image_path is None else image_path.relative_to(root).as_posix()
            images.append(LabelledImage(relative_path, split, boxes, image_path, number, files=(file,)))
    return LabelledSet(root, images, faults)


def _citypersons_boxes(rows: np.ndarray, where: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for number, row in enumerate(rows.tolist(), start=1):
        try:
            code, *full, instance = map(_parse_number, row[:6])
            kind = CITYPERSONS.name_of_code(code)
            is_ignored = kind in CITYPERSONS.ignored
            if kind is None:
                raise ValueError("classes are 0 to 5")
            box = _require_valid_box((full[0], full[1], full[2], full[3]), is_ignored=is_ignored)
            left, top, width, height = map(_parse_number, row[6:])
            visible = _require_valid_box((left, top, width, height), is_ignored=True)
        except ValueError as error:
            faults.add(_BAD_BOX, f"{where}, box {number}: {row} ({error})")
            continue
        boxes: dict[BoxType, BoxCorners] = {"full": box}
        if min(width, height) > 0:
            boxes["visible"] = visible
        yield LabelledBox("person", boxes, is_ignored, kind, {"instance": instance})


def read_ecp(source: Path) -> LabelledSet:
    """Read EuroCity Persons: frames of labels/SPLIT/CITY/NAME.json with img/SPLIT/CITY/NAME.png, day and night.

    Vehicles are not people and are left out. Ids count the frames of a split from 1, in the order of their paths.
    A file that is not a frame is a fault. Raises DataError for a folder without labels.
    """
    root = expand_home(source).resolve()
    folders = [path for form in ("labels", "*/labels", "*/*/labels") for path in sorted(root.glob(form))]
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.json"))]
    if not files:
        raise _layout_error(root, "day/labels/train/CITY/NAME.json with day/img/", "EuroCity Persons")
    faults, images, num_vehicles = AnnotationFaults(), [], 0
    numbers: dict[str, int] = {}
    for folder, file in files:
        part = file.relative_to(folder)
        try:
            frame = _find_frame(parse_json_content(read_file(file), where=str(file), advice="get the file again"))
            size_px = int(frame["imageheight"]), int(frame["imagewidth"])
            boxes = tuple(_ecp_boxes(frame["children"], str(file), faults))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            needed = f"{file}: a frame with imagewidth, imageheight and children is needed ({error!r}); get it again"
            faults.add(_BAD_FILE, str(error) if isinstance(error, DataError) else needed)
            continue
        num_vehicles += sum(ECP.name_of_code(child["identity"]) is None for child in frame["children"])
        split = next((guess for word in part.parts if (guess := guess_split(Path(word))) != "all"), "all")
        numbers[split] = numbers.get(split, 0) + 1
        path = folder.parent / "img" / part.with_suffix(".png")
        extra = {key: value for key, value in frame.items() if key not in _FRAME_KEYS}
        name = path.relative_to(root).as_posix()
        images.append(LabelledImage(name, split, boxes, path, numbers[split], size_px, extra, (file,)))
    notes = [f"{num_vehicles} boxes of vehicles are left out"] if num_vehicles else []
    return LabelledSet(root, images, faults, notes)


def _find_frame(document: Any) -> dict[str, Any]:
    """Find the frame of a document, which some files wrap in a list of sequences; {} if there is none."""
    queue = [document]
    while queue:
        node = queue.pop(0)
        if isinstance(node, dict) and node.get("identity") == "frame":
            return node
        if isinstance(node, dict):
            queue += [*node.get("children", ()), *(value for value in node.values() if isinstance(value, dict))]
    return {}


def _ecp_boxes(children: Any, where: str, faults: AnnotationFaults) -> Iterator[LabelledBox]:
    for number, child in enumerate(children):
        kind = ECP.name_of_code(child["identity"])
        if kind is None:
            continue  # a vehicle
        tags = child.get("tags") or []
        try:
            if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
                raise TypeError("tags are a list of words")
            is_ignored = kind in ECP.ignored or (kind == "pedestrian" and not _ECP_IGNORED.isdisjoint(tags))
            left, top, right, bottom = (_parse_number(parse_number(child[key])) for key in ("x0", "y0", "x1", "y1"))
            box = _require_valid_box((left, top, right - left, bottom - top), is_ignored=is_ignored)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            faults.add(_BAD_BOX, f"{where}: child {number}: {str(child)[:120]} ({error})")
            continue
        extra = {key: value for key, value in child.items() if key not in _ECP_KEYS}
        if child.get("children"):
            extra["children"] = child["children"]
        yield LabelledBox("person", {"full": box}, is_ignored, kind, extra)


def ecp_visible_share(tags: Any) -> float:
    """Return the visible share of an ECP person: 1, 0.9, 0.6 or 0.2, by the larger of occlusion and truncation."""
    shares = [
        _VISIBLE_BY_OCCLUSION.get(int(match[1]), 1.0)
        for tag in tags or ()
        if (match := _OCCLUDED_PATTERN.fullmatch(str(tag)))
    ]
    return min(shares, default=1.0)


def _parse_number(value: Any) -> float:
    """Parse a finite number, whole ones as int. Raises ValueError, TypeError, OverflowError (too large)."""
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return int(number) if number == int(number) else number


def _require_valid_box(box: BoxCorners, *, is_ignored: bool) -> BoxCorners:
    """Return the box. Raises ValueError if it is out of range, or empty and not ignored."""
    if not is_valid_box(xywh_to_xyxy(box), is_ignored=is_ignored):
        raise ValueError("width and height above 0 are needed")
    return box


def _layout_error(root: Path, needed: str, set_title: str) -> DataError:
    return DataError(f"{root}: {describe_contents(root)}; {set_title} has {needed}: give the folder with them")
