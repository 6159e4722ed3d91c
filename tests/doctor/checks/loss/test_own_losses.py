"""Relations that any loss must hold: planted faults of several kinds, healthy losses, and all that are shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.config import read_config
from sightline.contract import registry
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.parts.losses.classification import Distillation, FeatureDistillation
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.oracles.loss_case import LossCase
from sightline.workbench.check.suite import all_checks, run_all
from tests.conftest import ROOT
from tests.doctor.detecting import make_crowds
from tests.doctor.own_losses import (
    FAULTS,
    HEALTHY,
    NAME,
    NEW,
    Plant,
    build_with,
    findings_with,
    judge_losses,
    make_taught,
    registered,
)
from tests.doctor.pairing import make_pairs, make_pictured
from tests.doctor.planting import assert_complete, make
from tests.doctor.posing import make_pose
from tests.doctor.segmenting import make_parts
from tests.marks import long_but

WHOLE = (
    "classify: minus cross entropy",
    "segment: a mean for the sum",
    "maps: sigmoid before BCE with logits",
    "detect: positive and negative terms exchanged",
    "contrast: similarity to itself counts",
    "taught: KL of probabilities",
)
LONG = ("segment", "detect")
"""Kinds of runs whose faults are those of others, or that take seconds."""


def quick(names: Any) -> list[str]:
    return [name for name in names if not name.startswith(LONG)]


@pytest.mark.parametrize("name", long_but([*quick(FAULTS), *WHOLE], FAULTS))
def test_a_faulty_loss_is_named_by_its_cause(tmp_path: Path, name: str) -> None:
    found = findings_with(FAULTS[name], tmp_path, judge=judge_losses)
    assert found, f"nothing was found in {name}"
    told = "\n".join(map(str, found))
    assert found[0].cause == FAULTS[name].cause, told
    if found[0].code in NEW:
        assert_complete(dataclasses.replace(found[0], evidence={}))
        assert found[0].where.config_path == "losses.0", told


COUPLED = "segment: the hardest half of a batch"
"""A loss as it is meant, whose points are chosen among those of all samples: divided batches choose others."""


@pytest.mark.parametrize(
    "name",
    long_but([*quick(HEALTHY), "segment: smoothed with class weights"], [name for name in HEALTHY if name != COUPLED]),
)
def test_a_healthy_loss_of_a_users_is_left_alone(tmp_path: Path, name: str) -> None:
    found = findings_with(HEALTHY[name], tmp_path, judge=judge_losses)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.long
def test_a_loss_that_depends_on_how_a_batch_is_divided_gets_that_warning_alone(tmp_path: Path) -> None:
    [found] = findings_with(HEALTHY[COUPLED], tmp_path, judge=judge_losses)
    assert (found.code, found.severity, found.evidence["diagnosis"]) == ("loss-sum", "warning", "coupled")


@pytest.mark.parametrize("name", long_but(WHOLE[:1], WHOLE))
def test_the_whole_check_puts_the_cause_first(tmp_path: Path, name: str) -> None:
    found = findings_with(FAULTS[name], tmp_path)
    assert found[0].cause == FAULTS[name].cause, "\n".join(map(str, found))


def test_what_explains_another_finding_stands_above_it(tmp_path: Path) -> None:
    """The divisor of the older check depends on background as well, since the loss of background is not 0."""
    [found] = findings_with(FAULTS["detect: positive and negative terms exchanged"], tmp_path, judge=judge_losses)
    assert (found.code, found.cause) == ("loss-direction", "loss.sign")
    assert "[loss-normaliser]" in found.evidence["explains"][0]


# --- shipped losses ---------------------------------------------------------------------------------------------------

_POINTNET = "model={name: pointnet}"
_FCOS = ("box_overlap, weigh: centreness", "centreness", "box_iou_bce")


def _crowds(*losses: str, name: str = "retinanet", more: tuple[str, ...] = ()) -> TrainingSetup:
    words = (f"losses=[{', '.join(f'{{name: {loss}}}' for loss in losses)}]", *more)
    if name == "retinanet":
        return make_crowds(*words)
    sizes = ("data.train_size=12", "data.validation_size=2", "data.test_size=2")
    return build(read_config(ROOT / f"configs/detect/synthetic_crowds_{name}.yaml", (*sizes, *words)), World())


SHIPPED: dict[str, Any] = {
    "cross_entropy feature_transform_penalty": lambda folder: make(
        folder, _POINTNET, "losses=[{name: cross_entropy}, {name: feature_transform_penalty}]"
    ),
    "cross_entropy": lambda folder: make(
        folder,
        f"losses=[{{name: cross_entropy, label_smoothing: 0.3, class_weights: {[*range(1, 13)]}}}]",
    ),
    "focal_cross_entropy": lambda folder: make(
        folder, "data.imbalance=20", "losses=[{name: focal_cross_entropy, class_weights: inverse}]"
    ),
    "lovasz_softmax focal_cross_entropy": lambda folder: make_parts(
        folder, "losses=[{name: lovasz_softmax}, {name: focal_cross_entropy}]"
    ),
    "intra_modal": make_pairs,
    "intra_modal cross_modal": make_pictured,
    "distillation": lambda folder: make_taught(make(folder), Distillation(num_classes=12)),
    "heatmap_mse heatmap_cross_entropy joint_l1": lambda folder: make_pose(
        folder, "losses=[{name: heatmap_mse}, {name: heatmap_cross_entropy}, {name: joint_l1}]"
    ),
    "centre_mse": lambda folder: build(
        read_config(ROOT / "configs/pose/synthetic_hands_scale_net.yaml", ["data.train_size=16", "data.test_size=4"]),
        World(),
    ),
    "sigmoid_focal quality_focal box_smooth_l1 box_overlap box_density": lambda folder: _crowds(
        *("sigmoid_focal", "quality_focal", "box_smooth_l1", "box_overlap, overlap: ciou", "box_density"),
        more=("model.head={name: retina, density: true}",),
    ),
    "objectness class_bce box_overlap": lambda folder: _crowds(
        "objectness", "class_bce, quality: iou", "box_overlap, overlap: iou, form: square", name="yolox"
    ),
    "sigmoid_focal box_overlap centreness box_iou_bce": lambda folder: _crowds("sigmoid_focal", *_FCOS, name="fcos"),
    "free_anchor_positive free_anchor_negative": lambda folder: _crowds(
        "free_anchor_positive", "free_anchor_negative", more=("task.assigner={name: free_anchor}",)
    ),
    "earth_mover": lambda folder: _crowds(
        "earth_mover",
        more=(
            *("task.assigner={name: max_iou, low_quality: null, boxes_per_prior: 2}", "model.head={name: retina_emd}"),
            "task.suppression={name: set, iou_threshold: 0.5}",
        ),
    ),
}
"""The losses of a run -> the run."""


@pytest.mark.parametrize("losses", SHIPPED)
def test_shipped_losses_hold_every_relation(tmp_path: Path, losses: str) -> None:
    all_checks()
    context = Context(SHIPPED[losses](tmp_path), World())
    judged = {case.name if case.name != NAME else "distillation" for case in context.loss_cases}
    assert judged == {*losses.split()}
    found = [finding for code in NEW for finding in CHECKS[code](context)]
    assert found == [], "\n".join(map(str, found))


def test_every_shipped_loss_is_among_them() -> None:
    """That of features reads no outputs, and no relation applies to it."""
    judged = {loss for losses in SHIPPED for loss in losses.split()}
    assert judged | {"feature_distillation"} == {*registry.losses.modules}
    assert FeatureDistillation.forward.__annotations__.keys() == {"student_modules", "teacher_modules", "return"}


# --- details ----------------------------------------------------------------------------------------------------------


class MeanAndOne(registry.losses.get_entry("cross_entropy").builder):  # type: ignore[misc]
    """A mean whose count is one: the mean of means, where a step is split."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)

    def count(self, *, label: Tensor) -> Tensor:
        return torch.ones(())

    def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_mean_of_means_is_told_of_where_a_step_is_split(tmp_path: Path, micro_batches: int) -> None:
    with registered(MeanAndOne):
        built = make(tmp_path, f"losses=[{{name: {NAME}}}]", f"train.micro_batches={micro_batches}")
        found = judge_losses(built, World())
    told = [(each.code, each.severity, each.cause) for each in found]
    assert told == ([("loss-sum", "warning", "loss.normaliser")] if micro_batches > 1 else [])


