"""Forward passes of published detectors, written out layer by layer from the weights of ours, in evaluation mode.

Each takes the module whose weights it reads; how that module computes is not read. Sources: the papers' tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["darknet53", "fcos_head", "pyramid", "resnet", "retina_head", "v2v", "yolov3_head", "yolov3_neck"]


def _list_units(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """List the convolutions of a backbone with the norms that follow them, in the order of their calls."""
    layers = [each for each in module.modules() if isinstance(each, nn.Conv2d) or hasattr(each, "running_mean")]
    return zip(layers[::2], layers[1::2], strict=True)  # type: ignore[arg-type]


def _convolve(image: Tensor, conv: nn.Conv2d, norm: Any, *, stride: int = 1) -> Tensor:
    assert image.shape[1] == conv.weight.shape[1], "a layer has other channels than the published network"
    values = F.conv2d(image, conv.weight, conv.bias, stride=stride, padding=conv.weight.shape[2] // 2)
    if norm is None or isinstance(norm, nn.Identity):
        return values
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(values, norm.num_groups, norm.weight, norm.bias)
    shift, scale = norm.running_mean[:, None, None], (norm.running_var + 1e-5).sqrt()[:, None, None]
    return (values - shift) / scale * norm.weight[:, None, None] + norm.bias[:, None, None]


def _leaky(values: Tensor, slope: float = 0.1) -> Tensor:
    return torch.where(values > 0, values, slope * values)


def darknet53(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """Compute C3, C4 and C5 of Darknet-53: stages of 1, 2, 8, 8 and 4 pairs of convolutions with a shortcut."""
    units = _list_units(backbone)
    values, maps = _leaky(_convolve(image, *next(units))), []
    for depth in (1, 2, 8, 8, 4):
        values = _leaky(_convolve(values, *next(units), stride=2))
        for _ in range(depth):
            narrow = _leaky(_convolve(values, *next(units)))
            values = values + _leaky(_convolve(narrow, *next(units)))
        maps.append(values)
    assert next(units, None) is None
    return maps[2:]


def resnet(backbone: nn.Module, image: Tensor, depths: Sequence[int], num_convolutions: int) -> list[Tensor]:
    """Compute C2 to C5 of a ResNet whose blocks of 2 or 3 convolutions take a stride in that of 3 x 3 pixels."""
    units = _list_units(backbone)
    values, maps = F.max_pool2d(_convolve(image, *next(units), stride=2).relu(), 3, 2, 1), []
    for stage, depth in enumerate(depths):
        for number in range(depth):
            stride = 2 if stage and not number else 1
            shortcut, place = values, 1 if num_convolutions == 3 else 0
            for index in range(num_convolutions):
                values = _convolve(values, *next(units), stride=stride if index == place else 1)
                values = values if index == num_convolutions - 1 else values.relu()
            if shortcut.shape != values.shape:
                shortcut = _convolve(shortcut, *next(units), stride=stride)
            assert shortcut.shape == values.shape
            values = (values + shortcut).relu()
        maps.append(values)
    assert next(units, None) is None
    return maps


def pyramid(neck: Any, maps: Sequence[Tensor], *, num_coarser: int = 2, upsample: str = "nearest") -> list[Tensor]:
    """Compute a feature pyramid, with coarser maps of the last one: P6 by a stride of 2, P7 from the ReLU of P6."""
    merged = [
        F.conv2d(each, layer.conv.weight, layer.conv.bias) for each, layer in zip(maps, neck.laterals, strict=True)
    ]
    for level in reversed(range(len(merged) - 1)):
        larger = F.interpolate(merged[level + 1], merged[level].shape[2:], mode=upsample)
        merged[level] = merged[level] + larger
    outputs = [_convolve(each, layer.conv, None) for each, layer in zip(merged, neck.outputs, strict=True)]
    for place, layer in enumerate(neck.coarser):
        outputs.append(_convolve(outputs[-1].relu() if place else outputs[-1], layer.conv, None, stride=2))
    assert len(neck.coarser) == num_coarser
    return outputs


def _per_prior(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Flatten maps (B, A * numbers, H, W) of levels to (B, P, numbers): rows, columns, priors of a cell."""
    return torch.cat([each.permute(0, 2, 3, 1).reshape(len(each), -1, numbers) for each in maps], dim=1)


