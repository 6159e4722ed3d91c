"""A configured run as a subject of the doctor: its model, weighted losses, optimiser, and batches of both readers."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sightline.contract.types import Batch as RunBatch
from sightline.contract.types import SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.check import examine_subject, measure_subject_levels
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.examine import Examination, examine, list_rules
from sightline.doctor.finding import SEVERITIES, Finding
from sightline.doctor.forms.form import CalledForm, call_model, make_keyed_form
from sightline.doctor.forms.tried_forms import find_read_keys
from sightline.doctor.rules import Rule, find_by
from sightline.doctor.rules.model import rectified_outputs
from sightline.doctor.subject import Subject
from sightline.engine.build import TrainingSetup
from sightline.engine.device.transfer import to_device
from sightline.engine.optimizers import apply_freezing
from sightline.engine.run_data import DataSubset
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import isolated_copy, read_batch, step_keys
from sightline.workbench.check.loss_subjects import RunLoss, make_loss_subjects
from sightline.workbench.check.targets.chance import measure_chances
from sightline.workbench.check.trained_record import make_trained_record

_NUM_BATCHES, _NUM_SAMPLES, _PASS_S, _SLOW_S = 4, 8, 0.1, 1.0
_JUDGED_OTHERWISE = {"first-step", "large-update"}
"""Relations that a check of the run asks of its own steps, which know the schedule and the whole batch."""
_OF_LOSSES = {"loss", "samples", "targets", "terms", "pairs"}
"""Modules of the rules that are asked of each loss alone."""
_PLACES = {
    "data": "data",
    "geometry": "data",
    "samples": "losses",
    "targets": "losses",
    "loss": "losses",
    "model": "model",
    "symmetry": "model",
    "indices": "model",
    "counted": "losses",
    "run": "model",
    "outcomes": "model",
    "non_finite": "model",
}
"""Key of the config that the rules of a module judge, where a finding has none."""


def examine_run(context: Context, *, is_deep: bool = False) -> tuple[Examination, list[Finding]]:
    """Judge a run by the rules of what a run alone has: config, data, area, records, and if asked for layers."""
    given: dict[str, Any] = {"run": context, **({"deep": context} if is_deep else {})}
    if context.trained is not None and context.world.size == 1:
        trained = context.trained
        given["record"] = make_trained_record(context, trained)
        curve = [(line["step"], line.get("loss/total")) for line in trained.read_lines() if line["split"] == "train"]
        given["loss_curve"] = [(step, loss) for step, loss in curve if loss is not None]
        given["level_source"] = lambda: measure_run_levels(context.built, trained.load())
        given["chance_source"] = lambda: measure_chances(context.built, trained.load())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        examination = examine(
            Evidence(given, math.inf), declared=context.config.checks.skip, progress=context.examination.note_rule
        )
    context.examination.judgements += examination.judgements
    return examination, _locate_all(examination, context, otherwise="data")


def examine_relations(context: Context) -> list[Finding]:
    """Judge the parts of a run by the relations, a slow one by few samples; findings are located in the config."""
    pass_s = context.pass_s / context.dry_run.num_samples
    num_samples = min(_NUM_SAMPLES, max(2, int(_PASS_S / max(pass_s, 1e-9)))) if pass_s < _SLOW_S else 1
    if num_samples == 1:
        context.examination.gaps.append(f"relations of several samples: one takes {pass_s:.1f} s")
    subject = attempt("subject", make_run_subject, {"built": context.built, "num_samples": num_samples})
    if isinstance(subject, MissingError):
        context.examination.gaps.append(f"relations: {subject.reason}")
        return []
    if isinstance(subject.form, CalledForm) and isinstance(loss := subject.form.loss, RunLoss):
        context.examination.note_work(lambda: f"{loss.num_calls} losses computed")
    skipped = {*context.config.checks.skip}
    examination = examine_subject(
        subject,
        declared=skipped | _JUDGED_OTHERWISE,
        budget=context.budget,
        progress=context.examination.note_rule,
    )
    context.examination.gaps += examination.gaps
    judged = [each for each in examination.judgements if each.outcome != "declared" or each.rule.code in skipped]
    context.examination.judgements += judged
    alone = examine_losses(context)
    known = {finding.code for finding in alone}
    return alone + [f for f in _locate_all(examination, context, otherwise="optimizer") if f.code not in known]


def examine_losses(context: Context) -> list[Finding]:
    """Judge each loss of a run alone, by the rules of losses."""
    own = {rule.code for rule in list_rules() if _get_module(rule) in _OF_LOSSES}
    others = {rule.code for rule in list_rules()} - own | {"other-samples", "label-input"}
    declared = {*context.config.checks.skip, *others}
    found, judged = [], set()
    for name, subject, term in make_loss_subjects(context):
        budget = context.budget.divide(3 if context.is_quick else 2)[0]
        examination = examine_subject(subject, declared=declared, budget=budget, term=term)
        judged.add(name)
        found += [_locate(each, context, context.loss_path(name)) for each in examination.findings]
        context.examination.judgements += [e for e in examination.judgements if e.outcome in ("held", "broken")]
    context.examination.gaps += [f"the loss '{c.name}', alone" for c in context.config.losses if c.name not in judged]
    return found


def _get_module(rule: Rule) -> str:
    return rule.judge.__module__.rpartition(".")[2]


def _locate_all(examination: Examination, context: Context, *, otherwise: str) -> list[Finding]:
    """Locate the findings in the config, each by the module of its rule."""
    found = [(_PLACES.get(_get_module(j.rule), otherwise), f) for j in examination.judgements for f in j.findings]
    located = [_locate(finding, context, path) for path, finding in found]
    return sorted(located, key=lambda finding: SEVERITIES.index(finding.severity))


def _locate(finding: Finding, context: Context, path: str) -> Finding:
    """Add the name of the data set to a split's, and the file and line of a config path, where there is no file."""
    data = context.built.data
    if finding.where.dataset in (data.train.split, data.selection.split, data.test.split):
        named = dataclasses.replace(finding.where, dataset=f"{context.config.data.name}/{finding.where.dataset}")
        finding = dataclasses.replace(finding, where=named)
    if finding.where.file is not None or not (finding.where.config_path or path):
        return finding
    known = {name: value for name, value in vars(finding.where).items() if value is not None}
    return dataclasses.replace(finding, where=context.place(known.pop("config_path", path), **known))


