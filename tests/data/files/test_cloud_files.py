"""Clouds from files of every kind: the numbers that were written, by the names of their columns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from sightline.contract.errors import ConfigError
from sightline.store.files.cloud_files import CLOUD_SUFFIXES, list_skipped_files, read_cloud
from sightline.store.files.cloud_values import note_mixed_units
from sightline.store.files.guessed_columns import guess_columns
from tests.cases import run_each
from tests.data.clouds.cloud_writers import WRITERS, solid
from tests.data.files.refusals import refused

POINTS = solid("ball", 0, 40)
SIX = ("x", "y", "z", "nx", "ny", "nz")


def test_every_kind_has_a_writer_here() -> None:
    """LAS and E57 hold whole multiples of a step, STL float32, others six columns: their own tests write them."""
    assert {*WRITERS, ".las", ".laz", ".e57", ".obj", ".stl", ".xyzn", ".xyzrgb"} == set(CLOUD_SUFFIXES)


@run_each("suffix", WRITERS)
def test_points_come_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    WRITERS[suffix](tmp_path / f"b{suffix}", POINTS)
    (tmp_path / f"b{suffix}").rename(path)
    cloud = read_cloud(path)
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert (cloud.points.dtype, cloud.normals, cloud.channels) == (np.float64, None, {})
    assert (cloud.faces is not None) == (suffix == ".off")


@run_each("suffix", [".npy", ".txt", ".csv", ".pts", ".xyz", ".asc"])
def test_columns_without_names_are_named(tmp_path: Path, suffix: str) -> None:
    table = np.arange(56.0).reshape(8, 7) + 0.5
    WRITERS[suffix](tmp_path / f"a{suffix}", table)
    cloud = read_cloud(tmp_path / f"a{suffix}", columns=("nx", "ny", "nz", "_", "X", "y", "z"))
    np.testing.assert_array_equal(cloud.points, table[:, 4:])
    np.testing.assert_array_equal(cloud.normals, table[:, :3])
    assert cloud.channels == {}
    cloud = read_cloud(tmp_path / f"a{suffix}", columns=("x", "y", "z", "intensity", "_", "_", "ring"))
    np.testing.assert_array_equal(cloud.channels["intensity"], table[:, 3])
    np.testing.assert_array_equal(cloud.channels["ring"], table[:, 6])
    names = ("x", "y", "z", "intensity", "a", "b", "c")
    assert tuple(read_cloud(tmp_path / f"a{suffix}", columns=(*names, "_", "_")).channels) == names[3:]
    refused(tmp_path / f"a{suffix}", "7 columns and no names", r"'columns=\[x, y, z", "--columns x,y,z")
    for columns in (names[:3], (*names, "_", "ring"), ("_", *names)):
        read = partial(read_cloud, columns=columns)
        refused(tmp_path / f"a{suffix}", f"7 columns, {len(columns)} are named", read=read)


ROWS = np.random.default_rng(0)
TURNED, BYTES, LABELS = (
    POINTS / np.linalg.norm(POINTS, axis=1)[:, None],
    ROWS.integers(256, size=(40, 3)),
    np.arange(40) % 3,
)
SOME = ROWS.normal(size=(40, 1))
GUESSED: dict[str, tuple[list[np.ndarray], str | None, str | None]] = {
    "normals": ([TURNED], None, "nx ny nz"),
    "colours": ([BYTES], None, "red green blue"),
    "both": ([BYTES, TURNED], None, "red green blue nx ny nz"),
    "an intensity before colours": ([SOME, BYTES], None, "_ red green blue"),
    "no label is wanted": ([BYTES, LABELS], None, "red green blue _"),
    "the last is the label": ([BYTES, LABELS], "class", "red green blue class"),
    "the first is the label": ([LABELS, BYTES], "label", "label red green blue"),
    "a label alone": ([LABELS], "label", "label"),
    "unclear ones and a label": ([SOME, SOME, LABELS], "label", "_ _ label"),
    "shares of colours": ([BYTES / 255], None, "_ _ _"),
    "one class as three columns": ([np.eye(3)[LABELS]], None, "_ _ _"),
    "colours twice": ([BYTES, BYTES], None, "red green blue _ _ _"),
    "colours are no labels": ([BYTES], "label", None),
    "nothing is a label": ([SOME], "label", None),
}


@run_each("case", GUESSED)
def test_names_are_guessed_from_values(case: str) -> None:
    columns, label, expected = GUESSED[case]
    guessed = guess_columns(np.column_stack([POINTS, *columns]), label=label)
    assert (None if guessed is None else " ".join(guessed.names)) == (expected and f"x y z {expected}")
    for number, name in enumerate(() if guessed is None else guessed.names, 1):
        if name == "_":
            assert f"{number} (" in guessed.reason


@run_each(
    "text",
    [
        "x,y,z,nx,ny,nz,Intensity\n1,2,3,0,0,1,7\n4,5,6,0,1,0,8\n",
        "# made by a scanner\n# x y z nx ny nz intensity\n1 2 3 0 0 1 7\n4 5 6 0 1 0 8\n\n",
        "//X,Y,Z,Nx,Ny,Nz,Intensity\r\n1,2,3,0,0,1,7\r\n4,5,6,0,1,0,8\r\n",
        '\ufeff"x" "y" "z" "nx" "ny" "nz" "intensity"\n1 2 3 0 0 1 7\n4 5 6 0 1 0 8',
    ],
)
def test_names_of_a_text_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    for columns in (None, (*SIX, "intensity")):
        cloud = read_cloud(path, columns=columns)
        assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
        assert cloud.normals is not None
        assert cloud.normals.tolist() == [[0, 0, 1], [0, 1, 0]]
        assert cloud.channels["intensity"].tolist() == [7, 8]
    assert read_cloud(path, columns=("z", "y", "x")).points.tolist() == [[1, 2, 3], [4, 5, 6]]
    refused(path, "has no ring", "it has x, y, z", read=partial(read_cloud, columns=("x", "y", "z", "ring")))


@run_each("suffix", [".npz", ".h5"])
def test_named_arrays(tmp_path: Path, suffix: str) -> None:
    arrays = {"xyz": POINTS.astype("f2"), "Normals": POINTS, "ring": np.arange(40, dtype="u1"), "faces": [[0, 1, 2]]}
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            file.create_group("about")["text"] = "left out"
    cloud = read_cloud(path)
    np.testing.assert_array_equal(cloud.points, POINTS.astype("f2"))
    np.testing.assert_array_equal(cloud.normals, POINTS)
    np.testing.assert_array_equal(cloud.faces, [[0, 1, 2]])
    assert list(cloud.channels) == ["ring"]


def test_one_table_in_an_archive_needs_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.ones((5, 4)))
    assert read_cloud(tmp_path / "a.npz", columns=("x", "y", "z", "t")).channels["t"].tolist() == [1] * 5


@run_each(
    "columns, words",
    [
        (("x", "y"), "lacks z"),
        (("x", "y", "z", "nx"), "lacks ny, nz"),
        (("x", "y", "z", "X"), "'x' twice"),
        ((), "lacks x, y, z"),
    ],
)
def test_columns_that_are_no_cloud(tmp_path: Path, columns: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_cloud(tmp_path / "absent.npy", columns=columns)


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    assert list_skipped_files(tmp_path) == ""
    (tmp_path / "in" / ".git").mkdir(parents=True)
    for name in ("in/a.ply", "in/b.rcs", ".hidden", "in/.git/c"):
        (tmp_path / name).write_text("")
    advice = "; .rcs: export it as E57 or LAS from the scanner's own program"
    assert list_skipped_files(tmp_path) == f"1 file of another kind passed over: in/b.rcs{advice}"
    for number in range(9):
        (tmp_path / f"{number}.rcs").write_text("")
    assert list_skipped_files(tmp_path).startswith("10 files of other kinds passed over: 0.rcs, 1.rcs")
    assert list_skipped_files(tmp_path).endswith(f"4.rcs and 5 more{advice}")


def test_sizes_of_two_units_are_reported_with_the_smaller_group() -> None:
    sizes = np.random.default_rng(0).uniform(0.5, 2, 30)
    names = [f"{number}.ply" for number in range(30)]
    for factor in (100, 1000):
        for count in (1, 12, 29):
            (note,) = note_mixed_units(names, np.where(np.arange(30) < count, factor, 1) * sizes, "clouds")
            first = "0.ply" if count < 15 else f"{count}.ply"
            assert note.startswith(f"units may be mixed: {min(count, 30 - count)} of 30 clouds, first {first}, reach")


def test_sizes_that_one_unit_may_have_are_not_reported() -> None:
    names = [f"{number}.ply" for number in range(30)]
    broad = np.geomspace(0.01, 10, 30)
    for sizes in (broad, np.where(np.arange(30) < 3, 19, 1), np.where(np.arange(30) < 3, 1e5, 1), np.ones(30), []):
        assert note_mixed_units(names, sizes, "clouds") == []
    assert note_mixed_units(names, [0.0, 0.0, 1.0, 1.5], "scans") == []  # scans without points