def test_samples_of_a_ragged_batch_are_taken_apart() -> None:
    """By hand: two clouds of two points and one."""
    values = {"label": torch.tensor([5, 6, 7]), "category": torch.tensor([1, 2]), "scale": torch.tensor([0.5])}
    division = {"sample_index": torch.tensor([8, 9]), "offsets": torch.tensor([0, 2, 3])}
    function: Any = None
    case = LossCase("own", "losses.0", None, function, function, values, (), (), division)
    second = case.samples([1])
    assert second.values["label"].tolist() == [7]
    assert second.values["category"].tolist() == [2]
    assert second.values["scale"].tolist() == [0.5]
    assert second.division["offsets"].tolist() == [0, 1]
    assert case.samples([1, 0, 1]).values["label"].tolist() == [7, 5, 6, 7]
    assert case.samples([1, 0, 1]).division["offsets"].tolist() == [0, 1, 3, 4]


def test_a_loss_that_rejects_what_it_is_asked_is_noted(tmp_path: Path) -> None:
    class Picky(HEALTHY["classify: cross entropy"].loss):  # type: ignore[misc, name-defined]
        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            if len(logits) < 4:
                raise ValueError("a batch of fewer than four")
            return F.cross_entropy(logits, label, reduction="sum")

    with registered(Picky):
        built = build_with(Plant("classify", Picky), tmp_path)
        found = [each for each in run_all(built, World()) if each.code == "loss-sum"]
    assert [each.severity for each in found] == ["note"]
    assert "a batch of fewer than four" in found[0].measured


def test_a_loss_keeps_its_state(tmp_path: Path) -> None:
    """Checks ask a copy: a loss that counts its calls has counted none."""

    class Counts(HEALTHY["classify: cross entropy"].loss):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, *, logits: Tensor, label: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(logits, label, reduction="sum")

    with registered(Counts):
        context = Context(build_with(Plant("classify", Counts), tmp_path), World())
        task: Any = context.built.job.task
        forward, _ = task.bound_losses[NAME]
        _ = context.dry_run
        before = float(forward.function.__self__.calls)
        assert [finding for code in NEW for finding in CHECKS[code](context)] == []
        assert float(forward.function.__self__.calls) == before
