"""What every depth set shares: samples, dropped frames, facts, skeletons and reference points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.areas.pose.sets.depth_frames import (
    BODY_15,
    HAND_14,
    HAND_16,
    HAND_21,
    HAND_21_BY_LEVEL,
    CentreOfMass,
    DepthCamera,
    DepthFrame,
    DepthFrames,
    FrameOrder,
    FrameSplit,
    Reference,
    ReferencePointFile,
    TrueJoint,
)
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import SampleKey
from sightline.ops.views.pinhole import project_points
from sightline.store.loading.batch_reader import BatchReader

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
    assert " ".join(HAND_14.joint_names[7:]) == "index_middle thumb_tip thumb_middle thumb_root wrist_1 wrist_2 palm"
    assert BODY_15.joint_names[8:10] == ("torso", "right_hip")


# --- reference points -------------------------------------------------------------------------------------------------


FRAME_CAMERA = np.array([100.0, -100.0, 16.0, 12.0])


def order_of(num_frames: int = 3, **changes: object) -> FrameOrder:
    given = {"cube_mm": 200.0, "path_placeholders": {"split": "train", "subject": "3"}, **changes}
    return FrameOrder(title="toy train", num_frames=num_frames, camera=FRAME_CAMERA, centre=1, **given)  # type: ignore[arg-type]


def frame_of(depth: np.ndarray | None = None, **changes: object) -> DepthFrame:
    joints = np.array([[1, 2, 300], [4, 5, 306]], dtype=np.float32)
    image = np.zeros((24, 32), dtype=np.float32) if depth is None else depth
    given = {"depth": image, "joints": joints, "visible": np.ones(2, dtype=bool), **changes}
    return DepthFrame(**given)  # type: ignore[arg-type]


def test_the_truth_is_the_joint_in_the_middle_and_says_that_it_is_an_oracle() -> None:
    locate = TrueJoint().points_for(order_of()).find
    assert locate(frame_of(), 0).tolist() == [4, 5, 306]
    assert "oracle" in TrueJoint().title
    with pytest.raises(DataError, match="toy train: frame 2 has no labelled joint 1"):
        locate(frame_of(joints=np.zeros((2, 3), dtype=np.float32)), 2)


def test_the_centre_of_mass_of_two_pixels() -> None:
    """(10, 12) at 200 mm lies at x = -12, (26, 12) at 100 mm at x = 10; y is 0 in row 12."""
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[12, 10], depth[12, 26] = 200, 100
    assert CentreOfMass().points_for(order_of()).find(frame_of(depth), 0).tolist() == [-1.0, 0.0, 150.0]


def test_what_is_far_off_is_cropped_away() -> None:
    """A hand of 5 x 5 pixels at 400 mm and a wall of 20 behind it at 500 mm: the means walk to the hand.

    By hand: the first mean has z = (25 * 400 + 20 * 500) / 45 = 444.4, and the wall is 55.6 mm away, inside the cube
    of 200 mm, but outside one of 100 mm.
    """
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[10:15, 14:19], depth[20, 6:26] = 400, 500
    found = CentreOfMass().points_for(order_of(cube_mm=100.0)).find(frame_of(depth), 0)
    assert np.allclose(found, [0.0, 0.0, 400.0])
    one = CentreOfMass(passes=0).points_for(order_of(cube_mm=100.0)).find(frame_of(depth), 0)
    assert np.isclose(one[2], 20_000 / 45)
    assert CentreOfMass(far_mm=450.0, passes=0).points_for(order_of()).find(frame_of(depth), 0)[2] == 400
    assert CentreOfMass(near_mm=450.0, passes=0).points_for(order_of()).find(frame_of(depth), 0)[2] == 500


def test_the_centre_of_mass_moves_with_the_scene() -> None:
    """A blob drawn at another place is found there; the image is not changed."""
    draw = np.random.default_rng(0)
    points = draw.normal((30, -20, 350), 15, (400, 3))
    depth = np.zeros((240, 320), dtype=np.float32)
    camera = np.array([241.42, -241.42, 160.0, 120.0])
    u, v, z = project_points(points, camera).T
    depth[v.round().astype(int), u.round().astype(int)] = z
    before = depth.copy()
    found = CentreOfMass().locate(depth, camera, cube_mm=200.0)
    assert found is not None
    assert np.abs(found - points.mean(0)).max() < 4 * 15 / 20  # the mean of 400 draws, and pixels of 1.4 mm
    assert np.array_equal(depth, before)


def test_an_empty_image_has_no_centre_of_mass() -> None:
    with pytest.raises(DataError, match="toy train: frame 7 has no measured pixel"):
        CentreOfMass().points_for(order_of()).find(frame_of(), 7)
    with pytest.raises(ConfigError, match=r"far_mm: is 100, it must be larger than near_mm, which is 200"):
        CentreOfMass(near_mm=200.0, far_mm=100.0)


# --- files ------------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "center_train_3_refined.txt").write_text(text)
    return str(tmp_path / "center_{split}_{subject}_refined.txt")


def test_a_file_answers_by_place(tmp_path: Path) -> None:
    path = written(tmp_path, "1 2 300\ninvalid 0 0 0\n-4.5 5e0 306.25\n")
    locate = ReferencePointFile(path=path).points_for(order_of())
    assert locate.find(frame_of(), 2).tolist() == [-4.5, 5.0, 306.25]
    assert locate.is_known is not None
    assert locate.is_known.tolist() == [True, False, True]
    depth = np.zeros((24, 32), dtype=np.float32)
    depth[12, 16] = 250
    assert locate.find(frame_of(depth), 1).tolist() == [0, 0, 250]


def test_metres_become_millimetres(tmp_path: Path) -> None:
    path = written(tmp_path, "0.1 0.2 2.5\n" * 3)
    assert np.allclose(
        ReferencePointFile(path=path, unit="m").points_for(order_of()).find(frame_of(), 0), [100, 200, 2500]
    )
    with pytest.raises(DataError, match=r"z reaches 2\.5 mm; the file is in metres: set unit: m"):
        ReferencePointFile(path=path).points_for(order_of())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 2 300\n" * 2, "has 2 lines, toy train has 3 frames: 1 too few"),
        ("1 2 300\n" * 5, r"has 5 lines, toy train has 3 frames: 2 too many; .* \(an old copy\)"),
        ("1 2 300\n1 2\n1 2 300\n", ":2: '1 2' is neither three numbers nor 'invalid'"),
        ("1 2 300\n1 2 nan\n1 2 300\n", ":2: '1 2 nan' is neither"),
        ("1 2 300\n\n1 2 300\n", ":2: '' is neither"),
        ("1 2 300\n1 2 -300\n1 2 300\n", ":2: z is -300 mm, behind the camera"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        ReferencePointFile(path=written(tmp_path, text)).points_for(order_of(if_counts_differ="an old copy"))
    assert "center_train_3_refined.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_words_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: .*\{fold\}.* these are \{split\}, \{subject\}"):
        ReferencePointFile(path="centres_{fold}.txt").points_for(order_of())
    with pytest.raises(DataError, match="cannot be read"):
        ReferencePointFile(path=str(tmp_path)).points_for(order_of())


@pytest.mark.parametrize("name", ["hands2017", "icvl", "itop", "msra", "nyu"])
def test_the_missing_file_of_a_shipped_recipe_names_the_ways_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(Path(__file__).parents[3] / "configs" / "pose" / f"{name}_v2v.yaml")
    block = config.data.arguments["reference"]
    path = block.arguments["path"].format(split="train", subject="3")
    with pytest.raises(DataError) as error:
        registry.references.build(block, facts={}).points_for(order_of())
    assert str(error.value).startswith(f"{path}: the file of the reference points of toy train is missing; ")
    for way in ("data.reference.path", "data.reference.name=centre_of_mass", "predict RUN --data CONFIG split=train"):
        assert way in str(error.value)
    assert str(error.value).endswith(f"split=train --out {path}")
