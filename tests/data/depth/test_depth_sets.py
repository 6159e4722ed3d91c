"""Published depth sets from byte-exact trees: frames as written, parts, reference order, what is refused."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from sightline.areas.pose.sets.depth_frames import CentreOfMass, ReferencePointFile, TrueJoint
from sightline.areas.pose.sets.hand_sets import Hands2017, IcvlHands, MsraHands, NyuHands
from sightline.areas.pose.sets.itop import Itop
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.store.files.text_tables import LabelLines
from tests.data.depth.depth_trees import (
    Drawn,
    msra_bytes,
    png16,
    write_hands2017,
    write_icvl,
    write_itop,
    write_msra,
    write_nyu,
)
from tests.data.preparing import Damage, cut, names_of, prepare_set, put, refuse, replace_line, set_key

PEOPLE = {
    "train": ["00_00000", "00_00001", "03_00000", "03_00001", "07_00000"],
    "test": ["01_00000", "01_00001", "01_00002"],
}
SETS: dict[str, tuple[Any, Callable[[Path], dict[str, Drawn]]]] = {
    "icvl_hands": (IcvlHands, write_icvl),
    "nyu_hands": (NyuHands, lambda root: write_nyu(root, {"train": 3, "test": 2})),
    "hands2017": (Hands2017, lambda root: write_hands2017(root, with_test_labels=True)),
    "itop": (Itop, lambda root: write_itop(root, PEOPLE)),
    "msra_hands": (MsraHands, lambda root: write_msra(root, {"P0/1": 3, "P0/Y": 2, "P1/1": 2, "P2/MP": 1})),
}


def prepare(kind: Any, tmp_path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = prepare_set(kind.set_name, tmp_path / "source", tmp_path / "set")
    return manifest


MIDDLE = {"icvl_hands": 0, "nyu_hands": 13, "hands2017": 3, "itop": 8, "msra_hands": 5}
"""Index of the joint in the middle."""


@pytest.mark.parametrize("name", SETS)
def test_every_frame_is_what_was_written(tmp_path: Path, name: str) -> None:
    """A joint appears on its patch by the camera: not for a y that points the other way, or another order of joints."""
    kind, write = SETS[name]
    made = write(tmp_path / "source")
    manifest = prepare(kind, tmp_path)
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        frames = kind(split=split, root=str(tmp_path / "set"), validation_share=0.0)
        found |= {name: frames[SampleKey(index, 0, 0)] for index, name in enumerate(names_of(frames))}
    assert found.keys() == made.keys()
    for key, drawn in made.items():
        assert np.array_equal(found[key]["depth"].numpy(), drawn.depth.astype(np.float32)), key
        assert np.abs(found[key]["joints"].numpy() - drawn.joints).max() < 1e-6 * 4000, key  # float32
        assert found[key]["visible"].all(), key
        assert found[key]["depth"].max() > 100, "depths are in mm"
    sample = kind(split="train", root=str(tmp_path / "set"), reference=TrueJoint())[SampleKey(0, 0, 0)]
    fx, fy, u0, v0 = sample["camera"].tolist()
    for x, y, z in sample["joints"].double():
        assert sample["depth"][round(float(fy * y / z + v0)), round(float(fx * x / z + u0))] > 0
    assert np.array_equal(sample["reference"], sample["joints"][MIDDLE[name]])
    told = kind.describe(tmp_path / "set")
    assert len(told["label_sha256"]) == 64
    assert sum(told["frames"].values()) == sum(facts["num_rows"] for facts in manifest["splits"].values())
    assert any("the release has" in line for line in manifest["differences"])
    assert f"sightline data prepare {kind.set_name} " in kind.card()["prepare"]


# --- ICVL -------------------------------------------------------------------------------------------------------------


def test_a_recording_stays_with_its_turned_copies(tmp_path: Path) -> None:
    write_icvl(tmp_path / "source")
    prepare(IcvlHands, tmp_path)
    for seed in range(4):
        parts = (
            IcvlHands(split=split, root=str(tmp_path / "set"), validation_share=0.34, split_seed=seed)
            for split in ("train", "validation")
        )
        train, held = ({name.split("/")[-2] for name in names_of(part)} for part in parts)
        assert len(held) == 1
        assert not train & held


def test_missing_training_images_are_told_and_keep_their_place(tmp_path: Path) -> None:
    made = write_icvl(tmp_path / "source")
    (tmp_path / "source/Training/Depth/20140/image_0001.png").unlink()
    manifest = prepare(IcvlHands, tmp_path)
    told = (
        "train: 1 of 8 frames are listed and their images are missing; they do not train; the first is 20140/image_0001"
    )
    assert any(line.startswith(told) for line in manifest["differences"])
    (tmp_path / "points_train.txt").write_text("".join(f"{i} 0 400\n" for i in range(8)))
    reference = ReferencePointFile(path=str(tmp_path / "points_{split}.txt"))
    frames = IcvlHands(split="train", root=str(tmp_path / "set"), validation_share=0.0, reference=reference)
    assert [frames[SampleKey(i, 0, 0)]["reference"][0].item() for i in range(7)] == [0, 2, 3, 4, 5, 6, 7]
    assert len(made) == 8 + 3


def test_blocks_of_lines_are_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.store.files.text_tables.BLOCK_LINES", 3)
    (tmp_path / "labels.txt").write_text("".join(f"n{i} {i} -{i}.5\r\n" for i in range(8)))
    labels = LabelLines(tmp_path / "labels.txt", num_columns=2)
    assert labels.names == [f"n{i}" for i in range(8)]
    assert labels.rows(3, 3).tolist() == [[3, -3.5], [4, -4.5], [5, -5.5]]
    assert labels.rows(6, 2).tolist() == [[6, -6.5], [7, -7.5]]


# --- NYU --------------------------------------------------------------------------------------------------------------


# --- HANDS 2017 -------------------------------------------------------------------------------------------------------


def test_a_test_part_without_labels_is_read_and_not_scored(tmp_path: Path) -> None:
    made = write_hands2017(tmp_path / "source")
    prepare(Hands2017, tmp_path)
    train = Hands2017(split="train", root=str(tmp_path / "set"), validation_share=0.0)
    assert "test" not in train.info.split_sizes
    test = Hands2017(split="test", root=str(tmp_path / "set"))
    sample = test[SampleKey(0, 0, 0)]
    assert not sample["visible"].any()
    assert not sample["joints"].any()
    assert np.array_equal(sample["depth"].numpy(), made["test/image_D00000001.png"].depth)
    with pytest.raises(DataError, match="hands2017 test: frame 0 has no labelled joint 3"):
        Hands2017(split="test", root=str(tmp_path / "set"), reference=TrueJoint())[SampleKey(0, 0, 0)]


# --- ITOP -------------------------------------------------------------------------------------------------------------


def test_invalid_frames_of_itop_are_used_nowhere_and_keep_their_place(tmp_path: Path) -> None:
    write_itop(tmp_path / "source", PEOPLE, invalid=("00_00001", "01_00000"))
    manifest = prepare(Itop, tmp_path)
    assert any(
        "side_train: 1 of 5 frames are invalid by the set's own word" in each for each in manifest["differences"]
    )
    (tmp_path / "points_test.txt").write_text("invalid\n0.1 0.2 2.5\n0.3 0.2 2.5\n")
    reference = ReferencePointFile(path=str(tmp_path / "points_{split}.txt"), unit="m")
    test = Itop(split="test", root=str(tmp_path / "set"), reference=reference)
    assert names_of(test) == ["01_00001", "01_00002"]
    assert np.allclose(test[SampleKey(1, 0, 0)]["reference"], [300, 200, 2500])
    train = Itop(split="train", root=str(tmp_path / "set"), validation_share=0.0)
    assert names_of(train) == ["00_00000", "03_00000", "03_00001", "07_00000"]


def test_people_of_itop_are_held_out_whole_and_views_are_apart(tmp_path: Path) -> None:
    write_itop(tmp_path / "source", PEOPLE)
    write_itop(tmp_path / "source", {"train": ["09_00000", "11_00000"], "test": ["12_00000"]}, view="top")
    prepare(Itop, tmp_path)
    train, held = (
        {frames.sample_name(i)[:2] for i in range(len(frames))}
        for frames in (Itop(split=s, root=str(tmp_path / "set"), validation_share=0.3) for s in ("train", "validation"))
    )
    assert len(held) == 1
    assert train | held == {"00", "03", "07"}
    assert Itop(split="test", root=str(tmp_path / "set"), view="top").sample_name(0) == "12_00000"


def test_zero_depth_of_itop_is_no_point(tmp_path: Path) -> None:
    """As a point it would lie in the camera, and pull the centre of mass towards it."""
    write_itop(tmp_path / "source", PEOPLE)
    prepare(Itop, tmp_path)
    sample = Itop(split="test", root=str(tmp_path / "set"), reference=CentreOfMass(passes=0))[SampleKey(0, 0, 0)]
    measured = sample["depth"][sample["depth"] > 0]
    assert (sample["depth"] == 0).sum() > 70_000
    assert np.isclose(sample["reference"][2].item(), measured.double().mean().item())


def test_a_view_that_is_not_there(tmp_path: Path) -> None:
    write_itop(tmp_path / "source", PEOPLE)
    prepare(Itop, tmp_path)
    with pytest.raises(DataError, match=r"has no frames from the top, it holds side_train, side_test; set data\.view"):
        Itop(split="train", root=str(tmp_path / "set"), view="top")


# --- what is refused ---


def swapped(joints: np.ndarray) -> np.ndarray:
    """Left where right is, as some readers have it."""
    return joints[:, [0, 1, 3, 2, 5, 4, 7, 6, 8, 10, 9, 12, 11, 14, 13]]


def change_joints(change: Callable[[Any], Any]) -> Damage:
    return lambda path: savemat(path, {"joint_xyz": change(loadmat(path)["joint_xyz"].astype(np.float64))})


def of_another_size(path: Path) -> None:
    path.write_bytes(msra_bytes(np.ones((1, 1)), 0, 0, size=(640, 480)))


def compress(path: Path) -> None:
    path.with_suffix(".h5.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


TRAINING = "Training/labels.txt"
LABELS = "training/Training_Annotation.txt"
DEPTHS = "ITOP_side_train_depth_map.h5"
WORLD = "real_world_coordinates"
JOINTS = "ITOP_side_train_labels.h5"
MAT = "train/joint_data.mat"
PLACE = r"joint_xyz\[0\]: the coordinate \[1, 4, 2\]"
FRAME = "test/depth_1_0000002.png"
LINES = "P0/1/joint.txt"
IMAGE = "P0/1/000002_depth.bin"
WINDOW = r"P0/1/000002_depth.bin: has \d+ bytes, its window of"
BROKEN: list[tuple[str, str, Damage, str]] = [
    ("icvl_hands", "Testing/Depth/test_seq_1/image_0001.png", Path.unlink, "01.png: the image is missing"),
    ("icvl_hands", TRAINING, replace_line(3, lambda line: line.replace(" ", " x ", 1)), "labels.txt:3: 49 columns, 48"),
    ("icvl_hands", TRAINING, replace_line(3, ""), "labels.txt:3: is empty"),
    ("icvl_hands", TRAINING, replace_line(3, lambda line: f"../{line}"), "'../20141/image_0000.png' is not the path"),
    (
        "icvl_hands",
        TRAINING,
        replace_line(3, lambda line: line.split()[0] + " 1 1 -300" * 16),
        r"labels.txt: frame 2 \(20141/image_0000.png\): a joint is at z = -300",
    ),
    (
        "icvl_hands",
        "Training/Depth/20140/image_0000.png",
        lambda path: path.write_bytes(png16(np.ones((480, 640)))),
        "image_0000.png: the image is 640 x 480 pixels, the camera's 320 x 240",
    ),
    ("icvl_hands", "Testing/test_seq_2.txt", Path.unlink, "test_seq_2.txt: there is no such file"),
    ("nyu_hands", MAT, lambda path: savemat(path, {"other": np.ones(9)}), "has no array of numbers 'joint_xyz'"),
    ("nyu_hands", MAT, change_joints(lambda joints: joints[:1]), r"joint_xyz is \(1, 3, 36, 3\)"),
    ("nyu_hands", MAT, change_joints(lambda joints: joints[:, :, :14]), r"\(3, frames, 36, 3\) are needed"),
    ("nyu_hands", MAT, change_joints(put((0, 1, 4, 2), 1e300)), rf"{PLACE} is 1e\+300 mm, less than"),
    ("nyu_hands", MAT, change_joints(put((0, 1, 4, 2), np.nan)), f"{PLACE} is nan mm"),
    ("nyu_hands", MAT, change_joints(lambda joints: joints[:, :1]), "depth_1_0000002.png: .* labels for 1 frames"),
    (
        "nyu_hands",
        MAT,
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 4]),
        "joint_xyz cannot be read",
    ),
    ("nyu_hands", MAT, lambda path: path.write_bytes(b"no mat file at all, only text" * 9), "joint_xyz cannot be read"),
    (
        "nyu_hands",
        "train/depth_1_0000001.png",
        lambda path: path.write_bytes(png16(np.ones((480, 640)))),
        "depth_1_0000001.png: has the mode I;16, RGB is needed",
    ),
    ("nyu_hands", FRAME, Path.unlink, "test/depth_1_0000002.png: the image is missing, and every test frame counts"),
    (
        "hands2017",
        "frame/test_annotation_frame.txt",
        replace_line(3, lambda line: f"{line}\n{line}"),
        "test_annotation_frame.txt: has 4 lines, BoundingBox.txt has 3; get both again",
    ),
    ("hands2017", LABELS, replace_line(4, lambda line: f"{line}\t7"), "Training_Annotation.txt:4: 64 columns, 63"),
    ("hands2017", "frame/images/image_D00000003.png", Path.unlink, "0003.png: the image is missing"),
    ("hands2017", "training/images/image_D00000001.png", cut, "does not end as PNG files do"),
    ("itop", JOINTS, set_key(WORLD, swapped), r" appears \d+ px from where image_coordinates has it"),
    ("itop", JOINTS, set_key(WORLD, lambda joints: joints * 2 + 1), "in another order or in other units"),
    ("itop", JOINTS, set_key(WORLD, lambda joints: -joints), "has a joint at or behind the camera"),
    (
        "itop",
        JOINTS,
        set_key(WORLD, lambda of: of[:, :14]),
        rf"{WORLD} is float16 \(5, 14, 3\), \(5, 15, 3\) is needed",
    ),
    ("itop", JOINTS, set_key("is_valid", lambda valid: valid[:4]), r"is_valid is uint8 \(4,\), \(5,\) is needed"),
    ("itop", JOINTS, set_key("id", lambda ids: ids[::-1]), r"id\[0\] is 07_00000, that of the depth maps is 00_00000"),
    ("itop", DEPTHS, compress, rf"{DEPTHS}\.gz: is compressed, .* gunzip -k "),
    ("itop", DEPTHS, set_key("data", put((2, 5, 7), np.nan)), r"data\[2\]: the depth in row 5, column 7 is nan"),
    ("itop", "ITOP_side_test_depth_map.h5", functools.partial(cut, by=9000), "ITOP_side_test_depth_map.h5: "),
    ("itop", "ITOP_side_test_labels.h5", Path.unlink, "ITOP_side_test_labels.h5: is missing"),
    (
        "msra_hands",
        "P0/1/000001_depth.bin",
        Path.unlink,
        "P0/1.*has 2 images, joint.txt announces 3, and 000001_depth.bin is",
    ),
    ("msra_hands", "P0/1/000003_depth.bin", Path.touch, "P0/1.*has 4 images, joint.txt announces 3, and there are"),
    ("msra_hands", IMAGE, lambda path: path.write_bytes(path.read_bytes() + b"\0" * 4), f"{WINDOW} .* asks for"),
    ("msra_hands", IMAGE, cut, WINDOW),
    ("msra_hands", IMAGE, of_another_size, "P0/1.*byte 0: the image is 640 x 480, 320 x 240"),
    ("msra_hands", LINES, replace_line(1, "three"), "P0/1/joint.txt:1: 'three' is not the number of frames"),
    ("msra_hands", LINES, replace_line(3, "1 2 3"), "P0/1/joint.txt:3: 3 columns, 63 are needed"),
    ("msra_hands", LINES, replace_line(3, "1 2 300 " * 21), "P0/1/joint.txt:3: a joint has z = 300.*version"),
    (
        "msra_hands",
        LINES,
        replace_line(3, "1 2 -3e9 " * 21),
        r"P0/1.*\[0, 2\] is 3e\+09 mm, less than 1e\+06 is needed",
    ),
    ("msra_hands", LINES, replace_line(5, "1 2 -3\n"), "P0/1/joint.txt:1: announces 3 frames, 4 lines follow"),
]


@pytest.mark.parametrize(("name", "file", "damage", "told"), BROKEN)
def test_what_is_broken_is_refused_in_a_line(tmp_path: Path, name: str, file: str, damage: Damage, told: str) -> None:
    SETS[name][1](tmp_path / "source")
    damage(tmp_path / "source" / file)
    refuse(functools.partial(prepare_set, name), tmp_path / "source", told)
