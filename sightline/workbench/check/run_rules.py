"""Rules of what a run reads: its splits, what the data set declares, classes, and offsets of batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sightline.contract.errors import join_some
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.batches.sampler import BatchSampler
from sightline.engine.run_data import DataSubset
from sightline.store.loading.divided_copies import find_shared
from sightline.workbench.check.dry_run import DryRun
from sightline.workbench.check.evidence import place
from sightline.workbench.check.sample_statistics import (
    ClassCounts,
    FieldStatistics,
    PartStatistics,
    all_labels,
    describe_sample,
)

_COUNTED_BY = {"label": "num_classes", "part": "num_parts", "category": "num_categories"}
_INPUTS = ("points", "image", "depth", "volume", "range_image", "features")
_MIN_SAMPLES, _MIN_USED, _SLACK = 8, {"mm": 1 / 200}, 2.0**-10
"""Samples for a judgement; share of a declared range in use, by unit: a wrong one uses 1/100; a step of float16."""


@rule(
    "empty-loader",
    "error",
    "data.empty_loader data.path data.split",
    holds="samples in each split, which its data set has, and enough of them for a batch",
    do="check where the data set searches for its files, and how it is split",
)
def empty_loader(parts: list[DataSubset], plan: BatchSampler) -> Iterator[Fault]:
    """Every split has samples that its set has; that a sampler of a loader draws too few is another rule's."""
    for part in parts:
        size, count, where = len(part.dataset), len(part.indices), place(part)
        outside = part.indices[(part.indices < 0) | (part.indices >= size)]
        if not count:
            yield Fault(
                f"the {part.split} part has no samples", measured=f"{count} of a data set of {size}", where=where
            )
        elif len(outside):
            summary = f"the {part.split} part has indices of samples that its data set does not have"
            yield Fault(summary, measured=f"index {outside[0]} of {size} samples, {len(outside)} such", where=where)
    where = FindingLocation(dataset="train", config_path="train.batch_size")
    if plan.batch_size > len(plan.indices) > 0:
        summary = f"train.batch_size is {plan.batch_size}, the training part has {len(plan.indices)} samples"
        causes = ["data.sampling"]
        yield Fault(summary, measured="1 step an epoch", severity="warning", causes=causes, where=where)


@rule(
    "split-overlap",
    "error",
    "data.split",
    holds="no sample in both training and evaluation, by the digests that preparation made",
    do="prepare the set with shared=leave_out_of_train, or remove the copies",
)
def shared_samples(parts: list[DataSubset]) -> Iterator[Fault]:
    """Compare the contents of training samples with those of each evaluated part; published splits get a warning.

    Evaluation on all that is trained on is meant: such a part is none of its own.
    """
    train, *evaluated = parts
    copies = train.dataset.copies
    if copies is None:
        raise NotApplicableError("no digests of samples")
    for part in evaluated:
        shared = find_shared(train.dataset, train.indices, part.dataset, part.indices)
        if shared is None:
            continue
        size, (first, second) = len(part.indices), shared.first
        dealing = part.dataset.info.dealing
        is_drawn = dealing is not None and part.split in dealing.parts
        yield Fault(
            f"{shared.total} of {size} samples of the {part.split} part ({shared.total / size:.1%}) are trained on",
            measured=f"{describe_sample(part.dataset, second)} has the content of training's "
            f"{describe_sample(train.dataset, first)}",
            action=f"leave them out of training: {copies.advice}",
            severity="error" if copies.is_error or is_drawn else "warning",
            where=place(part, second),
        )


@rule(
    "prepared-doubts",
    "note",
    "data.normalisation data.imbalance",
    holds="samples of one unit of length, and several of each class in training and evaluation",
    do="mend the source, and prepare it again; `sightline data info` lists all that the preparation noted",
)
def prepared_doubts(parts: list[DataSubset]) -> Iterator[Fault]:
    """Say again what the preparation of the training's set found in its samples."""
    for doubt in parts[0].dataset.doubts:
        yield Fault(doubt, measured="noted by its preparation", where=place(parts[0]))


# --- what the data set declares ---------------------------------------------------------------------------------------


