"""One training step of every shipped recipe, small, on procedural data of its kind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sightline.config import RunConfig, read_config
from sightline.config.plain_values import to_plain
from sightline.contract.types import Batch
from sightline.engine.build import build
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.queued_step import QueuedStep
from sightline.engine.step import StepTimer
from sightline.engine.train import train_step
from tests.processes import ROOT

_WITHOUT_A_SMALL_FORM = {"detect/photos_dfine"}
"""The network is a library's, with as many queries as an image of 640 pixels has places for."""
RECIPES = sorted(
    {f"{path.parent.name}/{path.stem}" for path in (ROOT / "configs").glob("*/*.yaml") if path.stem[0] != "_"}
    - _WITHOUT_A_SMALL_FORM
)
BATCH_SIZE = 3

_SIZES = {"train_size": 6, "test_size": 3}
_SHAPES = {"name": "synthetic_shapes", "num_points": 64, **_SIZES}
_CLOUDS = {"data": _SHAPES, "transforms": {"train": [{"name": "scale"}], "evaluate": []}}
_PHOTOS = [{"name": "fit_image", "height": 64, "width": 96}, {"name": "normalize_image"}]
_SCANS = [{"name": "project", "height": 64, "width": 64, "rows": "ring"}]
_ROOMS = [{"name": "crop_points", "max_points": 256}, {"name": "place_on_floor", "plan": "centre", "up": "keep"}]
_PAIRS = [{"name": "two_views", "transforms": [{"name": "scale"}]}]
_IMAGES = [{"name": "resize_image", "size_px": 48}, {"name": "normalize_image"}]
_STREET_M = [-10.24, -10.24, -3, 10.24, 10.24, 1]
_ANCHORS = {"bottom": -1.73, "positive": 0.5, "negative": 0.35}
_CUBE = [{"name": "place_cube", "size": 32}, {"name": "voxelize"}, {"name": "draw_heatmaps"}]


def _both(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"train": transforms, "evaluate": transforms}


_STAND_INS: dict[str, dict[str, Any]] = {
    "classify": _CLOUDS,
    "parts": _CLOUDS | {"data": _SHAPES | {"target": "parts"}},
    "detect": {
        "data": {"name": "synthetic_crowds", **_SIZES, "validation_size": 3},
        "transforms": _both(_PHOTOS),
    },
    "scans": {
        "data": {"name": "synthetic_lidar", "count_classes": True, "num_columns": 64, **_SIZES},
        "transforms": _both(_SCANS),
    },
    "voxels of scans": {
        "data": {"name": "synthetic_lidar", "count_classes": True, "num_columns": 64, **_SIZES},
        "transforms": _both([{"name": "rotate"}]),
    },
    "points and pixels": {
        "data": {"name": "synthetic_lidar", "count_classes": True, "num_columns": 64, **_SIZES},
        "transforms": _both([{"name": "assign_pixels", "width": 64, "rows": "ring"}]),
    },
    "rooms": {"data": {"name": "synthetic_rooms", "points_per_m2": 10, **_SIZES}, "transforms": _both(_ROOMS)},
    "intrapoint": {"data": _SHAPES, "transforms": _both(_PAIRS)},
    "crosspoint": {
        "data": _SHAPES | {"views": {"count": 2, "size_px": 48}},
        "transforms": _both([*_PAIRS, *_IMAGES]),
    },
    "detect3d": {
        "data": {"name": "synthetic_streets3d", "num_columns": 128, **_SIZES, "validation_size": 3},
        "transforms": _both([{"name": "limit_extent", "extent_m": _STREET_M}]),
        "metrics": [{"name": "boxes3d_ap"}],
        "evaluate": {"metric": "ap_overlap"},
        "task": {
            "anchors": {
                "Car": {"size": [4.4, 1.95, 1.62], **_ANCHORS},
                "Pedestrian": {"size": [0.94, 0.74, 1.82], **_ANCHORS},
                "Cyclist": {"size": [1.89, 0.74, 1.78], **_ANCHORS},
            }
        },
    },
    "pose": {"data": {"name": "synthetic_hands", **_SIZES}, "transforms": _both(_CUBE)},
    "centre": {"data": {"name": "synthetic_hands", **_SIZES}},
}
"""Data of each kind that need no files, instead of those that a recipe names."""
_POINT_TRANSFORMER = {"widths": [16, 32], "strides": [1, 4], "num_blocks": [1, 1], "num_neighbours": [8, 8]}
_POINT_BERT = {"width": 48, "num_groups": 16, "group_size": 8}
_BALLS = {"num_centres": [32, 16], "radii": [1.0, 2.0], "num_neighbours": [8, 8]}
_VOXEL_UNET = {
    "stem_width": 8,
    "encoder_widths": [8, 16],
    "encoder_blocks": [1, 1],
    "decoder_widths": [16, 8],
    "decoder_blocks": [1, 1],
}
_SMALLER: dict[str, dict[str, Any]] = {
    "dgcnn": {"num_neighbours": 8, "neighbours_at": None},
    "pct": {"num_centres": [32, 16], "num_neighbours": 8, "neighbours_at": None},
    "point_bert": _POINT_BERT | {"depth": 2, "num_heads": 4},
    "point_bert_parts": _POINT_BERT | {"num_centres": [32, 16]},
    "point_transformer": _POINT_TRANSFORMER,
    "point_transformer_dense": {"num_blocks": [1, 1], "num_neighbours": 8, "width": 32},
    "pointpillars": {"extent_m": _STREET_M, "pillar_m": [0.64, 0.64], "max_pillars": 400},
    "pointnet2": _BALLS,
    "pointnet2_parts": _BALLS,
    "resnet18": {"width": 8},
    "resnet50": {"width": 8},
    "cspdarknet": {"width": 8},
    "fpn": {"width": 16},
    "retina": {"num_convs": 1},
    "retina_emd": {"num_convs": 1},
    "fcos": {"num_convs": 1},
    "frnet": {
        "encoder_widths": [8, 16, 16],
        "pixel_width": 4,
        "width": 8,
        "blocks": [1, 1, 1, 1],
        "fused_widths": [8],
    },
    "rangenet53": {"width": 8},
    "salsanext": {"width": 8},
    "minkunet": _VOXEL_UNET,
    "spunet": _VOXEL_UNET,
}
"""Arguments that fit each model to so few points, and narrow images' networks."""


