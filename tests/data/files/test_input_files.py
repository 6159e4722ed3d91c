"""Files that are no files, numbers that no reader may trust, sizes that are forged: refused by name, and at once."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.areas.clouds.sets.shapenet_part_files import Category, _make_shard
from sightline.areas.contrast.shapenet_render import _fault
from sightline.areas.pose.depth_files import read_depth, read_windowed_depth
from sightline.contract.errors import DataError
from sightline.store.files.array_files import check_array
from sightline.store.files.cloud_files import CLOUD_SUFFIXES, read_cloud
from sightline.store.files.image_files import read_image, read_view
from sightline.store.files.input_files import read_file
from sightline.store.files.mat_files import read_mat
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from tests.cases import run_each
from tests.command import run_here
from tests.data.clouds.cloud_writers import WRITERS, prepare_folder, solid, write_folder
from tests.data.files.refusals import refused


def npy(header: str, *, data: bytes = b"\0" * 24) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


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


@run_each(
    "name, content",
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
    refused(tmp_path / name, read=read_depth)


def test_a_depth_beyond_float32_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 2), 1e300))
    refused(tmp_path / "a.npy", r"1e\+300, which cannot be in mm", read=read_depth)


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
        refused(path, "is not a regular file", read=read)
    refused(tmp_path / f"absent{suffix}", "there is no such file", read=read)
    refused(tmp_path / f"{'n' * 300}{suffix}", r"cannot be read \(File name too long\)", read=read)


def test_a_file_of_holes_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**43)
    refused(tmp_path / "a.txt", "takes 8,796,093,022,208 bytes, more than the memory that is free", read=read_file)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(MemoryError))
    (tmp_path / "b.txt").write_text("0 0 0\n")
    refused(tmp_path / "b.txt", "takes 6 bytes, more than the memory that is free")


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
    refused(path, r"cannot be decoded \(UnidentifiedImageError: cannot identify image file\)", read=read_depth)


# --- Files of a few bytes that promise far more, each refused in a line before the memory is asked for ---


def window(path: Path) -> object:
    path.write_bytes(struct.pack("<6i", 16_384, 16_384, 0, 0, 0, 0))
    return read_windowed_depth(path)


def forged_png(path: Path, width: int, height: int, bits: int, colour: int) -> Path:
    """A PNG file of one colour, its pixels a thousandth of what they become."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"", 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (b"IHDR", b"IDAT", b"IEND"), (header, pixels, b""))))
    return path


def mat(path: Path, place: int, word: int, *, compressed: bool = False) -> object:
    """Sound but for one word, in the variable that a sound file has at byte 128."""
    from scipy.io import savemat

    savemat(path, {"points": np.ones((4, 3))})
    content = bytearray(path.read_bytes())
    content[place : place + 4] = word.to_bytes(4, "little")
    if compressed:
        packed = zlib.compress(bytes(content[128:]))
        content[128:] = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(content)
    return read_mat(path, "points")


@pytest.mark.parametrize(
    "read",
    [
        window,
        lambda path: read_depth(forged_png(path.with_suffix(".png"), 11_000, 11_000, 16, 0)),
        lambda path: read_image(forged_png(path.with_suffix(".png"), 12_000, 12_000, 8, 2)),
        lambda path: mat(path, 132, 2**31 - 1),
        lambda path: mat(path, 160, 2**30),
        lambda path: mat(path, 144, 1),
        lambda path: mat(path, 188, 2**30),
        lambda path: mat(path, 160, 2**30, compressed=True),
    ],
)
def test_refused_before_memory_is_asked_for(read: Callable[[Path], object], tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read(tmp_path / "small")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "small") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_more_is_asked_for_than_a_file_has(tmp_path: Path) -> None:
    """Pillow reads what a chunk of pixels states beyond those that it needs."""
    path = tmp_path / "small.png"
    Image.new("RGB", (9, 9)).save(path)
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 :])
    tracemalloc.start()
    try:
        assert read_image(path).shape == (9, 9, 3)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_numbers_of_no_type_do_not_end_the_process(tmp_path: Path) -> None:
    """SciPy takes the type of no numbers at all for a place in a table."""
    from scipy.io import savemat

    savemat(tmp_path / "small", {"points": np.ones((0, 3))}, appendmat=False)
    content = bytearray((tmp_path / "small").read_bytes())
    content[-8:-4] = bytes(4)
    (tmp_path / "small").write_bytes(content)
    refused(tmp_path / "small", "numbers of type 0 in 0 bytes", read=lambda path: read_mat(path, "points"))


@run_each("length", range(0, 33, 4))
def test_a_view_cut_in_its_header_is_one_line(tmp_path: Path, length: int) -> None:
    path = tmp_path / "view.png"
    Image.new("RGBA", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:length])
    refused(path, r"view\.png \(is ", read=partial(read_view, size_px=8, background="white"))


@run_each("is_compressed", [False, True])
def test_a_sound_file_of_matlab_is_read(tmp_path: Path, is_compressed: bool) -> None:
    from scipy.io import savemat

    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = {"name": "a", "box": np.eye(2)}, np.arange(3)
    savemat(tmp_path / "a.mat", {"x": cells, "y": np.arange(6.0).reshape(2, 3)}, do_compression=is_compressed)
    assert read_mat(tmp_path / "a.mat", "y").tolist() == [[0, 1, 2], [3, 4, 5]]
    cells = read_mat(tmp_path / "a.mat", "x", kinds="O")
    assert (cells.shape, cells[0, 0]["name"], cells[0, 1].tolist()) == ((1, 2), "a", [[0, 1, 2]])
    assert cells[0, 0]["box"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("shape", "dtype", "is_fine"),
    [
        ((2, 5, 3), "float32", True),
        ((2, 5, 3), "float16", True),
        ((2, 5, 3), "int32", False),
        ((2, 5, 4), "float32", False),
        ((0, 5, 3), "float32", False),
        ((5, 3), "float32", False),
        ((1, 2, 5, 3), "float32", False),
    ],
)
def test_an_array_is_of_its_kind_and_shape(shape: tuple[int, ...], dtype: str, is_fine: bool) -> None:
    """None is any length but 0; a shape with more or fewer sides is another one."""
    array = np.zeros(shape, dtype)
    check = partial(check_array, where="a.h5: 'data'", kinds="f", shapes=[(None, None, 3)], needed="floats")
    if is_fine:
        check(array)
        return
    with pytest.raises(DataError) as caught:
        check(array)
    assert str(caught.value) == f"a.h5: 'data' is {dtype} {shape}, floats"
