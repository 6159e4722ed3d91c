"""Names of the published weights of image networks in terms of ours, one table per layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sightline.models.resnet import RESNET_DEPTHS

__all__ = ["IMAGE_LAYOUTS", "IMAGE_OPTIONAL", "residual_network"]

_VIT_DEPTH = 12


def residual_network(theirs: str, ours: str, depths: Sequence[int], num_convolutions: int) -> dict[str, str]:
    """Return the module names of a headless torchvision ResNet; `theirs` and `ours` are prefixes of each name."""
    names = {f"{theirs}conv1": f"{ours}stem.conv", f"{theirs}bn1": f"{ours}stem.norm"}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            their_block, our_block = f"{theirs}layer{stage + 1}.{block}", f"{ours}stages.{stage}.{block}"
            for index in range(num_convolutions):
                names[f"{their_block}.conv{index + 1}"] = f"{our_block}.layers.{index}.conv"
                names[f"{their_block}.bn{index + 1}"] = f"{our_block}.layers.{index}.norm"
            if block == 0 and (stage > 0 or num_convolutions == 3):
                names[f"{their_block}.downsample.0"] = f"{our_block}.shortcut.conv"
                names[f"{their_block}.downsample.1"] = f"{our_block}.shortcut.norm"
    return names


def _vit_block(number: int) -> dict[str, str]:
    theirs, ours = f"blocks.{number}", f"images.blocks.{number}"
    return {
        f"{theirs}.norm1": f"{ours}.attend_norm",
        f"{theirs}.attn.qkv": f"{ours}.attend.qkv",
        f"{theirs}.attn.proj": f"{ours}.attend.project",
        f"{theirs}.norm2": f"{ours}.change_norm",
        f"{theirs}.mlp.fc1": f"{ours}.change.0",
        f"{theirs}.mlp.fc2": f"{ours}.change.2",
    }


_TIMM_VIT = {
    "cls_token": "images.class_token",
    "pos_embed": "images.positions",
    "patch_embed.proj": "images.patches",
    **{theirs: ours for number in range(_VIT_DEPTH) for theirs, ours in _vit_block(number).items()},
    "norm": "images.norm",
    "head": "head",
}

IMAGE_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "timm_vit_base": _TIMM_VIT,
    "timm_vit_small": _TIMM_VIT,
    "timm_vit_tiny": _TIMM_VIT,
    **{
        f"torchvision_{name}": residual_network("", "images.", RESNET_DEPTHS[name], count) | {"fc": "head"}
        for name, count in (("resnet18", 2), ("resnet34", 2), ("resnet50", 3), ("resnet101", 3))
    },
}
"""Per published layout: their module, or a parameter outside any, -> ours, as `published.LAYOUTS`."""

IMAGE_OPTIONAL: Mapping[str, str] = dict.fromkeys(IMAGE_LAYOUTS, "head")
"""Our module that may be missing from a file as a whole: encoders are saved without a head too."""
