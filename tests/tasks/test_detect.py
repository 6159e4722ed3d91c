"""Targets before the forward pass, detections after it: perfect outputs find every box, in the pixels of the file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.detect.metrics.box_ap import BoxAp
from sightline.areas.detect.metrics.crowds import MissRate
from sightline.areas.detect.sets.synthetic_crowds import SyntheticCrowds
from sightline.areas.detect.task import Detect
from sightline.areas.detect.transforms import FitImage, ScaleSteps
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError, RunError
from sightline.contract.metric import Meter
from sightline.contract.types import SampleKey
from sightline.engine.step import compute_batch_losses
from sightline.ops.boxes.codes import encode_deltas, encode_distances
from sightline.ops.boxes.overlaps import box_iou
from sightline.parts.transforms.images import FlipImage, NormalizeImage
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.tasks.detectors import make_task

LOSSES = {"retina": ("sigmoid_focal", "box_smooth_l1"), "fcos": ("sigmoid_focal", "box_overlap", "centreness")}


class Stated(nn.Module):
    """A detector whose outputs are what `answers` holds."""

    def __init__(self, head: str) -> None:
        super().__init__()
        arguments = {"num_anchors": 9} if head == "retina" else {}
        levels = {"channels": (32,) * 5, "strides": (8, 16, 32, 64, 128)}
        self.head = registry.heads.get_entry(head).builder(**levels, num_classes=1, num_convs=1, **arguments)
        self.answers: dict[str, Tensor] = {}

    def forward(self, *, image: Tensor) -> dict[str, Tensor]:
        return self.answers


def detect(head: str, assigner: dict[str, Any] | None = None, **arguments: Any) -> tuple[Detect, Stated]:
    model = Stated(head)
    keys = ("logits", "codes", "centreness", "level_shapes") if head == "fcos" else ("logits", "codes", "level_shapes")
    given = {"name": "max_iou" if head == "retina" else "fcos"} if assigner is None else assigner
    block = {"anchors": {"preset": "crowddet"}} if head == "retina" else {}
    return make_task(model, LOSSES[head], keys, **{"assigner": given, **block, **arguments}), model


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    """Three crowds, mirrored and enlarged, and an image without a single box."""
    steps = [FlipImage(probability=1.0), FitImage(height=256, width=384), NormalizeImage()]
    reader = BatchReader(
        SyntheticCrowds(split="train", train_size=3),
        [NamedTransform(str(place), step) for place, step in enumerate(steps)],
    )
    made = reader([SampleKey(index, 0, 0) for index in range(3)])
    empty = {"image": made["image"][:1], "to_canvas": made["to_canvas"][:1], "file_px": made["file_px"][:1]}
    offsets = {name: torch.cat([made[name], made[name][-1:]]) for name in ("box_offsets", "truth_offsets")}
    return {
        **made,
        **{n: torch.cat([made[n], v]) for n, v in empty.items()},
        **offsets,
        "sample_index": torch.arange(4),
    }


def perfect(task: Detect, head: str, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs that say of every prior what its target is."""
    context = task.context(nn.Identity(), batch)
    priors, target, boxes = context["priors"], context["target"], context["matched_boxes"]
    encode = encode_deltas if head == "retina" else encode_distances
    shapes = torch.tensor(task.get_priors(batch["image"]).maps).expand(len(target), -1, -1)
    codes = encode(
        priors.expand(len(target), -1, -1), torch.where((target >= 0)[..., None], boxes, torch.tensor([0.0, 0, 9, 9]))
    )
    outputs = {"logits": torch.where(target >= 0, 12.0, -12.0)[..., None], "codes": codes, "level_shapes": shapes}
    return outputs | ({"centreness": torch.full(target.shape, 8.0)} if head == "fcos" else {})


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_perfect_outputs_find_every_box_in_the_pixels_of_the_file(head: str, batch: dict[str, Any]) -> None:
    """The whole way back: coding, score, suppression, mirrored and enlarged canvas; ignored boxes count for nothing."""
    task, model = detect(head, clip=False, suppression={"name": "greedy", "iou_threshold": 0.98}, most=2000)
    model.answers = perfect(task, head, batch)
    predictions = task.predict(model, batch)
    assert predictions["detections"].shape[1] == 6
    assert predictions["detection_offsets"][-2] == predictions["detection_offsets"][-1], "nothing in the empty image"
    metric = BoxAp(class_names=("person",), most=2000)
    state = metric.new_state()
    names = ("detections", "detection_offsets")
    metric.update(
        state,
        **{name: predictions[name] for name in names},
        **{n: batch[n] for n in ("truth", "truth_offsets", "sample_index")},
    )
    figures = metric.compute(state)
    found = figures["ar"]
    assert found == pytest.approx(1.0) if head == "retina" else found > 0.9, "FCOS has no point for the smallest"


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_scores_that_are_nan_are_no_empty_image(head: str, batch: dict[str, Any]) -> None:
    """No score was above the least: a broken network had an AP of 0, and predicted that nothing is there."""
    task, model = detect(head)
    model.answers = perfect(task, head, batch)
    model.answers["logits"][0] = torch.nan
    predictions = task.predict(model, batch)
    first, second = predictions["detection_offsets"][1:3].tolist()
    assert predictions["detections"][:first, 4].isnan().all()
    assert 0 < first < second
    assert predictions["detections"][first:].isfinite().all()
    given = {name: predictions[name] for name in ("detections", "detection_offsets")}
    given |= {name: batch[name] for name in ("truth", "truth_offsets", "sample_index")}
    more = {name: batch[name] for name in ("truth_visible", "file_px")}
    told = rf"the scores of {first} of \d+ are NaN; find where with `sightline check`"
    with pytest.raises(ValueError, match=told):
        Meter(BoxAp(class_names=("person",))).update(**given)
    with pytest.raises(ValueError, match=told):
        Meter(MissRate(class_names=("person",))).update(**given, **more)


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_losses_are_divided_by_positives_and_reach_what_perfect_outputs_give(head: str, batch: dict[str, Any]) -> None:
    task, model = detect(head)
    model.answers = perfect(task, head, batch)
    sums, counts = compute_batch_losses(task, model, batch, torch.device("cpu"))
    positives = int((task.context(model, batch)["target"] >= 0).sum())
    assert int(counts["sigmoid_focal"]) == positives > 0
    assert float(sums["sigmoid_focal"]) < 1e-3
    name = LOSSES[head][1]
    assert float(sums[name] / counts[name]) < 1e-5


