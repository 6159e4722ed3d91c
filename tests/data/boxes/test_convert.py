"""Labels from each format to each other: field by field equal, or counted as lost; files as their tools read them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError, UserError
from sightline.contract.types import SampleKey
from sightline.store.boxes.convert import convert_labels
from sightline.store.boxes.image_listing import check_headers
from sightline.store.boxes.label_table import LabelFormat, LabelledBox, area_of
from tests.cases import run_each
from tests.command import run_here, succeed
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.people_writers import write_widerperson
from tests.data.boxes.test_crowdhuman import CROWD, write_set
from tests.data.boxes.test_people import written
from tests.data.preparing import prepare_set

BUILDERS = {name: registry.data.get_entry(name).builder for name in registry.data.names()}
FORMATS: dict[str, LabelFormat] = {
    name: builder.label_format
    for name, builder in BUILDERS.items()
    if getattr(builder, "label_format", None) is not None and builder.label_format.write is not None
}
WHOLE = {"voc": 0.5, "widerperson": 0.5}
"""Formats of whole pixels, and how far a corner may move."""
Table = Mapping[str, tuple[str, Sequence[LabelledBox]]]
"""Name without a suffix → split and boxes in pixels."""
CATEGORIES = [{"id": n, "name": name} for n, name in enumerate(("person", "rider", "sitting", "car", "dog house"), 1)]
STREET: list[dict[str, Any]] = [
    {"category_id": 1, "bbox": [3.25, 4.5, 20, 40], "vbox": [3.25, 4.5, 20, 30], "hbox": [8, 4.5, 6, 6.5]},
    {"category_id": 1, "bbox": [30, 5, 15, 30], "hbox": [33, 5, 6, 6], "head_attr": {"ignore": 1}},
    {"category_id": 1, "bbox": [50, 5, 20, 20], "iscrowd": 1, "ignore": 1},
    {"category_id": 1, "bbox": [75, 5, 30, 20], "iscrowd": 1, "vbox": [75, 5, 15, 20]},
    {"category_id": 2, "bbox": [110, 5, 20, 40], "vis_ratio": 0.7},
    {"category_id": 3, "bbox": [140, 5, 10.125, 10], "vis_ratio": 0.2},
    {"category_id": 4, "bbox": [3, 60, 40, 20], "area": 500.5},
    {"category_id": 5, "bbox": [50, 60, 10, 20], "ignore": 1},
    {"category_id": 1, "bbox": [-5, 90, 20, 50], "vbox": [0, 90, 15, 30]},
    {"category_id": 1, "bbox": [210, 10, 20, 20]},
]
"""Annotations of an image 200 wide and 120 high, with every field of the table; two reach beyond it."""


MASKED = (
    [(1, "s/a.png", 200, 100)],
    [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2]]}],
)


def write_street(root: Path) -> Path:
    """Three images in two splits, one of them without boxes."""
    for split, names in {"train": ("s/a.png", "s/b.png"), "val": ("t/c.png",)}.items():
        images = [(number, name, 200, 120) for number, name in enumerate(names, start=len(split))]
        for name in names:
            write_image(root / name, pattern(120, 200))
        rows = [{"image_id": len(split), **row} for row in (STREET if split == "train" else STREET[:5])]
        write_coco(root / f"instances_{split}.json", images, rows, categories=CATEGORIES)
    return root


def convert(name: str, source: Path, new_name: str, target: Path, **options: Any) -> dict[str, Any]:
    return convert_labels(name, source, new_name, target, progress=quiet, **options)


def read(name: str, root: Path) -> Table:
    labels = FORMATS[name].read(root)
    assert labels.faults.raise_or_note("refuse", root=labels.root) == []
    items = check_headers(labels, progress=quiet)
    return {item.image.path.stem: (item.image.split, item.image.boxes) for item in items}


def overlap(first: LabelledBox, second: LabelledBox) -> float:
    a, b = (np.array(box.box or box.visible or box.head) for box in (first, second))
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def is_apart(first: Any, second: Any, tolerance: float) -> bool:
    if first is None or second is None:
        return first is not second
    return bool(np.abs(np.subtract(first, second)).max() > tolerance)


def differences(before: Table, after: Table) -> Counter[str]:
    """What is not the same in two tables, as the words of a report say it, without the name of the format."""
    found = Counter[str]()
    for name, (split, boxes) in before.items():
        new_split, new_boxes = after[name]
        assert new_split == split
        pairs = [(max(boxes, key=lambda box: overlap(box, new)), new) for new in new_boxes]
        assert len({id(old) for old, _ in pairs}) == len(pairs)
        found["gone"] += len(boxes) - len(pairs)
        for old, new in pairs:
            assert old.is_ignored == new.is_ignored
            found["renamed"] += old.class_name != new.class_name
            pairs_of_boxes = ((old.box, new.box), (old.visible, new.visible), (old.head, new.head))
            found["moved"] += any(a and b and is_apart(a, b, 1e-6) for a, b in pairs_of_boxes)
            found["crowd"] += old.is_crowd != new.is_crowd
            found["ignore marks of heads"] += old.is_head_ignored != new.is_head_ignored
            found["visible boxes"] += (old.visible is None) != (new.visible is None)
            found["head boxes"] += (old.head is None) != (new.head is None)
            areas = (area_of(box.box) if box.area is None else box.area for box in (old, new))
            found["areas of masks"] += is_apart(*areas, 1e-4) and not is_apart(old.box, new.box, 1e-6)
            if (old.visible is None) == (new.visible is None):
                found["visible shares"] += is_apart(old.share, new.share, 1e-8)
    return found


def reported(lost: Mapping[str, int], name: str) -> Counter[str]:
    """Counts of a report, added up by kind."""
    kinds = {
        rf"(ignored|boxes of the class .*|boxes outside .*).*: {name} has none": "gone",
        rf"boxes of the class .*: {name} calls them .*": "renamed",
        rf"boxes: {name} .*": "moved",
        rf"(classes without boxes): {name} has none": r"\1",
        rf"crowd marks: {name} has none|ignored boxes that are no crowds: .*": "crowd",
        rf"(visible shares): {name} .*": r"\1",
        rf"(.*): {name} has none": r"\1",
        r"(.*): not read": "unread",
    }
    counts = Counter[str]()
    for line, count in lost.items():
        kind = next(kind for kind in kinds if re.fullmatch(kind, line))
        counts[re.sub(kind, kinds[kind], line)] += count
    return counts


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The street in every format."""
    root = tmp_path_factory.mktemp("streets")
    source = write_street(root / "source")
    for name in FORMATS:
        convert("coco", source, name, root / name)
    return {name: root / name for name in FORMATS}


