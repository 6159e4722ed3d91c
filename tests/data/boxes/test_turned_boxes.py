"""Turned boxes of every tool: the box about their corners, counted; a quarter turn leaves an upright box, exactly."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.contract import registry
from tests.cases import run_each
from tests.command import succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.tool_files import SIZE, write_cvat, write_label_studio, write_labelme, write_supervisely
from tests.data.preparing import prepare_set, refuse

LEFT, TOP, WIDTH, HEIGHT = 20.0, 16.0, 20.0, 10.0
MIDDLE = complex(LEFT + WIDTH / 2, TOP + HEIGHT / 2)


def turn(degrees: float, about: complex = MIDDLE) -> list[complex]:
    """The corners of the box after its turn, by complex numbers: clockwise, for y points down."""
    corners = [complex(LEFT + x, TOP + y) for x, y in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))]
    return [about + (corner - about) * cmath.exp(1j * math.radians(degrees)) for corner in corners]


def bounds(corners: list[complex]) -> list[float]:
    xs, ys = [corner.real for corner in corners], [corner.imag for corner in corners]
    return [min(xs), min(ys), max(xs), max(ys)]


def cvat(root: Path, degrees: float) -> object:
    corners = f'xtl="{LEFT}" ytl="{TOP}" xbr="{LEFT + WIDTH}" ybr="{TOP + HEIGHT}"'
    return write_cvat(root, {"a": []}, more=f'<box label="car" {corners} rotation="{degrees}"/>')


def cvat_coco(root: Path, degrees: float) -> object:
    write_image(root / "a.png", pattern(*SIZE))
    row = {"image_id": 1, "category_id": 7, "bbox": [LEFT, TOP, WIDTH, HEIGHT], "attributes": {"rotation": degrees}}
    return write_coco(root / "x.json", [(1, "a.png", SIZE[1], SIZE[0])], [row])


def voc(root: Path, inside: str) -> None:
    write_image(root / "a.png", pattern(*SIZE))
    (root / "a.xml").write_text(f"<annotation><object><name>car</name>{inside}</object></annotation>")


def robndbox(root: Path, degrees: float) -> object:
    """roLabelImg rounds angles to six decimals of a radian."""
    angle = round(math.radians(degrees), 6)
    sides = f"<cx>{MIDDLE.real}</cx><cy>{MIDDLE.imag}</cy><w>{WIDTH}</w><h>{HEIGHT}</h><angle>{angle}</angle>"
    return voc(root, f"<type>robndbox</type><robndbox>{sides}</robndbox>")


def corners_of_voc(root: Path, degrees: float) -> object:
    sides = "".join(
        f"<x{n}>{corner.real}</x{n}><y{n}>{corner.imag}</y{n}>" for n, corner in enumerate(exact(turn(degrees)))
    )
    return voc(root, f"<robndbox>{sides}</robndbox>")


def cvat_voc(root: Path, degrees: float) -> object:
    sides = f"<xmin>{LEFT + 1}</xmin><ymin>{TOP + 1}</ymin><xmax>{LEFT + WIDTH}</xmax><ymax>{TOP + HEIGHT}</ymax>"
    rotation = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    return voc(root, f"<bndbox>{sides}</bndbox>{rotation}")


def x_anylabeling(root: Path, degrees: float) -> object:
    points = [[corner.real, corner.imag] for corner in exact(turn(degrees))]
    shape = {"label": "car", "shape_type": "rotation", "points": points, "direction": math.radians(degrees)}
    return write_labelme(root, {"a": []}, shapes=[shape])


def label_studio(root: Path, degrees: float) -> object:
    """In percent of the sides, turned about the upper left corner."""
    height, width = SIZE
    sides = {"x": 100 * LEFT / width, "y": 100 * TOP / height, "width": 100 * WIDTH / width}
    value = {**sides, "height": 100 * HEIGHT / height, "rotation": degrees, "rectanglelabels": ["car"]}
    return write_label_studio(root, {"a": []}, more=[{"type": "rectanglelabels", "value": value}])


def supervisely(root: Path, degrees: float) -> object:
    corners = [[LEFT, TOP], [LEFT + WIDTH, TOP + HEIGHT]]
    shape = {"classTitle": "car", "geometryType": "oriented_bbox", "points": corners}
    return write_supervisely(root, {"a": []}, more=[{**shape, "angle": math.radians(degrees)}])


def yolo(root: Path, degrees: float) -> object:
    write_image(root / "a.png", pattern(*SIZE))
    (root / "classes.txt").write_text("car\n")
    words = [f"{corner.real / SIZE[1]!r} {corner.imag / SIZE[0]!r}" for corner in exact(turn(degrees))]
    return (root / "a.txt").write_text(f"0 {' '.join(words)}\n")


def exact(corners: list[complex]) -> list[complex]:
    """Corners as tools write them: of a quarter turn without a rounding error."""
    return [complex(round(corner.real, 9), round(corner.imag, 9)) for corner in corners]


WRITERS: dict[str, tuple[str, Callable[[Path, float], object], float]] = {
    "CVAT": ("cvat", cvat, 1e-9),
    "CVAT's COCO": ("coco", cvat_coco, 1e-9),
    "CVAT's VOC": ("voc", cvat_voc, 1e-9),
    "roLabelImg": ("voc", robndbox, WIDTH * 1e-6),
    "corners of VOC": ("voc", corners_of_voc, 2e-9),
    "X-AnyLabeling": ("labelme", x_anylabeling, 2e-9),
    "Label Studio": ("label_studio", label_studio, 1e-9),
    "Supervisely": ("supervisely", supervisely, 1e-9),
    "YOLO": ("yolo_txt", yolo, 2e-9),
}
"""Tool → the set that reads its files, the writer of a turned box, and how exact its numbers are in pixels."""


@run_each("degrees", [12.5, -30, 90, 180, 270])
@run_each("tool", WRITERS)
def test_a_turned_box_is_the_box_about_its_corners(tool: str, degrees: float, tmp_path: Path) -> None:
    """Five photos with an object became background where turned boxes were left out."""
    name, write, bound = WRITERS[tool]
    source = tmp_path / f"{tool} {degrees}"
    source.mkdir()
    write(source, degrees)
    manifest = prepare_set(name, source, tmp_path / f"set of {tool} {degrees}")
    images = registry.data.get_entry(name).builder(
        split="train", root=str(tmp_path / f"set of {tool} {degrees}"), test_share=0.0, validation_share=0.0
    )
    [box] = images.record(0).boxes.tolist()
    expected = bounds(turn(degrees, complex(LEFT, TOP) if tool == "Label Studio" else MIDDLE))
    assert box == pytest.approx(expected, abs=bound)
    notes = [note for note in manifest["differences"] if "upright boxes about them" in note]
    assert bool(notes) == (degrees % 90 != 0)
    for note in notes:
        assert note.startswith("1 turned boxes, first in ")
    if degrees % 90 == 0 and tool not in ("Label Studio", "YOLO"):
        assert box == [round(side) for side in expected]


def test_turned_boxes_can_be_ignored(tmp_path: Path) -> None:
    """The box about a long one holds much else; ignored, it is neither a target nor background."""
    cvat(tmp_path / "in", 30)
    manifest = prepare_set("cvat", tmp_path / "in", tmp_path / "set", turned="ignored")
    first, second = manifest["differences"]
    assert first == "1 turned boxes, first in images/a.png, are ignored"
    assert second.startswith("all 1 boxes are marked as ignored")
    images = registry.data.get_entry("cvat").builder(split="train", root=str(tmp_path / "set"), test_share=0.0)
    assert images.record(0).is_ignored.tolist() == [True]
    told = succeed("data", "convert", "cvat", "--from", tmp_path / "in", "--as", "coco", "--to", tmp_path / "out")
    assert "1 turned boxes, but the boxes about them: coco has none" in " ".join(told.err.split())


def test_other_shapes_are_counted_when_they_are_prepared(tmp_path: Path) -> None:
    polygon = {"label": "cell", "points": [[2, 3], [9, 5], [4, 8]], "shape_type": "polygon"}
    other = {**polygon, "points": [[2, 4], [9, 5], [4, 8]]}
    write_labelme(tmp_path / "in", {"a": []}, shapes=[polygon, other])
    told = "2 polygons are read as the upright boxes about them"
    assert prepare_set("labelme", tmp_path / "in", tmp_path / "set")["differences"] == [told]
    assert registry.data.get_entry("labelme").builder.survey(tmp_path / "in")["differences"] == [told]


def test_a_turned_box_without_the_size_of_its_photo_is_a_fault(tmp_path: Path) -> None:
    """Percent of the sides of a photo do not turn; Label Studio states the size beside them."""
    label_studio(tmp_path / "in", 30)
    file = tmp_path / "in/project-1-at-2026.json"
    file.write_text(file.read_text().replace("original_", "other_"))
    refuse("label_studio", tmp_path / "in", "it is turned by 30 degrees, and no original_width and height are stated")
