"""CrowdHuman from .odgt to samples: three kinds of boxes, what is ignored, boxes beyond the image; golden lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.sets.people import CrowdHuman
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.loading.concat import Concat
from tests.command import run_here
from tests.data.boxes.box_writers import pattern, quiet, write_image
from tests.data.preparing import refuse


def prepare(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return CrowdHuman.prepare(source=source, target=target, name="crowdhuman", progress=quiet, **options)


def person(full: list[float], visible: list[float], head: list[float], **changed: Any) -> dict[str, Any]:
    return {"tag": "person", "fbox": full, "vbox": visible, "hbox": head, "extra": {"box_id": 0}, **changed}


CROWD = [
    person([-3, 2, 10, 20.5], [0, 2, 7, 14], [1, 2, 3, 3], head_attr={"ignore": 0, "unsure": 1, "occ": 0}),
    person([25, -4, 20, 12], [25, 0, 7, 8], [28, 0, 2, 2], head_attr={"ignore": 1}),
    person([4, 4, 5, 5], [4, 4, 5, 5], [5, 4, 2, 2], extra={"ignore": 1}),
    {"tag": "mask", "fbox": [0, 0, 32, 3], "vbox": [0, 0, 32, 3]},
    person([40, 2, 10, 10], [31, 2, 1, 10], [31, 2, 1, 2], extra={}),
]
"""In an image 32 wide and 16 high: partly outside, with an ignored head, ignored, not a person, wholly outside."""


def write_set(root: Path, **lines: Any) -> Path:
    """Files of lines by split, with an image of 32 x 16 for each ID."""
    for split, people in lines.items():
        for name in people:
            write_image(root / f"CrowdHuman_{split}01" / "Images" / f"{name}.png", pattern(16, 32))
        rows = [json.dumps({"ID": name, "gtboxes": boxes}) for name, boxes in people.items()]
        (root / f"annotation_{split}.odgt").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowdhuman")
    lines = {"train": {"b,2": [], "a,1": CROWD, "c,3": CROWD[:1]}, "val": {"d,4": CROWD[3:4]}}
    prepare(write_set(folder / "in", **lines), folder / "set")
    return folder / "set"


def opened(root: Path, **arguments: Any) -> CrowdHuman:
    return CrowdHuman(**{"split": "train", "root": str(root), "validation_share": 0.0, **arguments})


def test_full_boxes_are_kept_beyond_the_image(root: Path) -> None:
    """Traps T13 and T24: negative and fractional corners are neither cut nor rounded."""
    images = opened(root)
    assert images.info.split_sizes == {"train": 3, "test": 1}
    assert [images.sample_name(index) for index in range(3)] == ["a,1", "b,2", "c,3"]
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"].tolist() == [[-3, 2, 7, 22.5], [25, -4, 45, 8], [4, 4, 9, 9], [0, 0, 32, 3], [40, 2, 50, 12]]
    assert sample["is_ignored"].tolist() == [False, False, True, True, False]
    assert sample["truth"][:, :4].tolist() == sample["boxes"].tolist()
    assert sample["truth"][:, 5].tolist() == [205, 240, 25, 96, 100]
    assert images[SampleKey(1, 0, 0)]["boxes"].shape == (0, 4)
    assert np.array_equal(sample["image"], pattern(16, 32))


@pytest.mark.shared
def test_boxes_and_marks_are_the_recorded_ones(shared: Path, tmp_path: Path) -> None:
    """The lines of the reference's data, with its boxes, areas and ignore marks by image and place."""
    golden = json.loads((shared / "golden" / "detect" / "odgt_to_coco.json").read_text())
    (tmp_path / "in").mkdir()
    for line in golden["odgt_lines"]:
        width, height = line.pop("size_w_h")
        write_image(tmp_path / "in" / f"{line['ID']}.jpg", pattern(height, width))
    (tmp_path / "in" / "annotation_train.odgt").write_text(
        "".join(json.dumps(line) + "\n" for line in golden["odgt_lines"])
    )
    prepare(tmp_path / "in", tmp_path / "set")
    parts, expected = [opened(tmp_path / "set", split=split) for split in ("train", "test")], golden["corrected"]
    names = {image["id"]: Path(image["file_name"]).stem for image in expected["images"]}
    rows = {part.sample_name(index): part.record(index) for part in parts for index in range(len(part))}
    assert {*rows} == {*names.values()}
    for number, name in names.items():
        stated = [each for each in expected["annotations"] if each["image_id"] == number]
        left, top, width, height = np.array([each["bbox"] for each in stated]).reshape(-1, 4).T
        found = rows[name]
        assert found.boxes.tolist() == np.stack([left, top, left + width, top + height], axis=1).tolist()
        assert found.is_ignored.tolist() == [bool(each["ignore"]) for each in stated]
        np.testing.assert_allclose(found.area, [each["area"] for each in stated])
    assert sum(len(each.boxes) for each in rows.values()) == len(expected["annotations"])


