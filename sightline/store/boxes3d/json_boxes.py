"""Boxes in JSON files, one for each frame: SUSTechPOINTS, labelCloud's three forms, Supervisely and CVAT 3D."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import DataError
from sightline.store.boxes3d.conversions import BoxReading, box_of_vertices, vertices_of_box
from sightline.store.boxes3d.label_rows import (
    Form,
    LabelFile,
    StatedBox,
    check_sizes,
    parse_name,
    parse_number,
    parse_point,
    show,
)
from sightline.store.boxes3d.txt_boxes import guess_unit
from sightline.store.files.input_files import parse_json_content, read_file
from sightline.store.remarks import SizeRemark

_AXES = ("x", "y", "z")
_MAX_RESIDUAL_M = 0.01
_ADVICE = "export the labels again"


def find_json_format(document: Any) -> str:
    """Return the name of the format of a JSON document, "" for one of another kind."""
    entries = document.get("objs") if isinstance(document, Mapping) else document
    if isinstance(entries, list):
        return "sustechpoints" if all(isinstance(entry, Mapping) and "psr" in entry for entry in entries) else ""
    if not isinstance(document, Mapping):
        return ""
    if isinstance(document.get("figures"), list) and isinstance(document.get("objects"), list):
        return "supervisely"
    objects = document.get("objects")
    if isinstance(objects, list) and ("filename" in document or _has_labelcloud_key(objects)):
        return "labelcloud"
    return ""


def _has_labelcloud_key(objects: Sequence[Any]) -> bool:
    return any(isinstance(entry, Mapping) and ("centroid" in entry or "vertices" in entry) for entry in objects)


def read_json(path: Path) -> LabelFile:
    """Read a JSON file of one of these formats. Raises DataError with the entry for what is no box, and for others."""
    document = parse_json_content(read_file(path), where=str(path), advice=_ADVICE)
    name = find_json_format(document)
    if not name:
        raise DataError(f"{path}: is not JSON of SUSTechPOINTS, labelCloud or Supervisely; {_ADVICE}")
    return {"sustechpoints": _read_sustech, "labelcloud": _read_labelcloud, "supervisely": _read_supervisely}[name](
        document, path
    )


def _read_sustech(document: Any, path: Path) -> LabelFile:
    """Read SUSTechPOINTS: position, scale and rotation in radians of each object; roll and pitch are dropped."""
    entries = document["objs"] if isinstance(document, Mapping) else document
    stated = []
    for number, entry in enumerate(entries):
        where = f"{path}: [{number}]"
        psr = entry["psr"]
        if not isinstance(psr, Mapping):
            raise DataError(f"{where}.psr is {show(psr)}, an object is needed; {_ADVICE}")
        missing = [key for key in ("position", "scale", "rotation") if key not in psr]
        if missing:
            raise DataError(f"{where}.psr has no '{missing[0]}'; {_ADVICE}")
        position, scale, turn = (
            parse_point(psr[key], _AXES, f"{where}.psr.{key}") for key in ("position", "scale", "rotation")
        )
        stated.append(_make(entry.get("obj_type"), position, scale, turn, where, track=_text(entry.get("obj_id"))))
    return LabelFile(path, "sustechpoints", {"": stated}, {"sustechpoints": Form()})


def _text(value: Any) -> str:
    """Return the name of an object, "" for none."""
    return "" if value is None or isinstance(value, bool | list | dict) else str(value).strip()


def _make(
    name: Any,
    position: Sequence[float],
    sizes: Sequence[float],
    turn: Sequence[float],
    where: str,
    *,
    track: str = "",
) -> StatedBox:
    numbers = (*position, *sizes, turn[2])
    check_sizes(numbers, where)
    tilt = max(abs(math.remainder(angle, 2 * math.pi)) for angle in turn[:2])
    return StatedBox(parse_name(name, f"{where}: class"), numbers, where, tilt=tilt, track=track)


def _read_labelcloud(document: Mapping[str, Any], path: Path) -> LabelFile:
    """Read labelCloud's forms `centroid_abs` (degrees), `centroid_rel` (radians) and `vertices`."""
    objects, stated, residuals = document["objects"], list[StatedBox](), list[float]()
    kinds = {"vertices" if isinstance(each, Mapping) and "vertices" in each else "centroid" for each in objects}
    if len(kinds) > 1:
        raise DataError(f"{path}: has objects with vertices and others without, in one file; {_ADVICE}")
    for number, entry in enumerate(objects):
        where = f"{path}: objects[{number}]"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} is {show(entry)}, an object is needed; {_ADVICE}")
        if "vertices" in entry:
            box, residual = _read_vertices(entry, where)
            residuals.append(residual)
        else:
            box = _read_centroid(entry, where)
        stated.append(box)
    if kinds == {"vertices"}:
        note = SizeRemark.make(max(residuals), "corners are up to {size} from those of an upright box", unit="m")
        notes = (note,) if max(residuals) > _MAX_RESIDUAL_M else ()
        return LabelFile(path, "labelcloud", {"": stated}, {"labelcloud_vertices": Form()}, notes)
    return LabelFile(path, "labelcloud", {"": stated}, _list_units([box.numbers[6] for box in stated]))


