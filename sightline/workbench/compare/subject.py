"""Subject of a comparison: the training setup of a run or config, and the samples and steps that are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sightline.contract import registry
from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.device.numerics import set_backends
from sightline.engine.optimizers import OptimizerSpec
from sightline.engine.run_loading import OpenRun

_MAX_NUMBERS = 2**18
"""Numbers per sample (64 x 64 x 64 voxels) above which one sample is compared, over two steps."""


@dataclass(frozen=True)
class ComparisonSubject:
    """Subject of a comparison: a run's training setup, its optimizer recipe, and the sample keys of one step."""

    built: TrainingSetup
    recipe: OptimizerSpec
    keys: Sequence[SampleKey]
    device: torch.device

    @property
    def batch(self) -> Batch:
        """The samples as the loop reads them, before they go to a device."""
        return self.built.job.stream.reader(list(self.keys))


def make_subject(
    opened: OpenRun, samples: int | None, steps: int | None, *, note: Callable[[str], object]
) -> tuple[ComparisonSubject, int]:
    """Build what is compared of an opened run or config, and the number of optimiser steps; both have defaults."""
    config = opened.config
    set_backends(config.train)
    built = _build_setup(opened, note)
    recipe = registry.optimizers.build(config.optimizer, facts=built.data.facts)
    is_large = _count_inputs(built) > _MAX_NUMBERS
    count = samples or min(1 if is_large else 4, built.config.train.num_samples)
    num_steps = steps if steps is not None else 2 if is_large else 5
    keys = built.job.stream.plan.first_keys(count)
    return ComparisonSubject(built, recipe, tuple(keys), opened.world.device), num_steps


def _count_inputs(built: TrainingSetup) -> int:
    """Count the numbers of one sample that the model reads."""
    batch = built.job.stream.reader(built.job.stream.plan.first_keys(1))
    names = inspect.signature(built.job.model.forward).parameters
    return sum(tensor.numel() for name, value in batch.items() if name in names for _, tensor in tree_leaves(value))


def _build_setup(opened: OpenRun, note: Callable[[str], object]) -> TrainingSetup:
    """Build the training setup with the initial weights, or for a run directory with the trained ones."""
    if opened.config.init is not None and opened.files is None:
        return opened.training_setup
    built = build(opened.config, opened.world, is_resumed=True)
    note(f"batch: the first samples of data set '{opened.config.data.name}', with its training transforms")
    if opened.files is not None:
        opened.load_into(built.job.model)
    return built
