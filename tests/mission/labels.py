"""What notes on a detector of pedestrians ask for of labels: readers, conversions, and how photos are turned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sightline.areas.detect.sets.formats import Coco
from sightline.areas.detect.sets.people import CrowdHuman
from sightline.contract import registry
from sightline.contract.types import Sample, SampleKey
from tests.command import document_of, succeed
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.boxes.test_crowdhuman import CROWD, write_set
from tests.data.boxes.test_labelling_tools import EXPECTED, EXPECTED_OF, all_of
from tests.data.boxes.test_people import PEOPLE, written
from tests.data.boxes.tool_files import WRITERS
from tests.mission.rows import part, row
from tests.mission.small import said

# --- sets of people ---------------------------------------------------------------------------------------------------


def prepare_crowd(work: Path) -> tuple[Path, Path]:
    """Write three images in CrowdHuman's line format, and prepare them; return both folders."""
    source = write_set(work / "crowd", train={"a,1": CROWD, "b,2": [], "c,3": CROWD[:1]}, val={"d,4": CROWD[:2]})
    succeed("data", "prepare", "crowdhuman", "--from", source, "--to", work / "set")
    return source, work / "set"


_FULL = [[-3, 2, 7, 22.5], [25, -4, 45, 8], [4, 4, 9, 9], [0, 0, 32, 3], [40, 2, 50, 12]]
"""Corners of the people of the first image, beyond its 32 x 16 pixels, too."""


@row(
    "S3.3",
    "read CrowdHuman's line format, with people that are ignored",
    "`sightline data prepare crowdhuman --from PATH --to DIR`",
)
def _crowdhuman(work: Path) -> None:
    root = str(prepare_crowd(work)[1])
    images = CrowdHuman(split="train", root=root, validation_share=0.0)
    assert images.info.split_sizes == {"train": 3, "test": 1}
    sample, lone = images[SampleKey(0, 0, 0)], images[SampleKey(2, 0, 0)]
    assert np.array_equal(sample["image"], pattern(16, 32))
    assert sample["boxes"].tolist() == _FULL
    assert sample["label"].tolist() == [0] * 5
    assert sample["is_ignored"].tolist() == [False, False, True, True, False]
    assert sample["truth"][:, :4].tolist() == _FULL
    assert sample["truth"][:, 5:].tolist() == [[205, 0], [240, 0], [25, 1], [96, 1], [100, 0]]
    assert images[SampleKey(1, 0, 0)]["boxes"].tolist() == []
    assert (lone["boxes"].tolist(), lone["is_ignored"].tolist()) == (_FULL[:1], [False])
    heads = CrowdHuman(split="train", root=root, validation_share=0.0, box="head", scored_box="visible")
    sample = heads[SampleKey(0, 0, 0)]
    assert sample["boxes"][:3].tolist() == [[1, 2, 4, 5], [28, 0, 30, 2], [5, 4, 7, 6]]
    assert sample["is_ignored"].tolist() == [False, True, True, True, False]  # the second head is ignored alone
    assert sample["truth"][:2].tolist() == [[0, 2, 7, 16, 0, 98, 0], [25, 0, 32, 8, 0, 56, 0]]


_PEDESTRIAN, _RIDER, _CROWD = [2.0, 3, 12, 33], [20.0, 5, 30, 40], [40.0, 0, 64, 20]
_TRUE_PEOPLE: dict[str, tuple[list[list[float]], list[bool], list[float | None]]] = {
    "widerperson": (
        [_PEDESTRIAN, _RIDER, [-2, 0, 6, 20], _CROWD, [30, 30, 60, 48]],
        [False, False, False, True, True],
        [None] * 5,
    ),
    "citypersons": (
        [_PEDESTRIAN, [20, 5.5, 30, 40.5], _CROWD, [30, 30, 38, 38], [30, 30, 60, 48]],
        [False, True, True, True, True],
        [0.5, 1.0, None, 0.75, None],
    ),
    "ecp": (
        [_PEDESTRIAN, _RIDER, [30, 30, 36, 48], _CROWD, [50, 20, 60, 30]],
        [False, True, True, True, True],
        [0.6, 1.0, None, None, None],
    ),
}
"""Corners, ignore marks and visible shares of the first image of each set, as the files of `written` mean them.

Riders are ignored where a set tells them from pedestrians, unless they are asked for.
"""


