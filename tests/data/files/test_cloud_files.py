"""Clouds from files of every kind: the numbers that were written, or an error that says where and what to do."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.areas.clouds.sets.modelnet_files import has_npz_keys
from sightline.contract.errors import ConfigError, DataError
from sightline.store.files.array_files import npz_header
from sightline.store.files.cloud_files import (
    CLOUD_SUFFIXES,
    has_normals,
    list_skipped_files,
    note_mixed_units,
    read_cloud,
)
from sightline.store.files.cloud_formats import read_off
from tests.data.clouds.cloud_writers import WRITERS, solid, write_ply

POINTS = solid("ball", 0, 40)
SIX = ("x", "y", "z", "nx", "ny", "nz")


def refused(path: Path, *words: str, columns: tuple[str, ...] | None = None) -> str:
    """The error of reading a file: one line, led by the file, with these words."""
    with pytest.raises(DataError) as caught:
        read_cloud(path, columns=columns)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert "\n" not in told
    for word in words:
        assert re.search(word, told), told
    return told


# --- what is read -----------------------------------------------------------------------------------------------------


def test_every_kind_has_a_writer_here() -> None:
    """LAS and E57 hold whole multiples of a step, STL float32: their own tests write them."""
    assert {*WRITERS, ".las", ".laz", ".e57", ".obj", ".stl"} == set(CLOUD_SUFFIXES)


@pytest.mark.parametrize("suffix", WRITERS)
def test_points_come_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    WRITERS[suffix](tmp_path / f"b{suffix}", POINTS)
    (tmp_path / f"b{suffix}").rename(path)
    cloud = read_cloud(path)
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.points.dtype == np.float64
    assert cloud.normals is None
    assert cloud.channels == {}
    assert (cloud.faces is not None) == (suffix == ".off")


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv", ".pts", ".xyz", ".asc"])
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
    refused(tmp_path / f"a{suffix}", "7 columns and no names", r"'columns=\[x, y, z", "--columns x,y,z")
    refused(tmp_path / f"a{suffix}", "7 columns, 3 are named", columns=("x", "y", "z"))
    names = ("x", "y", "z", "intensity", "a", "b", "c")
    assert tuple(read_cloud(tmp_path / f"a{suffix}", columns=(*names, "_", "_")).channels) == names[3:]
    refused(tmp_path / f"a{suffix}", "7 columns, 9 are named", columns=(*names, "_", "ring"))
    refused(tmp_path / f"a{suffix}", "7 columns, 8 are named", columns=("_", *names))


@pytest.mark.parametrize(
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
    refused(path, "has no ring", "it has x, y, z", columns=("x", "y", "z", "ring"))


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
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
    refused(tmp_path / "a.npz", "4 columns and no names")
    assert read_cloud(tmp_path / "a.npz", columns=("x", "y", "z", "t")).channels["t"].tolist() == [1] * 5


def test_real_meshes(shared: Path) -> None:
    for path in sorted((shared / "data" / "modelnet_off_samples").rglob("*.off")):
        mesh, cloud = read_off(path), read_cloud(path)
        np.testing.assert_array_equal(cloud.points, mesh.vertices)
        np.testing.assert_array_equal(cloud.faces, mesh.faces)


@pytest.mark.parametrize(
    ("columns", "words"),
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


# --- what is refused --------------------------------------------------------------------------------------------------


def npy_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_that_claims(shape: str, body: bytes = b"\0" * 24) -> bytes:
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (117 - len(head)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


def zip_bytes(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Trap:
    """An object whose unpickling would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


