"""Parts without samples, samples that no step, two steps or two processes train on, and too large a batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from sightline.contract.types import SampleKey
from sightline.doctor.finding import Severity
from sightline.engine.batch_stream import BatchSampler, evaluation_keys
from sightline.engine.build import DataSubset
from sightline.store.loading.batch_reader import array_leaves
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, diagnose
from sightline.workbench.check.core.sample_statistics import broken_field, describe_sample, distinct_parts, read_samples

_diagnose = functools.partial(diagnose, __file__)
_MAX_INDICES = 50_000  # of a larger part only the first steps are checked, in about a tenth of a second
_MIN_VISITS = 20  # two permutations of so many are equal once in 2e18 runs


@check("empty-loader", "static", config_path="data")
def empty_loader(context: Context) -> list[Fault]:
    """Every part has batches; each epoch visits every training sample once, on one process, in a new order.

    Finds: Parts without samples, samples that no step, two steps or two processes train on, and too large a batch.
    """
    faults = [fault for part in distinct_parts(context.built.data) for fault in _part_faults(context, part)]
    is_broken = any(fault.severity is None for fault in faults)
    return faults if is_broken else [*faults, *_plan_faults(context)]


def _part_faults(context: Context, part: DataSubset) -> Iterator[Fault]:
    size, count = len(part.dataset), len(part.indices)
    outside = part.indices[(part.indices < 0) | (part.indices >= size)]
    num_classes = _count_sample_classes(part)
    if count == 0 or not evaluation_keys(part.indices, context.config.evaluate.batch_size, epoch=0, seed=0):
        yield _diagnose("no samples", split=part.split, count=count, size=size)
    elif len(outside):
        words = {"sample": int(outside[0]), "size": size, "number": len(outside), "last": size - 1}
        yield _diagnose("outside", split=part.split, **words)
    elif part is context.built.data.selection and num_classes is not None and count < num_classes:
        # it cannot contain every class (pigeonhole)
        yield _diagnose("too few", split=part.split, count=count, num_classes=num_classes, share=1 / count)


def _count_sample_classes(part: DataSubset) -> int | None:
    """Return the number of classes of whole samples: of categories if points have labels; None for scenes."""
    info = part.dataset.info
    is_of_points = "label" in info.fields and info.fields["label"].shape.strip() != ""
    return info.facts.get("num_categories" if is_of_points else "num_classes")


def _plan_faults(context: Context) -> Iterator[Fault]:
    stream, world, plan = context.built.job.stream, context.world, context.built.job.stream.plan
    if stream.rank != world.rank:
        words = {"rank": world.rank, "read": stream.rank, "size": world.size}
        yield _plan_fault(plan, "dist.sampler", "other rank", **words)
    if plan.batch_size > len(plan.indices):
        words = {"size": len(plan.indices), "batch_size": plan.batch_size}
        yield _plan_fault(plan, "data.sampling", "one step", **words)
    epochs = [_list_visits(plan, epoch) for epoch in (0, 1)]
    for epoch, (visits, is_whole) in enumerate(epochs):
        fault = next(_epoch_faults(context, plan, epoch, visits, is_whole), None)
        if fault is not None:
            yield fault
            return
    num_epochs = -(-context.built.job.num_steps // plan.steps_per_epoch)
    first, second = (visits for visits, _ in epochs)
    if num_epochs > 1 and len(first) >= _MIN_VISITS and np.array_equal(first, second):
        yield _plan_fault(plan, "data.ordering", "same order", number=len(first), first=first[:6].tolist())


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
    for samples, how in ((twice, "twice or more"), (foreign, "of another part"), (never, "never")):
        if len(samples):
            index = int(samples[0])
            yield _plan_fault(
                plan,
                "dist.sampler" if plan.num_processes > 1 else "data.sampling",
                "visits",
                number=len(samples),
                how=how,
                name=describe_sample(context.built.data.train.dataset, index),
                epoch=epoch,
                num_visits=len(visits),
                num_visited=len(values),
                size=len(plan.indices),
                num_processes=plan.num_processes,
                tail=f", but for {dropped} that train.tail: drop leaves out" if dropped else "",
                sample=index,
            )


def _plan_fault(plan: BatchSampler, cause: str, diagnosis: str, **words: Any) -> Fault:
    return _diagnose(
        diagnosis,
        causes=(cause, "dist.sampler", "data.sampling", "data.ordering"),
        at="train.batch_size",
        split="train",
        evidence={"steps_per_epoch": plan.steps_per_epoch, "batch_size": plan.batch_size, "tail": plan.tail},
        **words,
    )


@check(
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
            "any points",
            sample=index,
            measured=f"points of the shape {shape}",
            part=survey.part.split,
            severity=_get_severity(context),
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
    before = "" if stored is None else f", which has {stored} points before the transforms ({names})"
    yield _diagnose(
        "stored empty" if stored == 0 else "emptied",
        f"{measured}{empty[0]}: sample {sample}{before}",
        split="train",
        sample=sample,
        severity=_get_severity(context),
        evidence={"field": "points", "looked_at": f"{len(index)} samples of the first step"},
    )


def _get_severity(context: Context) -> Severity:
    return "note" if "range_image" in context.built.data.train.reader.keys else "error"


def _count_stored_points(context: Context, index: int) -> int | None:
    """Count the points of a training sample before any transform; None if it has no `points`."""
    sample = read_samples(context.built.data.train.dataset, [SampleKey(index, 0, context.config.seed)])[0]
    return next((len(tensor) for _, tensor in array_leaves(sample.get("points")) if tensor.ndim), None)
