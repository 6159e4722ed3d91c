"""Found boxes go back to the file's pixels, and through files of results without losing a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.areas.detect.output import to_file_pixels
from sightline.areas.detect.sets.formats import Coco
from sightline.areas.detect.transforms import FitImage
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes.detections import DetectionResults, Detections, ImageRef, SetIndex, read_results
from sightline.store.boxes.label_table import CategoryIds
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image

IMAGES = [ImageRef("a,1", 7, 480, 640), ImageRef("b,2", 3, 33, 77), ImageRef("c", 4, 5, 5)]
IDS = (3, 7, 90)


def found(image: ImageRef, count: int) -> Detections:
    """Boxes of all sizes and places, some beyond the image, with scores of every magnitude."""
    generator = np.random.default_rng(image.image_id)
    corners = generator.uniform(-900, 900, (count, 4)).astype(np.float32) * 10.0 ** generator.integers(
        -6, 2, (count, 1)
    )
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    boxes = boxes.astype(np.float32)
    scores = generator.random(count).astype(np.float32) ** 9
    return Detections(image, boxes, scores, generator.integers(0, 3, count))


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert ours.image == theirs.image
    for name in ("boxes", "scores", "label"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


@pytest.fixture
def results() -> list[Detections]:
    return [found(IMAGES[0], 500), found(IMAGES[1], 3), found(IMAGES[2], 0)]


class Few:
    """The images above as the part of a set of which there is more."""

    classes = CategoryIds(("person", "car", "hat"), IDS)

    def __init__(self, images: list[ImageRef] = IMAGES) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> ImageRef:
        return self.images[index]

    def record(self, index: int) -> Any:
        raise NotImplementedError

    def set_index(self) -> SetIndex:
        return SetIndex(frozenset({7, 3, 4, 50, "a,1", "train/z"}), frozenset({*IDS, 12}))


def read(path: Path, document: Any, images: list[ImageRef] = IMAGES) -> DetectionResults:
    lines = [json.dumps(line) for line in document] if path.suffix == ".odgt" else [json.dumps(document)]
    path.write_text("\n".join(lines))
    return read_results(path, Few(images))


def test_coco_results_give_back_every_bit(results: list[Detections], tmp_path: Path) -> None:
    rows = [row for each in results for row in each.to_coco(IDS)]
    assert {row["image_id"] for row in rows} == {7, 3}
    assert {row["category_id"] for row in rows} == {3, 7, 90}
    for ours, theirs in zip(read(tmp_path / "x.json", rows).detections, results, strict=True):
        assert_same(ours, theirs)


def test_odgt_results_give_back_every_bit(results: list[Detections], tmp_path: Path) -> None:
    people = [Detections(each.image, each.boxes, each.scores, 0 * each.label) for each in results]
    rows = [[{"box": row["bbox"], "score": row["score"], "tag": 1} for row in each.to_coco(IDS)] for each in people]
    lines = [{"ID": each.image.name, "dtboxes": boxes} for each, boxes in zip(people, rows, strict=True)]
    (tmp_path / "x.odgt").write_text("\n\n".join(map(json.dumps, lines[::-1])))
    crowds = Few()
    crowds.classes = CategoryIds(("person",), (1,))
    for ours, theirs in zip(read_results(tmp_path / "x.odgt", crowds).detections, people, strict=True):
        assert_same(ours, theirs)


def test_a_hand_read_row() -> None:
    one = Detections(IMAGES[1], np.array([[1.5, -2, 4, 10]]), np.array([0.25]), np.array([1]))
    assert one.to_coco(IDS) == [{"image_id": 3, "category_id": 7, "bbox": [1.5, -2, 2.5, 12], "score": 0.25}]
    with pytest.raises(ValueError, match="read-only"):
        one.boxes[:] = 0


@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
def test_boxes_on_a_canvas_go_back_to_the_file(tmp_path: Path, mode: str) -> None:
    """The boxes of a sample, taken for what was found on its canvas, are those of the file again."""
    write_image(tmp_path / "in" / "a.png", pattern(30, 50))
    boxes: list[dict[str, Any]] = [
        {"image_id": 1, "category_id": 3, "bbox": bbox} for bbox in ([1.25, 2, 3.5, 4], [-4, 10, 60, 25.5])
    ]
    write_coco(tmp_path / "in" / "all.json", [(1, "a.png", 50, 30)], boxes)
    Coco.prepare(source=tmp_path / "in", target=tmp_path / "set", name="coco", progress=quiet)
    images = Coco(split="train", root=str(tmp_path / "set"), test_share=0.0)
    sample = {name: value[None] for name, value in images[SampleKey(0, 0, 0)].items()}
    fit = FitImage(height=64, width=96, mode=mode)  # type: ignore[arg-type]
    moved = fit(
        Draws.for_samples([SampleKey(0, 0, 0)]).stream("fit"),
        image=sample["image"],
        boxes=sample["boxes"],
        to_canvas=sample["to_canvas"],
    )
    assert not torch.equal(moved["boxes"], sample["boxes"])
    rows = torch.cat([moved["boxes"][0], torch.tensor([[1.0, 0.0]]).expand(2, 2)], dim=1)
    back = to_file_pixels(rows, moved["to_canvas"][0], images[SampleKey(0, 0, 0)]["file_px"], clip=False)
    np.testing.assert_allclose(back[:, :4], images.record(0).boxes, rtol=1e-6, atol=1e-5)
    assert images.image(0) == ("a.png", 1, 30, 50)


ROW = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
NEEDED = r"row 1 is {.*; it needs image_id, category_id, bbox \(left, top, .* all finite numbers"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_id": 5}, "row 1: the set has no image 5; its first is 7, 'a,1'"),
        ({"image_id": "7"}, "row 1: the set has no image '7'"),
        ({"category_id": 4}, "row 1: the set has no category 4, but 3, 7, 90"),
        ({"category_id": [3]}, NEEDED),
        ({"bbox": [1, 2, 3]}, NEEDED),
        ({"bbox": [1, 2, 3, 4, 5]}, NEEDED),
        ({"bbox": "1234"}, NEEDED),
        ({"bbox": [1, 2, -3, 4]}, NEEDED),
        ({"bbox": [1, [2], 3, 4]}, NEEDED),
        ({"score": float("nan")}, NEEDED),
        ({"score": None}, NEEDED),
        ({"bbox": [1e308, 2, 1e308, 4]}, NEEDED),
        ({"bbox": [-1e300, 2, 3, 4]}, NEEDED),
        ({"bbox": [1, 2, 3, 2**24 + 1]}, NEEDED),
        ({"score": 10**400}, NEEDED),
        ({"score": True}, NEEDED),
        ({"bbox": [1, True, 3, 4]}, NEEDED),
        ({"category_id": True}, NEEDED),
        ({"image_id": True}, NEEDED),
    ],
)
def test_rows_that_do_not_fit_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"x.json: {message}"):
        read(tmp_path / "x.json", [ROW, ROW | changed])


def test_rows_of_another_part_or_class_of_the_set_are_counted(tmp_path: Path) -> None:
    given = read(tmp_path / "x.json", [ROW, ROW | {"image_id": 50}, ROW | {"category_id": 12}, ROW | {"image_id": 50}])
    assert [len(each.boxes) for each in given.detections] == [1, 0, 0]
    assert (given.num_other_images, given.num_other_classes) == (2, 1)


def test_images_are_known_by_the_file_names_of_their_annotations(tmp_path: Path) -> None:
    """Names lie below the source's root, file names below the folder of images; accents and slashes are as they are."""
    images = [
        ImageRef(name, number, 9, 9) for number, name in enumerate(("val/1.png", "val/a/\u00e9.png", "val/b/1.png"))
    ]
    keys = ["1.png", "./val/1.png", "e\u0301.png", "a\\\u00e9.png", "b/1.png"]
    rows = [ROW | {"image_id": key} for key in keys]
    with pytest.raises(DataError, match=r"row 0 is of one of 2 images called '1.png' \(val/1.png, val/b/1.png\); give"):
        read(tmp_path / "x.json", rows, images)
    del rows[0], rows[-1]["image_id"]
    rows[-1]["file_name"] = "b/1.png"
    given = read(tmp_path / "x.json", [*rows, ROW | {"image_id": "z"}], images)
    assert [len(each.boxes) for each in given.detections] == [1, 2, 1]
    assert given.num_other_images == 1
    with pytest.raises(DataError, match="row 0: the set has no image 'png'"):
        read(tmp_path / "x.json", [ROW | {"image_id": "png"}], images)