def test_clipped_boxes_without_rest_leave_training_and_stay_scored(root: Path) -> None:
    images = opened(root, clip=True)
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"].tolist() == [[0, 2, 7, 16], [25, 0, 32, 8], [4, 4, 9, 9], [0, 0, 32, 3]]
    assert len(sample["label"]) == len(sample["is_ignored"]) == 4
    assert len(sample["truth"]) == 5
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["statistics"]["boxes_outside"] == 1
    assert "boxes_wholly_outside_their_image: 1\n" in run_here("data", "info", root).out


def test_trained_and_scored_boxes_are_chosen_apart(root: Path) -> None:
    """A head is ignored by its own mark; the person whose head does not show is scored all the same."""
    images = opened(root, box="head", scored_box="visible")
    sample = images[SampleKey(0, 0, 0)]
    assert sample["boxes"][:2].tolist() == [[1, 2, 4, 5], [28, 0, 30, 2]]
    assert sample["boxes"][3].tolist() == [0, 0, 32, 3]  # a region without a head: its other box
    assert sample["is_ignored"].tolist() == [False, True, True, True, False]
    assert sample["truth"][1].tolist() == [25, 0, 32, 8, 0, 56, 0]
    assert sample["truth"][:, 6].tolist() == [0, 0, 1, 1, 0]
    turned = opened(root, box="visible", scored_box="head")[SampleKey(0, 0, 0)]
    assert turned["is_ignored"].tolist() == [False, False, True, True, False]
    assert turned["truth"][:, 6].tolist() == [0, 1, 1, 1, 0]


def test_a_kind_of_box_that_the_file_lacks_is_refused_when_it_is_chosen(tmp_path: Path) -> None:
    bare = {key: value for key, value in CROWD[0].items() if key != "hbox"}
    prepare(write_set(tmp_path / "in", train={"a": CROWD[:2], "b": [CROWD[0], bare]}), tmp_path / "set")
    assert len(opened(tmp_path / "set")) == 1  # the other image is tested
    with pytest.raises(DataError, match=r"1 people have no head box \(hbox\), first in 'b'; set box and scored_box"):
        opened(tmp_path / "set", scored_box="head")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (person([1, 2, 0, 4], [1, 2, 3, 4], [1, 2, 1, 1]), "a: box 1 is {'tag': 'person', 'fbox': .1, 2, 0, 4."),
        (person([1, 2, 3, float("nan")], [1, 2, 3, 4], [1, 2, 1, 1]), "a: box 1"),
        (person([1, 2, 3], [1, 2, 3, 4], [1, 2, 1, 1]), "a: box 1"),  # type: ignore[list-item]
        ({"tag": "person"}, "a: box 1"),
    ],
)
def test_faulty_boxes_are_named_or_left_out(tmp_path: Path, fault: dict[str, Any], message: str) -> None:
    write_set(tmp_path / "in", train={"a": [CROWD[0], fault, CROWD[1]], "b": []})
    refuse(prepare, tmp_path / "in", f"1 impossible boxes, first: {message}")
    prepare(tmp_path / "in", tmp_path / "set", faulty="leave_out")
    assert len(opened(tmp_path / "set").record(0).boxes) == 2


def test_folders_and_lines_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    refuse(prepare, source, r"there is no such folder, no \.odgt file")
    write_set(source, train={"a": CROWD, "b": []})
    image = source / "CrowdHuman_train01" / "Images" / "b.png"
    moved = image.rename(tmp_path / "b.png")
    refuse(prepare, source, "1 images that are missing or damaged, first: there is no image 'b' below")
    moved.rename(image)
    write_image(source / "copy" / "b.png", pattern(16, 32))
    refuse(prepare, source, r"has the same name, and the boxes of 'b' fit either")
    file = source / "annotation_train.odgt"
    for text, message in (
        ('{"ID": "a", "gtboxes": []}\n{"ID": "a", "gtboxes": []}', "2: the image 'a' appears twice"),
        ('{"ID": "a"}', "1: is not a line of .odgt with ID and gtboxes"),
        ('{"ID": "a", "gtboxes": [1]}', "has no attribute 'get'"),
        ('{"ID": "a", "gtboxes": [{"extra": 1}]}', "extra and head_attr must be objects"),
        ("[", "1: is not a line"),
        ("\n", "contains no lines"),
    ):
        file.write_text(text)
        refuse(prepare, source, message)


def test_files_and_synthetic_crowds_are_trained_on_as_one(root: Path) -> None:
    ours = opened(root, validation_share=0.3)
    both = Concat(sets=(ours, SyntheticCrowds(split="train", train_size=2)), split="train")
    assert len(both) == 4
    assert both[SampleKey(3, 0, 0)].keys() == both[SampleKey(0, 0, 0)].keys() == BOX_FIELDS.keys()


def test_the_visible_share_is_of_areas(root: Path) -> None:
    """By hand from the boxes of the file; unknown of ignored boxes."""
    sample = opened(root)[SampleKey(0, 0, 0)]
    whole, visible = (opened(root, scored_box=kind)[SampleKey(0, 0, 0)]["truth"][:, 5] for kind in ("full", "visible"))
    expected = torch.where(sample["truth"][:, 6] > 0, torch.nan, visible / whole)
    torch.testing.assert_close(sample["truth_visible"], expected, equal_nan=True)
    assert sample["truth_visible"].dtype == torch.float64
