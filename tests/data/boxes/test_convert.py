"""Labels from each layout to each other, field by field, and the files that a conversion writes or refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sightline.areas.detect.sets.annotations import LabelledBox
from sightline.areas.detect.sets.convert import LAYOUTS, convert_annotations
from sightline.commands.data import _BOXES
from sightline.contract import registry
from sightline.contract.errors import DataError, RunError, UserError
from sightline.contract.types import SampleKey
from sightline.store.files.atomic_write import whole_folder
from sightline.store.prepared.prepared_set import verify
from tests.command import run_here
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.people_writers import write_citypersons
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


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "kitti"])
def test_labels_that_change_are_not_as_they_were_prepared(layout: str, tmp_path: Path) -> None:
    """Only images were compared: `data verify` found all in order, and runs went on with the old boxes."""
    root, name = source_of(layout, tmp_path / "in", tmp_path), {"odgt": "crowdhuman"}.get(layout, layout)
    builder = registry.data.get_entry(name).builder
    builder.prepare(source=root, target=tmp_path / "set", name=name, progress=quiet)
    unused = {"test.txt", "Annotations/011765.jpg.txt"}  # WiderPerson's, of which no sample is made
    files = [*({*labels(root)} - unused), *(path.name for path in root.glob("*.yaml"))]
    assert verify(tmp_path / "set") >= len(files)
    for path in (root / file for file in files):
        before, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_bytes(before + b" ")
        with pytest.raises(
            DataError, match=f"{path.name}: has {len(before) + 1} bytes, {len(before)} when the set was"
        ):
            verify(tmp_path / "set")
        path.write_bytes(before)
        os.utime(path, ns=times)
    images = builder(split="train", root=str(tmp_path / "set"), validation_share=0.0)
    assert images[SampleKey(0, 0, 0)]["boxes"].shape[1] == 4


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


def test_boxes_of_a_pixel_keep_an_extent_in_whole_pixels(tmp_path: Path) -> None:
    """11.5 and 12.5 are both rounded to 12: what was written was refused as an impossible box."""
    boxes = [[11.5, 5, 1, 1], [10.1, 5, 0.3, 9], [2, 3, 4, 0.2], [4, 4, 2.6, 2.4]]
    write_image(tmp_path / "in/a.png", pattern(32, 64))
    rows = [{"image_id": 1, "category_id": 3, "bbox": box} for box in boxes]
    write_coco(tmp_path / "in/instances_some.json", [(1, "a.png", 64, 32)], rows)
    convert_annotations(tmp_path / "in", "coco", tmp_path / "out", "widerperson")
    [image] = LAYOUTS["widerperson"].read(tmp_path / "out").images
    assert [box.boxes["full"] for box in image.boxes] == [(12, 5, 1, 1), (10, 5, 1, 9), (2, 3, 4, 1), (4, 4, 3, 2)]


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


# --- Converted labels keep one place for each image, whatever images are called; a folder is whole or absent ---


ODD_NAMES = (
    *("v1.0/im0.png", "v1.0/im1.png", "v1.1/im0.png", "a.b.png", "a b.png", "a\nb.png", "c.png\n.png", "d\u2028e.png"),
    *("ü.png", "u\u0308x.png", "😀.png", "f\udcff.png", "images/g.png", "g/images/h.png", "labels/i.png", "#.png"),
    *("CON.PNG", "-.jpeg", "1e5.png", "0001.png", "x.jpg.png", "%20.png", "'\".png", "k/k/k/k.png", "img/l.png"),
    *("image_2/m.png", "f\udcff/n.png", " /o.png", "p /q.png", "train/r.png/s.png"),
)


def written_coco(root: Path, names: Sequence[str], *, form: str = "PNG") -> Path:
    """Images of these names, the n-th with a person n pixels wide."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pattern(32, 64)).save(root / name, form)
    rows: list[dict[str, Any]] = [
        {"image_id": number, "category_id": 3, "bbox": [2, 3, number, 7]} for number in range(1, len(names) + 1)
    ]
    images = [(number, name, 64, 32) for number, name in enumerate(names, start=1)]
    return write_coco(root / "instances_some.json", images, rows).parent