@row(
    "S3.5",
    "read EuroCity Persons, CityPersons and WiderPerson",
    "`sightline data prepare ecp --from PATH --to DIR`, and `citypersons`, `widerperson`",
)
def _people(work: Path) -> None:
    for name in PEOPLE:
        words = ("data", "prepare", name, "--from", written(name, work / "in" / name), "--to", work / name)
        counts = document_of(*words)["splits"]
        assert counts["train"]["num_rows"] == 2, (name, counts)
        boxes, is_ignored, shares = _TRUE_PEOPLE[name]
        images = [_first_of(name, work / name, split) for split in ("train", "test")]
        assert images[0]["boxes"].tolist() == boxes, name
        assert images[0]["is_ignored"].tolist() == is_ignored, name
        assert images[0]["truth"][:, :4].tolist() == boxes, name
        assert (images[0]["truth"][:, 6] > 0).tolist() == is_ignored, name
        found = [None if np.isnan(share) else share for share in images[0]["truth_visible"].tolist()]
        assert found == shares, name
        assert np.array_equal(images[0]["image"], pattern(48, 64)) or name == "widerperson"  # whose photos are JPEG
        assert (images[1]["boxes"].tolist(), images[1]["is_ignored"].tolist()) == (boxes[:1], [False]), name
    for name in ("citypersons", "ecp"):
        found = _first_of(name, work / name, "train", people=("pedestrian", "rider"))["is_ignored"].tolist()
        assert found == [False, False, True, True, True], name


def _first_of(name: str, root: Path, split: str, **arguments: Any) -> Sample:
    builder = registry.data.get_entry(name).builder
    sample: Sample = builder(split=split, root=str(root), validation_share=0.0, **arguments)[SampleKey(0, 0, 0)]
    return sample


# --- COCO, and other formats as COCO ----------------------------------------------------------------------------------


def write_photos(work: Path, **options: Any) -> Path:
    """Write four photos with a box each, as COCO labels them."""
    for number in range(4):
        write_image(work / f"photos/images/{number}.png", pattern(48, 64, number), **options)
    for split, numbers in {"train": (0, 1, 2), "val": (3,)}.items():
        images = [(number, f"{number}.png", 64, 48) for number in numbers]
        box = {"category_id": 3, "bbox": [4, 6, 20, 30], "area": 600, "iscrowd": 0}
        boxes = [{"image_id": number, **box} for number in numbers]
        write_coco(work / f"photos/annotations/instances_{split}2017.json", images, boxes)
    return work / "photos"


