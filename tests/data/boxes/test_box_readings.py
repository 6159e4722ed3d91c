"""Boxes that are there twice, or text, and lists of faults: named before they are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.areas.detect.sets.formats import YoloTxt
from sightline.areas.detect.sets.people import WiderPerson
from sightline.contract.errors import DataError
from sightline.store.boxes.label_table import AnnotationFaults, LabelledSet
from sightline.store.boxes.people.crowdhuman import read_crowdhuman
from sightline.store.boxes.people.ecp import read_ecp
from tests.command import refuse, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.people_writers import write_ecp, write_widerperson


def coco_of(root: Path, rows: list[dict[str, Any]]) -> Path:
    for number in range(4):
        write_image(root / f"{number}.png", pattern(48, 64))
    return write_coco(root / "labels.json", [(number, f"{number}.png", 64, 48) for number in range(4)], rows).parent


def test_prepare_and_info_warn(tmp_path: Path) -> None:
    """By the command, of a box that is there twice."""
    rows = [
        {"image_id": number, "category_id": 3, "bbox": [30 + step, 20, 50, 40 + step]}
        for number in range(4)
        for step in range(3)
    ]
    rows += [{**rows[5]}, {**rows[5], "category_id": 7}, {**rows[2], "id": 1, "iscrowd": 1}]
    source = coco_of(tmp_path / "in", rows)
    for words in (("info", "coco", "--from"), ("prepare", "coco", "--to", tmp_path / "set", "--from")):
        done = succeed("data", *words, source)
        told = " ".join((done.out + done.err).split())
        assert "1 boxes are there once more with the same class, first in 1.png: 32, 20, 82, 62 (left, top, ri" in told


def test_labels_of_several_images_and_images_listed_twice_are_noted(tmp_path: Path) -> None:
    """YOLO's a.txt is that of a.png and of a.jpg; WiderPerson's list names an image twice."""
    for name in ("a.png", "a.jpg", "b.png"):
        write_image(tmp_path / "yolo" / name, pattern(8, 8))
        (tmp_path / "yolo" / f"{name[0]}.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "yolo/classes.txt").write_text("person\n")
    [note] = YoloTxt.survey(tmp_path / "yolo")["differences"]
    assert note.startswith("1 text files are those of several images, which all have their boxes, first: ")
    source = write_widerperson(tmp_path / "wider", train={"a": [[1, 1, 1, 5, 5]], "b": []})
    (source / "train.txt").write_text("a\nb\na\n")
    assert WiderPerson.survey(source)["differences"] == [
        "1 images are listed more than once in one split, first: Images/a.jpg"
    ]


def faults_of(read: Callable[[Path], LabelledSet], root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root).faults.raise_or_note("refuse", root=root)
    return str(caught.value)


def test_text_in_boxes_of_other_layouts_is_refused(tmp_path: Path) -> None:
    person = {"tag": "person", "fbox": ["1", 2, 3, 4]}
    (tmp_path / "a.odgt").write_text(json.dumps({"ID": "a", "gtboxes": [person]}))
    assert "1 impossible boxes" in faults_of(read_crowdhuman, tmp_path)
    person = {"tag": "person", "fbox": [1, 2, 3, 4], "extra": {"ignore": "0"}}
    (tmp_path / "a.odgt").write_text(json.dumps({"ID": "a", "gtboxes": [person]}))
    with pytest.raises(DataError, match="and their ignore a number"):
        read_crowdhuman(tmp_path)
    child = {"identity": "pedestrian", "x0": "1", "y0": 2, "x1": 3, "y1": 4, "tags": []}
    write_ecp(tmp_path / "ecp", {"day/train/a/a_0": [child]})
    assert "1 impossible boxes" in faults_of(read_ecp, tmp_path / "ecp")


def test_a_file_lists_every_fault(tmp_path: Path) -> None:
    """The line names the first of each kind; the file beside the set has one line for each, and goes with them."""
    bad = [{"image_id": number, "category_id": 3, "bbox": [1, 2, 0, 4]} for number in range(4)]
    other = [{"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4]}]
    good = [{"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}]
    source = coco_of(tmp_path / "in", [*bad, *other, *good])
    report, words = tmp_path / "set.faults.txt", ("--from", source, "--to", tmp_path / "set")
    assert f"leave them out by faulty=leave_out; {report} lists all" in refuse("data", "prepare", "coco", *words)
    lines = report.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *["impossible boxes"] * 4,
        "annotations of images that are not in the file",
    ]
    assert all(f"{number}.png: annotation {number + 1}" in lines[number] for number in range(4))
    report.unlink()
    done = succeed("data", "prepare", "coco", *words, "faulty=leave_out")
    assert report.read_text().splitlines() == lines
    assert "left out: 4 impossible boxes, first: 0.png: annotation 1: " in done.err
    assert "; a file called as the set, and .faults.txt, lists all" in " ".join(done.err.split())
    coco_of(tmp_path / "in", good)
    succeed("data", "prepare", "coco", "--from", source, "--to", tmp_path / "new" / "set")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]
    faults = AnnotationFaults()
    faults.add("kind", "one")
    report.write_text("of before")
    assert faults.raise_or_note("leave_out", root=tmp_path, target=tmp_path / "set") == ["left out: 1 kind, first: one"]
    assert not report.exists()