def test_pure_background_leaves_the_loss_of_a_positive_alone(batch: dict[str, Any]) -> None:
    """Twice as large a canvas, all of it background: a mean over all samples would halve the loss."""
    task, model = detect("retina")
    outputs = perfect(task, "retina", batch)
    outputs["logits"] = torch.where(outputs["logits"] > 0, 1.0, -9.0)
    model.answers = outputs
    sums, counts = compute_batch_losses(task, model, batch, torch.device("cpu"))
    wide = {**batch, "image": torch.cat([batch["image"], torch.zeros_like(batch["image"])], dim=2)}
    outputs = perfect(task, "retina", wide)
    outputs["logits"] = torch.where(outputs["logits"] > 0, 1.0, -9.0)
    model.answers = outputs
    wide_sums, wide_counts = compute_batch_losses(task, model, wide, torch.device("cpu"))
    for name in sums:
        ours, theirs = float(sums[name] / counts[name]), float(wide_sums[name] / wide_counts[name])
        assert theirs == pytest.approx(ours, rel=0.02, abs=1e-5), name


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_without_any_box_losses_are_finite_and_box_losses_zero(head: str, batch: dict[str, Any]) -> None:
    rows = {"boxes": batch["boxes"][:0], "label": batch["label"][:0], "is_ignored": batch["is_ignored"][:0]}
    empty = {**batch, **rows, "box_offsets": torch.zeros_like(batch["box_offsets"])}
    task, model = detect(head)
    outputs = {
        name: value.requires_grad_() if value.is_floating_point() else value
        for name, value in perfect(task, head, empty).items()
    }
    model.answers = outputs
    sums, counts = compute_batch_losses(task, model, empty, torch.device("cpu"))
    assert all(float(count) == 0 for count in counts.values())
    torch.stack(list(sums.values())).sum().backward()
    assert all(bool(value.grad.isfinite().all()) for value in outputs.values() if value.grad is not None)
    assert all(sums[name].item() == 0 for name in LOSSES[head][1:])


def test_ignore_regions_are_neither_targets_nor_background(batch: dict[str, Any]) -> None:
    task, _ = detect("retina")
    every = {**batch, "is_ignored": torch.ones_like(batch["is_ignored"])}
    target = task.context(nn.Identity(), every)["target"]
    assert int((target >= 0).sum()) == 0
    assert int((target == -2).sum()) > 0


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_tallies_are_counts_of_the_whole_step_however_it_is_split(head: str, batch: dict[str, Any]) -> None:
    """As literal loops count them, box by box and prior by prior."""
    task, _ = detect(head)
    whole = task.context(nn.Identity(), batch)
    n_unmatched = 0
    for image, (first, last) in enumerate(pairwise(batch["box_offsets"].tolist())):
        matched = task._assigner(
            task.get_priors(batch["image"]), batch["boxes"][first:last], batch["is_ignored"][first:last]
        ).matched
        for box in range(last - first):
            n_unmatched += not bool(batch["is_ignored"][first + box]) and not bool((matched == box).any())
        assert int((matched >= 0).sum()) == int((whole["target"][image] >= 0).sum())
    expected = {
        "n_pos": int((whole["target"] >= 0).sum()),
        "n_ignore": int((whole["target"] == -2).sum()),
        "unmatched_gt": n_unmatched,
    }
    ragged = {"boxes", "label", "is_ignored"}
    parts = []
    for image, (first, last) in enumerate(pairwise(batch["box_offsets"].tolist())):
        rows = {name: batch[name][first:last] for name in ragged}
        offsets = torch.tensor([0, last - first])
        parts.append(task.context(nn.Identity(), {"image": batch["image"][[image]], "box_offsets": offsets, **rows}))
    assert {name: int(value) for name, value in task.step_counts([whole]).items()} == expected
    assert {name: int(value) for name, value in task.step_counts(parts).items()} == expected
    assert n_unmatched == 0 if head == "retina" else n_unmatched > 0, "FCOS has no point for the smallest"


