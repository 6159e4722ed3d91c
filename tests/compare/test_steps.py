"""Losses over optimiser steps: rounding is measured, and a wrong gradient shows a step later than a wrong layer."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.contract import registry
from sightline.engine.learnt_losses import LearntLosses
from sightline.workbench.compare.comparison import ComparisonSubject
from sightline.workbench.compare.steps import LossTrace, losses_over_steps, trace_losses
from sightline.workbench.compare.variants import ModelVariant, backend_settings, make_variant
from sightline.workbench.describe.report import first_samples
from tests.runs.small import small_run

CPU = torch.device("cpu")
PLAIN = ("model={name: pointnet_plain, embedding: 32}", "losses=[{name: cross_entropy}]")


@pytest.fixture(scope="module")
def subject() -> ComparisonSubject:
    built = small_run(*PLAIN)
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    return ComparisonSubject(built, recipe, tuple(first_samples(built.job, 4)), CPU)


def variant(subject: ComparisonSubject, precision: str) -> ModelVariant:
    return make_variant(subject.built.job.model, precision, CPU)


def run(subject: ComparisonSubject, own: ModelVariant, reference: ModelVariant, *, num_steps: int = 4) -> LossTrace:
    job, recipe = subject.built.job, subject.recipe
    losses = losses_over_steps(own, job, recipe, own.batch(subject.batch), num_steps=num_steps)
    return trace_losses(losses, reference, own.format, job, recipe, reference.batch(subject.batch))


def test_rounding_explains_float32(subject: ComparisonSubject) -> None:
    before = {name: tensor.clone() for name, tensor in subject.built.job.model.state_dict().items()}
    found = run(subject, variant(subject, "float32"), variant(subject, "float64"))
    assert found.first_diverging_step is None
    assert found.losses != found.expected
    assert list(found.tolerated) == sorted(found.tolerated), "what rounding did once, it goes on doing"
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.built.job.model.state_dict().items())


def test_a_model_that_keeps_a_lock_and_its_last_result_is_compared() -> None:
    """Neither of them can be copied; a module that keeps its attention for a picture has such a result."""
    built = small_run(*PLAIN)
    model = built.job.model
    model.lock = threading.Lock()  # type: ignore[assignment]
    model.register_forward_hook(lambda module, inputs, outputs: setattr(module, "last", outputs["logits"]))
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    subject = ComparisonSubject(built, recipe, tuple(first_samples(built.job, 4)), CPU)
    assert run(subject, variant(subject, "float32"), variant(subject, "float64")).first_diverging_step is None


def test_a_wrong_gradient_parts_the_losses_at_the_next_step(subject: ComparisonSubject) -> None:
    """The values are right, so the loss before the first update is; the update is not."""
    own: Any = variant(subject, "float32")
    own.model.head[0].activation.__class__ = _Leaking
    found = run(subject, own, variant(subject, "float64"))
    assert found.first_diverging_step == 1


class _Leaking(torch.nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input.relu().detach() + (input - input.detach())


def test_a_loss_that_is_not_a_number_has_parted() -> None:
    assert LossTrace((1.0, float("nan")), (1.0, 1.0), (0.1, 0.1)).first_diverging_step == 1


def test_losses_that_learn_go_to_the_device_of_a_variant_and_back(
    subject: ComparisonSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, moves = torch.device("cuda"), list[torch.device]()
    monkeypatch.setattr(LearntLosses, "to", lambda losses, device: moves.append(device))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    on_gpu = dataclasses.replace(variant(subject, "float32"), device=gpu)
    with contextlib.suppress(ZeroDivisionError), backend_settings(on_gpu, subject.built.job):
        assert moves == [gpu]
        raise ZeroDivisionError
    assert moves == [gpu, CPU]
