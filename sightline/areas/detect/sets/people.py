"""CrowdHuman, WiderPerson, CityPersons and EuroCity Persons: images with boxes of people, as they are published."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from sightline.areas.detect.sets.image_listing import (
    AnnotationFaults,
    BoxCorners,
    CategoryIds,
    ListedImage,
    ListedImageSet,
    Values,
    box_column,
    guess_split,
    is_valid_box,
    list_images,
    parse_number,
    xywh_to_xyxy,
)
from sightline.areas.detect.sets.labelled_images import BoxColumns, LabelledImages
from sightline.areas.detect.sets.records import box_facts
from sightline.contract import registry
from sightline.contract.arguments import FractionBelowOne, NonNegativeFloat, Seed
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.regular_files import parse_json
from sightline.contract.types import DataInfo
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.files.input_files import expand_home, get_again, parse_json_content, read_file
from sightline.store.files.mat_files import read_mat
from sightline.store.files.text_tables import parse_count
from sightline.store.prepared.columns import ColumnSpec
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import PreparedSet, describe_contents

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
    """Kinds of people and their codes in a set's files; kinds in `ignored` are not to be detected.

    `boxes` are the boxes of every person that are stored.
    """

    name: str
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


CROWDHUMAN = PeopleLayout("crowdhuman", {"person": 1}, boxes=("full", "visible", "head"))
WIDERPERSON = PeopleLayout(
    "widerperson",
    {"pedestrian": 1, "rider": 2, "partially_visible": 3, "ignored_region": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
)
CITYPERSONS = PeopleLayout(
    "citypersons",
    {"ignored_region": 0, "pedestrian": 1, "rider": 2, "sitting": 3, "other": 4, "crowd": 5},
    frozenset({"ignored_region", "crowd"}),
    ("full", "visible"),
)
ECP = PeopleLayout(
    "ecp",
    {
        "pedestrian": "pedestrian",
        "rider": "rider",
        "crowd": "person-group-far-away",
        "rider_crowd": "rider+vehicle-group-far-away",
    },
    frozenset({"crowd", "rider_crowd"}),
)


@dataclass
class _Listing:
    """Images that the labels of a layout below `root` name, in order, with faults and notes."""

    layout: PeopleLayout
    root: Path
    images: list[ListedImage] = field(default_factory=list)
    faults: AnnotationFaults = field(default_factory=AnnotationFaults)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        split: str,
        path: Path,
        people: Iterable[Person],
        number: int,
        *files: Path,
        name: str | None = None,
        size_px: tuple[int, int] | None = None,
    ) -> None:
        """Add the next image with its people; it is called by its path below `root`, unless by a `name`."""
        name = name or path.relative_to(self.root).as_posix()
        read = partial(self.layout.read_columns, tuple(people))
        self.images.append(ListedImage(split, name, path, read, number, size_px, files))

    def make_set(self) -> ListedImageSet:
        """Return the listed images with the classes and columns of the layout."""
        layout = self.layout
        ids = tuple(code if isinstance(code, int) else n for n, code in enumerate(layout.codes.values(), start=1))
        classes = CategoryIds(tuple(layout.codes), ids)
        return ListedImageSet(
            self.root, layout.name, classes, self.images, layout.columns, "full", self.faults, self.notes
        )


_MAX_NAME_LENGTH = 250
"""Longest name of an image: a suffix of four letters is added, and file systems allow 255."""


def read_crowdhuman(source: Path) -> ListedImageSet:
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
    listing = _Listing(CROWDHUMAN, root)
    for file in files:
        split = guess_split(file.relative_to(root))
        lines = sorted(_odgt_lines(file).items(), key=lambda line: f"{line[0]}.jpg")
        for number, (name, people) in enumerate(lines, start=1):
            boxes = [*_odgt_people(people, name, listing.faults)]
            if name not in paths:
                listing.faults.add(_BAD_IMAGE, f"there is no image '{name}' below {root}")
                continue
            path, *duplicates = paths[name]
            if duplicates:
                raise DataError(
                    f"{path}: {duplicates[0]} has the same name, and the boxes of '{name}' fit either; keep one"
                )
            listing.add(split, path, boxes, number, file, name=name)
    return listing.make_set()


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


def read_widerperson(source: Path) -> ListedImageSet:
    """Read WiderPerson: the images in train.txt, val.txt and test.txt, and Annotations/NAME.jpg.txt.

    Images of test.txt without annotations are left out; the published test split has none. An annotation file that is
    damaged is a fault. Raises DataError for a folder without such lists.
    """
    root = expand_home(source).resolve()
    lists = [path for name in ("train", "val", "test") if (path := root / f"{name}.txt").is_file()]
    if not lists or not (root / "Annotations").is_dir():
        raise _layout_error(root, "train.txt and val.txt with Annotations/ and Images/", "WiderPerson")
    listing, num_unlabelled = _Listing(WIDERPERSON, root), 0
    for file in lists:
        lines = read_file(file).decode("utf-8-sig", "replace").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        for number, name in enumerate(names, start=1):
            image = f"{name.removesuffix('.jpg')}.jpg"
            if len(image) > _MAX_NAME_LENGTH or "/" in image or "\0" in image:
                raise get_again(f"{file}: entry {number}: '{name[:40]}' is not the name of an image")
            labels = root / "Annotations" / f"{image}.txt"
            if name.removesuffix(".jpg") == _WIDERPERSON_FAULTY:
                listing.notes.append(f"{labels} is left out: its published annotation does not fit the image")
            elif file.stem == "test" and not labels.is_file():
                num_unlabelled += 1
            else:
                people, split = _widerperson_people(labels, listing.faults), guess_split(Path(file.name))
                try:
                    listing.add(split, root / "Images" / image, people, number, file, labels)
                except DataError as error:
                    listing.faults.add(_BAD_FILE, str(error))
    if num_unlabelled:
        listing.notes.append(f"{num_unlabelled} images of test.txt have no annotations and are left out")
    return listing.make_set()


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


def read_citypersons(source: Path) -> ListedImageSet:
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
    listing = _Listing(CITYPERSONS, root)
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
            people = [*_citypersons_people(rows.reshape(-1, 10), f"{where}, {name}", listing.faults)]
            folders = (file.stem.removeprefix("anno_"), city)
            matches = [path for path in paths[name] if path.parts[-3:-1] == folders] or paths[name]
            if len(matches) == 1:
                listing.add(guess_split(Path(file.name)), matches[0], people, number, file)
            else:
                count = f"there are {len(matches)} images" if matches else "there is no image"
                listing.faults.add(_BAD_IMAGE, f"{where}: {count} '{name}' below {image_root}")
    return listing.make_set()


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


def read_ecp(source: Path) -> ListedImageSet:
    """Read EuroCity Persons: frames of labels/SPLIT/CITY/NAME.json with img/SPLIT/CITY/NAME.png, day and night.

    Vehicles are not people and are left out. Ids count the frames of a split from 1, in the order of their paths.
    A file that is not a frame is a fault. Raises DataError for a folder without labels.
    """
    root = expand_home(source).resolve()
    folders = [path for form in ("labels", "*/labels", "*/*/labels") for path in sorted(root.glob(form))]
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.json"))]
    if not files:
        raise _layout_error(root, "day/labels/train/CITY/NAME.json with day/img/", "EuroCity Persons")
    listing, num_vehicles = _Listing(ECP, root), 0
    numbers = Counter[str]()
    for folder, file in files:
        part = file.relative_to(folder)
        try:
            frame = _find_frame(parse_json_content(read_file(file), where=str(file), advice="get the file again"))
            size_px = int(frame["imageheight"]), int(frame["imagewidth"])
            people = [*_ecp_people(frame["children"], str(file), listing.faults)]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            needed = f"{file}: a frame with imagewidth, imageheight and children is needed ({error!r}); get it again"
            listing.faults.add(_BAD_FILE, str(error) if isinstance(error, DataError) else needed)
            continue
        num_vehicles += sum(ECP.name_of_code(child["identity"]) is None for child in frame["children"])
        split = next((guess for word in part.parts if (guess := guess_split(Path(word))) != "all"), "all")
        numbers[split] += 1
        path = folder.parent / "img" / part.with_suffix(".png")
        listing.add(split, path, people, numbers[split], file, size_px=size_px)
    if num_vehicles:
        listing.notes.append(f"{num_vehicles} boxes of vehicles are left out")
    return listing.make_set()


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


class _People(LabelledImages):
    """Base of data sets of people: boxes of the chosen kinds are people, all other kinds are ignored.

    A set states its layout, the reader of its files (`list_images`), and the usual kinds.
    """

    people_layout: ClassVar[PeopleLayout]
    usual: ClassVar[tuple[str, ...]] = ("pedestrian",)

    def __init__(
        self,
        *,
        split: str,
        root: str | None = None,
        people: tuple[str, ...] = (),
        box: BoxType = "full",
        scored_box: BoxType = "full",
        clip: bool = False,
        ignore_below_px: NonNegativeFloat = 0.0,
        validation_share: FractionBelowOne = 0.1,
        split_seed: Seed = 0,
    ) -> None:
        self._kinds, self._clip = (box, scored_box), clip
        for kind in self._kinds:
            if kind not in self.people_layout.boxes:
                stated = ", ".join(self.people_layout.boxes)
                raise ConfigError(f"box, scored_box: {self.set_name} has no {kind} boxes; it has {stated}")
        if ignored := self.people_layout.ignored & {*people}:
            raise ConfigError(f"people: {self.set_name} marks '{min(ignored)}' as not to be found; leave it out")
        super().__init__(
            split=split,
            root=root,
            classes=people or self.usual,
            other_classes="ignored",
            ignore_below_px=ignore_below_px,
            validation_share=validation_share,
            split_seed=split_seed,
        )
        self.classes = CategoryIds(("person",), (1,))  # one class in all of these sets, which can then be mixed
        self._class_of = np.minimum(self._class_of, 0)
        self.info = dataclasses.replace(self.info, facts=box_facts(self.classes.names, self._columns.box_type))

    def _columns_in(self, prepared: PreparedSet) -> BoxColumns:
        for kind in self._kinds:
            _check_has_boxes(prepared, kind)
        is_ignored, is_scored_ignored = map(_ignored_column, self._kinds)
        return BoxColumns(*self._kinds, is_ignored, is_scored_ignored, area=None, clip=self._clip)

    def _visible(self, index: int) -> np.ndarray:
        share = self._read_column(index, "visible_share")
        return np.where(share < 0, np.nan, share)


def _ignored_column(box: BoxType) -> str:
    return "is_head_ignored" if box == "head" else "is_ignored"


def _check_has_boxes(prepared: PreparedSet, box: BoxType) -> None:
    """Raise DataError if a person has no box of this kind and is not ignored."""
    for split in prepared.splits:
        is_lacking = ~(prepared.array(split, box).any(axis=1) | prepared.array(split, _ignored_column(box)))
        if is_lacking.any():
            row = int(np.searchsorted(prepared.offsets(split), int(is_lacking.argmax()), side="right")) - 1
            raise DataError(
                f"{prepared.root}: {int(is_lacking.sum())} people have no {box} box ({BOX_KEYS[box]}), first in "
                f"'{prepared.names(split)[row]}'; set box and scored_box to another kind"
            )


@registry.data.add("crowdhuman")
class CrowdHuman(_People):
    """Images of crowds, prepared by `sightline data prepare crowdhuman`.

    `box` are the boxes that are trained on, `scored_box` those that are scored. What is not a person, or is marked so,
    is ignored; a head also by its own mark; boxes narrower or lower than `ignore_below_px` pixels, too. Full boxes
    reach beyond the image and may have negative corners: they are kept as they are, unless `clip` cuts those that are
    trained on. The published validation images are the test part. Source: Shao et al. 2018, CrowdHuman.
    """

    spec = SetSpec(name="crowdhuman")
    people_layout, list_images = CROWDHUMAN, staticmethod(read_crowdhuman)
    usual = ("person",)

    def _visible(self, index: int) -> np.ndarray:
        """Return the visible share (G,) float64 of each person: area of the visible over the full box, at most 1."""
        boxes = (self._read_column(index, name) for name in ("visible", "full"))
        visible, full = ((corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in boxes)
        has_share = (visible > 0) & (full > 0) & ~self._read_column(index, "is_ignored")
        return np.divide(visible, full, out=np.full(len(full), np.nan), where=has_share).clip(max=1)

    @classmethod
    def expected_info(cls, *, scored_box: BoxType = "full") -> DataInfo:
        """Return the DataInfo expected before preparation, without counts."""
        return DataInfo(box_facts(("person",), scored_box), BOX_FIELDS)


@registry.data.add("widerperson")
class WiderPerson(_People):
    """Images of people in many places, prepared by `sightline data prepare widerperson`.

    `people` are the kinds to be found (left out: `pedestrian`, `rider`, `partially_visible`), as one class
    `person`; the others are ignored. Boxes narrower or lower than `ignore_below_px` pixels are ignored, too. The
    published validation images are the test part. Source: Zhang et al. 2019, WiderPerson.
    """

    spec = SetSpec(name="widerperson")
    people_layout, list_images = WIDERPERSON, staticmethod(read_widerperson)
    usual = ("pedestrian", "rider", "partially_visible")


@registry.data.add("ecp")
class EuroCityPersons(_People):
    """Images of 31 cities by day and by night, prepared by `sightline data prepare ecp`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`), as one class `person`; the others are ignored,
    as are pedestrians who sit, lie or are behind glass, and boxes narrower or
    lower than `ignore_below_px` pixels. The share that is visible comes from the tags. The published validation images
    are the test part. Source: Braun et al. 2019, EuroCity Persons.
    """

    spec = SetSpec(name="ecp")
    people_layout, list_images = ECP, staticmethod(read_ecp)


@registry.data.add("citypersons")
class CityPersons(_People):
    """People in the images of Cityscapes, prepared by `sightline data prepare citypersons`.

    `people` are the kinds to be found (left out: `pedestrian`; `rider`, `sitting`, `other`), as one class `person`; the
    others are ignored. `box` are trained on, `scored_box` are scored. Boxes
    narrower or lower than `ignore_below_px` pixels are ignored, too. The published validation images are the test part.
    Source: Zhang et al. 2017, CityPersons.
    """

    spec = SetSpec(name="citypersons")
    people_layout, list_images = CITYPERSONS, staticmethod(read_citypersons)