@rule(
    "missing-batch-keys",
    "error",
    "cfg.contract data.missing_modality data.padding",
    holds="every declared field in every sample, and every declared key in the batches",
    do="return the field from the data set, keep it in its collate, or take it out of info.fields",
)
def missing_keys(parts: list[DataSubset], surveys: list[PartStatistics], rehearsal: DryRun) -> Iterator[Fault]:
    """Compare the keys of samples and of the first batch with what the set declares."""
    for survey in surveys:
        for name, samples in survey.absent.items():
            measured = f"{len(samples)} of {survey.num_sampled} lack it; they have {', '.join(sorted(survey.fields))}"
            yield Fault(
                f"samples lack '{name}'",
                causes=("data.missing_modality",) * (len(samples) < survey.num_sampled)
                + ("cfg.contract", "data.padding"),
                measured=measured,
                where=place(survey.part, samples[0]),
                evidence={"field": name},
            )
    batch = rehearsal.batch
    lost = sorted(parts[0].reader.keys - batch.keys()) if batch else []
    if lost and not any(survey.absent for survey in surveys):
        measured, summary = f"a batch has {', '.join(sorted(batch))}", f"training batches lack '{lost[0]}'"
        yield Fault(f"{summary}, which their samples have", measured=measured, where=place(parts[0]))


@rule(
    "non-finite-data",
    "error",
    "data.corrupt_sample data.normalisation",
    holds="finite numbers, but for fields that may be NaN",
    do="repair or leave out the sample; look for a division by zero in the transforms",
)
def non_finite_data(surveys: list[PartStatistics]) -> Iterator[Fault]:
    """Look for NaN and infinities in samples; `non-finite` names those of the first batch."""
    for survey in surveys:
        for name, statistics in survey.fields.items():
            number, field = statistics.non_finite, survey.part.dataset.info.fields.get(name)
            if number is not None and not (field is not None and field.may_be_nan and number.value != number.value):
                measured = f"{number.value} at {number.leaf}{list(number.position)}"
                measured += (
                    f" of {describe_sample(survey.part.dataset, number.sample)}; {statistics.num_non_finite} such"
                )
                yield Fault(
                    f"'{name}' has {number.value}",
                    measured=measured,
                    where=place(survey.part, number.sample),
                    evidence={"field": name},
                )


@rule(
    "label-range",
    "error",
    "data.label_mapping data.ignore_handling cfg.class_count",
    holds="whole numbers from 0 to the number of classes less 1, or the declared ignore index",
    do="map the ids of files to classes, and state ignore_index if a value is meant to be ignored",
)
def label_range(surveys: list[PartStatistics]) -> Iterator[Fault]:
    """Compare labels with the number of classes that the facts state.

    The rules of a module look for labels between classes, as interpolation makes them: it has no such facts.
    """
    for survey, (name, fact) in itertools.product(surveys, _COUNTED_BY.items()):
        facts, statistics = survey.part.dataset.info.facts, survey.fields.get(name)
        if statistics is None or not isinstance(facts.get(fact), int):
            continue
        wrong = [dtype for dtype in statistics.dtypes if not dtype.startswith(("int", "uint"))]
        labels = all_labels(survey) if name == "label" else None
        values = {*statistics.values, *(() if labels is None else np.unique(labels).tolist())}
        outside = sorted(value for value in values if value not in (*range(facts[fact]), facts.get("ignore_index")))
        if wrong or outside:
            sample = statistics.values.get(outside[0]) if outside else statistics.dtypes[wrong[0]]
            measured = wrong[0] if wrong else f"{join_some(list(map(str, outside)), most=5)} of {fact} {facts[fact]}"
            causes = ["data.target_encoding"] if wrong else ()
            where = place(survey.part, sample)
            yield Fault(
                f"'{name}' holds what is no class",
                measured=measured,
                causes=causes,
                where=where,
                evidence={"field": name},
            )


@rule(
    "channel-contract",
    "error",
    "cfg.contract data.layout",
    holds="shape, type and range as the data set declares",
    do="correct what is read (axes, unit, columns), or the declaration in info",
)
def channel_contract(surveys: list[PartStatistics]) -> Iterator[Fault]:
    """Compare the fields of samples with the declaration."""
    for survey in surveys:
        for name, field in survey.part.dataset.info.fields.items():
            for fault in _judge_field(survey, name, survey.fields.get(name), field):
                yield dataclasses.replace(fault, where=place(survey.part), evidence={"field": name})