BROKEN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "unknown kind": ("a.gltf", b"solid", ("not read", ".ply")),
    "empty npy": ("a.npy", b"", ("cannot be read", "the file is damaged")),
    "npy of 1e12 points": ("a.npy", npy_that_claims("(1000000000000, 3)"), ("24000000000000 bytes", "cut short")),
    "npy with a negative size": ("a.npy", npy_that_claims("(-1, -3)"), ("claims to be",)),
    "npy that goes on": ("a.npy", npy_bytes(POINTS) + b"\0", ("961 follow", "header is wrong")),
    "npy cut short": ("a.npy", npy_bytes(POINTS)[:-8], ("952 follow", "cut short")),
    "npy of text": ("a.npy", npy_bytes(np.array([["a", "b", "c"]])), ("numbers",)),
    "npy in three dimensions": ("a.npy", npy_bytes(np.zeros((2, 2, 3))), (r"\(points, columns\)",)),
    "npy without points": ("a.npy", npy_bytes(np.zeros((0, 3))), ("no points",)),
    "npy with NaN": ("a.npy", npy_bytes(np.array([[0, 0, 0], [0, np.nan, 0]])), (r"points\[1, 1\] is nan",)),
    "npy with infinity": ("a.npy", npy_bytes(np.array([[0, 0, np.inf]])), (r"points\[0, 2\] is inf",)),
    "npz that is none": ("a.npz", b"PK\x03\x04 and no more", ("cannot be read",)),
    "npz cut short": ("a.npz", zip_bytes({"points.npy": npy_bytes(POINTS)})[:-30], ("cannot be read",)),
    "npz without arrays": ("a.npz", zip_bytes({"readme.txt": b"hello"}), ("no arrays",)),
    "npz with a wrong claim": ("a.npz", zip_bytes({"points.npy": npy_that_claims("(9, 3)")}), ("claims to be",)),
    "npz bomb": (
        "a.npz",
        zip_bytes({"points.npy": npy_that_claims("(1000000, 3)", b"\0" * 24_000_000)}),
        ("no cloud",),
    ),
    "npz whose header is a bomb": (
        "a.npz",
        zip_bytes({"points.npy": b"\x93NUMPY\x02\x00" + (2**25).to_bytes(4, "little") + b" " * 2**25}),
        ("no cloud or image does",),
    ),
    "npz of many small bombs": (
        "a.npz",
        zip_bytes({f"c{i}.npy": npy_bytes(np.zeros(250_000)) for i in range(9)}),
        ("the archive: .* no cloud or image does",),
    ),
    "npz with two clouds": (
        "a.npz",
        zip_bytes({"points.npy": npy_bytes(POINTS), "xyz.npy": npy_bytes(POINTS)}),
        ("xyz contains x a second time",),
    ),
    "npz of many clouds": (
        "a.npz",
        zip_bytes({"points.npy": npy_bytes(np.zeros((4, 5, 3))), "label.npy": npy_bytes(np.zeros(4))}),
        (r"points is float64 \(4, 5, 3\)",),
    ),
    "npz of unequal lengths": (
        "a.npz",
        zip_bytes({"points.npy": npy_bytes(POINTS), "ring.npy": npy_bytes(np.zeros(4))}),
        ("different lengths", "ring 4"),
    ),
    "npz without points": ("a.npz", zip_bytes({"a.npy": npy_bytes(np.zeros(4))}), ("has no x, y, z; it has a",)),
    "npz with faces of other points": (
        "a.npz",
        zip_bytes({"points.npy": npy_bytes(POINTS), "faces.npy": npy_bytes(np.array([[0, 1, 40]]))}),
        ("point 40", "0 to 39"),
    ),
    "h5 that is none": ("a.h5", b"\x89HDF\r\n\x1a\n and no more", ("not a sound HDF5",)),
    "text without rows": ("a.txt", b"hello\nworld\n", ("a.txt:1", "not a row of numbers")),
    "empty text": ("a.txt", b"\n\n", ("no rows",)),
    "text with semicolons": ("a.txt", b"1;2;3\n4;5;6\n", ("a.txt:1:", "semicolons between its numbers; put commas")),
    "text with semicolons and commas": ("a.csv", b"1,5;2;3\n4,5;5;6\n", ("a.csv:1", "semicolons", "decimal")),
    "text with semicolons and names": ("a.csv", b"x;y;z\n1;2;3\n", ("a.csv:1:", "semicolons")),
    "text with semicolons below a remark": (
        "a.csv",
        b"# made today\nx;y;z\n1;2;3\n4;5;6\n",
        ("a.csv:2:", "semicolons"),
    ),
    "text with a short row": ("a.txt", b"1 2 3\n4 5\n6 7 8\n", ("a.txt:2", "2 columns, 3 are needed")),
    "text with a word": ("a.xyz", b"1 2 3\n4 five 6\n", ("a.xyz:2", "'five' is not a number")),
    "text with NaN": ("a.txt", b"1 2 3\n4 5 6\nnan 8 9\n", ("a.txt:3", "not a finite number")),
    "text with an empty row": ("a.txt", b"1 2 3\n\n4 5 6\n", ("a.txt:2",)),
    "text with too few names": ("a.csv", b"x,y,z\n1,2,3,4\n", ("a.csv:1", "names 3 columns", "rows have 4")),
    "text with a name twice": ("a.csv", b"x,y,z,x\n1,2,3,4\n", ("a.csv:1", "names 3 columns")),
    "text with other names": ("a.csv", b"a,b,c\n1,2,3\n", ("has no x, y, z; it has a, b, c",)),
    "text with a stray line": ("a.txt", b"a scan\nx y z\n1 2 3\n", ("a.txt:1", "'a scan'")),
    "pts that announces more": ("a.pts", b"3\n1 2 3\n4 5 6\n", ("a.pts:1", "announces 3 points, 2 rows")),
    "pts that announces fewer": ("a.pts", b"1\n1 2 3\n4 5 6\n", ("a.pts:1", "announces 1 points, 2 rows")),
    "pts with a count alone": ("a.pts", b"0\n", ("no rows",)),
    "mesh cut short": ("a.off", b"OFF\n3 1 0\n1 2 3\n", ("cut short",)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    name, content, words = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *words)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "a.ply", "no such file")
    refused(tmp_path / "clouds", "no such file")


