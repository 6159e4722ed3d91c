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
from sightline.parts.losses.classification import CrossEntropy, Distillation
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import take_samples
from sightline.workbench.check.loss_subjects import make_loss_subjects
from sightline.workbench.check.run_subject import examine_losses
from tests.conftest import ROOT
from tests.doctor.detecting import make_crowds
from tests.doctor.own_class_losses import over_classes
from tests.doctor.own_losses import (
    FAULTS,
    HEALTHY,
    NAME,
    Plant,
    build_with,
    findings_with,
    judge_losses,
    make_taught,
    registered,
)
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import assert_complete, make
from tests.doctor.posing import make_pose
from tests.doctor.segmenting import Edited, make_parts, make_rooms
from tests.models.set_networks import SMALL_DFINE
from tests.planted.planting import BENCHES
from tests.recipes import SMALLER

WHOLE = (
    "classify: minus cross entropy",
    "segment: a mean for the sum",
    "maps: minus a squared error",
    "detect: positive and negative terms exchanged",
    "contrast: similarity to itself counts",
    "taught: KL of probabilities",
)


@pytest.mark.parametrize("name", WHOLE)
def test_a_faulty_loss_is_named_by_its_cause(tmp_path: Path, name: str) -> None:
    """One of each kind of runs: all are rows of the table of cases."""
    found = findings_with(FAULTS[name], tmp_path, judge=judge_losses)
    told = "\n".join(map(str, found))
    assert [each.cause for each in found][:1] == [FAULTS[name].cause], told
    assert_complete(dataclasses.replace(found[0], evidence={}))
    assert found[0].where.config_path == "losses.0", told


# --- shipped losses ---------------------------------------------------------------------------------------------------

_POINTNET = "model={name: pointnet}"
_FCOS = ("box_overlap, weigh: centreness", "centreness", "box_iou_bce")


def _crowds(*losses: str, name: str = "retinanet", more: tuple[str, ...] = ()) -> TrainingSetup:
    words = (f"losses=[{', '.join(f'{{name: {loss}}}' for loss in losses)}]", *more)
    if name == "retinanet":
        sides = "{name: fit_image, height: 96, width: 128}"
        steps = (f"transforms.{part}=[{sides}, {{name: normalize_image}}]" for part in ("train", "evaluate"))
        return make_crowds(*words, *steps)
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
    "lovasz_softmax": lambda folder: make_parts(folder, "losses=[{name: lovasz_softmax}]"),
    "intra_modal": make_pairs,
    "intra_modal cross_modal": lambda folder: build(read_config(BENCHES / "SSL.yaml"), World()),
    "distillation": lambda folder: make_taught(make(folder), Distillation(num_classes=12)),
    "heatmap_mse": make_pose,
    "centre_mse": lambda folder: build(
        read_config(ROOT / "configs/pose/synthetic_hands_scale_net.yaml", ["data.train_size=16", "data.test_size=4"]),
        World(),
    ),
    "sigmoid_focal box_smooth_l1 box_overlap box_density": lambda folder: _crowds(
        *("sigmoid_focal", "box_smooth_l1", "box_overlap, overlap: ciou", "box_density"),
        more=("model.head.density=true",),
    ),
    "anchor_class anchor_box anchor_direction": lambda folder: build(
        read_config(
            ROOT / "configs/boxes3d/synthetic_streets_pointpillars.yaml",
            ["data.train_size=8", "data.test_size=2", "data.num_columns=128", "model.max_pillars=1000"],
        ),
        World(),
    ),
    "objectness class_bce box_overlap": lambda folder: _crowds(
        "objectness", "class_bce, quality: iou", "box_overlap, overlap: iou, form: square", name="yolox"
    ),
    "sigmoid_focal box_overlap centreness box_iou_bce": lambda folder: _crowds("sigmoid_focal", *_FCOS, name="fcos"),
    "free_anchor_positive free_anchor_negative": lambda folder: _crowds(
        "free_anchor_positive", "free_anchor_negative", more=("task.assigner={name: free_anchor}",)
    ),
    "set_class set_l1 set_giou set_corners set_distillation": lambda folder: build(
        read_config(ROOT / "configs/detect/photos_dfine.yaml", SMALL_DFINE), World()
    ),
    "pixel_cross_entropy pixel_lovasz pixel_boundary": lambda folder: build(
        read_config(
            ROOT / "configs/segment/synthetic_lidar_frnet.yaml",
            [
                *("data.train_size=8", "data.test_size=2", *SMALLER["segment/synthetic_lidar_frnet"]),
                "losses=[{name: pixel_cross_entropy}, {name: pixel_lovasz}, {name: pixel_boundary}]",
            ],
        ),
        World(),
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
    context = Context(SHIPPED[losses](tmp_path), World())
    judged = {loss.name if loss.name != NAME else "distillation" for loss in make_loss_subjects(context)}
    assert judged == {*losses.split()}
    assert examine_losses(context) == []


def test_every_shipped_loss_is_among_them() -> None:
    assert {loss for losses in SHIPPED for loss in losses.split()} == {*registry.losses.modules}


# --- details ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_mean_of_means_is_told_of_where_a_step_is_split(tmp_path: Path, micro_batches: int) -> None:
    """A mean whose count is one."""
    with registered(over_classes(F.cross_entropy, lambda label: 1.0)):
        built = make(tmp_path, f"losses=[{{name: {NAME}}}]", f"train.micro_batches={micro_batches}")
        found = judge_losses(built, World())
    told = [(each.code, each.severity, each.cause) for each in found]
    assert told == ([("loss-sum", "warning", "loss.normaliser")] if micro_batches > 1 else [])


@pytest.mark.parametrize("is_planted", [False, True])
def test_ignored_targets_do_not_count(tmp_path: Path, is_planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 1 is a valid index: nothing fails, and what is ignored is learnt as a class."""
    if is_planted:
        monkeypatch.setattr(CrossEntropy, "is_counted", lambda self, label: torch.ones_like(label, dtype=torch.bool))
    built = make_rooms(tmp_path, lambda inner: Edited(inner, facts={"ignore_index": 1}))
    found = examine_losses(Context(built, World()))
    assert [each.code for each in found] == ["ignored-targets"] * is_planted


def test_samples_of_a_ragged_batch_are_taken_apart() -> None:
    """By hand: two clouds of two points and one."""
    values = {"label": torch.tensor([5, 6, 7]), "category": torch.tensor([1, 2]), "scale": torch.tensor([0.5])}
    division = {"sample_index": torch.tensor([8, 9]), "offsets": torch.tensor([0, 2, 3])}
    second = take_samples({**values, **division}, division, [1])
    assert {key: value.tolist() for key, value in second.items()} == {
        "label": [7], "category": [2], "scale": [0.5], "sample_index": [9], "offsets": [0, 1],
    }  # fmt: skip
    turned = take_samples({**values, **division}, division, [1, 0, 1])
    assert (turned["label"].tolist(), turned["offsets"].tolist()) == ([7, 5, 6, 7], [0, 1, 3, 4])


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
        _ = context.first_outputs
        before = float(forward.function.__self__.calls)
        [loss] = make_loss_subjects(context)
        at_first = float(forward.function.__self__.calls)
        loss.subject.evaluate(loss.subject.model, *loss.subject.batches[0])
        loss.term.compute(*loss.subject.batches[0])
        assert (before, float(forward.function.__self__.calls)) == (at_first - 1, at_first)
