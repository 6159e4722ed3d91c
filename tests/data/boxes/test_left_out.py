"""Photos and labels that a reader leaves out: each is counted, in every format of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.store.boxes.tools.labelme import read_labelme
from sightline.store.boxes.yolo_txt import read_yolo
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.tool_files import WRITERS
from tests.data.preparing import prepare_set

ROW = "0 .5 .5 .2 .4\n"


def write_jpeg(path: Path) -> None:
    """A JPEG file, whatever its name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(6, 8)).save(path, format="JPEG")


def write_photos(root: Path, *, folders: tuple[str, str] = ("", "")) -> Path:
    """Ten photos with a text file each, beside them or in other folders."""
    for number in range(10):
        write_jpeg(root / folders[0] / f"im{number}.jpg")
        (root / folders[1]).mkdir(parents=True, exist_ok=True)
        (root / folders[1] / f"im{number}.txt").write_text(ROW)
    (root / "classes.txt").write_text("a\n")
    return root


LEFT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "lost": (lambda photos, _: (photos / "im3.jpg").unlink(), "1 text files without an image, first: .*im3.txt"),
    "half loaded": (
        lambda photos, _: (photos / "im4.jpg").rename(photos / "im4.jpg.download"),
        r"1 text files without an image, first: .*im4\.txt, there is im4\.jpg\.download;",
    ),
    "HEIC": (
        lambda photos, _: (photos / "im5.jpg").rename(photos / "im5.HEIC"),
        "1 labelled images of a kind that is not read: save them as JPEG or PNG, .*first: .*im5.HEIC;",
    ),
    "AVIF": (
        lambda photos, _: (photos / "im5.jpg").rename(photos / "im5.avif"),
        "1 labelled images of a kind that is not read.* first: .*im5.avif;",
    ),
    "empty text": (lambda _, texts: (texts / "x.txt").write_text(""), "1 text files without an image, first: .*x.txt;"),
}


@run_each("folders", [("", ""), ("images/a", "labels/a")])
@run_each("kind", LEFT)
def test_a_text_file_of_yolo_whose_photo_is_not_read_is_a_fault(
    folders: tuple[str, str], kind: str, tmp_path: Path
) -> None:
    """Beside the photos such text files were passed over: labelled photos were lost with exit code 0."""
    root = write_photos(tmp_path / f"{kind}{len(folders[0])}", folders=folders)
    change, told = LEFT[kind]
    change(root / folders[0], root / folders[1])
    with pytest.raises(DataError, match=told):
        prepare_set("yolo_txt", root, tmp_path / "set")


