"""YOLO's text files from disk to samples: the real coco128, every layout, rows and impossible names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.areas.detect.sets.formats import YoloTxt
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes.yolo_txt import read_yolo
from sightline.store.prepared.prepared_set import verify
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, quiet, write_image
from tests.data.preparing import list_other_notes, refuse


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return YoloTxt.prepare(source=source, target=target, name="yolo_txt", progress=quiet, **options)


def all_of(root: Path) -> YoloTxt:
    return YoloTxt(split="train", root=str(root), test_share=0.0, validation_share=0.0)


@pytest.fixture(scope="module")
def real_images_and_set(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The real images, and the set that is prepared from them."""
    root = tmp_path_factory.mktemp("coco128") / "set"
    refuse(prepare, shared / "data" / "coco128", r"2 text files without an image, first: .*/000000000656\.txt")
    prepare(shared / "data" / "coco128", root, faulty="leave_out")
    return shared / "data" / "coco128", root


@pytest.mark.shared
def test_real_images_are_counted_as_their_files_say(real_images_and_set: tuple[Path, Path]) -> None:
    source, root = real_images_and_set
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        images = YoloTxt(split=split, root=str(root), validation_share=0.0)
        names = {path.stem for path in (source / "images" / folder).iterdir()}
        texts = [path.read_text() for path in (source / "labels" / folder).glob("*.txt") if path.stem in names]
        rows = [row.split() for text in texts for row in text.splitlines()]
        assert len(images) == len(names) == 128
        records = [images.record(index) for index in range(len(images))]
        found = Counter(label for record in records for label in record.label.tolist())
        assert found == Counter(int(row[0]) for row in rows)
        assert images.info.facts["class_names"][:3] == ("person", "bicycle", "car")
        assert len(images.info.facts["class_names"]) == 80


@pytest.mark.shared
def test_a_real_sample_is_that_of_a_plain_reader(real_images_and_set: tuple[Path, Path]) -> None:
    """Boxes worked out row by row in Python's own numbers; pixels from Pillow without anything of ours."""
    source, root = real_images_and_set
    images = YoloTxt(split="test", root=str(root))
    for index in (0, 17, 100):
        path = source / images.sample_name(index)
        with Image.open(path) as image:
            width, height = image.size
            pixels = np.asarray(image.convert("RGB"))
        rows = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt").read_text().splitlines()
        expected = []
        for row in rows:
            _, x, y, wide, high = map(float, row.split())
            expected.append(
                [(x - wide / 2) * width, (y - high / 2) * height, (x + wide / 2) * width, (y + high / 2) * height]
            )
        sample = images[SampleKey(index, 0, 0)]
        assert np.array_equal(sample["image"], pixels)
        np.testing.assert_allclose(sample["truth"][:, :4], np.array(expected).reshape(-1, 4), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(sample["boxes"], np.array(expected).reshape(-1, 4), rtol=1e-6)


def labelled(path: Path, text: str = "0 .5 .5 .5 .5") -> None:
    """An image of 20 x 10 pixels with the text beside it."""
    write_image(path, pattern(10, 20)).with_suffix(".txt").write_text(text)


def write_tree(root: Path, layout: str) -> None:
    """Two images to train on and one to test on, of 10 x 20 pixels, each with a box of class 0 or 1."""
    for split, name in (("train", "a"), ("train", "b"), ("valid", "c")):
        image = {
            "images first": root / "images" / split,
            "split first": root / split / "images",
            "beside": root / split,
        }[layout]
        write_image(image / f"{name}.png", pattern(10, 20))
        text = image if layout == "beside" else Path(str(image).replace("/images", "/labels"))
        text.mkdir(parents=True, exist_ok=True)
        (text / f"{name}.txt").write_text(f"{int(name == 'a')} 0.5 0.5 0.25 0.5\n")


@pytest.mark.parametrize("layout", ["images first", "split first", "beside"])
@pytest.mark.parametrize("names", ["data.yaml", "classes.txt", "stated"])
def test_layouts_are_recognised(tmp_path: Path, layout: str, names: str) -> None:
    write_tree(tmp_path / "in", layout)
    texts = {"data.yaml": "names: {0: person, 4: dog, 1: rider}\n", "classes.txt": "person\nrider\ndog\n \n\n"}
    if names in texts:
        (tmp_path / "in" / names).write_text(texts[names])
    stated = {"names": ("person", "rider", "dog")} if names == "stated" else {}
    prepare(tmp_path / "in", tmp_path / "set", **stated)
    images = YoloTxt(split="train", root=str(tmp_path / "set"), validation_share=0.0)
    assert images.info.split_sizes == {"train": 2, "test": 1}
    assert images.classes == (("person", "rider", "dog"), (0, 1, 4 if names == "data.yaml" else 2))
    assert [images.record(index).label.tolist() for index in range(2)] == [[1], [0]]
    assert images.record(0).boxes.tolist() == [[7.5, 2.5, 12.5, 7.5]]
    assert images.record(0).area.tolist() == [25]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("9", "0010", "7"), {"9": 9, "0010": 10, "7": 7}),
        (("9", "a", "7"), {"7": 1, "9": 2, "a": 3}),
        (("1", "01"), {"01": 1, "1": 2}),
    ],
)
def test_images_called_by_numbers_have_these_for_ids(tmp_path: Path, names: tuple[str, ...], ids: dict) -> None:
    for name in names:
        labelled(tmp_path / "in" / f"{name}.png")
    prepare(tmp_path / "in", tmp_path / "set", names=("person",))
    images = all_of(tmp_path / "set")
    assert {Path(images.sample_name(index)).stem: images.image(index).image_id for index in range(len(images))} == ids


