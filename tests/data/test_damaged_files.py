"""Files with a fault that fuzzing found a reader to stumble over, each refused in a line that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.clouds.sets.modelnet_files import ClassSubset, text_contents
from sightline.contract.errors import DataError
from sightline.store.boxes.people.citypersons import read_citypersons
from sightline.store.boxes.people.crowdhuman import read_crowdhuman
from sightline.store.boxes.yolo_txt import read_yolo
from sightline.store.files.scan_reading import read_range_image
from tests.data.boxes.box_writers import pattern, write_image


def pixel_beyond_float(folder: Path) -> object:
    image = np.ones((1, 1, 6))
    image[0, 0, 0] = 1e300
    np.save(folder / "range.npy", image)
    return read_range_image(folder / "range.npy", height=1, width=1)


def odgt_outside(folder: Path) -> object:
    for name in ("/etc/one", "../one"):
        (folder / "annotation_train.odgt").write_text(json.dumps({"ID": name, "gtboxes": []}))
        with pytest.raises(DataError, match="leads out of the folder"):
            read_crowdhuman(folder)
    return read_crowdhuman(folder)


def citypersons_outside(folder: Path) -> object:
    from scipy.io import savemat

    write_image(folder / "leftImg8bit/train/b/b.png", pattern(9, 9))
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = {"cityname": "../..", "im_name": "a.png", "bbs": np.zeros((1, 10))}
    savemat(folder / "anno_train.mat", {"anno_train_aligned": cells})
    return read_citypersons(folder)


def modelnet_outside(folder: Path) -> object:
    (folder / "modelnet40_train.txt").write_text("airplane_../../airplane_0001\n")
    (folder / "modelnet40_test.txt").write_text("airplane_0002\n")
    return text_contents(folder, ClassSubset.from_set_name("modelnet40"))


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (pixel_beyond_float, r"range\.npy: pixel \(0, 0\) lies inf m away"),
        (odgt_outside, r"annotation_train\.odgt:1: .*'\.\./one' leads out"),
        (citypersons_outside, r"anno_train\.mat: image 1: .*'\.\./\.\.' and 'a\.png' are no names"),
        (modelnet_outside, r"modelnet40_train\.txt:1: 'airplane_\.\./\.\./airplane_0001' is not the name of a shape"),
    ],
)
def test_refused_in_a_line(read: Callable[[Path], object], word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=word) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_name_too_long_for_the_disk_lists_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "images/train/a.png", pattern(9, 9))
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "data.yaml").write_text(f"train: {'x' * 300}\nnames: [car]\n")
    assert len(read_yolo(tmp_path, names=None).images) == 1
