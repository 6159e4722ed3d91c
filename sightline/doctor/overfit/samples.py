"""The samples to be fitted: the first of the training part, held fixed, without what augmentation does to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline import registry
from sightline.data.loading.batch_reader import BatchReader
from sightline.doctor.core.dry_run import forward_backward, isolated_copy
from sightline.engine.batch_stream import BatchSampler
from sightline.engine.build import TrainingSetup, build_transforms
from sightline.engine.device import to_device
from sightline.engine.step import single_batch_step
from sightline.errors import UserError
from sightline.losses.contrast import PairLoss
from sightline.optional_members import TransformMembers
from sightline.types import Batch, ComponentConfig, SampleKey

__all__ = ["Samples", "choose_samples", "loss_between_samples", "without_augmentation"]

FEW = 4
"""Where one sample would show too little: batch norm over two rows gives +-1 for any input."""


@dataclass(frozen=True)
class Samples:
    """What is fitted. `batch` is what every step is given; `repeats` is how often each sample stands in it.

    `left_out` names the training transforms that are augmentation and were not applied; `note` is what else a reader
    should know of the choice.
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
    """The first `num` samples of the first epoch; of one where None, or of four where one would show too little.

    Raises UserError for more samples than there are, and for one sample where losses compare samples.
    """
    reader, left_out = (_reader(built), ()) if with_augmentation else without_augmentation(built)
    compares = loss_between_samples(built)
    size = len(built.data.train.indices)
    if compares and num == 1:
        raise UserError(f"--samples 1: '{compares}' compares samples with one another; give 2 or more")
    if num is not None and num > size:
        raise UserError(f"--samples {num}: the training part has {size} samples; give at most as many")
    needs_rows = not compares and num in (None, 1) and not _takes_one(built, reader)
    note, repeats = "", 1
    if num is None:
        reason = compares and f"'{compares}' compares samples with one another"
        reason = reason or (needs_rows and "batch norm over vectors would normalise a single one to nothing") or ""
        if not reason and _has_one_target(built, reader):
            reason = "one has a single target, which a bias alone fits"
        num = min(FEW if reason else 1, size)
        note = f"{num} samples, since {reason}" if reason else ""
    elif num == 1 and needs_rows:
        repeats = 2
        note = "the sample stands twice: batch norm needs two rows, and of equal ones it leaves only its offsets"
    keys = _first_keys(built, num)
    batch = reader([key for key in keys for _ in range(repeats)])
    return Samples(keys, reader, batch, repeats, left_out, note)


def without_augmentation(built: TrainingSetup) -> tuple[BatchReader, tuple[str, ...]]:
    """A reader of the training part without augmentation, and the names of what it leaves out.

    A training transform that evaluation has too is taken in the form that evaluation gives it. Of the others, and where
    the two forms do not make the same fields, those are kept that samples cannot do without: that choose points, or add
    fields.
    """
    config, part, facts = built.config, built.data.train, built.data.facts
    evaluated = {block.name: block for block in config.transforms.evaluate}
    kept: list[ComponentConfig] = []
    left_out: list[str] = []
    for block in config.transforms.train:
        adds, chooses = _makes(block, facts)
        other = evaluated.get(block.name)
        if other is not None and not chooses and _makes(other, facts)[0] == adds:
            kept.append(other)
        elif adds or chooses:
            kept.append(block)
        else:
            left_out.append(block.name)
    if kept == list(config.transforms.train):
        return _reader(built), ()
    return BatchReader(part.dataset, build_transforms(kept, facts)), tuple(left_out)


def _reader(built: TrainingSetup) -> BatchReader:
    reader = built.job.stream.reader
    assert isinstance(reader, BatchReader), "a run reads its training part through a BatchReader"
    return reader


def _makes(block: ComponentConfig, facts: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """The fields that a transform adds, and whether it chooses points."""
    transform: Any = registry.transforms.build(block, facts=facts)
    return frozenset(TransformMembers.adds.get(transform)), TransformMembers.chooses_points.get(transform)


def loss_between_samples(built: TrainingSetup) -> str:
    """The name of a loss between samples; empty where there is none."""
    for component in built.config.losses:
        builder = registry.losses.entry(component).builder
        if isinstance(builder, type) and issubclass(builder, PairLoss):
            return component.name
    return ""


def _first_keys(built: TrainingSetup, num: int) -> tuple[SampleKey, ...]:
    plan = BatchSampler(indices=built.data.train.indices, batch_size=num, seed=built.config.seed)
    return tuple(plan.step_keys(0)[0][0])


def _has_one_target(built: TrainingSetup, reader: BatchReader) -> bool:
    """Whether no loss counts more than one thing in a sample: a label, and not a label for each of many points."""
    job = built.job
    batch = to_device(reader(_first_keys(built, 1)), job.device, float_dtype=job.precision.parameter_dtype)
    counts = single_batch_step(job.task, job.model, batch, job.device).counts
    return all(float(count) <= 1 for count in counts.values())


def _takes_one(built: TrainingSetup, reader: BatchReader) -> bool:
    """Whether a step in training mode takes a single sample; batch norm over vectors does not.

    The first step itself reports what else may fail in it.
    """
    job = built.job
    try:
        batch = to_device(reader(_first_keys(built, 1)), job.device, float_dtype=job.precision.parameter_dtype)
        forward_backward(job, isolated_copy(job.model), [batch], job.device)
    except Exception as error:  # noqa: BLE001 - any other is met again, and reported, by the first step
        return "more than 1 value per channel" not in str(error)
    return True
