"""Samples to fit: the first of the training split, fixed, and without augmentation.

Score of fitted samples by the run's own metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.members import TransformMembers
from sightline.contract.types import Batch, ComponentConfig, SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.engine.batch_stream import BatchSampler
from sightline.engine.build import TrainingSetup, build_transforms
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses, single_batch_step
from sightline.engine.train import TrainState
from sightline.instrument import Inputs, ModuleCall, record
from sightline.parts.losses.embeddings import PairLoss
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.core.dry_run import forward_backward, isolated_copy

FEW = 4
"""Number of samples where one would show too little: batch norm over two rows gives +-1 for any input."""


@dataclass(frozen=True)
class Samples:
    """Samples to fit: `batch` is the input of every step, with each sample `repeats` times.

    `left_out` names the augmenting transforms that were not applied; `note` explains the choice to the reader.
    """

    keys: tuple[SampleKey, ...]
    reader: BatchReader
    batch: Batch
    repeats: int = 1
    left_out: tuple[str, ...] = ()
    note: str = ""

    @property
    def indices(self) -> list[int]:
        return [key.index for key in self.keys]


def choose_samples(built: TrainingSetup, *, num: int | None, with_augmentation: bool) -> Samples:
    """Choose the first `num` samples of the first epoch; if None, one, or four where one would show too little.

    Raises UserError for more samples than the split has, and for one sample if a loss compares samples.
    """
    reader, left_out = (_get_reader(built), ()) if with_augmentation else without_augmentation(built)
    pair_loss = loss_between_samples(built)
    size = len(built.data.train.indices)
    if pair_loss and num == 1:
        raise UserError(f"--samples 1: '{pair_loss}' compares samples with one another; give 2 or more")
    if num is not None and num > size:
        raise UserError(f"--samples {num}: the training part has {size} samples; give at most as many")
    needs_rows = not pair_loss and num in (None, 1) and not _accepts_one_sample(built, reader)
    note, repeats = "", 1
    if num is None:
        reason = pair_loss and f"'{pair_loss}' compares samples with one another"
        reason = reason or (needs_rows and "batch norm over vectors would normalise a single one to nothing") or ""
        if not reason and _has_one_target(built, reader):
            reason = "one has a single target, which a bias alone fits"
        num = min(FEW if reason else 1, size)
        note = f"{num} samples, since {reason}" if reason else ""
    elif num == 1 and needs_rows:
        repeats = 2
        note = "the sample is used twice: batch norm needs two rows; equal rows leave only its offsets"
    keys = first_keys(built, num)
    batch = reader([key for key in keys for _ in range(repeats)])
    return Samples(keys, reader, batch, repeats, left_out, note)


def without_augmentation(built: TrainingSetup) -> tuple[BatchReader, tuple[str, ...]]:
    """Build a reader of the training split without augmentation; return it and the names of omitted transforms.

    A training transform that evaluation has too is taken in its evaluation form. Of the others, and if the two forms do
    not add the same fields, only the transforms that choose points or add fields stay.
    """
    config, part, facts = built.config, built.data.train, built.data.facts
    evaluated = {block.name: block for block in config.transforms.evaluate}
    blocks: list[ComponentConfig] = []
    left_out: list[str] = []
    for block in config.transforms.train:
        adds, chooses = _describe_transform(block, facts)
        evaluation_block = evaluated.get(block.name)
        if evaluation_block is not None and not chooses and _describe_transform(evaluation_block, facts)[0] == adds:
            blocks.append(evaluation_block)
        elif adds or chooses:
            blocks.append(block)
        else:
            left_out.append(block.name)
    if blocks == list(config.transforms.train):
        return _get_reader(built), ()
    return BatchReader(part.dataset, build_transforms(blocks, facts)), tuple(left_out)


def _get_reader(built: TrainingSetup) -> BatchReader:
    reader = built.job.stream.reader
    assert isinstance(reader, BatchReader), "a run reads its training part through a BatchReader"
    return reader


def _describe_transform(block: ComponentConfig, facts: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """Return the fields that a transform adds, and True if it chooses points."""
    transform: Any = registry.transforms.build(block, facts=facts)
    return frozenset(TransformMembers.adds.get(transform)), TransformMembers.chooses_points.get(transform)


def loss_between_samples(built: TrainingSetup) -> str:
    """Return the name of a loss that compares samples; empty if there is none."""
    for component in built.config.losses:
        builder = registry.losses.entry(component).builder
        if isinstance(builder, type) and issubclass(builder, PairLoss):
            return component.name
    return ""


def first_keys(built: TrainingSetup, num: int) -> tuple[SampleKey, ...]:
    """Return the keys of the first samples of the first epoch, at most as many as there are."""
    indices = built.data.train.indices
    plan = BatchSampler(indices=indices, batch_size=min(num, len(indices)), seed=built.config.seed)
    return tuple(plan.step_keys(0)[0][0])


def _has_one_target(built: TrainingSetup, reader: BatchReader) -> bool:
    """Return True if every loss counts at most one target per sample: one label, not one per point."""
    job = built.job
    batch = to_device(reader(first_keys(built, 1)), job.device, float_dtype=job.precision.parameter_dtype)
    counts = single_batch_step(job.task, job.model, batch, job.device).counts
    return all(float(count) <= 1 for count in counts.values())


def _accepts_one_sample(built: TrainingSetup, reader: BatchReader) -> bool:
    """Return True if a training step accepts a single sample; batch norm over vectors does not.

    Other errors of the step are reported by the first step itself.
    """
    job = built.job

    def run() -> None:
        batch = to_device(reader(first_keys(built, 1)), job.device, float_dtype=job.precision.parameter_dtype)
        forward_backward(job, isolated_copy(job.model), [batch], job.device)

    missing = attempt("step", run, {})
    return not isinstance(missing, MissingError) or "more than 1 value per channel" not in str(missing.__cause__)


def evaluation_reader(built: TrainingSetup) -> BatchReader:
    """Build a reader of the training set with the transforms of evaluation."""
    part = built.data.train
    return BatchReader(part.dataset, build_transforms(built.config.transforms.evaluate, built.data.facts))


def training_score(built: TrainingSetup, job: TrainState, batch: Batch, indices: Sequence[int]) -> float:
    """Compute `evaluate.metric` on the fitted training samples, read as in evaluation, with the job's model.

    Batch norms first get the statistics of the fitted `batch`: running averages do not converge in a few steps. The
    model is changed.
    """
    _set_batch_statistics(job, batch)
    evaluator = dataclasses.replace(
        built.selection_evaluator,
        reader=evaluation_reader(built),
        indices=np.sort(np.array(indices, dtype=np.int64)),
        batch_size=len(indices),
        precision=job.precision,
        workers=0,
        voting_reader=None,
        votes=1,
    )
    return evaluator(job.model, World(device=job.device)).metrics[built.config.evaluate.metric]


def _set_batch_statistics(job: TrainState, batch: Batch) -> None:
    """Set the running statistics of batch norms that are not frozen to those of this batch, in place."""
    job.model.train()
    apply_freezing(job.model, job.frozen, 0)
    norms = {}
    for path, module in job.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the average of one batch is that batch's
            norms[path] = module
    with torch.no_grad(), record(norms, leave=_remove_bessel_correction):
        compute_batch_losses(job.task, job.model, batch, job.device, job.precision)


def _remove_bessel_correction(call: ModuleCall, norm: Any, inputs: Inputs, outputs: Any) -> None:
    """Convert the unbiased running variance (n - 1) to the biased one (n), by which the batch was normalised."""
    (values, *_), _ = inputs
    num = values.numel() // values.shape[1]
    if norm.num_batches_tracked == 1 and num > 1:
        norm.running_var.mul_((num - 1) / num)
