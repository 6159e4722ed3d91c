"""Writes street scans in the layouts of public sets, byte by byte, beside what must be read of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sightline.data.scans.sensors import sensor_of
from sightline.data.synthetic.lidar_street import (
    Disturbance,
    Scan,
    Street,
    cast_street,
    draw_street,
)

__all__ = ["quiet", "street_scan", "write_bin", "write_labels", "write_semantic_kitti", "write_squeezeseg"]


def quiet(done: int, total: int, message: str) -> None:
    """Progress that nobody looks at."""


def street_scan(seed: int, *, num_columns: int = 32, exact: bool = False) -> tuple[Street, Scan]:
    """A small scan of the default sensor and what it saw."""
    generator = np.random.default_rng(seed)
    street = draw_street(generator)
    sensor = sensor_of(None, preset="hdl64", owner="the test")
    faults = Disturbance(0.0, 0.0, 0.0) if exact else Disturbance()
    return street, cast_street(street, sensor, num_columns=num_columns, generator=generator, disturbance=faults)


def write_bin(path: Path, scan: Scan, *further: np.ndarray) -> None:
    """Rows of little-endian float32: x, y, z, remission, and further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*scan.points.T, scan.remission, *further]
    path.write_bytes(np.stack(columns, axis=1).astype("<f4").tobytes())


def write_labels(path: Path, ids: np.ndarray, instances: np.ndarray) -> None:
    """A uint32 a point: the instance in the upper half, the id in the lower."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(((instances.astype(np.uint32) << 16) | ids.astype(np.uint32)).astype("<u4").tobytes())


def write_semantic_kitti(root: Path, sizes: Mapping[str, int]) -> dict[str, Scan]:
    """A tree `sequences/<name>` of so many scans each, with poses; returns the scans by name (`00/000000`)."""
    scans = {}
    for sequence, size in sizes.items():
        folder = root / "sequences" / sequence
        for number in range(size):
            _, scan = street_scan(100 * int(sequence) + number)
            write_bin(folder / f"velodyne/{number:06d}.bin", scan)
            write_labels(folder / f"labels/{number:06d}.label", scan.ids, scan.thing + 1)
            scans[f"{sequence}/{number:06d}"] = scan
        poses = [np.hstack([np.eye(3), [[0.0], [0.0], [float(number)]]]) for number in range(size)]  # a metre a scan
        (folder / "poses.txt").write_text("".join(" ".join(f"{n:e}" for n in p.ravel()) + "\n" for p in poses))
        # The camera looks along z; it stands where the scanner does, which looks along x.
        (folder / "calib.txt").write_text("P0: 1 0 0 0 0 1 0 0 0 0 1 0\nTr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n")
    return scans


def write_squeezeseg(path: Path, scan: Scan, labels: np.ndarray, *, width: int, dtype: str = "float32") -> np.ndarray:
    """A range image (64, width, 6) of a scan's rings and columns, zeros where nothing came back; returns it."""
    image = np.zeros((64, width, 6), dtype=dtype)
    values = [*scan.points.T, scan.remission, np.linalg.norm(scan.points, axis=1), labels]
    image[scan.ring, scan.column] = np.stack(values, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, image)
    return image
