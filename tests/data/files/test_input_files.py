"""Files that are no files, numbers that no reader may trust, sizes that are forged: refused by name, and at once."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.areas.pose.depth_files import read_depth, read_windowed_depth
from sightline.contract.errors import DataError
from sightline.store.files.array_files import check_array
from sightline.store.files.cloud_files import CLOUD_SUFFIXES, read_cloud
from sightline.store.files.image_files import PNG_END, read_image, read_view
from sightline.store.files.input_files import expand_home, natural_sort_key, read_file
from sightline.store.files.mat_files import read_mat
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from tests.cases import run_each
from tests.command import refuse
from tests.data.clouds.cloud_writers import WRITERS, prepare_folder, solid, write_folder
from tests.data.files.refusals import refused
from tests.data.files.test_broken_clouds import npy_bytes, npy_that_claims


def png(width: int, height: int, *, bits: int = 16, colour: int = 0) -> bytes:
    """A PNG file of one colour, without its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"", 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def mat(place: int, word: int, *, shape: tuple[int, int] = (4, 3), compressed: bool = False) -> bytes:
    """Sound but for one word, in the variable that a sound file has at byte 128."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, {"points": np.ones(shape)})
    content = bytearray(buffer.getvalue())
    place %= len(content)
    content[place : place + 4] = word.to_bytes(4, "little")
    if compressed:
        packed = zlib.compress(bytes(content[128:]))
        content[128:] = struct.pack("<II", 15, len(packed)) + packed
    return bytes(content)


def word_at(content: bytes, place: int, word: int) -> bytes:
    """The same bytes but for one word."""
    return content[:place] + word.to_bytes(4, "little") + content[place + 4 :]


SOUND_MAT = mat(0, int.from_bytes(b"MATL", "little"))
CELLS, COMPLEX = 1, 0x806
"""Kinds of an array of MATLAB: the word at byte 144; the length of its first side is at byte 160."""


read_points = partial(read_mat, key="points")
FORGED: list[tuple[Callable[..., object], str, bytes, str]] = [
    (read_depth, "a.png", png(60_000, 60_000), "cannot be decoded"),
    (read_depth, "a.png", png(11_000, 11_000), "no cloud or image does"),
    (read_depth, "a.png", png(2**31 - 1, 2**31 - 1), "a.png"),
    (read_depth, "a.png", png(0, 0), "a.png"),
    (read_depth, "a.png", b"\x89PNG" + bytes(64) + PNG_END, r"cannot be decoded \(.*cannot identify image file\)"),
    (read_depth, "a.bin", struct.pack("<6i", *[2**31 - 1] * 6), "a.bin"),
    (read_depth, "a.npy", npy_that_claims("(1099511627776, 3)"), "claims to be"),
    (read_depth, "a.npy", npy_bytes(np.full((2, 2), 1e300)), r"1e\+300, which cannot be in mm"),
    (read_windowed_depth, "a.bin", struct.pack("<6i", 16_384, 16_384, 0, 0, 0, 0), "a.bin"),
    (read_image, "a.png", png(12_000, 12_000, bits=8, colour=2), "no cloud or image does"),
    (read_points, "a.mat", mat(132, 2**31 - 1), "points cannot be read"),
    (read_points, "a.mat", mat(160, 2**30), "points cannot be read"),
    (read_points, "a.mat", mat(144, 1), "points cannot be read"),
    (read_points, "a.mat", mat(188, 2**30), "points cannot be read"),
    (read_points, "a.mat", mat(160, 2**30, compressed=True), "points cannot be read"),
    (read_points, "a.mat", mat(-8, 0, shape=(0, 3)), "numbers of type 0 in 0 bytes"),
    (read_points, "a.mat", SOUND_MAT.replace(b"points", b"pointz"), "has no array of numbers 'points'"),
    (read_points, "a.mat", b"MATLAB" + bytes(200), r"points cannot be read .*no header of MATLAB 5 to 7\.2"),
    (read_points, "a.mat", SOUND_MAT[:132], "it is cut short at byte 128"),
    (read_points, "a.mat", word_at(SOUND_MAT, 128, 9), "element at byte 136 is of type 9, not a variable"),
    (read_points, "a.mat", word_at(SOUND_MAT, 144, COMPLEX), "an array of the kind 0x806, which is not read"),
    (read_points, "a.mat", word_at(SOUND_MAT, 160, 2**32 - 1), r"an array of shape \[-1, 3\], 0 deep in others"),
    (read_points, "a.mat", word_at(word_at(SOUND_MAT, 144, CELLS), 160, 2**20), "3145728 arrays in 104 bytes"),
]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """What the block allocates stays below 64 MB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@run_each("read, name, content, words", FORGED)
def test_forged_files_are_refused_before_memory_is_asked_for(
    tmp_path: Path, read: Callable[..., object], name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with little_memory():
        refused(tmp_path / name, words, read=read)


def test_no_more_is_asked_for_than_a_file_has(tmp_path: Path) -> None:
    """Pillow reads what a chunk of pixels states beyond those that it needs."""
    path = tmp_path / "small.png"
    Image.new("RGB", (9, 9)).save(path)
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 :])
    with little_memory():
        assert read_image(path).shape == (9, 9, 3)


