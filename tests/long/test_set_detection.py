"""D-FINE from random weights learns drawn crowds as well here as in a loop of the library's own, step by step."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.config import read_config
from sightline.contract.metric import Meter
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.loop import train
from tests.models.set_networks import SETTINGS
from tests.processes import ROOT
from tests.runs.test_box_results import by_pycocotools

NUM_STEPS, NUM_IMAGES = 250, 4
LARGER = {name: 64 for name in ("encoder_hidden_dim", "encoder_ffn_dim", "d_model", "decoder_ffn_dim")}
WIDER = {"stage_out_channels": [16, 32, 64, 64], "stage_in_channels": [8, 16, 32, 64], "hidden_sizes": [16, 32, 64, 64]}
FAMILY = SETTINGS["d_fine"]
SIZES = {
    **FAMILY,
    **LARGER,
    "encoder_in_channels": [32, 64, 64],
    "decoder_in_channels": [64, 64, 64],
    "backbone_config": {**FAMILY["backbone_config"], **WIDER},
    "num_queries": 40,
    "hidden_expansion": 1.0,
    "depth_mult": 1.0,
    "freeze_backbone_batch_norms": False,
}
PLAIN = "[{name: fit_image, height: 192, width: 256}, {name: normalize_image, mean: [0, 0, 0], std: [1, 1, 1]}]"
WORDS = (
    *(f"data={{name: synthetic_crowds, train_size: {NUM_IMAGES}}}", f"train.batch_size={NUM_IMAGES}", "init=null"),
    *(f"transforms.train={PLAIN}", f"transforms.evaluate={PLAIN}", f"train.epochs={NUM_STEPS}", "train.clip_norm=1.0"),
    *("optimizer={name: adamw, lr: 1e-3, weight_decay: 0.0}", "schedule={name: constant}", "train.ema_decay=null"),
)


def built() -> TrainingSetup:
    path = ROOT / "configs/detect/photos_dfine.yaml"
    settings = json.dumps(
        SIZES | {"backbone_config": {**SIZES["backbone_config"], "use_learnable_affine_block": False}}
    )
    return build(read_config(path, [*WORDS, f"model.network={settings}"]), World())


def train_theirs(setup: TrainingSetup, losses: list[float]) -> Any:
    """The loop that the library's users write, on the batches of this run, from the same weights and the same noise."""
    config = transformers.DFineConfig(**SIZES, num_labels=1)
    network = transformers.DFineForObjectDetection(config)
    state = setup.job.model.state_dict()
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    torch.manual_seed(0)
    for [batch] in setup.job.stream.iterate(0, NUM_STEPS):
        loss = network(pixel_values=batch["image"], labels=theirs_of(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return network.eval()


def theirs_of(batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    labels = []
    for first, last in zip(batch["box_offsets"][:-1], batch["box_offsets"][1:], strict=True):
        chosen = ~batch["is_ignored"][first:last]
        left, top, right, bottom = batch["boxes"][first:last][chosen].float().unbind(1)
        centred = [(left + right) / 2 / 256, (top + bottom) / 2 / 192, (right - left) / 256, (bottom - top) / 192]
        labels.append({"class_labels": batch["label"][first:last][chosen], "boxes": torch.stack(centred, dim=1)})
    return labels


@pytest.mark.long
def test_a_run_learns_as_the_loop_of_the_library_does() -> None:
    expected: list[float] = []
    network = train_theirs(built(), expected)
    setup, found = built(), []
    torch.manual_seed(0)

    def at_step(record: Any, is_stopped: bool) -> bool:
        found.append(record.losses["total"])
        return False

    train(setup.job, World(), at_step)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)  # then Adam enlarges rounding, and matchings flip
    [[batch]] = setup.job.stream.iterate(0, 1)
    model = setup.job.model.eval()
    with torch.no_grad():
        predictions = setup.job.task.predict(model, batch)
        theirs = network(pixel_values=batch["image"])
    metric = BoxAp(class_names=("person",))
    meter, values = Meter(metric), batch | predictions
    meter.update(**{name: values[name] for name in inspect.signature(metric.update).parameters if name in values})
    ours, truth = meter.compute(), truth_of(batch)
    spans = predictions["detection_offsets"].tolist()
    own = [predictions["detections"][first:last] for first, last in pairwise(spans)]
    own_rows = rows_of([{"boxes": rows[:, :4], "scores": rows[:, 4]} for rows in own])
    assert [ours["ap"], ours["ap50"]] == pytest.approx(by_pycocotools(truth, own_rows, [1])[:2], abs=1e-9)
    sizes = [(float(height), float(width)) for height, width in batch["file_px"]]
    results = RTDetrImageProcessorPil().post_process_object_detection(theirs, threshold=0.0, target_sizes=sizes)
    expected_ap50 = by_pycocotools(truth, rows_of(results), [1])[1]
    assert ours["ap50"] == pytest.approx(expected_ap50, abs=0.1)
    assert expected_ap50 > 0.5


def rows_of(results: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Results as COCO's: left, top, width and height, clipped to the image as ours are by default."""
    rows = []
    for image, result in enumerate(results, start=1):
        for box, score in zip(result["boxes"].double(), result["scores"], strict=True):
            left, top, right, bottom = box.clamp(min=0).minimum(torch.tensor([256.0, 192, 256, 192]).double()).tolist()
            bbox = [left, top, right - left, bottom - top]
            rows.append({"image_id": image, "category_id": 1, "bbox": bbox, "score": float(score)})
    return rows


def truth_of(batch: dict[str, Any]) -> dict[str, Any]:
    annotations = []
    for image, (first, last) in enumerate(zip(batch["truth_offsets"][:-1], batch["truth_offsets"][1:], strict=True), 1):
        for left, top, right, bottom, _, area, is_ignored in batch["truth"][first:last].tolist():
            bbox, number = [left, top, right - left, bottom - top], len(annotations) + 1
            about = {"id": number, "image_id": image, "category_id": 1, "iscrowd": int(is_ignored)}
            annotations.append({**about, "bbox": bbox, "area": area})
    images = [{"id": image + 1} for image in range(len(batch["file_px"]))]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
