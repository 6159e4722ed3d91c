"""Files of VIA, Label Studio, Supervisely, TensorFlow's tables, WIDER FACE and a plugin: dialects, and refusals."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import LabelledSet
from sightline.store.boxes.tools.label_studio import read_label_studio
from sightline.store.boxes.tools.supervisely import read_supervisely
from sightline.store.boxes.tools.tensorflow_csv import read_tensorflow_csv
from sightline.store.boxes.tools.via import read_via
from sightline.store.boxes.tools.wider_face import read_wider_face
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.data.boxes.box_writers import pattern, write_image
from tests.data.boxes.tool_files import (
    OBJECTS,
    SIZE,
    region_of,
    write_label_studio,
    write_supervisely,
    write_tensorflow_csv,
    write_via,
    write_voc,
    write_wider_face,
)

Boxes = list[tuple[str, list[float]]]


def boxes_of(labels: LabelledSet, stem: str = "a") -> Boxes:
    """The boxes of an image in pixels, rounded to 1e-9."""
    [image] = [image for image in labels.images if image.path.stem.endswith(stem)]
    scale = (SIZE[1], SIZE[0]) * 2 if image.relative else (1, 1, 1, 1)
    return [
        (box.class_name, [round(corner * side, 9) for corner, side in zip(box.box or (), scale, strict=True)])
        for box in image.boxes
    ]


def faults_of(labels: LabelledSet) -> str:
    """The refusal of a set with faults."""
    with pytest.raises(DataError) as refused:
        labels.faults.raise_or_note("refuse", root=labels.root)
    return str(refused.value)


def refusal_of(read: Callable[[Path], LabelledSet], root: Path) -> str:
    """The refusal of a folder by its reader, or of its faults."""
    with pytest.raises(DataError) as refused:
        read(root).faults.raise_or_note("refuse", root=root)
    return str(refused.value)


REGIONS = [region_of(row) for row in OBJECTS["a"]]
PLAIN: Boxes = [("car", [4, 6, 24, 36]), ("dog", [0, 0, 64, 48])]


def _write_version_1(root: Path) -> Path:
    regions = {str(number): region for number, region in enumerate(REGIONS)}
    image = {"fileref": "", "size": 9, "filename": "a.png", "base64_img_data": "", "regions": regions}
    (root / "via_region_data.json").write_text(json.dumps({"a.png9": image}))
    return root


def _write_table(root: Path, sign: str = "") -> Path:
    text = io.StringIO()
    columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    text.write(f"{sign}{columns}\n")
    rows = csv.writer(text)
    for number, region in enumerate(REGIONS):
        cells = [json.dumps(region[key]) for key in ("shape_attributes", "region_attributes")]
        rows.writerow(["a.png", 9, "{}", 2, number, *cells])
    write_image(root / "none.png", pattern(*SIZE))
    rows.writerow(["none.png", 9, "{}", 0, 0, "{}", "{}"])
    (root / "via.csv").write_text(text.getvalue())
    return root


def _write_version_3(root: Path, **changed: Any) -> Path:
    """Of a picture in `file`; shapes are numbers, and the class is the number of an option."""
    options = {"0": "car", "1": "dog"}
    project = {
        "project": {"pid": "p", "data_format_version": "3.1.1", "vid_list": ["1"]},
        "attribute": {"1": {"aname": "type", "type": 4, "options": options}, "2": {"aname": "difficult"}},
        "file": {"1": {"fid": "1", "fname": "a.png", "type": 2, "loc": 1, "src": ""}},
        "view": {"1": {"fid_list": ["1"]}},
        "metadata": {
            "1_x": {"vid": "1", "flg": 0, "z": [], "xy": [2, 4, 6, 20, 30], "av": {"1": "0", "2": "0"}},
            "1_y": {"vid": "1", "flg": 0, "z": [], "xy": [2, 0, 0, 64, 48], "av": {"1": "1", "2": "1"}},
            "1_z": {"vid": "1", "flg": 0, "z": [], "xy": [], "av": {"1": "1"}},
        },
        **changed,
    }
    (root / "project.json").write_text(json.dumps(project))
    return root


@run_each(
    "write",
    [_write_version_1, _write_table, lambda root: _write_table(root, "#"), _write_version_3],
)
def test_versions_of_via_have_the_same_boxes(
    write: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write_image(tmp_path_factory.mktemp("via") / "a.png", pattern(*SIZE)).parent
    labels = read_via(write(root))
    assert (boxes_of(labels), list(labels.notes), labels.unread) == (PLAIN, [], {})
    assert [box.is_ignored for box in next(image for image in labels.images if image.boxes).boxes] == [False, True]


def shape(name: str, **numbers: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": name, **numbers}, "region_attributes": {"type": "car"}}


def test_shapes_of_via_are_boxes_or_named(tmp_path: Path) -> None:
    more = [
        shape("circle", cx=20, cy=20, r=5.5),
        shape("ellipse", cx=20, cy=20, rx=5, ry=4, theta=0),
        shape("polygon", all_points_x=[1, 5, 3], all_points_y=[2, 2, 7]),
        shape("ellipse", cx=20, cy=20, rx=5, ry=4, theta=np.pi / 4),
        shape("polyline", all_points_x=[1, 5], all_points_y=[2, 2]),
        shape("rect", x=1, y="2", width=3, height=4),
        shape("rect", x=1, y=2, width=0, height=4),
        {**shape("rect", x=1, y=2, width=3, height=4), "region_attributes": {"type": {"car": True, "dog": True}}},
        {**shape("rect", x=1, y=2, width=3, height=4), "region_attributes": {}},
        {**shape("rect", x=1, y=2, width=3, height=4), "region_attributes": {"type": {"dog": True, "car": False}}},
    ]
    labels = read_via(write_via(tmp_path, more=more))
    expected = [("car", [14.5, 14.5, 25.5, 25.5]), ("car", [15, 16, 25, 24]), ("car", [1, 2, 5, 7])]
    low, high = round(20 - 20.5**0.5, 9), round(20 + 20.5**0.5, 9)  # half the sum of the squares of 5 and 4
    assert boxes_of(labels) == [*PLAIN, *expected, ("car", [low, low, high, high]), ("dog", [1, 2, 4, 6])]
    counts = {"circle": 1, "ellipse": 2, "polygon": 1}
    assert labels.unread == {f"{kind}s, but the boxes about them": count for kind, count in counts.items()}
    text, file = faults_of(labels), tmp_path / "via_project.json"
    for part in (
        f"1 shapes that are no boxes, first: {file}: a.png, region 6: is a polyline",
        f"4 impossible boxes, first: {file}: a.png, region 7",
    ):
        assert part in text
    assert boxes_of(read_via(tmp_path, class_name="thing"))[-2:] == [("thing", [1, 2, 4, 6]), ("dog", [1, 2, 4, 6])]


def test_the_class_of_via_is_stated_where_it_is_not_known(tmp_path: Path) -> None:
    """Several attributes may name it, and of a balloon (Mask R-CNN) there is none."""
    region = {**REGIONS[0], "region_attributes": {"kind": "car", "colour": "red"}}
    write_via(tmp_path, {"a": [], "c": []}, more=[region])
    with pytest.raises(DataError, match=r"attributes kind \(1 of 1 regions\), colour .* by label_key=NAME$"):
        read_via(tmp_path)
    with pytest.raises(DataError, match=r"no region has the attribute 'name'; there are kind"):
        read_via(tmp_path, label_key="name")
    labels = read_via(tmp_path, label_key="kind")
    assert (boxes_of(labels), labels.unread) == (PLAIN[:1], {"attribute colour": 1})
    write_via(tmp_path, {"a": []}, more=[{**REGIONS[0], "region_attributes": {}}])
    with pytest.raises(DataError, match=r"no region states an attribute: say what all of them are by class_name=NAME"):
        read_via(tmp_path)
    assert boxes_of(read_via(tmp_path, class_name="balloon")) == [("balloon", [4, 6, 24, 36])]


def test_videos_and_tables_of_version_3_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", pattern(*SIZE))
    _write_version_3(tmp_path, metadata={"1": {"vid": "1", "z": [1.5], "xy": [2, 4, 6, 20, 30], "av": {}}})
    assert "has times of a video, which is not read; take its frames" in refusal_of(read_via, tmp_path)
    _write_version_3(tmp_path, view={"1": {"fid_list": ["1", "2"]}})
    assert "is no project of VIA 3 about single images" in refusal_of(read_via, tmp_path)
    (tmp_path / "project.json").unlink()
    (tmp_path / "via3.csv").write_text("# Exported using VGG Image Annotator (http://x)\n# CSV_HEADER = metadata_id\n")
    assert "is a table of VIA 3, which is not read; save the project as JSON" in refusal_of(read_via, tmp_path)


def result(kind: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": "label", "value": value}


def test_shapes_of_label_studio_are_boxes_or_named(tmp_path: Path) -> None:
    """Percent of the sides; a rectangle and its label may be two results with one id."""
    square = {"x": 25, "y": 50, "width": 25, "height": 25}
    pair: list[dict[str, Any]] = [
        {**result("rectangle", **square, rotation=0), "id": "pair"},
        {**result("labels", **square, labels=["car"]), "id": "pair"},
        {**result("choices", **square, choices=["clear"]), "id": "pair"},
    ]
    more = [
        *pair,
        result("ellipselabels", x=50, y=50, radiusX=25, radiusY=25, ellipselabels=["dog"]),
        result("polygonlabels", points=[[0, 0], [50, 0], [25, 50]], polygonlabels=["dog"]),
        result("rectanglelabels", **square, rotation=30, rectanglelabels=["car"]),
        result("brushlabels", format="rle", rle=[1, 2], brushlabels=["car"]),
        result("keypointlabels", x=1, y=1, width=0.5, keypointlabels=["car"]),
        result("rectanglelabels", **square, rectanglelabels=["car", "dog"]),
        result("rectanglelabels", **square, rectanglelabels=[]),
        result("choices", choices=["night"]),
    ]
    labels = read_label_studio(write_label_studio(tmp_path, more=more))
    expected = [("car", [16, 24, 32, 36]), ("dog", [16, 12, 48, 36]), ("dog", [0, 0, 32, 24])]
    expected += [("car", [10, 24, 29.856406461, 42.392304845])]  # 16 x 12 pixels about (16, 24), by 30 degrees
    assert boxes_of(labels) == [*PLAIN, *expected]
    shapes = {f"{kind}s, but the boxes about them": 1 for kind in ("ellipse", "polygon")}
    assert labels.unread == {"choices of a box": 1, "choices of an image": 1, **shapes}
    text = faults_of(labels)
    for part in (
        "2 shapes that are no boxes, first: ",
        "'car' is a mask of a brush",
        "2 impossible boxes, first: ",
        "it has the classes car, dog, a box has one",
    ):
        assert part in text


def test_two_boxes_of_one_id_are_two_boxes(tmp_path: Path) -> None:
    """As a file that was joined by hand has them: the second was taken for more words on the first."""
    sizes = ((25, "car"), (50, "dog"))
    more = [
        {**result("rectanglelabels", x=0, y=0, width=w, height=50, rectanglelabels=[c]), "id": "r"} for w, c in sizes
    ]
    labels = read_label_studio(write_label_studio(tmp_path, more=more))
    assert boxes_of(labels)[len(PLAIN) :] == [("car", [0, 0, 16, 24]), ("dog", [0, 0, 32, 24])]


def test_tasks_that_are_not_one_labelled_photo_are_named(tmp_path: Path) -> None:
    """One ground truth of several annotations counts; a photo is known by its name before it was uploaded."""
    root = write_label_studio(tmp_path)
    file = root / "project-1-at-2026.json"
    sound = json.loads(file.read_text())
    for path in (root / "images").iterdir():
        path.rename(path.with_name(path.name.removeprefix("1a2b3c4d-")))
    labels = read_label_studio(root)
    note = "3 images are known without what Label Studio puts before the names of uploads, first: "
    assert (boxes_of(labels), [note in text for text in labels.notes]) == (PLAIN, [True])

    def read(change: Callable[[list[dict[str, Any]]], object]) -> LabelledSet:
        tasks = json.loads(json.dumps(sound))
        change(tasks)
        file.write_text(json.dumps(tasks))
        return read_label_studio(root)

    local = "/data/local-files/?d=photos%2Fa.png"
    assert boxes_of(read(lambda tasks: tasks[0]["data"].update(image=local))) == PLAIN
    assert boxes_of(read(lambda tasks: tasks[0]["data"].update(image="s3://x/photos/a.png"))) == PLAIN
    second = {"result": [], "ground_truth": False}
    twice = read(lambda tasks: tasks[0]["annotations"].append(second))
    assert "1 images with several annotations, first: " in (text := faults_of(twice))
    assert "task 0: has 2; mark one of them as ground truth" in text
    truth = read(lambda tasks: tasks[0]["annotations"].append({**second, "ground_truth": True}))
    assert boxes_of(truth) == []
    nobody = read(lambda tasks: tasks[0].update(annotations=[]))
    assert "1 images that nobody has labelled, first: " in faults_of(nobody)
    turned = read(lambda tasks: tasks[0]["annotations"][0]["result"][0].update(image_rotation=90))
    assert "was labelled while it was turned by 90 degrees" in faults_of(turned)
    assert "names no image; it has to name one" in faults_of(read(lambda tasks: tasks[0].update(data={})))
    assert "task 3: " in faults_of(read(lambda tasks: tasks.append(3)))  # type: ignore[arg-type]


def test_the_short_form_of_label_studio_is_read(tmp_path: Path) -> None:
    """As Label Studio's converter 0.0.59 writes it: an image without a box has the id of its annotation."""
    root = write_label_studio(tmp_path)
    values = [
        {"x": 6.25, "y": 12.5, "width": 31.25, "height": 62.5, "rotation": 0, "rectanglelabels": ["car"]},
        {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0, "rectanglelabels": ["dog"]},
    ]
    sizes = {"original_width": SIZE[1], "original_height": SIZE[0]}
    names = [f"/data/upload/1/1a2b3c4d-{name}.png" for name in "abc"]
    tasks = [
        {"image": names[0], "id": 1, "label": [{**value, **sizes} for value in values], "annotation_id": 7},
        {"image": names[1], "id": 2, "annotator": None, "annotation_id": 8},
        {"image": names[2], "id": 3, "annotator": None, "annotation_id": None},
    ]
    (root / "project-1-at-2026.json").write_text(json.dumps(tasks))
    labels = read_label_studio(root)
    assert (boxes_of(labels), boxes_of(labels, "b")) == (PLAIN, [])
    assert "1 images that nobody has labelled, first: " in faults_of(labels)


