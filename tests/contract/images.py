"""Toys of the real detector, small: all seams of detection at once, and images without a box to train on.

Two sets are joined by `concat`; images are moved with their boxes, by draws of a sample and by draws of a step;
backbone, neck and head hand facts on; targets are assigned once a step; the metric gathers rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.box_errors import BoxErrors
from sightline.areas.detect.metrics.crowds import CrowdAp
from sightline.areas.detect.transforms import CutImage, FitImage, ScaleSteps
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.types import ComponentConfig
from sightline.parts.transforms.images import FlipImage, NormalizeImage
from sightline.store.box_fields import BOX_FIELDS
from sightline.store.boxes.records import BoxRecord, make_sample
from sightline.store.loading.concat import Concat
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.contract.toy import NUM_SAMPLES, Made, Toy
from tests.models.set_networks import make_set_network, normalise_by_image

CLASSES = ("light", "dark")


def _image(draw: np.random.Generator, *, share: float = 1.0, is_ignored: bool = False) -> dict[str, Any]:
    """A noisy image, and in a `share` of them up to three rectangles, light or dark; some are ignored, or all."""
    height, width = (int(draw.integers(*limits)) for limits in ((20, 33), (28, 49)))
    pixels = draw.integers(90, 160, (height, width, 3))
    count = int(draw.integers(1, 4)) if draw.random() < share else 0
    corners = np.column_stack([draw.integers(0, limit - 12, count) for limit in (width, height)])
    boxes = np.concatenate([corners, corners + draw.integers(8, 13, (count, 2))], axis=1).astype(np.float64)
    label = draw.integers(0, 2, count)
    for (left, top, right, bottom), kind in zip(boxes.astype(int), label, strict=True):
        pixels[top:bottom, left:right] += 80 - 160 * kind
    flags = draw.random(count) < (1.0 if is_ignored else 0.2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return make_sample(pixels.clip(0, 255).astype(np.uint8), BoxRecord(boxes, boxes.copy(), label, flags, area))


def _joined(**how: Any) -> Concat:
    """Two sets as one, of different seeds."""
    make = partial(_image, **how)
    sets = (Made(make, 20, 7, **BOX_FIELDS), Made(make, NUM_SAMPLES - 20, 8, **BOX_FIELDS))
    return Concat(sets=sets, split="train")


def _detector(head: dict[str, Any]) -> nn.Module:
    """Channels and strides pass from block to block by the registry, as a config's do."""
    blocks = {
        "backbone": {"name": "resnet18", "width": 2, "norm": "frozen_bn"},
        "neck": {"name": "fpn", "width": 4},
        "head": head,
    }
    return registry.models.build(ComponentConfig("detector", blocks), facts={"in_channels": 3, "num_classes": 2})


def _set_detector() -> nn.Module:
    """Without denoising queries, whose noise is drawn for a whole micro-batch."""
    settings = {"num_denoising": 0, "freeze_backbone_batch_norms": False}
    return normalise_by_image(make_set_network("rt_detr_v2", *CLASSES, **settings))


def _detect(
    weights: dict[str, float], task: str = "detect", **arguments: Any
) -> Callable[[nn.Module, frozenset[str]], Any]:
    def make(model: nn.Module, keys: frozenset[str]) -> Any:
        bags = {name: {"bag_size": 5} if name.startswith("free_anchor") else {} for name in weights}
        losses = {name: registry.losses.build(ComponentConfig(name, bags[name]), facts={}) for name in weights}
        facts = {
            "model": model,
            "losses": losses,
            "batch_keys": AvailableKeys("the toy", keys),
            "output_keys": AvailableKeys("the toy's model", model.output_keys),
        }
        block = {"score": 0.0, **({"per_level": 20} if task == "detect" else {}), **arguments}
        return registry.tasks.build(ComponentConfig(task, block), facts=facts)

    return make


_HEAD = {"name": "retina", "num_convs": 1}
_RETINA = {"assigner": {"name": "max_iou"}, "anchors": {"base_strides": 1.0}}
_PAIRS = {"assigner": {"name": "max_iou", "boxes_per_prior": 2}, "anchors": {"base_strides": 1.0}}
_RETINA_LOSSES = {"sigmoid_focal": 1.0, "box_smooth_l1": 0.5}
_FREE_ANCHOR = {**_RETINA, "assigner": {"name": "free_anchor", "bag_size": 5}}
_FREE_LOSSES = {"free_anchor_positive": 0.5, "free_anchor_negative": 10.0}
_FCOS_LOSSES = {"sigmoid_focal": 1.0, "box_overlap": 0.5, "centreness": 0.5}
_OBJECT_LOSSES = {"objectness": 1.0, "class_bce": 0.5, "box_overlap": 2.0}
_STEPS = {
    "flip": FlipImage(),
    "cut": CutImage(low=0.7),
    "fit": FitImage(height=32, width=48),
    "scale": ScaleSteps(multiple=8),
    "normalize": NormalizeImage(),
}


def toy(
    head: dict[str, Any] = _HEAD,
    task: dict[str, Any] = _RETINA,
    losses: dict[str, float] = _RETINA_LOSSES,
    *,
    evaluation: dict[str, Any] | None = None,
    **how: Any,
) -> Toy:
    """The detector of a head on images made in some way, evaluated in some way."""
    return _toy(partial(_detector, head), _detect(losses, **task, **(evaluation or {})), losses, _STEPS, **how)


def _toy(model: Any, task: Any, losses: dict[str, float], steps: dict[str, Any], **how: Any) -> Toy:
    return Toy(
        model,
        task,
        _joined(**how),
        losses,
        tuple(partial(metric, class_names=CLASSES) for metric in (BoxAp, BoxErrors, CrowdAp)),
        tuple(NamedTransform(name, step) for name, step in steps.items()),
        registry.tasks.get_entry("detect").builder.predicts,
    )


IMAGES = {
    "detector": toy(),
    "detector_simota": toy({"name": "fcos", "num_convs": 1}, {"assigner": {"name": "simota"}}, _FCOS_LOSSES),
    "detector_pairs": toy({"name": "retina_emd", "num_convs": 1}, _PAIRS, {"earth_mover": 1.0}),
    "detector_objects": toy({"name": "yolov3", "num_anchors": 9, "norm": "gn"}, _RETINA, _OBJECT_LOSSES),
}
ASSIGNED = {
    "detector_ota": toy(
        {"name": "fcos", "num_convs": 1}, {"assigner": {"name": "ota"}}, {**_FCOS_LOSSES, "box_iou_bce": 0.5}
    ),
    "detector_free_anchor": toy({"name": "retina", "num_convs": 1}, _FREE_ANCHOR, _FREE_LOSSES),
}
"""By other rules."""
_SET_LOSSES = {"set_class": 0.01, "set_l1": 0.05, "set_giou": 0.02}
_SET_STEPS = _STEPS | {"fit": FitImage(height=32, width=64), "scale": ScaleSteps(low=1.0, high=2.0)}
SETS = {
    "detector_set": _toy(_set_detector, _detect(_SET_LOSSES, "detect_set", most=20), _SET_LOSSES, _SET_STEPS),
}
"""Boxes without priors, matched by the losses of another library; those of D-FINE do not run in float64."""
FEW_BOXES = {
    "detector_few": toy(share=0.08),
    "detector_none": toy(share=0.0),
    "detector_ignored": toy(is_ignored=True),
}
"""A box in every twelfth image, so that whole steps and whole processes have none; none at all; only ignored ones."""