def test_notes_of_yolo_count_what_no_label_is_about(tmp_path: Path) -> None:
    """Other text beside photos is none of labels; rows elsewhere may be results, and a second text is not read."""
    root = write_photos(tmp_path / "in", folders=("images/a", "labels/a"))
    write_jpeg(root / "images/a/new.heic")
    write_jpeg(root / "images/a/im0.heic")
    for name in ("runs/labels/im0.txt", "images/a/im0.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("0 .5 .5 .2 .4 .99\n")
    (root / "images/a/README.txt").write_text("photos of a\n")
    labels = read_yolo(root)
    assert labels.faults.raise_or_note("leave_out", root=root) == []
    beside, results, unread = labels.notes
    assert beside.startswith("1 text files beside images are not read, for the images have one in labels, first: ")
    assert results.startswith("1 text files of rows in folders without images are those of no image, and are left out")
    assert unread.startswith("2 images are of a kind that is not read (.heic), and are left out, first: ")
    assert unread.endswith("such as by ImageMagick's 'magick mogrify -format jpg FILE'")


def test_labels_of_a_whole_part_without_photos_are_a_fault(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "in", folders=("images/train", "labels/train"))
    (root / "labels/val").mkdir()
    (root / "labels/val/a.txt").write_text(ROW)
    assert read_yolo(root).faults.raise_or_note("leave_out", root=root) == [
        f"left out: 1 text files without an image, first: {root}/labels/val/a.txt"
    ]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPE"])
def test_other_suffixes_of_jpeg_are_read(suffix: str, tmp_path: Path) -> None:
    root = write_photos(tmp_path / "in")
    (root / "im0.jpg").rename(root / f"im0{suffix}")
    assert prepare_set("yolo_txt", root, tmp_path / "set")["statistics"]["images"] == {"all": 10}


def test_a_file_of_another_folder_is_not_taken_for_a_photo_of_that_name(tmp_path: Path) -> None:
    """LabelMe and lists of YOLO state paths, too; a copy of the photo is that photo."""
    for number, photo in enumerate(("in/a.jpg", "in/b.jpg", "in/other/a.jpg", "other/a.jpg")):
        write_image(tmp_path / photo, pattern(48, 64, number))
    for name in ("in/a", "in/b", "in/other/a"):
        (tmp_path / f"{name}.txt").write_text(ROW)
    (tmp_path / "in/list.txt").write_text("../other/a.jpg\nb.jpg\n")
    (tmp_path / "in/data.yaml").write_text("names: [a]\ntrain: list.txt\n")
    faults = read_yolo(tmp_path / "in").faults.raise_or_note("leave_out", root=tmp_path)
    assert f"1 images that are missing or damaged, first: {tmp_path}/other/a.jpg, which" in faults[-1]
    for file in (tmp_path / "in").rglob("*.txt"):
        file.unlink()
    shape = {"label": "a", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}
    for name, path in (("a", r"..\other\a.jpg"), ("b", "b.jpg")):
        (tmp_path / f"in/{name}.json").write_text(json.dumps({"shapes": [shape], "imagePath": path}))
    told = "states the image .*, outside of .*/in, where .*a.jpg is another one; give the folder above both"
    assert re.search(told, "".join(read_labelme(tmp_path / "in").faults.raise_or_note("leave_out", root=tmp_path)))


UNREAD = r"1 labelled images of a kind that is not read: save them as JPEG or PNG.*first: .*a\.heic"


@run_each("name", [name for name in WRITERS if name != "wider_face"])
def test_a_photo_of_another_kind_is_named_and_read_once_it_is_saved(name: str, tmp_path: Path) -> None:
    """Labels are about a.heic; saved as a PNG it is known without its suffix."""
    root = WRITERS[name](tmp_path / name)
    [photo] = [path for path in root.rglob("*a.png")]
    for file in [path for path in root.rglob("*") if path.suffix in (".xml", ".json", ".csv")]:
        file.write_text(re.sub(r"a\.png", "a.heic", file.read_text()))
        file.rename(file.with_name(file.name.replace("a.png", "a.heic")))
    photo.rename(photo.with_suffix(".heic"))
    reader = registry.data.get_entry(name).builder.label_format.read
    assert re.search(UNREAD, "".join(reader(root).faults.raise_or_note("leave_out", root=root)))
    photo.with_suffix(".heic").rename(photo)
    labels = reader(root)
    assert labels.faults.raise_or_note("leave_out", root=root) == []
    assert len(labels.images) == (2 if name == "tensorflow_csv" else 3)


def test_a_photo_of_another_kind_is_named_in_coco(tmp_path: Path) -> None:
    write_image(tmp_path / "b.png", pattern(6, 8))
    write_jpeg(tmp_path / "a.heic")
    write_jpeg(tmp_path / "c.heic")
    write_coco(tmp_path / "x.json", [(1, "a.heic", 8, 6), (2, "b.png", 8, 6)], [])
    labels = registry.data.get_entry("coco").builder.label_format.read(tmp_path)
    assert re.search(UNREAD, "".join(labels.faults.raise_or_note("leave_out", root=tmp_path)))
    [note] = labels.notes
    assert note.startswith(f"1 images are of a kind that is not read (.heic), and are left out, first: {tmp_path}/c.h")