@pytest.mark.parametrize("listed", [False, True])
def test_splits_are_those_of_the_file_of_names(tmp_path: Path, listed: bool) -> None:
    root = tmp_path / "in"
    for folder, name in (("one", "a"), ("two", "b"), ("three", "c")):
        write_image(root / "images" / folder / f"{name}.png", pattern(10, 20))
    (root / "labels" / "one").mkdir(parents=True)
    (root / "labels" / "one" / "a.txt").write_text("0 .5 .5 .5 .5")
    (root / "list.txt").write_bytes(b"./images/two/b.png\r\n\r\n")
    test = "list.txt" if listed else "images/two"
    (root / "data.yaml").write_text(f"path: ../datasets/mine\ntrain: ../images/one\ntest: {test}\nnames: [person]\n")
    left_out = f"1 images in none of the splits that {root / 'data.yaml'} states, first: images/three/c.png"
    refuse(prepare, root, re.escape(f"{root}: {left_out}; correct them, or leave them out by"))
    manifest = prepare(root, tmp_path / "set", faulty="leave_out")
    assert manifest["statistics"]["images"] == {"train": 1, "test": 1}
    assert list_other_notes(manifest) == [
        "1 images have no text file and count as empty, first: images/two/b.png",
        f"left out: {left_out}",
    ]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("images/train/test_01.png", "train"),
        ("images/train/valley.png", "train"),
        ("images/val2017/train_03.png", "test"),
        ("train/images/testing_ground/a.png", "train"),
        ("mytest/my_train_images/val.png", "train"),
        ("images/test.png", "all"),
    ],
)
def test_words_in_names_of_images_move_none_to_another_part(tmp_path: Path, path: str, split: str) -> None:
    """A photograph of a train in the folder of validation was trained on."""
    labelled(tmp_path / "in" / path)
    assert YoloTxt.plan(tmp_path / "in", target=tmp_path / "set", progress=quiet, names=("a",)).shards[0].split == split


@pytest.mark.parametrize(
    "line", ["a.png\n\n  \nb.png\n\n", "../images/a.png\n./../images/b.png", "{link}/a.png\n{root}/images/b.png"]
)
def test_lists_name_images_with_blank_lines_from_other_folders_and_through_links(tmp_path: Path, line: str) -> None:
    """They were refused as missing images, a blank line as that of the folder itself."""
    root, link = tmp_path / "in", tmp_path / "link"
    for name in ("a", "b"):
        labelled(root / "images" / f"{name}.png")
    os.symlink(root / "images", link)
    (root / "images" / "list.txt").write_text(line.format(link=link, root=root))
    (root / "data.yaml").write_text(f"train: images/list.txt\ntest: {link}/more\nnames: [person]\n")
    write_image(root / "images" / "more" / "c.png", pattern(10, 20))
    manifest = prepare(root, tmp_path / "set")
    assert manifest["statistics"]["images"] == {"train": 2, "test": 1}
    assert list_other_notes(manifest) == ["1 images have no text file and count as empty, first: images/more/c.png"]