def _list_units(angles: Sequence[float]) -> dict[str, Form]:
    """List the forms whose angles these may be, the likelier first: degrees are never below 0."""
    forms = {"labelcloud_relative": Form(), "labelcloud_absolute": Form(BoxReading(unit="deg"))}
    if any(angle < 0 for angle in angles):
        del forms["labelcloud_absolute"]
    elif guess_unit(angles) == "deg":
        del forms["labelcloud_relative"]
    return forms


def _read_centroid(entry: Mapping[str, Any], where: str) -> StatedBox:
    position = parse_point(entry.get("centroid"), _AXES, f"{where}.centroid")
    sizes = parse_point(entry.get("dimensions"), ("length", "width", "height"), f"{where}.dimensions")
    turn = parse_point(entry.get("rotations"), _AXES, f"{where}.rotations")
    numbers = (*position, *sizes, turn[2])
    check_sizes(numbers, where)
    return StatedBox(parse_name(entry.get("name"), f"{where}: name"), numbers, where, max(map(abs, turn[:2])))


def _read_vertices(entry: Mapping[str, Any], where: str) -> tuple[StatedBox, float]:
    corners = entry["vertices"]
    is_list = isinstance(corners, list) and len(corners) == 8
    if not is_list or not all(isinstance(corner, list) and len(corner) == 3 for corner in corners):
        raise DataError(f"{where}.vertices: eight corners of three numbers are needed; {_ADVICE}")
    numbers = [[parse_number(value, f"{where}.vertices[{row}]") for value in each] for row, each in enumerate(corners)]
    with np.errstate(over="ignore", invalid="ignore"):
        box, residual = box_of_vertices(np.array(numbers))
    if not np.isfinite(box).all() or not residual <= _bound_residual(box):
        raise DataError(
            f"{where}.vertices: are not the corners of an upright box in labelCloud's order: one is {residual:.3g} m "
            f"off; {_ADVICE}"
        )
    check_sizes(box.tolist(), where)
    name = parse_name(entry.get("name"), f"{where}: name")
    return StatedBox(name, tuple(box.tolist()), where), residual


def _bound_residual(box: np.ndarray) -> float:
    """Return the largest distance of a corner from the upright box: a quarter of the shortest side."""
    return float(box[3:6].min()) / 4


