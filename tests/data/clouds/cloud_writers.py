"""Clouds in files of every kind, written here byte by byte, and folders of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sightline.areas.clouds.sets.cloud_folder import CloudFolder

CLASSES = ("ball", "plate", "rod")
STRETCH = {"ball": (1.0, 1.0, 1.0), "plate": (1.0, 1.0, 0.05), "rod": (0.1, 0.1, 1.0)}
Make = Callable[[str, int], np.ndarray]
PLY_TYPES = {"<f4": "float", "<f8": "double", "<u1": "uchar", "<i4": "int", "<u2": "ushort"}


def solid(kind: str, number: int, num_points: int = 300) -> np.ndarray:
    """A cloud (N, 3) of one of three easy classes, somewhere, of some size."""
    generator = np.random.default_rng([CLASSES.index(kind), number])
    directions = generator.normal(size=(num_points, 3))
    sphere = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return sphere * STRETCH[kind] * generator.uniform(0.5, 2.0) + generator.normal(size=3)


def write_ply(
    path: Path,
    columns: Mapping[str, np.ndarray],
    *,
    form: str = "binary_little_endian",
    faces: Sequence[Sequence[int]] | None = None,
    dtype: str = "<f4",
) -> Path:
    """A PLY file with one property per column, and a face element if there are faces."""
    size = len(next(iter(columns.values())))
    lines = ["ply", f"format {form} 1.0", "comment by the tests", f"element vertex {size}"]
    lines += [f"property {PLY_TYPES[dtype]} {name}" for name in columns]
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    head = "\n".join([*lines, "end_header", ""]).encode()
    table = np.stack([np.asarray(values) for values in columns.values()], axis=1).astype(dtype)
    if form == "ascii":
        rows = [" ".join(repr(value.item()) for value in row) for row in table]
        rows += [f"{len(face)} {' '.join(map(str, face))}" for face in faces or ()]
        path.write_bytes(head + "\n".join([*rows, ""]).encode())
        return path
    order = "<" if form == "binary_little_endian" else ">"
    body = table.astype(table.dtype.newbyteorder(order)).tobytes()
    for face in faces or ():
        body += bytes([len(face)]) + np.array(face, dtype=f"{order}i4").tobytes()
    path.write_bytes(head + body)
    return path


def columns_of(points: np.ndarray, normals: np.ndarray) -> dict[str, np.ndarray]:
    """The columns x to nz of a cloud with normals."""
    return dict(zip(("x", "y", "z", "nx", "ny", "nz"), np.hstack([points, normals]).T, strict=True))


def _write_npy(path: Path, points: np.ndarray) -> None:
    np.save(path, points)


def _write_npz(path: Path, points: np.ndarray) -> None:
    np.savez_compressed(path, points=points)


def _write_h5(path: Path, points: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["points"] = points


def _write_text(path: Path, points: np.ndarray) -> None:
    np.savetxt(path, points, fmt="%.17g", delimiter="," if path.suffix == ".csv" else " ")


def _write_pts(path: Path, points: np.ndarray) -> None:
    path.write_text(f"{len(points)}\n" + "".join(" ".join(map(repr, row)) + "\n" for row in points.tolist()))


def write_off(path: Path, vertices: np.ndarray, faces: Sequence[Sequence[int]] | np.ndarray) -> None:
    """A mesh of triangles in OFF text."""
    rows = "".join(" ".join(map(repr, row)) + "\n" for row in vertices.tolist())
    triangles = "".join(f"3 {' '.join(map(str, face))}\n" for face in faces)
    path.write_text(f"OFF\n{len(vertices)} {len(faces)} 0\n{rows}{triangles}")


def _write_off(path: Path, points: np.ndarray) -> None:
    write_off(path, points, [(0, 1, 2)])


def _write_ply(path: Path, points: np.ndarray) -> None:
    write_ply(path, dict(zip("xyz", points.T, strict=True)), dtype="<f8")


def _write_pcd(path: Path, points: np.ndarray) -> None:
    """Binary, by the format's own description."""
    lines = ["VERSION 0.7", "FIELDS x y z", "SIZE 8 8 8", "TYPE F F F", "COUNT 1 1 1", f"WIDTH {len(points)}"]
    lines += ["HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(points)}", "DATA binary", ""]
    path.write_bytes("\n".join(lines).encode() + points.astype("<f8").tobytes())


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".h5": _write_h5,
    ".hdf5": _write_h5,
    ".ply": _write_ply,
    ".pcd": _write_pcd,
    ".off": _write_off,
    ".txt": _write_text,
    ".xyz": _write_text,
    ".csv": _write_text,
    ".pts": _write_pts,
    ".asc": _write_text,
}


def write_folder(
    root: Path, *, per_class: int = 10, suffix: str = ".ply", classes: Sequence[str] = CLASSES, make: Make = solid
) -> Path:
    """`root/<class>/<class>_<number>`: the folder of a new user; `make` gives the cloud of a class and number."""
    for kind in classes:
        (root / kind).mkdir(parents=True)
        for number in range(per_class):
            WRITERS[suffix](root / kind / f"{kind}_{number:02d}{suffix}", make(kind, number))
    return root


def prepare_folder(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    """The set `cloud_folder` made of a folder or list, z up and 64 points unless said; its manifest."""
    options = {"up_axis": "z", "num_points": 64, **options}
    return CloudFolder.prepare(
        source=source, target=target, name="cloud_folder", progress=lambda done, total, what: None, **options
    )