def write_three(root: Path) -> Path:
    """Write three photos with boxes of three classes: one of a mask's area, one a crowd; the second photo has none."""
    for number in range(4):
        write_image(root / f"images/{number}.png", pattern(48, 64, number))
    boxes = [
        {"image_id": 0, "category_id": 3, "bbox": [4, 6, 20, 30], "area": 500, "iscrowd": 0},
        {"image_id": 0, "category_id": 7, "bbox": [30.5, 10, 12, 20.25], "area": 243, "iscrowd": 0},
        {"image_id": 0, "category_id": 3, "bbox": [34, 0, 30, 48], "area": 1440, "iscrowd": 1},
        {"image_id": 2, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
    ]
    tested = [{"image_id": 3, "category_id": 7, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 0}]
    for split, numbers, rows in (("train", (0, 1, 2), boxes), ("val", (3,), tested)):
        images = [(number, f"{number}.png", 64, 48) for number in numbers]
        write_coco(root / f"annotations/instances_{split}2017.json", images, rows)
    return root


@row("S3.4", "read COCO", "`sightline data prepare coco --from PATH --to DIR`")
def _coco(work: Path) -> None:
    text = said("data", "prepare", "coco", "--from", write_photos(work), "--to", work / "set")
    assert "images: train 3, test 1" in text
    assert "boxes_per_class: person 4, car 0, hat 0" in text
    lone = Coco(split="test", root=str(work / "set"))[SampleKey(0, 0, 0)]
    assert lone["boxes"].tolist() == [[4, 6, 24, 36]]
    assert np.array_equal(lone["image"], pattern(48, 64, 3))

    succeed("data", "prepare", "coco", "--from", write_three(work / "three"), "--to", work / "three_set")
    images = Coco(split="train", root=str(work / "three_set"), validation_share=0.0)
    assert images.info.facts["class_names"] == ("person", "car", "hat")  # by their ids 3, 7 and 90
    first, second, third = (images[SampleKey(index, 0, 0)] for index in range(3))
    assert first["boxes"].tolist() == [[4, 6, 24, 36], [30.5, 10, 42.5, 30.25], [34, 0, 64, 48]]
    assert first["label"].tolist() == [0, 1, 0]
    assert first["is_ignored"].tolist() == [False, False, True]  # the crowd
    assert first["truth"].tolist() == [
        [4, 6, 24, 36, 0, 500, 0],
        [30.5, 10, 42.5, 30.25, 1, 243, 0],
        [34, 0, 64, 48, 0, 1440, 1],
    ]
    assert second["boxes"].tolist() == []
    assert (third["boxes"].tolist(), third["label"].tolist()) == ([[1, 2, 4, 6]], [2])
    hats = Coco(split="train", root=str(work / "three_set"), validation_share=0.0, classes=("hat",))
    assert [hats[SampleKey(index, 0, 0)]["label"].tolist() for index in range(3)] == [[], [], [0]]


@row(
    "S3.6",
    "write the line format or EuroCity labels as COCO, and back",
    "`sightline data convert NAME --from PATH --as coco --to DIR`",
    letter="Q",
)
def _converted(work: Path) -> None:
    source, _ = prepare_crowd(work)
    convert("crowdhuman", source, "coco", work / "coco")
    rows = _annotations_of(work / "coco", "a,1")
    assert [each["bbox"] for each in rows] == [
        [-3, 2, 10, 20.5],
        [25, -4, 20, 12],
        [4, 4, 5, 5],
        [0, 0, 32, 3],
        [40, 2, 10, 10],
    ]
    assert [each["iscrowd"] for each in rows] == [0, 0, 1, 1, 0]
    assert [each["hbox"] for each in rows[:2]] == [[1, 2, 3, 3], [28, 0, 2, 2]]
    assert [each["vbox"] for each in rows[:2]] == [[0, 2, 7, 14], [25, 0, 7, 8]]
    assert len(_annotations_of(work / "coco")) == 8
    convert("coco", work / "coco", "crowdhuman", work / "back")
    (lines,) = (work / "back").rglob("*train.odgt")
    again = {row["ID"]: row["gtboxes"] for row in map(json.loads, lines.read_text().splitlines())}
    assert again.keys() == {"a,1", "b,2", "c,3"}
    assert again["b,2"] == []
    for before, after in zip(CROWD, again["a,1"], strict=True):
        keys = [key for key in ("fbox", "vbox", "hbox") if key in before]
        assert [after[key] for key in keys] == [before[key] for key in keys]
        is_ignored = before["tag"] == "mask" or bool(before["extra"].get("ignore"))
        assert bool(after["extra"].get("ignore")) == is_ignored
        assert bool(after.get("head_attr", {}).get("ignore")) == bool(before.get("head_attr", {}).get("ignore"))


def convert(name: str, source: Path, new_name: str, target: Path) -> None:
    """Convert labels by the command."""
    succeed("data", "convert", name, "--from", source, "--as", new_name, "--to", target)


def _annotations_of(folder: Path, stem: str = "") -> list[dict[str, Any]]:
    """Read the annotations of COCO's files in a folder, of all images or of one, with the names of their classes."""
    found = []
    for file in sorted(folder.rglob("*.json")):
        document = json.loads(file.read_text())
        classes = {each["id"]: each["name"] for each in document["categories"]}
        names = {each["id"]: Path(each["file_name"]).stem for each in document["images"]}
        rows = document["annotations"]
        found += [{**each, "class": classes[each["category_id"]]} for each in rows if stem in names[each["image_id"]]]
    return found


@part("S3.6", "Q")
def _eurocity_converted(work: Path) -> None:
    """Of five kinds of people; the car is left out, and of a sitting person the mark that it is ignored is kept."""
    convert("ecp", written("ecp", work / "in"), "coco", work / "coco")
    rows = _annotations_of(work / "coco", "amsterdam")
    assert [each["bbox"] for each in rows] == [
        [2, 3, 10, 30],
        [20, 5, 10, 35],
        [30, 30, 6, 18],
        [40, 0, 24, 20],
        [50, 20, 10, 10],
    ]
    assert [each["class"] for each in rows] == ["pedestrian", "rider", "pedestrian", "crowd", "rider_crowd"]
    assert [(each["iscrowd"], each["ignore"]) for each in rows] == [(0, 0), (0, 0), (1, 1), (1, 0), (1, 0)]
    assert [each.get("vis_ratio") for each in rows[:2]] == [0.6, 1.0]
    assert _annotations_of(work / "coco", "berlin") == []
    convert("coco", work / "coco", "ecp", work / "back")
    (file,) = (work / "back").rglob("amsterdam*.json")
    frame = json.loads(file.read_text())
    assert (frame["imagewidth"], frame["imageheight"]) == (64, 48)
    corners = [[child[key] for key in ("x0", "y0", "x1", "y1")] for child in frame["children"]]
    assert corners == _TRUE_PEOPLE["ecp"][0]
    kinds = [child["identity"] for child in frame["children"]]
    assert kinds[:2] == ["pedestrian", "rider"]
    assert kinds[3:] == ["person-group-far-away", "rider+vehicle-group-far-away"]
    assert [child["tags"] for child in frame["children"][:2]] == [["occluded>40"], []]
    succeed("data", "prepare", "ecp", "--from", work / "back", "--to", work / "set")
    again = _first_of("ecp", work / "set", "train", people=("pedestrian", "rider"))
    assert again["is_ignored"].tolist() == [False, False, True, True, True]


# --- labelling tools, and photos that are turned ----------------------------------------------------------------------

_TOOLS = ("voc", "labelme", "cvat", "via", "label_studio", "supervisely", "tensorflow_csv")


@row(
    "S3.7",
    "read the XML and JSON of labelling tools",
    "`sightline data prepare voc --from PATH --to DIR`, and `labelme`, `cvat`, `via`, `label_studio`, `supervisely`, "
    "`tensorflow_csv`",
    letter="R",
)
def _tools(work: Path) -> None:
    """Two boxes of two classes, one of them ignored where a tool can say so, one of half pixels, and an empty photo."""
    for name in _TOOLS:
        text = said("data", "prepare", name, "--from", WRITERS[name](work / name), "--to", work / f"{name}_set")
        assert "car 2" in text, (name, text)
        assert all_of(name, work / f"{name}_set") == EXPECTED_OF.get(name, EXPECTED), name
    assert EXPECTED["b"] == [("car", [10.5, 20.0, 30.0, 40.25], False)]
    assert EXPECTED["a"] == [("car", [4.0, 6.0, 24.0, 36.0], False), ("dog", [0.0, 0.0, 64.0, 48.0], True)]


@row(
    "S3.8",
    "overrule what a photo says about its orientation",
    "`sightline data prepare coco --from PATH --to DIR orientation=ignore`",
)
def _orientation(work: Path) -> None:
    """Photos that say that they lie on their side, with labels of the stored sizes: these decide."""
    made = document_of("data", "prepare", "coco", "--from", write_photos(work, orientation=6), "--to", work / "set")
    assert made["splits"]["train"]["num_rows"] == 3
    assert np.array_equal(Coco(split="test", root=str(work / "set"))[SampleKey(0, 0, 0)]["image"], pattern(48, 64, 3))


@part("S3.8", "R")
def _orientation_said(work: Path) -> None:
    source = write_photos(work, orientation=6)
    made = document_of("data", "prepare", "coco", "--from", source, "--to", work / "set", "orientation=ignore")
    assert made["splits"]["train"]["num_rows"] == 3
    text = said("data", "prepare", "coco", "--from", source, "--to", work / "turned", "orientation=apply")
    assert "4 images have labels that state the size of the other orientation, which is overruled" in text
    photos = {name: Coco(split="test", root=str(work / name))[SampleKey(0, 0, 0)] for name in ("set", "turned")}
    sizes = [tuple(photo["image"].shape[:2]) for photo in photos.values()]
    assert sizes == [(48, 64), (64, 48)]
    assert np.array_equal(photos["set"]["image"], pattern(48, 64, 3))
    assert np.array_equal(photos["turned"]["image"], np.rot90(pattern(48, 64, 3), -1))  # clockwise
    assert [photo["boxes"].tolist() for photo in photos.values()] == [[[4, 6, 24, 36]]] * 2