def test_maps_of_another_size_are_named(batch: dict[str, Any]) -> None:
    """Width and height exchanged somewhere: anchors would lie beside the image, and nobody would notice."""
    task, model = detect("retina")
    outputs = perfect(task, "retina", batch)
    model.answers = {**outputs, "level_shapes": outputs["level_shapes"].flip(2)}
    with pytest.raises(RunError, match=r"maps of \(256, 384\) pixels have \[\(48, 32\), .* lie on \[\(32, 48\)"):
        task.predict(model, batch)


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("retina", {"anchors": {"preset": "s3"}}, "2 scales x 2 ratios are 4 anchors a cell, the head predicts 9; set"),
        ("fcos", {"anchors": {"preset": "s3"}}, "anchors: FCOSHead predicts from points; leave anchors out"),
    ],
)
def test_pairs_that_cannot_be_are_refused_when_built(head: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detect(head, **arguments)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="detect needs a model with a head"):
        make_task(nn.Identity(), (), (), assigner={"name": "max_iou"})


def mirrored(batch: dict[str, Any]) -> dict[str, Any]:
    """The same images mirrored on a larger canvas, as `transforms.vote` make them after all others."""
    steps = [FlipImage(probability=1.0), ScaleSteps(low=1.5, high=1.5)]
    given = {name: batch[name] for name in ("image", "to_canvas")}
    rows = [slice(*pair) for pair in pairwise(batch["box_offsets"].tolist())]
    found: list[dict[str, Tensor]] = []
    for image, own in enumerate(rows):
        one = {**{name: value[[image]] for name, value in given.items()}, "boxes": batch["boxes"][None, own]}
        for step in steps:
            one |= step(Draws.for_samples([SampleKey(image, 1, 0, step=1)]), **one)
        found.append({**one, "boxes": one["boxes"][0]})
    return {**batch, **{name: torch.cat([each[name] for each in found]) for name in ("image", "to_canvas", "boxes")}}


@pytest.mark.parametrize("head", ["retina", "fcos"])
def test_passes_are_suppressed_together_in_pixels_of_the_file(head: str, batch: dict[str, Any]) -> None:
    """One pass sees the boxes with even numbers, the other, mirrored and larger, those with odd ones; both, all."""
    task, model = detect(head, clip=False, suppression={"name": "greedy", "iou_threshold": 0.7}, most=2000)
    passes = []
    for parity, given in enumerate((batch, mirrored(batch))):
        context = task.context(model, given)
        place = torch.arange(len(given["boxes"])) % 2 == parity
        sides = given["boxes"][place]
        is_seen = (context["matched_boxes"][:, :, None] == sides).all(dim=3).any(dim=2)
        outputs = perfect(task, head, given)
        model.answers = {**outputs, "logits": torch.where(is_seen[..., None], outputs["logits"], -12.0)}
        passes.append(task.predict(model, given))
    voted = task.vote(passes)
    counts = [each["detection_offsets"].diff() for each in (*passes, voted)]
    assert (counts[2] >= torch.maximum(*counts[:2])).all()
    assert (counts[2] <= counts[0] + counts[1]).all()
    for first, last in pairwise(voted["detection_offsets"].tolist()):
        rows = voted["detections"][first:last]
        assert (rows[:, 4].diff() <= 0).all()
        assert ((box_iou(rows[:, :4], rows[:, :4]) > 0.7).sum(dim=1) == 1).all()
    both = [row for each in passes for row in each["detections"]]
    overlaps = box_iou(torch.stack(both)[:, :4], voted["detections"][:, :4]).amax(dim=1)
    assert (overlaps > 0.7).all(), "what a pass finds is there, or what suppresses it"
    assert torch.equal(task.vote([passes[0]])["detection_offsets"], passes[0]["detection_offsets"])