@run_each("name, new_name", [(name, new_name) for name in FORMATS for new_name in FORMATS])
def test_every_pair_of_formats(
    name: str, new_name: str, streets: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a report does not count as lost is the same, to 1e-6 pixels: by a comparison that does not know formats."""
    target = tmp_path_factory.mktemp("pair") / "new"
    before = read(name, streets[name])
    report = convert(name, streets[name], new_name, target)
    declared = {*FORMATS[name].read(streets[name]).classes.names} - {*FORMATS[new_name].read(target).classes.names}
    assert_all_is_counted(before, read(new_name, target), new_name, report, gone_classes=declared)


def assert_all_is_counted(
    before: Table, after: Table, new_name: str, report: Mapping[str, Any], *, gone_classes: set[str]
) -> None:
    """Assert that what a report does not count as lost is the same, and that its counts are right."""
    found, counted = differences(before, after), reported(report["lost"], new_name)
    if "visible" not in FORMATS[new_name].holds and "visible_share" in FORMATS[new_name].holds:
        shares = [  # the visible box goes, and with it what shows the share exactly
            (old.share, new.share)
            for image in before
            for old, new in zip(before[image][1], after[image][1], strict=False)
        ]
        assert {new for _, new in shares} <= {None, 1.0, 0.9, 0.6, 0.2}
        del counted["visible shares"], found["visible shares"]
    boxed = {box.class_name for _, boxes in before.values() for box in boxes}
    found["classes without boxes"] = len(gone_classes - boxed)
    assert +found == +counted
    moved = max(
        float(np.abs(np.subtract(old.box, new.box)).max())
        for image in after
        for new in after[image][1]
        for old in [max(before[image][1], key=lambda box: overlap(box, new))]
        if old.box is not None and new.box is not None
    )
    assert moved <= WHOLE.get(new_name, 20.0 if found["moved"] else 1e-6)  # of boxes that are cut at the border
    assert report["boxes"] == sum(len(boxes) for _, boxes in after.values())
    assert report["images"] == dict(sorted(Counter(split for split, _ in after.values()).items()))


def test_coco_holds_everything(streets: Mapping[str, Path], tmp_path: Path) -> None:
    """Nothing is lost from any format to COCO, nor on the way back: the files have the same bytes."""
    for name in FORMATS:
        there = convert(name, streets[name], "coco", tmp_path / name / "coco")
        back = convert("coco", tmp_path / name / "coco", name, tmp_path / name / "back")
        assert there["lost"] == back["lost"] == {}, name
        files = [path.relative_to(streets[name]) for path in streets[name].rglob("*") if not path.is_symlink()]
        labels = [path for path in files if (streets[name] / path).is_file()]
        for path in labels if name != "coco" else ():
            assert (tmp_path / name / "back" / path).read_bytes() == (streets[name] / path).read_bytes(), path


def test_what_is_written_is_prepared(streets: Mapping[str, Path], tmp_path: Path) -> None:
    """The set that a format is called after prepares it, images included, with the boxes that the table has."""
    for name in FORMATS:
        prepare_set(name, streets[name], tmp_path / name, progress=quiet)
        options = {"split": "train", "root": str(tmp_path / name), "validation_share": 0.0, "test_share": 0.0}
        images = BUILDERS[name](
            **{k: v for k, v in options.items() if name in ("coco", "yolo_txt") or k != "test_share"}
        )
        rows = read(name, streets[name])["a"][1]
        assert len(images) == 2, name
        np.testing.assert_allclose(images.record(0).boxes, [row.box for row in rows], atol=1e-6)
        assert images[SampleKey(0, 0, 0)]["image"].shape == (120, 200, 3)


@pytest.mark.shared
def test_lines_become_coco_as_recorded(shared: Path, tmp_path: Path) -> None:
    """The project's own rule in every field; the reference's boxes, of which validation lacks the ignored ones."""
    golden = json.loads((shared / "golden" / "detect" / "odgt_to_coco.json").read_text())
    for line in golden["odgt_lines"]:
        width, height = line.pop("size_w_h")
        write_image(tmp_path / "in" / f"{line['ID']}.jpg", pattern(height, width))
    for name, lines in (("a", golden["odgt_lines"]), ("b", golden["odgt_lines"][::-1])):
        (tmp_path / "in" / "lines.odgt").write_text("".join(json.dumps(line) + "\n" for line in lines))
        report = convert("crowdhuman", tmp_path / "in", "coco", tmp_path / name)
        assert {line for line in report["lost"] if not line.endswith("not read")} == set()
    found, expected = json.loads((tmp_path / "a" / "instances.json").read_text()), golden["corrected"]
    assert (tmp_path / "a" / "instances.json").read_bytes() == (tmp_path / "b" / "instances.json").read_bytes()
    assert found["images"] == expected["images"]
    assert found["categories"] == expected["categories"]
    for ours, theirs in zip(found["annotations"], expected["annotations"], strict=True):
        assert {key: ours[key] for key in theirs} == theirs
    names = {image["id"]: image["file_name"] for image in found["images"]}
    for part, is_whole in (("reference_train", True), ("reference_val", False)):
        theirs = [
            (f"{row['image_id']}.jpg", row["bbox"], row["area"], row["height"], int(row["category_id"] < 0))
            for row in golden[part]["annotations"]
        ]
        ours = [
            (names[row["image_id"]], row["bbox"], row["area"], row["height"], row["ignore"])
            for row in found["annotations"]
            if is_whole or not row["ignore"]
        ]
        assert sorted(ours) == sorted(theirs)
    counts = np.load(shared / "golden" / "detect" / "odgt_to_coco.npz", allow_pickle=False)
    assert len(found["annotations"]) == counts["annotation_count"]
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    loaded = coco.COCO(str(tmp_path / "a" / "instances.json"))
    assert (len(loaded.getAnnIds(iscrowd=1)), len(loaded.getAnnIds(iscrowd=0))) == (4, 7)


@pytest.mark.shared
def test_photos_of_coco_come_back_as_yolo_rows(shared: Path, tmp_path: Path) -> None:
    report = convert("yolo_txt", shared / "data" / "coco128", "coco", tmp_path / "coco", faulty="leave_out")
    assert report["boxes"] == 1827
    back = convert("coco", tmp_path / "coco", "yolo_txt", tmp_path / "yolo")
    assert back["boxes"] == 1827
    files = sorted((tmp_path / "yolo" / "labels").rglob("*.txt"))
    assert len(files) == 256
    for file in files:
        original = shared / "data/coco128/labels" / file.parent.name / file.name
        rows = [line.split() for line in original.read_text().splitlines()] if original.is_file() else []
        new_rows = [line.split() for line in file.read_text().splitlines()]
        assert [row[0] for row in new_rows] == [row[0] for row in rows]
        np.testing.assert_allclose(np.array(new_rows, float), np.array(rows, float), atol=2e-6)  # cut where rounded out


@pytest.mark.shared
def test_kitti_goes_out_and_comes_back(shared: Path, tmp_path: Path) -> None:
    """Nine frames: 82 rows, of which the 2D boxes come back to the digit; their 3D boxes are counted as not read."""
    source = shared / "data" / "kitti_object_mini"
    rows = {
        path.name: [line.split() for line in path.read_text().splitlines()]
        for path in sorted((source / "label_2").glob("*.txt"))
    }
    with pytest.raises(DataError, match=r"1 images without a text file in label_2, first: .*000008\.png; correct them"):
        convert("kitti_boxes", source, "coco", tmp_path / "coco")
    shared_text, lone = tmp_path / "shared/image_2", tmp_path / "shared/testing/image_2"
    for path in (shared_text / "000001.png", shared_text / "000001.jpg", shared_text / "2.png", lone / "3.png"):
        write_image(path, pattern(8, 8))
    (tmp_path / "shared/label_2").mkdir()
    for stem in ("000001", "2"):
        (tmp_path / "shared/label_2" / f"{stem}.txt").touch()
    labels = FORMATS["kitti_boxes"].read(tmp_path / "shared")
    assert [image.path.name for image in labels.images] == ["2.png"]
    [fault] = labels.faults.raise_or_note("leave_out", root=labels.root)
    assert fault.startswith("left out: 1 images that share a text file in label_2, first: ")
    assert labels.notes == [f"1 images are in folders without label_2 and are left out, first: {lone / '3.png'}"]
    report = convert("kitti_boxes", source, "coco", tmp_path / "coco", faulty="leave_out")
    objects = [row for file in rows.values() for row in file]
    assert report["boxes"] == len(objects)
    assert report["lost"]["3D boxes: not read"] == sum(row[0] != "DontCare" for row in objects)
    convert("coco", tmp_path / "coco", "kitti_boxes", tmp_path / "back")
    for name, expected in rows.items():
        found = [*map(str.split, (tmp_path / "back" / "label_2" / name).read_text().splitlines())]
        assert [row[0] for row in found] == [row[0] for row in expected]
        np.testing.assert_array_equal(
            [[*map(float, row[4:8])] for row in found], [[*map(float, r[4:8])] for r in expected]
        )


@pytest.mark.shared
def test_regions_of_kitti_are_ignored_by_every_class(shared: Path, tmp_path: Path) -> None:
    """Frame 000001 has a truck, a car, a cyclist and four regions; with cars alone, the others are left out."""
    source = shared / "data" / "kitti_object_mini"
    prepare_set("kitti_boxes", source, tmp_path / "set", progress=quiet, faulty="leave_out")
    images = BUILDERS["kitti_boxes"](split="train", root=str(tmp_path / "set"), tested=("image_2/007347",))
    assert "DontCare" not in images.info.facts["class_names"]
    cars = BUILDERS["kitti_boxes"](
        split="train", root=str(tmp_path / "set"), tested=("image_2/007347",), classes=("Car",), validation_share=0.0
    )
    frame = next(index for index in range(len(cars)) if cars.sample_name(index) == "image_2/000001.png")
    record = cars.record(frame)
    assert record.label.tolist() == [0, -1, -1, -1, -1]
    assert record.is_ignored.tolist() == [False, True, True, True, True]
    np.testing.assert_array_equal(record.boxes[0], [387.63, 181.54, 423.81, 203.12])


ROWS: dict[str, tuple[str, str | bytes]] = {
    "yolo_txt": ("labels/train/s/a.txt", "0 0.1 0.2 0.1 0.2\n1 0.5 0.5 0.25 0.5\n"),
    "crowdhuman": (
        "annotation_train.odgt",
        '{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [10, 10, 20, 20], "vbox": [10, 10, 20, 10], "extra": {}}, '
        '{"tag": "person", "fbox": [75, 25, 50, 50], "extra": {}}, '
        '{"tag": "person", "fbox": [150, 50, 20.5, 10], "extra": {"ignore": 1}}]}\n',
    ),
    "widerperson": ("Annotations/a.jpg.txt", "3\n1 10 10 30 30\n2 75 25 125 75\n4 150 50 170 60\n"),
    "kitti_boxes": (
        "training/image_2/../label_2/a.txt",
        "person -1 -1 -10 10 10 30 30 -1 -1 -1 -1000 -1000 -1000 -10\n"
        "rider -1 -1 -10 75 25 125 75 -1 -1 -1 -1000 -1000 -1000 -10\n"
        "DontCare -1 -1 -10 150 50 170.5 60 -1 -1 -1 -1000 -1000 -1000 -10\n",
    ),
    "ecp": ("day/labels/train/s/a.json", '"identity": "rider",\n   "tags": [],\n   "children": [],\n   "x0": 75,\n'),
}
"""Format → a file, and what is in it of a person of which half is visible, a rider, and an ignored region."""


def write_three(root: Path) -> Path:
    write_image(root / "s/a.png", pattern(100, 200))
    rows: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "vbox": [10, 10, 20, 10]},
        {"image_id": 1, "category_id": 2, "bbox": [75, 25, 50, 50]},
        {"image_id": 1, "category_id": 1, "bbox": [150, 50, 20.5, 10], "ignore": 1},
    ]
    write_coco(root / "instances_train.json", [(1, "s/a.png", 200, 100)], rows, categories=CATEGORIES[:2])
    return root


@run_each("name, file, text", [(name, *row) for name, row in ROWS.items()])
def test_files_have_the_published_form(
    name: str, file: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    convert("coco", write_three(folder / "in"), name, folder / "out")
    content = (folder / "out" / file).read_text()
    assert content == text if name != "ecp" else text in content
    assert ('"occluded>40"' in content) == (name == "ecp")


def test_citypersons_cells_have_ten_columns(tmp_path: Path) -> None:
    from scipy.io import loadmat

    convert("coco", write_three(tmp_path / "in"), "citypersons", tmp_path / "out")
    [cell] = loadmat(tmp_path / "out/annotations/anno_train.mat")["anno_train_aligned"].ravel()
    assert [str(cell[key][0, 0][0]) for key in ("cityname", "im_name")] == ["s", "a.png"]
    assert cell["bbs"][0, 0].tolist() == [
        [1, 10, 10, 20, 20, 0, 10, 10, 20, 10],
        [2, 75, 25, 50, 50, 0, 0, 0, 0, 0],
        [0, 150, 50, 20.5, 10, 0, 0, 0, 0, 0],
    ]
    assert (tmp_path / "out/leftImg8bit/train/s/a.png").samefile(tmp_path / "in/s/a.png")


def test_another_box_of_people(streets: Mapping[str, Path], tmp_path: Path) -> None:
    """Heads of the ignored are ignored, and a person without one is a fault."""
    with pytest.raises(DataError, match=r"6 people without a head box, first: s/a\.png, entry 4; choose another by"):
        convert("coco", streets["coco"], "crowdhuman", tmp_path / "heads", box="head")
    report = convert("coco", streets["coco"], "yolo_txt", tmp_path / "heads", box="head", faulty="leave_out")
    assert report["boxes"] == 2
    assert (tmp_path / "heads/labels/train/s/a.txt").read_text() == "0 0.055 0.0645833333333 0.03 0.0541666666667\n"
    visible = convert("coco", streets["coco"], "coco", tmp_path / "visible", box="visible", faulty="leave_out")
    rows = json.loads((tmp_path / "visible/instances_train.json").read_text())["annotations"]
    assert [row["bbox"] for row in rows if not row["ignore"]] == [[3.25, 4.5, 20, 30], [75, 5, 15, 20], [0, 90, 15, 30]]
    assert visible["lost"] == {}


def test_a_person_without_a_whole_box(tmp_path: Path) -> None:
    """CrowdHuman alone states a part of a person; of one who is ignored, the part is the region."""
    person = {"tag": "person", "vbox": [2, 3, 4, 5]}
    rows = {"whole": [{**person, "tag": "mask"}], "part": [person]}
    for name, people in rows.items():
        write_image(tmp_path / name / "a.png", pattern(16, 32))
        (tmp_path / name / "annotation_train.odgt").write_text(json.dumps({"ID": "a", "gtboxes": people}))
    with pytest.raises(DataError, match="1 people without a full box, first: a, entry 0; choose another by --box"):
        convert("crowdhuman", tmp_path / "part", "coco", tmp_path / "coco")
    convert("crowdhuman", tmp_path / "whole", "coco", tmp_path / "coco")
    [row] = json.loads((tmp_path / "coco/instances_train.json").read_text())["annotations"]
    assert (row["bbox"], row["ignore"]) == ([2, 3, 4, 5], 1)
    assert convert("crowdhuman", tmp_path / "part", "crowdhuman", tmp_path / "same")["lost"] == {}
    line = json.loads((tmp_path / "same/annotation_train.odgt").read_text())
    assert line["gtboxes"] == [{**person, "extra": {}}]


def write_polygons(root: Path) -> Path:
    write_image(root / "a.png", pattern(16, 32))
    (root / "a.txt").write_text("0 .1 .1 .4 .1 .4 .6\n0 .5 .5 .2 .2\n")
    (root / "classes.txt").write_text("car\n")
    return root


@run_each(
    "name, write, unread",
    [
        (
            "crowdhuman",
            lambda root: write_set(root, train={"a": CROWD}),
            {
                "extra.box_id": 2,
                "head_attr.unsure": 1,
                "head_attr.occ": 1,
                "the tag mask, which is an ignored person here": 1,
            },
        ),
        ("citypersons", lambda root: written("citypersons", root), {"instance numbers": 5}),
        ("ecp", lambda root: written("ecp", root), {"orientations of people": 2}),
        ("yolo_txt", write_polygons, {"polygons, but the boxes about them": 1}),
        (
            "coco",
            lambda root: write_coco(write_three(root) / "instances_train.json", *MASKED).parent,
            {"segmentation": 1},
        ),
    ],
)
def test_what_no_field_holds_is_counted_as_not_read(
    name: str, write: Any, unread: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("unread")
    lost = convert(name, write(folder / "in"), "coco", folder / "out")["lost"]
    assert lost == {f"{what}: not read": count for what, count in unread.items()}


@run_each(
    "name, write",
    [
        ("crowdhuman", lambda root: write_set(root, train={"a": CROWD})),
        ("citypersons", lambda root: written("citypersons", root)),
        ("ecp", lambda root: written("ecp", root)),
    ],
)
def test_published_images_without_labels_are_noted(
    name: str, write: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write(tmp_path_factory.mktemp("more") / "in")
    before = FORMATS[name].read(root).notes
    image = write_image(root / "leftImg8bit/test/x/more.png", pattern(8, 8))
    note = f"1 images are in no annotation file and are left out, first: {image}"
    assert FORMATS[name].read(root).notes == [*before, note]


def test_sets_of_no_split(tmp_path: Path) -> None:
    source = write_three(tmp_path / "in")
    (source / "instances_train.json").rename(source / "labels.json")
    for name, row in FORMATS.items():
        report = convert("coco", source, name, tmp_path / name)
        is_held = "undivided" in row.holds
        assert report["images"] == {"all" if is_held else "train": 1}
        assert (f"images of no split: {name} calls them train" in report["lost"]) == (not is_held)


def test_an_image_that_is_listed_twice_is_written_once(tmp_path: Path) -> None:
    source = write_widerperson(tmp_path / "in", train={"a": [[1, 1, 1, 5, 5]], "b": []})
    (source / "train.txt").write_text("a\nb\na\n")
    report = convert("widerperson", source, "widerperson", tmp_path / "out")
    assert report["lost"] == {"images that are listed more than once: they are written once": 1}
    assert (tmp_path / "out/train.txt").read_text() == "a\nb\n"
    assert (tmp_path / "out/Annotations/a.jpg.txt").read_text() == "1\n1 1 1 5 5\n"


STORED = "unless orientation=ignore is stated"


def test_photos_that_are_stored_turned(tmp_path: Path) -> None:
    """Boxes of an upright picture come back; those of its stored pixels are counted, where no size shows it."""
    image = write_image(tmp_path / "in/a.png", pattern(20, 10), orientation=6)
    image.with_suffix(".txt").write_text("0 .5 .5 .5 .2\n")
    (tmp_path / "in/classes.txt").write_text("person\n")
    convert("yolo_txt", tmp_path / "in", "coco", tmp_path / "coco")
    file = tmp_path / "coco/instances.json"
    document = json.loads(file.read_text())
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (20, 10)
    assert document["annotations"][0]["bbox"] == [5, 4, 10, 2]
    assert convert("coco", tmp_path / "coco", "yolo_txt", tmp_path / "back")["lost"] == {}
    document["images"][0] |= {"width": 10, "height": 20}
    document["annotations"][0] |= {"bbox": [2, 4, 6, 2], "area": 12}
    file.write_text(json.dumps(document))
    lost = convert("coco", tmp_path / "coco", "yolo_txt", tmp_path / "stored")["lost"]
    assert [*lost][-1] == "images with boxes of their pixels as stored: yolo_txt is about upright images, " + STORED
    square = write_image(tmp_path / "square/a.png", pattern(20, 20), orientation=6).parent
    box = {"image_id": 1, "category_id": 1, "bbox": [2, 4, 6, 2]}
    write_coco(square / "instances.json", [(1, "a.png", 20, 20)], [box], categories=CATEGORIES[:1])
    [line] = convert("coco", square, "coco", tmp_path / "same", orientation="ignore")["lost"]
    assert line == "images with boxes of their pixels as stored: coco is about upright images, " + STORED
    assert convert("coco", tmp_path / "coco", "ecp", tmp_path / "ecp")["lost"].keys() == {
        "boxes of the class person: ecp calls them pedestrian",
        "images of no split: ecp calls them train",
        "visible shares: ecp has 1, 0.9, 0.6 and 0.2",
    }


def test_boxes_of_a_pixel_keep_an_extent_in_whole_pixels(tmp_path: Path) -> None:
    """11.5 and 12.5 are both rounded to 12, and a box without a width is refused by its reader."""
    boxes = [[11.5, 5, 1, 1], [10.1, 5, 0.3, 9], [2, 3, 4, 0.2], [4, 4, 2.6, 2.4]]
    write_image(tmp_path / "in/a.png", pattern(32, 64))
    rows = [{"image_id": 1, "category_id": 3, "bbox": box} for box in boxes]
    write_coco(tmp_path / "in/instances_train.json", [(1, "a.png", 64, 32)], rows)
    convert("coco", tmp_path / "in", "widerperson", tmp_path / "out")
    rows_written = (tmp_path / "out/Annotations/a.jpg.txt").read_text().splitlines()[1:]
    assert rows_written == ["1 12 5 13 6", "1 10 5 11 14", "1 2 3 6 4", "1 4 4 7 6"]


def test_the_command_prints_what_was_lost(tmp_path: Path) -> None:
    source, report = write_street(tmp_path / "in"), tmp_path / "report.json"
    words = ("data", "convert", "coco", "--from", source, "--as", "yolo_txt", "--to", tmp_path / "out")
    done = succeed(*words, "--json", report)
    assert "boxes: 9\n" in done.out
    assert {"4 head boxes: yolo_txt has none", "5 ignored boxes: yolo_txt has none"} <= {*done.err.splitlines()}
    assert json.loads(report.read_text())["boxes"] == 9
    again = run_here(*words)
    assert again.code == 2
    assert "out is there and not empty; give another folder by --to" in again.err
    (tmp_path / "empty").mkdir()
    with contextlib.chdir(tmp_path / "empty"):
        assert "empty: is the current folder, which cannot be replaced; give" in run_here(*words[:-1], ".").err
    (source / "s/a.png").unlink()
    missing = run_here(*words[:-1], tmp_path / "other")
    assert "1 images that are missing or damaged, first: 's/a.png'" in missing.err
    assert not (tmp_path / "other").exists()
    left = succeed(*words[:-1], tmp_path / "other", "faulty=leave_out")
    assert "left out: 1 images that are missing or damaged" in left.err
    with pytest.raises(UserError, match="in, whose files would then be read with what is written"):
        convert("coco", source, "yolo_txt", source / "out")


def test_images_are_copied_where_the_target_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_street(tmp_path / "source")
    convert("coco", source, "yolo_txt", tmp_path / "linked")

    def refuse_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse_link)
    done = convert("coco", source, "yolo_txt", tmp_path / "copied")
    assert "images are copied: the file system of the target has no links" in done["differences"]
    linked, copied = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "linked", tmp_path / "copied")
    )
    assert linked.keys() == copied.keys()
    assert {name for name in linked if linked[name] != copied[name]} <= {Path("data.yaml")}  # which names its folder
    assert not any(path.is_symlink() for path in (tmp_path / "copied").rglob("*"))


def test_a_conversion_counts_supercategories_and_the_numbers_of_boxes(tmp_path: Path) -> None:
    """Both vanished without a word: COCO's names of groups, and CrowdHuman's `box_id` of every person."""
    person = {"tag": "person", "fbox": [1, 2, 8, 9], "extra": {"box_id": 0, "occ": 0}, "head_attr": {"ignore": 0}}
    lost = convert("crowdhuman", write_set(tmp_path / "in", train={"a": [person]}), "coco", tmp_path / "coco")["lost"]
    assert lost == {"extra.box_id: not read": 1, "extra.occ: not read": 1}
    parents = {"person": "living", "car": "vehicle", "hat": "none"}
    categories = [
        {"id": number, "name": name, "supercategory": parent}
        for number, (name, parent) in enumerate(parents.items(), 1)
    ]
    path = write_coco(write_three(tmp_path / "set") / "instances_train.json", *MASKED, categories=categories)
    document = json.loads(path.read_text())
    document["annotations"][0] |= {"category_id": 1, "segmentation": []}
    path.write_text(json.dumps(document))
    assert convert("coco", path.parent, "voc", tmp_path / "voc")["lost"]["supercategory: not read"] == 2


def test_an_area_that_is_rounded_is_none_of_a_mask(tmp_path: Path) -> None:
    """38 areas of masks were counted where there are 15, the others rounded to three decimals."""
    boxes = [[1.111, 2.222, 33.333, 44.444], [5.123, 6.456, 7.789, 8.912]]
    rows = [
        {"image_id": 1, "category_id": 3, "bbox": box, "area": round(box[2] * box[3], 3) - loss}
        for box in boxes
        for loss in (0, 1)
    ]
    path = write_coco(write_three(tmp_path / "set") / "instances_train.json", [(1, "s/a.png", 200, 100)], rows)
    assert convert("coco", path.parent, "yolo_txt", tmp_path / "out")["lost"]["areas of masks: yolo_txt has none"] == 2
