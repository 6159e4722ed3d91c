"""Readers of CrowdHuman, WiderPerson, CityPersons and EuroCity Persons labels, as their archives are published."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    BoxCorners,
    ListedImage,
    Values,
    box_column,
    guess_split,
    is_valid_box,
    list_images,
    parse_number,
    xywh_to_xyxy,
)
from sightline.contract.errors import DataError
from sightline.contract.regular_files import parse_json
from sightline.store.files.input_files import expand_home, get_again, parse_json_content, read_file
from sightline.store.files.mat_files import read_mat
from sightline.store.files.text_tables import parse_count
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_set import describe_contents

_BAD_BOX = "impossible boxes"
_BAD_IMAGE, _BAD_FILE = "images that are missing or damaged", "annotation files that are missing or damaged"
_WIDERPERSON_FAULTY = "011765"
"""An image whose published annotation does not fit it."""
_OCCLUDED_PATTERN = re.compile(r"(?:occluded|truncated)>([0-9]{1,3})")
_VISIBLE_BY_OCCLUSION = {10: 0.9, 40: 0.6, 80: 0.2}
"""ECP tag (percent occluded or truncated) → largest visible share of the person."""
_ECP_IGNORED = frozenset({"sitting-lying", "behind-glass"})
_UNKNOWN_SHARE = -1.0
"""Stored value of an unknown visible share: prepared columns must be finite."""

BoxType = Literal["full", "visible", "head"]
BOX_KEYS: Mapping[BoxType, str] = {"full": "fbox", "visible": "vbox", "head": "hbox"}
"""Kinds of boxes and their keys in .odgt files; each box is left, top, width, height."""


class Person(NamedTuple):
    """Labelled person: its kind, boxes (left, top, right, bottom in pixels), ignore marks and visible share."""

    kind: str
    boxes: Mapping[BoxType, BoxCorners]
    is_ignored: bool
    is_head_ignored: bool = False
    visible_share: float = np.nan


class PeopleLayout(NamedTuple):
    """Kinds of people and their codes in a layout's files; kinds in `ignored` are not to be detected.

    `boxes` are the boxes of every person that are stored.
    """

    codes: Mapping[str, int | str]
    ignored: frozenset[str] = frozenset()
    boxes: tuple[BoxType, ...] = ("full",)

    def name_of_code(self, code: Any) -> str | None:
        """Return the kind of a code, or None if the layout does not have the code."""
        return next((kind for kind, kind_code in self.codes.items() if kind_code == code), None)

    @property
    def columns(self) -> dict[str, ColumnSpec]:
        """Stored columns of a person: the boxes, the kind, the ignore marks, and the visible share."""
        columns: dict[str, ColumnSpec] = {box: box_column((4,), "float64") for box in self.boxes}
        columns |= {"label": box_column((), "int64"), "is_ignored": box_column((), "bool")}
        if "head" in self.boxes:
            return {**columns, "is_head_ignored": box_column((), "bool")}
        return {**columns, "visible_share": box_column((), "float64")}

    def read_columns(self, people: Sequence[Person], size_px: tuple[int, int], faults: AnnotationFaults) -> Values:
        """Return the stored columns of the people of an image."""
        kinds = list(self.codes)
        shares = np.nan_to_num(np.array([each.visible_share for each in people], dtype=np.float64), nan=_UNKNOWN_SHARE)
        values = {
            "label": np.array([kinds.index(each.kind) for each in people], dtype=np.int64),
            "is_ignored": np.array([each.is_ignored for each in people], dtype=bool),
            "is_head_ignored": np.array([each.is_head_ignored for each in people], dtype=bool),
            "visible_share": shares,
        }
        for box in self.boxes:
            values[box] = np.array([each.boxes[box] for each in people], dtype=np.float64).reshape(-1, 4)
        return {name: values[name] for name in self.columns}


CROWDHUMAN = PeopleLayout({"person": 1}, boxes=("full", "visible", "head"))
WIDERPERSON = PeopleLayout(
    {"pedestrian": 1, "rider": 2, "partially_visible": 3, "ignored_region": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
)
CITYPERSONS = PeopleLayout(
    {"ignored_region": 0, "pedestrian": 1, "rider": 2, "sitting": 3, "other": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
    ("full", "visible"),
)
ECP = PeopleLayout(
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


class PeopleFiles(NamedTuple):
    """Images that the labels below `root` name, in order, with faults and notes."""

    root: Path
    images: Sequence[ListedImage]
    faults: AnnotationFaults
    notes: Sequence[str] = ()


def read_crowdhuman(source: Path) -> PeopleFiles:
    """Read CrowdHuman's .odgt files with all boxes of every person, and images in any folders beside them.

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
        lines = sorted(_odgt_lines(file).items(), key=lambda line: f"{line[0]}.jpg")
        for number, (name, people) in enumerate(lines, start=1):
            boxes = tuple(_odgt_people(people, name, faults))
            if name not in paths:
                faults.add(_BAD_IMAGE, f"there is no image '{name}' below {root}")
                continue
            path, *duplicates = paths[name]
            if duplicates:
                raise DataError(
                    f"{path}: {duplicates[0]} has the same name, and the boxes of '{name}' fit either; keep one"
                )
            read = partial(CROWDHUMAN.read_columns, boxes)
            images.append(ListedImage(split, name, path, read, number, None, (file,)))
    return PeopleFiles(root, images, faults)


