"""Writes street scans in the layouts of public sets, byte by byte, beside what must be read of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.areas.scans.sets.synthetic_lidar import draw_street
from sightline.store.files.sensors import SensorBlock, make_sensor
from sightline.store.streets.casting import SENSOR_HEIGHT_M, LidarNoise, Scan, Street, cast_street


def quiet(done: int, total: int, message: str) -> None:
    """Progress that nobody looks at."""


def street_scan(seed: int, *, num_columns: int = 32, exact: bool = False) -> tuple[Street, Scan]:
    """A small scan of the default sensor and what it saw."""
    generator = np.random.default_rng(seed)
    street = draw_street(generator)
    sensor = make_sensor(None, preset="hdl64", owner="the test")
    faults = LidarNoise(0.0, 0.0, 0.0) if exact else LidarNoise()
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


TYPE_OF = {10: "Car", 30: "Pedestrian"}
"""What KITTI calls the things of a street that it labels."""


def write_kitti_object(root: Path, num_frames: int) -> dict[str, tuple[Street, Scan]]:
    """A tree `training/...` of exact scans whose cars and persons are labelled; the camera stands in the scanner.

    Its axes are the scanner's under other names: right is -y, down is -z, forward is x. 90 degrees fit into the image.
    Exact returns lie on faces: boxes are a centimetre larger, to hold them all, and end a millimetre above the ground.
    """
    made = {}
    folders = {name: root / "training" / name for name in ("velodyne", "label_2", "calib", "image_2")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number in range(num_frames):
        street, scan = street_scan(number, num_columns=256, exact=True)
        frame = f"{number:06d}"
        write_bin(folders["velodyne"] / f"{frame}.bin", scan)
        lines = []
        for box, label in zip(street.things.boxes, street.ids, strict=False):
            if label in TYPE_OF:
                x, y, half_length, half_width, yaw, top = box
                height, width, length = top + SENSOR_HEIGHT_M + 0.009, 2 * half_width + 0.02, 2 * half_length + 0.02
                size = f"{height:.9f} {width:.9f} {length:.9f}"
                place = f"{-y:.9f} {SENSOR_HEIGHT_M - 0.001:.9f} {x:.9f} {-yaw - np.pi / 2:.9f}"
                lines.append(f"{TYPE_OF[int(label)]} 0.00 0 0.00 0 0 1 1 {size} {place}\n")
        (folders["label_2"] / f"{frame}.txt").write_text("".join(lines))
        (folders["calib"] / f"{frame}.txt").write_text(
            "P2: 100 0 100 0 0 100 50 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
            "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n\n"
        )
        Image.new("RGB", (200, 100)).save(folders["image_2"] / f"{frame}.png")
        made[frame] = (street, scan)
    return made


OWN: SensorBlock = {"fov_deg": (12.0, -18.0), "azimuth_deg": (50.0, -50.0), "num_beams": 16, "remission_max": 255.0}


def own_scan(seed: int, *, num_columns: int = 60) -> Scan:
    """16 beams, 100 degrees wide, remissions from 0 to 255."""
    generator = np.random.default_rng(seed)
    sensor = make_sensor(OWN, preset=None, owner="the test")
    scan = cast_street(
        draw_street(generator),
        sensor,
        num_columns=num_columns,
        generator=generator,
        disturbance=LidarNoise(lost_share=0.1),
    )
    return scan._replace(remission=np.round(scan.remission * 255).astype(np.float32))


def write_own(folder: Path, count: int, *, num_columns: int = 60) -> list[Scan]:
    """Scans of five columns with labels beside them."""
    scans = [own_scan(seed, num_columns=num_columns) for seed in range(count)]
    for number, scan in enumerate(scans):
        write_bin(folder / f"{number:03d}.bin", scan, scan.ring)
        write_labels(folder / f"{number:03d}.label", scan.ids, scan.thing + 1)
    return scans