def test_folders_that_are_stated_and_not_there_are_named(tmp_path: Path) -> None:
    """A path that YAML reads as a number is the text of it, as Ultralytics' loader takes it."""
    root = tmp_path / "in"
    for split, name in (("train", "a"), ("2023", "b")):
        labelled(root / "2024" / split / f"{name}.png")
    (root / "data.yaml").write_text("path: 2024\ntrain: train\nval: [gone, 2023]\ntest: 7\nnames: [person]\n")
    missing = (
        f"2 stated splits that are not there, first: {root / 'data.yaml'} states test: 7, which is not below {root}"
    )
    with pytest.raises(
        DataError, match=re.escape(f"{root}: {missing}; correct them, or leave them out by faulty=leave_out;")
    ):
        prepare(root, tmp_path / "set")
    assert "states val: gone, which" in (tmp_path / "set.faults.txt").read_text()
    manifest = prepare(root, tmp_path / "set", faulty="leave_out")
    assert manifest["statistics"]["images"] == {"train": 1, "test": 1}, "without test images those of val are tested"
    assert [line[: len(missing) + 10] for line in list_other_notes(manifest)] == [f"left out: {missing}"]


ROBOFLOW = {
    "its API": ("../{split}/images", "project-name/{split}/images", "project-name/{split}/images"),
    "another machine": ("/home/me/set/{split}/images",) * 3,
    "Windows": (r"C:\Users\me\set\{split}\images", r"..\{split}\images", r"{split}\images"),
    "all right": ("../{split}/images",) * 3,
}


@pytest.mark.parametrize("kind", ROBOFLOW)
def test_splits_that_are_stated_elsewhere_are_found_by_the_end_of_their_paths(tmp_path: Path, kind: str) -> None:
    """8 of 10 images were left out with exit code 0, and no part to train on remained."""
    root, counts = tmp_path / "in", {"test": 2, "train": 6, "valid": 2}
    for split, count in counts.items():
        for number in range(count):
            write_image(root / split / "images" / f"{split}{number}.png", pattern(10, 20))
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{split}{number}.txt").write_text("0 .5 .5 .5 .5")
    stated = {key: path.format(split=key) for key, path in zip(counts, ROBOFLOW[kind], strict=True)}
    lines = [f"{key.replace('valid', 'val')}: {path}\n" for key, path in stated.items()]
    (root / "data.yaml").write_text("names: [car]\n" + "".join(lines))
    notes = [
        f"{root / 'data.yaml'} states {key.replace('valid', 'val')}: {path}; {key}/images is read for it"
        for key in ("train", "test", "valid")
        if not (path := stated[key]).startswith("..") and path != rf"{key}\images"
    ]
    manifest = prepare(root, tmp_path / "set")
    assert manifest["statistics"]["images"] == {"train": 6, "validation": 2, "test": 2}
    assert list_other_notes(manifest) == notes
    (root / "data.yaml").write_text("names: [car]\n" + "".join(lines[1:]) + "test: elsewhere/images\n")
    refuse(prepare, root, r"1 stated splits that are not there, .* 2 images in none of the splits that")


def test_one_folder_does_not_stand_for_two_stated_ones(tmp_path: Path) -> None:
    root = tmp_path / "in"
    labelled(root / "images" / "a.png")
    (root / "data.yaml").write_text("train: /old/one/images\nval: /old/two/images\nnames: [car]\n")
    refuse(prepare, root, r"1 stated splits that are not there, first: .* states val: /old/two/images")


