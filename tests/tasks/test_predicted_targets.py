"""Assigners that need predictions, in the task: what the first pass leaves alone, autocast, pictures; the density."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from sightline.areas.detect.retinanet import RetinaEMDHead
from sightline.areas.detect.task import Detect
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.types import ComponentConfig
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step, prepare_trained_step
from sightline.ops.boxes.overlaps import box_iou
from sightline.parts.tasks.distillation import DistillationTask
from tests.tasks.detectors import make_task
from tests.tasks.test_detect import batch  # noqa: F401 - a fixture

CPU = torch.device("cpu")
LOSSES = {
    "fcos": ("sigmoid_focal", "box_overlap", "box_iou_bce"),
    "retina": ("sigmoid_focal", "box_smooth_l1", "box_density"),
}


def detector(head: str, assigner: str, **task: Any) -> tuple[Detect, nn.Module]:
    """A small one, with batch norm."""
    torch.manual_seed(0)
    options = {"num_anchors": 3, "density": True} if head == "retina" else {}
    blocks = {
        "backbone": {"name": "resnet18", "width": 4},
        "neck": {"name": "fpn", "width": 8},
        "head": {"name": head, "num_convs": 1, **options},
    }
    model = registry.models.build(ComponentConfig("detector", blocks), facts={"in_channels": 3, "num_classes": 1})
    if head == "retina":
        task["anchors"] = {"scales": (1.0,), "ratios": (1.0, 2.0, 3.0)}
    return make_task(model, LOSSES[head], model.output_keys, assigner={"name": assigner}, **task), model


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("assigner", ["simota", "ota"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_trained_step_of_one_batch_needs_one_pass(
    batch: dict[str, Any],  # noqa: F811
    assigner: str,
    precision: str,
    num_micro_batches: int,
) -> None:
    """With the bits of two: targets, losses, gradients and running statistics. Several batches need two each."""
    results, passes = [], []
    for prepare in (prepare_step, lambda task, model, *rest: prepare_trained_step(task, model, model, *rest)):
        task, model = detector("fcos", assigner)
        calls: list[int] = []
        model.train().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step = prepare(task, model, [batch] * num_micro_batches, World(), Precision(precision))
        sums = [step.loss_means(step.loss_sums(model, index)) for index in range(num_micro_batches)]
        torch.stack([value for each in sums for value in each.values()]).sum().backward()
        passes.append(len(calls))
        gradients = {name: each.grad for name, each in model.named_parameters()}
        results.append({**model.state_dict(), **gradients, **step.contexts[0], **sums[0], **step.counts})
    assert passes == ([2, 1] if num_micro_batches == 1 else [4, 4])
    for (name, two), one in zip(results[0].items(), results[1].values(), strict=True):
        assert torch.equal(two, one), name


class Doubled(Detect):
    """Task whose losses are its own."""

    def losses(self, *arguments: Any) -> dict[str, torch.Tensor]:
        return {name: 2 * value for name, value in super().losses(*arguments).items()}


@pytest.mark.parametrize("kind", ["subclass", "context", "teacher"])
def test_whoever_changes_a_step_gets_two_passes(kind: str, batch: dict[str, Any]) -> None:  # noqa: F811
    task: Any
    task, model = detector("fcos", "simota")
    if kind == "subclass":
        task.__class__ = Doubled
    elif kind == "context":
        task.context = lambda model, batch: {}
    else:
        task = DistillationTask(task, teacher=model, teacher_task=task)
    assert task.prepare_outputs(model.train(), batch, World()) is None


@pytest.mark.parametrize("assigner", ["simota", "ota"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_pass_before_the_losses_leaves_everything_as_it_was(
    batch: dict[str, Any],  # noqa: F811
    assigner: str,
    precision: str,
) -> None:
    """Running statistics see a batch once, the gradient is that of the losses on the same targets, the mode stays."""
    task, model = detector("fcos", assigner)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = prepare_step(task, model.train(), [batch], World(), Precision(precision))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    context = step.contexts[0]
    assert not any(value.requires_grad for value in context.values())
    assert context["priors"].dtype == torch.float32
    assert (context["target"] >= 0).any()
    torch.stack(list(step.loss_means(step.loss_sums(model)).values())).sum().backward()
    grads = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    assert len(grads) == len(list(model.parameters()))
    statistics = [value.clone() for name, value in model.state_dict().items() if "running_mean" in name]

    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    task.context = lambda model, batch: context  # type: ignore[method-assign]
    again = prepare_step(task, model, [batch], World(), Precision(precision))
    torch.stack(list(again.loss_means(again.loss_sums(model)).values())).sum().backward()
    for mine, each in zip(grads, model.parameters(), strict=True):
        assert torch.equal(mine, each.grad)  # type: ignore[arg-type]
    for mine, (name, value) in zip(
        statistics, [row for row in model.state_dict().items() if "running_mean" in row[0]], strict=True
    ):
        assert torch.equal(mine, value), name


def test_targets_follow_the_predictions(batch: dict[str, Any]) -> None:  # noqa: F811
    """Other weights, other targets; and every box that has a candidate keeps a point."""
    task, model = detector("fcos", "simota")
    first = task.context(model.eval(), batch)
    nn.init.normal_(model.head.boxes.conv.weight, std=0.3)  # type: ignore[union-attr, operator]
    second = task.context(model, batch)
    assert not torch.equal(first["target"], second["target"])
    assert int(first["is_unmatched"].sum()) == int(second["is_unmatched"].sum()) == 0


def test_targets_of_predictions_are_drawn(batch: dict[str, Any]) -> None:  # noqa: F811
    """The config's own assigner; where all is asked for, the others that the head takes beside it, and the priors."""
    task, model = detector("fcos", "ota")
    images = {**batch, "boxes": batch["boxes"].float()}
    [(stage, ([picture], figures))] = task.show_targets(images).items()
    assert (stage, picture.name, [*figures["assigners"]]) == ("assignment", "ota", ["ota"])
    assert figures["assigners"]["ota"]["num_positive"] > 0
    assert "(random weights); " in picture.caption
    assert picture.caption.endswith("it chooses by predictions, and a config has no trained weights")
    [trained], _ = task.show_targets(images, is_trained=True)["assignment"]
    assert "(run's weights); " in trained.caption
    shown = task.show_targets(images, all_stages=True)
    assert [*shown] == ["priors", "assignment"]
    pictures, figures = shown["assignment"]
    assert list(figures["assigners"]) == ["ota (this config's)", "atss", "fcos", "simota"]
    assert ["weights" in each.caption for each in pictures] == [True, False, False, True]
    assert model.training


