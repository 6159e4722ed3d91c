"""Small sets of images with boxes in the files of labelling tools, as each of them exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.data.boxes.box_writers import pattern, write_image

Object = tuple[str, tuple[float, ...], bool]
SIZE = (48, 64)
OBJECTS: Mapping[str, list[Object]] = {
    "a": [("car", (4, 6, 24, 36), False), ("dog", (0, 0, 64, 48), True)],
    "b": [("car", (10.5, 20, 30, 40.25), False)],
    "c": [],
}
WHOLE_OBJECTS: Mapping[str, list[Object]] = {**OBJECTS, "b": [("car", (10, 20, 30, 40), False)]}
"""Objects of a format that counts whole pixels."""


def write_voc(root: Path, objects: Mapping[str, list[Object]] = WHOLE_OBJECTS, *, first_pixel: int = 1) -> Path:
    """VOC's first pixel is 1, and xmax is the last pixel of a box: 64 is that of the whole width of 64 pixels."""
    for name, rows in objects.items():
        write_image(root / "JPEGImages" / f"{name}.png", pattern(*SIZE))
        texts = "".join(
            f"<object>\n<name> {label} </name><difficult>{int(difficult)}</difficult><pose>Left</pose><bndbox>"
            f"<xmin>{x + first_pixel}</xmin><ymin>{y + first_pixel}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
            "</bndbox></object>\n"
            for label, (x, y, right, bottom), difficult in rows
        )
        (root / "Annotations").mkdir(exist_ok=True)
        size = f"<size><width>{SIZE[1]}.0</width><height>{SIZE[0]}</height></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{texts}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def write_labelme(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, **changed: Any) -> Path:
    for name, rows in objects.items():
        write_image(root / "photos" / f"{name}.png", pattern(*SIZE))
        shapes = [
            {
                "label": label,
                "points": [[right, y], [x, bottom]],
                "shape_type": "rectangle",
                "flags": {"difficult": mark},
            }
            for label, (x, y, right, bottom), mark in rows
        ]
        document = {"version": "5.2", "shapes": shapes, "imagePath": rf"..\photos\{name}.png", "imageData": None}
        document |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1], **changed}
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.json").write_text(json.dumps(document))
    return root


def write_cvat(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, *, more: str = "", subset: str = "") -> Path:
    labels = "".join(f"<label><name>{name}</name></label>\n" for name in ("car", "dog", "never"))
    images = ""
    for number, (name, rows) in enumerate(objects.items()):
        write_image(root / "images" / f"{name}.png", pattern(*SIZE))
        boxes = "".join(
            f'<box label="{label}" occluded="0" xtl="{x}" ytl="{y}" xbr="{right}" ybr="{bottom}" z_order="0">\n'
            f'<attribute name="difficult">{str(mark).lower()}</attribute></box>\n'
            for label, (x, y, right, bottom), mark in rows
        )
        head = f'id="{number}" name="{name}.png" width="{SIZE[1]}" height="{SIZE[0]}"{subset}'
        images += f"<image {head}>\n{boxes}{more if name == 'a' else ''}</image>\n"
    meta = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>\n"
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{images}</annotations>'
    (root / "annotations.xml").write_text(text)
    return root


def write_supervisely(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, *, more: Any = ()) -> Path:
    """A project with a data set; corners are in any order, and the numbers of the classes are Supervisely's own."""
    for name, rows in objects.items():
        write_image(root / "ds0/img" / f"{name}.png", pattern(*SIZE))
        things: list[dict[str, Any]] = [
            {
                "id": 497521359,
                "classId": 1661571,
                "geometryType": "rectangle",
                "labelerLogin": "me",
                "tags": [],
                "classTitle": label,
                "points": {"exterior": [[right, y], [x, bottom]], "interior": []},
            }
            for label, (x, y, right, bottom), _ in rows
        ]
        size = {"height": SIZE[0], "width": SIZE[1]}
        document = {"description": "", "tags": [], "size": size, "objects": [*things, *(more if name == "a" else ())]}
        (root / "ds0/ann").mkdir(exist_ok=True)
        (root / "ds0/ann" / f"{name}.png.json").write_text(json.dumps(document))
    classes = [{"title": title, "shape": "rectangle", "color": "#FF0000"} for title in ("car", "dog")]
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": [], "projectType": "images"}))
    return root


