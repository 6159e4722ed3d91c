"""What every registered model can be built from and called with: facts, arguments for small clouds, inputs by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sightline.areas.scans.models.range_image_network import RangeImageNetwork
from sightline.contract import registry
from sightline.contract.types import ComponentConfig

__all__ = ["FACTS", "INPUTS", "LARGER", "OURS", "make_inputs", "small_model", "without_dropout"]

FACTS = {
    "num_classes": 5,
    "in_channels": 3,
    "class_names": ("a", "b", "c", "d", "e"),
    "num_categories": 3,
    "num_joints": 3,
    "image_size_px": (16, 8),
}
INPUTS: dict[str, Callable[[int], Tensor]] = {
    "category": lambda batch: torch.arange(batch) % 3,
    "crop": lambda batch: torch.rand(batch, 1, 128, 128, dtype=torch.float64) * 2 - 1,
    "image": lambda batch: torch.randn(batch, 3, 16, 16, dtype=torch.float64),
    "other_points": lambda batch: torch.rand(batch, 32, 3, dtype=torch.float64),
    "pixel": lambda batch: torch.randint(0, 16 * 8, (batch, 32)),
    "points": lambda batch: torch.rand(batch, 32, 3, dtype=torch.float64),
    "volume": lambda batch: (torch.rand(batch, 1, 16, 16, 16) > 0.9).double(),
}
"""How to make a batch of each input that a model may need; a model with a new kind of input adds its line here."""
OURS = [name for name in registry.models.names() if name != "transformers_detector"]
"""Models whose layers are of this project; tests/models/detection/test_transformers_detector.py has the other one."""
LARGER = frozenset({"rangenet53", "v2v"})
"""More of the blocks that `rangenet21` and `v2v_small` are made of; what every model is asked takes them longest."""
_DGCNN = {"name": "dgcnn", "num_neighbours": 8, "embedding": 32}
_VIT = {"name": "vit", "size_px": 16, "width": 24, "depth": 2}
_VOXEL_UNET = {
    "grid_m": 0.8,  # of which a million lengths of a cloud can still be numbered
    "stem_width": 4,
    **{f"{half}coder_widths": (4, 8) for half in ("en", "de")},
    **{f"{half}coder_blocks": (1, 1) for half in ("en", "de")},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "crosspoint": {"points": _DGCNN, "images": _VIT, "embedding": 16},
    "deeplabv3": {"width": 4},
    "detector": {
        "backbone": {"name": "resnet18", "width": 4},
        "neck": {"name": "fpn", "width": 4, "levels": (3, 4, 5)},
        "head": {"name": "fcos"},
    },
    "dgcnn": {"embedding": 64},
    "dgcnn_parts": {"num_neighbours": 20, "embedding": 64},
    "dgcnn_scenes": {"embedding": 64},
    "frnet": {
        "encoder_widths": (4, 8, 8),
        "pixel_width": 4,
        "width": 8,
        "blocks": (1, 1, 1, 1),
        "fused_widths": (8,),
        "auxiliary_heads": True,
    },
    "image_classifier": {"images": _VIT},
    "intrapoint": {"points": _DGCNN, "embedding": 16},
    "minkunet": _VOXEL_UNET,
    "pointpillars": {
        "extent_m": (-0.25, -0.25, -1.0, 1.75, 1.75, 2.0),
        "pillar_m": (0.25, 0.25),
        "max_points": 4,
        "max_pillars": 64,
        "encoder_widths": (8, 8),
        "blocks": tuple(
            {"num_layers": 1, "width": 8, "stride": 2, "up_width": 4, "up_stride": up_stride} for up_stride in (1, 2)
        ),
    },
    "point_transformer": {
        "widths": (16, 32),
        "strides": (1, 4),
        "num_neighbours": (8, 8),
        "num_blocks": (1, 1),
    },
    "point_bert": {"width": 24, "depth": 2, "num_heads": 4, "num_groups": 8, "group_size": 8},
    "point_bert_parts": {"width": 24, "num_groups": 8, "group_size": 8, "num_centres": (16, 12)},
    "pct": {"num_centres": (16, 8), "num_neighbours": 8},
    "point_transformer_dense": {"num_blocks": (1, 2, 1), "num_neighbours": 8, "width": 16},
    "rangenet21": {"width": 4},
    "rangenet53": {"width": 4},
    "salsanext": {"width": 4},
    "spunet": _VOXEL_UNET,
    "pointnet2": {"num_centres": (16, 8)},
    "pointnet2_msg": {"num_centres": (16, 8)},
    "pointnet2_parts": {"num_centres": (16, 8)},
    "pointnet2_scenes": {"num_centres": (16, 12, 8, 4)},
}
"""What brings a model or a point encoder down to clouds of 32 points and images of 16 pixels, where it asks for more,
or is slow; and the encoders of models that are made of them.
"""


def small_model(name: str) -> nn.Module:
    """The registered model for clouds of 32 points, in float64 and evaluation mode."""
    component = ComponentConfig(name, ARGUMENTS.get(name, {}))
    return registry.models.build(component, facts=FACTS).double().eval()


def without_dropout(model: nn.Module) -> nn.Module:
    """The model, whose dropout draws nothing from now on."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def make_inputs(model: nn.Module, batch: int) -> dict[str, Tensor]:
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    missing = [name for name in needed if name not in INPUTS]
    assert not missing, f"{type(model).__name__} needs {missing}: say in INPUTS of {__name__} how they are made"
    made = {name: make(batch) for name, make in INPUTS.items() if name in inspect.signature(model.forward).parameters}
    if isinstance(model, RangeImageNetwork):  # at least two rows and columns are left at the coarsest
        size = (2 * max(multiple, 8) for multiple in model.size_divisors)
        made["image"] = torch.randn(batch, model.in_channels, *size, dtype=torch.float64)
    return made
