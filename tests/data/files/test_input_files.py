"""Files that are no files, and numbers in files that no reader may trust: refused by name, and at once."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sightline.data.clouds.shapenet_part_files import Category, _make_shard
from sightline.data.clouds.shapenet_render import _fault
from sightline.data.files.cloud_files import CLOUD_SUFFIXES, has_normals, read_cloud
from sightline.data.files.depth_files import read_depth
from sightline.data.files.input_files import read_file
from sightline.data.store.prepared_writer import normalize_to_unit_sphere
from sightline.errors import DataError
from tests.command import run_here
from tests.data.clouds.cloud_writers import WRITERS, prepare_folder, solid, write_folder

DIGITS = "1" * 5000
"""More than Python turns into a number."""
SQUARE = "0 0 0\n1 0 0\n0 1 0\n"


def refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert len(told) < len(str(path)) + 400
    assert told.isprintable()
    return told


def npy(header: str, *, data: bytes = b"\0" * 24) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


def zipped(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("points.npy", content)
    return file.getvalue()


def damaged_lzma() -> bytes:
    content = bytearray(zipped(npy("{'descr':'<f8','fortran_order':False,'shape':(1,3)}"), zipfile.ZIP_LZMA))
    content[70] ^= 255
    return bytes(content)


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


HEADERS = {
    "shape of 2^40": "{'descr':'<f8','fortran_order':False,'shape':(1099511627776,3)}",
    "shape of 4,000 digits": "{'descr':'<f8','fortran_order':False,'shape':(%s,3)}" % ("1" * 4000),
    "negative shape": "{'descr':'<f8','fortran_order':False,'shape':(-1,3)}",
    "no bytes an element": "{'descr':'|V0','fortran_order':False,'shape':(1099511627776,3)}",
    "brackets": "(" * 900,
    "signs that Python's parser gives up": "-" * 9000 + "1",
}
CLOUDS: dict[str, bytes] = {
    "vertices.off": f"OFF\n{DIGITS} 1 0\n{SQUARE}".encode(),
    "faces.off": f"OFF\n3 {DIGITS} 0\n{SQUARE}".encode(),
    "sides.off": f"OFF\n3 1 0\n{SQUARE}{DIGITS} 0 1 2\n".encode(),
    "corner.off": f"OFF\n3 1 0\n{SQUARE}3 0 1 {DIGITS}\n".encode(),
    "negative.off": f"OFF\n3 1 0\n{SQUARE}3 0 1 -{DIGITS}\n".encode(),
    "huge.off": f"OFF\n1000000000000 1 0\n{SQUARE}".encode(),
    "vertices.ply": f"ply\nformat ascii 1.0\nelement vertex {DIGITS}\nproperty float x\nend_header\n0\n".encode(),
    "rows.pts": f"{DIGITS}\n0 0 0\n".encode(),
    "number.txt": f"{DIGITS} 0 0\n".encode(),
    "lzma.npz": damaged_lzma(),
    **{f"{name}.npy": npy(header) for name, header in HEADERS.items()},
    **{f"{name}.npz": zipped(npy(header)) for name, header in HEADERS.items()},
}


@pytest.mark.parametrize("name", CLOUDS)
def test_hostile_numbers_in_clouds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CLOUDS[name])
    refused(read_cloud, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bomb.png", png(60_000, 60_000)),
        ("largest.png", png(2**31 - 1, 2**31 - 1)),
        ("empty.png", png(0, 0)),
        ("huge.bin", struct.pack("<6i", *[2**31 - 1] * 6)),
        *((f"{name}.npy", npy(header)) for name, header in HEADERS.items()),
    ],
)
def test_hostile_numbers_in_depth_images(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(read_depth, tmp_path / name)


def test_a_depth_beyond_float32_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 2), 1e300))
    assert "1e+300, which cannot be in mm" in refused(read_depth, tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("suffix", "read"),
    [*((s, read_cloud) for s in CLOUD_SUFFIXES), *((s, read_depth) for s in (".png", ".npy", ".bin"))],
)
def test_pipes_links_folders_and_devices_are_never_opened(
    suffix: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    """A pipe without a writer would hold the reader for ever, /dev/zero would fill the memory."""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"broken{suffix}").symlink_to(tmp_path / "nowhere")
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"folder{suffix}").mkdir()
    for path in tmp_path.iterdir():
        assert "is not a regular file" in refused(read, path)
    assert "there is no such file" in refused(read, tmp_path / f"absent{suffix}")
    assert "cannot be read (File name too long)" in refused(read, tmp_path / f"{'n' * 300}{suffix}")


def test_a_file_of_holes_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**43)
    assert "its 8796093022208 bytes do not fit into memory" in refused(read_file, tmp_path / "a.txt")
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(MemoryError))
    (tmp_path / "b.txt").write_text("0 0 0\n")
    assert "its 6 bytes do not fit into memory" in refused(read_cloud, tmp_path / "b.txt")


def test_a_signalling_nan_is_a_nan(tmp_path: Path) -> None:
    """Widening it is an invalid operation for the processor, of which NumPy warns."""
    table = np.array([[0, 0, 0x7FA00000]], dtype="<u4").view("<f4")
    properties = "property float x\nproperty float y\nproperty float z\n"
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{properties}end_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + table.tobytes())
    np.save(tmp_path / "a.npy", table)
    for name in ("a.ply", "a.npy"):
        assert "points[0, 2] is nan" in refused(read_cloud, tmp_path / name)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path)]
)
def test_no_set_is_prepared_without_a_file_that_cannot_be_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    """It used to be left out, and nothing said so."""
    write_folder(tmp_path / "in")
    make(tmp_path / "in" / "rod" / "rod_99.ply")
    with pytest.raises(DataError, match=r"rod_99\.ply: is not a regular file"):
        prepare_folder(tmp_path / "in", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("verb", [["data", "info"], ["data", "verify"], ["view", "--out", "out"]])
def test_a_path_longer_than_any_name_is_one_line(verb: list[str], tmp_path: Path) -> None:
    done = run_here(*verb, tmp_path / ("n" * 300))
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"{tmp_path}/nnn" in done.err
    assert "File name too long; check the path" in done.err


def test_a_name_that_is_no_utf8_is_a_name(tmp_path: Path) -> None:
    """Its bytes seed what is drawn from a mesh, and deal the parts of a set."""
    write_folder(tmp_path / "in")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "in" / "rod") + b"/\xff\n.off"))
    WRITERS[".off"](odd, solid("rod", 99))
    assert not has_normals(odd, by_faces=False)
    manifest = prepare_folder(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z"), faces="ignore")
    assert sum(split["num_rows"] for split in manifest["splits"].values()) == 31
    with pytest.raises(DataError, match=r"^\\udcff\\n\.off: all 2 points coincide"):
        normalize_to_unit_sphere(np.zeros((2, 3)), where=odd.name)


def test_what_is_no_regular_file_is_named_in_sets_of_many_files(tmp_path: Path) -> None:
    """A folder, a link to itself or to nothing, and a pipe, which would block, in the place of a view or a cloud."""
    for ending in (".png", ".ply"):
        path = tmp_path / f"view{ending}"
        makers: list[Callable[[], object]] = [
            path.mkdir,
            partial(path.symlink_to, path.name),
            partial(path.symlink_to, "nowhere"),
            partial(os.mkfifo, path),
        ]
        for make in makers:
            make()
            with pytest.raises(DataError, match=f"view{ending}: (is not a regular file|cannot be read)"):
                _fault(path)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(DataError, match=r"view.ply: .*symbolic links"):
        _make_shard("train", Category("aeroplane", 0, "02691156", (0, 1)), [path])


def test_a_depth_image_that_is_none_is_named_without_addresses_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    path.write_bytes(b"\xef\xbb\xbf\x89PNG\r\n\x1a\n" + b"\0" * 64 + b"\x00\x00\x00\x00IEND\xaeB`\x82")
    with pytest.raises(DataError) as caught:
        read_depth(path)
    assert "cannot be decoded (cannot identify image file)" in str(caught.value)
