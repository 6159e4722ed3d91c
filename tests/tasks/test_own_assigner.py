"""An assigner of one's own trains every head whose priors it takes; what does not fit is refused with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.areas.detect.retinanet import RetinaHead
from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.model import model_output_keys
from sightline.engine.device.numerics import Precision
from sightline.engine.distributed import World
from sightline.engine.step import prepare_step, prepare_trained_step
from sightline.ops.boxes.priors import Priors
from sightline.parts.boxes.assigner import BACKGROUND, Assigner, Assignment, PriorPredictions
from tests.cases import run_each
from tests.doctor.detecting import make_crowds
from tests.tasks.detectors import make_task
from tests.tasks.test_detect_heads import FREE, MAPS, STRIDES

LOSSES = {
    "retina": ("sigmoid_focal", "box_smooth_l1"),
    "retina_emd": ("earth_mover",),
    "atss": ("sigmoid_focal", "box_overlap", "centreness"),
    "fcos": ("sigmoid_focal", "box_overlap", "centreness"),
    "yolov3": ("objectness", "class_bce", "box_overlap"),
    "yolox": ("objectness", "class_bce", "box_overlap"),
}


class OnMaps(nn.Module):
    """A head on maps of noise, one for each image."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *, image: Tensor) -> dict[str, Tensor]:
        maps = [torch.randn(len(image), 32, *size) for size in MAPS]
        return {**self.head(maps), "level_shapes": torch.tensor(MAPS).expand(len(image), -1, -1)}


def task_of(head: str, assigner: dict[str, Any], builder: Any = None) -> tuple[Any, OnMaps]:
    """A task with a head of two classes on two levels of 32 channels, with its authors' losses."""
    arguments = {"num_anchors": 2} if head in ("retina", "retina_emd", "yolov3") else {}
    anchors = {"anchors": {"scales": [1.0], "ratios": [1.0, 2.0]}} if arguments else {}
    levels = {"channels": (32, 32), "strides": STRIDES, "num_classes": 2}
    model = OnMaps((builder or registry.heads.get_entry(head).builder)(**levels, **arguments))
    losses = FREE if assigner["name"] == "free_anchor" else LOSSES[head]
    outputs = model_output_keys(model.head, owner="the head") | {"level_shapes"}
    return make_task(model, losses, outputs, assigner=assigner, **anchors), model


@pytest.fixture(autouse=True)
def nearest_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers `nearest`: a prior predicts the box whose middle is nearest to its own, if it is within 9 pixels."""
    registry.assigners.names()  # the built-in ones, too
    monkeypatch.setattr(registry.assigners, "_entries", dict(registry.assigners._entries))

    @registry.assigners.add("nearest")
    class Nearest(Assigner):
        prior_kinds = frozenset({"anchors", "points"})

        def __init__(self, *, needs: bool = False, boxes_per_prior: int = 1) -> None:
            self.needs_predictions, self.boxes_per_prior = needs, boxes_per_prior  # type: ignore[misc]

        def match(self, priors: Priors, boxes: Tensor, *more: Any) -> Assignment:
            assert len(more) == (2 if self.needs_predictions else 0)
            for labels, predicted in [more] if more else []:
                assert isinstance(predicted, PriorPredictions)
                assert len(labels) == len(boxes)
                assert predicted.boxes.shape == (len(priors), *((2,) if self.boxes_per_prior == 2 else ()), 4)
                assert predicted.logits.shape == (*predicted.boxes.shape[:-1], 2)
            distance, box = torch.cdist(priors.centres, (boxes[:, :2] + boxes[:, 2:]) / 2).min(dim=1)
            matched = torch.where(distance < 9, box, BACKGROUND)
            return Assignment(matched, (matched >= 0).long(), matched if self.boxes_per_prior == 2 else None)


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("head", registry.heads.names())
def test_it_trains_every_shipped_head(head: str, needs: bool) -> None:
    """Targets are those of its rule, by a loop, and the gradient reaches every parameter."""
    torch.manual_seed(0)
    pair = {"boxes_per_prior": 2} if head == "retina_emd" else {}
    task, model = task_of(head, {"name": "nearest", "needs": needs, **pair})
    boxes = torch.tensor([[1.0, 1, 9, 12], [14, 2, 23, 15], [3, 4, 11, 14]])
    offsets = torch.tensor([0, 2, 3])
    batch = {"image": torch.zeros(2, 3, 16, 24), "boxes": boxes, "box_offsets": offsets}
    batch |= {"label": torch.tensor([1, 0, 1]), "is_ignored": torch.zeros(3, dtype=torch.bool)}
    step = prepare_step(task, model, [batch], World(), Precision("float32"))
    context = step.contexts[0]
    centres = task.get_priors(batch["image"]).centres
    for image, rows in enumerate((range(2), range(2, 3))):
        for prior, (x, y) in enumerate(centres.tolist()):
            near = {}
            for box in rows:
                left, top, right, bottom = boxes[box].tolist()
                near[((left + right) / 2 - x) ** 2 + ((top + bottom) / 2 - y) ** 2] = int(batch["label"][box])
            expected = near[min(near)] if min(near) < 81 else BACKGROUND
            assert int(context["target"][image, prior]) == expected
    assert (context["target"] >= 0).any()
    trained = prepare_trained_step(task, model, model, [batch], World(), Precision("float32"))
    assert (trained.outputs is not None) == needs
    for name, value in context.items():
        assert torch.equal(value, trained.contexts[0][name]), name
    torch.stack(list(step.loss_means(step.loss_sums(model)).values())).sum().backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()]


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_shipped_recipes_take_it(name: str) -> None:
    made = make_crowds("task.assigner={name: nearest}", name=name)
    assert type(made.job.task._assigner).__name__ == "Nearest"  # type: ignore[attr-defined]


SHIPPED = {
    "atss": {"atss"},
    "fcos": {"fcos", "atss", "ota", "simota"},
    "retina": {"max_iou", "atss", "free_anchor"},
    "retina_emd": {"max_iou"},
    "yolov3": {"max_iou", "atss"},
    "yolox": {"simota", "ota", "fcos", "atss"},
}


@pytest.mark.parametrize("head", registry.heads.names())
def test_what_takes_a_heads_priors_fits_it(head: str) -> None:
    """Every pair is built, or refused in a line that lists all that fit: the shipped ones are those of the papers."""
    count = 2 if head == "retina_emd" else 1
    fitting = {*SHIPPED[head], "nearest"}
    for name in registry.assigners.names():
        block = {"name": name, **({"boxes_per_prior": count} if name in ("max_iou", "nearest") else {})}
        if name in fitting:
            task_of(head, block)
            continue
        with pytest.raises(ConfigError, match=rf"assigner: .*{name}.*; take {', '.join(sorted(fitting))}$"):
            task_of(head, block)


@pytest.mark.parametrize(
    ("head", "shipped"), [("retina_emd", set()), ("retina", {"atss", "free_anchor"}), ("yolov3", {"atss"})]
)
def test_view_draws_every_assigner_that_fits(head: str, shipped: set[str]) -> None:
    """Beside the config's own; one that cannot be made without arguments is left out."""

    @registry.assigners.add("choosy")
    class Choosy(Odd):
        prior_kinds = frozenset({"anchors"})

        def __init__(self, *, count: int) -> None: ...

    pair = {"boxes_per_prior": 2} if head == "retina_emd" else {}
    task, _ = task_of(head, {"name": "max_iou", **pair})
    batch = {"image": torch.rand(1, 3, 16, 24), "boxes": torch.tensor([[1.0, 1, 9, 12]]), "label": torch.tensor([1])}
    batch |= {"box_offsets": torch.tensor([0, 1]), "is_ignored": torch.tensor([False])}
    [pictures, figures] = task.show_targets(batch, all_stages=True)["assignment"]
    assert {*figures["assigners"]} == {"max_iou (this config's)", "nearest", *shipped}
    assert len(pictures) == len(figures["assigners"])