@pytest.mark.parametrize(
    "row", ["data/obj_train_data/{name}", r"C:\cvat\obj_train_data\{name}", r".\obj_train_data\{name}"]
)
def test_lists_of_cvat_and_of_windows_name_images_by_the_end_of_their_rows(tmp_path: Path, row: str) -> None:
    root = tmp_path / "in"
    for name in ("a.png", "b.png"):
        labelled(root / "obj_train_data" / name)
    rows = [row.format(name=name) for name in ("a.png", "b.png")]
    (root / "train.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: data/train.txt\nnames: [car]\n")
    manifest = prepare(root, tmp_path / "set")
    assert manifest["statistics"]["images"] == {"train": 2}
    first = f"{rows[0]}; obj_train_data/a.png is read for it"
    assert list_other_notes(manifest) == [
        f"{root / 'data.yaml'} states train: data/train.txt; train.txt is read for it",
        *([f"{root / 'train.txt'}: 2 images are stated in other folders, first: {first}"] if row[0] != "." else []),
    ]


def test_a_data_file_of_darknet_states_splits(tmp_path: Path) -> None:
    """As CVAT exports YOLO 1.1: the lists of obj.data were passed over, and no part was tested."""
    for name in ("a", "b"):
        labelled(tmp_path / f"in/obj_train_data/{name}.png")
        (tmp_path / f"in/{name}.txt").write_text(f"data/obj_train_data/{name}.png\n")
    (tmp_path / "in/obj.names").write_text("car\n")
    stated = "classes = 1\ntrain = data/a.txt\nvalid = data/b.txt\nnames = data/obj.names\n"
    (tmp_path / "in/obj.data").write_text(stated)
    assert prepare(tmp_path / "in", tmp_path / "set")["statistics"]["images"] == {"train": 1, "test": 1}
    for name in ("obj.data", "obj.names", "b.txt"):
        path = tmp_path / "in" / name
        before, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        path.write_bytes(before + b" ")
        with pytest.raises(DataError, match=f"{name}: has {len(before) + 1} bytes, {len(before)} when the set was"):
            verify(tmp_path / "set")
        path.write_bytes(before)
        os.utime(path, ns=times)
    (tmp_path / "in/b.txt").unlink()
    refuse(prepare, tmp_path / "in", r"1 stated splits that are not there, first: .*obj\.data states val: data/b")


