"""Labels of turned photos and of stored pixels, by sizes and by option: the box lies on what was labelled."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.boxes.labelled_images import LabelledImages
from tests.cases import run_each
from tests.data.boxes.box_writers import pattern, write_coco, write_image
from tests.data.preparing import prepare_set, refuse

_VIEWS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, *range(2, a.ndim)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, *range(2, a.ndim)), 2),
    8: np.rot90,
}
"""EXIF orientation to what viewers show. Source: Exif 2.32, tag 274 (the 0th row and column of the stored pixels)."""
STORED = (6, 10)


def _draw(orientation: int, *, on_turned: bool) -> tuple[np.ndarray, list[int]]:
    """Stored pixels that are black but for the object, and its box as drawn on them or on the turned photo."""
    stored = np.zeros((*STORED, 3), dtype=np.uint8)
    stored[1:3, 4:9] = 255
    seen = _VIEWS[orientation](stored) if on_turned else stored
    rows, columns = np.nonzero(seen[..., 0])
    return stored, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def _open(name: str, root: Path) -> LabelledImages:
    images: LabelledImages = registry.data.get_entry(name).builder(
        split="train", root=str(root), test_share=0.0, validation_share=0.0
    )
    return images


@run_each("orientation, on_turned", [(orientation, on) for orientation in _VIEWS for on in (True, False)])
def test_boxes_lie_on_the_object_in_every_orientation(tmp_path: Path, orientation: int, on_turned: bool) -> None:
    """YOLO's files state no size, so that the option alone says what their boxes are about."""
    source, target = tmp_path / "in", tmp_path / "set"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    stored, (left, top, right, bottom) = _draw(orientation, on_turned=on_turned)
    height, width = _VIEWS[orientation](stored).shape[:2] if on_turned else STORED
    write_image(source / "a.png", stored, orientation=orientation)
    shares = (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
    (source / "a.txt").write_text("0 " + " ".join(map(repr, map(float, shares))))
    rule = "apply" if on_turned else "ignore"
    manifest = prepare_set("yolo_txt", source, target, names=("car",), orientation=rule)
    assert manifest["options"]["orientation"] == rule
    sample = _open("yolo_txt", target)[SampleKey(0, 0, 0)]
    image, box = sample["image"].numpy(), sample["boxes"].numpy()[0].round().astype(int)
    inside = image[box[1] : box[3], box[0] : box[2], 0]
    assert inside.size == 10
    assert (inside == 255).all()
    assert (image[..., 0] == 255).sum() == 10


def test_an_option_overrules_the_stated_size_and_is_told_where_boxes_contradict_it(tmp_path: Path) -> None:
    """A tool states the stored 10 x 6, and its boxes are drawn on the turned photo of 6 x 10."""
    source = tmp_path / "in"
    stored, (left, top, right, bottom) = _draw(6, on_turned=True)
    write_image(source / "a.png", stored, orientation=6)
    write_image(source / "b.png", pattern(6, 10))
    bbox = [*map(int, (left, top, right - left, bottom - top))]
    box: dict[str, Any] = {"image_id": 1, "category_id": 3, "bbox": bbox}
    write_coco(source / "all.json", [(1, "a.png", 10, 6), (2, "b.png", 10, 6)], [box])
    kind = "1 boxes beyond the stored pixels of photos that fit into the turned photos (orientation=apply, if labels"
    for options in ({}, {"orientation": "ignore"}):
        text = f"{kind} are about these), first: a.png: person 3, 4, 5, 9 in 10 x 6"
        with pytest.raises(DataError, match=re.escape(text)) as refused:
            prepare_set("coco", source, tmp_path / "none", **options)
        assert "\n" not in str(refused.value)
    manifest = prepare_set("coco", source, tmp_path / "set", orientation="apply")
    assert _open("coco", tmp_path / "set").record(0).boxes.tolist() == [[left, top, right, bottom]]
    overruled = "1 images have labels that state the size of the other orientation, which is overruled, first: a.png"
    assert overruled in manifest["differences"]
    assert registry.data.get_entry("coco").builder.survey(source, orientation="apply")["images"] == {"all": 2}
    wide = box | {"bbox": [6, 1, 4, 2]}
    write_coco(source / "all.json", [(1, "a.png", 10, 6), (2, "b.png", 10, 6)], [wide])
    turned = "1 boxes beyond photos as EXIF turns them that fit into the stored pixels (orientation=ignore, if labels"
    refuse("coco", source, re.escape(turned), orientation="apply")
    assert prepare_set("coco", source, tmp_path / "sized")["statistics"]["image_sizes"] == {"10x6": 2}
    with pytest.raises(DataError, match="was prepared with orientation = sizes, now it is ignore"):
        prepare_set("coco", source, tmp_path / "sized", orientation="ignore")
