"""Score of fitted samples by the run's own metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sightline.data.loading.batch_reader import BatchReader
from sightline.engine.build import TrainingSetup, build_transforms
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.types import Batch

__all__ = ["evaluation_reader", "training_score"]


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
    handles = []
    for module in job.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the average of one batch is that batch's
            handles.append(module.register_forward_hook(_remove_bessel_correction))
    with torch.no_grad():
        compute_batch_losses(job.task, job.model, batch, job.device, job.precision)
    for handle in handles:
        handle.remove()


def _remove_bessel_correction(norm: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
    """Convert the unbiased running variance (n - 1) to the biased one (n), by which the batch was normalised."""
    num = inputs[0].numel() // inputs[0].shape[1]
    if norm.num_batches_tracked == 1 and num > 1:
        norm.running_var.mul_((num - 1) / num)
