"""Names of images and classes through every format of boxes: none is lost, and what has no name there is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.contract.errors import DataError
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.test_convert import FORMATS, convert, read

ODD_NAMES = (
    *(
        "v1.0/im0.png",
        "a.b.png",
        "c d.png",
        "ü.png",
        "u\u0308x.png",
        "😀.png",
        "images/g.png",
        "g/images/h.png",
        "#.png",
        "w/Annotations/w.png",
    ),
    *("labels/i.png", "CON.PNG", "-.jpeg", "1e5.png", "0001.png", "%20.png", "'\".png", "k/k/k/k.png", "img/l.png"),
    *("image_2/m.png", " /o.png", "p /q.png", "train/r.png/s.png", "val/t.png", "test_u.png", "day/img/val/x/y.png"),
)


ODD_CLASSES = ("a\u2028b", "c\x85d", "e\x7ff", "😀: #", 'g"\\u', "yes", "h, i", "Car", "car", "\x01")


def write_odd_classes(root: Path) -> Path:
    """A box of every class but the last, which no XML file can name."""
    write_image(root / "a.png", pattern(16, 32))
    rows = [{"image_id": 1, "category_id": n, "bbox": [n, 1, 3, 4]} for n in range(1, len(ODD_CLASSES))]
    categories = [{"id": number, "name": name} for number, name in enumerate(ODD_CLASSES, start=1)]
    return write_coco(root / "instances_train.json", [(1, "a.png", 32, 16)], rows, categories=categories).parent


@run_each(
    "name, num_renamed, is_last_lost",
    [("coco", 0, 0), ("yolo_txt", 0, 0), ("cvat", 2, 1), ("labelme", 2, 1), ("kitti_boxes", 4, 1)],
)
def test_classes_keep_their_names_or_are_counted(
    name: str, num_renamed: int, is_last_lost: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("classes")
    lost = convert("coco", write_odd_classes(folder / "in"), name, folder / "out")["lost"]
    found = [box.class_name for box in read(name, folder / "out")["a"][1]]
    assert sum(new != old for new, old in zip(found, ODD_CLASSES, strict=False)) == num_renamed
    assert sum(count for line, count in lost.items() if " calls them " in line) == num_renamed
    assert lost.get(f"classes without boxes: {name} has none", 0) == is_last_lost


@run_each("name", FORMATS)
def test_no_label_is_lost_whatever_images_are_called(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The n-th image has a box n pixels wide, and it is a training image, whatever words its path has."""
    folder = tmp_path_factory.mktemp("odd")
    for image in ODD_NAMES:
        write_image(folder / "in" / image, pattern(16, 64))
    images = [(number, image, 64, 16) for number, image in enumerate(ODD_NAMES, start=1)]
    rows = [{"image_id": number, "category_id": 3, "bbox": [2, 3, number, 7]} for number, *_ in images]
    write_coco(folder / "in" / "instances_train.json", images, rows)
    convert("coco", folder / "in", name, folder / "out")
    found = read(name, folder / "out")
    widths = {
        stem: [round(box.box[2] - box.box[0], 6) for box in boxes if box.box] for stem, (_, boxes) in found.items()
    }
    assert widths == {Path(image).stem: [number] for number, image, *_ in images}
    assert {split for split, _ in found.values()} == {"train"}


def annotated(*names: str, splits: Sequence[str] = ("train",)) -> Any:
    """Images under these names, each with another box, in each of some splits."""

    def write(root: Path) -> Path:
        for name in names:
            write_image(root / name, pattern(8, 8))
        images = [(number, name, 8, 8) for number, name in enumerate(names, start=1)]
        rows = [{"image_id": number, "category_id": 3, "bbox": [1, 1, number, 2]} for number, *_ in images]
        for split in splits:
            write_coco(root / f"instances_{split}.json", images, rows)
        return root

    return write


def some_images(*names: str) -> Any:
    def write(root: Path) -> Path:
        for name in names:
            write_image(root / name, pattern(8, 8))
        images = [(number, name, 8, 8) for number, name in enumerate(names, start=1)]
        return write_coco(root / "labels.json", images, []).parent

    return write


@run_each(
    "names, name, new_names",
    [
        (("x/a.png", "y/a.png", "b.png"), "crowdhuman", {"Images/x_a.png", "Images/y_a.png", "Images/b.png"}),
        (("x/a.png", "y/a.jpg"), "kitti_boxes", {"image_2/x_a.png", "image_2/y_a.jpg"}),
        (("a.png", "a.jpg"), "yolo_txt", {"images/a_png.png", "images/a_jpg.jpg"}),
        (("x/a.png", "x/a.jpg"), "voc", {"JPEGImages/x/a_png.png", "JPEGImages/x/a_jpg.jpg"}),
        (
            ("x/a.png", "y/a.png", "y/a.jpg"),
            "kitti_boxes",
            {"image_2/x_a.png", "image_2/y_a_png.png", "image_2/y_a_jpg.jpg"},
        ),
    ],
)
def test_equal_names_in_two_folders_are_joined_to_these(
    names: Sequence[str], name: str, new_names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """They stopped the conversion; no photo and no box is lost, and renamed ones are counted."""
    folder = tmp_path_factory.mktemp("joined")
    source = annotated(*names)(folder / "in")
    counts = convert("coco", source, name, folder / "out")
    photos = {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*g")}
    assert {path.replace("train/", "").replace("training/", "") for path in photos} == new_names
    renamed = [count for what, count in counts["lost"].items() if "are joined to their names" in what]
    assert renamed == [len([name for name in names if name != "b.png"])]


@run_each(
    "write, name, words",
    [
        (
            annotated("x/a.png", "y/a.png", "x_a.png"),
            "kitti_boxes",
            "x/a.png: .*x_a.png would have the same name, 'x_a_png.png', in the new",
        ),
        (
            some_images("a.jpg", "b.jpg.png"),
            "widerperson",
            r"widerperson does not read what was written: .*b\.jpg\.txt: .*; rename the images",
        ),
        (some_images("a\nb.png", "c.png"), "ecp", "is no path for a file of labels; rename the image"),
        (some_images("011765.png", "c.png"), "widerperson", r"011765\.png: widerperson does not read its labels again"),
        (
            annotated("a.png", "./a.png"),
            "coco",
            r"1 images that are labelled twice, with other boxes, first: .*/a\.png",
        ),
        (annotated("a.png", splits=("train", "val")), "voc", "or an image in two splits, .* or keep it in one split"),
        (
            some_images("a.png", "b.png"),
            "voc",
            "names no class; .*; rename the images, or, as no box is left, choose another --as",
        ),
    ],
)
def test_names_without_a_place(write: Any, name: str, words: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    with pytest.raises(DataError, match=words):
        convert("coco", write(folder / "in"), name, folder / "out")
    assert [path.name for path in folder.iterdir()] == ["in"]