class Named(RetinaHead):
    """A head of one's own that names its assigners."""

    assigners = ("max_iou",)


class Odd(Assigner):
    """Without the kinds of priors that it takes."""

    def match(self, priors: Priors, boxes: Tensor, *more: Any) -> Assignment:
        raise AssertionError


class Texted(Odd):
    """Its kinds of priors as one word."""

    prior_kinds = "anchors"  # type: ignore[assignment]


@run_each(
    "head, assigner, message",
    [
        ("retina", {"name": "fcos"}, "fcos needs priors points; RetinaHead offers anchors; tak"),
        (
            "yolov3",
            {"name": "free_anchor"},
            "YOLOv3Head needs targets of objectness; free_anchor offers codes, logits; take",
        ),
        (
            "atss",
            {"name": "max_iou"},
            "ATSSHead needs targets of centreness; max_iou offers codes, logits; take atss, n",
        ),
        ("retina_emd", {"name": "atss"}, "atss needs boxes at each prior: 1; RetinaEMDHead offers 2; take max_iou, n"),
        ("retina", {"name": "nearest"}, "Named needs targets of max_iou; nearest offers nearest; take max_iou$"),
        ("retina", {"name": "odd"}, r"odd: its base class asks it to set prior_kinds \("),
        ("retina", {"name": "texted"}, "texted needs priors that its `prior_kinds` name, such as frozenset"),
    ],
)
def test_the_reason_is_named(head: str, assigner: dict[str, Any], message: str) -> None:
    registry.assigners.add("odd")(Odd)
    registry.assigners.add("texted")(Texted)
    with pytest.raises(ConfigError, match=f"assigner: .*{message}"):
        task_of(head, assigner, Named if "Named" in message else None)


@pytest.mark.parametrize(
    ("matched", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"of \(3,\) torch.int64, expected \(4,\)"),
        (torch.zeros(4), r"of \(4,\) torch.float32, expected \(4,\) torch.int64"),
        (torch.tensor([0, -1, -2, 1]), "matched 1 of 1 boxes, counted from 0"),
        (None, "returned a NoneType; return an Assignment"),
    ],
)
def test_a_match_that_returns_something_else_is_named(matched: Tensor | None, message: str) -> None:
    class Wrong(Odd):
        prior_kinds = frozenset({"points"})

        def match(self, priors: Priors, boxes: Tensor, *more: Any) -> Any:
            return matched if matched is None else Assignment(matched, torch.zeros(4, dtype=torch.int64))

    priors = Priors("points", torch.rand(4, 2), (8,), ((2, 2),), (1,))
    with pytest.raises(ValueError, match=f"Wrong: match (returned )?(matched )?{message}"):
        Wrong()(priors, torch.tensor([[0.0, 0, 9, 9], [0, 0, 1, 1]]), torch.tensor([False, True]))
