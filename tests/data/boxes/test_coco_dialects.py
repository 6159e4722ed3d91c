"""COCO's form as other tools write it: group categories, images elsewhere, sizes of zero; read alike everywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sightline.store.boxes.coco import read_coco
from sightline.store.boxes.convert import convert_labels
from sightline.store.boxes.label_table import LabelledSet
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.test_coco import BOX, ONE, prepare
from tests.data.preparing import refuse
from tests.limits import count_calls

ROOT = {"id": 0, "name": "cars", "supercategory": "none"}
CAR = {"id": 1, "name": "cars", "supercategory": "cars"}
TRUCK = {"id": 2, "name": "truck", "supercategory": "cars"}


def both(source: Path, target: Path, **options: Any) -> tuple[dict[str, Any], LabelledSet]:
    """What `data prepare` makes of a source, and the images that are listed for it."""
    return prepare(source, target, **options), read_coco(source, **{"annotations": None, "images": None, **options})


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    """Roboflow's root category: it was a class without boxes, or refused where a class has its name."""
    for number, (categories, names, notes) in enumerate(
        (
            ([ROOT, CAR, TRUCK], ("cars", "truck"), 1),
            ([ROOT | {"name": "all"}, CAR | {"supercategory": "all"}], ("cars",), 1),
            ([CAR, TRUCK], ("cars", "truck"), 0),  # has a box
            ([{"id": 1, "name": "person", "supercategory": "person"}, TRUCK], ("person", "truck"), 0),
        )
    ):
        for part in ("train", "val"):
            write_image(tmp_path / f"{number}/{part}/a.png", pattern(6, 8))
            boxes = [BOX | {"category_id": 1}] if part == "train" else []
            write_coco(tmp_path / f"{number}/{part}/_annotations.coco.json", ONE, boxes, categories=categories)
        manifest, labelled = both(tmp_path / f"{number}", tmp_path / f"set{number}")
        assert tuple(manifest["classes"]["names"]) == names
        assert labelled.classes == (names, tuple(manifest["classes"]["ids"]))
        found = [line for line in manifest["differences"] if "is no class: it groups others" in line]
        assert len(found) == notes
        assert found == [*labelled.notes]
    both_used = [BOX | {"category_id": number} for number in (0, 1)]
    write_coco(tmp_path / "3/train/_annotations.coco.json", ONE, both_used, categories=[ROOT, CAR])
    refuse(prepare, tmp_path / "3/train", "'cars' is the name of two classes; give every class a name of its own")


