"""Labels from each layout to each other: golden lines, round trips field by field, what is dropped is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline import registry
from sightline.commands.data import _BOXES
from sightline.data.boxes.annotations import LabelledBox
from sightline.data.boxes.convert import LAYOUTS, convert_annotations
from sightline.errors import DataError, UserError
from tests.command import run_here
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.test_crowdhuman import CROWD, write_set
from tests.data.boxes.test_people import FRAME, WIDER, written

LINES = {"train": {"b,2": [], "a,1": CROWD}, "val": {"d,4": CROWD[3:4]}}


def labels(root: Path) -> dict[str, bytes]:
    """All files of labels by path, without the report and the images."""
    files = [path for suffix in ("json", "odgt", "txt", "mat") for path in sorted(root.rglob(f"*.{suffix}"))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.name != "conversion.json"}


def lines_of(root: Path) -> dict[str, Any]:
    return {
        file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in sorted(root.glob("*.odgt"))
    }


def read(layout: str, root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that a reader finds, by image."""
    found = LAYOUTS[layout].read(root)
    assert found.faults.raise_or_note("refuse", root=root) == []
    return {image.name: (image.split, image.size_px, tuple(image.boxes), image.extra) for image in found.images}


def source_of(layout: str, root: Path, shared: Path) -> Path:
    """A small set in a layout."""
    if layout == "kitti":
        return shared / "data" / "kitti_object_mini"
    if layout == "odgt":
        return write_set(root, **LINES)
    if layout == "coco":
        write_image(root / "a.png", pattern(48, 64))
        mask = [[1, 2, 3, 4, 5, 6]]
        rows: list[dict[str, Any]] = [
            {"image_id": 5, "category_id": 3, "bbox": [1.5, 2, 3, 4.25], "area": 7.0, "segmentation": mask},
            {"image_id": 5, "category_id": 90, "bbox": [0, 0, 64, 48], "iscrowd": 1},
        ]
        return write_coco(root / "instances.json", [(5, "a.png", 64, 48)], rows).parent
    if layout == "yolo_txt":
        write_image(root / "images" / "train" / "a.png", pattern(48, 64))
        (root / "labels" / "train").mkdir(parents=True)
        (root / "labels" / "train" / "a.txt").write_text("1 0.5123 0.25 0.2 0.125\n0 0.9 0.9 0.2 0.2\n")
        (root / "data.yaml").write_text("train: images/train\nnames: [person, rider]\n")
        return root
    return written(layout, root)