# --- density ----------------------------------------------------------------------------------------------------------


def test_the_density_of_a_box_is_its_highest_overlap_with_another(batch: dict[str, Any]) -> None:  # noqa: F811
    task, model = detector("retina", "max_iou", suppression={"name": "adaptive"})
    context = task.context(model, batch)
    assert "matched_density" not in detector("fcos", "fcos")[0].context(model, batch), "no loss reads it"
    for image, (first, last) in enumerate(pairwise(batch["box_offsets"].tolist())):
        is_counted = ~batch["is_ignored"][first:last]
        boxes = batch["boxes"][first:last][is_counted]
        others = box_iou(boxes, boxes) - torch.eye(len(boxes))
        positive = context["target"][image] >= 0
        matched = context["matched_boxes"][image][positive], context["matched_density"][image][positive]
        for box, density in zip(*matched, strict=True):
            row = (boxes == box).all(dim=1).nonzero().flatten()
            assert float(density) == pytest.approx(float(others[row].max()))
        assert (context["matched_density"][image][~positive] == 0).all()


def test_the_predicted_density_reaches_the_suppression(batch: dict[str, Any]) -> None:  # noqa: F811
    """Of the same outputs, a density of 1 keeps everything, one of 0 as much as greedy suppression; votes, too."""
    task, model = detector("retina", "max_iou", suppression={"name": "adaptive"}, score=0.0, most=100_000)
    greedy, _ = detector("retina", "max_iou", score=0.0, most=100_000)
    with torch.no_grad():
        outputs = task.outputs(model.eval(), batch)
    assert outputs["density"].shape == outputs["logits"].shape[:2]

    def count(task: Detect, density: float, votes: int = 1) -> int:
        predicted = {**outputs, "density": torch.full_like(outputs["density"], density)}
        passes = [task.postprocess(predicted, batch)] * votes
        return len((task.vote(passes) if votes > 1 else passes[0])["detections"])

    assert count(task, 1.0) > count(task, 0.0) == count(greedy, 1.0)
    assert count(task, 0.0, votes=2) == count(task, 0.0)
    assert count(task, 1.0, votes=2) > count(task, 1.0)


def test_a_suppression_that_reads_what_no_head_predicts_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Adaptive needs the output density; FCOSHead offers centreness, codes, .*; set model\.head"
    ):
        detector("fcos", "fcos", suppression={"name": "adaptive"})
    with pytest.raises(
        ConfigError, match=r"SetSuppression needs the output proposal; RetinaHead offers codes, .*; take"
    ):
        detector("retina", "max_iou", suppression={"name": "set"})
    with pytest.raises(ConfigError, match="density: RetinaEMDHead predicts several boxes at an anchor"):
        RetinaEMDHead(channels=(8,), strides=(8,), num_classes=1, density=True)
