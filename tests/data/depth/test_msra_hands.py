"""MSRA hands from byte-exact trees: what a frame is, who is tested, which frames train, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.pose.sets.depth_frames import ReferencePointFile
from sightline.areas.pose.sets.hand_sets import MsraHands
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.prepared.prepared_set import verify
from tests.data.depth.depth_trees import Drawn, write_msra
from tests.data.preparing import names_of, prepare_set

COUNTS = {"P0/1": 3, "P0/Y": 2, "P1/1": 2, "P2/MP": 1, "P2/TIP": 2}


@pytest.fixture
def drawn_frames(tmp_path: Path) -> dict[str, Drawn]:
    return write_msra(tmp_path / "source" / "cvpr15_MSRAHandGestureDB", COUNTS)


prepare = functools.partial(prepare_set, "msra_hands")


@pytest.fixture
def root(drawn_frames: dict[str, Drawn], tmp_path: Path) -> str:
    prepare(tmp_path / "source", tmp_path / "msra")
    return str(tmp_path / "msra")


def test_one_subject_is_tested_and_the_others_train(root: str) -> None:
    test = MsraHands(split="test", root=root, subject=0)
    assert names_of(test) == [*(f"P0/1/{i:06d}" for i in range(3)), "P0/Y/000000", "P0/Y/000001"]
    train = MsraHands(split="train", root=root, subject=0, validation_share=0.34)
    held = MsraHands(split="validation", root=root, subject=0, validation_share=0.34)
    assert sorted(names_of(train) + names_of(held)) == [
        *("P1/1/000000", "P1/1/000001", "P2/MP/000000", "P2/TIP/000000", "P2/TIP/000001")
    ]
    trained, validated = ({name.rpartition("/")[0] for name in names_of(part)} for part in (train, held))
    assert not trained & validated
    assert train.info.split_sizes == {"train": len(train), "validation": len(held), "test": 5}
    assert train.info.folds is not None
    assert (train.info.folds.names, train.info.folds.tested) == (("P0", "P1", "P2"), ("P0",))


def test_all_of_them_train_without_validation(root: str) -> None:
    assert len(MsraHands(split="train", root=root, validation_share=0.0)) == 5
    with pytest.raises(ConfigError, match=r"has no frame in the part 'validation'.*set evaluate\.select: test"):
        MsraHands(split="validation", root=root, validation_share=0.0)
    with pytest.raises(DataError, match=r"holds no P7, it holds P0, P1, P2; set data\.subject"):
        MsraHands(split="train", root=root, subject=7)
    with pytest.raises(DataError, match="has no part 'dev'"):
        MsraHands(split="dev", root=root)


def test_files_of_reference_points_follow_the_order_of_the_files(root: str, tmp_path: Path) -> None:
    (tmp_path / "center_train_0_refined.txt").write_text("1 0 300\n2 0 300\n3 0 300\ninvalid\n5 0 300\n")
    path = str(tmp_path / "center_{split}_{subject}_refined.txt")
    train = MsraHands(split="train", root=root, validation_share=0.0, reference=ReferencePointFile(path=path))
    assert names_of(train) == ["P1/1/000000", "P1/1/000001", "P2/MP/000000", "P2/TIP/000001"]
    points = BatchReader(train)([SampleKey(i, 0, 0) for i in range(4)])["reference"]
    assert points[:, 0].tolist() == [1, 2, 3, 5]
    (tmp_path / "center_test_1_refined.txt").write_text("1 0 300\n")
    with pytest.raises(DataError, match=r"has 1 lines, msra_hands test has 2 frames: 1 too few.*76,391 and of 76,375"):
        MsraHands(split="test", root=root, subject=1, reference=ReferencePointFile(path=path))


def test_the_manifest_says_what_there_is(drawn_frames: dict[str, Drawn], tmp_path: Path) -> None:
    manifest = prepare(tmp_path / "source", tmp_path / "msra")
    assert verify(tmp_path / "msra") > 0
    told = MsraHands.describe(tmp_path / "msra")
    assert told["frames"] == {"P0": 5, "P1": 2, "P2": 3}
    joints = np.concatenate([drawn.joints for drawn in drawn_frames.values()])
    assert np.allclose(told["joint_depths_mm"], [joints[:, 2].min(), joints[:, 2].max()])
    assert "P0 has 5 frames, the release has 8499" in manifest["differences"]
    assert any(each.startswith("folders that are not there: P0/2, P0/3") for each in manifest["differences"])
    labels = tmp_path / "source" / "cvpr15_MSRAHandGestureDB" / "P1" / "1" / "joint.txt"
    first, second = labels.read_text().split("\n", 1)
    labels.write_text(f"{first}\n{second.replace(second.split()[0], '1.000', 1)}")
    other = prepare(tmp_path / "source", tmp_path / "other")
    assert other["label_sha256"] != manifest["label_sha256"]