def test_shapes_of_supervisely_are_boxes_or_named(tmp_path: Path) -> None:
    """A bitmap is a PNG of its part of the photo, packed by zlib."""
    png = io.BytesIO()
    Image.fromarray(np.ones((4, 6), np.uint8)).save(png, "PNG")
    mask = {"data": base64.b64encode(zlib.compress(png.getvalue())).decode(), "origin": [10, 20]}
    common = {"classTitle": "car", "tags": [{"name": "wet"}]}
    more = [
        {**common, "geometryType": "bitmap", "bitmap": mask},
        {**common, "geometryType": "polygon", "points": {"exterior": [[1, 2], [5, 2], [3, 7]], "interior": []}},
        {**common, "geometryType": "point", "points": {"exterior": [[1, 2]], "interior": []}},
        {**common, "geometryType": "oriented_bbox", "points": {"exterior": [[1, 2], [3, 4]]}, "angle": 1},
        {**common, "geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [1, 2]}},
        {**common, "geometryType": "rectangle", "points": {"exterior": [[1, 2], [1, 9]]}},
        {"geometryType": "rectangle", "points": {"exterior": [[1, 2], [3, 9]]}},
        None,
    ]
    labels = read_supervisely(write_supervisely(tmp_path, more=more))
    turned = ("car", [0.618226709, 1.618226709, 3.381773291, 4.381773291])  # 2 + or - cos 1 + sin 1
    assert boxes_of(labels) == [*PLAIN, ("car", [10, 20, 16, 24]), ("car", [1, 2, 5, 7]), turned]
    shapes = {f"{kind}s, but the boxes about them": 1 for kind in ("bitmap", "polygon")}
    assert labels.unread == {**shapes, "tag wet": 2 + 1 + 1}
    text, file = faults_of(labels), tmp_path / "ds0/ann/a.png.json"
    for part in (
        f"1 shapes that are no boxes, first: {file}: objects[4]: 'car' is a point",
        f"4 impossible boxes, first: {file}: objects[6]: ",
        "its bitmap is no PNG",
    ):
        assert part in text


def test_tags_of_images_of_supervisely_state_splits(tmp_path: Path) -> None:
    root = write_supervisely(tmp_path)
    for name, tag in (("a", "train"), ("b", "val"), ("c", {"name": "train"})):
        file = root / f"ds0/ann/{name}.png.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tags": [tag, "night"]}))
    labels = read_supervisely(root)
    assert [image.split for image in labels.images] == ["train", "validation", "train"]
    assert labels.unread == {"tag night of an image": 3}


