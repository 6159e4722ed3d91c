"""Files by a pattern of their paths: order, parts that come again, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.contract.errors import DataError
from sightline.store.prepared.source_files import find_files

CLASSES = ("night_stand", "night", "bed")


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_in_the_order_of_their_parts_then_of_their_numbers(tmp_path: Path) -> None:
    names = ("test/bed_1.txt", "train/bed_10.txt", "train/bed_2.txt", "train/night_stand_3.txt", "train/night_4.txt")
    write(tmp_path, *names, "train/.bed_0.txt", "train/bed_5.npy", "train/deep/bed_6.txt")
    allowed = {"split": ("train", "test"), "label": CLASSES}
    files = find_files(tmp_path, "{split}/{label}_{name}.txt", allowed=allowed)
    parts = [(file.parts["split"], file.parts["label"], file.parts["name"]) for file in files]
    in_train = [("train", "night_stand", "3"), ("train", "night", "4"), ("train", "bed", "2"), ("train", "bed", "10")]
    assert parts == [*in_train, ("test", "bed", "1")]


def test_a_part_that_comes_again_is_the_same(tmp_path: Path) -> None:
    write(tmp_path, "rooms/a/a.ply", "rooms/a/b.ply", "rooms/c/c.ply")
    files = find_files(tmp_path, "rooms/{name}/{name}.ply", allowed={})
    assert [file.path.relative_to(tmp_path).as_posix() for file in files] == ["rooms/a/a.ply", "rooms/c/c.ply"]


def test_none_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/beds_1.txt", "train/bed_2.txt")
    with pytest.raises(DataError, match=r"beds_1\.txt: 'beds' is no label; it is one of .*; did you mean 'bed'"):
        find_files(tmp_path, "{split}/{label}_{name}.txt", allowed={"label": CLASSES})
    with pytest.raises(DataError, match=r"holds train, no file SPLIT/NAME\.npz$"):
        find_files(tmp_path, "{split}/{name}.npz", allowed={})