def _get_kind(dtype: str) -> str:
    """Return the kind of a dtype, whatever its width; bytes are one of their own."""
    kind = dtype.rstrip("0123456789")
    return dtype if dtype == "uint8" else {"bfloat": "float", "uint": "int"}.get(kind, kind)


def _judge_field(survey: PartStatistics, name: str, found: FieldStatistics | None, field: Any) -> Iterator[Fault]:
    """Yield faults, without their place, of a field that is not as declared."""
    if found is None:
        return
    shape = next((shape for shape in found.shapes if not _is_declared(field.shape, shape)), None)
    if shape is not None:
        causes = ["data.layout"] if _is_declared(field.shape, shape[::-1]) else ()
        yield Fault(f"'{name}' has the shape {shape}", measured=f"declared '{field.shape}'", causes=causes)
    dtype = next((d for d in found.dtypes if field.shape != "any" and _get_kind(d) != _get_kind(field.dtype)), None)
    if dtype is not None:
        causes = ["data.normalisation"]
        yield Fault(f"'{name}' is of type {dtype}", measured=f"declared {field.dtype}", causes=causes)
    yield from _judge_lengths(name, found)
    bounds = [abs(bound) for bound in (field.low, field.high) if bound is not None and np.isfinite(bound)]
    if (
        not bounds
        or found.low > found.high
        or survey.part.dataset.info.facts.get(_COUNTED_BY.get(name, "")) is not None
    ):
        return
    largest, reach, is_float = max(bounds), max(abs(found.low), abs(found.high)), _get_kind(field.dtype) == "float"
    slack = _SLACK * largest if is_float else 0.0
    is_outside = found.low < (-np.inf if field.low is None else field.low) - slack
    is_outside |= found.high > (np.inf if field.high is None else field.high) + slack
    causes = ["data.normalisation", "data.corrupt_sample"]
    measured = f"{found.low:.6g} .. {found.high:.6g}, declared {field.low} .. {field.high} {field.unit}".rstrip()
    if is_outside:
        yield Fault(f"'{name}' exceeds its declared range", measured=measured, causes=causes)
    elif is_float and 0 < reach < _MIN_USED.get(field.unit, 1 / 50) * largest:
        summary = f"'{name}' uses {reach / largest:.1g} of its declared range: another unit?"
        yield Fault(summary, measured=measured, causes=causes, severity="warning")


_MAX_NO_UNIT = 0.05
"""Share of the vectors of a field of unit vectors that may be of another length: files have points without a normal."""


def _judge_lengths(name: str, found: FieldStatistics) -> Iterator[Fault]:
    """Yield faults of vectors that are declared to be of length 1."""
    for count, what in ((found.num_zero, "0, and have no direction"), (found.num_off, "not of length 1")):
        if count > _MAX_NO_UNIT * found.num_vectors:
            yield Fault(
                f"'{name}' has vectors that are {what}",
                measured=f"{count} of {found.num_vectors}, {count / found.num_vectors:.0%}",
                action="estimate them, or take the field out of the inputs" if count == found.num_zero else "",
                causes=["data.missing_modality" if count == found.num_zero else "data.normalisation"],
                severity="warning",
            )


def _is_declared(declared: str, shape: tuple[int, ...]) -> bool:
    """Return True if a shape matches a declaration such as "points 3": names match any size, "any" any shape."""
    sizes = declared.split()
    is_fit = len(sizes) == len(shape) and all(
        not size.isdecimal() or int(size) == n for size, n in zip(sizes, shape, strict=True)
    )
    return declared == "any" or is_fit