def widths(layout: str, root: Path) -> Counter[float]:
    """The widths of the boxes that are found for images that are there."""
    found = LAYOUTS[layout].read(root)
    assert found.faults.raise_or_note("refuse", root=root) == []
    assert all(image.path is not None and image.path.is_file() for image in found.images)
    return Counter(round(box.boxes["full"][2], 6) for image in found.images for box in image.boxes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_label_is_lost_whatever_images_are_called(tmp_path: Path, layout: str) -> None:
    """A name that a layout has no room for is refused; all labels of the others come back, each of its image."""
    taken = []
    for number, name in enumerate(ODD_NAMES):
        source, target = tmp_path / f"in{number}", tmp_path / f"out{number}"
        written_coco(source, (name,))
        try:
            convert_annotations(source, "coco", target, layout)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - one line
            assert "rename" in str(error)  # noqa: PT017
            assert not target.exists()
        else:
            taken.append(name)
            assert widths(layout, target) == {1: 1}, name
    refused = {*ODD_NAMES} - {*taken}
    assert refused <= {"a\nb.png", "c.png\n.png", "f\udcff.png", "f\udcff/n.png", "x.jpg.png"}, layout
    names = tuple(name for name in taken if Path(name).stem not in ("g", "h", "im0", "m"))
    convert_annotations(written_coco(tmp_path / "all", names), "coco", tmp_path / "together", layout)
    assert widths(layout, tmp_path / "together") == Counter(range(1, len(names) + 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_backslashes_in_names_of_coco_divide_folders(tmp_path: Path, layout: str) -> None:
    """As `data prepare` reads them: the conversion called such an image missing, and its labels `k\\a.txt`."""
    source = written_coco(tmp_path / "in", ("k/a.png", "k/b.png"))
    text = (source / "instances_some.json").read_text()
    (source / "instances_some.json").write_text(text.replace("k/", r"k\\"))
    convert_annotations(source, "coco", tmp_path / "out", layout)
    assert widths(layout, tmp_path / "out") == {1: 1, 2: 1}


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        *((layout, ("a.jpg", "a.png")) for layout in LAYOUTS if layout != "coco"),
        *((layout, ("x/a.png", "x/a.PNG")) for layout in LAYOUTS if layout != "coco"),
        *((layout, ("x/a.png", "y/a.png")) for layout in ("odgt", "kitti", "widerperson", "citypersons")),
        ("ecp", ("day/img/train/x/a.png", "day/img/train/x/a.jpg")),
        ("yolo_txt", ("b", "images/b/a.png")),
        ("coco", ("a.png", "conversion.json")),
    ],
)
def test_two_images_never_share_labels(tmp_path: Path, layout: str, names: Sequence[str]) -> None:
    """One label was lost, and the other given to both."""
    with pytest.raises(DataError, match="in this layout; rename") as caught:
        convert_annotations(written_coco(tmp_path / "in", names), "coco", tmp_path / "out", layout)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_names_without_an_ending_keep_their_labels(tmp_path: Path) -> None:
    """`v1.0/im0` and `v1.0/im1` shared labels/v1.txt; the labels of `im2` took the place of the image."""
    names = ("v1.0/im0", "v1.0/im1", "im2", "v2.5", "v2.6")
    source = written_coco(tmp_path / "in", names)
    [note] = convert_annotations(source, "coco", tmp_path / "yolo", "yolo_txt")["differences"]
    assert note == "5 images have no suffix of an image, so readers skip them, first: images/im2"
    rows = {
        path.relative_to(tmp_path / "yolo/labels").as_posix(): float(path.read_text().split()[3])
        for path in (tmp_path / "yolo/labels").rglob("*.txt")
    }
    assert rows == {f"{name}.txt": number / 64 for number, name in enumerate(names, start=1)}
    assert all((tmp_path / "yolo/images" / name).samefile(source / name) for name in names)
    for layout in ("kitti", "widerperson", "ecp", "citypersons"):
        convert_annotations(source, "coco", tmp_path / layout, layout)
        assert widths(layout, tmp_path / layout) == Counter(range(1, 6))


def test_photographs_that_are_stored_turned_keep_their_boxes(tmp_path: Path) -> None:
    """Shares of YOLO are about the picture as viewers turn it: here 20 wide and 10 high, stored 10 wide."""
    image = write_image(tmp_path / "in/a.png", pattern(20, 10), orientation=6)
    image.with_suffix(".txt").write_text("0 .5 .5 .5 .2\n")
    (tmp_path / "in/classes.txt").write_text("person\n")
    convert_annotations(tmp_path / "in", "yolo_txt", tmp_path / "coco", "coco")
    document = json.loads((tmp_path / "coco/instances.json").read_text())
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (20, 10)
    assert document["annotations"][0]["bbox"] == [5, 4, 10, 2]
    assert convert_annotations(tmp_path / "coco", "coco", tmp_path / "back", "yolo_txt")["differences"] == []
    assert (tmp_path / "back/labels/a.txt").read_text() == "0 0.5 0.5 0.5 0.2\n"
    document["images"][0] |= {"width": 10, "height": 20}
    (tmp_path / "coco/instances.json").write_text(json.dumps(document))
    [note] = convert_annotations(tmp_path / "coco", "coco", tmp_path / "stored", "yolo_txt")["differences"]
    assert note.startswith("1 images have boxes in stored pixels")
    assert convert_annotations(tmp_path / "coco", "coco", tmp_path / "again", "coco")["differences"] == []


def test_ids_that_are_not_ids_are_numbered_anew(tmp_path: Path) -> None:
    """A line of .odgt may state an 'id' of its own: COCO's are whole numbers, each once, and count from 1."""
    for number, stated in enumerate(([{}], [{}, {}], [{"id": "x"}], [{"id": 4}, {"id": 4}], [{"id": 4}, {"id": 9}])):
        source = tmp_path / f"in{number}"
        lines = []
        for place, each in enumerate(stated):
            write_image(source / f"{place}.jpg", pattern(8, 8))
            lines.append(json.dumps({"ID": str(place), "gtboxes": [], **each}) + "\n")
        (source / "all.odgt").write_text("".join(lines))
        convert_annotations(source, "odgt", tmp_path / f"out{number}", "coco")
        document = json.loads((tmp_path / f"out{number}" / "instances.json").read_text())
        expected = [4, 9] if number == 4 else [*range(1, len(stated) + 1)]
        assert [image["id"] for image in document["images"]] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_in_names_move_no_image_to_another_part(tmp_path: Path, layout: str) -> None:
    """An ECP frame called train_1 in the folder of validation was trained on."""
    source = written_coco(tmp_path / "in", ("train_1.png", "valley/test.png", "k/trained.png", "k/9.png"))
    (source / "instances_some.json").rename(source / "instances_val.json")
    report = convert_annotations(source, "coco", tmp_path / "out", layout)
    assert report["images"] == {"validation": 4}
    expected = "all" if layout == "kitti" else "validation"  # one part alone has no folder of its own there
    assert [image.split for image in LAYOUTS[layout].read(tmp_path / "out").images] == [expected] * 4


def test_images_that_some_splits_hold_are_refused_before_labels_are_lost(tmp_path: Path) -> None:
    """WiderPerson's `train.txt` was written for both, and COCO's `instances.json` is not read beside others."""
    for name in ("images/a.png", "images/train/b.png"):
        write_image(tmp_path / "in" / name, pattern(32, 64)).with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "in/classes.txt").write_text("person\n")
    for layout in LAYOUTS:
        with pytest.raises(DataError, match=r"1 images, first 'images/a\.png', belong to no split, the others"):
            convert_annotations(tmp_path / "in", "yolo_txt", tmp_path / "out", layout)


