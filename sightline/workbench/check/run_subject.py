"""A configured run as a subject of the doctor: its model, weighted losses, optimiser, and batches of both readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.check import examine_subject, make_subject
from sightline.doctor.examine import Examination, list_rules
from sightline.doctor.finding import Finding
from sightline.doctor.subject import Subject
from sightline.engine.build import TrainingSetup
from sightline.engine.device import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import single_batch_step
from sightline.workbench.check.context import Context
from sightline.workbench.check.core.dry_run import isolated_copy, read_batch, step_keys
from sightline.workbench.check.oracles.results import FixedOutputs

_BUDGETS_S = {True: 3.0, False: 1.0}
"""Processor time of the relations, by whether a check was asked for, or a training starts."""
_NUM_BATCHES, _NUM_SAMPLES, _PASS_S, _SLOW_S = 4, 8, 0.1, 1.0
_PLACES = {"data": "data", "samples": "losses", "loss": "losses", "model": "model", "optimiser": "optimizer"}
_PLACES |= {"targets": "data", "run": "train", "state": "model"}
"""Key of the config that the rules of a module judge."""


def examine_run(context: Context) -> tuple[Examination, list[Finding]]:
    """Judge a run by the rules of the doctor, a slow one by few samples; findings are located in the config."""
    rehearsal = context.dry_run
    pass_s = rehearsal.forward_s / max(1, rehearsal.num_samples)
    num_samples = min(_NUM_SAMPLES, max(2, int(_PASS_S / max(pass_s, 1e-9)))) if pass_s < _SLOW_S else 1
    if num_samples == 1:
        context.examination.gaps.append(f"relations of several samples: one takes {pass_s:.1f} s")
    subject = make_run_subject(context.built, num_samples=num_samples)
    skip = context.config.checks.skip
    examination = examine_subject(subject, declared=skip, budget_s=_BUDGETS_S[context.is_thorough])
    paths = {rule.code: _PLACES[rule.judge.__module__.rpartition(".")[2]] for rule in list_rules()}
    return examination, [_locate(finding, context, paths[finding.code]) for finding in examination.findings]


def _locate(finding: Finding, context: Context, path: str) -> Finding:
    known = {name: value for name, value in vars(finding.where).items() if value is not None}
    return dataclasses.replace(finding, where=context.place(path, **known))


def make_run_subject(built: TrainingSetup, *, num_samples: int) -> Subject:
    """Make the subject of a run; a model of which a part is frozen now is a copy, which no optimiser steps."""
    job = built.job
    model = isolated_copy(job.model).train() if job.frozen else job.model
    apply_freezing(model, job.frozen, job.epoch)
    keys = [key for step in range(_NUM_BATCHES) for key in step_keys(job, step=step % max(1, job.num_steps))]
    batches = [read_batch(job, chunk, job.device) for chunk in _divide(keys, num_samples)]
    evaluation = _read_evaluation(built, num_samples)
    optimizer = None if job.frozen else job.optimizer
    return make_subject(model, RunLoss(built), batches, optimizer, evaluation=evaluation or None)


def _read_evaluation(built: TrainingSetup, num_samples: int) -> list[Batch]:
    part, job = built.data.selection, built.job
    indices = part.evenly_spaced_indices(_NUM_BATCHES * num_samples)
    chunks = _divide([SampleKey(int(index), 0, built.config.seed) for index in indices], num_samples)
    dtype = job.precision.parameter_dtype
    return [to_device(built.selection_evaluator.reader(chunk), job.device, float_dtype=dtype) for chunk in chunks]


def _divide(keys: Sequence[SampleKey], size: int) -> list[list[SampleKey]]:
    """Divide keys into a few batches of one size; all in one, if they are fewer."""
    whole = range(0, len(keys) - size + 1, size)
    return [list(keys[start : start + size]) for start in whole][:_NUM_BATCHES] or [list(keys)]


class RunLoss:
    """Weighted mean losses of a run as one function of the outputs and the batch."""

    def __init__(self, built: TrainingSetup) -> None:
        self._job = built.job
        self._weights = built.job.loss_weights_at(built.job.step)

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> Tensor:
        """Compute the loss that a step of the run minimises."""
        model = FixedOutputs(outputs)
        step = single_batch_step(self._job.task, model, batch, self._job.device, self._job.precision)
        means = step.loss_means(step.loss_sums(model))
        total: Tensor = sum(self._weights[name] * mean for name, mean in means.items())  # type: ignore[assignment]
        return total
