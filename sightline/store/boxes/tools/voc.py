"""Pascal VOC: images with an XML file each, and lists that state their splits."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from sightline.store.boxes.image_listing import guess_split
from sightline.store.boxes.label_table import BoxCorners, Files, LabelFormat, LabelledBox, LabelledImage, LabelledSet
from sightline.store.boxes.label_writing import group_by_split, plain, round_box
from sightline.store.boxes.tools.boxes import (
    BAD_BOX,
    OTHER_PLACE,
    Turn,
    are_apart,
    find_bounds,
    fit_label,
    is_upright,
    make_box,
    parse_numbers,
    parse_points,
    parse_size,
)
from sightline.store.boxes.tools.folders import (
    BAD_IMAGE,
    UNLISTED,
    LabelFolder,
    LabelReport,
    StatedImage,
    path_in_split,
)
from sightline.store.files.image_files import IMAGE_SUFFIXES
from sightline.store.files.input_files import list_files, read_file
from sightline.store.files.xml_files import XmlElement, read_xml

_UNSTATED = ("", "0", "Unspecified")
"""Texts of elements of an object that state nothing."""


_BETWEEN = (
    "boxes have corners between pixels, which do not count pixels from 1, and are taken as they are; first_pixel=1 "
    "says otherwise"
)


def read_voc(source: Path, *, first_pixel: Literal[0, 1] | None = None) -> LabelledSet:
    """Read Pascal VOC: an XML file for each image, anywhere below a folder; ImageSets/Main states splits, else folders.

    `first_pixel` is 0 if corners are to be taken as they are. If it is not stated, whole corners count pixels from 1,
    and fractions do not; no corner does where most boxes have fractions. Raises DataError for a folder without such
    files.
    """
    labels, num_boxes, num_between = _read_set(source, first_pixel)
    if first_pixel is not None or 2 * num_between <= num_boxes:
        return labels
    labels, *_ = _read_set(source, 0)
    text = f"{labels.root}: {num_between} of {num_boxes} {_BETWEEN}"
    text += "; so are the others" if num_between < num_boxes else ""
    return replace(labels, notes=[*labels.notes, text])


def _read_set(source: Path, first_pixel: int | None) -> tuple[LabelledSet, int, int]:
    """Read a folder; also return the numbers of its boxes, and of those that are taken as they are for fractions."""
    folder = LabelFolder(
        source,
        layout="voc",
        suffixes=(".xml",),
        needs="Pascal VOC has Annotations/NAME.xml and JPEGImages/NAME.jpg",
        unlabelled=("SegmentationClass", "SegmentationObject"),
    )
    labels = folder.read(partial(_read_file, first_pixel=first_pixel), _read_splits(folder))
    return labels, sum(len(image.boxes) for image in labels.images), len(folder.report.habits[_BETWEEN])


def _read_splits(folder: LabelFolder) -> dict[Path, str]:
    """Read the splits of annotation files from the lists beside them; `UNLISTED` for files in none of them."""
    named: defaultdict[Path, dict[str, Path]] = defaultdict(dict)
    for file in folder.files:
        inside = file.relative_to(folder.root).parents
        for parent in [folder.root / parent for parent in inside if parent.name == "Annotations"]:
            named[parent.parent / "ImageSets" / "Main"][file.relative_to(parent).with_suffix("").as_posix()] = file
    splits: dict[Path, str] = {}
    for main, file_by_name in named.items():
        path_by_word = {path.stem.lower(): path for path in sorted(main.glob("*.txt"))}
        words = ["train", "val", "validation", "test"]  # the order in which an image of two lists counts
        words += [] if {"train", "val"} & path_by_word.keys() else ["trainval"]
        lists = [path_by_word[word] for word in words if word in path_by_word]
        folder.lists += lists
        for path in lists:
            _read_list(path, file_by_name, splits, folder.report)
        for file in file_by_name.values() if lists else ():
            splits.setdefault(file, UNLISTED)
    unread_lists = folder.report.habits["lists are not read; put them into ImageSets/Main beside Annotations"]
    for path in list_files(folder.root, {".txt"}) if not splits else ():
        if path.stem in ("train", "val", "trainval", "test"):
            unread_lists.append(str(path))
    return splits


def _read_list(path: Path, file_by_name: Mapping[str, Path], splits: dict[Path, str], report: LabelReport) -> None:
    """Add the split of a list for the files that it names and that have none."""
    split = guess_split(Path(path.name))
    for number, line in enumerate(read_file(path).decode("utf-8-sig", "replace").split("\n"), start=1):
        row = line.strip().strip('"')
        stem = row.removesuffix(next((end for end in IMAGE_SUFFIXES if row.lower().endswith(end)), ""))
        names = [name for name in (line.rstrip("\r"), row, stem, *row.split()[:1]) if name in file_by_name]
        if row and not names:
            report.faults.add(BAD_IMAGE, f"{path}:{number}: '{row[:60]}' has no file in Annotations")
        elif names and splits.setdefault(file_by_name[names[0]], split) != split:
            report.habits["rows are those of two lists, and count for the first"].append(f"{path}:{number}")


def _read_file(file: Path, report: LabelReport, *, first_pixel: int | None) -> Iterator[StatedImage]:
    """Yield the image of a VOC file: none for XML of another kind.

    With a `first_pixel` of 1, as VOC counts, `xmin` and `xmax` are the first and last pixel: 1 and 3 are 0 and 3 here.
    With 0, corners are taken as they are; with None, those of a box with a fraction. Difficult objects are ignored, as
    VOC's evaluation does; a part called `head` is the head's box. Raises DataError for damaged XML, ValueError for an
    impossible size. Source: Everingham and Winn 2012, The PASCAL VOC Challenge 2012 Development Kit, on annotation
    files and on the evaluation of detection.
    """
    document = read_xml(file)
    if document.tag != "annotation":
        report.habits["XML files are not of Pascal VOC and are passed over"].append(str(file))
        return
    size_px = parse_size(document.text("size", "height"), document.text("size", "width"))
    boxes = tuple(_read_objects(document, file, report, first_pixel))
    yield StatedImage(document.text("filename"), size_px, boxes)


def _read_objects(
    document: XmlElement, file: Path, report: LabelReport, first_pixel: int | None
) -> Iterator[LabelledBox]:
    for item in document.find_all("object"):
        where = f"{file}:{item.line}"
        try:
            parts = {part.text("name").lower()[:40]: part for part in item.find_all("part")}
            head = _count_from_0(_read_corners(parts.pop("head")), first_pixel) if "head" in parts else None
            marks = {"difficult": item.text("difficult")}
            turned = _read_turned(item)
            stated = _read_corners(item) if turned is None else turned[0]
            turn = _read_rotation(item)
            corners = turn.turn_box(_count_from_0(stated, first_pixel)) if turned is None else stated
            is_turned = turned[1] if turned is not None else not turn.is_upright
            yield make_box(item.text("name"), corners, marks, line=item.line, head=head, is_turned=is_turned)
        except ValueError as error:
            report.faults.add(BAD_BOX, f"{where}: object '{item.text('name')[:40]}' ({error})")
            continue
        report.unread.update({child.tag[:40] for child in item.children if _is_unread(child)} | {*parts})
        if turned is not None:
            continue
        polygon = _find_polygon(item)
        if polygon is not None and turn.is_upright and are_apart(corners, polygon):
            report.habits[OTHER_PLACE].append(where)
        if first_pixel is None and _has_fractions(stated):
            report.habits[_BETWEEN].append(where)
        elif first_pixel != 0 and 0 in stated[:2]:
            report.habits[
                "boxes begin at 0, and VOC counts pixels from 1; if the tool counts from 0, first_pixel=0 says so"
            ].append(where)


def _is_unread(element: XmlElement) -> bool:
    """Return True if an element of an object states something, such as a pose, that is not read."""
    is_read = element.tag in ("name", "difficult", "bndbox", "robndbox", "part")
    return not is_read and bool(element.children or element.content.strip() not in _UNSTATED)


def _read_corners(element: XmlElement) -> BoxCorners:
    if not element.find_all("bndbox"):
        raise ValueError(f"it has no bndbox, but {', '.join(child.tag for child in element.children)[:160]}")
    texts = {key: element.text("bndbox", key) for key in ("xmin", "ymin", "xmax", "ymax")}
    left, top, right, bottom = parse_numbers(texts)
    return left, top, right, bottom


def _read_turned(element: XmlElement) -> tuple[BoxCorners, bool] | None:
    """Return the box about roLabelImg's robndbox, and whether it is turned; None for an object without one.

    It has a middle, sides and an angle in radians, or four corners, in pixels from 0. Raises ValueError for others.
    """
    if element.find_all("bndbox") or not (boxes := element.find_all("robndbox")):
        return None
    [texts] = [{child.tag: child.content.strip() for child in box.children} for box in boxes[:1]]
    if {"cx", "cy", "w", "h"} <= texts.keys():
        x, y, width, height, angle = parse_numbers({key: texts.get(key, 0) for key in ("cx", "cy", "w", "h", "angle")})
        turn = Turn(math.degrees(angle))
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return turn.turn_box(box), not turn.is_upright
    sides = [parse_numbers({key: text for key, text in texts.items() if key.startswith(axis)}) for axis in "xy"]
    if [*map(len, sides)] != [4, 4]:
        raise ValueError(f"its robndbox has {', '.join(texts)[:80]}; cx, cy, w, h and angle are needed")
    corners = parse_points(list(zip(*sides, strict=True)))
    return find_bounds(corners), not is_upright(corners)


def _find_polygon(element: XmlElement) -> BoxCorners | None:
    """Return the box about a polygon of numbered corners, as Roboflow writes it beside the box; None without one."""
    texts = {child.tag: child.content for part in element.find_all("polygon") for child in part.children}
    try:
        sides = [parse_numbers({key: text for key, text in texts.items() if key[:1] == axis}) for axis in "xy"]
        return find_bounds(parse_points(list(zip(*sides, strict=True))))
    except ValueError:  # also for a polygon of another form, which is not read
        return None


def _read_rotation(element: XmlElement) -> Turn:
    """Return the turn that CVAT states as an attribute `rotation` of an object, in degrees."""
    stated = [item for group in element.find_all("attributes") for item in group.find_all("attribute")]
    return Turn(next((item.text("value") for item in stated if item.text("name") == "rotation"), None))


def _count_from_0(box: BoxCorners, first_pixel: int | None) -> BoxCorners:
    """Return the sides of a box of first and last pixels; those of a box with a fraction, if nothing is stated."""
    step = first_pixel if first_pixel is not None else int(not _has_fractions(box))
    return box[0] - step, box[1] - step, box[2], box[3]


def _has_fractions(box: BoxCorners) -> bool:
    return not all(corner.is_integer() for corner in box if math.isfinite(corner))


def write_voc(labels: LabelledSet) -> Files:
    """Yield an XML file for each image, and the lists of splits; pixels count from 1, ignored boxes are difficult.

    Every photo is stated with three channels, as it is trained on.
    """
    for image in labels.images:
        yield f"Annotations/{_list_name(image)}.xml", _render_image(image).encode()
    for word, images in group_by_split(labels.images).items():
        if word:
            yield f"ImageSets/Main/{word}.txt", "".join(f"{_list_name(image)}\n" for image in images).encode()


def _image_path(image: LabelledImage) -> str:
    name = image.name.removeprefix("JPEGImages/").removeprefix("images/")
    return f"JPEGImages/{path_in_split(name, 'all') if image.split == 'all' else name}"


def _list_name(image: LabelledImage) -> str:
    """Return the name of an image in lists: below its folder, without suffix."""
    return os.path.splitext(image.name.removeprefix("JPEGImages/"))[0]


def _render_image(image: LabelledImage) -> str:
    assert image.size_px is not None
    height, width = image.size_px
    objects = [
        f"  <object>\n    <name>{escape(box.class_name)}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>0</truncated>\n    <difficult>{int(box.is_ignored)}</difficult>\n"
        f"    {_render_corners(box.box)}\n{_render_head(box.head)}  </object>\n"
        for box in image.boxes
    ]
    folder, _, name = image.name.rpartition("/")
    return (
        f"<annotation>\n  <folder>{escape(folder)}</folder>\n  <filename>{escape(name)}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"  <segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def _render_head(head: BoxCorners | None) -> str:
    return "" if head is None else f"    <part><name>head</name>{_render_corners(head)}</part>\n"


def _render_corners(box: BoxCorners | None) -> str:
    assert box is not None
    left, top, right, bottom = box
    corners = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
    return f"<bndbox>{''.join(f'<{key}>{plain(value)}</{key}>' for key, value in corners.items())}</bndbox>"


def _fit(box: LabelledBox, size_px: tuple[int, int]) -> LabelledBox | str:
    """Round a box and its head to whole pixels, in which VOC counts."""
    fitted = fit_label(box)
    if isinstance(fitted, str) or fitted.box is None:
        return fitted
    head = fitted.head and round_box(fitted.head, is_ignored=fitted.is_ignored)
    return fitted._replace(box=round_box(fitted.box, is_ignored=fitted.is_ignored), head=head)


VOC = LabelFormat(
    read=read_voc,
    turns=True,
    write=write_voc,
    image_path=_image_path,
    holds=frozenset({"head", "is_ignored", "size", "undivided"}),
    fit=_fit,
    rounds="has whole pixels",
    known_by={".xml": rb"<annotation[\s>]"},
)