def _read_supervisely(document: Mapping[str, Any], path: Path) -> LabelFile:
    """Read Supervisely's point cloud JSON, as CVAT 3D writes it, too: figures, each of an object that has the class."""
    classes: dict[Any, tuple[Any, str]] = {}
    for number, entry in enumerate(document["objects"]):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("key"), str):
            raise DataError(f"{path}: objects[{number}] has no 'key'; {_ADVICE}")
        classes[entry["key"]] = (entry.get("classTitle"), entry["key"])
    stated, others = [], 0
    for number, figure in enumerate(document["figures"]):
        where = f"{path}: figures[{number}]"
        if not isinstance(figure, Mapping):
            raise DataError(f"{where} is {show(figure)}, an object is needed; {_ADVICE}")
        if figure.get("geometryType") != "cuboid_3d":
            others += 1
            continue
        key, geometry = figure.get("objectKey"), figure.get("geometry")
        if not isinstance(key, str) or key not in classes:
            raise DataError(f"{where}: its objectKey {show(key)} is none of the objects; {_ADVICE}")
        if not isinstance(geometry, Mapping):
            raise DataError(f"{where}.geometry is {show(geometry)}, an object is needed; {_ADVICE}")
        position, turn, sizes = (
            parse_point(geometry.get(part), _AXES, f"{where}.geometry.{part}")
            for part in ("position", "rotation", "dimensions")
        )
        title, track = classes[key]
        stated.append(_make(title, position, sizes, turn, where, track=track))
    notes = (f"{others} figures are no cuboids and are left out",) if others else ()
    return LabelFile(path, "supervisely", {"": stated}, {"supervisely": Form()}, notes)


def write_sustech(names: Sequence[str], boxes: np.ndarray, tracks: np.ndarray) -> bytes:
    """Write the boxes (M, 7) of a frame as SUSTechPOINTS does."""
    entries = [
        {
            "psr": {
                "position": _point(box[:3]),
                "scale": _point(box[3:6]),
                "rotation": {"x": 0, "y": 0, "z": float(box[6])},
            },
            "obj_type": name,
            "obj_id": "" if track < 0 else str(track),
        }
        for name, box, track in zip(names, boxes, tracks, strict=True)
    ]
    return json.dumps(entries, indent=1).encode()


def _point(values: np.ndarray, keys: Sequence[str] = _AXES) -> dict[str, float]:
    return {key: float(value) for key, value in zip(keys, values, strict=True)}


def write_labelcloud(names: Sequence[str], boxes: np.ndarray, *, cloud: str, form: str) -> bytes:
    """Write the boxes (M, 7) of a frame as labelCloud does; `cloud` is the name of its file.

    Angles of `labelcloud_absolute` are degrees from 0 to below 360.
    """
    objects: list[dict[str, Any]] = []
    for name, box in zip(names, boxes, strict=True):
        if form == "labelcloud_vertices":
            objects.append({"name": name, "vertices": vertices_of_box(box).tolist()})
            continue
        turn = math.degrees(box[6]) % 360 if form == "labelcloud_absolute" else float(box[6])
        objects.append(
            {
                "name": name,
                "centroid": _point(box[:3]),
                "dimensions": _point(box[3:6], ("length", "width", "height")),
                "rotations": {"x": 0.0, "y": 0.0, "z": turn},
            }
        )
    document = {"folder": "pointclouds", "filename": cloud, "path": f"pointclouds/{cloud}", "objects": objects}
    return json.dumps(document, indent=1).encode()


def write_supervisely(names: Sequence[str], boxes: np.ndarray, tracks: np.ndarray, *, frame: str) -> bytes:
    """Write the boxes (M, 7) of a frame as Supervisely does; keys follow from frame, row and track, so bytes repeat."""
    objects, figures = [], []
    for row, (name, box, track) in enumerate(zip(names, boxes, tracks, strict=True)):
        key = _key(f"object {frame} {row}" if track < 0 else f"track {track}")
        objects.append({"key": key, "classTitle": name, "tags": []})
        turn = {"x": 0.0, "y": 0.0, "z": float(box[6])}
        geometry = {"position": _point(box[:3]), "rotation": turn, "dimensions": _point(box[3:6])}
        figure = {"key": _key(f"figure {frame} {row}"), "objectKey": key, "geometryType": "cuboid_3d"}
        figures.append({**figure, "geometry": geometry})
    document = {"description": "", "key": _key(frame), "tags": [], "objects": objects, "figures": figures}
    return json.dumps(document, indent=1).encode()


def _key(name: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, name).hex