NUMBERED = [ImageRef(f"images/val/{name}", number, 9, 9) for number, name in enumerate(("0020.jpg", "im7.jpg"), 20)]
"""Ids that a set without ids numbers itself: the second image has 21."""


@run_each(
    "keys, expected, note",
    [
        ([("im7", "im7.jpg"), (20, "0020.jpg")], [1, 0], "1 images are known by parts of their names, first: 'im7' is"),
        ([("im7", None), (None, "0020.jpg")], [1, 0], "2 images are known"),
        ([(20, None), (21, None)], [0, 1], ""),
        ([(r"C:\\other\\val\\im7.jpg", None), ("/data/0020.jpg", None)], [1, 0], "2 images are known"),
        ([(20, None), (22, None)], None, "row 1: the set has no image 22; its first is 20"),
        ([(20, "0020.jpg"), (21, "0020.jpg")], None, "row 1: the set has another image 21 than '0020.jpg'; leave"),
        ([(20, "other.jpg")], [0], ""),
        ([(None, None)], None, "row 0 is .* it needs image_id"),
    ],
)
def test_images_are_known_by_id_file_name_or_stem(
    keys: list[tuple[Any, Any]], expected: list[int] | None, note: str, tmp_path: Path
) -> None:
    """Ultralytics writes the stem as image_id, as a number if it is one, and since 2024 also the file_name."""
    rows = [ROW | {"image_id": number, "file_name": name} for number, name in keys]
    if expected is None:
        with pytest.raises(DataError, match=note):
            read(tmp_path / "x.json", rows, NUMBERED)
        return
    given = read(tmp_path / "x.json", rows, NUMBERED)
    assert [len(each.boxes) for each in given.detections] == [expected.count(index) for index in (0, 1)]
    assert note in "".join(given.notes)
    assert bool(note) == bool(given.notes)


