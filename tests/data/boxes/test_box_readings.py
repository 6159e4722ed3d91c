"""Boxes that are other numbers than they are read as, that are there twice, or text: named before they are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from sightline.areas.detect.sets.coco import Coco
from sightline.areas.detect.sets.image_listing import AnnotationFaults
from sightline.areas.detect.sets.people import WiderPerson
from sightline.areas.detect.sets.people_files import PeopleFiles, read_crowdhuman, read_ecp
from sightline.areas.detect.sets.records import BoxForm, ShownBoxes, box_notes
from sightline.areas.detect.sets.yolo_txt import YoloTxt
from sightline.contract.errors import DataError
from tests.command import run_here
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.people_writers import write_ecp, write_widerperson

CORNERS: Mapping[str, Callable[..., tuple[float, ...]]] = {
    "corner, size": lambda a, b, c, d: (a, b, a + c, b + d),
    "middle, size": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "two corners": lambda a, b, c, d: (a, b, c, d),
}
STATED: Mapping[str, Callable[..., tuple[float, ...]]] = {
    "corner, size": lambda a, b, c, d: (a, b, c - a, d - b),
    "middle, size": lambda a, b, c, d: ((a + c) / 2, (b + d) / 2, c - a, d - b),
    "two corners": lambda a, b, c, d: (a, b, c, d),
}
WORDS = {
    "corner, size": "left, top, width, height",
    "middle, size": "middle x, middle y, width, height",
    "two corners": "left, top, right, bottom",
}


def shown_as(boxes: np.ndarray, stated_as: str, read_as: str, *, is_exchanged: bool = False) -> ShownBoxes:
    """Boxes of 640 x 480 pictures, four a picture, written in one form and read in another, each by itself."""
    rows = []
    for box in boxes.tolist():
        a, b, c, d = STATED[stated_as](*box)
        rows.append(CORNERS[read_as](*((b, a, d, c) if is_exchanged else (a, b, c, d))))
    count = len(boxes)
    return ShownBoxes(
        np.array(rows).reshape(-1, 4), np.tile([640, 480], (count, 1)), np.arange(count) // 4, np.zeros(count, int)
    )


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    size = rng.uniform(20, 200, (count, 2))
    first = rng.uniform(0, 1, (count, 2)) * ([640, 480] - size)
    return np.concatenate([first, first + size], axis=1)


@pytest.mark.parametrize("form", get_args(BoxForm))
def test_another_form_is_named_and_a_true_one_never(form: BoxForm) -> None:
    """Over 30 random sets of 80 boxes; and of people whose feet are cut off, a third of all, none is suspected."""
    names = [f"{number}.png" for number in range(20)]
    for seed in range(30):
        boxes = random_boxes(np.random.default_rng(seed), 80)
        assert box_notes(shown_as(boxes, form, form), names, form) == []
        amodal = boxes.copy()
        amodal[::3, 3] = 480 + 100.0
        assert box_notes(shown_as(amodal, form, form), names, form) == []
        for other in CORNERS:
            if other == form:
                continue
            found = shown_as(boxes, other, form)
            if (found.boxes[:, 2:] <= found.boxes[:, :2]).any():
                continue  # refused before, as impossible boxes
            [line] = box_notes(found, names, form)
            assert f"read as {WORDS[form]}, they look like {WORDS[other]}: read so, 0 do" in line
        if form != "middle, size":
            [line] = box_notes(shown_as(boxes, form, form, is_exchanged=True), names, form)
            assert f"they look like {WORDS[form]} with x and y exchanged: read so, 0 do" in line


def test_few_boxes_are_not_suspected() -> None:
    """Two beyond their images, whatever else they may be; without any box nothing is said."""
    for count in (0, 1, 2):
        boxes = np.tile([300.0, 200, 500, 400], (count, 1))
        found = shown_as(boxes, "two corners", "corner, size")
        found = found._replace(labels=np.arange(count))
        assert box_notes(found, ["a.png"], "corner, size") == []


def test_boxes_of_shares_are_named() -> None:
    """They were boxes of less than a pixel, without a word."""
    boxes = random_boxes(np.random.default_rng(0), 80) / [640, 480, 640, 480]
    for form in ("two corners", "corner, size"):
        [line] = box_notes(shown_as(boxes, form, form), [f"{number}.png" for number in range(20)], form)
        assert line.startswith("all 80 boxes lie in the first pixel of their images: shares of their sides?")


def coco_of(root: Path, rows: list[dict[str, Any]]) -> Path:
    for number in range(4):
        write_image(root / f"{number}.png", pattern(48, 64))
    return write_coco(root / "labels.json", [(number, f"{number}.png", 64, 48) for number in range(4)], rows).parent


def test_prepare_and_info_warn(tmp_path: Path) -> None:
    """By the command: corners for sizes, a box that is there twice, and annotations with one id."""
    rows = [
        {"image_id": number, "category_id": 3, "bbox": [30 + step, 20, 50, 40 + step]}
        for number in range(4)
        for step in range(3)
    ]
    rows += [{**rows[5]}, {**rows[5], "category_id": 7}, {**rows[2], "id": 1, "iscrowd": 1}]
    source = coco_of(tmp_path / "in", rows)
    for words in (("info", "coco", "--from"), ("prepare", "coco", "--to", tmp_path / "set", "--from")):
        done = run_here("data", *words, source)
        assert done.code == 0, done.err
        told = " ".join((done.out + done.err).split())
        assert "14 of 14 boxes reach beyond their images, first in 0.png: read as left, top, width, height, th" in told
        assert "they look like left, top, right, bottom: read so, 0 do; convert them" in told
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


def faults_of(read: Callable[[Path], PeopleFiles], root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root).faults.raise_or_note("refuse", root=root)
    return str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"bbox": ["1", "2", "3", "4"]},
        {"bbox": [1, 2, "3", 4]},
        {"bbox": "1234"},
        {"bbox": [True, 2, 3, 4]},
        {"iscrowd": "0"},
        {"ignore": "no"},
        {"area": "12"},
    ],
)
def test_text_in_place_of_numbers_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    """`float` takes '1', and any text but '' counts as a mark."""
    row = {"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4], **changed}
    source = coco_of(tmp_path / "in", [row])
    with pytest.raises(DataError, match=r"1 impossible boxes, first: 0\.png: annotation 1"):
        Coco.prepare(source=source, target=tmp_path / "set", name="coco", progress=quiet)


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
    refused = run_here("data", "prepare", "coco", *words)
    assert refused.code != 0
    assert f"prepare with faulty=leave_out; {report} lists all" in refused.err
    lines = report.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *["impossible boxes"] * 4,
        "annotations of images that are not in the file",
    ]
    assert all(f"{number}.png: annotation {number + 1}" in lines[number] for number in range(4))
    report.unlink()
    done = run_here("data", "prepare", "coco", *words, "faulty=leave_out")
    assert done.code == 0, done.err
    assert report.read_text().splitlines() == lines
    assert "left out: 4 impossible boxes, first: 0.png: annotation 1: " in done.err
    assert "; a file called as the set, and .faults.txt, lists all" in " ".join(done.err.split())
    coco_of(tmp_path / "in", good)
    assert run_here("data", "prepare", "coco", "--from", source, "--to", tmp_path / "new" / "set").code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]
    faults = AnnotationFaults()
    faults.add("kind", "one")
    report.write_text("of before")
    assert faults.raise_or_note("leave_out", root=tmp_path, target=tmp_path / "set") == ["left out: 1 kind, first: one"]
    assert not report.exists()