def _kind(config: RunConfig, recipe: str) -> str:
    task, _, name = recipe.partition("/")
    if task == "contrast":
        return config.model.name
    if task == "segment":
        if "shape" in name:
            return "parts"
        if any(word in name for word in ("room", "s3dis", "scannet")):
            return "rooms"
        if config.model.name == "frnet":
            return "points and pixels"
        return "voxels of scans" if config.model.name in ("minkunet", "spunet", "ptv3") else "scans"
    return config.task.name


def small_recipe(recipe: str, folder: Path, *overrides: str) -> RunConfig:
    """Read a recipe with its task, model, losses and training, on few small procedural samples."""
    path = ROOT / "configs" / f"{recipe}.yaml"
    shipped = read_config(path)
    block = to_plain(shipped.model)
    if str(block.get("images", {}).get("name")).startswith("vit"):
        block["images"]["size_px"] = 48
    for part in (block, *(block.get(key, {}) for key in ("points", "backbone", "neck", "head"))):
        part.update(_SMALLER.get(part.get("name"), {}))
    stand_in = _STAND_INS[_kind(shipped, recipe)]
    if to_plain(shipped.data).get("normals") == "file":
        stand_in = stand_in | {"data": stand_in["data"] | {"normals": "file"}}
    losses = [to_plain(loss) for loss in shipped.losses]
    for loss in losses:
        if isinstance(loss.get("class_weights"), list):  # the set has other classes
            loss["class_weights"] = "inverse"
    small = folder / f"{path.stem}.yaml"
    small.write_text(yaml.safe_dump({"base": str(path), "init": None, "model": block, "losses": losses, **stand_in}))
    few = (f"train.batch_size={BATCH_SIZE}", "train.steps=2", "loader.workers=0", "evaluate.select=test")
    return read_config(small, (*few, *overrides))


class TrainingStep:
    """A config's training, its first micro-batches, and steps on them."""

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.world = World(device=torch.device(device))
        self.job = build(config, self.world).job
        with contextlib.closing(self.job.stream.iterate(0, 1)) as steps:
            self.micro_batches = next(steps)

    def send(self) -> list[Batch]:
        dtype = self.job.precision.parameter_dtype
        return [to_device(batch, self.world.device, float_dtype=dtype) for batch in self.micro_batches]

    def run(self, sent: list[Batch] | None = None) -> QueuedStep:
        timer = StepTimer(self.job.task, remainder="loss")
        return train_step(self.job, self.job.model, sent or self.send(), self.world, timer)

    def numbers(self) -> dict[str, Tensor]:
        """Gradients, weights and buffers."""
        gradients = {f"gradient of {n}": p.grad for n, p in self.job.model.named_parameters() if p.grad is not None}
        return gradients | dict(self.job.model.state_dict())


class SmallStep(TrainingStep):
    """A recipe's training on small data."""

    def __init__(self, recipe: str, folder: Path, *overrides: str, device: str = "cpu") -> None:
        super().__init__(small_recipe(recipe, folder, *overrides), device)