@rule(
    "class-names",
    "error",
    "data.label_mapping cfg.class_count",
    holds="other names for other classes, numbered alike in all splits",
    do="correct the fact of the data set, or map the labels of one split to the order of the other",
)
def class_names(parts: list[DataSubset]) -> Iterator[Fault]:
    """Compare the names of classes with one another, and those of the splits."""
    first, *others = parts
    for fact in ("class_names", "category_names", "part_names", "parts_of_category"):
        names = list(first.dataset.info.facts.get(fact) or ())
        if len(set(map(str, names))) < len(names):
            measured = f"{len(names) - len(set(map(str, names)))} repeated"
            yield Fault(f"two of {fact} are alike", measured=measured, where=place(first))
        for part in others:
            theirs = part.dataset.info.facts.get(fact)
            if names and theirs is not None and list(theirs) != names:
                pairs = itertools.zip_longest(names, theirs, fillvalue="missing")
                ours, other = next(pair for pair in pairs if pair[0] != pair[1])
                summary = f"the {part.split} part numbers its classes differently from training"
                yield Fault(summary, measured=f"{fact}: {other!r} for {ours!r}", where=place(part))
                return


# --- classes ----------------------------------------------------------------------------------------------------------


@rule(
    "untrained-class",
    "warning",
    "data.split data.label_mapping data.sampling",
    holds="each class that is evaluated among the training samples",
    do="split the data so that each part has every class, or leave the class out; labels count from 0",
)
def untrained_class(class_counts: list[ClassCounts | None]) -> Iterator[Fault]:
    """Look for classes of an evaluated split that no training sample has, if all were counted."""
    trained, *evaluated = class_counts
    if trained is None or not trained.is_whole:
        raise NotApplicableError("no classes, all counted")
    for counts in evaluated:
        if counts is None or len(counts.targets) != len(trained.targets):
            continue
        missing = np.flatnonzero((trained.targets == 0) & (counts.targets > 0)).tolist()
        if missing:
            measured = "; ".join(
                f"class {k}: 0 of {trained.targets.sum()}, here {counts.targets[k]}" for k in missing[:5]
            )
            summary = f"the {counts.split} part has classes without training samples: {missing[:5]}"
            yield Fault(summary, measured=measured, where=FindingLocation(dataset=counts.split, config_path="data"))


@rule(
    "class-counts",
    "warning",
    "data.label_mapping data.sampling data.ignore_handling",
    holds="the shares of classes that the facts count, and several classes in most samples",
    do="look at the map from ids of files to classes, at ignore_index, and at what crops the points",
    is_statistical=True,
)
def counted_classes(
    facts: Mapping[str, Any], class_counts: list[ClassCounts | None], surveys: list[PartStatistics]
) -> Iterator[Fault]:
    """Compare shares of training targets with those stated; a class may differ by a factor of 3."""
    counts, where = class_counts[0], place(surveys[0].part)
    if counts is None or not counts.targets.sum():
        raise NotApplicableError("no classes")
    num_classes, is_boxed = int((counts.targets > 0).sum()), bool(surveys[0].boxed)
    if counts.num_labelled >= _MIN_SAMPLES and counts.num_single > 0.75 * counts.num_labelled and not is_boxed:
        if num_classes > 2:
            summary = f"{counts.num_single} of {counts.num_labelled} samples have points of a single class"
            yield Fault(summary, measured=f"{num_classes} in all", causes=["data.sampling"], where=where)
        return
    stated = np.asarray(facts.get("class_counts") or (), dtype=np.float64)
    ignored = facts.get("ignore_index")
    if isinstance(ignored, int) and 0 <= ignored < len(stated):  # 255 is no class
        stated[ignored] = 0
    if len(stated) != len(counts.targets) or not stated.sum():
        raise NotApplicableError("no class counts")
    expected, found = stated / stated.sum(), counts.targets / counts.targets.sum()
    low, high = np.minimum(expected, found), np.maximum(expected, found)
    is_off = (high >= 0.05) & (3 * low < high)
    for other in filter(None, class_counts[1:]):
        is_off &= (counts.targets > 0) | (other.targets == 0)  # a part has it: `untrained-class`
    if not counts.is_whole:
        is_off &= np.abs(found - expected) > 6 * np.maximum(
            _measure_spread(surveys[0], len(stated)), expected**0.5 / 30
        )
    if is_off.any():
        worst = int(np.where(is_off, np.abs(found - expected), 0).argmax())
        total = sum(int(each.counts.sum()) for each in surveys[0].labellings)
        lost = sum(int(each.counts[each.classes == ignored].sum()) for each in surveys[0].labellings) / max(1, total)
        is_ignored = found[worst] < expected[worst] and lost >= expected[worst] / 2
        yield Fault(
            f"class {worst} has {found[worst]:.1%} of the training targets, the facts state {expected[worst]:.1%}",
            measured=f"{counts.looked_at}; {lost:.0%} of the targets are ignored",
            causes=["data.ignore_handling"] if is_ignored else (),
            where=where,
        )


