"""CVAT for images: XML files about many images each, with their labels and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import BoxCorners, Files, LabelFormat, LabelledBox, LabelledImage, LabelledSet
from sightline.store.boxes.label_writing import SPLIT_WORDS, plain
from sightline.store.boxes.tools.boxes import (
    BAD_BOX,
    MARKS,
    NO_BOX,
    Turn,
    find_bounds,
    fit_label,
    make_box,
    parse_numbers,
    parse_points,
    parse_size,
    state_marks,
)
from sightline.store.boxes.tools.folders import BAD_IMAGE, LabelReport, StatedImage, label_reader, path_in_split
from sightline.store.files.xml_files import XmlElement, iterate_xml

_SHAPES: Mapping[str, tuple[tuple[str, ...], Callable[..., BoxCorners]]] = {
    "box": (("xtl", "ytl", "xbr", "ybr"), lambda turn, *corners: turn.turn_box(corners)),
    "ellipse": (("cx", "cy", "rx", "ry"), Turn.turn_ellipse),
    "mask": (("left", "top", "width", "height"), lambda _, x, y, width, height: (x, y, x + width, y + height)),
}
"""Element of an image → its attributes of numbers, and the box about it as it is turned; polygons have points."""


@label_reader(
    layout="cvat", suffixes=(".xml",), needs="'CVAT for images 1.1' has annotations.xml with images/", is_alone=False
)
def read_cvat(file: Path, report: LabelReport) -> Iterator[StatedImage]:
    """Yield the images of a file of CVAT for images; the labels that it declares are classes.

    Boxes, polygons, masks and ellipses become the boxes about them. An attribute that is called as one of `MARKS` is
    that mark. Other shapes are faults. Raises DataError for damaged XML, and for tracks of a video.
    Source: CVAT's manual, XML annotation format, version 1.1.
    """
    elements = iterate_xml(file)
    if next(elements).tag != "annotations":
        report.habits["XML files are not of CVAT and are passed over"].append(str(file))
        return
    for element in elements:
        where = f"{file}:{element.line}"
        if element.tag == "track":
            raise DataError(f"{where}: is a track of a video, which is not read; export it as 'CVAT for images 1.1'")
        if element.tag == "meta":
            labels = [label for job in element.children for part in job.find_all("labels") for label in part.children]
            names = [label.text("name") for label in labels if not label.text("parent")]
            report.class_names += [name for name in names if name]
        if element.tag != "image":
            continue
        try:
            size_px = parse_size(element.attributes.get("height"), element.attributes.get("width"))
        except ValueError as error:
            report.faults.add(BAD_IMAGE, f"{where}: {error}")
            continue
        boxes = tuple(_read_shapes(element, file, report))
        yield StatedImage(
            element.attributes.get("name", ""), size_px, boxes, element.attributes.get("subset", ""), element.line
        )


def _read_shapes(image: XmlElement, file: Path, report: LabelReport) -> Iterator[LabelledBox]:
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
            turn = Turn(shape.attributes.get("rotation"))
            marks = {
                attribute.attributes.get("name", ""): attribute.content.strip()
                for attribute in shape.find_all("attribute")
            }
            yield make_box(label, _read_corners(shape, turn), marks, line=shape.line, is_turned=not turn.is_upright)
        except (LookupError, ValueError) as error:
            report.faults.add(BAD_BOX, f"{where} ({error})")
            continue
        report.unread.update(f"attribute {name}"[:80] for name in marks.keys() - {*MARKS} if marks[name])
        report.unread.update([f"{shape.tag}s, but the boxes about them"] if shape.tag != "box" else [])
        report.unread.update(["occluded"] if shape.attributes.get("occluded") == "1" else [])
        report.unread.update(["group_id"] if shape.attributes.get("group_id", "0") != "0" else [])


def _read_corners(shape: XmlElement, turn: Turn) -> BoxCorners:
    if shape.tag == "polygon":
        return find_bounds(parse_points([pair.split(",") for pair in shape.attributes["points"].split(";")]))
    names, compute_corners = _SHAPES[shape.tag]
    return compute_corners(turn, *parse_numbers({name: shape.attributes.get(name, "") for name in names}))


def write_cvat(labels: LabelledSet) -> Files:
    """Yield one XML file: subsets are the splits, attributes of boxes say what is ignored, or a crowd."""
    names = dict.fromkeys(" ".join(name.split()) for name in labels.classes.names)
    parts = [_render_label(name) for name in names if not isinstance(fit_label(LabelledBox(name, None)), str)]
    images = [_render_image(number, image) for number, image in enumerate(labels.images)]
    head = f"<version>1.1</version>\n<meta>\n<task>\n<labels>\n{''.join(parts)}</labels>\n</task>\n</meta>\n"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{head}{"".join(images)}</annotations>\n'
    yield "annotations.xml", text.encode()


def _image_path(image: LabelledImage) -> str:
    if image.split == "all":
        return f"images/{path_in_split(image.name, image.split)}"
    word = SPLIT_WORDS[image.split]  # which the subset states, whatever other folders are called
    return f"images/{word}/{image.name.removeprefix('images/').removeprefix(f'{word}/')}"


def _render_label(name: str) -> str:
    attributes = [
        f"<attribute><name>{mark}</name><mutable>False</mutable><input_type>checkbox</input_type>"
        "<default_value>false</default_value><values>false</values></attribute>\n"
        for mark in state_marks(LabelledBox(name, None))
    ]
    return f"<label>\n<name>{escape(name)}</name>\n<attributes>\n{''.join(attributes)}</attributes>\n</label>\n"


def _render_image(number: int, image: LabelledImage) -> str:
    assert image.size_px is not None
    height, width = image.size_px
    word = SPLIT_WORDS[image.split]
    name = image.name.removeprefix(f"images/{word}/".replace("//", "/"))
    subset = f' subset="{word}"' if word else ""
    head = f'id="{number}" name={quoteattr(name)}{subset} width="{width}" height="{height}"'
    return f"<image {head}>\n{''.join(map(_render_box, image.boxes))}</image>\n"


def _render_box(box: LabelledBox) -> str:
    assert box.box is not None
    corners = " ".join(f'{key}="{plain(value)}"' for key, value in zip(_SHAPES["box"][0], box.box, strict=True))
    marks = [f'<attribute name="{name}">{str(is_set).lower()}</attribute>' for name, is_set in state_marks(box).items()]
    head = f'label={quoteattr(box.class_name)} source="manual" occluded="0" {corners} z_order="0"'
    return f"<box {head}>{''.join(marks)}</box>\n"


CVAT = LabelFormat(
    read=read_cvat,
    turns=True,
    write=write_cvat,
    image_path=_image_path,
    holds=frozenset({"is_ignored", "is_crowd", "size", "undivided", "suffix"}),
    fit=lambda box, _: fit_label(box),
    known_by={".xml": rb"<annotations[\s>]"},
)