def _climb(tower: Any, values: Tensor) -> Tensor:
    for block in tower:
        values = _convolve(values, block.conv, getattr(block, "norm", None)).relu()
    return values


def retina_head(head: Any, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute logits and codes of one class: a tower for each, which all levels share."""
    logits = [_convolve(_climb(head.class_tower, each), head.classes.conv, None) for each in maps]
    codes = [_convolve(_climb(head.box_tower, each), head.boxes.conv, None) for each in maps]
    return {"logits": _per_prior(logits, 1), "codes": _per_prior(codes, 4)}


def fcos_head(head: Any, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute logits, distances of at least 0 in pixels, scaled by level, and centre-ness by the tower of boxes."""
    logits = [_convolve(_climb(head.class_tower, each), head.classes.conv, None) for each in maps]
    towers = [_climb(head.box_tower, each) for each in maps]
    codes = [
        (scale * _convolve(tower, head.boxes.conv, None)).relu() * stride
        for tower, scale, stride in zip(towers, head.scales, (8, 16, 32, 64, 128), strict=True)
    ]
    centreness = [_convolve(tower, head.centreness.conv, None) for tower in towers]
    values = {"logits": _per_prior(logits, 1), "codes": _per_prior(codes, 4)}
    return {**values, "centreness": _per_prior(centreness, 1)[..., 0]}


def yolov3_neck(neck: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    """Compute the map of each level by five convolutions, of its own map and the next coarser one, upsampled."""

    def five(level: int, values: Tensor) -> Tensor:
        for block in neck.blocks[level]:
            values = _leaky(_convolve(values, block.conv, block.norm))
        return values

    outputs = [five(2, maps[2])]
    for level in (1, 0):
        narrow = _leaky(_convolve(outputs[0], neck.routes[level].conv, neck.routes[level].norm))
        larger = narrow.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        outputs.insert(0, five(level, torch.cat([maps[level], larger], dim=1)))
    return outputs


def yolov3_head(head: Any, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute codes, objectness and logits of one class: a convolution of 3 x 3 and one of 1 x 1 a level."""
    values = [_leaky(_convolve(each, tower.conv, tower.norm)) for each, tower in zip(maps, head.towers, strict=True)]
    rows = _per_prior([_convolve(each, last.conv, None) for each, last in zip(values, head.outputs, strict=True)], 6)
    return {"codes": rows[..., :4], "objectness": rows[..., 4], "logits": rows[..., 5:]}


def v2v(state: Mapping[str, Tensor], volume: Tensor) -> Tensor:
    """Compute the likelihood of V2V-PoseNet from its weights in the order of figure 4 of Moon et al. 2018.

    `volume` is (B, 1, X, Y, Z). Layers are taken one after another as the figure has them, whatever they are called.
    """
    kernels = iter([name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 5])
    norms = iter([name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")])

    def normalise(values: Tensor) -> Tensor:
        name = next(norms)
        mean, variance, weight, bias = (
            state[f"{name}.{part}"][:, None, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (values - mean) / (variance + 1e-5).sqrt() * weight + bias

    def convolve(values: Tensor) -> Tensor:
        name = next(kernels)
        weight = state[f"{name}.weight"]
        return F.conv3d(values, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2)

    def basic(values: Tensor) -> Tensor:
        return normalise(convolve(values)).clamp(min=0)

    def residual(values: Tensor, *, widens: bool = False) -> Tensor:
        inner = normalise(convolve(basic(values)))
        return (inner + (normalise(convolve(values)) if widens else values)).clamp(min=0)

    def halve(values: Tensor) -> Tensor:
        return F.max_pool3d(values, 2)

    def double(values: Tensor) -> Tensor:
        name = next(kernels)
        return normalise(F.conv_transpose3d(values, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)).clamp(0)

    outer = residual(residual(residual(halve(basic(volume)), widens=True)))
    beside_outer = residual(outer)
    inner = residual(halve(outer), widens=True)
    beside_inner = residual(inner)
    deep = residual(residual(residual(halve(inner), widens=True)))
    raised = residual(double(deep) + beside_inner)
    return convolve(basic(basic(residual(double(raised) + beside_outer))))
