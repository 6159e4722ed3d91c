"""Clouds that other tools wrote: their names of columns, packed colours, text and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import laspy
import numpy as np
import pypcd4
import pytest

from sightline.store.files.cloud_files import list_skipped_files, read_cloud
from tests.cases import run_each
from tests.data.clouds.cloud_writers import solid, write_ply
from tests.data.files.refusals import refused

POINTS = solid("ball", 0, 30).astype(np.float32)
COLOURS = np.random.default_rng(0).integers(0, 256, (30, 3), dtype=np.uint8)
XYZ = dict(zip("xyz", POINTS.T, strict=True))


def write_pcd(
    path: Path, columns: Mapping[str, np.ndarray], encoding: pypcd4.Encoding = pypcd4.Encoding.BINARY
) -> Path:
    types = [values.dtype.type for values in columns.values()]
    pypcd4.PointCloud.from_points(list(columns.values()), tuple(columns), types).save(path, encoding=encoding)
    return path


def write_structured(path: Path, columns: Mapping[str, np.ndarray]) -> Path:
    table = np.empty(len(POINTS), [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        table[name] = values
    np.save(path, table)
    return path


def write_csv(path: Path, columns: Mapping[str, np.ndarray]) -> Path:
    np.savetxt(path, np.column_stack([*columns.values()]), header=",".join(columns), comments="", delimiter=",")
    return path


def write_las(path: Path, columns: Mapping[str, np.ndarray]) -> Path:
    """Write columns beside x, y, z as extra dimensions, as CloudCompare writes normals."""
    cloud = laspy.LasData(laspy.LasHeader(version="1.4", point_format=6))
    cloud.header.scales = np.full(3, 1e-7)
    cloud.x, cloud.y, cloud.z = (columns[axis] for axis in "xyz")
    for name in (name for name in columns if name not in "xyz"):
        cloud.add_extra_dim(laspy.ExtraBytesParams(name, np.float32))
        cloud[name] = columns[name]
    cloud.write(path)
    return path


NAMED = {".pcd": write_pcd, ".ply": write_ply, ".npy": write_structured, ".csv": write_csv}
NAMED_ALL = {**NAMED, ".las": write_las, ".laz": write_las}
NORMALS = (("normal_x", "normal_y", "normal_z"), ("NormalX", "NormalY", "NormalZ"), ("nx", "ny", "nz"))


@run_each("suffix, names", [(suffix, names) for suffix in NAMED_ALL for names in NORMALS])
def test_normals_of_every_spelling(tmp_path: Path, suffix: str, names: tuple[str, str, str]) -> None:
    path = NAMED_ALL[suffix](
        tmp_path / f"a{suffix}", XYZ | dict(zip(names, POINTS.T, strict=True)) | {"curvature": POINTS[:, 0]}
    )
    for columns in (None, ("x", "y", "z", *names)):
        cloud = read_cloud(path, columns=columns)
        assert cloud.normals is not None
        np.testing.assert_allclose(cloud.normals, POINTS, rtol=1e-6)
        assert list(cloud.channels)[-1:] == ([] if columns else ["curvature"])
        lower = ", ".join(names).lower()
        assert cloud.notes == (() if names[0] == "nx" else (f"{lower} are read as nx, ny, nz",))
    assert read_cloud(path, used=()).notes == ()


@run_each(
    "arrays, fault",
    [
        ({"label": np.int64(3)}, "label is int64 (), one number a point is needed; leave it out: "),
        ({"name": np.array("chair")}, "name is <U5 (), one number a point"),
        ({"color": COLOURS, "mask": np.ones(30, dtype=bool)}, "mask is bool (30,), one number a point"),
        ({"rgba": np.zeros((30, 4), np.float32)}, "rgba is float32 (30, 4), one number a point"),
    ],
)
def test_arrays_that_are_no_columns_are_not_needed(tmp_path: Path, arrays: dict[str, np.ndarray], fault: str) -> None:
    np.savez(tmp_path / "a.npz", points=POINTS, **arrays)
    refused(tmp_path / "a.npz", re.escape(f"a.npz: {fault}"))
    for options in ({"columns": ("x", "y", "z")}, {"used": ()}):
        assert np.array_equal(read_cloud(tmp_path / "a.npz", **options).points, POINTS)
    if "color" in arrays:
        assert [*read_cloud(tmp_path / "a.npz", used=("red", "green", "blue")).channels] == ["red", "green", "blue"]


def test_two_of_three_normals_keep_their_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", XYZ | {"normal_x": POINTS[:, 0], "normal_y": POINTS[:, 1]})
    assert read_cloud(path).normals is None


@run_each("names", [("r", "g", "b"), ("Diffuse_Red", "diffuse_green", "diffuse_blue"), ("Rf", "Gf", "Bf")])
def test_colours_of_every_spelling(tmp_path: Path, names: tuple[str, str, str]) -> None:
    path = write_csv(tmp_path / "a.csv", XYZ | dict(zip(names, COLOURS.T, strict=True)))
    cloud = read_cloud(path)
    assert np.array_equal(np.stack([cloud.channels[name] for name in ("red", "green", "blue")], axis=1), COLOURS)
    assert list(read_cloud(path, columns=("x", "y", "z", *names)).channels) == ["red", "green", "blue"]


def packed(alpha: int) -> np.ndarray:
    red, green, blue = COLOURS.astype(np.uint32).T
    return np.uint32(alpha) << 24 | red << 16 | green << 8 | blue


@run_each(
    "suffix, alpha, dtype, name",
    [
        (suffix, alpha, dtype, name)
        for suffix in (".pcd", ".npy")
        for alpha in (0, 255)
        for dtype in (np.float32, np.uint32, np.int32)
        for name in ("rgb", "rgba")
    ],
)
def test_packed_colours_are_those_of_their_bits(
    tmp_path: Path, suffix: str, alpha: int, dtype: type, name: str
) -> None:
    """With alpha 255, and red from 128 on, the number is NaN; between 128 and 191 one that conversions change."""
    path = NAMED[suffix](tmp_path / f"a{suffix}", XYZ | {name: packed(alpha).view(dtype)})
    cloud = read_cloud(path)
    found = np.stack([cloud.channels[each] for each in ("red", "green", "blue")], axis=1)
    assert np.array_equal(found, COLOURS)
    assert cloud.notes == (f"{name} is unpacked to red, green, blue",)
    assert cloud.colour_max == 255
    if suffix == ".pcd" and dtype is np.float32:
        stored = pypcd4.PointCloud.from_path(path).pc_data[name]
        assert np.array_equal(found, pypcd4.PointCloud.decode_rgb(stored))


@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_colours_of_ply(tmp_path: Path, order: str) -> None:
    form = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    properties = "".join(f"property float {name}\n" for name in "xyz")
    head = f"ply\nformat {form} 1.0\nelement vertex 30\n{properties}property float rgb\nend_header\n"
    table = np.column_stack([POINTS.view(np.uint32), packed(255)]).astype(f"{order}u4")
    (tmp_path / "a.ply").write_bytes(head.encode() + table.tobytes())
    cloud = read_cloud(tmp_path / "a.ply")
    assert np.array_equal(cloud.points, POINTS)
    assert np.array_equal(np.stack([cloud.channels[each] for each in ("red", "green", "blue")], axis=1), COLOURS)


@run_each("suffix", [".ply", ".pcd", ".npy", ".csv"])
def test_only_columns_that_are_used_are_checked(tmp_path: Path, suffix: str) -> None:
    roughness = np.where(np.arange(30) % 7, POINTS[:, 0], np.float32("nan"))
    path = NAMED[suffix](tmp_path / f"a{suffix}", XYZ | {"roughness": roughness, "ring": POINTS[:, 1]})
    np.testing.assert_allclose(read_cloud(path, columns=("x", "y", "z")).points, POINTS, rtol=1e-6)
    assert list(read_cloud(path, used=("ring",)).channels) == ["ring"]
    refused(path, r"roughness.*and so are 4 more; .*'columns=\[x, y, z, ring\]' or --columns x,y,z,ring")


def test_text_names_the_line_of_a_number_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("//X Y Z Roughness\n0.1 0.2 0.3 0\n1 2 3 nan\n")
    assert read_cloud(tmp_path / "a.txt", columns=("x", "y", "z")).points.tolist() == [[0.1, 0.2, 0.3], [1, 2, 3]]
    refused(tmp_path / "a.txt", r"a\.txt:3: nan is not a finite number \(roughness\); .*'columns=\[x, y, z\]'")


def test_bytes_behind_the_points_of_a_pcd_file(tmp_path: Path) -> None:
    path = write_pcd(tmp_path / "a.pcd", XYZ)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    cloud = read_cloud(path)
    assert np.array_equal(cloud.points, POINTS)
    assert cloud.notes == ("512 bytes behind the announced points are not read",)
    path.write_bytes(path.read_bytes()[:-513])
    refused(path, "promises 30 points")


def test_tabs_and_several_blanks_in_a_pcd_file(tmp_path: Path) -> None:
    path = write_pcd(tmp_path / "a.pcd", XYZ, pypcd4.Encoding.ASCII)
    expected = read_cloud(path).points
    head, mark, body = path.read_bytes().partition(b"DATA ascii\n")
    for blank, end in ((b"\t", b"\n"), (b"  ", b" \n"), (b"\t ", b"\r\n")):
        path.write_bytes(head + mark + body.replace(b" ", blank).replace(b"\n", end))
        assert np.array_equal(read_cloud(path).points, expected)


ROWS = "0.36 1.5 -2 0 0 1\n4 5 6 0 1 0\n"
TEXTS = {
    "a header and a count": ("a.txt", f"//X Y Z Nx Ny Nz\n2\n{ROWS}"),
    "in a file of another ending": ("a.asc", f"//X Y Z Nx Ny Nz\n2\n{ROWS}"),
    "a comment above": ("a.xyz", f"// made today\n//X Y Z Nx Ny Nz\n{ROWS}"),
    "trailing commas": ("a.csv", f"//X,Y,Z,Nx,Ny,Nz,\n{ROWS.replace(' ', ',')}"),
    "rows with trailing commas": ("a.csv", "x,y,z,nx,ny,nz\n0.36,1.5,-2,0,0,1,\n4,5,6,0,1,0,\n"),
    "lines of an old macintosh": ("a.txt", f"//X Y Z Nx Ny Nz\n{ROWS}".replace("\n", "\r")),
}


@run_each("case", TEXTS)
def test_texts_of_cloudcompare(tmp_path: Path, case: str) -> None:
    name, text = TEXTS[case]
    (tmp_path / name).write_text(text, newline="")
    cloud = read_cloud(tmp_path / name)
    assert cloud.points.tolist() == [[0.36, 1.5, -2], [4, 5, 6]]
    assert cloud.normals is not None
    assert cloud.normals.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert cloud.notes == (("line 2 is read as the number of points",) if "count" in case or ".asc" in name else ())


def test_seven_columns_of_leica(tmp_path: Path) -> None:
    (tmp_path / "a.pts").write_text("2\n1 2 3 -1020 0 128 255\n4 5 6 2047 7 8 9\n")
    cloud = read_cloud(tmp_path / "a.pts")
    assert {name: values.tolist() for name, values in cloud.channels.items()} == {
        "intensity": [-1020, 2047],
        "red": [0, 7],
        "green": [128, 8],
        "blue": [255, 9],
    }
    assert cloud.notes == ("7 columns are read as x, y, z, intensity, red, green, blue",)


OTHER_KINDS = {
    "a.glb": r"trimesh\.load\('a\.glb', force='mesh'\)\.export\('a\.ply'\)",
    "a.spz": r"splat-transform a\.spz a\.plain\.ply",
    "a.fbx": "export it as PLY, OBJ or STL, in Blender",
    "a.rcp": "export it as E57 or LAS from the scanner's own program",
    "a.drc": r"draco_decoder -i a\.drc -o a\.ply",
    "a.png": r"there are \.npy",
}


@run_each("name", OTHER_KINDS)
def test_kinds_that_are_not_read_have_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, f"{re.escape(name)}: files of this kind are not read; .*{OTHER_KINDS[name]}")
    folder = tmp_path / f"in {name}"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    is_told = re.search(OTHER_KINDS[name], list_skipped_files(folder)) is not None
    assert is_told == (name != "a.png")


def test_compressed_splats_have_a_way_out(tmp_path: Path) -> None:
    """As PlayCanvas compresses them: numbers of 32 bits, none of which is a coordinate."""
    names = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
    properties = "".join(f"property uint {name}\n" for name in names)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 3\n{properties}end_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + bytes(3 * 4 * 4))
    refused(tmp_path / "a.ply", r"has no x, y, z; .* its splats are compressed; .*splat-transform a\.ply a\.plain\.ply")


def test_suffixes_of_open3d_state_their_columns(tmp_path: Path) -> None:
    """Rows as Open3D 0.20 writes them: ten decimals, colours from 0 to 1."""
    (tmp_path / "a.xyzn").write_text(
        "4.5751832812 0.4341532274 -5.1452008658 0.6631823331 0.0629314123 -0.7458075410\n"
    )
    (tmp_path / "a.xyzrgb").write_text(
        "4.5751832812 0.4341532274 -5.1452008658 0.7725490196 0.8588235294 0.2549019608\n"
    )
    with_normals, with_colours = (read_cloud(tmp_path / f"a.{suffix}") for suffix in ("xyzn", "xyzrgb"))
    assert with_normals.points.tolist() == with_colours.points.tolist() == [[4.5751832812, 0.4341532274, -5.1452008658]]
    assert with_normals.normals is not None
    assert with_normals.normals.tolist() == [[0.6631823331, 0.0629314123, -0.7458075410]]
    colours = np.concatenate([with_colours.channels[name] for name in ("red", "green", "blue")])
    assert (colours * 255).round().tolist() == [197, 219, 65]
