"""Depth frames of one's own: prepared from joints.csv, split by recordings, refused with file and line."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline.areas.detect.predictor import view_photo
from sightline.areas.pose.sets.depth_figure import describe_figure, make_figure, read_figure
from sightline.areas.pose.sets.depth_folder import read_camera
from sightline.areas.pose.sets.depth_frames import SKELETONS
from sightline.areas.pose.stages import view_depth_file
from sightline.contract import registry
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import ComponentConfig, SampleKey
from tests.cases import run_each
from tests.command import succeed
from tests.data.depth.own_frames import CAMERA, JOINTS, write_disc_frames, write_own_frames
from tests.data.preparing import cut, list_other_notes, names_of, prepare_set, refuse
from tests.runs.small import ROOT


def _open(root: Path, split: str, **arguments):
    block = ComponentConfig("depth_folder", {"root": str(root), **arguments})
    return registry.data.build(block, facts={"split": split})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    root = tmp_path_factory.mktemp("own") / "frames"
    return root, write_own_frames(root, 20)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("prepared") / "own"
    prepare_set("depth_folder", source[0], target)
    return target


def test_samples_are_the_images_and_the_labels_by_hand(source, prepared: Path) -> None:
    root, joints = source
    seen = {}
    for split in ("train", "validation", "test"):
        data = _open(prepared, split)
        for index in range(len(data)):
            number = int(Path(data.sample_name(index)).stem)
            sample = data[SampleKey(index, 0, 0)]
            assert np.array_equal(sample["depth"], np.asarray(Image.open(root / f"{number:03d}.png")))
            assert np.array_equal(sample["joints"], joints[number].astype(np.float32))
            assert sample["visible"].all()
            assert sample["camera"].tolist() == list(CAMERA.values())
            seen[number] = split
    assert sorted(seen) == list(range(20)), "every frame is in one split"
    assert Counter(seen.values()) == {"train": 14, "validation": 2, "test": 4}
    by_stretch = [{seen[2 * stretch], seen[2 * stretch + 1]} for stretch in range(10)]
    assert all(len(splits) == 1 for splits in by_stretch), "neighbours in time stay together"


@run_each("mm_per_unit, stored", [(1.0, "uint16"), (0.25, "float32")])
def test_the_type_of_the_files_is_told_beside_the_stored_one(
    source: tuple[Path, np.ndarray], mm_per_unit: float, stored: str
) -> None:
    found = registry.data.get_class("depth_folder").survey(source[0], mm_per_unit=mm_per_unit)
    assert (found["depth_type"], found["file_depth_type"]) == (stored, "uint16")


def test_facts_are_those_of_the_labels_and_no_constants_are_made_up(prepared: Path) -> None:
    facts = _open(prepared, "train").info.facts
    assert facts["joint_names"] == JOINTS
    assert (facts["num_joints"], facts["image_size_px"], facts["bones"]) == (4, (320, 240), ())


def test_bones_are_those_that_are_stated(source: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """By names; without any, a survey proposes pairs, which are used only once they are stated."""
    root, joints = source
    found = registry.data.get_class("depth_folder").survey(root)["figure"]
    assert found["bones"] == "none stated: joints are drawn as dots"
    lengths = {
        (a, b): np.linalg.norm(joints[:, i] - joints[:, j], axis=1).mean()
        for (i, a), (j, b) in itertools.combinations(enumerate(JOINTS), 2)
    }
    proposed = [tuple(pair.split(", ")) for pair in re.findall(r"\[(\w+, \w+)\]", found["by_distance"])]
    assert len(proposed) == 3
    shortest = min(lengths, key=lengths.__getitem__)
    assert shortest in [*proposed, *(pair[::-1] for pair in proposed)]
    pairs = (("palm", "thumb_tip"), ("palm", "index_tip"))
    report = prepare_set("depth_folder", root, tmp_path / "set", bones=pairs)
    assert report["figure"]["bones"] == ["palm - thumb_tip", "palm - index_tip"]
    assert _open(tmp_path / "set", "train").info.facts["bones"] == ((0, 1), (0, 2))
    renamed = prepare_set(
        "depth_folder", root, tmp_path / "other", joint_names=("a", "b", "c", "d"), bones=(("d", "a"),)
    )
    assert renamed["joint_names"] == ["a", "b", "c", "d"]
    facts = _open(tmp_path / "other", "train").info.facts
    assert (facts["joint_names"], facts["bones"]) == (("a", "b", "c", "d"), ((3, 0),))


@pytest.mark.parametrize("name", SKELETONS)
@pytest.mark.parametrize("is_named", [True, False])
def test_skeletons_by_name_have_the_order_of_the_file(name: str, is_named: bool, tmp_path: Path) -> None:
    """Of joints that the file calls by the skeleton's names, in any order, bones follow the names."""
    skeleton = SKELETONS[name]
    names = tuple(reversed(skeleton.joint_names)) if is_named else tuple(f"j{index}" for index in range(len(skeleton)))
    joints = np.random.default_rng(0).uniform(-90, 90, (5, len(names), 3))
    options = {"path": tmp_path, "joint_names": None, "bones": None}
    figure = make_figure(names, joints, None, skeleton=name, **options)
    assert figure.joint_names == (names if is_named else skeleton.joint_names)
    pairs = {frozenset(figure.joint_names[end] for end in bone) for bone in figure.bones}
    assert pairs == {frozenset(skeleton.joint_names[end] for end in bone) for bone in skeleton.bones}
    assert len(figure.bones) == len(names) - 1
    reached = {figure.centre}
    for _ in names:
        reached |= {end for bone in figure.bones for end in bone if reached & set(bone)}
    assert len(reached) == len(names), "bones join all joints"
    assert figure.joint_names[figure.centre] == skeleton.joint_names[skeleton.centre]
    assert read_figure(describe_figure(figure, joints, name), figure.joint_names) == replace(
        figure, sigmas=(), pck_joints=None
    )


