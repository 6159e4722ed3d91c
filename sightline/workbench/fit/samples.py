"""Samples to fit: the first of the training split, without augmentation, the losses they can have, and their score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.types import Batch, ComponentConfig
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.levels import LossBounds
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.build import TrainingSetup
from sightline.engine.device.numerics import Precision
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.run_data import build_transforms
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.instrument import Inputs, ModuleCall, record
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.dry_run import isolated_copy
from sightline.workbench.check.loss_subjects import RunLoss, make_subject_of_outputs

FEW = 4
"""Default number of samples; one would show too little: batch norm over two rows gives +-1 for any input."""


@dataclass(frozen=True)
class Samples:
    """Samples to fit: `batch` is the input of every step.

    `left_out` names the augmenting transforms that were not applied.
    """

    indices: list[int]
    batch: Batch
    left_out: tuple[str, ...]

    def describe(self) -> str:
        """Describe the samples in one line."""
        indices = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        return f"samples {indices}" + (f"; without {', '.join(self.left_out)}" if self.left_out else "")


def choose_samples(built: TrainingSetup, num: int | None) -> Samples:
    """Choose the first `num` samples of the first epoch. Raises UserError for more samples than the split has."""
    size = len(built.data.train.indices)
    if num is not None and num > size:
        raise UserError(f"--samples {num}: the training part has {size} samples; give at most as many")
    reader, left_out = _without_augmentation(built)
    plan = BatchSampler(indices=built.data.train.indices, batch_size=min(num or FEW, size), seed=built.config.seed)
    keys = plan.step_keys(0)[0][0]
    return Samples([key.index for key in keys], reader(keys), left_out)


def move_batch(batch: Batch, job: TrainState, precision: Precision) -> Batch:
    """Move a batch to the device of a job, in a number format."""
    moved: Batch = to_device(batch, job.device, float_dtype=precision.parameter_dtype)
    return moved


def copy_without_dropout(job: TrainState) -> nn.Module:
    """Copy a job's model without dropout, and without collectives of processes."""
    model = isolated_copy(job.model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def measure_bounds(built: TrainingSetup, batch: Batch) -> LossBounds:
    """Measure the losses of a run on a batch that need no network, at the weights of losses after their ramps."""
    job = built.job
    model = copy_without_dropout(job).train()
    apply_freezing(model, job.frozen, 0)
    with torch.no_grad(), record({"": model}, keep=("outputs",), convert=None) as tape:
        compute_batch_losses(job.task, model, move_batch(batch, job, job.precision), job.device, job.precision)
    precision = Precision("float64")
    loss = RunLoss(job, step=job.num_steps, precision=precision)
    subject = make_subject_of_outputs(loss, tape.outputs[-1], move_batch(batch, job, precision))
    bounds: LossBounds = Evidence({"subject": subject}, math.inf).get("bounds")
    return bounds


def _without_augmentation(built: TrainingSetup) -> tuple[BatchReader, tuple[str, ...]]:
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
    return BatchReader(part.dataset, build_transforms(blocks, facts)), tuple(left_out)


def _describe_transform(block: ComponentConfig, facts: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """Return the fields that a transform adds, and True if it chooses points."""
    transform: Any = registry.transforms.build(block, facts=facts)
    return frozenset(transform.adds), transform.chooses_points


def evaluation_reader(built: TrainingSetup) -> BatchReader:
    """Build a reader of training samples with the transforms of evaluation."""
    transforms = build_transforms(built.config.transforms.evaluate, built.data.facts)
    return BatchReader(built.data.train.dataset, transforms)


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