def _odgt_lines(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the people of each ID of a file. Raises DataError with the line for bad JSON, no ID, or a repeated ID."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, text in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
            key, people = str(line["ID"]), line["gtboxes"]
            marks = [person.get(mark) or {} for person in people for mark in ("extra", "head_attr")]
            if key.startswith("/") or ".." in key.split("/"):
                raise ValueError(f"the ID '{key[:80]}' leads out of the folder")
            if not all(isinstance(mark, dict) and not isinstance(mark.get("ignore"), str) for mark in marks):
                raise TypeError("extra and head_attr must be objects, and their ignore a number")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: is not a line of .odgt with ID and gtboxes ({error}); get it again"
            ) from error
        if key in lines:
            raise DataError(f"{path}:{number}: the image '{key}' appears twice; keep one of the lines")
        lines[key] = people
    if not lines:
        raise DataError(f"{path}: contains no lines; the file is empty or damaged")
    return lines


def _odgt_people(people: Sequence[dict[str, Any]], name: str, faults: AnnotationFaults) -> Iterator[Person]:
    """Yield people, ignored if no person or marked so; a missing box is empty, or another one of an ignored person."""
    for index, person in enumerate(people):
        is_ignored = person.get("tag") != "person" or (person.get("extra") or {}).get("ignore", 0) != 0
        is_head_ignored = is_ignored or (person.get("head_attr") or {}).get("ignore", 0) != 0
        try:
            stated = {kind: xywh_to_xyxy(person[key]) for kind, key in BOX_KEYS.items() if person.get(key) is not None}
            marks = [is_head_ignored if kind == "head" else is_ignored for kind in stated]
            if not stated or not all(map(_is_valid, stated.values(), marks)):
                raise ValueError("a box of finite numbers, with width and height above 0, is needed")
        except (ArithmeticError, TypeError, ValueError) as error:
            faults.add(_BAD_BOX, f"{name}: box {index} is {str(dict(person))[:160]} ({error})")
            continue
        missing = next(iter(stated.values())) if is_ignored else (0.0, 0.0, 0.0, 0.0)
        boxes = {kind: stated.get(kind, missing) for kind in BOX_KEYS}
        yield Person("person", boxes, is_ignored, is_head_ignored)


def _is_valid(box: BoxCorners, is_ignored: bool) -> bool:
    return is_valid_box(box, is_ignored=is_ignored)


def read_widerperson(source: Path) -> PeopleFiles:
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
                    boxes = tuple(_widerperson_people(labels, faults))
                except DataError as error:
                    faults.add(_BAD_FILE, str(error))
                    continue
                read = partial(WIDERPERSON.read_columns, boxes)
                images.append(ListedImage(split, f"Images/{image}", path, read, number, None, (file, labels)))
    notes += [f"{num_unlabelled} images of test.txt have no annotations and are left out"] if num_unlabelled else []
    return PeopleFiles(root, images, faults, notes)


def _widerperson_people(path: Path, faults: AnnotationFaults) -> Iterator[Person]:
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
            box = _to_corners((left, top, right - left, bottom - top), is_ignored=kind in WIDERPERSON.ignored)
        except (OverflowError, ValueError) as error:
            faults.add(_BAD_BOX, f"{path}:{number}: '{line.strip()[:60]}' ({error})")
            continue
        yield Person(kind, {"full": box}, kind in WIDERPERSON.ignored)