PLACES: dict[str, tuple[str, str, str, str]] = {
    "FiftyOne": ("labels.json", "a.png", "data/a.png", ""),
    "Label Studio": ("result.json", r"..\..\label-studio\media\upload\4\a.png", "images/a.png", "known by the end"),
    "Windows": ("x.json", r"C:\Users\me\data\images\a.png", "images/a.png", "known by the end"),
    "key points": ("annotations/person_keypoints_train.json", "a.png", "images/train/a.png", ""),
    "no suffix": ("x.json", "a", "photos/a.png", "known by the end"),
    "up and down": ("x.json", "../in/a.png", "a.png", ""),
    "same part": ("annotations/instances_val.json", "b/a.png", "val2017/c/a.png", "known by the end"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_images_are_found_where_other_tools_put_them(tmp_path: Path, kind: str) -> None:
    file, name, image, note = PLACES[kind]
    write_image(tmp_path / "in" / image, pattern(6, 8))
    write_coco(tmp_path / "in" / file, [(1, name, 8, 6)], [BOX])
    manifest, labelled = both(tmp_path / "in", tmp_path / "set")
    assert [each.name for each in labelled.images] == [image]
    assert manifest["differences"] == [*labelled.notes]
    assert note in "".join(labelled.notes)
    assert bool(note) == bool(labelled.notes)


def test_a_file_of_annotations_alone_has_its_photos_beside_its_folder(tmp_path: Path) -> None:
    """As COCO lays them out, by `..` in names, and in the folder that is stated; each can be converted, too."""
    root = tmp_path / "in"
    write_image(root / "val2017/a.png", pattern(6, 8))
    box = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]
    file = write_coco(root / "annotations/instances_val.json", [(1, "a.png", 8, 6)], box)
    up = write_coco(root / "annotations/up.json", [(1, "../val2017/a.png", 8, 6)], box)
    for source, images in ((file, None), (up, None), (file, "../val2017"), (file, str(root / "val2017"))):
        labels = read_coco(source, images=images)
        assert [(image.name, len(image.boxes)) for image in labels.images] == [("val2017/a.png", 1)]
        assert (labels.root, list(labels.notes)) == (root, [])
    for name in ("cvat", "voc"):
        convert_labels("coco", file, name, tmp_path / name, progress=quiet, images="../val2017")
        assert [path.name for path in (tmp_path / name).rglob("*.png")] == ["a.png"]


def test_images_that_fit_two_names_or_none_are_missing(tmp_path: Path) -> None:
    """No image is taken for another; `images=FOLDER` decides between two."""
    for name in ("one/a.png", "two/a.png", "test/b.png", "../c.png"):
        write_image(tmp_path / "in" / name, pattern(6, 8))
    for file, names, message in (
        ("x.json", ["k/a.png"], "1 images .* first: 'k/a.png': there is no such file in .*, and 2 images .* fit it"),
        ("x.json", ["k/b.png", "l/b.png"], "2 images .* first: 'k/b.png'.* and 1 images below .* fit it; get it, or"),
        ("train.json", ["b.png"], "there is no such file in .*/in; get it, or state the images' folder by images=FOLD"),
        ("x.json", ["../c.png"], "'../c.png': there is no such file in"),
        ("x.json", ["k/\0.png"], "there is no such file"),
    ):
        write_coco(tmp_path / "in" / file, [(n, name, 8, 6) for n, name in enumerate(names, start=1)], [BOX])
        refuse(prepare, tmp_path / "in", message, annotations=(file,))
        assert not read_coco(tmp_path / "in", annotations=(file,), images=None).images
    write_coco(tmp_path / "in/x.json", [(1, "k/a.png", 8, 6)], [BOX])
    _, labelled = both(tmp_path / "in", tmp_path / "set", annotations=("x.json",), images="two")
    assert [each.name for each in labelled.images] == ["two/a.png"]


@run_each(
    "name, is_there, told",
    [
        (
            "../other/a.png",
            True,
            "'../other/a.png' is .*/other/a.png, outside of .*/in, and a.png is another image; give",
        ),
        ("../other/a.png", False, "'../other/a.png' is .*/other/a.png, outside of"),
        ("../other/./a.png", False, ""),
    ],
)
def test_a_path_out_of_the_folder_takes_no_other_photo_of_that_name(
    name: str, is_there: bool, told: str, tmp_path: Path
) -> None:
    """Beside b.png, which is where its name says, a.png was taken for the one of the other folder."""
    root = tmp_path / name.replace("/", "_") / str(is_there)
    for number, photo in enumerate(("in/a.png", "in/b.png", *(["other/a.png"] if is_there else []))):
        write_image(root / photo, pattern(6, 8, number))
    if not told:
        write_image(root / "in/other/a.png", pattern(6, 8, 3))
    write_coco(root / "in/x.json", [(1, name, 8, 6), (2, "b.png", 8, 6)], [BOX])
    labels = read_coco(root / "in/x.json")
    assert len(labels.images) == 1 + (not told)
    assert re.search(told, "".join(labels.faults.raise_or_note("leave_out", root=root)))
    if is_there:
        (root / "in/x.json").rename(root / "x.json")
        write_coco(root / "in/x.json", [(1, name, 8, 6), (2, "b.png", 8, 6)], [BOX])
        assert {image.name for image in read_coco(root, annotations=("in/x.json",)).images} == {
            "other/a.png",
            "in/b.png",
        }
        write_image(root / "other/a.png", pattern(6, 8, 0))  # the same photo, of which the folder has a copy
        assert [image.name for image in read_coco(root / "in/x.json").images] == ["a.png", "b.png"]


def test_no_part_and_no_image_is_passed_over_in_silence(tmp_path: Path) -> None:
    """A file of train without its annotations, or beside instances_*.json, was passed over with all of its images."""
    for number, (file, lacking, told) in enumerate(
        (
            ("train/_annotations.coco.json", "categories", "lists of .* are needed, it has images, annotations;"),
            ("train/_annotations.coco.json", "annotations", "lists of .* are needed, it has images, categories;"),
            ("annotations/train.json", "", "others are called instances_.*, and alone are read;"),
        )
    ):
        source = tmp_path / str(number)
        for part in ("train", "val"):
            write_image(source / part / "a.png", pattern(6, 8))
        write_coco(source / "annotations/instances_val.json", [(1, "val/a.png", 8, 6)], [BOX])
        document = json.loads(write_coco(source / file, ONE, [BOX]).read_text("utf-8"))
        document.pop(lacking, None)
        (source / file).write_text(json.dumps(document), "utf-8")
        refuse(prepare, source, f"{file}: {told} no other is about its part")
        alone = prepare(source, tmp_path / f"set{number}", annotations=("annotations/instances_val.json",))
        assert alone["differences"] == []
        (source / file).unlink()
        write_coco(source / "annotations/image_info_test2017.json", ONE, []).write_text('{"images": []}', "utf-8")
        manifest, labelled = both(source, tmp_path / f"one{number}")
        left_out = [
            "1 images are in no annotation file and are left out, first: " + str(source.resolve() / "train/a.png")
        ]
        assert manifest["differences"] == [*labelled.notes] == left_out
        write_image(source / "val/b.png", pattern(6, 8))
        refuse(prepare, source, r"1 images that no annotation file names, first: .*val/b\.png; correct")


DOUBTS: dict[str, tuple[dict[str, Any], str]] = {
    "area of another image": (
        {"area": 9682},
        "1 areas contradict .*boxes, first: a.png: annotation 1: area is 9682, of a",
    ),
    "no area": ({"area": 0}, "1 areas contradict their boxes by far, .*area is 0, of a box of 20 x 30"),
    "area below 0": ({"area": -600}, "area is -600"),
    "area of whole pixels": ({"area": 651}, ""),
    "area of a thin mask": ({"area": 7}, ""),
    "area of a crowd": ({"area": 9682, "iscrowd": 1}, ""),
    "polygon elsewhere": (
        {"segmentation": [[40, 30, 60, 30, 60, 50], [45, 31, 50, 31, 50, 40]]},
        "1 boxes and their polygons are of different places; the boxes are read, first: a.png: annotation 1: bbox is "
        "10, 10, 20, 30, the box about the polygons 40, 30, 60, 50",
    ),
    "polygon of another size": ({"segmentation": [[10, 10, 20, 10, 20, 20]]}, "are of different places"),
    "polygon in the box": ({"segmentation": [[11, 12, 29, 12, 29, 40]]}, ""),
    "polygon that is cut": ({"segmentation": [[10, 10, 30, 10, 30, 32]]}, ""),
    "rounded polygon of a small box": ({"bbox": [1.4, 1.4, 1.2, 1.2], "segmentation": [[2, 2, 3, 2, 3, 3]]}, ""),
    "no polygon": ({"segmentation": {"counts": "x", "size": [60, 80]}}, ""),
    "text": ({"segmentation": [["a", "b"]]}, ""),
    "nothing": ({"segmentation": [[]]}, ""),
}
"""What an annotation with the box 10, 10, 20, 30 states, too, and the note on it."""


@run_each("kind", DOUBTS)
def test_annotations_that_contradict_themselves_are_counted(kind: str, tmp_path: Path) -> None:
    stated, told = DOUBTS[kind]
    write_image(tmp_path / kind / "a.png", pattern(60, 80))
    row = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 30], **stated}
    write_coco(tmp_path / kind / "x.json", [(1, "a.png", 80, 60)], [row])
    labels = read_coco(tmp_path / kind)
    assert len(labels.notes) == bool(told)
    assert re.search(told, "".join(labels.notes))
    areas = read_coco(tmp_path / kind, areas="boxes")
    assert not any("areas" in note for note in areas.notes)
    assert areas.images[0].boxes[0].area is None


