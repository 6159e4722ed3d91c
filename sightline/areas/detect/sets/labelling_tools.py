"""The user's own images with boxes from labelling tools: Pascal VOC's XML and LabelMe's JSON."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.areas.detect.sets.image_listing import (
    BOX_COLUMNS,
    MAX_PX,
    AnnotationFaults,
    BoxCorners,
    CategoryIds,
    ListedImage,
    ListedImageSet,
    Values,
    box_values,
    guess_split,
    is_valid_box,
    list_files,
    list_images,
    parse_number,
)
from sightline.areas.detect.sets.labelled_images import LabelledImages
from sightline.areas.detect.sets.yolo_txt import assign_image_ids, guess_image_split
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.files.image_files import IMAGE_SUFFIXES
from sightline.store.files.input_files import expand_home, parse_json_content, read_file
from sightline.store.files.xml_files import XmlElement, read_xml
from sightline.store.prepared.prepared_data import SetSpec
from sightline.store.prepared.prepared_set import describe_contents

_BAD_BOX, _BAD_IMAGE = "impossible boxes", "images that are missing or damaged"
_BAD_FILE = "annotation files that are missing or damaged"
_IGNORE_MARKS = ("difficult", "ignore", "iscrowd", "is_crowd")
"""Names of a mark of an object that is neither a target nor background."""
_MASK_FOLDERS = frozenset({"SegmentationClass", "SegmentationObject"})
"""Folders of VOC whose images are masks, not photos."""
_VOC_DATABASE = re.compile(r"The VOC\d{4} Database")


class _Box(NamedTuple):
    """Labelled object: class, left, top, right and bottom, and its ignore mark."""

    label: str
    corners: BoxCorners
    is_ignored: bool


class _ToolImage(NamedTuple):
    """Image that a file is about; `split` is "all" if no list states one, and `path` None if the image is missing."""

    split: str
    name: str
    path: Path | None
    boxes: Sequence[_Box]
    size_px: tuple[int, int] | None
    file: Path


_UNLISTED = ""
"""Split of an image that is in none of the lists that state splits."""


class _Reading:
    """Reading of the annotation files below a folder: images that are there, faults, and places that notes count."""

    def __init__(self, source: Path, suffix: str) -> None:
        path = expand_home(source).resolve()
        self.is_folder = not path.is_file()
        self.root = path if self.is_folder else path.parent
        self.files = list_files(path, {suffix}) if self.is_folder else [path]
        self.lists: list[Path] = []
        self.faults, self.noted = AnnotationFaults(), defaultdict[str, list[str]](list)
        self.images = [path for path in list_images(self.root, may_lack=True) if _MASK_FOLDERS.isdisjoint(path.parts)]
        self._by_name, self._by_stem = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
        for path in self.images:
            self._by_name[_normalise(path.name)].append(path)
            self._by_stem[_normalise(path.stem)].append(path)

    def find_image(self, stated: str, file: Path) -> tuple[str, Path | None]:
        """Return the name and path of the image that a file states; the path is None if there is no such image.

        The file can be called as its image. Of several with one name it is the one below the most folders of the stated
        path. Raises ValueError if two images fit.
        """
        parts = [part for part in stated.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        named = self._by_name[_normalise(parts[-1])] if parts else []
        alike = self._by_stem[_normalise(file.stem)]
        if named and alike and {*named}.isdisjoint(alike):
            raise ValueError(f"states the image '{stated}', and is called as {alike[0]}; rename one of them")
        fitting = [path for path in named if path in alike] or named or alike
        if not fitting:
            name = "/".join(parts) or f"{file.stem}.jpg"
            return (file.parent / name).relative_to(self.root).as_posix(), None
        if parts and parts[-1] != fitting[0].name:
            self.noted["files state another name than that of the image called as they are"].append(f"{file}: {stated}")
        ranks = [
            (_count_equal(path.parts[::-1], parts[::-1]), _rank_near(path.parent.parts, file.parent.parts))
            for path in fitting
        ]
        best = [path for path, rank in zip(fitting, ranks, strict=True) if rank == max(ranks)]
        if len(best) > 1:
            raise ValueError(f"states the image '{stated}', which {best[0]} and {best[1]} may be; rename one of them")
        return best[0].relative_to(self.root).as_posix(), best[0]

    def read(self, read_image: _ReadImage, layout: str, needed: str) -> ListedImageSet:
        """Read all files to a set in the order of the images' names.

        Raises DataError if the files name no image, with what is `needed`.
        """
        first: dict[str, _ToolImage] = {}
        for image in sorted(self._iterate_images(read_image), key=lambda image: image.name):
            if (other := first.setdefault(image.name, image)) is not image:
                self.faults.add("images that two files are about", f"{other.name}: {other.file}, {image.file}")
            elif image.split == _UNLISTED:
                self.faults.add("images in none of the lists that state splits", image.name)
        if not first:
            self.faults.raise_or_note("refuse", root=self.root)
            raise DataError(f"{self.root}: {describe_contents(self.root)}; {needed}: give the folder with them")
        named = {image.path for image in first.values()}
        for path in self.images:
            if path not in named and self.is_folder:
                self.faults.add("images that no annotation file is about", path.relative_to(self.root).as_posix())
        labels = sorted({box.label for image in first.values() for box in image.boxes})
        if not labels:
            self.faults.raise_or_note("refuse", root=self.root)
        classes = CategoryIds.from_ids(dict(enumerate(labels, start=1)), where=str(self.root))
        listed, ids = [], assign_image_ids([Path(name) for name in first])
        for name, image in first.items():
            if image.split == _UNLISTED:
                continue
            if image.path is None:
                self.faults.add(_BAD_IMAGE, f"{image.file}: there is no image '{name}' below {self.root}")
                continue
            split = guess_image_split(Path(name).parent) if image.split == "all" else image.split
            read, files = partial(_make_columns, image.boxes, classes), (image.file, *self.lists)
            listed.append(ListedImage(split, name, image.path, read, ids[Path(name)], image.size_px, files))
        notes = [f"{len(places)} {text}, first: {places[0]}" for text, places in self.noted.items()]
        return ListedImageSet(self.root, layout, classes, listed, BOX_COLUMNS, "boxes", self.faults, notes)

    def _iterate_images(self, read_image: _ReadImage) -> Iterator[_ToolImage]:
        for file in self.files:
            try:
                image = read_image(self, file)
            except (OverflowError, TypeError, ValueError) as error:
                self.faults.add(_BAD_FILE, str(error) if isinstance(error, DataError) else f"{file}: {error}")
                continue
            if image is not None:
                yield image


def _make_columns(
    boxes: Sequence[_Box], classes: CategoryIds, size_px: tuple[int, int], faults: AnnotationFaults
) -> Values:
    labels = [classes.names.index(box.label) for box in boxes]
    return box_values([box.corners for box in boxes], labels, [box.is_ignored for box in boxes])


def _normalise(name: str) -> str:
    """Return a name in the Unicode form in which equal names have equal bytes."""
    return unicodedata.normalize("NFC", name)


def _count_equal(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the equal parts at the beginning of two paths."""
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))])


