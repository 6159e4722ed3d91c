"""Published depth sets from byte-exact trees: frames as written, parts, reference order, what is refused."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
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
    png16,
    write_hands2017,
    write_icvl,
    write_itop,
    write_msra,
    write_nyu,
)
from tests.data.preparing import cut, names_of, prepare_set, refuse, replace_line, set_key

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


def test_nyu_labels_of_other_shapes_and_places(tmp_path: Path) -> None:
    write_nyu(tmp_path / "source", {"train": 2, "test": 2})
    path = tmp_path / "source" / "train" / "joint_data.mat"
    sound = {key: loadmat(path)[key] for key in ("joint_xyz",)}
    whole = path.read_bytes()

    def spoilt(value: float) -> dict[str, Any]:
        joints = sound["joint_xyz"].astype(np.float64)
        joints[0, 1, 4, 2] = value
        return sound | {"joint_xyz": joints}

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: savemat(path, {"other": sound["joint_xyz"]}), "has no array of numbers 'joint_xyz'"),
        (lambda: savemat(path, {k: v[:1] for k, v in sound.items()}), r"joint_xyz is \(1, 2, 36, 3\)"),
        (lambda: savemat(path, {k: v[:, :, :14] for k, v in sound.items()}), r"\(3, frames, 36, 3\) are needed"),
        (lambda: savemat(path, spoilt(1e300)), r"joint_xyz\[0\]: the coordinate \[1, 4, 2\] is 1e\+300 mm, less than"),
        (lambda: savemat(path, spoilt(np.nan)), r"the coordinate \[1, 4, 2\] is nan mm"),
        (lambda: savemat(path, {k: v[:, :1] for k, v in sound.items()}), "depth_1_0000002.png: .* labels for 1 frames"),
        (lambda: path.write_bytes(whole[: len(whole) // 4]), "joint_xyz cannot be read"),
        (lambda: path.write_bytes(b"no mat file at all, only text" * 9), "joint_xyz cannot be read"),
    ]
    for change, told in cases:
        change()
        with pytest.raises(DataError, match=told) as error:
            prepare(NyuHands, tmp_path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    (tmp_path / "source/train/depth_1_0000001.png").write_bytes(png16(np.ones((480, 640))))
    with pytest.raises(DataError, match=r"depth_1_0000001.png: has the mode I;16, RGB is needed"):
        prepare(NyuHands, tmp_path)


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


def change_line(file: str, number: int, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda root: replace_line(root / file, number, change)


def change_labels(key: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        with h5py.File(root / "ITOP_side_train_labels.h5", "r+") as file:
            set_key(key, change)(file)

    return apply


def swapped(joints: np.ndarray) -> np.ndarray:
    """Left where right is, as some readers have it."""
    return joints[:, [0, 1, 3, 2, 5, 4, 7, 6, 8, 10, 9, 12, 11, 14, 13]]


def compress(root: Path) -> None:
    path = root / DEPTHS
    path.with_suffix(".h5.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def with_nan(root: Path) -> None:
    with h5py.File(root / DEPTHS, "r+") as file:
        file["data"][2, 5, 7] = np.nan


TRAINING = "Training/labels.txt"
LABELS = "training/Training_Annotation.txt"
DEPTHS = "ITOP_side_train_depth_map.h5"
WORLD = "real_world_coordinates"
BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("icvl_hands", lambda r: (r / "Testing/Depth/test_seq_1/image_0001.png").unlink(), "01.png: the image is missing"),
    ("icvl_hands", change_line(TRAINING, 3, lambda line: line.replace(" ", " x ", 1)), "labels.txt:3: 49 columns, 48"),
    ("icvl_hands", change_line(TRAINING, 3, lambda line: ""), "labels.txt:3: is empty"),
    ("icvl_hands", change_line(TRAINING, 3, lambda line: f"../{line}"), "'../20141/image_0000.png' is not the path"),
    (
        "icvl_hands",
        change_line(TRAINING, 3, lambda line: line.split()[0] + " 1 1 -300" * 16),
        r"labels.txt: frame 2 \(20141/image_0000.png\): a joint is at z = -300",
    ),
    (
        "icvl_hands",
        lambda r: (r / "Training/Depth/20140/image_0000.png").write_bytes(png16(np.ones((480, 640)))),
        "image_0000.png: the image is 640 x 480 pixels, the camera's 320 x 240",
    ),
    ("icvl_hands", lambda r: (r / "Testing/test_seq_2.txt").unlink(), "test_seq_2.txt: there is no such file"),
    (
        "nyu_hands",
        lambda r: (r / "test/depth_1_0000002.png").unlink(),
        "test/depth_1_0000002.png: the image is missing, and every test frame counts",
    ),
    (
        "hands2017",
        change_line("frame/test_annotation_frame.txt", 3, lambda line: f"{line}\n{line}"),
        "test_annotation_frame.txt: has 4 lines, BoundingBox.txt has 3; get both again",
    ),
    ("hands2017", change_line(LABELS, 4, lambda line: f"{line}\t7"), "Training_Annotation.txt:4: 64 columns, 63"),
    ("hands2017", lambda r: (r / "frame/images/image_D00000003.png").unlink(), "0003.png: the image is missing"),
    ("hands2017", lambda r: cut(r / "training/images/image_D00000001.png"), "does not end as PNG files do"),
    ("itop", change_labels(WORLD, swapped), r" appears \d+ px from where image_coordinates has it"),
    ("itop", change_labels(WORLD, lambda joints: joints * 2 + 1), "in another order or in other units"),
    ("itop", change_labels(WORLD, lambda joints: -joints), "has a joint at or behind the camera"),
    ("itop", change_labels(WORLD, lambda of: of[:, :14]), rf"{WORLD} is float16 \(5, 14, 3\), \(5, 15, 3\) is needed"),
    ("itop", change_labels("is_valid", lambda valid: valid[:4]), r"is_valid is uint8 \(4,\), \(5,\) is needed"),
    ("itop", change_labels("id", lambda ids: ids[::-1]), r"id\[0\] is 07_00000, that of the depth maps is 00_00000"),
    ("itop", compress, rf"{DEPTHS}\.gz: is compressed, .* gunzip -k "),
    ("itop", with_nan, r"data\[2\]: the depth in row 5, column 7 is nan"),
    ("itop", lambda r: cut(r / "ITOP_side_test_depth_map.h5", by=9000), "ITOP_side_test_depth_map.h5: "),
    ("itop", lambda r: (r / "ITOP_side_test_labels.h5").unlink(), "ITOP_side_test_labels.h5: is missing"),
]


@pytest.mark.parametrize(("name", "change", "told"), BROKEN)
def test_what_is_broken_is_refused_in_a_line(
    tmp_path: Path, name: str, change: Callable[[Path], object], told: str
) -> None:
    SETS[name][1](tmp_path / "source")
    change(tmp_path / "source")
    refuse(functools.partial(prepare_set, name), tmp_path / "source", told)