def test_lines_come_back_from_coco_field_by_field(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", **LINES)
    there = convert_annotations(source, "odgt", tmp_path / "coco", "coco")
    back = convert_annotations(tmp_path / "coco", "coco", tmp_path / "back", "odgt")
    assert there["dropped"] == back["dropped"] == {}
    before = {name: sorted(lines, key=lambda line: line["ID"]) for name, lines in lines_of(source).items()}
    assert lines_of(tmp_path / "back") == before
    assert there["images"] == back["images"] == {"train": 2, "validation": 1}


@pytest.mark.shared
def test_lines_become_coco_as_recorded(shared: Path, tmp_path: Path) -> None:
    """The project's own rule in every field; the reference's boxes, of which validation lacks the ignored ones."""
    golden = json.loads((shared / "golden" / "detect" / "odgt_to_coco.json").read_text())
    (tmp_path / "in").mkdir()
    for line in golden["odgt_lines"]:
        width, height = line.pop("size_w_h")
        write_image(tmp_path / "in" / f"{line['ID']}.jpg", pattern(height, width))
    for name, lines in (("a", golden["odgt_lines"]), ("b", golden["odgt_lines"][::-1])):
        (tmp_path / "in" / "lines.odgt").write_text("".join(json.dumps(line) + "\n" for line in lines))
        convert_annotations(tmp_path / "in", "odgt", tmp_path / name, "coco")
    assert labels(tmp_path / "a") == labels(tmp_path / "b")
    found, expected = json.loads((tmp_path / "a" / "instances.json").read_text()), golden["corrected"]
    assert found["images"] == expected["images"]
    assert found["categories"] == expected["categories"]
    for ours, theirs in zip(found["annotations"], expected["annotations"], strict=True):
        assert {key: ours[key] for key in theirs} == theirs
    names = {image["id"]: image["file_name"] for image in found["images"]}
    for part, is_whole in (("reference_train", True), ("reference_val", False)):
        theirs = [
            (f"{each['image_id']}.jpg", each["bbox"], each["area"], each["height"], int(each["category_id"] < 0))
            for each in golden[part]["annotations"]
        ]
        ours = [
            (names[each["image_id"]], each["bbox"], each["area"], each["height"], each["ignore"])
            for each in found["annotations"]
            if is_whole or not each["ignore"]
        ]
        assert sorted(ours) == sorted(theirs)
    counts = np.load(shared / "golden" / "detect" / "odgt_to_coco.npz", allow_pickle=False)
    assert len(found["annotations"]) == counts["annotation_count"]
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    loaded = coco.COCO(str(tmp_path / "a" / "instances.json"))
    assert (len(loaded.getAnnIds(iscrowd=1)), len(loaded.getAnnIds(iscrowd=0))) == (4, 7)


@pytest.mark.shared
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_from_coco_and_from_itself(layout: str, shared: Path, tmp_path: Path) -> None:
    """COCO has room for every field: nothing is dropped, the boxes read again are the same, and files' bytes."""
    source = source_of(layout, tmp_path / "in", shared)
    reports = [
        convert_annotations(source, layout, tmp_path / "coco", "coco"),
        convert_annotations(tmp_path / "coco", "coco", tmp_path / "back", layout),
        convert_annotations(source, layout, tmp_path / "same", layout),
        convert_annotations(tmp_path / "same", layout, tmp_path / "again", layout),
    ]
    if layout == "yolo_txt":  # a box that reaches over the border by what rounding of shares leaves
        assert all(each["dropped"] == {} for each in (*reports[:1], reports[3]))
    else:
        assert all(each["dropped"] == {} for each in reports)
    assert labels(tmp_path / "same") == labels(tmp_path / "again")
    if layout != "coco":
        assert labels(tmp_path / "same") == labels(tmp_path / "back")
    if layout == "kitti":
        ours, theirs = labels(tmp_path / "same"), labels(source)
        assert ours == {name: content for name, content in theirs.items() if name.startswith("label_2/")}
    if layout in ("odgt", "coco", "widerperson", "citypersons"):
        before, after = read(layout, source), read(layout, tmp_path / "same")
        before, after = ({Path(name).name: each[2] for name, each in found.items()} for found in (before, after))
        assert before == after
    if layout == "ecp":
        frame = json.loads(next(iter(labels(tmp_path / "same").values())))
        assert frame["tags"] == ["rainy"]
        people = [{"children": [], **child} for child in FRAME if child["identity"] != "car"]
        assert frame["children"] == people


@pytest.mark.shared
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_prepared(layout: str, shared: Path, tmp_path: Path) -> None:
    """People of WiderPerson in every layout, with their images linked, are read by the data set of that layout."""
    convert_annotations(written("widerperson", tmp_path / "in"), "widerperson", tmp_path / layout, layout)
    if layout == "kitti":
        boxes = [box for image in read(layout, tmp_path / layout).values() for box in image[2]]
        assert sum(box.label == "DontCare" for box in boxes) == 2
        assert len(boxes) == 6
        return
    name = {"odgt": "crowdhuman"}.get(layout, layout)
    builder = registry.data.get_entry(name).builder
    builder.prepare(source=tmp_path / layout, target=tmp_path / "set", name=name, progress=quiet)
    opened = builder(split="train", root=str(tmp_path / "set"), validation_share=0.0)
    record = opened.record(0)
    num = 3 if layout == "yolo_txt" else 5  # an ignored region would be an object there
    assert len(record.boxes) == num
    assert record.is_ignored.sum() == {"ecp": 3, "citypersons": 3, "yolo_txt": 0}.get(layout, 2)  # riders are, of two
    if layout != "yolo_txt":
        np.testing.assert_allclose(record.boxes, [row[1:] for row in WIDER], atol=1e-9)


def test_what_a_layout_cannot_state_is_counted(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", **LINES)
    report = convert_annotations(source, "odgt", tmp_path / "yolo", "yolo_txt")
    counts = {what: found["count"] for what, found in report["dropped"].items()}
    assert counts == {
        "boxes outside the image": 1,
        "extra": 4,
        "head box": 4,
        "head_attr": 2,
        "ignored boxes": 3,
        "parts of boxes outside the image": 2,
        "tag": 6,
        "visible box": 6,
    }
    first = report["dropped"]["visible box"]["examples"][0]
    assert first.startswith("CrowdHuman_train01/Images/a,1.png: person at -3, 2")
    kept = json.loads((tmp_path / "yolo" / "conversion.json").read_text())
    assert kept == {key: value for key, value in report.items() if key != "root"}
    chosen = convert_annotations(source, "odgt", tmp_path / "wider", "widerperson", box="visible", images="leave")
    assert chosen["dropped"]["full box"]["count"] == 6
    assert (tmp_path / "wider" / "Annotations" / "a,1.jpg.txt").read_text().splitlines()[1] == "1 0 2 7 16"
    assert not (tmp_path / "wider" / "Images").exists()
    head = convert_annotations(
        write_set(tmp_path / "heads", train={"a": CROWD[:2]}), "odgt", tmp_path / "head", "coco", box="head"
    )
    document = json.loads((tmp_path / "head" / "instances_train.json").read_text())
    heads = [(each["bbox"], each["iscrowd"]) for each in document["annotations"]]
    assert heads == [([1, 2, 3, 3], 0), ([28, 0, 2, 2], 1)]
    assert head["dropped"] == {}


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    source = write_set(tmp_path / "in", train={"a": [CROWD[3]]})
    with pytest.raises(DataError, match=r"a.png: person at 0, 0, 32, 3: has no head box; choose another by box="):
        convert_annotations(source, "odgt", tmp_path / "out", "coco", box="head")
    with pytest.raises(UserError, match="in is there and not empty; give another folder by --to"):
        convert_annotations(source, "odgt", tmp_path / "in", "coco")
    (source / "CrowdHuman_train01" / "Images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.jpg: the image is missing, and its size is needed; put the images below"):
        convert_annotations(source, "odgt", tmp_path / "out", "coco")
    assert convert_annotations(source, "odgt", tmp_path / "out", "odgt")["boxes"] == 1
    (tmp_path / "kitti" / "label_2").mkdir(parents=True)
    (tmp_path / "kitti" / "label_2" / "000000.txt").write_text("Car 0 0 0 1 2 3 4 0 0 0 0 0 0 0\nCar 1 2\n")
    with pytest.raises(DataError, match=r"000000.txt:2: 'Car 1 2' is not a type and 14 or 15 numbers"):
        convert_annotations(tmp_path / "kitti", "kitti", tmp_path / "other", "coco")
    write_coco(tmp_path / "far" / "x.json", [(1, "../../x.png", 8, 8)], [])
    with pytest.raises(DataError, match=r"x.png: is outside the folder|is not below"):
        convert_annotations(tmp_path / "far", "coco", tmp_path / "other", "yolo_txt")
    assert not (tmp_path / "other").exists()


def test_the_command_prints_what_was_dropped(tmp_path: Path) -> None:
    assert ", ".join(sorted(LAYOUTS)) == _BOXES
    source = write_set(tmp_path / "in", **LINES)
    asked = ["data", "convert", "--from", str(source), "--layout", "odgt", "--to", str(tmp_path / "out"), "--as"]
    wrong = run_here(*asked, "yolo")
    assert wrong.code == 2
    assert "--as yolo: no such layout; did you mean 'yolo_txt'" in wrong.err
    done = run_here(*asked, "yolo_txt", "box=visible", "--json", str(tmp_path / "report.json"))
    assert done.code == 0, done.err
    assert "dropped: head box, 4 times: CrowdHuman_train01/Images/a,1.png: person at" in done.err
    assert json.loads((tmp_path / "report.json").read_text())["boxes"] == 6


def test_visible_shares_are_at_most_one() -> None:
    box = LabelledBox("person", {"full": (0, 0, 4, 4), "visible": (0, 0, 5, 5)})
    assert box.visible_share == 1
    assert np.isnan(LabelledBox("person", {"full": (0, 0, 4, 4)}).visible_share)