def test_joints_that_a_skeleton_calls_alike_are_never_exchanged(tmp_path: Path) -> None:
    """Some names of the skeleton at other places: refused; with all of its names stated, bones follow these."""
    skeleton, joints = SKELETONS["hand_14"], np.random.default_rng(0).uniform(-90, 90, (5, 14, 3))
    names = (skeleton.joint_names[3], *(f"own_{index}" for index in range(13)))
    options: dict[str, Any] = {"path": tmp_path, "skeleton": "hand_14", "bones": None}
    told = f"skeleton=hand_14 has '{names[0]}' as joint 4, .* as joint 1, .*; give joint_names="
    with pytest.raises(ConfigError, match=told):
        make_figure(names, joints, None, joint_names=None, **options)
    stated = tuple(reversed(skeleton.joint_names))
    figure = make_figure(names, joints, None, joint_names=stated, **options)
    pairs = {frozenset(figure.joint_names[end] for end in bone) for bone in figure.bones}
    assert pairs == {frozenset(skeleton.joint_names[end] for end in bone) for bone in skeleton.bones}


@run_each(
    "options, told",
    [
        ({"skeleton": "hand_14"}, r"skeleton=hand_14 has 14 joints, .*joints\.csv has 4; state bones="),
        ({"bones": (("palm", "thumb"),)}, "bones: there is no joint 'thumb'; did you mean 'thumb_tip'"),
        ({"bones": (("palm", "palm"),)}, "joins a joint to itself"),
        ({"joint_names": ("a", "b", "c")}, "names 3 different joints, .* has 4; name each once"),
        ({"joint_names": ("a", "b", "c", "c")}, "names 3 different joints, .* has 4; name each once"),
    ],
)
def test_figures_that_do_not_fit_are_refused(
    source: tuple[Path, np.ndarray], tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        prepare_set("depth_folder", source[0], tmp_path / "set", **options)


def test_whole_folders_are_tested_where_there_are_enough(tmp_path: Path) -> None:
    write_own_frames(tmp_path / "frames", 24, folders=6)
    manifest = prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own", test_share=0.34)
    assert manifest["split"].startswith("2 of 6 recordings (folders) are tested")
    parts = (_open(tmp_path / "own", split) for split in ("train", "validation", "test"))
    train, validation, test = ({name.split("/")[0] for name in names_of(part)} for part in parts)
    assert not train & test
    assert not train & validation
    assert len(test) == 2


def test_splits_and_unlabelled_joints_of_the_labels_count(tmp_path: Path) -> None:
    joints = write_own_frames(tmp_path / "frames", 6)
    path = tmp_path / "frames" / "joints.csv"
    header, *lines = path.read_text().splitlines()
    words = lines[0].split(",")
    lines[0] = ",".join([*words[:1], "", "", "", *words[4:]])
    splits = ("train", "train", "train", "validation", "test", "test")
    path.write_text("\n".join([f"{header},split", *(f"{a},{b}" for a, b in zip(lines, splits, strict=True))]))
    prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own", cube_mm=250.0)
    assert [len(_open(tmp_path / "own", split)) for split in ("train", "validation", "test")] == [3, 1, 2]
    sample = _open(tmp_path / "own", "train")[SampleKey(0, 0, 0)]
    assert sample["visible"].tolist() == [False, True, True, True]
    assert np.array_equal(sample["joints"][1:], joints[0, 1:].astype(np.float32))
    facts = _open(tmp_path / "own", "train").info.facts
    assert facts["cube_mm"] == 250.0


def test_stated_validation_frames_choose_the_checkpoint_and_none_of_them_trains(tmp_path: Path) -> None:
    write_own_frames(tmp_path / "frames", 6)
    path = tmp_path / "frames" / "joints.csv"
    splits = ("train", "validation", "validation", "train", "test", "test")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},split", *(f"{a},{b}" for a, b in zip(lines, splits, strict=True))]))
    manifest = prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own")
    assert manifest["split"] == "as the labels state"
    numbers = np.arange(4.0)[:, None] + 1000  # lines of train, then of validation, as `predict --data` writes them
    np.savetxt(tmp_path / "train.txt", numbers.repeat(3, axis=1))
    reference = {"name": "file", "path": str(tmp_path / "{split}.txt")}
    for split, names, lines_read in (
        ("train", ["000", "003"], [1000, 1001]),
        ("validation", ["001", "002"], [1002, 1003]),
    ):
        data = _open(tmp_path / "own", split, reference=reference, split_seed=3)
        assert [Path(data.sample_name(i)).stem for i in range(len(data))] == names
        assert [data[SampleKey(i, 0, 0)]["reference"][0].item() for i in range(len(data))] == lines_read
    assert _open(tmp_path / "own", "test").info.split_sizes == {"train": 2, "validation": 2, "test": 2}


