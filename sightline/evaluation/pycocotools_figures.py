"""COCO metrics computed by pycocotools, if it is installed, for comparison with our own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from typing import Any

from torch import Tensor

from sightline.metrics.base import State
from sightline.metrics.box_ap import BoxAp

__all__ = ["pycocotools_figures"]

_SIZES = ("", "_small", "_medium", "_large")


def pycocotools_figures(metric: BoxAp, state: State, images: Tensor) -> dict[str, float] | None:
    """Compute the metrics of `box_ap` with pycocotools; None if it is not installed.

    `images` are the indices of all images. Ignored labels are passed as crowds, those without a class once per class;
    the maximal number of detections per image is the metric's, in AP, too. NaN replaces pycocotools' -1.
    """
    if importlib.util.find_spec("pycocotools") is None:
        return None
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = []
    num_classes = len(metric.class_names)
    for image, *box, label, area, is_ignored in state["labels"].tolist():
        for category in range(num_classes) if label < 0 else (int(label),):
            about = {"id": len(annotations) + 1, "image_id": int(image), "category_id": category}
            annotations.append({**about, "bbox": _to_xywh(*box), "area": area, "iscrowd": int(is_ignored)})
    detections = [
        {"image_id": int(image), "category_id": int(label), "bbox": _to_xywh(*box), "score": score}
        for image, *box, score, label in state["detections"].tolist()
    ]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": int(image)} for image in images],
        "annotations": annotations,
        "categories": [{"id": number} for number in range(num_classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections) if detections else COCO(), "bbox")
        evaluation.params.maxDets = [1, 10, metric.most]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    figures = {"ap50": precision[0, :, :, 0, -1], "ap75": precision[5, :, :, 0, -1]}
    figures |= {f"ap{size}": precision[..., area, -1] for area, size in enumerate(_SIZES)}
    figures |= {f"ar{size}": recall[..., area, -1] for area, size in enumerate(_SIZES)}
    figures |= {"ar1": recall[..., 0, 0], "ar10": recall[..., 0, 1]}
    return {name: float(v[v > -1].mean()) if (v > -1).any() else float("nan") for name, v in figures.items()}


def _to_xywh(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right - left, bottom - top]
