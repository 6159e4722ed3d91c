"""Frames of one's own as a user has them: 16-bit images, joints.csv and camera.json."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.contract import registry
from sightline.contract.types import ComponentConfig, SampleKey

JOINTS = ("palm", "thumb_tip", "index_tip", "little_tip")
CAMERA = {"fx": 241.42, "fy": -241.42, "u0": 160.0, "v0": 120.0}


def write_own_frames(root: Path, count: int, *, folders: int = 1) -> np.ndarray:
    """Write procedural hands with four joints; return the joints (count, 4, 3) in mm."""
    block = ComponentConfig("synthetic_hands", {"train_size": count})
    hands = registry.data.build(block, facts={"split": "train"})
    names = hands.info.facts["joint_names"]
    rows = [names.index({"palm": "wrist"}.get(name, name)) for name in JOINTS]
    batch = hands.get_batch([SampleKey(index, 0, 0) for index in range(count)])
    joints = batch["joints"][:, rows].numpy().astype(np.float64).round(3)
    root.mkdir(parents=True, exist_ok=True)
    frames = []
    for index, depth in enumerate(batch["depth"].numpy()):
        name = f"take_{index % folders}/{index:03d}.png" if folders > 1 else f"{index:03d}.png"
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(depth.round().astype(np.uint16)).save(root / name)
        frames.append(name)
    with (root / "joints.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", *(f"{joint}_{axis}" for joint in JOINTS for axis in "xyz")])
        writer.writerows([name, *row] for name, row in zip(frames, joints.reshape(count, -1).tolist(), strict=True))
    (root / "camera.json").write_text(json.dumps(CAMERA))
    return joints


def write_disc_frames(
    root: Path,
    *,
    count: int = 12,
    far: float = 0,
    scale: float = 1.0,
    suffix: str = ".png",
    dtype: type = np.uint16,
    folder: str = "",
    joint_z: tuple[float, ...] = (510.0, 510.0, 510.0),
    joint_scale: float = 1.0,
) -> None:
    """Write a disc of radius 20 pixels at 500 to 530 mm before `far`, times `scale`, with three joints on it."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:120, :160]
    disc = np.where(np.hypot(rows - 60, columns - 80) <= 20, 500.0 + (columns - 70).clip(0, 30), far)
    depth = disc * scale
    lines = ["frame," + ",".join(f"{name}_{axis}" for name in ("palm", "tip", "wrist") for axis in "xyz")]
    for index in range(count):
        name = f"{folder}/{index}{suffix}" if folder else f"{index}{suffix}"
        if suffix == ".npy":
            np.save(root / name, depth)
        else:
            Image.fromarray(depth.astype(dtype)).save(root / name)
        joints = [(x * z / 200, 0.0, z) for x, z in zip((0, 5, -5), joint_z, strict=True)]
        joints = [tuple(joint_scale * number for number in joint) for joint in joints]
        lines.append(f"{name}," + ",".join(f"{number:g}" for joint in joints for number in joint))
    (root / "joints.csv").write_text("\n".join(lines) + "\n")
    (root / "camera.json").write_text(json.dumps({"fx": 200.0, "fy": 200.0, "u0": 80.0, "v0": 60.0}))
