"""The rows of published layouts as tests ask for them: tables of names, models, and names of parts of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.config import RunConfig
from sightline.published.rows import PublishedLayout, expand_names, list_layouts
from sightline.workbench.weights.recipe import make_config

MODELS: Mapping[str, PublishedLayout] = {layout.name: layout for layout in list_layouts()}
LAYOUTS: Mapping[str, Mapping[str, str]] = {name: layout.names for name, layout in MODELS.items()}
DETECTORS = {name: layout for name, layout in MODELS.items() if layout.protocol.task == "detect"}


def make_config_of(name: str, layout: PublishedLayout, *values: Any) -> RunConfig:
    assert name == layout.name
    return make_config(layout, *values)


def residual_network(theirs: str, ours: str, depths: Sequence[int], num_convolutions: int) -> dict[str, str]:
    """Names of a headless torchvision ResNet; `theirs` and `ours` are prefixes of each name."""
    part = {((2, 2, 2, 2), 2): "resnet18", ((3, 4, 6, 3), 2): "resnet34", ((3, 4, 6, 3), 3): "resnet50"}
    name = part[tuple(depths), num_convolutions]
    return dict(expand_names(f"{theirs}<{name}>", f"{ours}<{name}>"))


def darknet_names(theirs: str, ours: str) -> dict[str, str]:
    """Names of Darknet-53 in NuayHL's code; `theirs` and `ours` are prefixes of each name."""
    return dict(expand_names(f"{theirs}<darknet53>", f"{ours}<darknet53>"))


def yolov3_names(blocks: Sequence[str], towers: Sequence[str], routes: Sequence[str]) -> dict[str, str]:
    """Names of neck and head in NuayHL's code, the finest level first."""
    units: dict[str, str] = {}
    for level in range(len(blocks)):
        units |= {f"{blocks[level]}.{index}": f"neck.blocks.{level}.{index}" for index in range(5)}
        units |= {f"{towers[level]}.0": f"head.towers.{level}", f"{towers[level]}.1": f"head.outputs.{level}"}
    units |= {name: f"neck.routes.{level}" for level, name in enumerate(routes)}
    parts = (("0", "conv"), ("1", "norm"))
    return {f"{theirs}.{name}": f"{ours}.{part}" for theirs, ours in units.items() for name, part in parts}