@run_each(
    "suffix, read", [*((s, read_cloud) for s in CLOUD_SUFFIXES), *((s, read_depth) for s in (".png", ".npy", ".bin"))]
)
def test_pipes_links_folders_and_devices_are_never_opened(
    suffix: str, read: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A pipe without a writer would hold the reader for ever, /dev/zero would fill the memory."""
    folder = tmp_path_factory.mktemp("odd")
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / f"broken{suffix}").symlink_to(folder / "nowhere")
    (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
    (folder / f"device{suffix}").symlink_to("/dev/zero")
    (folder / f"folder{suffix}").mkdir()
    for path in folder.iterdir():
        refused(path, "is not a regular file", read=read)
    refused(folder / f"absent{suffix}", "there is no such file", read=read)
    refused(folder / f"{'n' * 300}{suffix}", r"cannot be read \(File name too long\)", read=read)


def test_the_home_of_a_user_that_is_not_known_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^~nobody_of_this_name/data: the home of ~nobody_of_this_name is not known"):
        expand_home("~nobody_of_this_name/data")


def test_a_file_of_holes_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(2**43)
    refused(tmp_path / "a.txt", "takes 8,796,093,022,208 bytes, more than the memory that is free", read=read_file)
    monkeypatch.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(MemoryError))
    (tmp_path / "b.txt").write_text("0 0 0\n")
    refused(tmp_path / "b.txt", "takes 6 bytes, more than the memory that is free")


def test_no_set_is_prepared_without_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It used to be left out, and nothing said so."""
    write_folder(tmp_path / "in")
    path = tmp_path / "in" / "rod" / "rod_99.ply"
    for make in (os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path)):
        make(path)
        with pytest.raises(DataError, match=r"rod_99\.ply: is not a regular file"):
            prepare_folder(tmp_path / "in", tmp_path / "set")
        assert not (tmp_path / "set").exists()
        path.unlink()


@run_each("verb", [["data", "info"], ["data", "verify"], ["view", "--out", "out"]])
def test_a_path_longer_than_any_name_is_one_line(verb: list[str], tmp_path: Path) -> None:
    told = refuse(*verb, tmp_path / ("n" * 300))
    assert told.count("\n") == 1
    assert f"{tmp_path}/nnn" in told
    assert "File name too long; check the path" in told


def test_a_name_that_is_no_utf8_is_a_name(tmp_path: Path) -> None:
    """Its bytes seed what is drawn from a mesh, and deal the parts of a set."""
    write_folder(tmp_path / "in")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "in" / "rod") + b"/\xff\n.off"))
    WRITERS[".off"](odd, solid("rod", 99))
    manifest = prepare_folder(tmp_path / "in", tmp_path / "set", columns=("x", "y", "z"), faces="ignore")
    assert sum(split["num_rows"] for split in manifest["splits"].values()) == 31
    with pytest.raises(DataError, match=r"^\\udcff\\n\.off: all 2 points coincide"):
        normalize_to_unit_sphere(np.zeros((2, 3)), where=odd.name)


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


def test_names_whose_numbers_are_equal_have_one_order() -> None:
    """The order of classes, and with it their labels, was that of a set's hashes."""
    names = ["a", "a001", "a01", "a1", "a1b", "a2", "a10", "b1"]
    assert sorted(names, key=natural_sort_key) == sorted(reversed(names), key=natural_sort_key) == names