def write_label_studio(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, *, more: Any = ()) -> Path:
    """Tasks of uploaded photos, whose boxes are percent of the sides; one that was cancelled does not count."""
    height, width = SIZE
    tasks = []
    for number, (name, rows) in enumerate(objects.items()):
        write_image(root / "images" / f"1a2b3c4d-{name}.png", pattern(*SIZE))
        common = {"original_width": width, "original_height": height, "image_rotation": 0, "to_name": "image"}
        percent = [
            (label, (100 * x / width, 100 * y / height, 100 * (right - x) / width, 100 * (bottom - y) / height))
            for label, (x, y, right, bottom), _ in rows
        ]
        results: list[dict[str, Any]] = [
            {
                **common,
                "id": f"r{place}",
                "from_name": "label",
                "type": "rectanglelabels",
                "value": {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [label]},
            }
            for place, (label, (x, y, w, h)) in enumerate(percent)
        ]
        results += [{**common, "id": f"m{place}", **each} for place, each in enumerate(more if name == "a" else ())]
        annotations = [
            {"id": 7, "result": results, "was_cancelled": False, "ground_truth": False},
            {"id": 8, "result": [], "was_cancelled": True},
        ]
        data = {"image": f"/data/upload/1/1a2b3c4d-{name}.png", "note": "night"}
        tasks.append({"id": number, "annotations": annotations, "predictions": [], "data": data})
    (root / "project-1-at-2026.json").write_text(json.dumps(tasks))
    return root


def write_tensorflow_csv(root: Path, objects: Mapping[str, list[Object]] = OBJECTS) -> Path:
    """A table, whose last row is of the first image; it cannot state an image without boxes."""
    rows = []
    for name, boxes in objects.items():
        if boxes:
            write_image(root / f"{name}.png", pattern(*SIZE))
        rows += [
            f'{name}.png,{SIZE[1]},{SIZE[0]},"{label}",{",".join(map(str, corners))}' for label, corners, _ in boxes
        ]
    text = "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows[:1], *rows[:0:-1]])
    (root / "_annotations.csv").write_text(text + "\n")
    return root


def region_of(row: Object) -> dict[str, Any]:
    """A rectangle of VIA."""
    label, (x, y, right, bottom), mark = row
    shape = {"name": "rect", "x": x, "y": y, "width": right - x, "height": bottom - y}
    return {"shape_attributes": shape, "region_attributes": {"type": label, "difficult": str(mark).lower()}}


def write_via(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, *, more: Any = ()) -> Path:
    """A project of VIA 2."""
    images = {}
    for name, rows in objects.items():
        write_image(root / "photos" / f"{name}.png", pattern(*SIZE))
        regions = [*map(region_of, rows), *(more if name == "a" else ())]
        images[f"{name}.png9"] = {"filename": f"{name}.png", "size": 9, "regions": regions, "file_attributes": {}}
    project = {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {"region": {}, "file": {}}}
    (root / "via_project.json").write_text(json.dumps(project))
    return root


def write_wider_face(root: Path, objects: Mapping[str, list[Object]] = OBJECTS) -> Path:
    """A text file about all photos; six marks behind a box, and a line of zeros for no face."""
    text = ""
    for name, rows in objects.items():
        write_image(root / "WIDER_all/images/0--Parade" / f"{name}.png", pattern(*SIZE))
        faces = [
            f"{x:g} {y:g} {right - x:g} {bottom - y:g} 2 0 0 {int(mark)} 1 0 \n"
            for _, (x, y, right, bottom), mark in rows
        ]
        text += f"0--Parade/{name}.png\n{len(rows)}\n" + ("".join(faces) or "0 0 0 0 0 0 0 0 0 0 \n")
    (root / "wider_face_split").mkdir()
    (root / "wider_face_split/wider_face_all_bbx_gt.txt").write_text(text)
    return root


WRITERS: Mapping[str, Callable[..., Path]] = {
    "cvat": write_cvat,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
    "supervisely": write_supervisely,
    "tensorflow_csv": write_tensorflow_csv,
    "via": write_via,
    "voc": write_voc,
    "wider_face": write_wider_face,
}
