"""Evaluations that cannot be done, reported before the run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.contract.loss import Loss
from sightline.contract.metric import Metric
from sightline.contract.model import Model
from sightline.doctor.finding import Finding
from sightline.draw.pictures import Picture
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.parts.tasks.classification import Classify
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_evaluation import rehearse_evaluations
from sightline.workbench.check.first_step_rules import failed_evaluation
from sightline.workbench.check.suite import run_quick
from tests.command import refuse
from tests.doctor.pairing import make_pairs
from tests.doctor.planting import (
    CONFIG,
    Wrapped,
    assert_complete,
    caught,
    judge,
    make,
    with_data,
    with_evaluators,
    with_model,
)
from tests.doctor.posing import make_pose
from tests.doctor.segmenting import make_parts, make_rooms, with_metric
from tests.planted.planting import Planter

State = dict[str, Tensor]


def found(built: TrainingSetup) -> Finding:
    (finding,) = judge(failed_evaluation, Context(built, World()))
    assert (finding.code, finding.severity) == ("first-evaluation", "error")
    assert_complete(finding)
    return finding


# --- the task and the model -------------------------------------------------------------------------------------------


class Scores(TypedDict):
    scores: Tensor


class Scorer(Model):
    """The task reads `logits`."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, num_classes)

    def forward(self, *, points: Tensor) -> Scores:
        return {"scores": self.layer(points).amax(1)}


class OfScores(Loss):
    def count(self, *, label: Tensor) -> Tensor:
        return torch.tensor(label.numel())

    def forward(self, *, scores: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, label, reduction="sum")


class Hits(Metric):
    higher_is_better = True

    def new_state(self) -> State:
        return {"hits": torch.tensor(0)}

    def update(self, state: State, *, scores: Tensor, label: Tensor) -> None:
        state["hits"] += (scores.argmax(1) == label).sum()

    def compute(self, state: State) -> dict[str, float]:
        return {"hits": float(state["hits"])}


@pytest.fixture
def scorer() -> Iterator[str]:
    """Config of issue 21: a user's model has another output's name, which loss and metric read; there is no task."""
    with Planter() as planter:
        planter.add_model(Scorer)
        planter.add_loss(OfScores)
        planter.add("metrics", Hits)
        text = CONFIG.replace("pointnet_plain, embedding: 32, dropout: 0.0", "own").replace("cross_entropy", "own")
        yield text.replace("accuracy}]", "own}]").replace("overall_accuracy", "hits")


def test_a_model_without_the_output_that_the_task_reads(tmp_path: Path, scorer: str) -> None:
    """At the start of a training too."""
    (finding,) = [f for f in run_quick(make(tmp_path, text=scorer), World()) if f.severity == "error"]
    assert (finding.code, finding.cause) == ("first-evaluation", "cfg.contract")
    assert_complete(finding)
    assert (
        finding.summary
        == "the validation part cannot be evaluated: KeyError in 'losses_and_predictions' of the task 'classify'"
    )
    assert (finding.where.file, finding.where.line) == (str(tmp_path / "small.yaml"), 2)
    assert finding.where.dataset == "synthetic_shapes/validation"
    assert "the task 'classify' (the default: the config has no task) reads 'logits'" in finding.action
    assert "returns scores" in finding.action


def test_without_the_check_it_is_one_line_too(tmp_path: Path, scorer: str) -> None:
    """The evaluation comes to it: a key that is missing in the package's own task is not a fault of the package."""
    config = tmp_path / "small.yaml"
    config.write_text(scorer)
    told = refuse("train", config, "--no-check", "--out", tmp_path / "run", "--device", "cpu", "data.train_size=48")
    assert told.splitlines()[-1] == (
        f"error: {config}:2: model: the task 'classify' (the default: the config has no task) reads 'logits'; the "
        "model 'own' returns scores: rename its output, or set the task that reads it"
    )


