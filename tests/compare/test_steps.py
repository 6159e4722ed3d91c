"""Losses over optimiser steps: rounding is measured, and a wrong gradient shows a step later than a wrong layer."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sightline.contract import registry
from sightline.engine.learnt_losses import LearntLosses
from sightline.workbench.compare.steps import LossTrace, losses_over_steps, trace_losses
from sightline.workbench.compare.subject import ComparisonSubject
from sightline.workbench.compare.variants import backend_settings
from tests.compare.steps import CPU, variant
from tests.compare.test_planted import Leaking
from tests.runs.small import small_run

PLAIN = ("model={name: pointnet_plain, embedding: 32}", "losses=[{name: cross_entropy}]")


@pytest.fixture(scope="module")
def subject() -> ComparisonSubject:
    return make_subject()


def make_subject() -> ComparisonSubject:
    built = small_run(*PLAIN)
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    return ComparisonSubject(built, recipe, tuple(built.job.stream.plan.first_keys(4)), CPU)


def run(subject: ComparisonSubject, change: Callable[[Any], object] = lambda model: None) -> LossTrace:
    """The losses of four steps in float32, of a model that may be changed, beside float64."""
    job, recipe = subject.built.job, subject.recipe
    own, reference = (variant(job.model, precision) for precision in ("float32", "float64"))
    change(own.model)
    losses = losses_over_steps(own, job, recipe, own.batch(subject.batch), num_steps=4)
    return trace_losses(losses, reference, own.format, job, recipe, reference.batch(subject.batch))


def test_rounding_explains_float32(subject: ComparisonSubject) -> None:
    before = {name: tensor.clone() for name, tensor in subject.built.job.model.state_dict().items()}
    found = run(subject)
    assert found.first_diverging_step is None
    assert found.losses != found.expected
    assert list(found.tolerated) == sorted(found.tolerated), "what rounding did once, it goes on doing"
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.built.job.model.state_dict().items())


def test_a_model_that_keeps_a_lock_and_its_last_result_is_compared() -> None:
    """Neither of them can be copied; a module that keeps its attention for a picture has such a result."""
    subject = make_subject()
    model = subject.built.job.model
    model.lock = threading.Lock()  # type: ignore[assignment]
    model.register_forward_hook(lambda module, inputs, outputs: setattr(module, "last", outputs["logits"]))
    assert run(subject).first_diverging_step is None


def test_a_wrong_gradient_parts_the_losses_at_the_next_step(subject: ComparisonSubject) -> None:
    """The values are right, so the loss before the first update is; the update is not."""
    found = run(subject, lambda model: setattr(model.head[0].activation, "__class__", Leaking))
    assert found.first_diverging_step == 1


def test_a_loss_that_is_not_a_number_has_parted() -> None:
    assert LossTrace((1.0, float("nan")), (1.0, 1.0), (0.1, 0.1)).first_diverging_step == 1


def test_losses_that_learn_go_to_the_device_of_a_variant_and_back(
    subject: ComparisonSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, moves = torch.device("cuda"), list[torch.device]()
    monkeypatch.setattr(LearntLosses, "to", lambda losses, device: moves.append(device))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    on_gpu = dataclasses.replace(variant(subject.built.job.model), device=gpu)
    with contextlib.suppress(ZeroDivisionError), backend_settings(on_gpu, subject.built.job):
        assert moves == [gpu]
        raise ZeroDivisionError
    assert moves == [gpu, CPU]
