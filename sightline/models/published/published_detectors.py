"""Published detectors as models of ours: torchvision's, CrowdDet's, NuayHL's, darknet's and YOLOX's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.models.published.published_model import AxisSize, NumModules, PublishedModel, PublishedProtocol

__all__ = ["DETECTORS"]

_PHOTOS = PublishedProtocol("detect", "coco", ({"name": "box_ap"},), "ap", 1, {})
_CROWDS = PublishedProtocol("detect", "crowdhuman", ({"name": "box_ap", "most": 500},), "ap50", 1, {})


def _short_side(canvas_px: int, long_px: int) -> tuple[Mapping[str, Any], ...]:
    """Return transforms of photos to 800 pixels at their shorter side, on a canvas for upright and lying ones."""
    size = {"short_px": 800, "long_px": long_px, "height": canvas_px, "width": canvas_px, "fill": [124, 116, 104]}
    return ({"name": "fit_image", "mode": "short_side", **size}, {"name": "normalize_image"})


_ABSENT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_PLACES = tuple(number for number in range(1, 91) if number not in _ABSENT)
_FOCAL: Mapping[str, Any] = {"name": "sigmoid_focal"}


def _detector(
    head: str,
    num_anchors: int,
    task: Mapping[str, Any],
    *losses: Mapping[str, Any],
    evaluate: tuple[Mapping[str, Any], ...],
    protocol: PublishedProtocol = _PHOTOS,
    backbone: str = "resnet50",
    neck: str = "fpn",
    num_classes: AxisSize | None = None,
    from_shapes: Mapping[str, AxisSize | NumModules] | None = None,
    class_places: Sequence[int] = (),
    assumed: Mapping[str, Any] | None = None,
) -> PublishedModel:
    return PublishedModel(
        model="detector",
        num_classes=num_classes or AxisSize("head.classes.conv.weight", 0, divisor=num_anchors),
        in_channels=None,
        encoders={"backbone": backbone, "neck": neck, "head": head},
        from_shapes=from_shapes or {},
        assumed=assumed or {},
        task=task,
        losses=losses,
        evaluate=evaluate,
        trains=({"name": "flip_image"}, *evaluate),
        up_axis=None,
        protocol=protocol,
        keeps_head=num_classes is not None,
        takes_first_points=False,
        class_places=class_places,
    )


def _describe_torchvision(
    head: str, num_anchors: int, task: Mapping[str, Any], *losses: Mapping[str, Any], **assumed: Any
) -> PublishedModel:
    """Describe a torchvision detector: priors at cell corners, classes at COCO's ids, unused for 0 and missing ids.

    Source: pytorch/vision, models/detection and references/detection.
    """
    return _detector(
        head,
        num_anchors,
        {"grid": {"offset": 0.0, "steps": "image"}, **task},
        *losses,
        evaluate=_short_side(1344, 1333),
        class_places=_COCO_PLACES,
        assumed={"backbone.norm": "frozen_bn", **assumed},
    )


def _crowddet_sizes() -> list[list[tuple[float, float]]]:
    """Return CrowdDet's anchor sizes, ratio by ratio: widths of 32 pixels are rounded, then all is scaled."""
    widths = [(round(32 / math.sqrt(ratio)), ratio) for ratio in (1, 2, 3)]
    scales = [[2 ** (level + octave / 3) for octave in range(3)] for level in range(5)]
    return [[(scale * w, scale * w * ratio) for w, ratio in widths for scale in level] for level in scales]


def _describe_crowddet(
    head: str, num_anchors: int, assigner: Mapping[str, Any], suppression: str, *losses: Mapping[str, Any]
) -> PublishedModel:
    """Describe a CrowdDet detector: anchor middles are 8 pixels from cell corners. Source: Purkialo/CrowdDet."""
    task = {
        "anchors": {"sizes": _crowddet_sizes()},
        "grid": {"offset_px": 8.0},
        "assigner": {"name": "max_iou", **assigner},
        "suppression": {"name": suppression, "iou_threshold": 0.5},
        "score": 0.01,
        "most": 500,
        "clip": False,
    }
    assumed = {"backbone.norm": "frozen_bn", "backbone.frozen_stages": 2, "neck.upsample": "bilinear"}
    evaluate = _short_side(1408, 1400)
    return _detector(head, num_anchors, task, *losses, evaluate=evaluate, protocol=_CROWDS, assumed=assumed)


