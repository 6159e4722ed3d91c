"""Learning rates that move nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.engine.build import TrainingSetup
from tests.doctor.planting import assert_healthy, caught, make
from tests.marks import long_but


def scheduled(built: TrainingSetup, schedule: Callable[[int], float]) -> TrainingSetup:
    return dataclasses.replace(built, job=dataclasses.replace(built.job, schedule=schedule))


@pytest.mark.parametrize("schedule", [lambda step: 0.0, lambda step: step // 10**6])
def test_zero_throughout(tmp_path: Path, schedule: Callable[[int], float]) -> None:
    finding = caught(scheduled(make(tmp_path), schedule), "zero-learning-rate", "optim.lr")
    assert "28 steps" in finding.measured
    assert finding.where.config_path == "schedule"


def test_a_base_rate_of_zero(tmp_path: Path) -> None:
    built = make(tmp_path)
    for group in built.job.optimizer.param_groups:
        group["base_lr"] = 0.0
    finding = caught(built, "zero-learning-rate", "optim.lr")
    assert finding.where.config_path == "optimizer.lr"
    assert finding.where.line == 6


def test_zero_after_a_step(tmp_path: Path) -> None:
    built = scheduled(make(tmp_path), lambda step: float(step < 10))
    finding = caught(built, "zero-learning-rate", "optim.scheduler", "warning")
    assert finding.where.step == 10
    assert "last 18 steps, 64%" in finding.measured


def test_a_warm_up_that_is_most_of_the_run(tmp_path: Path) -> None:
    built = scheduled(make(tmp_path), lambda step: max(0, step - 20) / 8)
    finding = caught(built, "zero-learning-rate", "optim.scheduler", "warning")
    assert "first 21 of 28" in finding.summary


def test_a_schedule_that_fails(tmp_path: Path) -> None:
    finding = caught(scheduled(make(tmp_path), lambda step: 1 / (5 - step)), "zero-learning-rate", "optim.scheduler")
    assert (finding.summary, finding.where.step) == ("the schedule fails at step 5", 5)
    assert "ZeroDivisionError" in finding.measured


@pytest.mark.parametrize(
    ("value", "told"),
    [(-0.5, "-0.05"), (float("nan"), "nan"), pytest.param(float("inf"), "inf", marks=pytest.mark.long)],
)
def test_a_rate_that_is_none(tmp_path: Path, value: float, told: str) -> None:
    built = scheduled(make(tmp_path), lambda step: value if step == 5 else 1.0)
    finding = caught(built, "zero-learning-rate", "optim.scheduler")
    assert finding.where.step == 5
    assert told in finding.measured


def test_a_rate_too_small_for_the_number_format(tmp_path: Path) -> None:
    """float32 weights of some 0.1 do not take changes of 1e-20."""
    built = make(tmp_path, "optimizer.lr=1e-20")
    finding = caught(_without_zeros(built), "zero-learning-rate", "optim.lr")
    assert "change no bit" in finding.summary
    assert finding.where.param is not None


def _without_zeros(built: TrainingSetup) -> TrainingSetup:
    """Biases of exactly 0 take any change, however small."""
    with torch.no_grad():
        for parameter in built.job.model.parameters():
            parameter[parameter == 0] = 0.5
    return built


@pytest.mark.parametrize(
    "overrides",
    [
        ("schedule={name: constant, warmup_epochs: 1}",),
        pytest.param(("schedule={name: cosine}",), marks=pytest.mark.long),
        pytest.param(("schedule={name: cosine, warmup_epochs: 0.5}",), marks=pytest.mark.long),
        ("schedule={name: one_cycle}",),
        pytest.param(("schedule={name: step, milestones: [1]}",), marks=pytest.mark.long),
        ("optimizer={name: adamw, lr: 1e-3}", "train.clip_norm=1.0"),
        ("optimizer={name: rmsprop, lr: 1e-3}", "train.ema_decay=0.9"),
        ("train.precision=bf16",),
        pytest.param(("train.precision=float64",), marks=pytest.mark.long),
        ("train.micro_batches=4",),
    ],
)
def test_healthy_runs(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert_healthy(make(tmp_path, *overrides))


def test_a_warm_up_from_exactly_zero(tmp_path: Path) -> None:
    assert_healthy(scheduled(make(tmp_path), lambda step: min(1.0, step / 5)))


class ClearsFirst(torch.optim.SGD):
    """Clears its gradients before it steps."""

    def step(self, closure: Any = None) -> Any:
        self.zero_grad(set_to_none=False)
        return super().step(closure)


class ForgetsFirst(torch.optim.Adam):
    """The same, by None, which is torch's default."""

    def step(self, closure: Any = None) -> Any:
        self.zero_grad()
        return super().step(closure)


class ClearsAfterwards(torch.optim.SGD):
    """Clears its gradients after it has used them."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        self.zero_grad()
        return result


def stepped_by(built: TrainingSetup, kind: type[torch.optim.Optimizer], **arguments: float) -> TrainingSetup:
    optimizer = kind(built.job.model.parameters(), lr=0.1, **arguments)  # type: ignore[call-arg]
    for group in optimizer.param_groups:
        group["base_lr"] = 0.1
    return dataclasses.replace(built, job=dataclasses.replace(built.job, optimizer=optimizer))


@pytest.mark.parametrize(
    ("kind", "weight_decay"),
    long_but([(ClearsFirst, 0.0), (ForgetsFirst, 0.01)], itertools.product((ClearsFirst, ForgetsFirst), (0.0, 0.01))),
)
def test_gradients_that_are_cleared_before_the_step(
    tmp_path: Path, kind: type[torch.optim.Optimizer], weight_decay: float
) -> None:
    finding = caught(
        stepped_by(make(tmp_path), kind, weight_decay=weight_decay), "zero-learning-rate", "optim.step_order"
    )
    assert finding.where.config_path == "optimizer"


def test_gradients_that_are_cleared_after_the_step_are_healthy(tmp_path: Path) -> None:
    assert_healthy(stepped_by(make(tmp_path), ClearsAfterwards))
