"""What every depth set shares: the contract of its samples, dropped frames, facts, skeletons that are trees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline import registry
from sightline.data.depth.depth_frames import DepthCamera, DepthFrames, FrameSplit
from sightline.data.depth.references import DepthFrame, Reference, ReferencePointFile, TrueJoint
from sightline.data.depth.skeletons import BODY_15, HAND_14, HAND_16, HAND_21, HAND_21_BY_LEVEL, Skeleton
from sightline.data.loading.batch_reader import BatchReader
from sightline.errors import ConfigError
from sightline.types import SampleKey

CAMERA = DepthCamera(100.0, -100.0, 16.0, 12.0, 32, 24)


class ToyFrames(DepthFrames):
    """Frame p is one pixel of depth 300 + p."""

    set_name = "toy"

    def _frame(self, place: int) -> DepthFrame:
        depth = np.zeros((24, 32), dtype=np.float32)
        depth[12, 16] = 300 + place
        return DepthFrame(depth, np.full((21, 3), 300 + place, dtype=np.float32), np.ones(21, dtype=bool))


def toy(split: str = "train", places: tuple[int, ...] = (0, 2, 3), reference: Reference | None = None) -> ToyFrames:
    part = FrameSplit(split, "train", np.array(places, dtype=np.int64), 4, {"train": len(places), "test": 1})
    return ToyFrames(part=part, camera=CAMERA, skeleton=HAND_21, reference=reference)


def test_a_sample_keeps_the_contract() -> None:
    frames = toy()
    sample = frames[SampleKey(1, 0, 0)]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}
    assert shapes == {
        "depth": ((24, 32), torch.float32),
        "camera": ((4,), torch.float64),
        "joints": ((21, 3), torch.float32),
        "visible": ((21,), torch.bool),
        "reference": ((3,), torch.float32),
    }
    assert shapes.keys() == frames.info.fields.keys()
    assert sample["camera"].tolist() == [100, -100, 16, 12]
    assert sample["reference"].tolist() == [0, 0, 302]
    assert frames.info.facts.keys() <= registry.DATA_FACTS
    assert frames.info.facts["image_size_px"] == (32, 24)
    assert frames.info.facts["reference_source"] == "centre_of_mass"
    assert toy(reference=TrueJoint()).info.facts["reference_source"] == "truth (oracle)"


def test_a_batch_is_its_samples_and_nothing_stored_changes() -> None:
    reader = BatchReader(toy(reference=TrueJoint()))
    keys = [SampleKey(2, 0, 0), SampleKey(0, 0, 0)]
    batch = reader(keys)
    assert batch["sample_index"].tolist() == [2, 0]
    assert batch["reference"][:, 2].tolist() == [303, 300]
    for values in batch.values():
        values.zero_()
    assert reader(keys)["depth"].amax((1, 2)).tolist() == [303, 300]
    with pytest.raises(IndexError, match="toy has the samples 0 to 2, asked for"):
        toy()[SampleKey(3, 0, 0)]


def test_frames_without_a_reference_point_are_dropped_from_training_alone(tmp_path: Path) -> None:
    (tmp_path / "points.txt").write_text("0 0 300\n0 0 301\ninvalid\n0 0 303\n")
    reference = ReferencePointFile(path=str(tmp_path / "points.txt"))
    train = toy(reference=reference)
    assert len(train) == train.info.split_sizes["train"] == 2
    assert train[SampleKey(1, 0, 0)]["reference"].tolist() == [0, 0, 303]
    test = toy("test", (1, 2), reference)
    assert len(test) == 2
    assert test[SampleKey(1, 0, 0)]["reference"].tolist() == [0, 0, 302]
    with pytest.raises(ConfigError, match=r"toy: has no frame in the part 'train'; it has train \(1\), test \(1\)"):
        toy(places=(2,), reference=reference)


@pytest.mark.parametrize("skeleton", [HAND_21, HAND_21_BY_LEVEL, HAND_16, HAND_14, BODY_15])
def test_bones_are_a_tree_of_all_joints(skeleton: Skeleton) -> None:
    reached = {skeleton.centre}
    for _ in skeleton.bones:
        reached |= {joint for bone in skeleton.bones if reached & set(bone) for joint in bone}
    assert reached == set(range(len(skeleton)))
    assert len(set(skeleton.joint_names)) == len(skeleton)


def test_orders_of_joints() -> None:
    """As the sets' own descriptions number them, from 1: pose.md, section 5.2."""
    assert HAND_21.joint_names[5] == "middle_mcp"
    assert HAND_21.joint_names[20] == "thumb_tip"
    assert [b for b in HAND_21.bones if 0 in b] == [(0, 1), (0, 5), (0, 9), (0, 13), (0, 17)]
    assert HAND_21_BY_LEVEL.joint_names[:6] == (
        "wrist",
        *(f"{f}_mcp" for f in ("thumb", "index", "middle", "ring", "little")),
    )
    assert HAND_21_BY_LEVEL.joint_names[6:9] == ("thumb_pip", "thumb_dip", "thumb_tip")
    assert (1, 6) in HAND_21_BY_LEVEL.bones
    assert (5, 18) in HAND_21_BY_LEVEL.bones
    assert HAND_16.joint_names[:4] == ("palm", "thumb_root", "thumb_middle", "thumb_tip")
    assert HAND_14.joint_names[7:] == (
        "index_middle",
        "thumb_tip",
        "thumb_middle",
        "thumb_root",
        "wrist_1",
        "wrist_2",
        "palm",
    )
    assert BODY_15.joint_names[8:10] == ("torso", "right_hip")
    same = dict(zip(HAND_21.joint_names, HAND_21.sigmas, strict=True))
    assert same == dict(zip(HAND_21_BY_LEVEL.joint_names, HAND_21_BY_LEVEL.sigmas, strict=True))
    for skeleton in (HAND_21, HAND_21_BY_LEVEL):
        assert [skeleton.joint_names[j] for j in skeleton.pck_joints] == ["wrist", "middle_mcp"]