_STRETCHED: tuple[Mapping[str, Any], ...] = (
    {"name": "fit_image", "mode": "stretch", "height": 800, "width": 1024},
    {"name": "normalize_image", "mean": [0.4643, 0.4421, 0.4223], "std": [0.2904, 0.2850, 0.2936]},
)
_TALL: Mapping[str, Any] = {"anchors": {"preset": "s3"}, "assigner": {"name": "max_iou"}, "most": 500, "clip": False}
_OBJECTS: tuple[Mapping[str, Any], ...] = ({"name": "objectness"}, {"name": "class_bce"})
_PLAIN_COLOURS: Mapping[str, Any] = {"name": "normalize_image", "mean": [0.0] * 3, "std": [1.0] * 3}


def _yolov3(
    num_anchors: int,
    task: Mapping[str, Any],
    evaluate: tuple[Mapping[str, Any], ...],
    *,
    protocol: PublishedProtocol = _PHOTOS,
    **assumed: Any,
) -> PublishedModel:
    """Describe a YOLOv3 detector; five outputs of every anchor are its box and objectness."""
    return _detector(
        "yolov3",
        num_anchors,
        task,
        *_OBJECTS,
        {"name": "box_overlap"},
        evaluate=evaluate,
        protocol=protocol,
        backbone="darknet53",
        neck="yolov3",
        num_classes=AxisSize("head.outputs.0.conv.weight", 0, divisor=num_anchors, others=5 * num_anchors),
        assumed={"head.num_anchors": num_anchors, **assumed},
    )


DETECTORS: Mapping[str, PublishedModel] = {
    "crowddet_retinanet": _describe_crowddet(
        "retina", 9, {"low_quality": "overwrite"}, "greedy", _FOCAL, {"name": "box_smooth_l1", "beta": 0.1}
    ),
    "crowddet_retinanet_emd": _describe_crowddet(
        "retina_emd", 18, {"low_quality": None, "boxes_per_prior": 2}, "set", {"name": "earth_mover"}
    ),
    "darknet_yolov3": _yolov3(
        3,
        {
            "anchors": {
                "sizes": [
                    [(10, 13), (16, 30), (33, 23)],
                    [(30, 61), (62, 45), (59, 119)],
                    [(116, 90), (156, 198), (373, 326)],
                ]
            },
            "assigner": {"name": "max_iou"},
            "suppression": {"name": "greedy", "iou_threshold": 0.45},
        },
        ({"name": "fit_image", "height": 416, "width": 416, "fill": [128, 128, 128]}, _PLAIN_COLOURS),
    ),
    **{
        f"odtask_retina_{name}": _detector(
            "retina",
            4,
            _TALL,
            _FOCAL,
            {"name": "box_smooth_l1"},
            backbone=name,
            evaluate=_STRETCHED,
            protocol=_CROWDS,
            assumed={"neck.p6_source": "c5", "head.num_anchors": 4},
        )
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
    },
    "odtask_yolov3": _yolov3(
        4,
        _TALL,
        _STRETCHED,
        protocol=_CROWDS,
        **{f"{part}.slope": 0.01 for part in ("backbone", "neck", "head")},
        **{"head.as_published": True, "head.coding": "deltas"},
    ),
    "torchvision_fcos_resnet50_fpn": _describe_torchvision(
        "fcos",
        1,
        {"assigner": {"name": "fcos"}, "suppression": {"name": "greedy", "iou_threshold": 0.6}, "score": 0.04},
        _FOCAL,
        {"name": "box_overlap"},
        {"name": "centreness"},
        **{"head.scales": False},
    ),
    "torchvision_retinanet_resnet50_fpn": _describe_torchvision(
        "retina",
        9,
        {
            "anchors": {"preset": "retinanet", "whole_px": True},
            "assigner": {"name": "max_iou", "low_quality": "detectron"},
            "suppression": {"name": "greedy", "iou_threshold": 0.5},
            "most": 300,
        },
        _FOCAL,
        {"name": "box_smooth_l1", "beta": 0.0},
    ),
    "yolox": _detector(
        "yolox",
        1,
        {"assigner": {"name": "simota"}, "suppression": {"name": "greedy", "iou_threshold": 0.65}, "score": 0.01},
        {"name": "objectness"},
        {"name": "class_bce", "quality": "iou"},
        {"name": "box_overlap", "overlap": "iou", "form": "square", "weight": 5.0},
        backbone="cspdarknet",
        neck="pafpn",
        num_classes=AxisSize("head.classes.0.conv.weight", 0),
        from_shapes={
            "backbone.width": AxisSize("backbone.stem.conv.weight", 0),
            "backbone.depth": NumModules("backbone.stages.0.1.blocks"),
            "neck.depth": NumModules("neck.down.0.blocks"),
        },
        evaluate=(
            {"name": "fit_image", "height": 640, "width": 640, "fill": [114, 114, 114]},
            {**_PLAIN_COLOURS, "std": [1 / 255] * 3},
        ),
    ),
}
"""Per published layout our model, as in `published_models.MODELS`."""
