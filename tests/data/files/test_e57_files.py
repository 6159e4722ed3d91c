"""E57 files: all scans in one frame, refused without a trace if damaged, and never XML that declares entities."""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from sightline.contract.errors import DataError, MissingExtraError
from sightline.store.files.cloud_files import read_cloud
from sightline.store.files.e57_files import read_e57
from tests.cases import run_each
from tests.data.files.refusals import refused


def write_e57(path: Path, *scans: dict[str, np.ndarray], shift: float = 0.0) -> bytes:
    """Write scans, each moved along x by `shift` more than the one before."""
    pye57 = pytest.importorskip("pye57", reason="pip install 'sightline[e57]'")
    file = pye57.E57(str(path), "w")
    for index, scan in enumerate(scans):
        turn = np.array([1.0, 0.0, 0.0, 0.0])
        file.write_scan_raw(scan, rotation=turn, translation=np.array([index * shift, 0.0, 0.0]))
    file.close()
    return path.read_bytes()


def make_scan(count: int, *, seed: int = 0, with_colours: bool = True) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    scan = {f"cartesian{axis}": generator.integers(-800, 800, count) / 64 for axis in "XYZ"}
    colours = {f"color{name}": generator.integers(0, 256, count).astype(np.uint8) for name in ("Red", "Green", "Blue")}
    return {**scan, "intensity": generator.random(count), **(colours if with_colours else {})}


def test_scans_are_joined_in_the_frame_of_the_file(tmp_path: Path) -> None:
    first, second = make_scan(30), make_scan(20, seed=1, with_colours=False)
    write_e57(tmp_path / "a.e57", first, second, shift=10.0)
    cloud = read_cloud(tmp_path / "a.e57")
    expected = np.concatenate([np.stack([scan[f"cartesian{axis}"] for axis in "XYZ"], 1) for scan in (first, second)])
    expected[30:, 0] += 10
    assert np.abs(cloud.points - expected).max() < 1e-6, "pye57 stores whole numbers of a micrometre or less"
    assert list(cloud.channels) == ["intensity"], "what every scan has"
    write_e57(tmp_path / "b.e57", first)
    cloud = read_cloud(tmp_path / "b.e57")
    assert np.array_equal(cloud.channels["green"], first["colorGreen"])
    invalid = np.arange(30) % 3 == 0
    write_e57(tmp_path / "c.e57", {**first, "cartesianInvalidState": invalid.astype(np.int64)})
    assert len(read_cloud(tmp_path / "c.e57").points) == 20


def _edit_xml(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace bytes of the XML by as many others; the checksum of the page is then wrong, and is not asked first."""
    assert content.count(old) == 1
    assert len(old) == len(new)
    return content.replace(old, new)


@run_each(
    "change, told",
    [
        (lambda content: content[:40], "does not begin as E57 files do"),
        (lambda content: b"ASTM-E58" + content[8:], "does not begin as E57 files do"),
        (lambda content: content[:-1024], "its header promises .* bytes with .* of XML from byte .* it is cut short"),
        (lambda content: content[:32] + struct.pack("<Q", 2**60) + content[40:], "its header promises"),
        (lambda content: content[:60] + b"\0\1\2\3" + content[64:], r"does not read as E57 \("),
        (
            lambda content: _edit_xml(content, b'<?xml version="1.0" enc', b"<!DOCTYPE a []><!-- enc"),
            "its XML section is no plain UTF-8 without DOCTYPE",
        ),
        (lambda content: _edit_xml(content, b"UTF-8", b"UTF-7"), "its XML section is no plain UTF-8"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_a_line(change, told: str, tmp_path: Path) -> None:
    content = write_e57(tmp_path / "a.e57", make_scan(50))
    (tmp_path / "a.e57").write_bytes(change(content))
    refused(tmp_path / "a.e57", told)


def test_a_file_without_scans_is_refused(tmp_path: Path) -> None:
    write_e57(tmp_path / "a.e57")
    refused(tmp_path / "a.e57", "holds no scan; leave the file out")


def test_four_hundred_changes_of_bytes_never_leave_a_trace(tmp_path: Path) -> None:
    content = write_e57(tmp_path / "a.e57", make_scan(9))
    generator = np.random.default_rng(7)
    for _ in range(400):
        changed = bytearray(content)
        for place in generator.integers(0, generator.choice([48, len(content)]), generator.integers(1, 5)):
            changed[place] = generator.integers(0, 256)
        (tmp_path / "a.e57").write_bytes(changed)
        with contextlib.suppress(DataError):
            read_e57(tmp_path / "a.e57")


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_e57(tmp_path / "a.e57", make_scan(9))
    monkeypatch.setitem(sys.modules, "pye57", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a.e57: reading .e57 files needs .* pip install 'sightline\[e57\]'"):
        read_e57(tmp_path / "a.e57")
