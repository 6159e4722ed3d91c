"""What a newcomer brings: sixty clouds in eleven formats under odd names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data.clouds.cloud_writers import WRITERS, columns_of, solid, write_off, write_ply

__all__ = ["CLASS_NAMES", "FORMS", "NAMES", "PASSED_OVER", "write_sixty"]

CLASS_NAMES = ("-ball", "Plätze & Co", "rod's\nend")
KINDS = ("ball", "plate", "rod")
FACES = ((0, 1, 2), (2, 1, 3), (3, 4, 5))

NAMES = (
    "plain",
    "two words",
    "  blanks around  ",
    "Stühle_日本_🪑",
    "it's",
    'a "quoted" one',
    "line\nend",
    "return\rhere",
    "tab\there",
    "-leading",
    "--help",
    "\x1b[31mred\x1b[0m",
    "bell\a",
    "long_" + "n" * 220,
    "$HOME",
    "a;b|c&d",
    "100%s {0} \\n",
    "[bold red]markup[bold]",
    "a.b.c",
    "name=value",
)
"""One for each cloud of a class; none is a control of the terminal where it is printed."""


def _unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _ply(form: str, *, faces: bool = False, normals: bool = False) -> Callable[[Path, np.ndarray], object]:
    def write(path: Path, points: np.ndarray) -> None:
        columns = columns_of(points, _unit(points)) if normals else dict(zip("xyz", points.T, strict=True))
        write_ply(path, columns, form=form, faces=FACES if faces else None)

    return write


def _off(path: Path, points: np.ndarray) -> None:
    write_off(path, points, ())


def _text(delimiter: str, header: str = "", comments: str = "") -> Callable[[Path, np.ndarray], object]:
    def write(path: Path, points: np.ndarray) -> None:
        np.savetxt(path, points, fmt="%.6f", delimiter=delimiter, header=header, comments=comments)

    return write


def _dos(path: Path, points: np.ndarray) -> None:
    """Lines as Windows ends them, after its mark of UTF-8."""
    rows = "".join(f"{x:.6f},{y:.6f},{z:.6f}\r\n" for x, y, z in points)
    path.write_bytes(b"\xef\xbb\xbfX,Y,Z\r\n" + rows.encode())


def _npz_colours(path: Path, points: np.ndarray) -> None:
    np.savez(path, xyz=points.astype(np.float32), normals=_unit(points), colours=np.zeros(points.shape, np.uint8))


def _pcd_text(path: Path, points: np.ndarray) -> None:
    lines = ["# .PCD v.7", "VERSION .7", "FIELDS x y z", "SIZE 4 4 4", "TYPE F F F", "COUNT 1 1 1"]
    lines += [f"WIDTH {len(points)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(points)}", "DATA ascii"]
    path.write_text("\n".join([*lines, *(" ".join(f"{each:.6f}" for each in row) for row in points), ""]))


def _pcd_packed(path: Path, points: np.ndarray) -> None:
    from pypcd4 import Encoding, PointCloud

    PointCloud.from_xyz_points(points.astype(np.float32)).save(path, encoding=Encoding.BINARY_COMPRESSED)


def _las(path: Path, points: np.ndarray) -> None:
    import laspy

    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales = np.full(3, 1e-4)
    file = laspy.LasData(header)
    file.x, file.y, file.z = points.T
    file.write(str(path))


FORMS: tuple[tuple[str, Callable[[Path, np.ndarray], object]], ...] = (
    (".ply", _ply("ascii")),
    (".ply", _ply("binary_little_endian")),
    (".PLY", _ply("binary_big_endian", normals=True)),
    (".ply", _ply("binary_little_endian", faces=True)),
    (".off", _off),
    (".OFF", WRITERS[".off"]),
    (".xyz", _text(" ")),
    (".txt", _text("\t", "x\ty\tz")),
    (".txt", _text(" ", "x y z", "# ")),
    (".csv", _text(",", "x,y,z")),
    (".csv", _text(", ")),
    (".CSV", _dos),
    (".pts", WRITERS[".pts"]),
    (".npy", WRITERS[".npy"]),
    (".npz", _npz_colours),
    (".h5", WRITERS[".h5"]),
    (".pcd", _pcd_text),
    (".Pcd", WRITERS[".pcd"]),
    (".pcd", _pcd_packed),
    (".las", _las),
)
"""Twenty ways in which a cloud lies in a file, in eleven formats."""

PASSED_OVER = {"mesh.gltf": "{}\n", "mesh.x3d": "<X3D/>\n"}


def write_sixty(root: Path) -> Path:
    """`root/<class>/<name>`: twenty clouds of each of three solids, and two files of kinds that are not read."""
    for place, (label, kind) in enumerate(zip(CLASS_NAMES, KINDS, strict=True)):
        folder = root / label
        folder.mkdir(parents=True)
        for number, name in enumerate(NAMES):
            suffix, write = FORMS[(number + 7 * place) % len(FORMS)]
            write(folder / f"{name}{suffix}", solid(kind, number))
    for name, text in PASSED_OVER.items():
        (root / CLASS_NAMES[0] / name).write_text(text)
    return root