def _rank_near(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the folders that two paths have in common, from the root and from the end."""
    return _count_equal(first, second) + _count_equal(first[::-1], second[::-1])


def _parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Return the stated height and width; None if they are missing or 0. Raises ValueError for no whole numbers."""
    sides = _parse_numbers({"height": height or 0, "width": width or 0})
    if not all(map(float.is_integer, sides)):
        raise ValueError(f"the size {width} x {height} is not one of whole pixels")
    return (int(sides[0]), int(sides[1])) if min(sides) > 0 else None


def _parse_numbers(values: Mapping[str, Any]) -> list[float]:
    """Parse numbers by their name. Raises ValueError with the name for anything else."""
    numbers = []
    for name, value in values.items():
        try:
            numbers.append(float(value))
        except (OverflowError, TypeError, ValueError):
            raise ValueError(f"{name} is '{str(value)[:40]}', a number is needed") from None
    return numbers


def _is_marked(values: Mapping[str, Any]) -> bool:
    """Return True if one of the marks of ignored objects is set. Raises ValueError for a mark but 0 and 1."""
    marks = [str(values.get(name) or 0).strip().lower() for name in _IGNORE_MARKS]
    if unknown := [mark for mark in marks if mark not in ("0", "1", "false", "true")]:
        raise ValueError(f"'{unknown[0][:40]}' is neither 0 nor 1, which marks of difficult objects are")
    return not {"1", "true"}.isdisjoint(marks)


def _make_box(label: Any, corners: BoxCorners, *, is_ignored: bool) -> _Box:
    """Return the box of left, top, right, bottom. Raises ValueError without a label, or for an impossible box."""
    if not isinstance(label, str) or not label.strip():
        raise ValueError("it has no label")
    if not is_valid_box(corners, is_ignored=is_ignored):
        raise ValueError("width and height above 0, and finite numbers, are needed")
    return _Box(label.strip(), corners, is_ignored)


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def _find_voc(source: Path) -> ListedImageSet:
    """Read Pascal VOC: an XML file for each image, anywhere below a folder; ImageSets/Main states splits, else folders.

    Boxes of the VOC database count pixels from 1, those of tools are taken as they are. Difficult objects are ignored.
    Raises DataError for a folder without such files.
    """
    reading, needed = _Reading(source, ".xml"), "Pascal VOC has Annotations/NAME.xml and JPEGImages/NAME.jpg"
    return reading.read(partial(_read_voc_image, splits=_read_voc_splits(reading)), "voc", needed)


def _read_voc_image(reading: _Reading, file: Path, *, splits: Mapping[Path, str]) -> _ToolImage | None:
    document = read_xml(file)
    if document.tag != "annotation":
        reading.noted["XML files are not of Pascal VOC and are passed over"].append(str(file))
        return None
    name, path = reading.find_image(document.text("filename"), file)
    size_px = _parse_size(document.text("size", "height"), document.text("size", "width"))
    first_pixel = 1 if _VOC_DATABASE.match(document.text("source", "database")) else 0
    if first_pixel:
        reading.noted["files are of the VOC database, which counts pixels from 1: read as from 0"].append(str(file))
    boxes = tuple(_voc_boxes(reading, document, file, first_pixel))
    return _ToolImage(splits.get(file, "all"), name, path, boxes, size_px, file)


def _read_voc_splits(reading: _Reading) -> dict[Path, str]:
    """Read the splits of annotation files from the lists beside them; `_UNLISTED` for files in none of them."""
    named: defaultdict[Path, dict[str, Path]] = defaultdict(dict)
    for file in reading.files:
        for folder in [folder for folder in file.parents if folder.name == "Annotations"][:1]:
            named[folder.parent / "ImageSets" / "Main"][file.relative_to(folder).with_suffix("").as_posix()] = file
    splits: dict[Path, str] = {}
    for folder, file_by_name in named.items():
        path_by_word = {path.stem.lower(): path for path in sorted(folder.glob("*.txt"))}
        words = ["train", "val", "validation", "test"]  # the order in which an image of two lists counts
        words += [] if {"train", "val"} & path_by_word.keys() else ["trainval"]
        lists = [path_by_word[word] for word in words if word in path_by_word]
        reading.lists += lists
        for path in lists:
            split = guess_split(Path(path.name))
            for number, line in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
                row = line.strip().strip('"')
                stem = row.removesuffix(next((end for end in IMAGE_SUFFIXES if row.lower().endswith(end)), ""))
                names = [name for name in (row, stem, *row.split()[:1]) if name in file_by_name]
                if row and not names:
                    reading.faults.add(_BAD_IMAGE, f"{path}:{number}: '{row[:60]}' has no file in Annotations")
                elif row and splits.setdefault(file_by_name[names[0]], split) != split:
                    reading.noted["rows are those of two lists, and count for the first"].append(f"{path}:{number}")
        for file in file_by_name.values() if lists else ():
            splits.setdefault(file, _UNLISTED)
    for path in list_files(reading.root, {".txt"}) if not splits else ():
        if path.stem in ("train", "val", "trainval", "test"):
            reading.noted["lists are not read; put them into ImageSets/Main beside Annotations"].append(str(path))
    return splits


def _voc_boxes(reading: _Reading, document: XmlElement, file: Path, first_pixel: int) -> Iterator[_Box]:
    for each in document.find_all("object"):
        if parts := each.find_all("part"):
            reading.noted["objects have parts, which are not read"].append(f"{file}:{parts[0].line}")
        try:
            if not each.find_all("bndbox"):
                raise ValueError(f"it has no bndbox, but {', '.join(child.tag for child in each.children)}")
            texts = {key: each.text("bndbox", key) for key in ("xmin", "ymin", "xmax", "ymax")}
            left, top, right, bottom = _parse_numbers(texts)
            is_ignored = _is_marked({"difficult": each.text("difficult")})
            corners = left - first_pixel, top - first_pixel, right, bottom
            yield _make_box(each.text("name"), corners, is_ignored=is_ignored)
        except ValueError as error:
            reading.faults.add(_BAD_BOX, f"{file}:{each.line}: object '{each.text('name')[:40]}' ({error})")


# --- LabelMe ---------------------------------------------------------------------------------------------------------


def _bounds(points: np.ndarray) -> BoxCorners:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _circle_bounds(points: np.ndarray) -> BoxCorners:
    (x, y), radius = points[0].tolist(), float(np.hypot(*(points[1] - points[0])))
    return x - radius, y - radius, x + radius, y + radius


_SHAPES: Mapping[str, Callable[[np.ndarray], BoxCorners]] = {
    "rectangle": _bounds,
    "polygon": _bounds,
    "circle": _circle_bounds,
    "mask": lambda points: _bounds(np.add(points, [[0, 0], [1, 1]])),
}
"""Type of shape of LabelMe -> the box about its points; those of a mask are its first and last pixel."""


def _find_labelme(source: Path) -> ListedImageSet:
    """Read LabelMe: a JSON file for each image, anywhere below a folder; folders state the splits.

    Rectangles, polygons, circles and masks become the boxes about them; those with a label and a group_id are one
    object. Raises DataError for a folder without such files.
    """
    needed = "LabelMe has NAME.json with shapes and imagePath beside NAME.jpg"
    return _Reading(source, ".json").read(_read_labelme_image, "labelme", needed)


def _read_labelme_image(reading: _Reading, file: Path) -> _ToolImage | None:
    document = parse_json_content(read_file(file), where=str(file), advice="save it again")
    if not (isinstance(document, dict) and isinstance(document.get("shapes"), list)):
        reading.noted["JSON files are not of LabelMe and are passed over"].append(str(file))
        return None
    name, path = reading.find_image(str(document.get("imagePath") or ""), file)
    size_px = _parse_size(document.get("imageHeight"), document.get("imageWidth"))
    boxes = tuple(_labelme_boxes(reading, document["shapes"], file))
    return _ToolImage("all", name, path, boxes, size_px, file)


def _labelme_boxes(reading: _Reading, shapes: Sequence[Any], file: Path) -> Iterator[_Box]:
    groups: dict[object, _Box] = {}
    for number, shape in enumerate(shapes):
        where = f"{file}: shape {number}"
        try:
            kind, label, group = shape.get("shape_type") or "polygon", shape["label"], shape.get("group_id")
            if kind not in _SHAPES:
                reading.faults.add("shapes that are no boxes", f"{where}: '{str(label)[:40]}' is a {str(kind)[:40]}")
                continue
            points = np.array([[parse_number(value) for value in point] for point in shape["points"]])
            if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not (abs(points) <= MAX_PX).all():
                raise ValueError("two or more points of x and y are needed, in pixels")
            corners, is_ignored = _SHAPES[kind](points), _is_marked(shape) or _is_marked(shape.get("flags") or {})
            box = _make_box(label, corners, is_ignored=is_ignored)
            key = number if group is None else (box.label, str(group))
            if (first := groups.get(key)) is not None:
                reading.noted["shapes are parts of an object by their group_id, in the box about all"].append(where)
                whole = _bounds(np.reshape([corners, first.corners], (4, 2)))
                box = _make_box(label, whole, is_ignored=is_ignored and first.is_ignored)
            groups[key] = box
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reading.faults.add(_BAD_BOX, f"{where}: {str(shape)[:120]} ({error})")
    yield from groups.values()


_ReadImage = Callable[[_Reading, Path], _ToolImage | None]


# --- the data sets ---------------------------------------------------------------------------------------------------


@registry.data.add("voc")
class Voc(LabelledImages):
    """Images with boxes in Pascal VOC's XML, prepared by `sightline data prepare voc`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Difficult objects are
    ignored, and boxes narrower or lower than `ignore_below_px` pixels of the file. Where neither ImageSets/Main nor
    folders state a test part, `tested` are beginnings of names, or `test_share` is tested. Source: Everingham et al.
    2010, The PASCAL Visual Object Classes (VOC) Challenge.
    """

    spec, list_images = SetSpec(name="voc"), staticmethod(_find_voc)


@registry.data.add("labelme")
class LabelMe(LabelledImages):
    """Images with boxes in LabelMe's JSON, prepared by `sightline data prepare labelme`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, circles and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where folders state no test part, `tested` are beginnings of names, or `test_share` is tested. Source: the user's
    files; the format is that of LabelMe (Wada).
    """

    spec, list_images = SetSpec(name="labelme"), staticmethod(_find_labelme)