def make_run_subject(built: TrainingSetup, *, num_samples: int) -> Subject:
    """Make the subject of a run; a model of which a part is frozen now is a copy, which no optimiser steps."""
    job = built.job
    model = isolated_copy(job.model).train() if job.frozen else job.model
    apply_freezing(model, job.frozen, job.epoch)
    keys = [key for step in range(_NUM_BATCHES) for key in step_keys(job, step=step % max(1, job.num_steps))]
    batches = [read_batch(job, chunk, job.device) for chunk in _divide(keys, num_samples)]
    loss, optimizers = RunLoss(job, step=job.step, precision=job.precision), [] if job.frozen else [job.optimizer]
    inputs = find_read_keys(model, batches[0])
    form = make_keyed_form(model, loss, inputs, _find_targets(loss, model, batches[0], inputs))
    evaluation = [form.split(batch) for batch in _read_evaluation(built, num_samples)]
    train, selection = built.data.train, built.data.selection
    loader, others = (_make_loader(part, built, num_samples) for part in (train, selection))
    if selection.dataset is train.dataset and np.array_equal(selection.indices, train.indices):
        others = None  # evaluation on all that is trained on is meant
    training = [form.split(batch) for batch in batches]
    return Subject(model, form, training, evaluation, optimizers, loader, others)


def measure_run_levels(built: TrainingSetup, model: nn.Module) -> Levels:
    """Measure the losses of a run's trained network, of zeros, and of the best constants, on a few training samples."""
    subject = dataclasses.replace(make_run_subject(built, num_samples=_NUM_SAMPLES), model=model)
    return measure_subject_levels(subject)


def _ask(subject: Subject, name: str) -> Any:
    """Make a measurement of a subject, or return why it is missing."""
    return attempt(name, Evidence({"subject": subject}, math.inf).get, {"name": name})


def find_rectified(built: TrainingSetup) -> list[Finding]:
    """List the outputs of a run that a ReLU at the end of its network keeps from their targets."""
    subject = attempt("subject", make_run_subject, {"built": built, "num_samples": 2})
    found = MissingError("failed", "") if isinstance(subject, MissingError) else _ask(subject, "rectified")
    findings = [] if isinstance(found, MissingError) else find_by(rectified_outputs, rectified=found)
    return [dataclasses.replace(each, where=dataclasses.replace(each.where, config_path="model")) for each in findings]


def _find_targets(loss: RunLoss, model: nn.Module, batch: RunBatch, inputs: Sequence[str]) -> tuple[str, ...]:
    """Find the keys of a batch without which the loss of a pass is another, or fails; a task reads all to choose."""

    def ask(keys: Collection[str]) -> float | None:
        given = {key: value for key, value in batch.items() if key in keys}
        value = attempt("loss", loss, {"outputs": outputs, "batch": given})
        return None if isinstance(value, MissingError) else float(value)

    with torch.no_grad():
        call = {"model": isolated_copy(model), "inputs": {key: batch[key] for key in inputs}}
        outputs = attempt("model", call_model, call)
        whole = ask(batch.keys())
        needed = tuple(key for key in batch if ask(batch.keys() - {key}) != whole)
    return needed if whole is not None and needed else tuple(batch)


def _read_evaluation(built: TrainingSetup, num_samples: int) -> list[RunBatch]:
    part, job = built.data.selection, built.job
    indices = part.evenly_spaced_indices(_NUM_BATCHES * num_samples)
    chunks = _divide([SampleKey(int(index), 0, built.config.seed) for index in indices], num_samples)
    dtype = job.precision.parameter_dtype
    return [to_device(built.selection_evaluator.reader(chunk), job.device, float_dtype=dtype) for chunk in chunks]


def _divide(keys: Sequence[SampleKey], size: int) -> list[list[SampleKey]]:
    """Divide keys into a few batches of one size; all in one, if they are fewer."""
    whole = range(0, len(keys) - size + 1, size)
    return [list(keys[start : start + size]) for start in whole][:_NUM_BATCHES] or [list(keys)]


def _make_loader(part: DataSubset, built: TrainingSetup, size: int) -> DataLoader[RunBatch] | None:
    """Make a loader of the samples of a part; none of ragged samples, whose rows are no samples."""
    is_ragged = any(key.endswith("offsets") for key in part.reader.keys)
    return None if is_ragged else DataLoader(RunSamples(part, built.config.seed), batch_size=size, shuffle=True)


class RunSamples(Dataset[RunBatch]):
    """Samples of a part by their number; the epoch, which augmentation depends on, is drawn from torch's generator."""

    def __init__(self, part: DataSubset, seed: int) -> None:
        self.part = part
        self.seed = seed

    def __len__(self) -> int:
        return len(self.part.indices)

    def __getitem__(self, number: int) -> RunBatch:
        epoch = int(torch.randint(1000, ()))
        batch = self.part.reader([SampleKey(int(self.part.indices[number]), epoch, self.seed)])
        return {key: value[0] for key, value in batch.items() if isinstance(value, Tensor) and len(value) == 1}
