"""What reaches the losses of a run in its first epoch: its targets, beside those of the same samples in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.dataset import Dataset
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import NotApplicableError
from sightline.engine.build import TrainingSetup
from sightline.engine.run_data import read_with
from sightline.engine.train import TrainState
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.parts.tasks.supervised import Supervised
from sightline.runs.inputs import Range, find_range
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.sample_statistics import count_bytes, count_to_read, read_samples

_CHUNK_SIZE, _FEWEST, _NUM_AGAIN, _MAX_BYTES = 16, 8, 4, 1 << 26
_MAX_CLASSES = 4_096
_OF_BOXES = frozenset(("boxes", "label", "is_ignored"))
"""Fields that a task makes its targets of."""


@dataclass(frozen=True)
class Target:
    """Targets of samples under one key of the batches: `values` as they reach the loss, in the order of the steps.

    `own` are those of the same samples as evaluation reads them, None where it has no such key; `raw` are those of the
    data set before any transform. `are_classes` tells whole numbers, of which `ignored` are no class. With `is_drawn`,
    evaluation has others in another epoch: a transform draws them, such as the turn that a network is to tell.
    `changed_by` names the transforms of training that change them.
    """

    name: str
    values: list[np.ndarray]
    own: list[np.ndarray] | None
    raw: list[np.ndarray] | None
    ignored: frozenset[int] = frozenset()
    is_drawn: bool = False
    changed_by: tuple[str, ...] = ()

    @property
    def are_classes(self) -> bool:
        """True for whole numbers, of which each is a class."""
        return self.values[0].dtype.kind in "iu"

    @property
    def stated(self) -> list[np.ndarray] | None:
        """What evaluation has of these samples, or else the data set."""
        return self.own if self.own is not None else self.raw

    def count(self, values: Sequence[np.ndarray]) -> dict[int, int]:
        """Count the classes of samples, those that are ignored left out."""
        classes, counts = np.unique(np.concatenate([each.ravel() for each in values]), return_counts=True)
        pairs = zip(classes.tolist(), counts.tolist(), strict=True)
        return {label: count for label, count in pairs if label not in self.ignored}

    def list_classes(self, values: Sequence[np.ndarray]) -> list[set[int]]:
        """List the classes of each sample, those that are ignored left out."""
        return [set(np.unique(each).tolist()) - self.ignored for each in values]

    @property
    def ignored_share(self) -> float:
        """Share of the targets that are of no class."""
        size = sum(each.size for each in self.values)
        return 1 - sum(self.count(self.values).values()) / max(size, 1) if self.are_classes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; whole numbers of too many values are no classes."""
        counts = {str(label): count for label, count in self.count(self.values).items()} if self.are_classes else None
        counts = counts if counts is None or len(counts) <= _MAX_CLASSES else None
        return {"classes": counts, "ignored_share": self.ignored_share, "zero_share": self.zero_share}

    @property
    def zero_share(self) -> float:
        """Share of the targets that are 0."""
        return sum(int((each == 0).sum()) for each in self.values) / max(sum(each.size for each in self.values), 1)


@dataclass(frozen=True)
class Reaching:
    """Targets that reach the losses of a run, and ranges of numbers, over the first `samples` of the first epoch.

    `steps` is the step, from 1, of each sample. With `are_mixed`, transforms of training combine samples. `inputs` are
    ranges of what reaches the model, `fields` those of the data set's own samples, before any transform.
    """

    targets: list[Target]
    inputs: Mapping[str, Range]
    fields: Mapping[str, Range]
    samples: list[int]
    steps: list[int]
    are_mixed: bool

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON: counts, shares and ranges, no target of a sample."""
        return {
            "samples": len(self.samples),
            "last_step": self.steps[-1] if self.steps else 0,
            "targets": {target.name: target.to_dict() for target in self.targets},
            "inputs": dict(self.inputs),
            "fields": dict(self.fields),
        }


@dataclass
class _Columns:
    """Targets by name, sample by sample, as they were read in one way; a name that some sample lacks is left out."""

    names: frozenset[str]
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    num_samples: int = 0

    def add(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Add the samples of a batch."""
        for name in self.names:
            arrays = [_to_array(sample.get(name)) for sample in samples]
            found = [each for each in arrays if each is not None]
            self.values.setdefault(name, []).extend(found)
        self.num_samples += len(samples)

    def get(self, name: str) -> list[np.ndarray] | None:
        """Return the targets of all samples, or None."""
        found = self.values.get(name, [])
        return found if found and len(found) == self.num_samples else None


