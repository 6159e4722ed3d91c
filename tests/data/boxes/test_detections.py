"""Found boxes go back to the file's pixels, and through files of results without losing a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.data.boxes.coco import Coco
from sightline.data.boxes.detections import Detections, ImageRef, detections_of_coco, detections_of_odgt
from sightline.draws import Draws
from sightline.errors import DataError
from sightline.tasks.detections import to_file
from sightline.transforms.boxes import FitImage
from sightline.types import SampleKey
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
    scores = generator.random(count).astype(np.float32) ** 9
    return Detections(image, boxes, scores, generator.integers(0, 3, count))


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert ours.image == theirs.image
    for name in ("boxes", "scores", "label"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


@pytest.fixture
def results() -> list[Detections]:
    return [found(IMAGES[0], 500), found(IMAGES[1], 3), found(IMAGES[2], 0)]


def test_coco_results_give_back_every_bit(results: list[Detections]) -> None:
    rows = json.loads(json.dumps([row for each in results for row in each.to_coco(IDS)]))
    assert {row["image_id"] for row in rows} == {7, 3}
    assert {row["category_id"] for row in rows} == {3, 7, 90}
    for ours, theirs in zip(
        detections_of_coco(rows, images=IMAGES, category_ids=IDS, where="x.json"), results, strict=True
    ):
        assert_same(ours, theirs)


def test_odgt_results_give_back_every_bit(results: list[Detections]) -> None:
    lines = [json.loads(json.dumps(each.to_odgt())) for each in results]
    assert lines[2] == {"ID": "c", "width": 5, "height": 5, "dtboxes": []}
    assert lines[0]["width"] == 640
    for ours, theirs in zip(detections_of_odgt(lines[::-1], images=IMAGES, where="x.odgt"), results, strict=True):
        assert_same(ours, theirs)


def test_a_hand_read_row() -> None:
    one = Detections(IMAGES[1], np.array([[1.5, -2, 4, 10]]), np.array([0.25]), np.array([1]))
    assert one.to_coco(IDS) == [{"image_id": 3, "category_id": 7, "bbox": [1.5, -2, 2.5, 12], "score": 0.25}]
    assert one.to_odgt()["dtboxes"] == [{"box": [1.5, -2, 2.5, 12], "score": 0.25, "tag": 2}]
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
    back = to_file(rows, moved["to_canvas"][0], images[SampleKey(0, 0, 0)]["file_px"], clip=False)
    np.testing.assert_allclose(back[:, :4], images.record(0).boxes, rtol=1e-6, atol=1e-5)
    assert images.image(0) == ("a.png", 1, 30, 50)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_id": 5}, "row 0 is of image 5, which is not among these images"),
        ({"category_id": 4}, "row 0 has no 4 or an unknown one"),
        ({"bbox": [1, 2, 3]}, "a box of four numbers and a score are needed"),
        ({"score": float("nan")}, "a box or score is not finite"),
    ],
)
def test_rows_of_others_that_do_not_fit_are_named(changed: dict[str, Any], told: str) -> None:
    row = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5} | changed
    with pytest.raises(DataError, match=f"x.json: .*{told}"):
        detections_of_coco([row], images=IMAGES, category_ids=IDS, where="x.json")


def test_lines_of_others_that_do_not_fit_are_named() -> None:
    line = {"ID": "c", "dtboxes": []}
    for lines, told in (
        ([line, line], "line 2: the image 'c' is there twice"),
        ([{"ID": "d", "dtboxes": []}], "line 1: the image 'd' is not among these images"),
        ([{"ID": "c"}], "line 1 has no 'dtboxes'"),
    ):
        with pytest.raises(DataError, match=told):
            detections_of_odgt(lines, images=IMAGES, where="x.odgt")
    with pytest.raises(ValueError, match="2 boxes, 1 scores and 1 classes"):
        Detections(IMAGES[0], np.zeros((2, 4)), np.zeros(1), np.zeros(1))
