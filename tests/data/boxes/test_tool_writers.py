"""Labels written for labelling tools and read again: the same boxes and marks, or a count of what was lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

from sightline.contract import registry
from sightline.store.boxes.convert import convert_labels
from sightline.store.boxes.image_listing import check_headers
from sightline.store.boxes.label_table import BoxCorners, LabelledBox, LabelledSet
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.preparing import prepare_set

SIZE = (48, 64)
CLASSES = ('a "b" & <c>', "日本語", "person")


def _write_labels(root: Path, folders: Mapping[str, str]) -> Path:
    """COCO's files of people with heads, crowds, ignored regions, and boxes beyond the photo, by folder and split."""
    rng = np.random.default_rng(7)
    for split, folder in folders.items():
        names = [f"{folder}{name}" for name in ("a.png", "sub/a.png", "b.png")]
        annotations: list[dict[str, Any]] = []
        for number in range(len(names) - 1):
            for place in range(12):
                left, top, width, height = rng.uniform((-20, -20, 1, 1), (50, 40, 40, 40)).round(place % 7).tolist()
                bbox = [left, top, width, height]
                marks = ({}, {"ignore": 1}, {"iscrowd": 1})[place % 3]
                heads = {} if place % 4 else {"hbox": [left, top, 3.25, 2], "vbox": bbox}
                annotation = {"image_id": number, "category_id": place % 3, "bbox": bbox, **marks, **heads}
                annotations.append(annotation)
        for name in names:
            write_image(root / name, pattern(*SIZE))
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
        images = [(number, name, SIZE[1], SIZE[0]) for number, name in enumerate(names)]
        write_coco(root / f"instances_{split}.json", images, annotations, categories=categories)
    return root


class _Expectation(NamedTuple):
    """What a format does to a box, and what it has not."""

    tolerance_px: float
    restrict: Callable[[LabelledBox], LabelledBox]
    lost: dict[str, int]


def _drop_parts(box: LabelledBox) -> LabelledBox:
    return box._replace(visible=None, head=None, visible_share=None)


FORMATS = {
    "voc": _Expectation(
        0.5 + 1e-9,
        lambda box: box._replace(visible=None, is_crowd=False, visible_share=None),
        {"crowd marks: voc has none": 8, "visible boxes: voc has none": 6, "boxes: voc has whole pixels": 22},
    ),
    "labelme": _Expectation(
        1e-6, _drop_parts, {"head boxes: labelme has none": 6, "visible boxes: labelme has none": 6}
    ),
    "cvat": _Expectation(1e-6, _drop_parts, {"head boxes: cvat has none": 6, "visible boxes: cvat has none": 6}),
}


def _read(name: str, root: Path) -> LabelledSet:
    labels = registry.data.get_entry(name).builder.label_format.read(root)
    labels.faults.raise_or_note("refuse", root=root)
    return labels


def _farthest(box: BoxCorners | None, other: BoxCorners | None) -> float:
    assert (box is None) == (other is None)
    return max((abs(a - b) for a, b in zip(box or (), other or (), strict=True)), default=0.0)


