"""Parts without samples, and samples that no step, two steps or two processes train on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import describe_sample, distinct_parts
from sightline.engine.batch_stream import BatchSampler, evaluation_keys
from sightline.engine.build import DataSubset

__all__ = ["empty_loader"]

_MAX_INDICES = 50_000  # of a larger part only the first steps are checked, in about a tenth of a second
_MIN_VISITS = 20  # two permutations of so many are equal once in 2e18 runs


@check("G1", "empty-loader", "static")
def empty_loader(context: Context) -> list[Finding]:
    """Every part has batches; each epoch visits every training sample once, on one process, in a new order.

    Finds: Parts without samples, and samples that no step, two steps or two processes train on.
    """
    findings = [finding for part in distinct_parts(context.built.data) for finding in _part_findings(context, part)]
    if not any(finding.severity == "error" for finding in findings):
        findings += _plan_findings(context)
    return findings


def _part_findings(context: Context, part: DataSubset) -> Iterator[Finding]:
    data, size, count = context.config.data.name, len(part.dataset), len(part.indices)
    location = context.place("data", dataset=f"{data}/{part.split}")
    outside = part.indices[(part.indices < 0) | (part.indices >= size)]
    if count == 0 or not evaluation_keys(part.indices, context.config.evaluate.batch_size, epoch=0, seed=0):
        yield empty_loader.finding(
            location,
            f"the {part.split} part has no samples, so it has no batch",
            causes=("data.empty_loader", "data.path", "data.split"),
            measured=f"{count} samples of a data set of {size}",
            expected="at least 1 sample, ceil(samples / batch size) >= 1 batches",
            action="check where the data set searches for its files, and how it is split into parts",
        )
    elif len(outside):
        yield empty_loader.finding(
            context,
            f"the {part.split} part has indices of samples that its data set does not have",
            causes=("data.split", "data.path"),
            at="data",
            dataset=location.dataset,
            sample=int(outside[0]),
            measured=f"index {int(outside[0])} in a data set of {size} samples ({len(outside)} such)",
            expected=f"indices 0 to {size - 1}",
            action="make the split again for this data set",
        )
    elif part is context.built.data.selection:
        yield from _selection_findings(context, part)


def _selection_findings(context: Context, part: DataSubset) -> Iterator[Finding]:
    """Find a selection part with fewer samples than classes: it cannot contain every class (pigeonhole)."""
    num_classes = _count_sample_classes(part)
    count = len(part.indices)
    if num_classes is None or count >= num_classes:
        return
    yield empty_loader.finding(
        context,
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


def _plan_findings(context: Context) -> Iterator[Finding]:
    stream, world = context.built.job.stream, context.world
    if stream.rank != world.rank:
        yield _finding_plan(
            context,
            summary="a process reads the part of another one",
            cause="dist.sampler",
            measured=f"process {world.rank} reads part {stream.rank}",
            expected=f"part {world.rank} of {world.size}",
            action="give the stream the rank of its process",
        )
    plan = stream.plan
    epochs = [_list_visits(plan, epoch) for epoch in (0, 1)]
    for epoch, (visits, is_whole) in enumerate(epochs):
        finding = next(_epoch_findings(context, plan, epoch, visits, is_whole), None)
        if finding is not None:
            yield finding
            return
    num_epochs = -(-context.built.job.num_steps // plan.steps_per_epoch)
    first, second = (visits for visits, _ in epochs)
    if num_epochs > 1 and len(first) >= _MIN_VISITS and np.array_equal(first, second):
        yield _finding_plan(
            context,
            summary="every epoch visits the samples in the same order",
            cause="data.ordering",
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


def _epoch_findings(
    context: Context, plan: BatchSampler, epoch: int, visits: np.ndarray, is_whole: bool
) -> Iterator[Finding]:
    values, counts = np.unique(visits, return_counts=True)
    twice = values[counts > 1]
    foreign = np.setdiff1d(values, plan.indices)
    missed = np.setdiff1d(plan.indices, values)
    dropped = len(plan.indices) - plan.steps_per_epoch * plan.batch_size if plan.tail == "drop" else 0
    never = missed if is_whole and len(missed) != dropped else missed[:0]
    for samples, fault in ((twice, "twice or more"), (foreign, "of another part"), (never, "never")):
        if not len(samples):
            continue
        index = int(samples[0])
        yield _finding_plan(
            context,
            summary=f"an epoch visits {len(samples)} training samples {fault}",
            cause="dist.sampler" if plan.num_processes > 1 else "data.sampling",
            measured=f"{describe_sample(context.built.data.train.dataset, index)} {fault} in epoch {epoch}; "
            f"{len(visits)} visits of {len(values)} samples",
            expected=f"each of the {len(plan.indices)} samples once, over all {plan.num_processes} processes"
            + (f", but for {dropped} that train.tail: drop leaves out" if dropped else ""),
            action="assign disjoint parts of one permutation to the processes",
            sample=index,
        )


def _finding_plan(
    context: Context, *, summary: str, cause: str, measured: str, expected: str, action: str, sample: int | None = None
) -> Finding:
    plan = context.built.job.stream.plan
    return empty_loader.finding(
        context,
        summary,
        causes=(cause, "dist.sampler", "data.sampling", "data.ordering"),
        at="train.batch_size",
        split="train",
        sample=sample,
        measured=measured,
        expected=expected,
        action=action,
        evidence={"steps_per_epoch": plan.steps_per_epoch, "batch_size": plan.batch_size, "tail": plan.tail},
    )
