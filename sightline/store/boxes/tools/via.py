"""VGG Image Annotator (VIA), versions 1 to 3: JSON, and the tables of versions 1 and 2, about many images each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import DataError, join_some
from sightline.store.boxes.label_table import BoxCorners, LabelFormat, LabelledBox, LabelledSet, parse_number
from sightline.store.boxes.tools.boxes import MARKS, NO_BOX, NoBoxError, Turn, find_bounds, make_box, parse_points
from sightline.store.boxes.tools.folders import LabelFolder, LabelReport, StatedImage, name_subset
from sightline.store.boxes.tools.tables import iterate_rows, read_header
from sightline.store.files.input_files import parse_json_content, read_file

_MAX_LISTED = 5
_CENTRED: Mapping[str, tuple[str, ...]] = {"circle": ("cx", "cy", "r", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
_SHAPES_3: Mapping[int, tuple[str, tuple[str, ...]]] = {
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
}
"""Number of a shape of version 3 → its name and numbers in version 2; 7 is a polygon."""
_UNSUPPORTED_SHAPES_3 = {1: "point", 5: "line", 6: "polyline", 8: "extreme rectangle", 9: "extreme circle"}
_Image = Mapping[str, Any]
"""Image of version 2: `filename`, and the list `regions`, each with `shape_attributes` and `region_attributes`."""


def read_via(source: Path, *, label_key: str | None = None, class_name: str | None = None) -> LabelledSet:
    """Read VIA's files anywhere below a folder; words in their names, else folders, state the splits.

    `label_key` is the attribute of regions that names the class, which has to be stated if they have several ones;
    `class_name` is the class of all regions that state none. Raises DataError for a folder without such files, and for
    regions whose attribute is not known.
    """
    folder = LabelFolder(
        source,
        layout="via",
        suffixes=(".csv", ".json"),
        needs="VIA has a project, or annotations as JSON or CSV, beside photos",
        is_alone=False,
    )
    images: dict[Path, Sequence[_Image]] = {}

    def read_images(file: Path, report: LabelReport) -> Iterator[StatedImage]:
        for image in images[file] if file in images else _read_images(file, report):
            name, regions = str(image["filename"]), image["regions"]
            entries = ((f"{file}: {name}, region {number}", region) for number, region in enumerate(regions))
            parse = partial(_read_region, label_key=label_key, class_name=class_name, report=report)
            boxes = report.collect_boxes(entries, parse)
            yield StatedImage(name, None, boxes, name_subset(file))

    for file in folder.files:
        try:
            images[file] = _read_images(file, folder.report)
        except ValueError:
            continue  # it is read again, and then is a fault
    label_key = _find_label_key(folder.root, [*images.values()], label_key, class_name)
    return folder.read(read_images)


def _find_label_key(
    root: Path, files: Sequence[Sequence[_Image]], label_key: str | None, class_name: str | None
) -> str | None:
    """Return the attribute that names the class, None if regions have none and the class is stated.

    Raises DataError if it is not known, or no region has it.
    """
    regions = [
        region for images in files for image in images for region in image["regions"] if isinstance(region, dict)
    ]
    names = Counter(name for region in regions for name in _attributes(region))
    named = join_some(
        [f"{name} ({count} of {len(regions)} regions)" for name, count in names.most_common()], most=_MAX_LISTED
    )
    if label_key is not None and label_key not in names and regions:
        raise DataError(f"{root}: no region has the attribute '{label_key}'; there are {named or 'none'}")
    if label_key is not None or not regions:
        return label_key
    if len(names) > 1:
        raise DataError(f"{root}: regions have the attributes {named}: say which is the class by label_key=NAME")
    if not names and class_name is None:
        raise DataError(f"{root}: no region states an attribute: say what all of them are by class_name=NAME")
    return next(iter(names), None)


def _attributes(region: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a region that are no marks, and not empty."""
    stated = region.get("region_attributes")
    items = stated.items() if isinstance(stated, dict) else ()
    return {name: value for name, value in items if name not in MARKS and value}


def _read_region(
    region: Mapping[str, Any], *, label_key: str | None, class_name: str | None, report: LabelReport
) -> LabelledBox:
    attributes = _attributes(region)
    label = attributes.pop(label_key, None) if label_key is not None else None
    if isinstance(label, dict):  # a check box for each class
        ticked = [name for name, is_set in label.items() if is_set]
        if len(ticked) > 1:
            raise ValueError(f"it has the classes {join_some(ticked, most=_MAX_LISTED)}, a box has one")
        label = next(iter(ticked), None)
    shape = region["shape_attributes"]
    turn = Turn(np.rad2deg(parse_number(shape.get("theta") or 0)) if shape["name"] == "ellipse" else 0)
    corners = _find_corners(shape, turn)
    report.unread.update(f"attribute {name}"[:80] for name in attributes)
    report.unread.update([f"{shape['name']}s, but the boxes about them"] if shape["name"] != "rect" else [])
    marks = region.get("region_attributes") or {}
    return make_box(label or class_name, corners, marks, line=0, is_turned=not turn.is_upright)