def read_reaching(built: TrainingSetup, *, is_quick: bool) -> Reaching:
    """Read the targets and inputs of the first samples of the first epoch, as the training does, and as evaluation.

    Raises NotApplicableError for a task whose losses name no targets.
    """
    job, part = built.job, built.data.train
    if not isinstance(part.reader, BatchReader):
        raise NotApplicableError("a reader of the user's own")
    names, inputs = _list_read(unwrap_distillation(job.task), part.reader)
    if not names:
        raise NotApplicableError("a task whose losses name no targets")
    evaluated = read_with(built.config, part, "evaluate", part).reader
    given, own, raw = (_Columns(names) for _ in range(3))
    ranges, fields = dict[str, Range](), dict[str, Range]()
    samples, steps, drawn, changes = list[int](), list[int](), set[str](), dict[tuple[str, str], None]()
    for step, keys in _choose_keys(job, part.dataset, is_quick=is_quick):
        batch = job.stream.reader(keys)
        rows = _split(batch, part.reader, len(keys))
        given.add(rows)
        for row, key in enumerate(keys):
            stages = [stage for _, stage in evaluated.sample_stages(key)]
            raw.add(stages[:1])
            own.add(stages[-1:])
            if row < _NUM_AGAIN and not samples:
                *_, (_, again) = evaluated.sample_stages(dataclasses.replace(key, epoch=key.epoch + 1))
                changes |= _list_changes(part.reader, key, names)
                drawn |= {name for name in names if _is_other_class(stages[-1].get(name), again.get(name))}
            _widen(fields, stages[0])
        for sample in rows:
            _widen(ranges, {name: sample[name] for name in sorted(inputs & sample.keys())})
        samples += [key.index for key in keys]
        steps += [step] * len(keys)
        if sum(each.nbytes for column in given.values.values() for each in column) > _MAX_BYTES:
            break
    ignored = frozenset((-1, built.data.facts.get("ignore_index", -1)))
    targets = [
        Target(
            *(name, values, own.get(name), raw.get(name), ignored, name in drawn),
            tuple(transform for transform, changed in changes if changed == name),
        )
        for name in sorted(names)
        if (values := given.get(name)) is not None
    ]
    return Reaching(targets, ranges, fields, samples, steps, part.reader.transforms.mixes)


def _list_read(task: Any, reader: BatchReader) -> tuple[frozenset[str], frozenset[str]]:
    """List the fields of batches that are targets, and those that the model takes.

    Losses name the targets; where these are made of other fields, by a transform or by the task, those are targets too.
    """
    bound = getattr(task, "bound_losses", {})
    if not bound or not isinstance(task, Supervised):
        return frozenset(), frozenset()
    read = frozenset(name for pair in bound.values() for function in pair for name in function.names)
    inputs, stated = frozenset(task.input_names), frozenset(reader.dataset.info.fields)
    named = (read & reader.fields.keys()) - inputs
    made_of = [fields for name, fields in reader.transforms.made_of.items() if name in named - stated]
    made_of += [_OF_BOXES] if task.context_keys & read else []
    return named | (frozenset().union(*made_of) & stated) - inputs, inputs


def _choose_keys(job: TrainState, dataset: Dataset, *, is_quick: bool) -> Iterator[tuple[int, list[SampleKey]]]:
    """Yield keys of the first epoch in chunks, each with its step, from 1: an eighth of what a survey reads."""
    (sample,) = read_samples(dataset, job.stream.step_keys(0)[0][:1])
    most = count_to_read(count_bytes(sample), is_quick=is_quick)
    left = min(most, max(_FEWEST, most // 8))
    for step in range(min(job.stream.plan.steps_per_epoch, job.num_steps)):
        for keys in job.stream.step_keys(step):
            for start in range(0, len(keys), _CHUNK_SIZE):
                chunk = keys[start : start + min(_CHUNK_SIZE, left)]
                if not chunk:
                    return
                yield step + 1, chunk
                left -= len(chunk)


def _split(batch: Batch, reader: BatchReader, count: int) -> list[dict[str, Any]]:
    """Divide a batch into its samples, by how the fields of its reader are collated."""
    samples: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, stated in reader.fields.items():
        value, ends = batch.get(name), batch.get(stated.offsets)
        for row, sample in enumerate(samples):
            if not isinstance(value, Tensor | list):
                continue
            if stated.collate != "concatenate":
                sample.update({name: value[row]} if len(value) == count else {})
            elif isinstance(ends, Tensor) and len(ends) == count + 1:
                sample[name] = value[int(ends[row]) : int(ends[row + 1])]
    return samples


def _to_array(value: Any) -> np.ndarray | None:
    """Convert a target to an array; None for what is no tensor of real numbers."""
    if isinstance(value, Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic | int | float) else None
    return array if array is not None and array.dtype.kind in "biuf" else None


def _list_changes(reader: BatchReader, key: SampleKey, names: frozenset[str]) -> dict[tuple[str, str], None]:
    """List the transforms that change targets of a sample, each with the target's name, in their order."""
    changes, before = dict[tuple[str, str], None](), dict[str, Any]()
    for transform, stage in reader.sample_stages(key):
        for name in names & stage.keys():
            one, other = _to_array(before.get(name)), _to_array(stage[name])
            if one is not None and other is not None and not np.array_equal(one, other):
                changes[transform, name] = None
        before = stage
    return changes


def _is_other_class(one: Any, other: Any) -> bool:
    """Return True for two unlike classes of a sample."""
    first, second = _to_array(one), _to_array(other)
    if first is None or second is None or not first.size == second.size == 1:
        return False
    return first.dtype.kind in "iu" and bool(first.item() != second.item())


def _widen(ranges: dict[str, Range], values: Mapping[str, Any]) -> None:
    """Widen ranges by the numbers with fractions of a batch or a sample."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found = find_range(value.float().numpy(force=True))
            ranges |= {} if found is None else {name: found.join(ranges.get(name))}
