"""CVAT for images: XML files about many images each, with their labels and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sightline.areas.detect.sets.label_table import BoxCorners, LabelFormat, LabelledBox, LabelledSet
from sightline.areas.detect.sets.labelled_images import LabelledImages
from sightline.areas.detect.sets.tool_boxes import (
    BAD_BOX,
    MARKS,
    NO_BOX,
    find_bounds,
    make_box,
    parse_numbers,
    parse_points,
    parse_size,
)
from sightline.areas.detect.sets.tool_folders import BAD_IMAGE, Tool, ToolFolder, ToolImage, ToolReport
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.files.xml_files import XmlElement, iterate_xml
from sightline.store.prepared.prepared_data import SetSpec

_CVAT = Tool("cvat", ".xml", "'CVAT for images 1.1' has annotations.xml with images/", is_alone=False)
_SHAPES: Mapping[str, tuple[tuple[str, ...], Callable[..., BoxCorners]]] = {
    "box": (("xtl", "ytl", "xbr", "ybr"), lambda left, top, right, bottom: (left, top, right, bottom)),
    "ellipse": (("cx", "cy", "rx", "ry"), lambda x, y, rx, ry: (x - rx, y - ry, x + rx, y + ry)),
    "mask": (("left", "top", "width", "height"), lambda x, y, width, height: (x, y, x + width, y + height)),
}
"""Element of an image → its attributes of numbers, and the box about it; polygons have points."""


def read_cvat(source: Path) -> LabelledSet:
    """Read 'CVAT for images': XML files about images anywhere below a folder; subsets state the splits, else folders.

    Raises DataError for a folder without such files.
    """
    return ToolFolder(source, _CVAT).read(_read_file, {})


def _read_file(file: Path, report: ToolReport) -> Iterator[ToolImage]:
    """Yield the images of a file of CVAT for images; the labels that it declares are classes.

    Boxes, polygons, masks and ellipses become the boxes about them. An attribute that is called as one of `MARKS` is
    that mark. Turned boxes and other shapes are faults. Raises DataError for damaged XML, and for tracks of a video.
    Source: CVAT's manual, XML annotation format, version 1.1.
    """
    elements = iterate_xml(file)
    if next(elements).tag != "annotations":
        report.habits["XML files are not of CVAT and are passed over"].append(str(file))
        return
    for each in elements:
        where = f"{file}:{each.line}"
        if each.tag == "track":
            raise DataError(f"{where}: is a track of a video, which is not read; export it as 'CVAT for images 1.1'")
        if each.tag == "meta":
            labels = [label for job in each.children for part in job.find_all("labels") for label in part.children]
            names = [label.text("name") for label in labels if not label.text("parent")]
            report.class_names += [name for name in names if name]
        if each.tag != "image":
            continue
        try:
            size_px = parse_size(each.attributes.get("height"), each.attributes.get("width"))
        except ValueError as error:
            report.faults.add(BAD_IMAGE, f"{where}: {error}")
            continue
        boxes = tuple(_read_shapes(each, file, report))
        yield ToolImage(each.attributes.get("name", ""), size_px, boxes, each.attributes.get("subset", ""), each.line)


def _read_shapes(image: XmlElement, file: Path, report: ToolReport) -> Iterator[LabelledBox]:
    for shape in image.children:
        label = shape.attributes.get("label", "")
        where = f"{file}:{shape.line}: {shape.tag[:40]} '{label[:40]}'"
        if shape.tag == "tag":
            report.habits["tags of whole images are not read"].append(where)
            continue
        if shape.tag not in (*_SHAPES, "polygon"):
            report.faults.add(NO_BOX, where)
            continue
        try:
            [turn] = parse_numbers({"rotation": shape.attributes.get("rotation") or 0})
            if turn % 360:
                report.faults.add("turned shapes, which are not read", f"{where} by {turn:g} degrees")
                continue
            marks = {each.attributes.get("name", ""): each.content.strip() for each in shape.find_all("attribute")}
            yield make_box(label, _read_corners(shape), marks, line=shape.line)
        except (LookupError, ValueError) as error:
            report.faults.add(BAD_BOX, f"{where} ({error})")
            continue
        report.unread.update(f"attribute {name}"[:80] for name in marks.keys() - {*MARKS} if marks[name])
        report.unread.update(["occluded"] if shape.attributes.get("occluded") == "1" else [])


def _read_corners(shape: XmlElement) -> BoxCorners:
    if shape.tag == "polygon":
        return find_bounds(parse_points([pair.split(",") for pair in shape.attributes["points"].split(";")]))
    names, compute_corners = _SHAPES[shape.tag]
    return compute_corners(*parse_numbers({name: shape.attributes.get(name, "") for name in names}))


@registry.data.add("cvat")
class Cvat(LabelledImages):
    """Images with boxes in the XML of 'CVAT for images 1.1', prepared by `sightline data prepare cvat`.

    `classes` chooses some by name, in this order; boxes of the others are left out or ignored. Polygons, ellipses and
    masks become the boxes about them. Boxes narrower or lower than `ignore_below_px` pixels of the file are ignored.
    Where neither subsets nor folders state a test part, `tested` are beginnings of names, or `test_share` is tested.
    Source: the user's files; the format is that of CVAT (Sekachev et al.).
    """

    spec, label_format = SetSpec(name="cvat"), LabelFormat(read=read_cvat)
