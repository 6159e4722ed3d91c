"""A small set of labels in KITTI's rows, detections of it that are nearly right, and configs that score them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

SIZES = {"Car": (1.5, 1.6, 3.9), "Pedestrian": (1.7, 0.6, 0.8), "Cyclist": (1.7, 0.6, 1.8)}
"""Height, width and length."""
Row = list[float]
"""The 14 numbers of a row, and its score."""
Edit = Callable[[str, Row], tuple[str, Row]]


def draw_streets(num_frames: int = 14, *, seed: int = 0) -> dict[str, list[tuple[str, Row]]]:
    """Frames of three objects of each class, all easy; their ids are 10, 13, 16, ..."""
    random, frames = np.random.default_rng(seed), {}
    for frame in range(num_frames):
        rows = []
        for place, kind in enumerate(3 * list(SIZES)):
            x, z, turn = 4.0 * place - 16 + random.uniform(-0.5, 0.5), random.uniform(8, 30), random.uniform(-3.1, 3.1)
            left, top = 100.0 * place + random.uniform(0, 20), random.uniform(100, 150)
            image = [left, top, left + random.uniform(30, 80), top + random.uniform(50, 90)]
            sizes = [side * random.uniform(0.95, 1.05) for side in SIZES[kind]]
            rows.append((kind, [0, 0, turn - math.atan2(x, z), *image, *sizes, x, 1.7, z, turn]))
        frames[f"{10 + 3 * frame:06d}"] = rows
    return frames


def detect(frames: dict[str, list[tuple[str, Row]]], *, seed: int = 1) -> dict[str, list[tuple[str, Row]]]:
    """Detections of all labels, some centimetres and pixels beside them."""
    random = np.random.default_rng(seed)
    spread = np.array([0, 0, 0.02, 1, 1, 1, 1, 0.01, 0.005, 0.02, 0.01, 0.02, 0.01, 0.02])
    return {
        name: [
            (kind, [-1, -1, *(np.array(row) + spread * random.normal(size=14))[2:].tolist(), random.uniform(0.3, 1)])
            for kind, row in rows
        ]
        for name, rows in frames.items()
    }


def write_rows(folder: Path, frames: dict[str, list[tuple[str, Row]]], edit: Edit | None = None) -> Path:
    """Write a text file for each frame, rows changed by `edit`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in frames.items():
        edited = [edit(kind, [*row]) if edit else (kind, row) for kind, row in rows]
        (folder / f"{name}.txt").write_text("".join(map(_line, edited)))
    return folder


def _line(row: tuple[str, Iterable[float]]) -> str:
    return f"{row[0]} {' '.join(f'{value:.6f}' for value in row[1])}\n"


def write_config(work: Path, labels: Path, *, metrics: str = "[{name: kitti_ap}, {name: boxes3d_ap}]") -> Path:
    """Write a config that scores the labels of a folder."""
    config = work / "score.yaml"
    config.write_text(f"data: {{name: labels3d, labels: '{labels}'}}\nmetrics: {metrics}\n")
    return config