@run_each("text", ["labels/a.TXT", "more/a.txt", "labels/a.png.txt", "images/labels/a.txt"])
def test_a_text_file_in_another_place_does_not_make_its_image_empty(text: str, tmp_path: Path) -> None:
    """The image counted as one without boxes, beside others whose text files were found."""
    root = tmp_path / text.replace("/", "_")
    for name in ("a", "b"):
        write_image(root / f"images/{name}.png", pattern(10, 20))
    for path in (text, "labels/b.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("0 .5 .5 .5 .5")
    told = rf"1 text files without an image, first: .*{re.escape(text)}; correct"
    refuse(prepare, root, told, names=("car",))
    (root / "labels/b.txt").unlink()
    with pytest.raises(DataError, match=rf"none of 2 images has a text file .*; .*/{re.escape(text)} is elsewhere, or"):
        prepare(root, tmp_path / "set", names=("car",))


def test_lists_of_another_machine_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "in"
    labelled(root / "a.png")
    (root / "list.txt").write_text("/home/me/a.png\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [person]\n")
    refuse(prepare, root, "the splits that it states hold none of the 1 images")
    (root / "list.txt").write_text("/home/me/a.png\n./a.png\n")
    refuse(prepare, root, r"1 images that are missing or damaged, first: /home/me/a\.png, which")


@pytest.mark.parametrize("listed", [False, True])
def test_paths_that_lead_to_the_folder_by_a_link_are_below_it(tmp_path: Path, listed: bool) -> None:
    """As on a machine where /data is a link to a disk: the file of names states its folder as users know it."""
    root, link = tmp_path / "disk" / "in", tmp_path / "data"
    for split in ("train", "test"):
        labelled(root / "images" / split / "a.png")
        (root / f"{split}.txt").write_text(f"{link}/in/images/{split}/a.png\n")
    link.symlink_to(tmp_path / "disk")
    train, test = ("train.txt", "test.txt") if listed else (link / "in/images/train", link / "in/images/test")
    (root / "data.yaml").write_text(f"train: {train}\ntest: {test}\nnames: [person]\n")
    manifest = prepare(link / "in", tmp_path / "set")
    assert manifest["statistics"]["images"] == {"train": 1, "test": 1}
    assert "passed over" not in "".join(manifest["differences"])


def test_one_folder_for_two_splits_is_never_tested_on(tmp_path: Path) -> None:
    """As in the published coco128.yaml, whose val is its train."""
    root = tmp_path / "in"
    for name in "abcde":
        labelled(root / "images" / "train" / f"{name}.png")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\ntest:\nnames: [person]\n")
    manifest = prepare(root, tmp_path / "set")
    assert list_other_notes(manifest) == [
        f"{root}/data.yaml: train and val state the same 5 images, so that none would be left to test on; "
        "sightline draws splits of its own from them, by data.test_share=0.2 and data.validation_share=0.1; state "
        "other images for val and test to choose them"
    ]
    split_sizes = YoloTxt(split="train", root=str(tmp_path / "set")).info.split_sizes
    assert split_sizes == {"train": 3, "validation": 1, "test": 1}
    labelled(root / "images" / "valid" / "f.png")  # a key that trainers need names the folder of another one
    (root / "data.yaml").write_text("train: images/valid\nval: images/valid\ntest: images/train\nnames: [person]\n")
    labels = read_yolo(root)
    assert {image.split for image in labels.images} == {"validation", "test"}
    assert labels.notes == [
        "1 images are stated for train and val and count for the one that their folder is called as, else the first, "
        f"first: {root}/images/valid/f.png"
    ]
    (root / "data.yaml").write_text("train: images/valid\nval: images/valid\nnames: [person]\n")
    assert {image.split for image in read_yolo(root).images} == {"all"}, "not of validation alone"


def test_photographs_are_turned_as_viewers_turn_them(tmp_path: Path) -> None:
    stored = pattern(10, 20)
    write_image(tmp_path / "in" / "a.png", stored, orientation=8)
    (tmp_path / "in" / "a.txt").write_text("0 0.25 0.5 0.5 1.0\n")
    prepare(tmp_path / "in", tmp_path / "set", names=("person",))
    images = all_of(tmp_path / "set")
    assert np.array_equal(images[SampleKey(0, 0, 0)]["image"], np.rot90(stored, k=1))
    assert images.record(0).boxes.tolist() == [[0, 0, 5, 20]]  # the left half of 10 x 20, wide and high
    assert "are turned as their EXIF orientation says" in images._prepared.manifest["differences"][0]


ROWS = {
    "0 0.5 0.5 0.25": "class, centre x, centre y, width and height, or class and corners, are needed",
    "0 0.5 0.5 0.25 0.25 0.9": "a sixth number is a score, which labels have not, or an angle: take it out, or write",
    "0 0.5 0.5 0.25 0.25 -37.5": "the four corners of the turned box, class x1 y1 x2 y2",
    "0 0.5 0.5 0.25 0.25 0.1 0.2 0.3": "or class and corners, are needed",
    "0 5 5 10 10": "shares of the image from 0 to 1 are needed, not pixels",
    "0 0.5 0.5 -0.25 0.5": "shares of the image",
    "0 0.5 0.5 0.0 0.5": "width and height above 0",
    "0 nan 0.5 0.1 0.5": "finite shares",
    "0.5 0.5 0.5 0.1 0.5": "a whole number",
    "person 0.5 0.5 0.1 0.5": "could not convert",
    "7 0.5 0.5 0.1 0.5": "class 7 of 1",
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_that_cannot_be_meant_are_named_or_left_out(tmp_path: Path, row: str) -> None:
    labelled(tmp_path / "in" / "a.png", f"0 .5 .5 .1 .1\n\n{row}\n0 0.1 0.2 0.5 0.2 0.5 0.4\n")
    refuse(prepare, tmp_path / "in", f"1 impossible rows, first: .*a.txt:3: .*{ROWS[row]}", names=("person",))
    prepare(tmp_path / "in", tmp_path / "set", names=("person",), faulty="leave_out")
    assert all_of(tmp_path / "set").record(0).boxes[1].tolist() == [2, 2, 10, 4]  # about a polygon's corners


def test_key_points_after_a_box_are_no_corners(tmp_path: Path) -> None:
    """Of an even number of values the box was that about all of them, as of the corners of a polygon."""
    labelled(tmp_path / "in" / "a.png", "0 .5 .5 .2 .4 .9 .1 2 .1 .9 0\n0 .5 .5 .2 .4\n0 .5 .5 .2 .4 .9 .1 .1 .9\n")
    (tmp_path / "in" / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [tiger]\n")
    prepare(tmp_path / "in", tmp_path / "set")
    assert all_of(tmp_path / "set").record(0).boxes.tolist() == [[8, 3, 12, 7]] * 3


PLANAR = "0 0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.4 0.5 0.5 0.45 0.6"
LONG_ROWS = {
    "points in their box, which cross as a polygon": (f"{PLANAR}\n{PLANAR}\n0 .5 .5 .2 .4\n", "", [8, 3, 12, 7]),
    "a point that is not labelled": ("0 .5 .5 .2 .4 .45 .4 0 0 .5 .5 .45 .6\n", "", [8, 3, 12, 7]),
    "stated polygons": (PLANAR, "kpt_shape: [0, 2]\n", [4, 4, 11, 6]),
    "stated key points": ("0 .5 .5 .2 .4 .5 .5\n", "kpt_shape: [1, 2]\n", [8, 3, 12, 7]),
    "a point beyond the box": (f"{PLANAR}\n0 .5 .5 .2 .4 .45 .4 .55 .4 .5 .5 .45 .9\n", "", [4, 4, 11, 6]),
    "rows of other lengths": (f"{PLANAR}\n0 .5 .5 .2 .4 .45 .4 .55 .4 .5 .5\n", "", [4, 4, 11, 6]),
    "a closed polygon at the left": ("0 .1 .2 .5 .2 .5 .4 .1 .4 .1 .2\n", "", [2, 2, 10, 4]),
}
"""Rows, what the YAML file states besides the names, and the first box in an image of 20 x 10."""


@pytest.mark.parametrize("case", LONG_ROWS)
def test_long_rows_are_key_points_where_all_of_them_show_it(tmp_path: Path, case: str) -> None:
    rows, stated, box = LONG_ROWS[case]
    labelled(tmp_path / "in" / "a.png", rows)
    (tmp_path / "in" / "data.yaml").write_text(f"{stated}names: [tiger]\n")
    prepare(tmp_path / "in", tmp_path / "set")
    assert all_of(tmp_path / "set").record(0).boxes[0].round(4).tolist() == box
    notes = [note for note in read_yolo(tmp_path / "in").notes if "count as boxes with 4 key points" in note]
    assert len(notes) == ("cross" in case or "not labelled" in case)


def test_rows_that_are_key_points_as_well_as_polygons_are_refused(tmp_path: Path) -> None:
    """A square in the middle of a photo is a box of 0.6 x 0.4 with two points in it, too."""
    labelled(tmp_path / "in" / "a.png", "0 .5 .4 .6 .4 .6 .5 .5 .5\n")
    for stated, box in (("[2, 2]", [4, 2, 16, 6]), ("[0, 2]", [10, 4, 12, 5])):
        (tmp_path / "in" / "data.yaml").write_text("names: [tiger]\n")
        with pytest.raises(DataError, match=rf"a.txt:1; both fit: .*'kpt_shape: {re.escape(stated)}'"):
            read_yolo(tmp_path / "in")
        (tmp_path / "in" / "data.yaml").write_text(f"names: [tiger]\nkpt_shape: {stated}\n")
        prepare(tmp_path / "in", tmp_path / stated)
        assert all_of(tmp_path / stated).record(0).boxes[0].round(4).tolist() == box


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refuse(prepare, tmp_path / "in", "there is no such folder, no image")
    write_image(tmp_path / "in" / "a.png", pattern(10, 20))
    refuse(prepare, tmp_path / "in", r"nothing names the classes: .*state 'names=\[a, b\]'")
    refuse(prepare, tmp_path / "in", "none of 1 images has a text file", names=("person",))
    (tmp_path / "in" / "a.txt").write_text("")
    write_image(tmp_path / "in" / "train" / "b.png", pattern(10, 20))
    with pytest.raises(DataError, match=r"1 images, first 'a\.png', belong to no split, the others to train"):
        prepare(tmp_path / "in", tmp_path / "set", names=("person",))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("train: [[images]]\nnames: [a]", r"data\.yaml: train: found \['images'\], the path of a folder, or a list"),
        ("val: [images, true]\nnames: [a]", r"data\.yaml: val: found True, the path of a folder"),
        ("test: {a: b}\nnames: [a]", r"data\.yaml: test: found \{'a': 'b'\}, the path of a folder"),
        ("path: {a: 8}\nnames: [a]", r"data\.yaml: path: found \{'a': 8\}, the path of a folder"),
        ("names: {a: b}", r"data\.yaml: names needs a list of names, or a name for each of some whole numbers"),
        ("names: {-1: b}", r"data\.yaml: names needs"),
        ("names: {0: a, 00: b}", r"data\.yaml: names needs"),
        ("names: [a, [b]]", r"data\.yaml: names needs"),
        ("names: [a, ~]", r"data\.yaml: names needs"),
        ("<<: {names: [a]}\nnames: [b]", r"data\.yaml:1: merge keys \(<<\) are not read; write the entries out"),
    ],
)
def test_a_file_of_names_is_read_strictly(tmp_path: Path, lines: str, told: str) -> None:
    write_image(tmp_path / "images/a.png", pattern(8, 8))
    (tmp_path / "data.yaml").write_text(lines)
    with pytest.raises(DataError, match=told):
        YoloTxt.survey(tmp_path)


def test_names_are_read_as_they_stand_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    """Before, `no` and 010 were False and 8, as in YAML 1.1; a YAML file of another tool refused the set."""
    labelled(tmp_path / "a.png", "2 0.5 0.5 0.25 0.5\n")
    (tmp_path / "data.yaml").write_text('names: [no, 010, "\\ud83d\\ude00", 3]\n')
    (tmp_path / "another.yaml").write_text("services: !include x\n<<: 5\n")
    assert list(YoloTxt.survey(tmp_path)["boxes_per_class"]) == ["no", "010", "\U0001f600", "3"]
    YoloTxt.prepare(source=tmp_path, target=tmp_path.with_name("set"), name="yolo_txt", progress=quiet)


def test_two_files_that_differ_and_text_of_another_encoding_are_refused(tmp_path: Path) -> None:
    """The first by name was read; a file of UTF-16 gave classes of replacement characters."""
    labelled(tmp_path / "a.png")
    for name, text in (("a.yaml", "names: [dog]"), ("data.yaml", "names: [car]")):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"a\.yaml and .*data\.yaml state other names or splits; keep one of them"):
        YoloTxt.survey(tmp_path)
    (tmp_path / "a.yaml").write_text("path: elsewhere\nnames: [car]")
    assert [*YoloTxt.survey(tmp_path)["boxes_per_class"]] == ["car"]
    for name in ("a.yaml", "data.yaml"):
        (tmp_path / name).unlink()
    for content, words in (
        ("car".encode("utf-16"), r": is not UTF-8 text \(byte 0\); save it as UTF-8"),
        (b"car\r\n\r\nperson\r\ndog\r\n", ":2: is empty; write one class name a line"),  # 2 would be dog, not person
    ):
        (tmp_path / "classes.txt").write_bytes(content)
        with pytest.raises(DataError, match=rf"classes\.txt{words}"):
            YoloTxt.survey(tmp_path)


