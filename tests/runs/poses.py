"""Small runs of poses and refiners for tests, and depth files of the hands that they are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.contract.types import SampleKey
from tests.command import succeed
from tests.runs.small import ROOT

__all__ = ["NUM_HANDS", "hands", "train_pose", "train_refiner", "write_frames"]

NUM_HANDS = 5
_SMALL = ("data.train_size=12", f"data.test_size={NUM_HANDS}", "train.epochs=1", "train.batch_size=6")
_CUBE = "[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]"


def train_pose(out: Path, *overrides: str) -> Path:
    """A small network of volumes after two steps: cubes of 16 voxels a side."""
    sizes = (f"transforms.train={_CUBE}", f"transforms.evaluate={_CUBE}")
    return _trained(out, "synthetic_hands_v2v_small", *sizes, *overrides)


def train_refiner(out: Path, *overrides: str) -> Path:
    """ScaleNet after two steps."""
    return _trained(out, "synthetic_hands_scale_net", *overrides)


def hands() -> dict[str, Tensor]:
    """The frames that these runs are tested on."""
    frames = SyntheticHands(split="test", train_size=12, test_size=NUM_HANDS)
    return frames.get_batch([SampleKey(index, 0, 0) for index in range(NUM_HANDS)])


def write_frames(folder: Path, depths: Tensor) -> list[Path]:
    """A depth file of each image (B, H, W), to the last bit."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.npy" for number in range(len(depths))]
    for path, depth in zip(paths, depths, strict=True):
        np.save(path, depth.numpy())
    return paths


def _trained(out: Path, config: str, *overrides: str) -> Path:
    file = ROOT / "configs" / "pose" / f"{config}.yaml"
    given = ("log.tensorboard=false", "--no-check", "--device", "cpu", "--out", out)
    succeed("train", file, *_SMALL, *overrides, *given)
    torch.use_deterministic_algorithms(True)  # as tests have it
    return out