def test_images_without_a_label_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    write_own_frames(root, 12)
    np.save(root / "stray.npy", np.zeros((2, 2)))
    manifest = prepare_set("depth_folder", root, tmp_path / "own")
    assert "1 images have no label and are left out; the first is stray.npy" in manifest["differences"]


def _edit(root: Path, old: str, new: str) -> None:
    path = root / "joints.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def _shrink(root: Path) -> None:
    Image.fromarray(np.full((10, 10), 400, dtype=np.uint16)).save(root / "003.png")


def _make_colour(root: Path) -> None:
    Image.new("RGB", (320, 240)).save(root / "003.png")


def _replace_rows(root: Path, row: str, more: str = "") -> None:
    path = root / "joints.csv"
    path.write_text(f"{path.read_text().splitlines()[0]}{more}\n{row}\n")


def _repeat(root: Path) -> None:
    path = root / "joints.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")


@run_each(
    "damage, told",
    [
        (lambda root: _edit(root, "palm_y", "palm_q"), "joints.csv:1: has no column 'palm_y'"),
        (lambda root: _edit(root, "frame,", "file,"), "joints.csv:1: has no column 'frame'"),
        (lambda root: _edit(root, "palm_x", "thumb_tip_x"), "joints.csv:1: has no column 'palm_x'"),
        (lambda root: _edit(root, "\n003.png,", "\n003.png,left"), "joints.csv:5: palm_x is 'left"),
        (lambda root: _edit(root, "\n003.png,", "\n003.png,1,"), "joints.csv:5: has 14 columns, the first line has 13"),
        (lambda root: _edit(root, "\n003.png,", "\n009.png,"), "joints.csv:5: there is no image"),
        (lambda root: _edit(root, "\n003.png,", "\n../003.png,"), "joints.csv:5: '../003.png' is not a path in"),
        (_repeat, "joints.csv:8: 000.png is labelled a second time, first in"),
        (lambda root: (root / "joints.csv").write_bytes(b"\xff\xfe"), "joints.csv: is not UTF-8 text (byte 0)"),
        (lambda root: (root / "joints.csv").write_text(""), "joints.csv:1: names no joint"),
        (lambda root: (root / "joints.csv").unlink(), "has no joints.csv; write one"),
        (lambda root: _replace_rows(root, "000.png,,,,,,,,,,,,"), "labels no joint of any frame"),
        (lambda root: _replace_rows(root, ""), "labels no frame"),
        (
            lambda root: _replace_rows(root, "000.png" + ",0,0,-5" * 4 + "\n001.png" + ",0,0,400" * 4),
            "(000.png): a joint is at z = -5 mm, behind the camera",
        ),
        (lambda root: _replace_rows(root, "000.png" + ",0,0,0.4" * 4), "the joints are 0.4 mm from the camera"),
        (lambda root: _replace_rows(root, "000.png" + ",0,1e308,400" * 4), "joints.csv:2: a joint is 1e+308 mm away"),
        (lambda root: _replace_rows(root, "000.png" + ",0,0,400" * 4 + ",eval", ",split"), "the split is 'eval'"),
        (lambda root: _replace_rows(root, "000.png" + ",0,0,400" * 4 + ",test", ",split"), "the split of every frame"),
        (lambda root: (root / "camera.json").write_text('{"fx": "wide"}'), "camera.json: fx is 'wide', a number of"),
        (lambda root: (root / "camera.json").unlink(), "has no camera.json, the intrinsics in pixels; write camera"),
        (
            lambda root: (root / "camera.json").write_text('{"fx": 475, "fy": 475, "u0": 643, "v0": 240}'),
            "u0 = 643 and v0 = 240, is outside of 000.png with 320 x 240 pixels, so the camera is of another size",
        ),
        (_shrink, "003.png: the image is 10 x 10 pixels, the camera's 320 x 240"),
        (_make_colour, "003.png: has the mode RGB, one channel of 16 bits is needed"),
        (lambda root: cut(root / "003.png", by=30), "003.png: "),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(damage, told: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "frames", ignore_errors=True)
    write_own_frames(tmp_path / "frames", 6)
    damage(tmp_path / "frames")
    with pytest.raises(DataError) as caught:
        prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own")
    assert told in str(caught.value)
    assert not (tmp_path / "own").exists()


@run_each(
    "document, told",
    [
        ({"fx": 475, "fy": 470, "u0": 320, "v0": 240}, ""),
        ({"fx": 475.0, "fy": 470.0, "ppx": 320.0, "ppy": 240.0, "coeffs": [0, 0, 0]}, ""),
        ({"fx": 475.0, "fy": 470.0, "cx": 320.0, "cy": 240.0, "width": 640, "height": 480}, ""),
        ({"fx": 475.0, "fy": 470.0, "cx": 320.0}, "camera.json: has no v0 or cy or ppy; it has fx, fy, cx; write"),
        ([475.0, 470.0], "camera.json: has no fx; it has no keys; write camera.json: {"),
        ({"fx": 9, "fy": 9, "u0": 9, "v0": 9, "cx": 8}, "camera.json: states u0 and cx; it has fx, fy, u0, v0, cx; "),
        ({"fx": 10**400, "fy": 9, "u0": 9, "v0": 9}, "camera.json: fx is '1000"),
    ],
)
def test_a_camera_is_read_or_refused_with_its_key(document, told: str, tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_text(json.dumps(document))
    if told:
        with pytest.raises(DataError) as caught:
            read_camera(tmp_path)
        assert told in str(caught.value)
        return
    camera = read_camera(tmp_path)
    assert (camera.intrinsics, camera.notes) == ({"fx": 475.0, "fy": 470.0, "u0": 320.0, "v0": 240.0}, ())
    assert camera.size_px == ((640, 480) if "width" in document else None)


ROS_CAMERA = """image_width: 640
image_height: 480
camera_name: left
camera_matrix:
  rows: 3
  cols: 3
  data: [475., 0., 320.0, 0, 476.0, 240, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}
"""


def test_the_camera_file_of_ros_is_read(tmp_path: Path) -> None:
    """Unless there are two, or it is no plain YAML."""
    (tmp_path / "camera_info.yaml").write_text(ROS_CAMERA)
    camera = read_camera(tmp_path)
    assert (camera.intrinsics, camera.size_px) == ({"fx": 475, "fy": 476, "u0": 320, "v0": 240}, (640, 480))
    told = "camera_info.yaml: distortion_coefficients is not 0, and lens distortion is not applied"
    assert camera.notes == (told,)
    (tmp_path / "camera_info.yaml").write_text(ROS_CAMERA.replace("0.1", "0"))
    assert read_camera(tmp_path).notes == ()
    (tmp_path / "camera_info.yaml").write_text(ROS_CAMERA + "camera_name: right\n")
    with pytest.raises(DataError, match=r"camera_info\.yaml:10: "):
        read_camera(tmp_path)
    (tmp_path / "camera.json").write_text("{}")
    with pytest.raises(DataError, match=r"has camera\.json and camera_info\.yaml; keep the one of these frames"):
        read_camera(tmp_path)


def test_a_camera_of_images_of_another_size_is_refused_and_distortion_is_noted(tmp_path: Path) -> None:
    write_disc_frames(tmp_path / "frames")
    camera = {"fx": 200, "fy": 200, "ppx": 80, "ppy": 60, "coeffs": [0, 0.1]}
    (tmp_path / "frames" / "camera.json").write_text(json.dumps({**camera, "width": 640, "height": 480}))
    with pytest.raises(DataError, match=r"camera.json: is the camera of images of 640 x 480, 0.png has 160 x 120"):
        prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own")
    (tmp_path / "frames" / "camera.json").write_text(json.dumps(camera))
    notes = list_other_notes(prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own"))
    assert notes[0] == "camera.json: coeffs is not 0, and lens distortion is not applied"
    (tmp_path / "frames" / "camera.json").write_text(json.dumps({**camera, "coeffs": [0], "k1": 0.1, "k2": 0}))
    notes = list_other_notes(prepare_set("depth_folder", tmp_path / "frames", tmp_path / "azure"))
    assert notes[0] == "camera.json: k1 is not 0, and lens distortion is not applied"
    (tmp_path / "frames" / "camera.json").write_text('{"fx": 9e9, "fy": 1.6, "cx": 0.5, "cy": 0.5}')
    refuse("depth_folder", tmp_path / "frames", r"all four at most 1e[+]06 pixels")
    (tmp_path / "frames" / "camera.json").write_text('{"fx": 1.25, "fy": 1.6, "cx": 0.5, "cy": 0.5}')
    refuse("depth_folder", tmp_path / "frames", r"one above 4: they are no shares of the image's sides")


@pytest.mark.parametrize(
    "stated",
    [
        {"k": [475, 0, 320, 0, 476, 240, 0, 0, 1], "width": 640, "height": 480},
        {"camera_matrix": {"data": [475, 0, 320, 0, 476, 240, 0, 0, 1]}, "image_width": 640, "image_height": 480},
        {"intrinsic_matrix": [475, 0, 0, 0, 476, 0, 320, 240, 1], "width": 640, "height": 480},
        {"K": [[475, 0, 320], [0, 476, 240], [0, 0, 1]], "width": 640, "height": 480},
    ],
)
def test_matrices_of_ros_opencv_and_open3d_are_read(tmp_path: Path, stated: dict[str, Any]) -> None:
    (tmp_path / "camera.json").write_text(json.dumps(stated))
    camera = read_camera(tmp_path)
    assert camera.intrinsics == {"fx": 475, "fy": 476, "u0": 320, "v0": 240}
    assert camera.size_px == (640, 480)
    (tmp_path / "camera.json").write_text(json.dumps({next(iter(stated)): [1, 2]}))
    with pytest.raises(DataError, match="a matrix of nine numbers is needed"):
        read_camera(tmp_path)


@run_each("suffix, far", [(".png", 65535), (".tif", 65535), (".npy", 65535), (".npy", -1.0)])
def test_a_mark_of_pixels_without_depth_is_named_and_taken_out(suffix: str, far: float, tmp_path: Path) -> None:
    root, own = tmp_path / f"{suffix}{far}", tmp_path / f"own{suffix}{far}"
    write_disc_frames(root, far=far, suffix=suffix)
    told = r"row 0, column 0 is -1.0; put 0 .* marks that: no_return=-1.0 "
    if far > 0:
        told = f"% of the measured pixels are {far}, the largest number of their type, .*; give no_return={far} "
    refuse("depth_folder", root, told)
    manifest = prepare_set("depth_folder", root, own / "clean", no_return=float(far))
    assert list_other_notes(manifest) == []
    depth = _open(own / "clean", "test")[SampleKey(0, 0, 0)]["depth"]
    assert (int((depth == 0).sum()), depth.max().item()) == (160 * 120 - int((depth > 0).sum()), 530.0)
    assert 1200 < int((depth > 0).sum()) < 1300, "the disc of radius 20"


def test_names_of_windows_are_read_with_slashes(tmp_path: Path) -> None:
    write_disc_frames(tmp_path / "frames", folder="take_1")
    path = tmp_path / "frames" / "joints.csv"
    path.write_text(path.read_text().replace("take_1/", "take_1\\"))
    prepare_set("depth_folder", tmp_path / "frames", tmp_path / "own")
    assert "take_1/" in _open(tmp_path / "own", "train").sample_name(0)
    path.write_text(path.read_text().replace("take_1\\0", "C:\\frames\\0"))
    refuse("depth_folder", tmp_path / "frames", r"joints.csv:2: 'C:/frames/0.png' is not a path in the folder")


def test_tiff_frames_are_read_and_others_named(tmp_path: Path) -> None:
    for index, (dtype, scale) in enumerate(((np.uint16, 1.0), (np.float32, 1.0), (np.float32, 0.001))):
        root = tmp_path / str(index)
        write_disc_frames(root, scale=scale, suffix=".tif", dtype=dtype)
        prepare_set("depth_folder", root, tmp_path / f"own{index}", mm_per_unit=1 / scale)
        depth = _open(tmp_path / f"own{index}", "test")[SampleKey(0, 0, 0)]["depth"]
        assert depth.max().item() == pytest.approx(530.0)
        assert view_photo(root / "0.tif", name="0") is None
        viewed = view_depth_file(root / "0.tif", name="0")
        assert viewed is not None
        assert viewed.stages[0].figures["farthest_mm"] == pytest.approx(530.0)
    first, second = (Image.fromarray(np.full((9, 9), 500, dtype=np.uint16)) for _ in range(2))
    first.save(tmp_path / "0" / "0.tif", save_all=True, append_images=[second])
    refuse("depth_folder", tmp_path / "0", r"0.tif: holds 2 images, one is needed")
    path = tmp_path / "1" / "joints.csv"
    (tmp_path / "1" / "0.exr").write_bytes(b"v/1")
    path.write_text(path.read_text().replace("0.tif", "0.exr", 1))
    refuse("depth_folder", tmp_path / "1", r"joints.csv:2: 0.exr is none of .png, .tif, .tiff, .npy; convert the image")


def test_the_preset_trains_evaluates_and_predicts(source, prepared: Path, tmp_path: Path) -> None:
    """Two steps of the small network; `predict` gives the joints of the frames as files."""
    config, run = ROOT / "configs" / "pose" / "own_depth.yaml", tmp_path / "run"
    words = (f"data.root={prepared}", "train.steps=2", "train.batch_size=4", "train.precision=float32")
    succeed("train", config, *words, "--no-check", "--out", run, "--device", "cpu")
    assert "mean_error_mm" in json.loads((run / "final.json").read_text())["metrics"]
    succeed("predict", run, source[0] / "003.png", "--device", "cpu", "--json", tmp_path / "told.json")
    [row] = json.loads((tmp_path / "told.json").read_text())["predictions"]
    assert (len(row["joints_mm"]), row["camera"]) == (4, list(CAMERA.values()))
    succeed("data", "info", prepared)
    assert "cube_mm=VALUE" in succeed("data", "prepare", "depth_folder", "--help").out


OF_IMAGES = "10 times as far away .*in units of 0.1 mm: mm_per_unit=0.1 "
UNITS = {
    "the same": (1.0, 1.0, "mm", ""),
    "images in tenths of a millimetre": (10.0, 1.0, "mm", f"{OF_IMAGES}.* 510 mm away.*in cm: joint_unit=cm "),
    "joints in centimetres": (1.0, 0.1, "mm", f"{OF_IMAGES}.* 51 mm away.*in cm: joint_unit=cm "),
    "both, and the wrong one named": (10.0, 1.0, "cm", ""),
    "joints in millimetres, called centimetres": (1.0, 1.0, "cm", "10 times as near .*mm_per_unit=10 .*joint_unit=mm "),
}


@run_each("case", UNITS)
def test_units_that_disagree_are_told_with_both_readings(tmp_path: Path, case: str) -> None:
    """Nothing in the files says which one is right; a figure ten times as large agrees with itself, too."""
    images, joints, joint_unit, told = UNITS[case]
    root = tmp_path / case
    write_disc_frames(root, scale=images, joint_z=(510.0, 510.0, 510.0), joint_scale=joints)
    manifest = prepare_set("depth_folder", root, tmp_path / f"{case} set", joint_unit=joint_unit)
    found = [note for note in manifest["differences"] if note.startswith("units disagree: the depth images are ")]
    assert len(found) == bool(told)
    assert found == manifest["doubts"]
    for note in found:
        assert re.search(told, note)


@run_each("end", ["---\n", "...\n", "---\n---\n", "", "\n---\n\n"])
def test_a_camera_as_rostopic_echoes_it(tmp_path: Path, end: str) -> None:
    text = "header: {seq: 3}\nheight: 120\nwidth: 160\nK: [200.0, 0.0, 80.0, 0.0, 200.0, 60.0, 0.0, 0.0, 1.0]\n"
    (tmp_path / "camera_info.yaml").write_text(text + end)
    camera = read_camera(tmp_path)
    assert dict(camera.intrinsics) == {"fx": 200.0, "fy": 200.0, "u0": 80.0, "v0": 60.0}
    assert camera.size_px == (160, 120)


def test_a_camera_that_is_echoed_twice_is_refused(tmp_path: Path) -> None:
    text = "height: 120\nwidth: 160\nK: [200.0, 0.0, 80.0, 0.0, 200.0, 60.0, 0.0, 0.0, 1.0]\n---\n"
    (tmp_path / "camera_info.yaml").write_text(text + text)
    with pytest.raises(DataError, match=r"camera_info\.yaml:4: not valid YAML: expected a single document"):
        read_camera(tmp_path)
