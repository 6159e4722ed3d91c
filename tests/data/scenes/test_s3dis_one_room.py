"""The real room in two halves: the same classes, every row, duplicates included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.areas.scenes.sets.s3dis import S3disOneRoom
from sightline.areas.scenes.sets.s3dis_files import CLASS_NAMES
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from tests.data.preparing import refuse
from tests.data.scenes.scene_writers import no_progress


def prepare(source: Path, target: Path) -> dict[str, Any]:
    return S3disOneRoom.prepare(source=source, target=target, name="s3dis_one_room", progress=no_progress)


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "xyz": generator.uniform(0, 6, (100, 3)).astype("f4"),
        "label": (np.arange(100) % 3).astype("u1"),
        "classes": np.array(["ceiling", "floor", "wall"]),
        **changes,
    }


def test_the_real_room(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "s3dis_one_room.npz"
    manifest = prepare(source, tmp_path / "set")
    with np.load(source, allow_pickle=False) as given:
        xyz, label, classes = given["xyz"], given["label"], given["classes"]
    assert manifest["class_names"] == classes.tolist() == list(CLASS_NAMES)
    assert sum(manifest["num_elements"].values()) == 352_256
    halves = {split: S3disOneRoom(split=split, root=str(tmp_path / "set")) for split in ("train", "test")}
    samples = {split: half[SampleKey(0, 0, 0)] for split, half in halves.items()}
    occurring = {split: set(sample["label"].tolist()) for split, sample in samples.items()}
    assert occurring["train"] == occurring["test"]
    assert len(occurring["train"]) == 11
    assert samples["train"]["points"][:, 1].max() < np.median(xyz[:, 1]) <= samples["test"]["points"][:, 1].min()
    for split, is_half in (("train", xyz[:, 1] < np.median(xyz[:, 1])), ("test", xyz[:, 1] >= np.median(xyz[:, 1]))):
        assert np.array_equal(samples[split]["points"].numpy(), xyz[is_half]), "every row, in the order of the file"
        assert np.array_equal(samples[split]["label"].numpy(), label[is_half])
    rows = np.concatenate([sample["points"].numpy() for sample in samples.values()])
    assert len(rows) - len(np.unique(rows, axis=0)) == 31_427, "duplicates stay"
    facts = halves["train"].info.facts
    assert (facts["num_classes"], facts["in_channels"], facts["up_axis"]) == (13, 3, "z")
    assert facts["class_counts"] == tuple(np.bincount(samples["train"]["label"], minlength=13).tolist())
    # the majority class of the training half, answered everywhere: the yardstick 0.020 of data/README.md
    majority = int(np.argmax(facts["class_counts"]))
    iou = (samples["test"]["label"] == majority).double().mean().item()
    assert round(iou / 11, 3) == 0.020


def test_nothing_is_held_out_and_that_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "room.npz", **arrays())
    prepare(tmp_path / "room.npz", tmp_path / "set")
    half = S3disOneRoom(split="train", root=str(tmp_path / "set"), repeats=16)
    assert half.info.split_sizes == {"train": 16, "validation": 0, "test": 1}
    with pytest.raises(ConfigError, match=r"has no scene in the part 'validation'.*; set evaluate.select: test"):
        S3disOneRoom(split="validation", root=str(tmp_path / "set"))
    with pytest.raises(DataError, match="has no part 'val'"):
        S3disOneRoom(split="val", root=str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xyz": np.zeros((100, 2), "f4")}, r"xyz is float32 \(100, 2\), \(100, 3\) is needed"),
        ({"label": np.zeros(99, "u1")}, "xyz is float32"),
        ({"label": np.full(100, 3, "u1")}, r"label\[0\] is 3, classes names 3"),
        ({"label": np.zeros(100)}, "label is float64"),
        ({"xyz": np.full((100, 3), np.nan, "f4")}, r"xyz\[0\] is \[nan"),
        ({"classes": np.arange(3)}, "classes is int64"),
    ],
)
def test_archives_that_are_something_else(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "room.npz", **arrays(**changes))
    refuse(prepare, tmp_path / "room.npz", f"room.npz: {words}")


def test_sources_that_are_none(tmp_path: Path) -> None:
    refuse(prepare, tmp_path / "room.npz", "there is no such file")
    np.savez(tmp_path / "room.npz", xyz=np.zeros((3, 3)))
    refuse(prepare, tmp_path / "room.npz", "has no entry 'label'; needed are xyz, label, classes")
