"""SqueezeSeg's range images: the image comes back exactly from ring and column; lists, drives, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.scans.sets.squeezeseg_npy import SqueezeSegNpy
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import Sample, SampleKey
from sightline.store.prepared import prepared_set
from tests.data.preparing import names_of, refuse
from tests.data.scans.lidar_writers import quiet, street_scan, write_squeezeseg

NAMES = [f"2011_09_26_{drive:04d}_{frame:010d}" for drive in (1, 2, 5) for frame in (3, 17)]


def prepare(source: Path, target: Path) -> dict[str, Any]:
    return SqueezeSegNpy.prepare(source=source, target=target, name="squeezeseg_npy", progress=quiet)


def opened(root: Path, split: str = "train", **arguments: Any) -> SqueezeSegNpy:
    return SqueezeSegNpy(split=split, root=str(root), **arguments)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        _, scan = street_scan(seed, num_columns=16)
        labels = np.select([scan.ids == 10, scan.ids == 30], [1, 2], 0)
        write_squeezeseg(
            tmp_path / f"lidar_2d/{name}.npy", scan, labels, width=16, dtype=("float32", "float64")[seed % 2]
        )
    return tmp_path


def image_of(sample: Sample, shape: tuple[int, int]) -> np.ndarray:
    """A sample back in its pixels."""
    image = np.zeros((*shape, 6), dtype=np.float32)
    points = sample["points"].numpy()
    distance = np.linalg.norm(points, axis=1)
    values = [*points.T, sample["remission"].numpy()[:, 0], distance, sample["label"].numpy()]
    image[sample["ring"], sample["column"]] = np.stack(values, axis=1)
    return image


def test_the_image_comes_back_exactly(images: Path) -> None:
    prepare(images, images / "set")
    part = opened(images / "set", "test", tested=(NAMES[0][:15],))
    assert names_of(part) == NAMES[:2]
    for index, name in enumerate(names_of(part)):
        sample = part[SampleKey(index, 0, 0)]
        assert set(sample) == set(part.info.fields)
        stored = np.load(images / f"lidar_2d/{name}.npy").astype(np.float32)
        assert np.allclose(image_of(sample, (64, 16)), stored, rtol=1e-6)
    facts = part.info.facts
    assert facts["class_names"] == ("unknown", "car", "pedestrian", "cyclist")
    assert (facts["ignore_index"], facts["azimuth_deg"], facts["num_beams"]) == (255, (45.0, -45.0), 64)
    assert facts["class_counts"][3] == 0
    assert prepared_set.verify(images / "set") > len(NAMES)


@pytest.mark.parametrize("tested", range(4))
def test_the_real_images_come_back_exactly_and_are_tested_in_turn(shared: Path, tmp_path: Path, tested: int) -> None:
    source = shared / "data/squeezeseg_samples/data/samples"
    names = sorted(path.stem for path in source.glob("*.npy"))
    report = prepare(source, tmp_path / "set")
    assert report["image_size_px"] == [64, 512]
    part = opened(tmp_path / "set", "test", tested=(names[tested],), validation_share=0.0)
    assert part.info.split_sizes == {"train": 3, "test": 1}
    assert part.info.folds is not None
    assert part.info.folds.names == tuple(names)
    assert part.info.folds.tested == (names[tested],)
    sample, stored = part[SampleKey(0, 0, 0)], np.load(source / f"{names[tested]}.npy")
    assert 0.86 <= len(sample["points"]) / (64 * 512) <= 0.88
    image = image_of(sample, (64, 512))
    assert np.array_equal(image[..., [0, 1, 2, 3, 5]], stored[..., [0, 1, 2, 3, 5]])
    assert np.allclose(image[..., 4], stored[..., 4], rtol=1e-6)
    counts = np.bincount(stored[stored[..., 4] > 0][:, 5].astype(int), minlength=4)
    whole = opened(tmp_path / "set", "test", test_share=0.0, tested=(names[tested],))
    assert np.array_equal(np.bincount(whole[SampleKey(0, 0, 0)]["label"], minlength=4), counts)


def test_parts_are_drives_lists_or_the_last_images(images: Path) -> None:
    prepare(images, images / "set")
    assert names_of(opened(images / "set", "test", test_share=0.34)) == NAMES[4:]
    assert names_of(opened(images / "set", "train", test_share=0.34, validation_share=0.25)) == NAMES[:3]
    with pytest.raises(DataError, match=r"no scan's name begins with '2012'; they run from 2011_09_26_0001"):
        opened(images / "set", tested=("2012",))
    lists = images / "ImageSet"
    lists.mkdir()
    (lists / "train.txt").write_text("\n".join([*NAMES[:3], "2011_09_26_0093_0000000001"]) + "\n")
    (lists / "val.txt").write_text(NAMES[5])
    report = prepare(images, images / "listed")
    assert report["differences"] == [
        "1 names in the lists of ImageSet without files",
        "2 scans in none of the lists of ImageSet, left out",
    ]
    assert names_of(opened(images / "listed", "test")) == [NAMES[5]]
    assert names_of(opened(images / "listed", "train", validation_share=0.0)) == NAMES[:3]
    assert names_of(opened(images / "listed", "test", tested=("2011_09_26_0002",))) == [NAMES[2]]
    (lists / "val.txt").write_text(NAMES[0])
    refuse(prepare, images, "is in both lists; each name has one part")


@pytest.mark.parametrize(
    ("channel", "value", "told"),
    [
        (5, 1.5, r"has the label 1\.5; labels are whole numbers"),
        (5, -1.0, "has the label -1; labels are whole numbers"),
        (0, 900.0, r"lies 900\.\d+ m away and channel 4 is .*; the channels must be x, y, z, intensity, range, label"),
        (3, -0.5, r"is .*, -0\.5 \(x, y, z, remission\)"),
    ],
)
def test_faulty_pixels_are_refused(images: Path, channel: int, value: float, told: str) -> None:
    path = images / f"lidar_2d/{NAMES[1]}.npy"
    image = np.load(path)
    row, column = np.argwhere(image[..., 4] > 0)[7]
    image[row, column, channel] = value
    np.save(path, image)
    refuse(prepare, images, rf"{NAMES[1]}\.npy: .*{told}")


def test_other_files_are_refused(images: Path) -> None:
    prepare(images, images / "set")
    with pytest.raises(ConfigError, match=r"num_beams is 16, the images of .* have 64 rows"):
        opened(images / "set", sensor={"num_beams": 16})
    maps = images / "mine.yaml"
    maps.write_text("labels: {0: a, 2: b}\nlearning_map: {0: 0, 2: 1}\nlearning_map_inv: {0: 0, 1: 2}\n")
    with pytest.raises(DataError, match=r"the label id 1 "):
        opened(images / "set", label_map=str(maps))
    np.save(images / f"lidar_2d/{NAMES[2]}.npy", np.zeros((64, 8, 6), dtype=np.float32))
    refuse(prepare, images, r"has \(64, 8\) pixels, the first image has \(64, 16\)")
    np.save(images / f"lidar_2d/{NAMES[0]}.npy", np.zeros((64, 16, 5), dtype=np.float32))
    refuse(prepare, images, r"holds float32 \(64, 16, 5\); a range image is float \(64, 512, 6\)")
    (images / "empty").mkdir()
    refuse(prepare, images / "empty", r"empty: holds nothing; files <date>_<drive>_<frame>\.npy are needed")
