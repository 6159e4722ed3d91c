"""Pairs of head and assigner learn eight drawn crowds by heart, in at most 600 steps of their own optimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from sightline.ops.boxes.overlaps import box_iou
from tests.conftest import ROOT

NUM_IMAGES = 8
LENIENT = "task.suppression={name: greedy, iou_threshold: 0.7}"
ATSS = "task.assigner={name: atss}"


@dataclass(frozen=True)
class Pair:
    """A head and an assigner: the drawn recipe that they change, for how many steps, on images of which size.

    FCOS and ATSS leave people without a point whose middles hold no more points than others take: of these 72 people 12
    and 13 on images of 192 x 256 pixels, of which no detector learns to find them; 1 and 3 on images twice as large.
    ATSS leaves 1 on images of 480 x 640 pixels, where rounding (one thread or two) does not decide about the bar.
    """

    config: str
    words: tuple[str, ...] = (LENIENT,)
    steps: int = 300
    height: int = 192
    width: int = 256

    def built(self) -> TrainingSetup:
        plain = f"[{{name: fit_image, height: {self.height}, width: {self.width}}}, {{name: normalize_image}}]"
        size = (f"data.train_size={NUM_IMAGES}", f"train.batch_size={NUM_IMAGES}", f"train.epochs={self.steps}")
        form = (f"transforms.train={plain}", f"transforms.evaluate={plain}", "optimizer.weight_decay=0.0")
        path = ROOT / f"configs/detect/synthetic_crowds_{self.config}.yaml"
        return build(read_config(path, [*self.words, *size, *form, "schedule.warmup_epochs=20"]), World())


FREE_ANCHOR = (
    "task.assigner={name: free_anchor}",
    "losses=[{name: free_anchor_positive}, {name: free_anchor_negative}]",
    "model.head.prior=0.02",
)
OTA = (
    "task.assigner={name: ota}",
    "losses=[{name: sigmoid_focal}, {name: box_overlap, weight: 2.0}, {name: box_iou_bce, weight: 0.5}]",
)
EMD = (
    "train.precision=float32",  # AP50 0.912, but 0.896 in the bfloat16 that `auto` takes: rounding
    "task.assigner.boxes_per_prior=2",
    "model.head.name=retina_emd",
    "losses=[{name: earth_mover}]",
    "task.suppression={name: set, iou_threshold: 0.6}",
)
CASES = {
    "retinanet_max_iou": Pair("retinanet", height=288, width=384),
    "retinanet_atss": Pair("retinanet", (ATSS, LENIENT), height=288, width=384),
    "retinanet_free_anchor": Pair("retinanet", (*FREE_ANCHOR, LENIENT), steps=600),
    "retina_emd_max_iou": Pair("retinanet", EMD, steps=600),
    "fcos_fcos": Pair("fcos", steps=150, height=384, width=512),
    "fcos_ota": Pair("fcos", (*OTA, LENIENT)),
    "fcos_atss": Pair("fcos", (ATSS, LENIENT), steps=150, height=480, width=640),
    "yolov3_max_iou": Pair("yolov3"),
    "yolox_simota": Pair("yolox"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pair_learns_eight_crowds_by_heart(name: str, record_property: Callable[[str, object], None]) -> None:
    """AP50 of at least 0.9, and at least 95 % of the boxes found at an IoU of 0.5, of 100 detections an image.

    Suppression is lenient: a sixth of these people overlap another by more than half.
    """
    built = CASES[name].built()
    train(built.job, World(), lambda record, stop_requested: False)
    found: list[tuple[int, int]] = []

    def keep(batch: Any, predictions: Any) -> None:
        spans = pairwise(predictions["detection_offsets"].tolist()), pairwise(batch["truth_offsets"].tolist())
        for (first, last), (begin, end) in zip(*spans, strict=True):
            truth = batch["truth"][begin:end]
            boxes = truth[truth[:, 6] == 0, :4].double()
            overlap = box_iou(boxes, predictions["detections"][first:last, :4])
            pairs = linear_sum_assignment((overlap >= 0.5).numpy(), maximize=True)
            found.append((int((overlap[pairs] >= 0.5).sum()), len(boxes)))

    part = built.data.train
    evaluator = dataclasses.replace(built.selection_evaluator, reader=part.reader, indices=np.asarray(part.indices))
    with torch.no_grad():
        metrics = evaluator(built.job.model, World(), on_batch=keep).metrics
    recall = sum(hits for hits, _ in found) / sum(count for _, count in found)
    record_property("figures", {"ap50": metrics["ap50"], "recall": recall})  # pytest --junitxml FILE keeps them
    assert len(found) == NUM_IMAGES
    assert (metrics["ap50"] >= 0.9, recall >= 0.95) == (True, True), (metrics["ap50"], recall)
