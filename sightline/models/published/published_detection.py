"""Names of the published weights of detectors in our words, and the rest of what their files mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sightline.models.published.published_images import residual_network

__all__ = ["DETECTION_LAYOUTS", "DETECTION_OPTIONAL", "completed"]

_RETINA, _FCOS = "torchvision_retinanet_resnet50_fpn", "torchvision_fcos_resnet50_fpn"
_NUM_CONVS = 4
_NUM_SCALES, _NUM_RATIOS = 3, 3
_OUR_EPS = 1e-5
_EPS = {_RETINA: 0.0, _FCOS: 1e-5}
"""What is added to the variance by the frozen batch norms of a file."""


def _pyramid() -> dict[str, str]:
    """Convolutions of the pyramid have two names: of the published files, and of torchvision since 0.13."""
    names = residual_network("backbone.body.", "backbone.", (3, 4, 6, 3), 3)
    for theirs, ours in (("inner_blocks", "laterals"), ("layer_blocks", "outputs")):
        names |= {f"backbone.fpn.{theirs}.{place}": f"neck.{ours}.{place}.conv" for place in range(3)}
        names |= {f"backbone.fpn.{theirs}.{place}.0": f"neck.{ours}.{place}.conv" for place in range(3)}
    return names | {f"backbone.fpn.extra_blocks.p{6 + place}": f"neck.coarser.{place}.conv" for place in range(2)}


_BRANCHES = (("classification_head", "class_tower"), ("regression_head", "box_tower"))
_OUTPUTS = {
    "head.classification_head.cls_logits": "head.classes.conv",
    "head.regression_head.bbox_reg": "head.boxes.conv",
}


def _names(layers: Callable[[int], Mapping[str, str]]) -> dict[str, str]:
    """All of a detector; `layers` are the names of a block of the towers, and what each is in ours."""
    towers = {
        f"head.{theirs}.conv.{name}": f"head.{ours}.{place}.{part}"
        for theirs, ours in _BRANCHES
        for place in range(_NUM_CONVS)
        for name, part in layers(place).items()
    }
    return _pyramid() | _OUTPUTS | towers


DETECTION_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    _FCOS: _names(lambda place: {f"{3 * place}": "conv", f"{3 * place + 1}": "norm"})
    | {"head.regression_head.bbox_ctrness": "head.centreness.conv"},
    _RETINA: _names(lambda place: {f"{2 * place}": "conv", f"{place}.0": "conv"}),  # as published, and since 0.13
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`.

Both were trained on anchors or points at multiples of the stride, the corners of cells, and classes are COCO's ids.
"""

DETECTION_OPTIONAL: Mapping[str, str] = dict.fromkeys(DETECTION_LAYOUTS, "head.classes")
"""Our module that is left out for a set of other classes."""


def completed(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Weights under our names as a model of ours holds them; of layouts of other networks, the same.

    Frozen batch norms of a file have no count, and RetinaNet's add nothing to their variances: they get a count of 0
    and variances that are less by what ours add. Its anchors of a cell stand in the order of our priors, ratio by ratio
    within a scale; the files count scales within a ratio.
    """
    found = dict(weights)
    if layout not in DETECTION_LAYOUTS:
        return found
    for name, variance in weights.items():
        norm, _, leaf = name.rpartition(".")
        if leaf == "running_var" and f"{norm}.num_batches_tracked" not in weights:
            found[f"{norm}.num_batches_tracked"] = torch.tensor(0)
            found[name] = variance - (_OUR_EPS - _EPS[layout])
    if layout == _RETINA:
        for name in ("classes.conv.weight", "classes.conv.bias", "boxes.conv.weight", "boxes.conv.bias"):
            if f"head.{name}" in found:
                theirs = found[f"head.{name}"].unflatten(0, (_NUM_RATIOS, _NUM_SCALES, -1))
                found[f"head.{name}"] = theirs.transpose(0, 1).flatten(0, 2)
    return found