def test_tables_of_boxes_are_read_line_by_line(tmp_path: Path) -> None:
    """In folders as Roboflow has them, or called as their split; one made from Pascal VOC counts from 1."""
    for split in ("train", "valid"):
        write_tensorflow_csv(tmp_path / "in" / split)
    labels = read_tensorflow_csv(tmp_path / "in")
    assert [image.split for image in labels.images] == ["train", "train", "validation", "validation"]
    root = write_tensorflow_csv(tmp_path / "one")
    table = root / "_annotations.csv"
    assert boxes_of(read_tensorflow_csv(root, first_pixel=1))[0] == ("car", [3, 5, 24, 36])
    named = table.rename(root / "test_labels.csv")
    assert {image.split for image in read_tensorflow_csv(root).images} == {"test"}
    sound = named.read_text()
    for change, text in (
        ((",4,6,24,36", ",4,six,24,36"), f"{named}:2: ("),
        ((",4,6,24,36", ",24,6,4,36"), "its sides are at 24, 6, 4, 36 (left, top, right, bottom)"),
        ((",4,6,24,36", ",4,6,24"), f"{named}:2: has 7 values, the header 8; export the file again"),
        (("car", '"car'), "does not read as a table"),
        (("a.png,64", "a.png,65"), "'a.png' has two sizes; correct its rows"),
        (("b.png,64", "b.png,x"), "width is 'x', a number is needed"),
    ):
        named.write_text(sound.replace(*change, 1))
        assert text in refusal_of(read_tensorflow_csv, root)
    rows = sound.splitlines()
    named.write_text("\n".join([f"{rows[0]},score", *(f"{row},1" for row in rows[1:])]))
    assert read_tensorflow_csv(root).unread == {"column score": len(rows) - 1}
    named.write_text(sound.replace('"car"', '"c\u2028r"', 1))  # no end of a line in a table
    assert boxes_of(read_tensorflow_csv(root))[0][0] == "c\u2028r"
    named.write_bytes(b"filename,class\nb\xff,dog\n")
    assert "is not UTF-8 text (byte 16); save it as UTF-8" in refusal_of(read_tensorflow_csv, root)


