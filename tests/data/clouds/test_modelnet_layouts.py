"""Every broken release is refused in one line that names the file and the place; nothing appears at the target."""

from __future__ import annotations

import functools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.clouds.modelnet_writers import (
    CLASS_NAMES,
    NUM_POINTS,
    SHAPES,
    prepare,
    write_hdf5,
    write_npz,
    write_off,
    write_text,
)
from tests.data.files.test_broken_clouds import Trap
from tests.data.preparing import Damage, refuse, replace_line, set_key

refused = functools.partial(refuse, prepare, is_list=True)


# --- what is no layout ------------------------------------------------------------------------------------------------


def test_places_without_a_layout(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: there is no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty: holds nothing, .* looked for: modelnet40_ply_hdf5_2048 \(ply_data_train0\.h5")
    (tmp_path / "other").mkdir()
    for name in "abcdefg":
        (tmp_path / "other" / f"{name}.png").touch()
    refused(tmp_path / "other", r"other: holds a\.png, b\.png, c\.png, d\.png, e\.png and 2 more, which is not")
    refused(tmp_path / "other/a.png", "is not a layout by itself; give the folder")


def test_two_layouts_in_one_folder_must_be_told_apart(tmp_path: Path) -> None:
    root = write_text(tmp_path / "in")
    write_npz(root / "a.npz")
    refused(root, r"in: holds 2 layouts, give one: .*a\.npz \(npz\), ")
    assert prepare(root / "a.npz", tmp_path / "set")["layout"] == "npz"


# --- HDF5 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("data"), r"ply_data_train10\.h5: has no key 'data', it has faceId, label"),
        (set_key("label"), r"ply_data_train10\.h5: has no key 'label'"),
        (set_key("data", np.zeros((2, NUM_POINTS, 4), np.float32)), r"h5: 'data' is float32 \(2, 6, 4\), floats"),
        (set_key("data", np.zeros((2, 5, 3), np.float32)), r"h5: 'data' has 5 points a shape, .*train0\.h5 has 6"),
        (set_key("data", lambda old: old.astype("f8") * 1e300), r"train10\.h5: shape 0: points\[0, 0\] is -?inf"),
        (set_key("label", np.zeros((3, 1), np.uint8)), r"train10\.h5: 'label' is uint8 \(3, 1\), integers \(2, 1\)"),
        (set_key("label", np.array([[0], [40]])), r"h5: label\[1\]: is 40, .*shape_names\.txt names 40 classes"),
        (set_key("label", np.array([[-1], [0]])), r"train10\.h5: label\[0\]: is -1"),
        (set_key("data", np.full((2, NUM_POINTS, 3), np.nan, "f4")), r"train10\.h5: shape 0: points\[0, 0\] is nan"),
    ],
)
def test_broken_hdf5(tmp_path: Path, change: Damage, message: str) -> None:
    root = write_hdf5(tmp_path / "in")
    change(root / "ply_data_train10.h5")
    refused(root, message)


@pytest.mark.parametrize("has_lists", [True, False])
def test_missing_hdf5_files(tmp_path: Path, has_lists: bool) -> None:
    root = write_hdf5(tmp_path / "in", has_lists=has_lists)
    for number in (10, 9):
        (root / f"ply_data_train{number}.h5").unlink()
    refused(root, r"ply_data_train9\.h5: is missing, 2 of 12 files are")
    (root / "ply_data_test0.h5").unlink()
    for number in (9, 10):
        (root / f"ply_data_train{number}.h5").write_bytes((root / "ply_data_train0.h5").read_bytes())
    refused(root, r"ply_data_test0\.h5: is missing")


def test_hdf5_without_class_names(tmp_path: Path) -> None:
    root = write_hdf5(tmp_path / "in")
    (root / "shape_names.txt").write_text("\n".join([*CLASS_NAMES[:-1], "x_box"]))
    refused(root, r"shape_names\.txt: 'x_box' is not one of ModelNet's 40 classes; did you mean 'xbox'\?")
    (root / "shape_names.txt").unlink()
    refused(root, r"shape_names\.txt: is missing")


# --- NPZ --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"X_train": None}, "X_train|has no entry"),
        ({"classes": None}, "has no entry 'classes'"),
        ({"X_test": np.zeros((2, 18), np.float32)}, r"X_test is float32 \(2, 18\)"),
        ({"X_test": np.zeros((2, 7, 3), np.float32)}, "X_test holds 7 points a shape, X_train 6"),
        ({"X_test": np.zeros((3, NUM_POINTS, 3), np.float32)}, "y_test is int64 .* of length 3 are needed"),
        ({"y_train": np.zeros(6, np.float32)}, "y_train is float32"),
        ({"y_train": np.array([0, 0, 0, 2, 23, 41])}, r"y_train\[5\]: is 41, .* names 40 classes"),
        ({"classes": np.array([*CLASS_NAMES[:-1], "boat"])}, "classes: 'boat' is not one of ModelNet's 40 classes"),
        ({"classes": np.arange(40)}, "classes is int64"),
        ({"X_test": np.where(np.arange(36).reshape(2, 6, 3) == 31, np.nan, 1)}, r"X_test\[1\]: points\[4, 1\] is nan"),
    ],
)
def test_broken_npz(tmp_path: Path, replaced: dict[str, np.ndarray | None], message: str) -> None:
    refused(write_npz(tmp_path / "in.npz", **replaced), message)


