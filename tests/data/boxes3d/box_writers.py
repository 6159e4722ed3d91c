"""Small streets with boxes, as clouds and as files of labels: a ground, and the surfaces of upright boxes on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sightline.store.boxes3d.conversions import BoxReading

GROUND_M = -1.7
SIZES = {"Car": (4.0, 1.7, 1.5), "Pedestrian": (0.8, 0.6, 1.75), "Cyclist": (1.8, 0.6, 1.7)}


def make_boxes(seed: int, count: int = 9, *, directions: tuple[float, float] = (-np.pi, np.pi)) -> np.ndarray:
    """Boxes (M, 7) on the ground at 6 to 28 m in sectors of their own, cars, pedestrians and cyclists in turns."""
    random = np.random.default_rng(seed)
    azimuth = np.linspace(*directions, count, endpoint=False) + random.uniform(0.05, 0.25, count)
    reach = random.uniform(6, 28, count)
    sizes = np.array([*SIZES.values()])[np.arange(count) % 3] * random.uniform(0.9, 1.1, (count, 3))
    places = np.stack([reach * np.cos(azimuth), reach * np.sin(azimuth), GROUND_M + sizes[:, 2] / 2], axis=1)
    return np.column_stack([places, sizes, random.uniform(-np.pi, np.pi, count)])


def make_names(count: int = 9) -> list[str]:
    return [[*SIZES][index % 3] for index in range(count)]


def make_cloud(boxes: np.ndarray, seed: int, *, num_ground: int = 4000, per_box: int = 60) -> np.ndarray:
    """Points (N, 4) with a remission from 0 to 1: sides and tops of boxes a little inside, and the ground."""
    random = np.random.default_rng(seed)
    ground = np.column_stack(
        [random.uniform(-32, 32, (num_ground, 2)), GROUND_M - random.uniform(0.0, 0.02, num_ground)]
    )
    clouds = [ground]
    for box in boxes:
        local = random.uniform(-0.5, 0.5, (per_box, 3))
        side = random.integers(0, 3, per_box)
        local[np.arange(per_box), side] = np.where(local[np.arange(per_box), side] < 0, -0.5, 0.5)
        local *= box[3:6] - 0.02
        cosine, sine = np.cos(box[6]), np.sin(box[6])
        along, across = local[:, 0], local[:, 1]
        turned = np.column_stack([cosine * along - sine * across, sine * along + cosine * across, local[:, 2]])
        clouds.append(turned + box[:3])
    points = np.concatenate(clouds)
    return np.column_stack([points, np.linspace(0, 1, len(points))]).astype(np.float32)


def format_txt(boxes: np.ndarray, names: Sequence[str], reading: BoxReading | None = None) -> str:
    """Rows of text by a reading, by default the product's own."""
    rows = boxes if reading is None else reading.from_boxes(boxes)
    return "".join(
        " ".join(f"{number:.6f}" for number in row) + f" {name}\n" for row, name in zip(rows, names, strict=True)
    )


def write_streets(
    root: Path,
    num_frames: int = 4,
    *,
    reading: BoxReading | None = None,
    change: Callable[[int, np.ndarray], np.ndarray] = lambda frame, boxes: boxes,
    make: Callable[[int], np.ndarray] = make_boxes,
) -> list[np.ndarray]:
    """Write clouds and labels of frames `0000`, `0001` on; `change` alters what labels state. Returns true boxes."""
    (root / "points").mkdir(parents=True)
    (root / "labels").mkdir()
    truth = []
    for frame in range(num_frames):
        boxes = make(frame)
        np.save(root / f"points/{frame:04d}.npy", make_cloud(boxes, frame))
        text = format_txt(change(frame, boxes), make_names(len(boxes)), reading)
        (root / f"labels/{frame:04d}.txt").write_text(text)
        truth.append(boxes)
    return truth