def test_links_are_followed_once(tmp_path: Path) -> None:
    labelled(tmp_path / "disk" / "bild ü.png")
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "in" / "far")
    os.symlink(tmp_path / "in", tmp_path / "in" / "loop")
    prepare(tmp_path / "in", tmp_path / "set", names=("person",))
    images = all_of(tmp_path / "set")
    assert [images.sample_name(index) for index in range(len(images))] == ["far/bild ü.png"]
    assert np.array_equal(images[SampleKey(0, 0, 0)]["image"], pattern(10, 20))


def test_the_file_of_names_stands_for_its_folder(tmp_path: Path) -> None:
    """As trainers take it: it was refused with the folder's name. Of two files the given one counts."""
    write_rows(tmp_path / "in", ["0 .5 .5 .5 .5", "1 .5 .5 .5 .5"])
    for name, given in (("set", "in/data.yaml"), ("same", "in")):
        prepare(tmp_path / given, tmp_path / name)
    assert name_boxes(all_of(tmp_path / "set")) == name_boxes(all_of(tmp_path / "same")) == ["apple", "pear"]
    (tmp_path / "in" / "other.yaml").write_text("names: [nut, fig, kiwi]\n")
    refuse(prepare, tmp_path / "in", r"data\.yaml and .*other\.yaml state other names or splits")
    prepare(tmp_path / "in" / "other.yaml", tmp_path / "other")
    assert name_boxes(all_of(tmp_path / "other")) == ["nut", "fig"]
    refuse(prepare, tmp_path / "in" / "images" / "0.txt", "is a file; give the folder around images and labels: --from")