def test_two_cities_with_one_name_keep_their_own_boxes(tmp_path: Path) -> None:
    """Images were found by name alone: both cells had the boxes of the other."""
    source = write_citypersons(tmp_path / "in", train={"ulm_0.png": [[1, 2, 3, 4, 9, 0, 2, 3, 4, 9]]})
    pictures = source / "leftImg8bit"
    write_image(pictures / "val/ulm/ulm_0.png", pattern(8, 8))
    assert widths("citypersons", source) == {4: 1}
    [image] = LAYOUTS["citypersons"].read(source).images
    assert image.path == pictures / "train/ulm/ulm_0.png"
    (pictures / "train").rename(pictures / "other")
    found = LAYOUTS["citypersons"].read(source)
    with pytest.raises(DataError, match=r"there are 2 images 'ulm_0\.png' below"):
        found.faults.raise_or_note("refuse", root=source)


@pytest.mark.parametrize(
    ("splits", "train", "val"),
    [
        ((".",), "images", "images"),
        (("train",), "images/train", "images/train"),
        (("train", "val"), "images/train", "images/val"),
        (("train", "test"), "images/train", None),
        (("val",), None, "images/val"),
    ],
)
def test_a_file_of_names_is_as_trainers_ask_for_it(
    tmp_path: Path, splits: Sequence[str], train: str | None, val: str | None
) -> None:
    """Ultralytics asks for both keys and for folders from where the file lies, and reads it by PyYAML."""
    names = ["person", "ü", "😀 hat", 'a "b" \\ c', "x: y\n#", "a\xa0b", "no"]
    for split in splits:
        image = write_image(tmp_path / "in/images" / split / "a.png", pattern(32, 64))
        label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("2 .5 .5 .5 .5\n")
    (tmp_path / "in/data.yaml").write_text(json.dumps({"names": names}, ensure_ascii=False), encoding="utf-8")
    convert_annotations(tmp_path / "in", "yolo_txt", tmp_path / "out", "yolo_txt")
    text = (tmp_path / "out/data.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert text.isascii()
    assert document["names"] == dict(enumerate(names))
    assert (document["train"], document["val"]) == (train, val)
    assert "path" not in document
    assert all((tmp_path / "out" / folder).is_dir() for key, folder in document.items() if folder and key != "names")
    before, after = (
        {image.name: (image.split, image.boxes) for image in LAYOUTS["yolo_txt"].read(root).images}
        for root in (tmp_path / "in", tmp_path / "out")
    )
    assert before == after


def test_a_folder_in_the_source_is_refused(tmp_path: Path) -> None:
    source = written_coco(tmp_path / "in", ("a.png",))
    (tmp_path / "link").symlink_to(source)
    for path in (source / "out", source / "a" / "b", tmp_path / "link" / "out"):
        with pytest.raises(UserError, match=r"data convert: .* is in .*/in, whose files would then be read"):
            convert_annotations(source, "coco", path, "yolo_txt")
    assert sorted(path.name for path in source.iterdir()) == ["a.png", "instances_some.json"]
    for name in ("one", "two"):  # of a file alone, nothing beside it is read but its images
        convert_annotations(source / "instances_some.json", "coco", source / name, "yolo_txt")
        assert widths("yolo_txt", source / name) == {1: 1}


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written_coco(tmp_path / "in", ("a.png", "b.png", "c.png"))
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", sync)
        done = run_here("data", "convert", "--from", str(source), "--layout", "coco", "--to", str(tmp_path / "out"),
                        "--as", "yolo_txt")  # fmt: skip
    assert done.code != 0
    assert "Traceback" not in done.err
    assert "out.partial: cannot write: no space left on device; free some space" in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    long = written_coco(tmp_path / "long", (f"{'x' * 249}.png",))
    with pytest.raises(RunError, match=r"cannot write: file name too long"):
        convert_annotations(long, "coco", tmp_path / "out", "widerperson")
    convert_annotations(long, "coco", tmp_path / "out", "yolo_txt")
    assert widths("yolo_txt", tmp_path / "out") == {1: 1}


def test_two_writers_and_killed_ones(tmp_path: Path) -> None:
    """A folder is held by one process; what a killed one left is begun anew, what others left is not touched."""
    target, work = tmp_path / "out", tmp_path / "out.partial"
    with whole_folder(target) as folder:
        assert folder == work / "content"
        (folder / "one").write_text("1")
        code = "import sys, pathlib; from sightline.store.files.atomic_write import whole_folder\n"
        code += "with whole_folder(pathlib.Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
        assert "another process writes this folder; wait for it" in other.stderr
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["one"]
    with pytest.raises(UserError, match=r"out: exists and is not empty"), whole_folder(target):
        pass
    assert not work.exists()
    (target / "one").unlink()
    work.mkdir()
    (work / "diary").write_text("dear")
    with pytest.raises(UserError, match=r"out\.partial: is not unfinished work"), whole_folder(target):
        pass
    (work / "unfinished.json").write_text('{"what": ""}')
    (work / "content").mkdir()
    (work / "content" / "half").touch()
    with whole_folder(target):
        assert list((work / "content").iterdir()) == []
    assert list(target.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), whole_folder(target):
        raise KeyboardInterrupt
    assert not work.exists()
