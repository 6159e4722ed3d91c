"""Rules of samples as functions of their key: read again, after other draws, and in a batch with others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.transform import Transform
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import LeftOutError
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.objects import find_generators, preserve_generators
from sightline.doctor.rules import rule
from sightline.engine.run_data import DataSubset
from sightline.instrument.random_state import preserve_random_state
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.leaves import array_leaves, as_bytes
from sightline.workbench.check.context import Context
from sightline.workbench.check.evidence import place
from sightline.workbench.check.sample_statistics import distinct_parts

_NUM_KEYS = 4
_MAX_READING_S = 4.0
"""Processor time for two reads of a sample, above which no more are read: a hundred times what usual ones take."""


class KeyedReads(NamedTuple):
    """Stages of reads of one key: two with the same random states, one with states that moved on; rows of batches."""

    part: DataSubset
    sample: int
    same: list[list[tuple[str, Batch]]]
    later: list[tuple[str, Batch]]


@measure()
def keyed_reads(run: Context) -> list[KeyedReads]:
    """Read a few keys of each split three times."""
    found = []
    for part in distinct_parts(run.built.data):
        generators = find_generators(part)
        for index in part.evenly_spaced_indices(1 if run.is_quick else _NUM_KEYS):
            key, started, same = SampleKey(int(index), 0, run.config.seed), time.thread_time(), []
            for _ in range(2):
                with preserve_random_state(), preserve_generators(generators):
                    same.append([(name, dict(batch)) for name, batch in part.reader.batch_stages(key)])
            if time.thread_time() - started > _MAX_READING_S:
                run.examination.gaps.append(f"repeated reads of the {part.split} part, whose samples are slow to read")
                break
            with preserve_random_state(), preserve_generators(generators):
                list(part.reader.batch_stages(key))
                found.append(KeyedReads(part, key.index, same, list(part.reader.batch_stages(key))))
    return found


class JointRead(NamedTuple):
    """Rows of a field of a few samples: read together, as one batch, and each alone."""

    part: DataSubset
    name: str
    together: list[Tensor]
    alone: list[Tensor]


@measure()
def joint_reads(run: Context, keyed_reads: list[KeyedReads]) -> list[JointRead]:
    """Read the first samples of each split that is read in time, as a batch and alone."""
    found = []
    for part in {id(each.part): each.part for each in keyed_reads}.values():
        keys = [SampleKey(int(index), 0, run.config.seed) for index in part.indices[:_NUM_KEYS]]
        together = split_rows(part.reader, part.reader(keys))
        alone = [split_rows(part.reader, part.reader([key])) for key in keys]
        for name, rows in together.items():
            own = [each[name][0] for each in alone if name in each]
            found += [JointRead(part, name, rows, own)] if len(own) == len(rows) == len(keys) else []
    return found


def _find_difference(first: list[tuple[str, Batch]], second: list[tuple[str, Batch]]) -> tuple[int, str]:
    """Return the first stage of two reads that differs, 0 for the data set, and its field; "" where they are equal."""
    for number, ((_, one), (_, two)) in enumerate(zip(first, second, strict=True)):
        for field in sorted(one):
            leaves = [
                [as_bytes(tensor).tobytes() for _, tensor in array_leaves(each.get(field))] for each in (one, two)
            ]
            if leaves[0] != leaves[1]:
                return number, field
    return 0, ""


def _name_stage(stages: list[tuple[str, Batch]], number: int) -> str:
    return f"the transform '{stages[number][0]}'" if number else "the data set"


@rule(
    "data-mutation",
    "error",
    "data.item_mutation",
    holds="equal bits: reading changes nothing that is stored",
    do="copy before editing (`x = x * s`, or clone() first), not `x *= s` on what is stored",
)
def data_mutation(keyed_reads: list[KeyedReads]) -> Iterator[Fault]:
    """Compare reads of a key with equal random states, stage by stage: transforms are of the run.

    The rule of a module reads three times, as its set may fill a cache, and compares what is stored.
    """
    for each in keyed_reads:
        number, field = _find_difference(*each.same)
        if field:
            measured, where = f"'{field}' differs", place(each.part, each.sample)
            yield Fault(
                f"reading a sample changes it: {_name_stage(each.later, number)} edits what is stored",
                measured=measured,
                where=where,
                evidence={"field": field},
            )
            return


@rule(
    "own-generator",
    "error",
    "data.duplicate_randomness sys.nondeterminism",
    holds="equal bits: a sample is a function of (index, epoch, seed)",
    do="draw from `draws`, which a transform receives, or from `key.generator()`",
)
def own_generator(keyed_reads: list[KeyedReads]) -> Iterator[Fault]:
    """Compare reads of a key before and after other draws: workers would repeat each other's numbers.

    Samples of a module may differ from read to read: its rule looks for a global generator that a read seeds.
    """
    for each in keyed_reads:
        number, field = _find_difference(each.same[1], each.later)
        if field and not _find_difference(*each.same)[1]:
            measured, where = f"'{field}' differs", place(each.part, each.sample)
            stage = _name_stage(each.later, number)
            summary = f"{stage} draws from a generator of its own or a global one: a key gives other samples"
            yield Fault(summary, measured=measured, where=where, evidence={"field": field})
            return


_OTHER_SEEDS = (1, 2)
"""Added to the seed of a key: a flip by chance comes out alike for four samples and two of them once in 256."""


class RedrawnRead(NamedTuple):
    """Reads of an evaluated sample whose seeds differ: the first transform and field that do, "" for none."""

    part: DataSubset
    sample: int
    transform: int
    name: str
    field: str


@measure()
def redrawn_reads(run: Context, keyed_reads: list[KeyedReads]) -> list[RedrawnRead]:
    """Read evaluated samples with the random numbers of other seeds; what a set itself draws is left aside."""
    found = []
    for part, sample, (first, _), _ in (each for each in keyed_reads if each.part.split != "train"):
        for other in _OTHER_SEEDS:
            key = SampleKey(sample, 0, run.config.seed + other)
            second = [(name, dict(batch)) for name, batch in part.reader.batch_stages(key)]
            stage, field = _find_difference(first, second)
            found.append(RedrawnRead(part, sample, stage - 1, first[stage][0], field))
    return [each for each in found if each.transform >= 0 or not each.field]


@rule(
    "random-evaluation",
    "warning",
    "eval.protocol data.augment_target_mismatch",
    holds="transforms of evaluation that draw no random numbers, but for views that are compared with each other",
    do="take the transform out of transforms.evaluate, or make it choose without a draw, such as the first points",
)
def drawn_evaluation(redrawn_reads: list[RedrawnRead]) -> Iterator[Fault]:
    """Compare evaluated samples of several seeds: figures would be those of the seed.

    The rule of a module compares outputs of a model; transforms are of the run.
    """
    for part, sample, number, name, field in redrawn_reads:
        if field and not _adds_views(part.reader, number):
            yield Fault(
                f"the transform '{name}' of evaluation draws random numbers: figures depend on the seed",
                measured=f"'{field}' differs between seeds",
                where=FindingLocation(dataset=part.split, sample=sample, config_path=f"transforms.evaluate.{number}"),
                evidence={"field": field},
            )
            return


def _adds_views(reader: BatchReader, number: int) -> bool:
    """Return True if a transform makes further fields: views of a sample are drawn."""
    transform = getattr(reader.transforms.functions[number].function, "__self__", None)
    return isinstance(transform, Transform) and bool(transform.adds)


@rule(
    "exchanged-rows",
    "error",
    "data.pairing data.padding data.duplicate_randomness",
    holds="the same values of a sample alone and in any batch",
    do="look at what changes the field of whole batches: a transform, get_batch or collate",
)
def exchanged_rows(keyed_reads: list[KeyedReads], joint_reads: list[JointRead]) -> Iterator[Fault]:
    """Compare the rows of a batch with its samples read alone, ragged ones too, unlike a rule of loaders."""
    if any(_find_difference(*each.same)[1] or _find_difference(each.same[1], each.later)[1] for each in keyed_reads):
        raise LeftOutError("samples that change")
    for part, name, together, alone in joint_reads:
        wrong = [i for i, row in enumerate(together) if not _is_near(row, alone[i])]
        if wrong:
            summary, where = f"'{name}' of a sample depends on what else is in its batch", place(part)
            measured = f"row {wrong[0]} of {len(together)} differs from the sample alone"
            yield Fault(summary, measured=measured, where=where)
            return


def split_rows(reader: BatchReader, batch: Batch) -> dict[str, list[Tensor]]:
    """Split the tensors of a batch into those of its samples."""
    rows = {}
    for name, value in batch.items():
        field = reader.fields.get(name)
        if (
            isinstance(value, Tensor)
            and field is not None
            and field.collate == "concatenate"
            and field.offsets in batch
        ):
            rows[name] = list(value.split(batch[field.offsets].diff().tolist()))
        elif isinstance(value, Tensor) and field is not None and field.collate == "stack" and value.ndim:
            rows[name] = list(value)
    return rows


def _is_near(first: Tensor, second: Tensor) -> bool:
    """Return True for equal values, up to what another order of sums gives."""
    if first.shape != second.shape:
        return False
    scale = float(second.double().nan_to_num().abs().max()) if second.numel() else 0.0
    return bool(torch.allclose(first.double(), second.double(), rtol=0, atol=1e-4 * scale, equal_nan=True))