@pytest.mark.parametrize("key", ["X_train", "X_test", "y_train", "name_test", "classes"])
def test_objects_are_never_unpickled(tmp_path: Path, key: str) -> None:
    held = np.empty(6, dtype=object)
    held[:] = [Trap(tmp_path / "sprung") for _ in range(6)]
    refused(write_npz(tmp_path / "in.npz", **{key: held}), rf"in\.npz: {key} ")
    assert not (tmp_path / "sprung").exists()


def test_cut_npz_files(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "in.npz")
    raw = source.read_bytes()
    for length in (0, 10, len(raw) // 2, len(raw) - 1):
        source.write_bytes(raw[:length])
        refused(source, r"in\.npz: X_train cannot be read")


def test_an_archive_with_a_flipped_bit_in_any_entry(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "in.npz")
    raw = source.read_bytes()
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    for entry in entries:
        header = entry.header_offset
        start = header + 30 + sum(struct.unpack("<HH", raw[header + 26 : header + 30]))
        for place in (0, entry.compress_size // 2, entry.compress_size - 3):
            damaged = bytearray(raw)
            damaged[start + place] ^= 0x10
            source.write_bytes(damaged)
            refused(source, rf"in\.npz: {entry.filename.removesuffix('.npy')} ")


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.rpartition(",")[0], ":4: 5 columns, 6 are needed"),
        (lambda line: line + ",1", ":4: 7 columns, 6 are needed"),
        (lambda line: line.replace(",", " "), ":4: 1 columns, 6 are needed"),
        (lambda line: "", ":4: 0 columns, 6 are needed"),
        (lambda line: "x" + line, ":4: 'x.*' is not a number"),
        (lambda line: "," + line.partition(",")[2], ":4: '' is not a number"),
        (lambda line: "#" + line, ":4: '#.*' is not a number"),
        (lambda line: "nan," + line.partition(",")[2], ":4: nan is not a finite number"),
        (lambda line: "-inf," + line.partition(",")[2], ":4: -inf is not a finite number"),
        (lambda line: line + "\n" + line, ": 7 points, the first shape of the release has 6"),
    ],
)
def test_broken_text(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    root = write_text(tmp_path / "in")
    replace_line(4, change)(root / "bed/bed_0001.txt")
    refused(root, r"bed/bed_0001\.txt" + message)


def test_listed_files_that_are_missing(tmp_path: Path) -> None:
    root = write_text(tmp_path / "in")
    for name in ("bed/bed_0001", "night_stand/night_stand_0201"):
        (root / f"{name}.txt").unlink()
    refused(root, r"bed/bed_0001\.txt: is listed but missing, 2 of 8 files are")


def test_lists_that_are_missing_or_name_unknown_classes(tmp_path: Path) -> None:
    root = write_text(tmp_path / "in")
    listed = root / "modelnet40_train.txt"
    names = listed.read_text()
    listed.write_text(names + "nightstand_0007\n")
    refused(root, r"modelnet40_train\.txt:7: 'nightstand' is not one of .* did you mean 'night_stand'")
    listed.unlink()
    refused(root, r"modelnet40_train\.txt: is missing, it lists the shapes")


def test_a_release_without_any_of_the_ten_classes(tmp_path: Path) -> None:
    root = write_text(tmp_path / "in")
    for split in SHAPES:
        names = [name for name in SHAPES[split] if name.startswith("airplane")]
        (root / f"modelnet40_{split}.txt").write_text("\n".join(names))
    refused(root, "holds no shape of the classes bathtub, bed, chair", "modelnet10")
    assert prepare(root, tmp_path / "set")["splits"]["train"]["num_rows"] == 3


# --- OFF --------------------------------------------------------------------------------------------------------------


def test_a_broken_mesh_and_an_unknown_class(tmp_path: Path) -> None:
    root = write_off(tmp_path / "in")
    replace_line(6, "0 two 2")(root / "airplane/train/airplane_0001.off")
    refused(root, r"airplane_0001\.off:6: 'two' is not a number")
    (root / "bed").rename(root / "boat")
    refused(root, "boat: 'boat' is not one of ModelNet's 40 classes")