def _find_corners(shape: Mapping[str, Any], turn: Turn) -> BoxCorners:
    kind = str(shape["name"])
    if kind == "rect":
        left, top, width, height = (parse_number(shape[key]) for key in ("x", "y", "width", "height"))
        return left, top, left + width, top + height
    if kind == "polygon":
        return find_bounds(parse_points(np.transpose([shape["all_points_x"], shape["all_points_y"]]).tolist()))
    if kind not in _CENTRED:
        raise NoBoxError(NO_BOX, f"is a {kind[:40]}")
    x, y, x_radius, y_radius = (parse_number(shape[key]) for key in _CENTRED[kind])
    return turn.turn_ellipse(x, y, x_radius, y_radius)


def _read_images(file: Path, report: LabelReport) -> Sequence[_Image]:
    """Read the images of a file as version 2 has them: none of a file of another kind.

    Raises DataError for damaged files, and for a table of version 3. Source: VIA's code, its exports of each version.
    """
    if file.suffix.lower() == ".csv":
        return _read_table(file, report)
    document = parse_json_content(read_file(file), where=str(file), advice="export it again")
    stated: Any = document.get("_via_img_metadata", document) if isinstance(document, dict) else {}
    if isinstance(stated, dict) and {"file", "view", "metadata"} <= stated.keys():
        return _convert_version_3(stated, file)
    images = [entry for entry in stated.values() if isinstance(entry, dict)] if isinstance(stated, dict) else []
    if not images or not all({"filename", "regions"} <= image.keys() for image in images):
        report.habits["JSON files are not of VIA and are passed over"].append(str(file))
        return ()
    return [{"filename": image["filename"], "regions": _list_regions(image)} for image in images]


def _list_regions(image: _Image) -> list[Any]:
    """Return the regions of an image; version 1 numbers them. Raises ValueError for anything else."""
    regions = image["regions"] or []
    if not isinstance(regions, dict | list):
        raise ValueError(f"the regions of {str(image['filename'])[:80]} are no list")
    return list(regions.values()) if isinstance(regions, dict) else regions


def _read_table(file: Path, report: LabelReport) -> Sequence[_Image]:
    header = read_header(file)
    if header[:1] and header[0].strip().startswith("Exported using VGG Image Annotator"):
        raise DataError(f"{file}: is a table of VIA 3, which is not read; save the project as JSON")
    if not {"filename", "region_shape_attributes", "region_attributes"} <= {*header}:
        report.habits["tables are not of VIA and are passed over"].append(str(file))
        return ()
    images: dict[str, dict[str, Any]] = {}
    for line, row in iterate_rows(file):
        image = images.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
        parse: Callable[[str], Any] = partial(_parse_cell, where=f"{file}:{line}")
        if shape := parse(row["region_shape_attributes"]):
            attributes = parse(row["region_attributes"])
            image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    return [*images.values()]


def _parse_cell(text: str, *, where: str) -> Any:
    return parse_json_content(text.encode(), where=where, advice="export it again")


def _convert_version_3(project: Mapping[str, Any], file: Path) -> Sequence[_Image]:
    """Return the images of a project of version 3 as version 2 has them. Raises DataError for one about videos."""
    try:
        attributes = {
            key: (str(entry["aname"]), entry.get("options") or {}) for key, entry in project["attribute"].items()
        }
        names = {str(key): str(entry["fname"]) for key, entry in project["file"].items()}
        images: dict[str, dict[str, Any]] = {}
        for key, view in project["view"].items():
            [number] = view["fid_list"]
            images[key] = {"filename": names[str(number)], "regions": []}
        for entry in project["metadata"].values():
            if entry.get("z"):
                raise DataError(f"{file}: has times of a video, which is not read; take its frames as images")
            if entry["xy"]:
                stated = {attributes[key][0]: attributes[key][1].get(v, v) for key, v in entry["av"].items()}
                region = {"shape_attributes": _convert_shape(entry["xy"]), "region_attributes": stated}
                images[str(entry["vid"])]["regions"].append(region)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: is no project of VIA 3 about single images ({error!r}); save it again") from None
    return [*images.values()]


def _convert_shape(xy: Sequence[Any]) -> dict[str, Any]:
    kind, *numbers = xy
    if kind == 7:
        return {"name": "polygon", "all_points_x": numbers[::2], "all_points_y": numbers[1::2]}
    if kind in _SHAPES_3:
        name, keys = _SHAPES_3[kind]
        return {"name": name, **dict(zip(keys, numbers, strict=True))}
    return {"name": _UNSUPPORTED_SHAPES_3.get(kind, f"shape {kind}")}


VIA = LabelFormat(
    read=read_via,
    turns=True,
    known_by={
        ".json": rb'"(?:_via_settings|_via_img_metadata|shape_attributes|region_attributes|vid_list)"\s*:',
        ".csv": rb"\A(?:\xef\xbb\xbf)?#?\s*filename,(?:file_size,file_attributes|.*region_shape)",
    },
)
