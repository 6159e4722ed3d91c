"""The published KITTI anchors, and the numbers of OpenPCDet's own code for parts of PointPillars."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.areas.boxes3d.anchors import Anchors, ClassAnchors, make_anchors
from sightline.areas.boxes3d.grid import PillarGrid

KITTI: Mapping[str, ClassAnchors] = {
    "Car": {"size": (3.9, 1.6, 1.56), "bottom": -1.78, "positive": 0.6, "negative": 0.45},
    "Pedestrian": {"size": (0.8, 0.6, 1.73), "bottom": -0.6, "positive": 0.5, "negative": 0.35},
    "Cyclist": {"size": (1.76, 0.6, 1.73), "bottom": -0.6, "positive": 0.5, "negative": 0.35},
}
EXTENT = (0.0, -5.12, -3.0, 10.24, 5.12, 1.0)
"""Of most cases."""


def read(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of a file, and its arrays."""
    stem = shared / "golden" / "boxes3d" / name
    with np.load(stem.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {key: torch.from_numpy(np.array(archive[key])) for key in archive.files}
    return json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")), arrays


def square_anchors(cells: int, **options: Any) -> Anchors:
    """The KITTI anchors on `cells` x `cells` cells of the small extent."""
    side = (EXTENT[3] - EXTENT[0]) / cells
    return make_anchors(PillarGrid(EXTENT, (side, side), 1, (cells, cells)), list(KITTI.values()), **options)


def draw_state(entries: list[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    """Weights by the rule of the README, under the names that sightline gives them."""
    return {rename(key): torch.from_numpy(np.asarray(_draw(key, kind, shape))) for key, kind, shape in entries}


def _draw(key: str, kind: str, shape: list[int]) -> Any:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if kind == "zero":
        return np.zeros(shape)
    if kind == "running_var":
        return 1 + 0.2 * generator.random(shape)
    values = generator.standard_normal(shape)
    if kind == "running_mean":
        return 0.1 * values
    if kind == "norm_weight":
        return 1 + 0.1 * values
    if kind == "bias" or len(shape) <= 1:
        return 0.05 * values
    return values / np.sqrt(shape[0] * np.prod(shape[2:]) if kind == "convT" else np.prod(shape[1:]))


def rename(key: str) -> str:
    """Translate a name of OpenPCDet's network."""
    first, *rest = key.split(".")
    if first == "vfe":
        _, layer, part, value = rest
        return f"encoder.{part}.{layer}.{value}"
    if first == "backbone_2d":
        kind, level, layer, value = rest
        if kind == "deblocks":
            return f"backbone.ups.{level}.{layer}.{value}"
        number = int(layer) - 1
        return f"backbone.blocks.{level}.{number // 3}.{number % 3}.{value}"
    head = {"conv_cls": "classes", "conv_box": "boxes", "conv_dir_cls": "direction"}
    return f"{head[rest[0]]}.{rest[1]}"