class OnlyInTraining(nn.Module):
    """Its evaluation branch was never run."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, points: Tensor) -> Any:
        outputs = self.inner(points=points)
        if not self.training:
            outputs["logits"] = outputs["logits"][:, self.no_such_order]
        return outputs


OnlyInTraining.forward.__annotations__["return"] = TypedDict("Logits", {"logits": Tensor})


def test_a_branch_of_evaluation_alone(tmp_path: Path) -> None:
    built = make(tmp_path)
    finding = found(with_model(built, OnlyInTraining(built.job.model)))
    assert (finding.where.file or "").endswith("test_first_evaluation.py")
    assert "no_such_order" in finding.measured


# --- metrics and pictures ---------------------------------------------------------------------------------------------


class Sound(Metric):
    """The share answered rightly, with a hook for every stage."""

    plant: Callable[..., Any] = staticmethod(lambda value: value)
    stage = ""

    def new_state(self) -> State:
        return {"right": torch.tensor(0), "seen": torch.tensor(0)}

    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        state["right"] += (probabilities.argmax(1) == label).sum()
        state["seen"] += label.numel()

    def compute(self, state: State) -> dict[str, Any]:
        return {"accuracy": (state["right"] / state["seen"]).item()}


class DiesInUpdate(Sound):
    def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
        raise KeyError("topk")


class DiesInCompute(Sound):
    def compute(self, state: State) -> dict[str, Any]:
        assert not state["seen"], "compute was never run on what evaluation counts"
        return {"accuracy": 0.0}


class DiesPerClass(Sound):
    def per_class(self, state: State) -> dict[str, Any]:
        return {["chair"]: {"accuracy": 1.0}}  # type: ignore[dict-item]


class GivesTensors(Sound):
    def compute(self, state: State) -> dict[str, Any]:
        return {"accuracy": state["right"] / state["seen"]}


class GivesTables(Sound):
    def tables(self, state: State) -> dict[str, Any]:
        return {"counts": np.zeros(3)}


class CalledStep(Sound):
    def compute(self, state: State) -> dict[str, Any]:
        return {"accuracy": (state["right"] / state["seen"]).item(), "step": 1.0}


@pytest.mark.parametrize(
    ("metric", "stage", "told"),
    [
        (DiesInUpdate, "update", "KeyError: 'topk'"),
        (DiesInCompute, "compute", "compute was never run"),
        (DiesPerClass, "per_class", "unhashable"),
        (GivesTensors, "compute", "compute returns values that JSON cannot represent"),
        (GivesTables, "tables", "tables returns values that JSON cannot represent"),
        (CalledStep, "record", "a metric may not be called ['step']"),
    ],
)
def test_what_a_metric_dies_of(tmp_path: Path, metric: type[Sound], stage: str, told: str) -> None:
    finding = found(with_metric(make(tmp_path), metric()))
    if metric is DiesInUpdate:
        assert finding.where.file == __file__
        line = Path(__file__).read_text().splitlines()[(finding.where.line or 0) - 1]
        assert line.strip() == 'raise KeyError("topk")'
    assert told in finding.measured
    owner = "the metrics log" if metric is CalledStep else "the metric 'accuracy'"
    assert finding.summary.endswith(f"in '{stage}' of {owner}")
    assert (finding.where.config_path or "").startswith("metrics")


def test_a_metric_that_dies_on_made_answers_too_is_told_once(tmp_path: Path) -> None:
    finding = caught(with_metric(make(tmp_path), DiesInUpdate()), "per-batch-metric", "eval.protocol")
    assert any("first-evaluation" in line for line in finding.evidence["explains"])


class DiesDrawing(Classify):
    def show(self, batch: Any, predictions: Any) -> list[Picture]:
        raise IndexError("no such card")


class DrawsFloats(Classify):
    def show(self, batch: Any, predictions: Any) -> list[Picture]:
        return [Picture("predictions", np.zeros((4, 4, 3)), "")]


@pytest.mark.parametrize(("task", "told"), [(DiesDrawing, "no such card"), (DrawsFloats, "uint8")])
def test_pictures_that_cannot_be_drawn(tmp_path: Path, task: type[Classify], told: str) -> None:
    built = make(tmp_path)
    own = task.__new__(task)
    own.__dict__ |= built.job.task.__dict__
    finding = found(with_evaluators(built, task=own))
    assert "in 'show' of the task 'classify'" in finding.summary
    assert told in finding.measured


# --- the data ---------------------------------------------------------------------------------------------------------


def test_samples_that_cannot_be_joined(tmp_path: Path) -> None:
    def edit(batch: dict[str, Any], keys: Any) -> None:
        if len(keys) > 1:
            raise ValueError("clouds of unlike size")

    built = make(tmp_path)
    reader = with_data(built, lambda inner: Wrapped(inner, edit)).data.selection.reader
    evaluator = dataclasses.replace(built.selection_evaluator, reader=reader)
    finding = found(dataclasses.replace(built, selection_evaluator=evaluator))
    assert "in 'read' of the data set" in finding.summary


def test_a_test_part_of_another_form_is_evaluated_too(tmp_path: Path) -> None:
    """Only there labels are floating numbers; of the same form, it is not evaluated a second time."""

    def edit(batch: dict[str, Any], keys: Any) -> dict[str, Any]:
        return {**batch, "label": batch["label"].double() + 0.5}

    built = make(tmp_path)
    assert len(rehearse_evaluations(built, torch.device("cpu"))) == 1
    before = built.test_evaluator.reader
    reader = lambda keys: edit(before(keys), keys)  # noqa: E731
    finding = found(dataclasses.replace(built, test_evaluator=dataclasses.replace(built.test_evaluator, reader=reader)))
    assert finding.where.dataset == "synthetic_shapes/test"


# --- healthy, quick, and without a trace ------------------------------------------------------------------------------


@pytest.mark.parametrize("make_one", [make, make_parts, make_rooms, make_pairs, make_pose])
def test_every_task_is_healthy(tmp_path: Path, make_one: Callable[[Path], TrainingSetup]) -> None:
    context = Context(make_one(tmp_path), World())
    assert judge(failed_evaluation, context) == []
    assert all(len(each.keys) == 4 and each.batch and each.stage == "record" for each in context.dry_evaluations)


def test_votes_and_an_average_are_healthy(tmp_path: Path) -> None:
    votes = ("evaluate.votes=2", "transforms.vote=[{name: rotate}]", "train.ema_decay=0.9")
    assert judge(failed_evaluation, Context(make(tmp_path, *votes), World())) == []


def test_numbers_of_an_untrained_model_that_no_metric_takes_are_no_fault(tmp_path: Path) -> None:
    """Running averages that have seen nothing may let a deep network overflow: `non-finite` looks at training."""
    built = make(tmp_path)
    with torch.no_grad():
        for parameter in built.job.model.parameters():
            parameter.fill_(1e30)
    context = Context(built, World())
    assert not bool(context.dry_evaluations[0].outputs["logits"].isfinite().all())
    assert judge(failed_evaluation, context) == []


def test_the_metric_of_the_run_is_not_updated(tmp_path: Path) -> None:
    class Counts(Sound):
        def __init__(self) -> None:
            self.calls = 0

        def update(self, state: State, *, probabilities: Tensor, label: Tensor) -> None:
            self.calls += 1
            super().update(state, probabilities=probabilities, label=label)

    own = Counts()
    run_quick(with_metric(make(tmp_path), own), World())
    assert own.calls == 0
