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
    (note,) = cloud.notes
    assert note.startswith("30 of 50 points (60.0%) have red, green, blue, those of other scans of the file none: left")
    write_e57(tmp_path / "b.e57", first)
    cloud = read_cloud(tmp_path / "b.e57")
    assert np.array_equal(cloud.channels["green"], first["colorGreen"])
    invalid = np.arange(30) % 3 == 0
    write_e57(tmp_path / "c.e57", {**first, "cartesianInvalidState": invalid.astype(np.int64)})
    cloud = read_cloud(tmp_path / "c.e57")
    assert len(cloud.points) == 20
    assert cloud.notes == ("10 of 30 points (33.3%) are marked as invalid in the file, and are left out",)


def write_nodes(path: Path, columns: dict[str, np.ndarray], *, high: dict[str, int] | None = None) -> None:
    """Write a scan node by node, as pye57 itself writes neither normals, marks of values nor colours of 16 bits.

    It is turned by 90 degrees about z, and moved by 5 along x. Columns in `high` are whole numbers up to theirs.
    """
    pye57 = pytest.importorskip("pye57", reason="pip install 'sightline[e57]'")
    nodes = pye57.libe57
    file = pye57.E57(str(path), "w")
    image = file.image_file
    image.extensionsAdd("nor", "http://www.libe57.org/E57_NOR_surface_normals.txt")
    scan, prototype, pose = (nodes.StructureNode(image) for _ in range(3))
    scan.set("guid", nodes.StringNode(image, "{1}"))
    file.data3d.append(scan)
    for name, numbers in {
        "rotation": dict(w=0.5**0.5, x=0, y=0, z=0.5**0.5),
        "translation": dict(x=5, y=0, z=0),
    }.items():
        part = nodes.StructureNode(image)
        pose.set(name, part)
        for key, number in numbers.items():
            part.set(key, nodes.FloatNode(image, float(number)))
    scan.set("pose", pose)
    buffers, arrays = nodes.VectorSourceDestBuffer(), []
    for name, values in columns.items():
        limit = (high or {}).get(name)
        node = nodes.FloatNode(image, 0.0) if limit is None else nodes.IntegerNode(image, 0, 0, limit)
        prototype.set(name, node)
        arrays.append(np.ascontiguousarray(values, dtype=np.float64))
        buffers.append(nodes.SourceDestBuffer(image, name, arrays[-1], len(values), True, True))
    points = nodes.CompressedVectorNode(image, prototype, nodes.VectorNode(image, True))
    scan.set("points", points)
    writer = points.writer(buffers)
    writer.write(len(arrays[0]))
    writer.close()
    file.close()


def test_normals_are_read_and_turned_with_their_scan(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    points, normals = generator.uniform(-4, 4, (40, 3)), generator.normal(size=(40, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    columns = dict(zip((f"cartesian{axis}" for axis in "XYZ"), points.T, strict=True))
    columns |= dict(zip((f"nor:normal{axis}" for axis in "XYZ"), normals.T, strict=True))
    write_nodes(tmp_path / "a.e57", columns)
    cloud = read_cloud(tmp_path / "a.e57")
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(cloud.points, points @ turn.T + [5, 0, 0], atol=1e-9)
    assert cloud.normals is not None
    np.testing.assert_allclose(cloud.normals, normals @ turn.T, atol=1e-9)
    assert cloud.notes == ()


def test_colours_of_16_bits_and_marks_of_values(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    columns = {f"cartesian{axis}": generator.uniform(-4, 4, 40) for axis in "XYZ"}
    names = [f"color{name}" for name in ("Red", "Green", "Blue")]
    colours = generator.integers(0, 65536, (3, 40))
    columns |= dict(zip(names, colours, strict=True)) | {"isColorInvalid": np.arange(40) < 4}
    write_nodes(tmp_path / "a.e57", columns, high=dict.fromkeys(names, 65535) | {"isColorInvalid": 1})
    cloud = read_cloud(tmp_path / "a.e57")
    assert np.array_equal(np.stack([cloud.channels[name] for name in ("red", "green", "blue")]), colours)
    assert cloud.colour_max == 65535
    assert cloud.notes == ("4 of 40 points (10.0%) have a colour that the file marks as invalid; it is used",)


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
