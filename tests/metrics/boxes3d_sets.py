"""Frames of KITTI's rows for metrics of 3D boxes: drawn at random, or of golden files, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.metrics.exam import Sample
from tests.metrics.kitti_reference import NEIGHBOURS, Frame, Thing

CLASSES = ("Car", "Pedestrian", "Cyclist")
LEVEL = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]])
"""From a scanner to a camera that looks ahead from the same place."""
SIZES = {"Car": (3.9, 1.56, 1.6), "Van": (4.5, 2.1, 1.9), "Pedestrian": (0.8, 1.73, 0.6), "Cyclist": (1.76, 1.73, 0.6)}
OTHERS = {"Person_sitting": (0.8, 1.2, 0.6), "Truck": (9.0, 3.2, 2.6), "DontCare": (-1.0, -1.0, -1.0)}


def make_sample(frame: Frame, to_camera: np.ndarray = LEVEL) -> Sample:
    """The arrays that metrics take of a frame, moved to a scanner."""
    labels = [label for label in frame[0] if class_of(label.kind) is not None]
    seen = frame[1]
    ignored = [label.kind not in CLASSES for label in labels]
    names = [class_of(label.kind) for label in labels]
    classes = [CLASSES.index(found.kind) if found.kind in CLASSES else -1 for found in seen]
    truth = np.column_stack([to_scanner(labels, to_camera), np.array(names, float), np.array(ignored, float)])
    scores = [found.score for found in seen]
    detections = np.column_stack([to_scanner(seen, to_camera), np.array(scores, float), np.array(classes, float)])
    of_labels = [(*label.image, label.alpha, label.truncated, label.occluded) for label in labels]
    return {
        "detections3d": detections.reshape(-1, 9),
        "detections3d_image": np.array([(*found.image, found.alpha) for found in seen], float).reshape(-1, 5),
        "truth3d": truth.reshape(-1, 9),
        "kitti_truth": np.column_stack([truth.reshape(-1, 9), np.array(of_labels, float).reshape(-1, 7)]),
        "to_camera": to_camera,
    }


def class_of(kind: str) -> int | None:
    """The class of a label: its own, that of which it is a neighbour, -1 for DontCare, None for what is not seen."""
    if kind in CLASSES:
        return CLASSES.index(kind)
    return next(
        (CLASSES.index(name) for name, other in NEIGHBOURS.items() if other == kind), -1 if kind == "DontCare" else None
    )


def to_scanner(things: Sequence[Thing], to_camera: np.ndarray) -> np.ndarray:
    bottoms = np.array([(one.x, one.y, one.z) for one in things], float).reshape(-1, 3) - to_camera[:, 3]
    places = bottoms @ np.linalg.inv(to_camera[:, :3]).T
    sizes = np.array([(one.length, one.width, one.height) for one in things], float).reshape(-1, 3)
    yaw = np.array([-one.turn - math.pi / 2 for one in things], float)
    places[:, 2] += sizes[:, 2] / 2
    return np.column_stack([places, sizes, yaw])


def make_batch(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """One batch of all samples."""
    batch: dict[str, Tensor] = {"sample_index": torch.arange(len(samples))}
    batch["to_camera"] = torch.from_numpy(np.stack([one["to_camera"] for one in samples]))
    for name in ("detections3d", "kitti_truth"):
        counts = torch.tensor([0, *(len(one[name]) for one in samples)])
        batch[f"{name}_offsets"] = counts.cumsum(0)
    for name in ("detections3d", "detections3d_image", "kitti_truth"):
        batch[name] = torch.from_numpy(np.concatenate([one[name] for one in samples]))
    return batch


# --- random frames ----------------------------------------------------------------------------------------------------


def draw_frames(random: np.random.Generator, num_frames: int, *, has_angles: bool = True) -> list[Frame]:
    """Frames of up to seven objects of all types, of which most are found, some twice or as another class."""
    return [draw_frame(random, has_angles=has_angles) for _ in range(num_frames)]


def draw_frame(random: np.random.Generator, *, has_angles: bool) -> Frame:
    kinds = random.choice(
        ["Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck", "DontCare"],
        size=random.integers(0, 8),
        p=[0.3, 0.2, 0.15, 0.1, 0.05, 0.05, 0.15],
    )
    labels = [draw_label(random, str(kind)) for kind in kinds]
    seen: list[Thing] = []
    for label in labels:
        if label.kind == "DontCare":
            if random.random() < 0.5:
                seen.append(draw_false(random, has_angles)._replace(image=shift(random, label.image, 3.0)))
            continue
        for _ in range(random.choice([0, 1, 2], p=[0.15, 0.65, 0.2])):
            seen.append(draw_found(random, label, has_angles))
    seen += [draw_false(random, has_angles) for _ in range(random.integers(0, 3))]
    return labels, [seen[place] for place in random.permutation(len(seen))]


def draw_label(random: np.random.Generator, kind: str) -> Thing:
    left, top = float(random.integers(0, 1000)), float(random.integers(50, 250))
    wide, tall = float(random.integers(20, 200)), float(random.choice([20, 25, 26, 33, 40, 41, 60, 90]))
    image = (left, top, left + wide, top + tall)
    if kind == "DontCare":
        return Thing(kind, -1, -1, -10, image, -1, -1, -1, -1000, -1000, -1000, -10)
    length, height, width = (float(side * random.uniform(0.9, 1.1)) for side in {**SIZES, **OTHERS}[kind])
    x, y, z = float(random.uniform(-15, 15)), float(random.uniform(1, 2)), float(random.uniform(5, 40))
    truncated, occluded = float(random.choice([0, 0, 0.15, 0.2, 0.3, 0.5, 0.8])), float(random.choice([0, 0, 1, 2, 3]))
    turn = float(random.uniform(-math.pi, math.pi))
    return Thing(kind, truncated, occluded, turn - math.atan2(x, z), image, length, height, width, x, y, z, turn)


def draw_found(random: np.random.Generator, label: Thing, has_angles: bool) -> Thing:
    near = float(random.choice([0.02, 0.06, 0.15, 0.5]))
    kind = str(random.choice(["Car", "Pedestrian", "Cyclist", "Truck"])) if random.random() < 0.1 else label.kind
    kind = {"Van": "Car", "Person_sitting": "Pedestrian"}.get(kind, kind)
    moved = {key: getattr(label, key) + float(random.normal(0, near)) for key in ("x", "y", "z", "turn")}
    moved["y"] += float(random.choice([0.0, 0.0, 0.0, 0.3, -0.5, 3.0]))
    sizes = {
        key: getattr(label, key) * float(random.uniform(1 - near / 4, 1 + near / 4))
        for key in ("length", "width", "height")
    }
    alpha = label.alpha + float(random.normal(0, 0.3)) + (math.pi if random.random() < 0.2 else 0)
    image = shift(random, label.image, 10 * near)
    score = float(random.choice([random.random(), 0.1 * random.integers(1, 10)]))
    changes = {**moved, **sizes, "image": image, "score": score, "alpha": alpha if has_angles else -10.0}
    return label._replace(kind=kind, truncated=-1, occluded=-1, **changes)


def draw_false(random: np.random.Generator, has_angles: bool) -> Thing:
    label = draw_label(random, str(random.choice(CLASSES)))
    return label._replace(score=float(random.random()), alpha=label.alpha if has_angles else -10.0)


def shift(random: np.random.Generator, image: tuple[float, float, float, float], px: float) -> tuple[float, ...]:
    return tuple(value + float(random.normal(0, px)) for value in image)