def read_citypersons(source: Path) -> PeopleFiles:
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
            people = tuple(_citypersons_people(rows.reshape(-1, 10), f"{where}, {name}", faults))
            folders = (file.stem.removeprefix("anno_"), city)
            matches = [path for path in paths[name] if path.parts[-3:-1] == folders] or paths[name]
            image_path = matches[0] if len(matches) == 1 else None
            if image_path is None:
                count = f"there are {len(matches)} images" if matches else "there is no image"
                faults.add(_BAD_IMAGE, f"{where}: {count} '{name}' below {image_root}")
                continue
            read, split = partial(CITYPERSONS.read_columns, people), guess_split(Path(file.name))
            images.append(
                ListedImage(split, image_path.relative_to(root).as_posix(), image_path, read, number, None, (file,))
            )
    return PeopleFiles(root, images, faults)


def _citypersons_people(rows: np.ndarray, where: str, faults: AnnotationFaults) -> Iterator[Person]:
    for number, row in enumerate(rows.tolist(), start=1):
        try:
            code, left, top, width, height, _ = map(_parse_number, row[:6])
            kind = CITYPERSONS.name_of_code(code)
            is_ignored = kind in CITYPERSONS.ignored
            if kind is None:
                raise ValueError("classes are 0 to 5")
            full = _to_corners((left, top, width, height), is_ignored=is_ignored)
            visible_left, visible_top, visible_width, visible_height = map(_parse_number, row[6:])
            visible = _to_corners((visible_left, visible_top, visible_width, visible_height), is_ignored=True)
        except ValueError as error:
            faults.add(_BAD_BOX, f"{where}, box {number}: {row} ({error})")
            continue
        has_visible = min(visible_width, visible_height) > 0
        has_share = has_visible and min(width, height) > 0 and not is_ignored
        share = min(visible_width * visible_height / (width * height), 1.0) if has_share else np.nan
        boxes: dict[BoxType, BoxCorners] = {"full": full, "visible": visible if has_visible else full}
        yield Person(kind, boxes, is_ignored, visible_share=share)


def read_ecp(source: Path) -> PeopleFiles:
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
            people = tuple(_ecp_people(frame["children"], str(file), faults))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            needed = f"{file}: a frame with imagewidth, imageheight and children is needed ({error!r}); get it again"
            faults.add(_BAD_FILE, str(error) if isinstance(error, DataError) else needed)
            continue
        num_vehicles += sum(ECP.name_of_code(child["identity"]) is None for child in frame["children"])
        split = next((guess for word in part.parts if (guess := guess_split(Path(word))) != "all"), "all")
        numbers[split] = numbers.get(split, 0) + 1
        path = folder.parent / "img" / part.with_suffix(".png")
        read, name = partial(ECP.read_columns, people), path.relative_to(root).as_posix()
        images.append(ListedImage(split, name, path, read, numbers[split], size_px, (file,)))
    notes = [f"{num_vehicles} boxes of vehicles are left out"] if num_vehicles else []
    return PeopleFiles(root, images, faults, notes)


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


def _ecp_people(children: Any, where: str, faults: AnnotationFaults) -> Iterator[Person]:
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
            box = _to_corners((left, top, right - left, bottom - top), is_ignored=is_ignored)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            faults.add(_BAD_BOX, f"{where}: child {number}: {str(child)[:120]} ({error})")
            continue
        share = np.nan if is_ignored else ecp_visible_share(tags)
        yield Person(kind, {"full": box}, is_ignored, visible_share=share)


def ecp_visible_share(tags: Any) -> float:
    """Return the visible share of an ECP person: 1, 0.9, 0.6 or 0.2, by the larger of occlusion and truncation."""
    shares = [
        _VISIBLE_BY_OCCLUSION.get(int(match[1]), 1.0)
        for tag in tags or ()
        if (match := _OCCLUDED_PATTERN.fullmatch(str(tag)))
    ]
    return min(shares, default=1.0)


def _parse_number(value: Any) -> float:
    """Parse a finite number. Raises ValueError, TypeError, OverflowError (too large)."""
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{value!r} is not finite")
    return number


def _to_corners(box: BoxCorners, *, is_ignored: bool) -> BoxCorners:
    """Return left, top, right, bottom of left, top, width, height. Raises ValueError if out of range, or empty."""
    corners = xywh_to_xyxy(box)
    if not is_valid_box(corners, is_ignored=is_ignored):
        raise ValueError("width and height above 0 are needed")
    return corners


def _layout_error(root: Path, needed: str, set_title: str) -> DataError:
    return DataError(f"{root}: {describe_contents(root)}; {set_title} has {needed}: give the folder with them")