@pytest.mark.parametrize("folders", [{"train": "train/", "val": "val/"}, {"all": "training_photos/"}])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_again_or_counted(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    source = _write_labels(tmp_path / "in", folders)
    before, expected = _read("coco", source), FORMATS[name]
    report = convert_labels("coco", source, name, tmp_path / "out", progress=quiet)
    after = {image.path.resolve(): image for image in _read(name, tmp_path / "out").images}
    assert len(after) == len(before.images) == 3 * len(folders)
    for image in before.images:
        other = after[image.path]
        assert (other.split, other.size_px) == (image.split, SIZE)
        for box, new in zip(map(expected.restrict, image.boxes), other.boxes, strict=True):
            assert _farthest(box.box, new.box) <= expected.tolerance_px
            assert _farthest(box.head, new.head) <= expected.tolerance_px
            plain = {"box": None, "head": None, "line": 0, "area": None}
            assert new._replace(**plain) == box._replace(**plain)
    assert report["lost"] == {key: count * len(folders) for key, count in expected.lost.items()}
    manifest = prepare_set(name, tmp_path / "out", tmp_path / "set")
    assert sum(manifest["statistics"]["images"].values()) == len(after)


def test_files_are_those_that_tools_read(tmp_path: Path) -> None:
    """By the standard library: a box of 3 x 4 pixels in the corner, of a crowd, in a photo of the validation part."""
    source = tmp_path / "in"
    write_image(source / "val" / "a.png", pattern(*SIZE))
    box = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 4], "iscrowd": 1, "hbox": [1, 0, 1, 2]}
    write_coco(source / "instances_val.json", [(1, "val/a.png", SIZE[1], SIZE[0])], [box])
    for name in FORMATS:
        convert_labels("coco", source, name, tmp_path / name, progress=quiet)
    assert (tmp_path / "voc/ImageSets/Main/val.txt").read_text() == "val/a\n"
    voc = ElementTree.parse(tmp_path / "voc/Annotations/val/a.xml").getroot()
    assert (voc.findtext("folder"), voc.findtext("filename")) == ("JPEGImages/val", "a.png")
    assert [voc.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["64", "48", "3"]
    [thing] = voc.iter("object")
    assert (thing.findtext("name"), thing.findtext("difficult"), thing.findtext("part/name")) == ("person", "1", "head")
    sides = ("xmin", "ymin", "xmax", "ymax")
    corners = {path: [thing.findtext(f"{path}/{side}") for side in sides] for path in ("bndbox", "part/bndbox")}
    assert corners == {"bndbox": ["1", "1", "3", "4"], "part/bndbox": ["2", "1", "2", "2"]}
    labelme = json.loads((tmp_path / "labelme/val/a.json").read_text())
    assert (labelme["imagePath"], labelme["imageHeight"], labelme["imageWidth"]) == ("a.png", 48, 64)
    [shape] = labelme["shapes"]
    assert (shape["label"], shape["shape_type"], shape["points"]) == ("person", "rectangle", [[0, 0], [3, 4]])
    assert shape["flags"] == {"iscrowd": True}
    cvat = ElementTree.parse(tmp_path / "cvat/annotations.xml").getroot()
    assert [label.text for label in cvat.iterfind("meta/task/labels/label/name")] == ["person", "car", "hat"]
    [image] = cvat.iter("image")
    assert image.attrib == {"id": "0", "name": "a.png", "subset": "val", "width": "64", "height": "48"}
    assert [image[0].get(side) for side in ("xtl", "ytl", "xbr", "ybr")] == ["0", "0", "3", "4"]
    marks = {mark.get("name"): mark.text for mark in image[0].iter("attribute")}
    assert marks == {"ignore": "false", "iscrowd": "true"}
    assert (tmp_path / "cvat/images/val/a.png").is_file()
    assert "'val/a.png'" not in (tmp_path / "cvat/annotations.xml").read_text()


@pytest.mark.shared
def test_real_photos_pass_from_tool_to_tool(shared: Path, tmp_path: Path) -> None:
    """256 photos of COCO as CVAT, and these as VOC, with the 1,827 boxes of YOLO's rows that can be meant."""
    name, root, faulty = "yolo_txt", shared / "data" / "coco128", "leave_out"
    labels = registry.data.get_entry(name).builder.label_format.read(root)
    before = {item.image.path.resolve(): item.image.boxes for item in check_headers(labels, progress=quiet)}
    for new in ("cvat", "voc"):
        report = convert_labels(name, root, new, tmp_path / new, progress=quiet, faulty=faulty)
        name, root, faulty = new, tmp_path / new, "refuse"
        assert report["boxes"] == 1827
        after = _read(new, root).images
        assert len(after) == len(before) == 256
        for image in after:
            for box, old in zip(image.boxes, before[image.path.resolve()], strict=True):
                assert (box.class_name, box.is_ignored) == (old.class_name, False)
                assert _farthest(box.box, old.box) <= FORMATS[new].tolerance_px