def test_lists_of_wider_face_are_read_line_by_line(tmp_path: Path) -> None:
    """Two splits and a photo of WIDER_test; the image of no face has a row of zeros, which is none."""
    root = write_wider_face(tmp_path / "in")
    lists = root / "wider_face_split"
    sound = (lists / "wider_face_all_bbx_gt.txt").rename(lists / "wider_face_train_bbx_gt.txt").read_text()
    write_image(root / "WIDER_val/images/9--Press/d.png", pattern(*SIZE))
    (lists / "wider_face_val_bbx_gt.txt").write_text("9--Press/d.png\r\n1\r\n5 6 0 0 0 1 1 1 2 1 \r\n")
    write_image(root / "WIDER_test/images/9--Press/e.png", pattern(*SIZE))
    (lists / "wider_face_test_filelist.txt").write_text("9--Press/e.png\n")
    labels = read_wider_face(root)
    assert labels.faults.raise_or_note("refuse", root=root) == []
    assert [(image.path.stem, image.split) for image in labels.images] == [
        *((stem, "train") for stem in "abc"),
        ("d", "validation"),
    ]
    assert boxes_of(labels) == [("face", box) for _, box in PLAIN]
    assert [box.is_ignored for image in labels.images for box in image.boxes] == [False, True, False, True]
    assert boxes_of(labels, "d") == [("face", [5, 6, 5, 6])]  # without an extent, and marked invalid
    marks = {"blur": 3, "occlusion": 4, "expression": 1, "illumination": 1, "pose": 1}
    assert labels.unread == {f"marks of {name}": count for name, count in marks.items()}
    assert [note.partition(", first: ")[0] for note in labels.notes] == [
        "1 images are in WIDER_test, which has no labels, and are left out",
        "1 text files are no lists of faces and are passed over",
    ]
    file = lists / "wider_face_train_bbx_gt.txt"
    for change, text in (
        (("0\n" + "0 " * 10 + "\n", ""), f"{file}:9: states '' faces, 0 follow"),
        (("a.png\n2", "a.png\n3"), f"{file}:5: (5, '0--Parade/b.png') (four sides and six marks are needed)"),
        (("b.png\n1", "b.png\none"), f"{file}:6: states 'one' faces, 0 follow"),
        (("4 6 20 30 2", "4 6 20 2"), f"{file}:3: (3, '4 6 20 2 0 0 0 1 0 ') (four sides and six marks are needed)"),
        (("4 6 20 30", "4 6 x 30"), "(width is 'x', a number is needed)"),
        (("4 6 20 30", "4 6 0 30"), "(its sides are at 4, 6, 4, 36 (left, top, right, bottom); width and height above"),
        (("4 6 20 30 2 0 0 0", "4 6 20 30 2 0 0 7"), "(ignore is '7'; it is 0 or 1, false or true)"),
        (("Parade/a", "Parade/x"), f"{file}:1: there is no image '0--Parade/x.png' below {root}"),
    ):
        file.write_text(sound.replace(*change, 1))
        assert text in refusal_of(read_wider_face, root)


