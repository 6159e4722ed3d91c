"""Names of the published weights of detectors in terms of ours, and further differences of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sightline.models.published.published_images import residual_network
from sightline.models.published.published_yolo import YOLO_LAYOUTS
from sightline.models.resnet import RESNET_DEPTHS

__all__ = ["DETECTION_LAYOUTS", "DETECTION_OPTIONAL", "complete_state_dict"]

_RETINA, _FCOS = "torchvision_retinanet_resnet50_fpn", "torchvision_fcos_resnet50_fpn"
_NUM_CONVS = 4
_NUM_SCALES, _NUM_RATIOS = 3, 3
_OUR_EPS = 1e-5
_EPS = {_RETINA: 0.0, _FCOS: 1e-5, "yolox": 1e-3}
"""Epsilon of the batch norms of a file, if it differs from ours."""
_BLUE_FIRST = ("crowddet_retinanet", "crowddet_retinanet_emd", "yolox")


def _pyramid() -> dict[str, str]:
    """Return the names of the pyramid; convolutions have two: of the published files, and of torchvision since 0.13."""
    names = residual_network("backbone.body.", "backbone.", (3, 4, 6, 3), 3)
    for theirs, ours in (("inner_blocks", "laterals"), ("layer_blocks", "outputs")):
        names |= {f"backbone.fpn.{theirs}.{level}": f"neck.{ours}.{level}.conv" for level in range(3)}
        names |= {f"backbone.fpn.{theirs}.{level}.0": f"neck.{ours}.{level}.conv" for level in range(3)}
    return names | {f"backbone.fpn.extra_blocks.p{6 + level}": f"neck.coarser.{level}.conv" for level in range(2)}


_BRANCHES = (("classification_head", "class_tower"), ("regression_head", "box_tower"))
_OUTPUTS = {
    "head.classification_head.cls_logits": "head.classes.conv",
    "head.regression_head.bbox_reg": "head.boxes.conv",
}


def _names(layers: Callable[[int], Mapping[str, str]]) -> dict[str, str]:
    """Return all names of a detector; `layers` are the names of a tower's block, and their counterparts in ours."""
    towers = {
        f"head.{theirs}.conv.{name}": f"head.{ours}.{index}.{part}"
        for theirs, ours in _BRANCHES
        for index in range(_NUM_CONVS)
        for name, part in layers(index).items()
    }
    return _pyramid() | _OUTPUTS | towers


def _crowddet() -> dict[str, str]:
    """Return the names of CrowdDet, whose backbone is stored under two names."""
    names = residual_network("resnet50.", "backbone.", (3, 4, 6, 3), 3)
    names |= residual_network("FPN.bottom_up.", "backbone.", (3, 4, 6, 3), 3)
    for index in range(3):
        names[f"FPN.lateral_convs.{2 - index}"] = f"neck.laterals.{index}.conv"
        names[f"FPN.output_convs.{2 - index}"] = f"neck.outputs.{index}.conv"
    names |= {"FPN.p6": "neck.coarser.0.conv", "FPN.p7": "neck.coarser.1.conv"}
    for theirs, ours in (("cls", "class"), ("bbox", "box")):
        for index in range(_NUM_CONVS):
            names[f"R_Head.{theirs}_subnet.{2 * index}"] = f"head.{ours}_tower.{index}.conv"
    return names | {"R_Head.cls_score": "head.classes.conv", "R_Head.bbox_pred": "head.boxes.conv"}


def _odtask(depths: Sequence[int], num_convolutions: int) -> dict[str, str]:
    names = residual_network("backbone.", "backbone.", depths, num_convolutions)
    for index in range(3):
        names[f"fpn.P{index + 3}_1"] = f"neck.laterals.{index}.conv"
        names[f"fpn.P{index + 3}_2"] = f"neck.outputs.{index}.conv"
    names |= {"fpn.P6": "neck.coarser.0.conv", "fpn.P7_2": "neck.coarser.1.conv"}
    for theirs, ours, output in (("classification", "class", "classes"), ("regression", "box", "boxes")):
        names |= {f"{theirs}.conv{index + 1}": f"head.{ours}_tower.{index}.conv" for index in range(_NUM_CONVS)}
        names[f"{theirs}.output"] = f"head.{output}.conv"
    return names | {f"core.{theirs}": ours for theirs, ours in names.items()}


_SHARED_TOWERS: Mapping[str, Mapping[str, str]] = {
    "crowddet_retinanet": _crowddet(),
    "crowddet_retinanet_emd": _crowddet(),
    **{
        f"odtask_retina_{name}": _odtask(RESNET_DEPTHS[name], count)
        for name, count in (("resnet18", 2), ("resnet34", 2), ("resnet50", 3), ("resnet101", 3))
    },
    _FCOS: _names(lambda place: {f"{3 * place}": "conv", f"{3 * place + 1}": "norm"})
    | {"head.regression_head.bbox_ctrness": "head.centreness.conv"},
    _RETINA: _names(lambda place: {f"{2 * place}": "conv", f"{place}.0": "conv"}),  # as published, and since 0.13
}
DETECTION_LAYOUTS: Mapping[str, Mapping[str, str]] = {**_SHARED_TOWERS, **YOLO_LAYOUTS}
"""Per published layout: their module -> our module, as `published.LAYOUTS`."""

DETECTION_OPTIONAL: Mapping[str, str] = {
    **dict.fromkeys(_SHARED_TOWERS, "head.classes"),
    **dict.fromkeys(("darknet_darknet53", "odtask_darknet53"), "head"),
}
"""Per published layout, our module that is left out for a set of other classes."""


def complete_state_dict(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Adapt weights under our names to our model; those of other layouts are unchanged.

    Frozen batch norms of a file have no count, and some add another epsilon to their variances than ours: they get a
    count of 0, and variances reduced by the difference. torchvision's anchors of a cell are reordered to our priors,
    ratio by ratio within a scale; the files count scales within a ratio. First convolutions of BGR images become those
    of RGB images. Darknet concatenates the upsampled map before the finer map, ours after it.
    """
    completed = dict(weights)
    if layout not in DETECTION_LAYOUTS:
        return completed
    for name, variance in weights.items():
        norm, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            completed.setdefault(f"{norm}.num_batches_tracked", torch.tensor(0))
            completed[name] = variance - (_OUR_EPS - _EPS.get(layout, _OUR_EPS))
    if layout == _RETINA:
        for name in ("classes.conv.weight", "classes.conv.bias", "boxes.conv.weight", "boxes.conv.bias"):
            if f"head.{name}" in completed:
                theirs = completed[f"head.{name}"].unflatten(0, (_NUM_RATIOS, _NUM_SCALES, -1))
                completed[f"head.{name}"] = theirs.transpose(0, 1).flatten(0, 2)
    first = "backbone.stem.conv.weight"
    if layout in _BLUE_FIRST and first in completed:
        completed[first] = completed[first].unflatten(1, (-1, 3)).flip(2).flatten(1, 2)
    for level in range(2 if layout == "darknet_yolov3" else 0):
        name, route = f"neck.blocks.{level}.0.conv.weight", completed[f"neck.routes.{level}.conv.weight"]
        completed[name] = completed[name].roll(-len(route), dims=1)
    return completed
