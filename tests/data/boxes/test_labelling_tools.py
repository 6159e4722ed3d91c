"""Files of labelling tools from disk to samples: Pascal VOC and LabelMe, in their dialects and damaged."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sightline.areas.detect.sets.labelled_images import LabelledImages
from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.files.xml_files import read_xml
from sightline.store.prepared.prepared_set import verify
from tests.data.boxes.box_writers import pattern, quiet, write_image
from tests.long.mutations import mutated

Object = tuple[str, tuple[float, ...], bool]
SIZE = (48, 64)
OBJECTS: Mapping[str, list[Object]] = {
    "a": [("car", (4, 6, 24, 36), False), ("dog", (0, 0, 64, 48), True)],
    "b": [("car", (10.5, 20, 30, 40.25), False)],
    "c": [],
}


def write_voc(root: Path, objects: Mapping[str, list[Object]] = OBJECTS, *, more: str = "") -> Path:
    for name, rows in objects.items():
        write_image(root / "JPEGImages" / f"{name}.png", pattern(*SIZE))
        texts = "".join(
            f"<object>\n<name> {label} </name><difficult>{int(difficult)}</difficult><pose>Left</pose>"
            f"<bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
            for label, (x, y, right, bottom), difficult in rows
        )
        (root / "Annotations").mkdir(exist_ok=True)
        size = f"<size><width>{SIZE[1]}.0</width><height>{SIZE[0]}</height></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{more}{texts}</annotation>"
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


WRITERS: Mapping[str, Callable[..., Path]] = {"labelme": write_labelme, "voc": write_voc}


def prepare(name: str, source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return registry.data.get_entry(name).builder.prepare(
        source=source, target=target, name=name, progress=quiet, **options
    )


def all_of(name: str, root: Path) -> dict[str, list[tuple[str, list[float], bool]]]:
    """All boxes by the stem of the image."""
    images: LabelledImages = registry.data.get_entry(name).builder(
        split="train", root=str(root), test_share=0.0, validation_share=0.0
    )
    records = {Path(images.sample_name(index)).stem: images.record(index) for index in range(len(images))}
    return {
        stem: [
            (images.classes.names[label], box, ignored)
            for label, box, ignored in zip(each.label, each.boxes.tolist(), each.is_ignored.tolist(), strict=True)
        ]
        for stem, each in records.items()
    }


EXPECTED = {stem: [(label, [*map(float, box)], mark) for label, box, mark in rows] for stem, rows in OBJECTS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_boxes_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    source = WRITERS[name](tmp_path / "in")
    manifest = prepare(name, source, tmp_path / "set")
    assert all_of(name, tmp_path / "set") == EXPECTED
    assert manifest["classes"] == {"names": ["car", "dog"], "ids": [1, 2]}
    assert manifest["differences"] == []
    assert verify(tmp_path / "set") >= 3 + len([*source.rglob("*.xml"), *source.rglob("*.json")])
    assert registry.data.get_entry(name).builder.survey(source)["images"] == {"all": 3}
    for image in source.rglob("*.png"):
        image.unlink()
    with pytest.raises(
        DataError, match=r"3 images that are missing or damaged, first: .*there is no image '.*a\.png' below"
    ):
        prepare(name, source, tmp_path / "none")


def test_the_lists_of_voc_state_splits(tmp_path: Path) -> None:
    """Lists of classes are none of them; an image in no list is left out only if that is asked for."""
    root = write_voc(tmp_path / "in")
    write_image(root / "SegmentationClass" / "a.png", pattern(*SIZE))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "car_train.txt").write_text("a 1\nb -1\n")
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "test.txt").write_text('"c.png"\n\nd\n')
    with pytest.raises(DataError) as refused:
        prepare("voc", root, tmp_path / "set")
    assert f"{lists / 'test.txt'}:3: 'd' has no file in Annotations" in str(refused.value)
    assert "1 images in none of the lists that state splits, first: JPEGImages/b.png" in str(refused.value)
    (lists / "test.txt").write_text("c\n")
    (lists / "val.txt").write_text("b\n")
    assert prepare("voc", root, tmp_path / "set")["statistics"]["images"] == {"train": 1, "validation": 1, "test": 1}
    (lists / "val.txt").unlink()
    (lists / "train.txt").unlink()
    assert prepare("voc", root, tmp_path / "both")["statistics"]["images"] == {"train": 2, "test": 1}
    (lists / "test.txt").write_text("c\n\n")
    with pytest.raises(DataError, match=r"test\.txt: has 3 bytes, 2 when the set was prepared"):
        verify(tmp_path / "both")
    for name in ("test.txt", "trainval.txt"):
        (lists / name).unlink()
    (lists / "default.txt").write_text("a\n")
    assert prepare("voc", root, tmp_path / "all")["statistics"]["images"] == {"all": 3}
    (lists.with_name("Segmentation")).mkdir()
    (lists.with_name("Segmentation") / "train.txt").write_text("a\n")
    noted = prepare("voc", root, tmp_path / "other")["differences"]
    assert "1 lists are not read; put them into ImageSets/Main beside Annotations, first: " in " ".join(noted)


def test_voc_counts_pixels_from_1_and_tools_do_not(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "in", more="<source><database>The VOC2007 Database</database></source>")
    text = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<pose>", f"{text}<pose>", 1).replace("a.png", "another.jpg"))
    manifest = prepare("voc", root, tmp_path / "set")
    found = all_of("voc", tmp_path / "set")
    assert [box for _, box, _ in found["a"]] == [[3, 5, 24, 36], [-1, -1, 64, 48]]
    assert [note.partition(", first: ")[0] for note in manifest["differences"]] == [
        "1 files state another name than that of the image called as they are",
        "3 files are of the VOC database, which counts pixels from 1: read as from 0",
        "1 objects have parts, which are not read",
    ]


def test_splits_are_those_of_folders_and_of_the_nearest_image(tmp_path: Path) -> None:
    """As Roboflow exports VOC: the same names in train, valid and test, each beside its file."""
    for split in ("train", "valid", "test"):
        write_voc(tmp_path / "once", {"a": OBJECTS["a"], split: OBJECTS["b"]})
        (tmp_path / "in" / split).mkdir(parents=True)
        for path in [*(tmp_path / "once").rglob("*.xml"), *(tmp_path / "once").rglob("*.png")]:
            path.rename(tmp_path / "in" / split / path.name)
    assert prepare("voc", tmp_path / "in", tmp_path / "set")["statistics"]["images"] == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    (tmp_path / "in" / "train" / "a.png").unlink()
    with pytest.raises(DataError, match=r"train/a\.xml: states the image 'a\.png', which .* and .* may be; rename one"):
        prepare("voc", tmp_path / "in", tmp_path / "other")


def test_shapes_of_labelme_become_the_boxes_about_them(tmp_path: Path) -> None:
    def shape(kind: str | None, points: list[list[float]], **more: Any) -> dict[str, Any]:
        return {"label": "cell ", "points": points, "shape_type": kind, **more}

    shapes = [
        shape("polygon", [[2, 3], [9, 5], [4, 8]]),
        shape(None, [[1, 1], [5, 2], [3, 4]]),
        shape("circle", [[20, 20], [23, 24]]),
        shape("mask", [[30, 10], [39, 19]]),
        shape("rectangle", [[40, 4], [50, 4], [50, 9], [40, 9]], group_id=0, difficult=True),
        shape("polygon", [[44, 8], [60, 8], [44, 20]], group_id=0),
        shape("rectangle", [[0, 0], [1, 1]], group_id=0, label="other"),
        shape("point", [[5, 5]]),
        shape("linestrip", [[5, 5], [6, 7]]),
        shape("rectangle", [[5, 5], [5, 7]]),
        shape("rectangle", [[5, float("nan")], [5, 7]]),
        shape("rectangle", [[5, 5], [6, 7]], label=None),
        shape("rectangle", [["5", 5], [6, 7]]),
        shape("rectangle", [[5, 10**400], [6, 7]]),
        None,
    ]
    write_labelme(tmp_path / "in", {"a": []}, shapes=shapes, imageHeight=None, imageWidth=0)
    (tmp_path / "in" / "package.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"2 shapes that are no boxes, first: .*a\.json: shape 7: 'cell ' is a point; 6 imp"
    ):
        prepare("labelme", tmp_path / "in", tmp_path / "set")
    manifest = prepare("labelme", tmp_path / "in", tmp_path / "set", faulty="leave_out")
    boxes = [[2, 3, 9, 8], [1, 1, 5, 4], [15, 15, 25, 25], [30, 10, 40, 20], [40, 4, 60, 20]]
    expected = [("cell", [*map(float, box)], False) for box in boxes] + [("other", [0.0, 0.0, 1.0, 1.0], False)]
    assert all_of("labelme", tmp_path / "set") == {"a": expected}
    assert [note.partition(", first: ")[0] for note in manifest["differences"][:2]] == [
        "1 shapes are parts of an object by their group_id, in the box about all",
        "1 JSON files are not of LabelMe and are passed over",
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_no_image_is_left_out_unasked(name: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path / "in")
    write_image(root / "more" / "d.png", pattern(*SIZE))
    with pytest.raises(
        DataError, match=r"1 images that no annotation file is about, first: more/d\.png; correct them, or"
    ):
        prepare(name, root, tmp_path / "set")
    prepare(name, root, tmp_path / "set", faulty="leave_out")
    assert all_of(name, tmp_path / "set") == EXPECTED
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds nothing; .* has .*: give the folder with them"):
        prepare(name, tmp_path / "empty", tmp_path / "other")


FAULTS = {
    "twice": ("voc", ("<filename>a", "<filename>b"), "states the image 'b.png', and is called as"),
    "no box": ("voc", ("bndbox", "robndbox"), "a.xml:1: object 'car' (it has no bndbox, but name, difficult"),
    "no number": ("voc", ("<xmin>4<", "<xmin>four<"), "a.xml:1: object 'car' (xmin is 'four', a number is needed)"),
    "no name": ("voc", (" dog ", " "), "a.xml:3: object '' (it has no label)"),
    "no mark": (
        "voc",
        ("<difficult>1", "<difficult>x"),
        "'x' is neither 0 nor 1, which marks of difficult objects are",
    ),
    "upside down": ("voc", ("<xmin>4<", "<xmin>40<"), "object 'car' (width and height above 0"),
    "another size": ("voc", ("64.0", "65.0"), "1 images of another size than stated"),
    "half a pixel": ("voc", ("64.0", "64.5"), "a.xml: the size 64.5 x 48 is not one of whole pixels"),
    "no size": ("voc", ("64.0", "wide"), "a.xml: width is 'wide', a number is needed"),
    "cut": ("voc", ("</annotation>", ""), "a.xml:5: does not read as XML (no element found); export it again"),
    "entities": (
        "voc",
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'),
        "a.xml:1: has a DOCTYPE, whose",
    ),
    "encoding": (
        "voc",
        ("<annotation>", '<?xml version="1.0" encoding="gbk"?><annotation>'),
        "is text in another encod",
    ),
    "no JSON": ("labelme", ("}]", "}"), "a.json: does not read as JSON"),
    "no shapes": ("labelme", ("shapes", "figures"), "1 images that no annotation file is about"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named_with_file_and_line(kind: str, tmp_path: Path) -> None:
    name, change, told = FAULTS[kind]
    root = WRITERS[name](tmp_path / "in")
    [path] = [path for path in root.rglob("a.*") if path.suffix != ".png"]
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(DataError, match=re.escape(told)) as refused:
        prepare(name, root, tmp_path / "set")
    assert "\n" not in str(refused.value)
    prepare(name, root, tmp_path / "set", faulty="leave_out")
    assert all_of(name, tmp_path / "set")["b"] == EXPECTED["b"]


def test_no_entity_is_expanded(tmp_path: Path) -> None:
    """Nor in UTF-16, in which the word DOCTYPE is other bytes; deep documents are no error of Python's."""
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE a [<!ENTITY l0 "lol">{laughs}]><a>&l9;</a>'
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "a.xml").write_bytes(bomb.encode(encoding))
        with pytest.raises(DataError, match=r"a\.xml:1: has a DOCTYPE"):
            read_xml(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_bytes(b"<a>" * 100_000 + b"</a>" * 100_000)
    assert read_xml(tmp_path / "a.xml").tag == "a"


def write_yolo(root: Path) -> Path:
    """Key points without `kpt_shape`, a list of another folder, and a stated split that is found by its end."""
    for folder, name in (("train", "a"), ("train", "b"), ("val", "c")):
        image = write_image(root / folder / f"{name}.png", pattern(*SIZE))
        image.with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.6\n1 .5 .5 .25 .5\n")
    (root / "train.txt").write_text("data/train/a.png\ndata/train/b.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: ../set/val\nnames: [car, dog]\n")
    return root


def write_listed_voc(root: Path) -> Path:
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return write_voc(root)


MUTATED = [
    ("voc", write_listed_voc, "Annotations/a.xml"),
    ("voc", write_listed_voc, "ImageSets/Main/train.txt"),
    ("labelme", write_labelme, "labels/a.json"),
    ("yolo_txt", write_yolo, "train/a.txt"),
    ("yolo_txt", write_yolo, "train.txt"),
    ("yolo_txt", write_yolo, "data.yaml"),
]


@pytest.mark.parametrize("num_mutations", [20, pytest.param(400, marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "write", "file"), MUTATED)
def test_damaged_files_are_read_or_refused_in_a_line(
    name: str, write: Callable[[Path], Path], file: str, num_mutations: int, tmp_path: Path
) -> None:
    root = write(tmp_path / "in")
    sound, builder = (root / file).read_bytes(), registry.data.get_entry(name).builder
    messages, start = [], time.process_time()
    for number in range(num_mutations):
        (root / file).write_bytes(mutated(sound, random.Random(f"{file} {number}")))
        try:
            assert builder.survey(root)["images"]
        except DataError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert len(messages) < num_mutations
    assert time.process_time() - start < 60
