"""Every kind of cloud file with every kind of damage: refused by name, line or byte, and at once."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from pathlib import Path

import laspy
import numpy as np
import pytest
from pypcd4 import Encoding, PointCloud

from sightline.areas.clouds.sets.modelnet_files import has_npz_keys
from sightline.contract.errors import DataError
from sightline.store.files.array_files import npz_header
from sightline.store.files.cloud_files import read_cloud
from tests.cases import run_each
from tests.data.clouds.cloud_writers import WRITERS, solid, write_ply
from tests.data.files.refusals import refused
from tests.data.files.test_mesh_formats import OBJ, STL, binary_stl
from tests.data.files.test_ply_files import HAND

POINTS = solid("ball", 0, 40)
DIGITS = "1" * 5000
"""More than Python turns into a number."""


def npy_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_of(header: str, body: bytes = b"\0" * 24) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + body


def npy_that_claims(shape: str, body: bytes = b"\0" * 24, kind: str = "<f8") -> bytes:
    return npy_of(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}", body)


def npz(method: int = zipfile.ZIP_DEFLATED, **entries: np.ndarray | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy_bytes(content))
    return buffer.getvalue()


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


ARRAYS: list[tuple[str, bytes, str]] = [
    ("a.gltf", b"solid", r"not read; .*\.ply"),
    ("a.npy", b"", "cannot be read .*the file is damaged"),
    ("a.npy", npy_that_claims("(1000000000000, 3)"), "24000000000000 bytes.*cut short"),
    ("a.npy", npy_that_claims("(1099511627776, 3)", kind="|V0"), "a.npy"),
    ("a.npy", npy_that_claims(f"({'1' * 4000}, 3)"), "claims to be"),
    ("a.npy", npy_that_claims("(-1, -3)"), "claims to be"),
    ("a.npy", npy_of("(" * 900), "a.npy"),
    ("a.npy", npy_of("-" * 9000 + "1"), "a.npy"),
    ("a.npy", npy_bytes(POINTS) + b"\0", "961 follow.*header is wrong"),
    ("a.npy", npy_bytes(POINTS)[:-8], "952 follow.*cut short"),
    ("a.npy", npy_bytes(np.array([["a", "b", "c"]])), "numbers"),
    ("a.npy", npy_bytes(np.zeros((2, 2, 3))), r"\(points, columns\)"),
    ("a.npy", npy_bytes(np.zeros((0, 3))), "no points"),
    ("a.npy", npy_bytes(np.array([[0, 0, 0], [0, np.nan, 0]])), r"points\[1, 1\] is nan"),
    ("a.npy", npy_bytes(np.array([[0, 0, np.inf]])), r"points\[0, 2\] is inf"),
    ("a.npz", b"PK\x03\x04 and no more", "cannot be read"),
    ("a.npz", npz(points=POINTS)[:-30], "cannot be read"),
    ("a.npz", npz(), "no arrays"),
    ("a.npz", npz(points=npy_that_claims("(9, 3)")), "claims to be"),
    ("a.npz", npz(points=npy_that_claims(f"({'1' * 4000}, 3)")), "claims to be"),
    ("a.npz", npz(points=npy_of("-" * 9000 + "1")), "does not fit into memory, or the file is damaged"),
    ("a.npz", npz(points=npy_that_claims("(1000000, 3)", b"\0" * 24_000_000)), "no cloud"),
    ("a.npz", npz(points=b"\x93NUMPY\x02\x00" + (2**25).to_bytes(4, "little") + b" " * 2**25), "no cloud or image"),
    ("a.npz", npz(**{f"c{i}": np.zeros(250_000) for i in range(9)}), "the archive: .* no cloud or image does"),
    ("a.npz", npz(points=POINTS, xyz=POINTS), "xyz contains x a second time"),
    ("a.npz", npz(points=np.zeros((4, 5, 3)), label=np.zeros(4)), r"points is float64 \(4, 5, 3\)"),
    ("a.npz", npz(points=POINTS, ring=np.zeros(4)), "different lengths.*ring 4"),
    ("a.npz", npz(a=np.zeros(4)), "has no x, y, z; it has a"),
    ("a.npz", npz(points=POINTS, faces=np.array([[0, 1, 40]])), r"point 40.*0 to 39"),
    ("a.npz", npz(arr_0=np.ones((5, 4))), "4 columns and no names"),
    ("a.xyz", b"1 2\n3 4\n", "a.xyz: has 2 columns; a cloud needs x, y and z"),
    ("a.npz", changed(npz(zipfile.ZIP_LZMA, points=POINTS), 70), "a.npz"),
    ("a.h5", b"\x89HDF\r\n\x1a\n and no more", "not a sound HDF5"),
]
TEXTS: list[tuple[str, bytes, str]] = [
    ("a.txt", b"hello\nworld\n", "a.txt:1: .*not a row of numbers"),
    ("a.txt", b"\n\n", "no rows"),
    ("a.txt", b"1;2;3\n4;5;6\n", "a.txt:1: .*semicolons between its numbers; put commas"),
    ("a.csv", b"1,5;2;3\n4,5;5;6\n", "a.csv:1: .*semicolons.*decimal"),
    ("a.csv", b"x;y;z\n1;2;3\n", "a.csv:2: .*semicolons"),
    ("a.csv", b"# made today\nx;y;z\n1;2;3\n4;5;6\n", "a.csv:3: .*semicolons"),
    ("a.txt", b"1 2 3\n4 5\n6 7 8\n", "a.txt:2: 2 columns, 3 are needed"),
    ("a.xyz", b"1 2 3\n4 five 6\n", "a.xyz:2: 'five' is not a number"),
    ("a.txt", b"1 2 3\n4 5 6\nnan 8 9\n", "a.txt:3: .*not a finite number"),
    ("a.txt", b"1 2 3\n\n4 5 6\n", "a.txt:2: "),
    ("a.csv", b"x,y,z\n1,2,3,4\n", "a.csv:1: names 3 columns.*rows have 4"),
    ("a.csv", b"x,y,z,x\n1,2,3,4\n", "a.csv:1: names 3 columns"),
    ("a.csv", b"a,b,c\n1,2,3\n", "has no x, y, z; it has a, b, c"),
    ("a.csv", b"X [m],Y [m],Z [m]\n1,2,3\n", "has no x, y, z; it has .*; call its coordinates x, y, z in the file$"),
    ("a.txt", b"a scan\nx y z\n1 2 3\n", "a.txt:1: 'a scan'"),
    ("a.txt", b"//X Y Z\n3\n1 2 3\n4 5 6\n", "a.txt:2: announces 3 points, 2 rows follow"),
    ("a.pts", b"3\n1 2 3\n4 5 6\n", "a.pts:1: announces 3 points, 2 rows"),
    ("a.pts", b"1\n1 2 3\n4 5 6\n", "a.pts:1: announces 1 points, 2 rows"),
    ("a.pts", b"0\n", "no rows"),
    ("a.pts", b"1 2 3 0 0.6 0.8 2\n", "has 7 columns and no names"),
    ("a.pts", f"{DIGITS}\n0 0 0\n".encode(), "a.pts"),
    ("a.txt", f"{DIGITS} 0 0\n".encode(), "a.txt"),
    ("a.txt", "1 2 3\n".encode("utf-16"), "is UTF-16 text"),
]


@run_each("name, content, words", [*ARRAYS, *TEXTS])
def test_broken_arrays_and_texts(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


CORNERS = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n"
OFF = f"OFF\n4 2 0\n{CORNERS}"
MESHES: list[tuple[str, str, str, str]] = [
    ("ply", "^ply", "plx", ":1: starts with"),
    ("ply", "ascii 1.0", "ascii 2.0", ":2: .*not a known format"),
    ("ply", "ascii", "binary", ":2: .*not a known format"),
    ("ply", "comment made by hand", "remark", ":3: 'remark' is not a line"),
    ("ply", "float32 y", "half y", ":9: "),
    ("ply", "element camera 1\n", "", ":5: "),
    ("ply", "vertex 3", "vertex -3", ":7: "),
    ("ply", "vertex 3", f"vertex {DIGITS}", ":7: "),
    ("ply", "element edge 0", "element face 0", ":16: "),
    ("ply", "float32 y", "float32 x", "names 'x' twice"),
    ("ply", "list uchar int", "list float int", "fractions"),
    ("ply", "property int vertex1\n", "", "'edge' no properties"),
    ("ply", "vertex 3", "vertex 0", "no vertices"),
    ("ply", "end_header", "end", "is not a line|no end_header"),
    ("ply", "vertex 3", "vertex 4", "5 lines follow"),
    ("ply", "vertex 3", "vertex 1000000000000", "1000000000000 x vertex.*5 lines follow"),
    ("ply", "vertex 3", "vertex 2", "5 lines follow"),
    ("ply", "1 0 0 0 8", "1 0 zero 0 8", "a.ply:21: .*is not a row of x, y, z, list neighbours"),
    ("ply", "1 0 0 0 8", "1 0 0 0", "a.ply:21: "),
    ("ply", "1 0 0 0 8", "1 0 0 0 8 9", "a.ply:21: "),
    ("ply", "2 1 2 7", "9 1 2 7", "a.ply:20: "),
    ("ply", "2 1 2 7", "-2 1 2 7", "a.ply:20: "),
    ("ply", "1 3 0 1 2", "1 3 0 1 3", r"face 0: .* vertex 3, there are 3 \(0 to 2\)"),
    ("ply", "1 3 0 1 2", "1 0", "face 0: a face has no corners"),
    ("ply", "1 3 0 1 2", "1 3 0 1 0.5", "vertex 0.5"),
    ("off", "(.*\n)*", "\n\n# nothing\n", "is empty"),
    ("off", "OFF", "PLY", ":1: starts with 'PLY', not with 'OFF'"),
    ("off", "OFF", "COFF", ":1: starts with 'COFF'"),
    ("off", "OFF", "OFFSET", ":1: needs the numbers of vertices, faces and edges, found 'SET'"),
    ("off", "4 2 0\n(.*\n)*", "", ":1: needs the numbers of vertices"),
    ("off", "4 2 0", "4 two 0", ":2: needs the numbers .* found '4 two 0'"),
    ("off", "4 2 0", "-4 2 0", ":2: needs the numbers"),
    ("off", "4 2 0", "4", ":2: needs the numbers"),
    ("off", "4 2 0", f"{DIGITS} 1 0", ":2: needs the numbers"),
    ("off", "4 2 0", f"3 {DIGITS} 0", ":2: needs the numbers"),
    ("off", "4 2 0", "5 2 0", ":8: 5 x vertex, 2 x face are announced, 6 lines follow"),
    ("off", "4 2 0", "4 1 0", ":8: .* 6 lines follow"),
    ("off", "4 2 0", "5 1 0", ":7: 4 columns, 3 are needed; found '3 0 1 2'"),
    ("off", "4 2 0", "1000000000000 1 0", "6 lines follow"),
    ("off", "1 1 0", "1 one 0", ":5: 'one' is not a number"),
    ("off", "1 1 0", "1 nan 0", ":5: nan is not a finite number"),
    ("off", "1 1 0", "1 1e999 0", ":5: 1e999 is not a finite number"),
    ("off", "1 1 0", "1 1", ":5: 2 columns, 3 are needed"),
    ("off", "1 1 0", "1 \xff\x00 0", ":5: .* is not a number"),
    ("off", "3 0 2 3", "3 0 2 4", ":8: a face names vertex 4, there are 4"),
    ("off", "3 0 2 3", "3 0 2 -1", ":8: a face names vertex -1"),
    ("off", "3 0 2 3", "4 0 1 2 9", ":8: a face names vertex 9"),
    ("off", "3 0 2 3", f"3 0 2 {10**30}", r":8: a face names vertex 1e\+30"),
    ("off", "3 0 2 3", f"3 0 2 {DIGITS}", ":8: a face names vertex inf"),
    ("off", "3 0 2 3", f"3 0 2 -{DIGITS}", ":8: a face names vertex -inf"),
    ("off", "3 0 2 3", "3 0 2 2.5", ":8: a face names vertex 2.5"),
    ("off", "3 0 2 3", "3 0 2", ":8: '3 0 2' is not a row of list corners"),
    ("off", "3 0 2 3", "x 0 2 3", ":8: 'x 0 2 3' is not a row"),
    ("off", "3 0 2 3", "nan inf 2 3", ":8: 'nan inf 2 3' is not a row"),
    ("off", "3 0 2 3", f"{DIGITS} 0 2 3", ":8: "),
    ("off", "OFF\n4 2 0\n((.*\n)*)3 0 2 3", r"# a\n\nOFF4 2 0\n\n\g<1>3 0 7 3", ":10: a face names vertex 7"),
    ("obj", "f 3 4 5", "f 3 4 6", ":16: a face names vertex 5, there are 5"),
    ("obj", "f 3 4 5", "f 0 4 5", ":16: '0' is not a corner"),
    ("obj", "f -4", "f -9", "names vertex -4"),
    ("obj", "v 1 1 1", "v 1 one 1", ":8: 'one' is not a number"),
    ("obj", "v 1 1 1", "v 1 1", ":8: 2 columns, 3 are needed"),
    ("obj", "f 3 4 5", "surf 0 1 0 1 1 2", ":16: 'surf 0 1 0 1 1 2' is not a line"),
    ("obj", "(.*\n)*", "o nothing\n", "its vertices have 0 numbers"),
    ("stl", "endsolid.*\n", "", "does not end with endsolid"),
    ("stl", "outer", "inner", "a.stl:3: "),
    ("stl", "vertex 1", "vertex one", ":5: 'one' is not a number"),
    ("stl", "(.*\n)*", "solid a\nendsolid a\n", "no points|no rows|0 rows"),
]
SOUND = {"ply": HAND, "off": OFF, "obj": OBJ, "stl": STL}


@run_each("kind, old, new, words", MESHES)
def test_broken_meshes(tmp_path: Path, kind: str, old: str, new: str, words: str) -> None:
    text = re.sub(old, new, SOUND[kind], count=1, flags=re.MULTILINE)
    assert text != SOUND[kind]
    (tmp_path / f"a.{kind}").write_bytes(text.encode("latin-1"))
    refused(tmp_path / f"a.{kind}", words)


@run_each(
    "old, new, words",
    [
        (b"vertex 9", b"vertex 1000000000000", "byte 202: 1000000000000 x vertex need 12000000000000 bytes"),
        (b"vertex 9", b"vertex 10", "face 0: a face has no corners|byte "),
        (b"vertex 9", b"vertex 8", "byte "),
        (b"face 2", b"face 3", "byte "),
        (b"face 2", b"face 1", "byte .*: 13 bytes more than the header announces"),
        (struct.pack("<B3i", 3, 3, 4, 5), struct.pack("<B3i", 255, 3, 4, 5), "face needs 1020 bytes more, 12 are left"),
    ],
)
def test_binary_ply_files_that_lie(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    path = write_ply(tmp_path / "a.ply", dict(zip("xyz", POINTS[:9].T, strict=True)), faces=[(0, 1, 2), (3, 4, 5)])
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    refused(path, words)


def test_a_binary_stl_file_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.stl").write_bytes(binary_stl()[:-1].replace(b"solid", b"stone"))
    refused(tmp_path / "a.stl", "has 183 bytes, an STL file of 2 triangles has 184")


PCD = (
    "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 1\nHEIGHT 1\n"
    "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA {kind}\n"
)


def pcd(kind: str, body: bytes = b"1 2 3 4\n", n: int = 1, old: str = "", new: str = "") -> bytes:
    return PCD.replace(old, new, 1).format(n=n, kind=kind).encode() + body


@run_each(
    "content, words",
    [
        (b"", "no header of a PCD file"),
        (b"\x80\4 a pickle", "no header of a PCD file"),
        (pcd("binary", n=10**12), "promises 1000000000000 points, at least .* cut short"),
        (pcd("binary_compressed", b"\0" * 64, n=10**9), "promises 1000000000 points"),
        (pcd("binary_compressed", struct.pack("<II", 4, 2**30) + bytes(4)), "promises 1 points"),
        (pcd("ascii", n=-1), "no header"),
        (pcd("ascii", b"1.0000 2.0000 3.0000 4.0000\n", n=2), "promises 2 points and holds 1"),
        (pcd("ascii", old="SIZE 4", new="SIZE -4"), "no header"),
        (pcd("ascii", b"a b c d\n"), "does not read as PCD"),
        (pcd("strange"), r"its points are DATA strange, .*save them as ascii or"),
        (pcd("binaryscompressed"), "DATA binaryscompressed"),
        (pcd("!inary", struct.pack("<II", 2**30, 2**30) + bytes(24)), "DATA !inary"),
        (pcd("ascii", old="FIELDS x", new="FIELDS"), "a.pcd: "),
        (pcd("binary", bytes(16), old="WIDTH", new="COUNT 1 1 1 1\nWIDTH"), "no header"),
    ],
)
def test_broken_pcd_files(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pcd").write_bytes(content)
    refused(tmp_path / "a.pcd", words)


@run_each("cut", [1, 30, 200])
@run_each("encoding", [Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED])
def test_pcd_files_that_are_cut_short(tmp_path: Path, encoding: Encoding, cut: int) -> None:
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    PointCloud.from_xyzi_points(points).save(tmp_path / "a.pcd", encoding=encoding)
    (tmp_path / "a.pcd").write_bytes((tmp_path / "a.pcd").read_bytes()[:-cut])
    if encoding == Encoding.ASCII and cut == 1:
        assert len(read_cloud(tmp_path / "a.pcd").points) == 60
    else:
        refused(tmp_path / "a.pcd", "promises 60 points|does not read as PCD|.*60 points")


def test_the_header_of_an_entry_is_not_read_before_its_size_is_checked(tmp_path: Path) -> None:
    bomb = npz(points=b"\x93NUMPY\x02\x00" + (2**25).to_bytes(4, "little") + b" " * 2**25)
    (tmp_path / "a.npz").write_bytes(bomb)
    refused(tmp_path / "a.npz", "points: .* no cloud or image does", read=lambda path: npz_header(path, "points"))


def test_an_archive_of_a_later_version(tmp_path: Path) -> None:
    """Its table states what is needed to read it."""
    raw = bytearray(npz(points=POINTS))
    raw[raw.index(b"PK\x01\x02") + 6] = 173
    (tmp_path / "a.npz").write_bytes(raw)
    assert not has_npz_keys(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "cannot be read", "zip file version 17.3")


class Trap:
    """An object whose unpickling would make a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_objects_are_never_unpickled(tmp_path: Path, suffix: str) -> None:
    held = np.empty((1, 3), dtype=object)
    held[:] = Trap(tmp_path / "sprung")
    content = npy_bytes(held, allow_pickle=True)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content if suffix == ".npy" else npz(points=content))
    refused(path, "Python objects")
    assert not (tmp_path / "sprung").exists()