def test_the_header_of_an_entry_is_not_read_before_its_size_is_checked(tmp_path: Path) -> None:
    name, content, words = BROKEN["npz whose header is a bomb"]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"points: .* {words[0]}"):
        npz_header(tmp_path / name, "points")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_objects_are_never_unpickled(tmp_path: Path, suffix: str) -> None:
    held = np.empty((1, 3), dtype=object)
    held[:] = Trap(tmp_path / "sprung")
    content = npy_bytes(held, allow_pickle=True)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content if suffix == ".npy" else zip_bytes({"points.npy": content}))
    refused(path, "Python objects")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("chunks", [None, (1000, 3)])
def test_an_hdf5_file_that_was_not_written_to_the_end(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    """It claims 10^9 points, 24 GB, and would read as that many zeros."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("points", shape=(10**9, 3), dtype="f8", chunks=chunks)
    refused(tmp_path / "a.h5", "24000000000 bytes, and 0 are stored")


def test_an_hdf5_file_that_lacks_chunks(tmp_path: Path) -> None:
    """Compressed chunks that were never written would read as zeros."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        points = file.create_dataset("points", shape=(40, 3), dtype="f8", chunks=(10, 3), compression="gzip")
        points[:30] = POINTS[:30]
    refused(tmp_path / "a.h5", "not written to the end")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["points"][30:] = POINTS[30:]
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.h5").points, POINTS)


def test_an_hdf5_file_leads_to_no_other_file(tmp_path: Path) -> None:
    WRITERS[".h5"](tmp_path / "b.h5", POINTS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["points"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "points")
    refused(tmp_path / "a.h5", "points is a link out of this file")
    (tmp_path / "b.bin").write_bytes(POINTS.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("points", (40, 3), "f8", external=[(str(tmp_path / "b.bin"), 0, 960)])
    refused(tmp_path / "a.h5", "points is stored in other files")


@pytest.mark.parametrize("name", [b"\x8fing\0", b"r\xc0ng\0"])
def test_an_hdf5_file_with_a_damaged_name(tmp_path: Path, name: bytes) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["points"], file["ring"] = POINTS, POINTS[:, 0]
    content = (tmp_path / "a.h5").read_bytes()
    assert content.count(b"ring\0") == 1
    (tmp_path / "a.h5").write_bytes(content.replace(b"ring\0", name))
    refused(tmp_path / "a.h5", "not a sound HDF5 file")


def test_an_hdf5_file_of_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["points"] = "hello"
    refused(tmp_path / "a.h5", "not an array of numbers")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_cut_and_no_flipped_byte_is_more_than_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever happens to a file, it is read whole, or refused in one line; nothing else is raised."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    suffix = data.draw(st.sampled_from([".npy", ".npz", ".h5", ".ply", ".pcd", ".off", ".pts", ".csv"]))
    path = folder / f"a{suffix}"
    WRITERS[suffix](path, POINTS[:6])
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    told = ""
    try:
        assert np.isfinite(read_cloud(path).points).all()
    except DataError as error:
        told = str(error)
    assert not told or (str(path) in told and "\n" not in told)


def test_every_truncation_of_a_mesh_is_refused(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "a.ply", dict(zip("xyz", POINTS[:3].T, strict=True)), faces=[(0, 1, 2)])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def test_whether_a_file_has_normals_is_told_by_its_head(tmp_path: Path) -> None:
    """As reading the whole file tells it, for every kind."""
    points = np.arange(12.0).reshape(4, 3)
    named = dict(zip(("x", "y", "z", "nx", "ny", "nz"), np.hstack([points, points]).T, strict=True))
    for number, form in enumerate(("ascii", "binary_little_endian", "binary_big_endian")):
        write_ply(tmp_path / f"normals{number}.ply", named, form=form)
        write_ply(tmp_path / f"bare{number}.ply", {name: named[name] for name in "xyz"}, form=form)
        write_ply(tmp_path / f"faces{number}.ply", {name: named[name] for name in "xyz"}, form=form, faces=[(0, 1, 2)])
    for suffix, write in WRITERS.items():
        write(tmp_path / f"bare{suffix}", points)
    np.savez(tmp_path / "normals.npz", points=points, normals=points)
    (tmp_path / "normals.csv").write_text("X,Y,Z,Nx,Ny,Nz\n1,2,3,4,5,6\n")
    for path in tmp_path.iterdir():
        cloud = read_cloud(path)
        assert has_normals(path, by_faces=False) == (cloud.normals is not None), path
        assert has_normals(path) == (cloud.normals is not None or cloud.faces is not None), path


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    assert list_skipped_files(tmp_path) == ""
    (tmp_path / "in" / ".git").mkdir(parents=True)
    for name in ("in/a.ply", "in/b.rcs", ".hidden", "in/.git/c"):
        (tmp_path / name).write_text("")
    assert list_skipped_files(tmp_path) == "1 file of another kind passed over: in/b.rcs"
    for number in range(9):
        (tmp_path / f"{number}.rcs").write_text("")
    assert list_skipped_files(tmp_path).startswith("10 files of other kinds passed over: 0.rcs, 1.rcs")
    assert list_skipped_files(tmp_path).endswith("4.rcs and 5 more")


def test_an_archive_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """Its table states what is needed to read it; before, looking for normals in it was a traceback."""
    raw = bytearray(zip_bytes({"points.npy": npy_bytes(POINTS)}))
    raw[raw.index(b"PK\x01\x02") + 6] = 173
    (tmp_path / "a.npz").write_bytes(raw)
    assert not has_normals(tmp_path / "a.npz")
    assert not has_npz_keys(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "cannot be read", "zip file version 17.3")


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