def test_categories_that_count_from_another_number(tmp_path: Path) -> None:
    few = Few()
    few.classes = CategoryIds(("person", "car", "hat"), (0, 1, 2))
    few.set_index = lambda: SetIndex(frozenset({7, 3, 4}), frozenset({0, 1, 2}))  # type: ignore[method-assign]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([ROW | {"category_id": number} for number in (1, 3, 2)]))
    message = "row 1: the set has no category 3, but 0, 1, 2; ids count from 1, the set's from 0: category_offset=1"
    with pytest.raises(DataError, match=message):
        read_results(path, few)
    assert read_results(path, few, category_offset=1).detections[0].label.tolist() == [0, 2, 1]
    with pytest.raises(DataError, match=r"the set has no category 1, but 2, 3, 4; .* from 1, .* category_offset=1"):
        read_results(path, few, category_offset=2)


def test_lines_that_do_not_fit_are_named(tmp_path: Path) -> None:
    box = {"box": [1, 2, 3, 4], "score": 0.5, "tag": 3}
    line = {"ID": "c", "dtboxes": [box]}
    for lines, message in (
        ([line, line], "line 2: the image 'c' appears twice"),
        ([line, {"ID": "d", "dtboxes": [box]}], "line 2, box 0: the set has no image 'd'; its first is 7, 'a,1'"),
        ([{"ID": "c"}], "line 1: ID and dtboxes are needed .*'dtboxes'"),
        ([{"ID": "c", "dtboxes": [box, {"box": [1, 2, 3, 4]}]}], "line 1, box 1 is .* it needs .* score"),
        ([{"ID": "c", "dtboxes": [box, box | {"tag": 1}]}], "line 1, box 1: the set has no category 1"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / "x.odgt", lines)
    with pytest.raises(ValueError, match="2 boxes, 1 scores and 1 classes"):
        Detections(IMAGES[0], np.zeros((2, 4)), np.zeros(1), np.zeros(1))


def test_other_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a list of rows is needed, found an object with predictions; write COCO"):
        read(tmp_path / "x.json", {"predictions": []})
    (tmp_path / "cut.json").write_text('[{"image_id": 7,')
    with pytest.raises(DataError, match=r"cut\.json: does not read as JSON"):
        read_results(tmp_path / "cut.json", Few())


def test_ids_that_two_images_have_are_refused(tmp_path: Path) -> None:
    """Two annotation files may both count from 1; a row of a file of results would be of either image."""
    twice = [*IMAGES, ImageRef("d", 7, 9, 9)]
    with pytest.raises(DataError, match=r"row 0 is of one of 2 images with the id 7 \(a,1, d\); give the whole name"):
        read(tmp_path / "x.json", [ROW], twice)
    given = read(tmp_path / "x.json", [ROW | {"image_id": "d"}, ROW | {"image_id": 3}], twice)
    assert [len(each.boxes) for each in given.detections] == [0, 1, 0, 1]
