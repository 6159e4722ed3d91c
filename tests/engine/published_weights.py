"""Small random weights in files, under the names of published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import sightline
from tests.published_layouts import LAYOUTS, MODELS


def small_state(layout: str = "wangyueft_pointnet", **facts: int) -> dict[str, Tensor]:
    """Random weights of a small model under the names of a layout without doubled names."""
    theirs = {ours: name for name, ours in LAYOUTS[layout].items()}
    sizes = facts if "num_joints" in facts else {"num_classes": 40, "in_channels": 3, **facts}
    arguments = {"embedding": 8} if layout == "wangyueft_pointnet" else {}
    model = sightline.build_model(MODELS[layout].model, **sizes, **arguments)
    own = model.state_dict()
    return {f"{theirs[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": value for k, value in own.items()}


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save({"epoch": 1, "model_state_dict": dict(state)}, path)
    return path
