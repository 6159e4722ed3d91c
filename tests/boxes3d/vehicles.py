"""Frames of vehicles around a sensor, as files with their boxes, and a run that has learnt four of them by heart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tests.command import succeed

SIZES = {"Car": (4.0, 1.8, 1.5), "Truck": (6.0, 2.4, 2.6)}
"""Mean length, width and height of each class in metres, by the order of the names."""
NUM_FRAMES = 4
GROUND_M = -1.7
COLUMNS = "columns=[x, y, z, intensity]"
STEPS = 50
_PLACES = ((5.5, 5.5), (5.5, -5.5), (-5.5, 5.5), (-5.5, -5.5))
BLOCKS = (
    "[{num_layers: 1, width: 32, stride: 2, up_width: 32, up_stride: 1}, "
    "{num_layers: 1, width: 32, stride: 2, up_width: 32, up_stride: 2}]"
)
PARTS = ("data.tested=[copy]", "data.validation_share=0.0", "evaluate.select=test")
"""By which the four frames are for training, and their copies for test."""
BY_HEART = (
    *(
        f"train.epochs={STEPS}",
        f"evaluate.every={STEPS}",
        f"checkpoint.every={STEPS}",
        f"train.batch_size={NUM_FRAMES}",
    ),
    *(*PARTS, "transforms.train=[]"),
    *(f"model.blocks={BLOCKS}", "model.encoder_widths=[32]", "optimizer.lr=0.005"),
    *("log.tensorboard=false", "loader.workers=0", "train.precision=float32"),
)
"""What a run by heart changes of the config that `data prepare` writes."""


def list_vehicles(frame: int) -> tuple[list[str], np.ndarray]:
    """Names and boxes (4, 7) of a frame: cars ahead, trucks behind, of all sizes and headings."""
    random = np.random.default_rng(frame)
    names = [name for name in SIZES for _ in range(2)]
    boxes = []
    for name, place in zip(names, _PLACES, strict=True):
        size = np.array(SIZES[name]) * random.uniform(0.92, 1.08, 3)
        x, y = np.array(place) + random.uniform(-1, 1, 2)
        boxes.append([x, y, GROUND_M + size[2] / 2, *size, random.uniform(-math.pi, math.pi)])
    return names, np.array(boxes)


def fill_vehicle(box: np.ndarray) -> np.ndarray:
    """Points (N, 4) on the faces of a vehicle whose upper half is cut off in front."""
    side = np.linspace(-0.48, 0.48, 8)
    local = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    is_front = (local[:, 2] > 0) & (local[:, 0] > 0)
    local = local[(np.abs(local) > 0.47).any(axis=1) & ~is_front] * box[3:6]
    cosine, sine = math.cos(box[6]), math.sin(box[6])
    turned = np.column_stack([cosine * local[:, 0] - sine * local[:, 1], sine * local[:, 0] + cosine * local[:, 1]])
    return np.column_stack([turned + box[:2], local[:, 2] + box[2], np.full(len(local), 0.5)])


def make_cloud(boxes: np.ndarray) -> np.ndarray:
    """Points (N, 4) of the vehicles, and of level ground 5 cm below them."""
    line = np.arange(-11.0, 11.1, 0.5)
    places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    ground = np.column_stack([places, np.full(len(places), GROUND_M - 0.05), np.full(len(places), 0.1)])
    return np.concatenate([ground, *map(fill_vehicle, boxes)]).astype(np.float32)


def write_vehicles(root: Path) -> None:
    """Write the frames `0` to `3`, and a copy of each, as clouds and rows of text."""
    for folder in ("points", "labels"):
        (root / folder).mkdir(parents=True)
    for frame in range(NUM_FRAMES):
        names, boxes = list_vehicles(frame)
        rows = [
            f"{' '.join(f'{number:.6f}' for number in box)} {name}\n" for name, box in zip(names, boxes, strict=True)
        ]
        for stem in (f"{frame}", f"copy{frame}"):
            np.save(root / f"points/{stem}.npy", make_cloud(boxes))
            (root / f"labels/{stem}.txt").write_text("".join(rows))


def prepare_vehicles(folder: Path) -> Path:
    """Prepare the frames, which lie in `own`, in `set`; return the config that this writes."""
    write_vehicles(folder / "own")
    words = ("--from", folder / "own", "--to", folder / "set", COLUMNS, "--config", folder / "own.yaml")
    succeed("data", "prepare", "boxes3d_folder", *words)
    return folder / "own.yaml"


def train_by_heart(folder: Path) -> Path:
    """Train by the config that the frames are prepared with; return the run."""
    words = (*BY_HEART, "--no-check", "--device", "cpu", "--out", folder / "run")
    succeed("train", prepare_vehicles(folder), *words)
    return folder / "run"