def write_rows(root: Path, rows: Sequence[str], names: str = "names: [apple, pear, plum]\n") -> None:
    """An image for each text of rows, a file of names, and no parts."""
    for number, text in enumerate(rows):
        labelled(root / "images" / f"{number}.png", text)
    (root / "data.yaml").write_text(names)


def name_boxes(images: YoloTxt) -> list[str]:
    labels = [label for index in range(len(images)) for label in images.record(index).label.tolist()]
    return [images.classes.names[label] for label in labels]


FROM_ONE = [f"{label} .5 .5 .5 .5" for label in (1, 2, 3, 3)]
"""Rows of four images whose ids count from 1: an apple, a pear and two plums."""


@run_each("faulty", ["refuse", "leave_out"])
def test_ids_that_count_from_1_are_refused_and_never_take_the_next_name(faulty: str, tmp_path: Path) -> None:
    """Boxes of the last class were a fault to leave out; left out, every apple was a pear, and exit code 0."""
    write_rows(tmp_path / "in", FROM_ONE)
    told = "4 rows seem to count from 1: there are 3 classes, no row has id 0, and 2 have id 3; state first_id=1 to"
    refuse(prepare, tmp_path / "in", told, faulty=faulty)


NAMES = "names: [apple, pear, plum]\n", "names: {0: apple, 1: pear, 2: plum}\n", "names: {1: apple, 2: pear, 3: plum}\n"