def _measure_spread(survey: PartStatistics, num_classes: int) -> np.ndarray:
    """Measure the standard errors of the shares of classes from their differences between samples."""
    rows = np.zeros((len(survey.labellings), num_classes))
    for row, each in zip(rows, survey.labellings, strict=True):
        is_class = (each.classes >= 0) & (each.classes < num_classes)
        row[each.classes[is_class]] = each.counts[is_class] / each.counts.sum()
    errors: np.ndarray = rows.std(axis=0) / max(1, len(rows)) ** 0.5
    return errors


@rule(
    "repeated-samples",
    "warning",
    "data.sampling data.pairing data.path data.corrupt_sample",
    holds="samples that differ from one another",
    do="look at how __getitem__ uses the index of its key, at what it caches, and at its files",
    is_statistical=True,
)
def repeated_samples(surveys: list[PartStatistics]) -> Iterator[Fault]:
    """Look for inputs that are the same in all samples, or in more than half of them."""
    for survey in surveys:
        found = {name: survey.fields[name] for name in _INPUTS if name in survey.fields}
        repeats = survey.part.dataset.repeats  # of an epoch, as the set declares
        for name, each in found.items():
            count, total = len(each.contents), each.num_hashed
            if total < _MIN_SAMPLES or (max(count, repeats) > 1 and 2 * count * repeats >= total):
                continue
            others = any(2 * len(other.contents) > other.num_hashed for other in found.values() if other is not each)
            yield Fault(
                f"'{name}' has {count} different values in {total} samples",
                measured=survey.coverage_text,
                severity="error" if count == 1 else None,
                causes=["data.corrupt_sample"] if each.low == each.high else ["data.pairing"] if others else (),
                where=place(survey.part, next(iter(each.contents.values()))),
                evidence={"field": name},
            )


@rule(
    "broken-offsets",
    "error",
    "data.layout cfg.contract data.padding",
    holds="offsets from 0, that never fall, up to the number of rows, one more than samples",
    do="mend `collate` or `get_batch` of the data set; fields with collate='concatenate' need neither",
)
def broken_offsets(parts: list[DataSubset], rehearsal: DryRun) -> Iterator[Fault]:
    """Compare the offsets of the first batch with the rows of its fields."""
    reader, batch = parts[0].reader, rehearsal.batch
    for name, field in reader.fields.items():
        offsets, value = batch.get(field.offsets or ""), batch.get(name)
        if field.collate != "concatenate" or not isinstance(offsets, Tensor) or not isinstance(value, Tensor):
            continue
        ends = [0, len(value), len(batch["sample_index"]) + 1]
        found = [int(offsets[0]), int(offsets[-1]), len(offsets)] if offsets.ndim == 1 and len(offsets) else []
        if found != ends or bool((offsets.diff() < 0).any()):
            measured = f"first, last, length {found}; expected {ends}"
            yield Fault(f"'{field.offsets}' are no offsets of '{name}'", measured=measured, where=place(parts[0]))
            return


@rule(
    "empty-cloud",
    "error",
    "data.corrupt_sample data.sampling",
    holds="at least one point in each cloud: an empty one has no neighbours, no mean and no prediction",
    do="repair the sample or leave it out; let a crop keep at least one point",
)
def empty_cloud(surveys: list[PartStatistics]) -> Iterator[Fault]:
    """Look for clouds without points."""
    severity: Any = "note" if "range_image" in surveys[0].part.reader.keys else None
    for survey in surveys:
        shapes = survey.fields["points"].shapes if "points" in survey.fields else {}
        for index in (index for shape, index in shapes.items() if 0 in shape[:1]):
            summary = f"a cloud of the {survey.part.split} part has no points"
            yield Fault(summary, measured="0 points", severity=severity, where=place(survey.part, index))
            return
