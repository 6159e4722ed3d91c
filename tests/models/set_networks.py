"""Detectors of transformers so small that a step takes milliseconds."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.layers.norms import make_group_norm

__all__ = ["SETTINGS", "SMALL_DFINE", "make_set_network", "make_small_words", "normalise_by_image"]

_SIZES = {
    "encoder_in_channels": [16, 16, 32],
    **{name: 16 for name in ("encoder_hidden_dim", "encoder_ffn_dim", "d_model", "decoder_ffn_dim")},
    **{name: 2 for name in ("encoder_attention_heads", "decoder_attention_heads", "decoder_layers")},
    "decoder_in_channels": [16, 16, 16],
    "num_queries": 20,
    "num_denoising": 10,
}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "out_features": ["stage2", "stage3", "stage4"], "depths": [1] * 4}
_HGNET = {
    "model_type": "hgnet_v2",
    "embedding_size": 8,
    "stem_channels": [3, 8, 8],
    **_STAGES,
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 8, 8],
    "stage_out_channels": [8, 16, 16, 32],
    "stage_num_blocks": [1] * 4,
    "stage_numb_of_layers": [1] * 4,
    "stage_kernel_size": [3] * 4,
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False] * 4,
}
_RESNET = {"model_type": "rt_detr_resnet", "embedding_size": 8, "layer_type": "basic", **_STAGES}
SETTINGS: dict[str, dict[str, Any]] = {
    "d_fine": {**_SIZES, "backbone_config": _HGNET, "decoder_n_points": [2, 2, 2], "lqe_hidden_dim": 8},
    "rt_detr_v2": {**_SIZES, "backbone_config": _RESNET, "decoder_n_points": 2},
}
"""By family: values of the library's config."""
_THREE = "losses=[{name: set_class}, {name: set_l1}, {name: set_giou}]"


def make_small_words(family: str) -> tuple[str, ...]:
    """Return overrides of the preset of photos: such a detector from nothing, on a few drawn crowds."""
    block = {"name": "transformers_detector", "network": {"name": family, **SETTINGS[family]}}
    return (
        *("data={name: synthetic_crowds, train_size: 8, validation_size: 4, test_size: 4}", "init=null"),
        *("transforms.train.0.canvas=[64, 96]", "transforms.evaluate.0.height=64", "transforms.evaluate.0.width=96"),
        *(f"model={json.dumps(block)}", *((_THREE,) if family == "rt_detr_v2" else ())),
    )


SMALL_DFINE = make_small_words("d_fine")


def make_set_network(family: str, *class_names: str, **settings: Any) -> Any:
    """Build the small detector of a family for some classes, with these settings replaced."""
    block = {"network": {"name": family, **SETTINGS[family], **settings}}
    facts = {"num_classes": len(class_names), "class_names": class_names}
    return registry.models.build(ComponentConfig("transformers_detector", block), facts=facts)


def normalise_by_image(network: nn.Module) -> nn.Module:
    """Replace batch norms by group norms, which see one image each."""
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, make_group_norm(child.num_features))
    return network