def test_a_size_of_zero_is_not_stated(tmp_path: Path) -> None:
    """CVAT writes it where it exports no images."""
    write_image(tmp_path / "in/a.png", pattern(6, 8))
    for size in ((0, 0), (8, 0), (0, 6)):
        write_coco(tmp_path / "in/x.json", [(1, "a.png", *size)], [BOX])
        manifest, labelled = both(tmp_path / "in", tmp_path / f"set{size}")
        assert manifest["statistics"]["image_sizes"] == {"8x6": 1}
        assert labelled.images[0].size_px is None


def test_the_work_of_reading_grows_slowly(tmp_path: Path) -> None:
    """Calls per image and per box, which were 440 and 78 when images were listed three times."""

    def count(num_images: int, num_boxes: int) -> int:
        root = tmp_path / f"{num_images} {num_boxes}"
        names = [f"{number}.png" for number in range(num_images)]
        photo = write_image(root / "images/train/0.png", pattern(6, 8)).read_bytes()
        for name in names:
            (root / "images/train" / name).write_bytes(photo)
        box = {"category_id": 3, "bbox": [1.0, 1, 2, 2.5], "area": 5.0, "iscrowd": 0}
        boxes = [{**box, "image_id": number % num_images} for number in range(num_boxes)]
        (root / "annotations").mkdir()
        images = [(number, name, 8, 6) for number, name in enumerate(names)]
        write_coco(root / "annotations/instances_train.json", images, boxes)
        return count_calls(lambda: read_coco(root))

    few, many, with_boxes = count(10, 0), count(60, 0), count(60, 60)
    assert (many - few) / 50 < 260
    assert (with_boxes - many) / 60 < 70
