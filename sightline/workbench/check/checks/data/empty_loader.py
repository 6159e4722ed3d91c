"""Parts without samples, and samples that no step, two steps or two processes train on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from sightline.contract.types import SampleKey
from sightline.engine.batch_stream import BatchSampler, evaluation_keys
from sightline.engine.build import DataSubset
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Severity
from sightline.workbench.check.core.sample_statistics import broken_field, describe_sample, distinct_parts, read_samples

_MAX_INDICES = 50_000  # of a larger part only the first steps are checked, in about a tenth of a second
_MIN_VISITS = 20  # two permutations of so many are equal once in 2e18 runs


@check("G1", "empty-loader", "static", config_path="data")
def empty_loader(context: Context) -> list[Fault]:
    """Every part has batches; each epoch visits every training sample once, on one process, in a new order.

    Finds: Parts without samples, and samples that no step, two steps or two processes train on.
    """
    faults = [fault for part in distinct_parts(context.built.data) for fault in _part_faults(context, part)]
    is_broken = any(fault.severity is None for fault in faults)
    return faults if is_broken else [*faults, *_plan_faults(context)]


def _part_faults(context: Context, part: DataSubset) -> Iterator[Fault]:
    size, count = len(part.dataset), len(part.indices)
    outside = part.indices[(part.indices < 0) | (part.indices >= size)]
    num_classes = _count_sample_classes(part)
    if count == 0 or not evaluation_keys(part.indices, context.config.evaluate.batch_size, epoch=0, seed=0):
        yield Fault(
            f"the {part.split} part has no samples, so it has no batch",
            causes=("data.empty_loader", "data.path", "data.split"),
            split=part.split,
            measured=f"{count} samples of a data set of {size}",
            expected="at least 1 sample, ceil(samples / batch size) >= 1 batches",
            action="check where the data set searches for its files, and how it is split into parts",
        )
    elif len(outside):
        yield Fault(
            f"the {part.split} part has indices of samples that its data set does not have",
            causes=("data.split", "data.path"),
            split=part.split,
            sample=int(outside[0]),
            measured=f"index {int(outside[0])} in a data set of {size} samples ({len(outside)} such)",
            expected=f"indices 0 to {size - 1}",
            action="make the split again for this data set",
        )
    elif part is context.built.data.selection and num_classes is not None and count < num_classes:
        yield Fault(  # it cannot contain every class (pigeonhole)
            f"the part that chooses the checkpoint has {count} samples for {num_classes} classes",
            severity="warning",
            causes=("data.split", "data.empty_loader"),
            at="evaluate.select",
            split=part.split,
            measured=f"{count} samples; a single one changes an accuracy by {1 / count:.0%}",
            expected=f"at least one sample of each class, so {num_classes} or more",
            action="use more data, a data set with a validation part of its own, or evaluate.select: test",
        )


def _count_sample_classes(part: DataSubset) -> int | None:
    """Return the number of classes of whole samples: of categories if points have labels; None for scenes."""
    info = part.dataset.info
    is_of_points = "label" in info.fields and info.fields["label"].shape.strip() != ""
    return info.facts.get("num_categories" if is_of_points else "num_classes")


def _plan_faults(context: Context) -> Iterator[Fault]:
    stream, world, plan = context.built.job.stream, context.world, context.built.job.stream.plan
    if stream.rank != world.rank:
        yield _plan_fault(
            plan,
            "dist.sampler",
            "a process reads the part of another one",
            measured=f"process {world.rank} reads part {stream.rank}",
            expected=f"part {world.rank} of {world.size}",
            action="give the stream the rank of its process",
        )
    epochs = [_list_visits(plan, epoch) for epoch in (0, 1)]
    for epoch, (visits, is_whole) in enumerate(epochs):
        fault = next(_epoch_faults(context, plan, epoch, visits, is_whole), None)
        if fault is not None:
            yield fault
            return
    num_epochs = -(-context.built.job.num_steps // plan.steps_per_epoch)
    first, second = (visits for visits, _ in epochs)
    if num_epochs > 1 and len(first) >= _MIN_VISITS and np.array_equal(first, second):
        yield _plan_fault(
            plan,
            "data.ordering",
            "every epoch visits the samples in the same order",
            measured=f"{len(first)} visits of epochs 0 and 1 are equal, {first[:6].tolist()} first",
            expected="a permutation drawn anew from (seed, epoch) for each epoch",
            action="make the order depend on the epoch",
        )


def _list_visits(plan: BatchSampler, epoch: int) -> tuple[np.ndarray, bool]:
    """Return an epoch's sample indices over all processes, in order, and True if they are the whole epoch."""
    steps = min(plan.steps_per_epoch, max(1, _MAX_INDICES // plan.batch_size))
    start = epoch * plan.steps_per_epoch
    keys = [
        key.index
        for step in range(start, start + steps)
        for micro in plan.step_keys(step)
        for part in micro
        for key in part
    ]
    return np.array(keys, dtype=np.int64), steps == plan.steps_per_epoch


def _epoch_faults(
    context: Context, plan: BatchSampler, epoch: int, visits: np.ndarray, is_whole: bool
) -> Iterator[Fault]:
    values, counts = np.unique(visits, return_counts=True)
    twice = values[counts > 1]
    foreign = np.setdiff1d(values, plan.indices)
    missed = np.setdiff1d(plan.indices, values)
    dropped = len(plan.indices) - plan.steps_per_epoch * plan.batch_size if plan.tail == "drop" else 0
    never = missed if is_whole and len(missed) != dropped else missed[:0]
    for samples, fault in ((twice, "twice or more"), (foreign, "of another part"), (never, "never")):
        if len(samples):
            index = int(samples[0])
            yield _plan_fault(
                plan,
                "dist.sampler" if plan.num_processes > 1 else "data.sampling",
                f"an epoch visits {len(samples)} training samples {fault}",
                measured=f"{describe_sample(context.built.data.train.dataset, index)} {fault} in epoch {epoch}; "
                f"{len(visits)} visits of {len(values)} samples",
                expected=f"each of the {len(plan.indices)} samples once, over all {plan.num_processes} processes"
                + (f", but for {dropped} that train.tail: drop leaves out" if dropped else ""),
                action="assign disjoint parts of one permutation to the processes",
                sample=index,
            )


def _plan_fault(plan: BatchSampler, cause: str, summary: str, **fields: Any) -> Fault:
    return Fault(
        summary,
        causes=(cause, "dist.sampler", "data.sampling", "data.ordering"),
        at="train.batch_size",
        split="train",
        evidence={"steps_per_epoch": plan.steps_per_epoch, "batch_size": plan.batch_size, "tail": plan.tail},
        **fields,
    )


@check(
    "G6",
    "empty-cloud",
    "preflight",
    expected="at least one point: an empty cloud has no neighbours, no mean and no prediction",
)
def empty_cloud(context: Context) -> list[Fault]:
    """Every sampled cloud has at least one point, before and after the training transforms.

    Finds: Clouds without points, in the data or after a transform; ragged batches do not show them otherwise.

    If scans become range images, an empty scan is only a note: its image is empty and its loss 0.
    """
    stored = [
        broken_field(
            survey,
            "points",
            "any",
            f"a sample of the {survey.part.split} part has no points",
            sample=index,
            measured=f"points of the shape {shape}",
            severity=_get_severity(context),
            action="repair the sample where the data set reads it, or leave it out",
        )
        for survey in context.statistics
        if "points" in survey.fields
        for shape, index in survey.fields["points"].shapes.items()
        if 0 in shape[:1]
    ]
    return stored or list(_batch_faults(context))


def _batch_faults(context: Context) -> Iterator[Fault]:
    """Find clouds of the first training batch that are empty, and whether a transform emptied them."""
    batch = context.dry_run.batch
    offsets, points, index = batch.get("offsets"), batch.get("points"), batch.get("sample_index")
    if not isinstance(points, Tensor) or not isinstance(index, Tensor):
        return
    empty = []
    if isinstance(offsets, Tensor) and offsets.ndim == 1 and len(offsets) == len(index) + 1:
        empty = (offsets.diff() == 0).nonzero().flatten().tolist()
        measured = f"offsets [{', '.join(map(str, offsets[:8].tolist()))}] have equal neighbours at index "
    elif points.ndim == 3 and points.shape[1] == 0:
        empty, measured = [0], f"points of the shape {tuple(points.shape)}, first at row "
    if not empty:
        return
    sample = int(index[empty[0]])
    stored = _count_stored_points(context, sample)
    names = ", ".join(component.name for component in context.config.transforms.train) or "none"
    is_stored = stored == 0
    yield Fault(
        "a cloud of a training batch has no points",
        causes=("data.corrupt_sample", "data.sampling") if is_stored else ("data.sampling", "data.corrupt_sample"),
        at="data" if is_stored else "transforms.train",
        split="train",
        sample=sample,
        measured=f"{measured}{empty[0]}: sample {sample}"
        + ("" if stored is None else f", which has {stored} points before the transforms ({names})"),
        action="repair the sample, or leave it out" if is_stored else "let the crop keep at least one point of a cloud",
        severity=_get_severity(context),
        evidence={"field": "points", "looked_at": f"{len(index)} samples of the first step"},
    )


def _get_severity(context: Context) -> Severity:
    return "note" if "range_image" in context.built.data.train.reader.keys else "error"


def _count_stored_points(context: Context, index: int) -> int | None:
    """Count the points of a training sample before any transform; None if it has no `points`."""
    sample = read_samples(context.built.data.train.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    return next((len(tensor) for _, tensor in array_leaves(sample.get("points")) if tensor.ndim), None)
