"""Training batches of one sample, which batch norm cannot normalise: found from the plan of all steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.contract.errors import ConfigError
from sightline.doctor.attempts import attempt
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.engine.train import TrainState
from sightline.workbench.check.dry_run import StepFailure, find_failure, isolated_copy, read_batch

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class BatchOfOne:
    """First step in which a process gets one sample, how it fails, why the plan has it, and settings without it."""

    step: int
    failure: StepFailure
    reason: str
    changes: Mapping[str, Any]

    @property
    def action(self) -> str:
        """What to do, with the settings, if any are known."""
        settings = " ".join(self.list_words()) or "another train.batch_size"
        return f"batch norm needs two samples: set {settings}"

    def list_words(self) -> list[str]:
        """List the settings as overrides of a config."""
        return [f"train.{key}={value}" for key, value in self.changes.items()]


def find_batch_of_one(built: TrainingSetup, world: World) -> BatchOfOne | None:
    """Run the first batch of one sample of the training on a copy; None if there is none, or if it succeeds.

    Batch norm over images succeeds, as an image has many values of a channel. One sample is run only if the model has
    batch norms that are not synchronised between processes.
    """
    job = built.job
    plan, is_synchronised = job.stream.plan, built.config.distributed.sync_batch_norm and world.size > 1
    has_norm = any(isinstance(module, _BATCH_NORMS) for module in job.model.modules())
    steps = [step for step in _list_kinds(plan) if step < job.num_steps and plan.smallest_part(step) == 1]
    if not steps or not has_norm or is_synchronised:
        return None
    failure = _fail(job, steps[0], world.device)
    if failure is None or "more than 1 value per channel" not in str(failure.error):
        return None
    return BatchOfOne(steps[0], failure, _describe(built), _find_changes(plan))


def refuse_batch_of_one(built: TrainingSetup, world: World) -> None:
    """Raise ConfigError if a step of the training is known to fail at a batch of one sample."""
    if (found := find_batch_of_one(built, world)) is not None:
        origin = built.config.origins.get("train.batch_size", "train.batch_size")
        raise ConfigError(f"{origin}: step {found.step} cannot be taken: {found.reason}; {found.action}")


def _list_kinds(plan: BatchSampler) -> tuple[int, int]:
    """Return a step of each size: the first, and the last of an epoch, which may be smaller."""
    return 0, plan.steps_per_epoch - 1


def _fail(job: TrainState, step: int, device: torch.device) -> StepFailure | None:
    model = isolated_copy(job.model).train()
    apply_freezing(model, job.frozen, job.stream.plan.compute_epoch(job.num_steps - 1))  # when the fewest are frozen

    def run() -> None:
        keys = min((part for micro in job.stream.plan.step_keys(step) for part in micro), key=len)
        with torch.no_grad():
            compute_batch_losses(job.task, model, read_batch(job, keys, device), device, job.precision)

    return find_failure(attempt("step", run, {}), "a batch of one sample", None)


def _describe(built: TrainingSetup) -> str:
    """Describe why a batch has one sample, with the share of the data if the config sets one."""
    plan, share = built.job.stream.plan, built.config.data.arguments.get("fraction", 1.0)
    of_share = "" if share == 1.0 else f", which data.fraction={share:g} leaves,"
    parts = [f"{plan.micro_batches} micro-batches"] if plan.micro_batches > 1 else []
    parts += [f"{plan.num_processes} processes"] if plan.num_processes > 1 else []
    of_parts = f" for {' and '.join(parts)}" if parts else ""
    samples = f"{len(plan.indices)} training samples{of_share} in batches of {plan.batch_size}{of_parts}"
    return f"{samples} make a batch of one sample"


def _find_changes(plan: BatchSampler) -> dict[str, Any]:
    """Find settings under which no batch has one sample, those that change least first; none if there are none."""
    for changes in _list_changes(plan):
        try:
            changed = dataclasses.replace(plan, **changes)
        except ConfigError:  # such as fewer samples than processes in the last batch
            continue
        if min(map(changed.smallest_part, _list_kinds(changed))) > 1:
            return changes
    return {}


def _list_changes(plan: BatchSampler) -> Iterator[dict[str, Any]]:
    yield from ({"tail": "drop"}, {"micro_batches": 1}, {"micro_batches": 1, "tail": "drop"})
    for more in range(1, 4 * plan.micro_batches * plan.num_processes + 2):
        yield {"batch_size": plan.batch_size + more}
