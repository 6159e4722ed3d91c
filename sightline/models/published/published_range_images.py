"""Names of the published weights of range-image networks in terms of ours, one table per layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sightline.models.darknet import DARKNET21, DARKNET53

__all__ = ["RANGE_IMAGE_LAYOUTS", "RANGE_IMAGE_UNUSED"]


def _units(theirs: str, ours: str, layer_names: tuple[str, ...], *, first: int) -> dict[str, str]:
    """Return the names of convolutions counted from `first`, each with the batch norm of one number less."""
    names: dict[str, str] = {}
    for index, name in enumerate(layer_names):
        names[f"{theirs}.conv{first + index}"] = f"{ours}.{name}.conv"
        names[f"{theirs}.bn{max(first - 1, 1) + index}"] = f"{ours}.{name}.norm"
    return names


def _salsanext() -> dict[str, str]:
    fields = ("first", "second", "third", "join")
    names: dict[str, str] = {}
    for index, theirs in enumerate(("downCntx", "downCntx2", "downCntx3")):
        names[f"{theirs}.conv1"] = f"context.{index}.shortcut.conv"
        names |= _units(theirs, f"context.{index}", fields[:2], first=2)
    for index in range(5):
        names[f"resBlock{index + 1}.conv1"] = f"down.{index}.shortcut.conv"
        names |= _units(f"resBlock{index + 1}", f"down.{index}.fields", fields, first=2)
    for index in range(4):
        names |= _units(f"upBlock{index + 1}", f"up.{index}.fields", fields, first=1)
    return names | {"logits": "head.conv"}


def _darknet_block(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.{kind}{index + 1}": f"{ours}.layers.{index}.{name}"
        for index in range(2)
        for kind, name in (("conv", "conv"), ("bn", "norm"))
    }


def _rangenet(depths: Sequence[int]) -> dict[str, str]:
    """Return the names of RangeNet.

    Their decoder counts as their encoder does, so its first stage has the highest number.
    """
    names = {"backbone.conv1": "backbone.stem.conv", "backbone.bn1": "backbone.stem.norm"}
    for stage, depth in enumerate(depths):
        theirs, ours = f"backbone.enc{stage + 1}", f"backbone.stages.{stage}"
        names |= {f"{theirs}.conv": f"{ours}.0.conv", f"{theirs}.bn": f"{ours}.0.norm"}
        for block in range(depth):
            names |= _darknet_block(f"{theirs}.residual_{block}", f"{ours}.{block + 1}")
        theirs, ours = f"decoder.dec{len(depths) - stage}", f"up.{stage}"
        names |= {f"{theirs}.upconv": f"{ours}.upsample.conv", f"{theirs}.bn": f"{ours}.norm"}
        names |= _darknet_block(f"{theirs}.residual", f"{ours}.block")
    return names | {"head.1": "head.conv"}


def _fire(theirs: str, ours: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for kind, name in (("squeeze", "squeeze"), ("expand1x1", "narrow"), ("expand3x3", "wide")):
        names |= {f"{theirs}.{kind}": f"{ours}.{name}.conv", f"{theirs}.{kind}_bn": f"{ours}.{name}.norm"}
    return names


def _gate(theirs: str, ours: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for kind, name in (("squeeze", "squeeze"), ("unsqueeze", "expand")):
        names |= {f"{theirs}.{kind}": f"{ours}.{name}.conv", f"{theirs}.{kind}_bn": f"{ours}.{name}.norm"}
    return names


def _squeezeseg(*, is_second: bool, has_crf: bool) -> dict[str, str]:
    """Return the names of SqueezeSeg.

    The second version has a gate after its stem and each fire module of the first level.
    """
    names = {"backbone.conv1a.0": "stem.0.conv", "head.1": "head.conv"}
    skip_prefix = "backbone.conv1b"
    names |= (
        {f"{skip_prefix}.0": "whole.conv", f"{skip_prefix}.1": "whole.norm"}
        if is_second
        else {skip_prefix: "whole.conv"}
    )
    names |= {"backbone.conv1a.1": "stem.0.norm", **_gate("backbone.conv1a.3", "stem.1")} if is_second else {}
    for level, (theirs, count) in enumerate((("fire23", 2), ("fire45", 2), ("fire6789", 4))):
        gated = is_second and level == 0
        for index in range(1, count * (2 if gated else 1) + 1):
            part = _gate if gated and index % 2 == 0 else _fire
            names |= part(f"backbone.{theirs}.{index}", f"down.{level}.{index}")
    for index in range(4):
        theirs = f"decoder.firedec{10 + index}"
        names |= _fire(theirs, f"up.{index}") | {f"{theirs}.upconv": f"up.{index}.upsample.0.conv"}
    if not is_second:
        names = {theirs: ours for theirs, ours in names.items() if not ours.endswith(".norm")}
    return names | ({"CRF.compat_conv": "crf.compat"} if has_crf else {})


_CRF_CONSTANTS = ("CRF.iter", "CRF.lcn_size", "CRF.xyz_coef", "CRF.xyz_sigma")

RANGE_IMAGE_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "lidar_bonnetal_darknet21": _rangenet(DARKNET21),
    "lidar_bonnetal_darknet53": _rangenet(DARKNET53),
    "lidar_bonnetal_squeezeseg": _squeezeseg(is_second=False, has_crf=False),
    "lidar_bonnetal_squeezeseg_crf": _squeezeseg(is_second=False, has_crf=True),
    "lidar_bonnetal_squeezesegv2": _squeezeseg(is_second=True, has_crf=False),
    "lidar_bonnetal_squeezesegv2_crf": _squeezeseg(is_second=True, has_crf=True),
    "salsanext": _salsanext(),
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`."""

RANGE_IMAGE_UNUSED: Mapping[str, tuple[str, ...]] = {
    name: _CRF_CONSTANTS for name in RANGE_IMAGE_LAYOUTS if name.endswith("_crf")
}
"""Constants of the conditional random field (CRF), which are parameters in their files."""