PASCAL = """# PASCAL Annotation Version 1.00

Image filename : "Train/pos/{name}.png"
Image size (X x Y x C) : 64 x 48 x 3
Database : "The Rh\xf4ne-Alpes, France based INRIA Person database"
Objects with ground truth : {count} {{ "PASperson" }}
# Top left pixel co-ordinates : (1, 1)
"""
"""The head of a file; each object has a line of its box behind a line that is not read."""


def test_a_label_format_of_a_plugin_is_prepared_and_converted(tmp_path: Path) -> None:
    """`examples/my_labels.py`: the commands find it, and do all that they do for a format of the package."""
    for name, rows in OBJECTS.items():
        write_image(tmp_path / "in/pos" / f"{name}.png", pattern(*SIZE))
        text = PASCAL.format(name=name, count=len(rows)) + "".join(
            f'\nOriginal label for object {number} "PAS{label}" : "UprightPerson"\n'
            f'Bounding box for object {number} "PAS{label}" (Xmin, Ymin) - (Xmax, Ymax) : '
            f"({int(x) + 1}, {int(y) + 1}) - ({int(right)}, {int(bottom)})\n"
            for number, (label, (x, y, right, bottom), _) in enumerate(rows, start=1)
        )
        (tmp_path / "in/pos" / f"{name}.txt").write_text(text, encoding="latin-1")
    words = ("pascal_text", "--plugin", Path("examples/my_labels.py").resolve(), "--from", tmp_path / "in")
    succeed("data", "convert", *words, "--as", "coco", "--to", tmp_path / "coco")
    rows = json.loads((tmp_path / "coco/instances.json").read_text())["annotations"]
    assert [row["bbox"] for row in rows] == [[4, 6, 20, 30], [0, 0, 64, 48], [10, 20, 20, 20]]
    file = tmp_path / "in/pos/a.txt"
    file.write_text(file.read_text(encoding="latin-1").replace("truth : 2", "truth : 3"), encoding="latin-1")
    done = run_here("data", "prepare", *words, "--to", tmp_path / "set")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"1 annotation files that are missing or damaged, first: {file}: states 3 objects, 2 follow" in done.err
    succeed("data", "prepare", *words, "--to", tmp_path / "set", "faulty=leave_out")
    assert "pascal_text" in succeed("data", "info", tmp_path / "set", *words[1:3]).out


def test_a_set_of_which_all_boxes_are_difficult_is_told(tmp_path: Path) -> None:
    """It was prepared, with 0 persons, and nothing said why."""
    objects = {"a": [("person", (4.0, 6.0, 24.0, 36.0), True)] * 2, "b": [("dog", (0.0, 0.0, 64.0, 48.0), True)]}
    source = write_voc(tmp_path / "in", objects)
    told = (
        "all 3 boxes are marked as ignored (difficult, iscrowd, ignore): 1 dog, 2 person; nothing is left to train on"
    )
    assert told in " ".join(succeed("data", "prepare", "voc", "--from", source, "--to", tmp_path / "set").err.split())
    assert told in " ".join(succeed("data", "info", "voc", "--from", source).out.split())
    objects["b"] = [("dog", (0.0, 0.0, 64.0, 48.0), False)]
    other = write_voc(tmp_path / "other", objects)
    assert "marked as ignored" not in succeed("data", "prepare", "voc", "--from", other, "--to", tmp_path / "set2").err
