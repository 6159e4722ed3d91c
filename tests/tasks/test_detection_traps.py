"""Silent faults of detectors that other tests leave open, by the numbers of the specification's section 13."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from sightline.areas.detect.output import DetectionFilter
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.transforms import CutImage, FitImage, TurnImage
from sightline.config import read_config
from sightline.contract.types import SampleKey
from sightline.engine.step import compute_batch_losses
from sightline.parts.transforms.images import FlipImage, NormalizeImage
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.processes import ROOT
from tests.tasks.test_detect import LOSSES, detect

STEPS = (FlipImage(), CutImage(), TurnImage(), FitImage(height=192, width=320), NormalizeImage())


def reader_of(crowds: SyntheticCrowds) -> BatchReader:
    return BatchReader(crowds, [NamedTransform(str(place), step) for place, step in enumerate(STEPS)])


def digest_of(crowds: SyntheticCrowds) -> str:
    """SHA-256 of every annotation, as it is stored."""
    arrays = [array for index in range(len(crowds)) for array in vars(crowds.record(index)).values()]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays if array is not None)).hexdigest()


def test_boxes_do_not_drift_over_epochs() -> None:
    """T1: three epochs with every transform and with what a careless network does; the annotations keep their bits."""
    crowds = SyntheticCrowds(split="train", train_size=4)
    reader, before = reader_of(crowds), digest_of(crowds)
    keys = [SampleKey(index, 0, 0) for index in range(4)]
    first = reader(keys)
    kept = {name: value.clone() for name, value in first.items()}
    for epoch in range(3):
        batch = reader([SampleKey(index, epoch, 0) for index in range(4)])
        for name in ("boxes", "truth", "image", "to_canvas", "label"):
            batch[name].mul_(2)
        assert digest_of(crowds) == before
    again = reader(keys)
    assert all(torch.allclose(again[name], value, rtol=0, atol=0, equal_nan=True) for name, value in kept.items())
    assert all(not array.flags.writeable for array in vars(crowds.record(0)).values() if array is not None)


def batch_of(boxes: torch.Tensor, label: int = 0, *, is_ignored: bool = False) -> dict[str, Any]:
    count = len(boxes)
    return {
        "image": torch.zeros(1, 3, 192, 320),
        "boxes": boxes,
        "label": torch.full((count,), label),
        "is_ignored": torch.full((count,), is_ignored),
        "box_offsets": torch.tensor([0, count]),
        "to_canvas": torch.eye(3)[None, :2],
        "file_px": torch.tensor([[192, 320]]),
    }


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_the_class_of_an_ignored_box_is_never_read(head: str) -> None:
    """T19: with one class, any number in its place changes no target and no loss."""
    task, model = detect(head)
    boxes = torch.tensor([[20.0, 20, 200, 180]])
    context = task.context(torch.nn.Identity(), batch_of(boxes, is_ignored=True))
    num_priors = context["target"].shape[1]
    maps = torch.tensor(task.get_priors(torch.zeros(1, 3, 192, 320)).maps)[None]
    model.answers = {
        "logits": torch.ones(1, num_priors, 1),
        "codes": torch.ones(1, num_priors, 4),
        "level_shapes": maps,
    }
    if head == "fcos":
        model.answers["centreness"] = torch.ones(1, num_priors)
    found = []
    for label in (0, 7, -1, 255):
        sums, _ = compute_batch_losses(task, model, batch_of(boxes, label, is_ignored=True), torch.device("cpu"))
        found.append({name: float(value) for name, value in sums.items()})
    assert found[1:] == found[:1] * 3
    assert found[0].keys() == {*LOSSES[head]}


def test_evaluation_reaches_down_to_small_scores() -> None:
    """T23: a threshold that is good for looking at cuts the curve; shipped recipes evaluate from 0.05 on or below."""
    paths = sorted((ROOT / "configs" / "detect").glob("[!_]*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        config = read_config(path)
        assert config.task.arguments.get("score", 0.05) <= 0.05, path
    task, _ = detect("retina")
    selection = task._select
    assert isinstance(selection, DetectionFilter)
    assert selection.min_score == 0.05
