"""Labels through all ten formats in a row, in any order: whatever is lost on the way is counted by its hop."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from sightline.store.boxes.image_listing import check_headers
from tests.data.boxes.box_writers import pattern, quiet, write_coco, write_image
from tests.data.boxes.test_convert import CATEGORIES, FORMATS, STREET, Table, assert_all_is_counted, convert

NAMES = {
    "train": ("s/a.png", "s/a.jpg", "t/a.png", "v1.0/im 0.png", "u\u0308😀.png", "train/r.png/s.png", "#%20.png"),
    "val": ("val/a.png", "val/a.b.png", "test_u.png"),
}
"""Photos of one stem in one folder and in two, and names that words, dots, blanks and other alphabets make odd."""


def write_odd_street(root: Path) -> Path:
    """The street of every field in photos of odd names; in the first of each split alone are all boxes."""
    for split, names in NAMES.items():
        for name in names:
            write_image(root / name, pattern(120, 200))
        images = [(number, name, 200, 120) for number, name in enumerate(names, start=1)]
        rows = [
            {"image_id": number, **row}
            for number in range(1, len(names))  # the last has no box
            for row in STREET[: len(STREET) if number < 3 else number]
        ]
        write_coco(root / f"instances_{split}.json", images, rows, categories=CATEGORIES)
    return root


def read_by_photo(name: str, root: Path) -> tuple[Table, set[str]]:
    """Boxes by the photo that the links of all hops lead to, and the classes."""
    labels = FORMATS[name].read(root)
    assert labels.faults.raise_or_note("refuse", root=labels.root) == []
    items = check_headers(labels, progress=quiet)
    table = {str(item.image.path.resolve()): (item.image.split, item.image.boxes) for item in items}
    assert len(table) == len(items)
    return table, {*labels.classes.names}


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 22))])
def test_ten_hops_count_all_that_is_lost(seed: int, tmp_path: Path) -> None:
    order = random.Random(seed).sample([*FORMATS], len(FORMATS))
    assert len(order) == 10
    name, source = "coco", write_odd_street(tmp_path / "in")
    before, classes = read_by_photo(name, source)
    num_photos = sum(map(len, NAMES.values()))
    assert len(before) == num_photos
    for hop, new_name in enumerate(order):
        target = tmp_path / f"hop{hop}"
        report = convert(name, source, new_name, target)
        after, new_classes = read_by_photo(new_name, target)
        assert before.keys() == after.keys()
        renamed = Counter({what: n for what, n in report["lost"].items() if what.startswith("images whose names")})
        assert renamed.total() <= num_photos
        counted = {**report, "lost": {what: n for what, n in report["lost"].items() if what not in renamed}}
        assert_all_is_counted(before, after, new_name, counted, gone_classes=classes - new_classes)
        name, source, before, classes = new_name, target, after, new_classes