@run_each("kind", [".ply", ".npy"])
def test_a_signalling_nan_is_a_nan(tmp_path: Path, kind: str) -> None:
    """Widening it is an invalid operation for the processor, of which NumPy warns."""
    table = np.array([[0, 0, 0x7FA00000]], dtype="<u4").view("<f4")
    properties = "property float x\nproperty float y\nproperty float z\n"
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{properties}end_header\n"
    content = npy_bytes(table) if kind == ".npy" else head.encode() + table.tobytes()
    (tmp_path / f"a{kind}").write_bytes(content)
    refused(tmp_path / f"a{kind}", r"points\[0, 2\] is nan")


def test_every_truncation_of_a_mesh_is_refused(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "a.ply", dict(zip("xyz", POINTS[:3].T, strict=True)), faces=[(0, 1, 2)])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)


def write_one_of_each_kind(folder: Path) -> list[Path]:
    """One small file of each kind of this page, of LAS and of other tools."""
    colours = dict(zip("xyz", POINTS.T, strict=True)) | {"rgb": np.ones(40)}
    for suffix, write in WRITERS.items():
        write(folder / f"a{suffix}", POINTS)
    for form in ("ascii", "binary_big_endian"):
        write_ply(folder / f"{form}.ply", colours, form=form, faces=[(0, 1, 2), (3, 4, 5, 6)])
    for encoding in (Encoding.ASCII, Encoding.BINARY_COMPRESSED):
        PointCloud.from_xyz_points(POINTS).save(folder / f"{encoding.value}.pcd", encoding=encoding)
    for name, content in (("a.obj", OBJ.encode()), ("a.stl", STL.encode()), ("b.stl", binary_stl())):
        (folder / name).write_bytes(content)
    cloud = laspy.LasData(laspy.LasHeader(version="1.4", point_format=7))
    cloud.x, cloud.y, cloud.z = POINTS.T
    for suffix in (".las", ".laz"):
        cloud.write(folder / f"a{suffix}")
    return sorted(folder.iterdir())


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Replace up to three bytes, half of them near the head, or cut the end off."""
    changed = bytearray(content)
    for place in random.integers(0, random.choice([min(400, len(changed)), len(changed)]), random.integers(1, 4)):
        changed[place] = random.integers(0, 256)
    return bytes(changed[: random.integers(1, len(changed))] if random.random() < 0.2 else changed)


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.long)])
def test_mutants_of_each_kind_are_read_or_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], count: int
) -> None:
    for number, path in enumerate(write_one_of_each_kind(tmp_path)):
        random, whole = np.random.default_rng(number), path.read_bytes()
        for _ in range(count):
            path.write_bytes(mutate(whole, random))
            told = ""
            try:
                assert np.isfinite(read_cloud(path).points).all()
            except DataError as error:
                told = str(error)
            assert not told or (told.startswith(str(path)) and "\n" not in told), told
    assert capfd.readouterr().err == ""
