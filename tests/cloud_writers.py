"""Clouds written as files of every kind that `sightline predict` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

__all__ = ["WRITERS", "write_off", "write_ply"]


def _write_npy(path: Path, points: np.ndarray) -> None:
    np.save(path, points)


def _write_npz(path: Path, points: np.ndarray) -> None:
    np.savez(path, points=points)


def _write_h5(path: Path, points: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["points"] = points


def _write_text(path: Path, points: np.ndarray) -> None:
    path.write_text("".join(" ".join(repr(float(value)) for value in row) + "\n" for row in points))


def _write_csv(path: Path, points: np.ndarray) -> None:
    rows = "".join(",".join(repr(float(value)) for value in row) + "\n" for row in points)
    path.write_text("x,y,z\n" + rows)


def write_ply(path: Path, points: np.ndarray, normals: np.ndarray | None = None) -> None:
    """A binary PLY of float32 vertices, with normals where they are given."""
    names = ["x", "y", "z", *(["nx", "ny", "nz"] if normals is not None else [])]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {name}" for name in names] + ["end_header\n"]
    values = points if normals is None else np.hstack([points, normals])
    path.write_bytes("\n".join(header).encode() + values.astype("<f4").tobytes())


def write_off(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """A mesh in OFF text."""
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(repr(float(value)) for value in row) for row in vertices]
    lines += ["3 " + " ".join(map(str, face)) for face in faces]
    path.write_text("\n".join(lines) + "\n")


WRITERS: Mapping[str, Callable[[Path, np.ndarray], None]] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "h5": _write_h5,
    "ply": write_ply,
    "txt": _write_text,
    "xyz": _write_text,
    "csv": _write_csv,
}
"""By ending: a function that writes points (N, 3) so that they read back bit for bit."""