@pytest.mark.parametrize("names", NAMES)
def test_ids_are_read_from_1_where_it_is_stated(names: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in", FROM_ONE, names)
    manifest = prepare(tmp_path / "in", tmp_path / "set", first_id=1)
    images = all_of(tmp_path / "set")
    assert name_boxes(images) == ["apple", "pear", "plum", "plum"]
    notes = [note for note in manifest["differences"] if "count from 1" in note]
    assert notes == (["class ids of rows count from 1: 1 is 'apple'"] if "{1" not in names else [])


def test_ids_from_0_may_lack_the_first_class(tmp_path: Path) -> None:
    """Stated, or with a highest id that is none of the last class's neighbours."""
    write_rows(tmp_path / "in", FROM_ONE)
    refuse(prepare, tmp_path / "in", r"2 impossible rows, first: .*class 3 of 3\); correct", first_id=0)
    manifest = prepare(tmp_path / "in", tmp_path / "set", first_id=0, faulty="leave_out")
    assert any(note.startswith("left out: 2 impossible rows") for note in manifest["differences"])
    assert name_boxes(all_of(tmp_path / "set")) == ["pear", "plum"]
    write_rows(tmp_path / "some", FROM_ONE[:2])
    prepare(tmp_path / "some", tmp_path / "set2")
    assert name_boxes(all_of(tmp_path / "set2")) == ["pear", "plum"]
    write_rows(tmp_path / "more", [*FROM_ONE, "4 .5 .5 .5 .5"])
    refuse(prepare, tmp_path / "more", r"3 impossible rows, first: .*class 3 of 3\)")
    refuse(prepare, tmp_path / "more", r"1 impossible rows, first: .*class 4 of 3, counted from 1\)", first_id=1)
