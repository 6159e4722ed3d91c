"""Runs of configs as subjects of the doctor: what is divided, what the loss is, and where a finding lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence.places import orders
from sightline.engine.distributed import World
from sightline.engine.step import compute_batch_losses
from sightline.workbench.check.context import Context
from sightline.workbench.check.examination import RunExamination
from sightline.workbench.check.loss_subjects import RunLoss
from sightline.workbench.check.run_subject import examine_relations, make_run_subject
from tests.doctor.planting import make, with_model


def test_inputs_and_targets_are_the_keys_that_model_and_loss_need(tmp_path: Path) -> None:
    subject = make_run_subject(make(tmp_path), num_samples=4)
    assert (subject.form.inputs.keys, subject.form.target.keys) == (("points",), ("label",))
    assert [len(batch.target) for batch in subject.batches] == [4] * 4
    assert len(subject.loader.dataset) == 216  # of 240, a tenth chooses the checkpoint


def test_the_loss_is_the_weighted_mean_of_a_step(tmp_path: Path) -> None:
    built = make(tmp_path)
    job = dataclasses.replace(built.job, loss_weights={"cross_entropy": 2.0})
    context = Context(dataclasses.replace(built, job=job), World())
    step = context.dry_run
    sums, counts = compute_batch_losses(job.task, step.model.eval(), step.batch, job.device, job.precision)
    outputs = step.model(points=step.batch["points"])
    wanted = 2 * float(sums["cross_entropy"].detach() / counts["cross_entropy"])
    assert float(RunLoss(job, step=job.step, precision=job.precision)(outputs, step.batch).detach()) == pytest.approx(
        wanted
    )


class Mixed(PointNetPlain):
    """A network whose answers to a sample are those to the next one, too."""

    def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
        logits = super().forward(points=points, features=features)["logits"]
        return {"logits": logits + logits.roll(1, 0)}


class Idle(PointNetPlain):
    """A network with a layer that nothing reads."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.idle = nn.Linear(3, 3)


@pytest.mark.parametrize(("model", "code"), [(Mixed, "cross-sample-leak"), (Idle, "unused-parameters")])
def test_findings_lie_at_keys_of_the_config(tmp_path: Path, model: type[PointNetPlain], code: str) -> None:
    built = with_model(make(tmp_path), model(num_classes=12, in_channels=3, embedding=32, dropout=0.0))
    findings = examine_relations(Context(built, World()))
    assert [(each.code, each.where.config_path, each.where.line) for each in findings] == [(code, "model", 2)]


def test_a_sound_run_has_no_finding(tmp_path: Path) -> None:
    examination = RunExamination()
    findings = examine_relations(Context(make(tmp_path), World(), examination=examination))
    assert findings == []
    assert examination.count("held") > 25
    assert examination.list_reasons("failed") == []


def test_a_check_says_how_far_its_work_has_come(tmp_path: Path) -> None:
    """A first step reads, calls the layers in turn, and goes back; relations count what they compute."""
    examination, told = RunExamination(), list[str]()

    class Telling(PointNetPlain):
        def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
            told.append(examination.describe_work())
            return super().forward(points=points, features=features)

    built = with_model(make(tmp_path), Telling(num_classes=12, in_channels=3, embedding=32, dropout=0.0))
    context = Context(built, World(), examination=examination)
    assert context.dry_run.is_sound
    assert told == ["the first step of 4 samples: forward, model"]
    assert examination.describe_work() == ""
    examine_relations(context)
    counts = [int(words.removesuffix(" losses computed")) for words in told[1:] if words]
    assert counts == sorted(counts)
    assert len({*counts}) > 10


def test_places_of_images_cost_points_no_pass(tmp_path: Path) -> None:
    subject = make_run_subject(make(tmp_path), num_samples=8)
    loss = subject.form.loss
    num_calls = loss.num_calls
    with pytest.raises(NotApplicableError, match="no maps of images"):
        orders(subject)
    assert loss.num_calls == num_calls
