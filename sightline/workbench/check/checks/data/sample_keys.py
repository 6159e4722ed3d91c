"""Samples that are not a function of their key alone: own random numbers, exchanged rows, one sample for all keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.contract.members import DataMembers
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.objects import find_named_generators, get_state, preserve_generators
from sightline.engine.build import DataSubset, build_data
from sightline.instrument.random_state import preserve_random_state
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.batch_reader import BatchReader, array_leaves, as_bytes
from sightline.workbench.check.context import Context, check, splits, surveys
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import PartStatistics, describe_sample
from sightline.workbench.check.core.transform_steps import get_transform, is_plugin

Stages = list[tuple[str, Batch]]
_NUM_KEYS, _NUM_READS = 4, 3
_GLOBAL: Mapping[str, Callable[[], Any]] = {
    "Python's random": random.getstate,
    "NumPy": np.random.get_state,
    "torch": torch.get_rng_state,
}


@check(
    "own-generator",
    "preflight",
    each=splits,
    causes=("data.duplicate_randomness", "sys.nondeterminism"),
    expected="equal bits: a sample is a function of (index, epoch, seed)",
)
def own_generator(context: Context, part: DataSubset) -> Fault | None:
    """A key gives the same bits regardless of what was read before it, also in another reader of the same config.

    Finds: Sets and transforms that draw from a generator of their own or a global one, not from the sample's.

    Worker processes each have a copy of such a generator: they repeat each other's numbers, other numbers of workers or
    processes give other samples, and a resumed run does not continue as it would have.
    """
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_NUM_KEYS)]
    if not _is_suspect(context, part):
        return None
    try:
        return _find_drawn(context, part, keys) or _find_rebuilt(context, part, keys)
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return None


def _find_drawn(context: Context, part: DataSubset, keys: Sequence[SampleKey]) -> Fault | None:
    """Read keys again without restoring generators, if reading them draws from one that this process can see."""
    generators = find_named_generators(part)
    for key in keys:
        before = _get_states(generators)
        with preserve_random_state(), preserve_generators([generator for _, generator in generators]):
            reads = [list(part.reader.batch_stages(key))]
            drawn = [name for name, state in _get_states(generators).items() if state != before[name]]
            if not drawn:
                continue
            reads += [list(part.reader.batch_stages(key)) for _ in range(_NUM_READS - 1)]
        kind = "a global generator" if drawn[0] in _GLOBAL else "a generator of its own"
        fault = _compare_reads(part, key, reads, f"draws from {kind}: the same key gives other samples")
        if fault is not None:
            evidence = {**fault.evidence, "generators": drawn}
            return replace(fault, measured=f"{fault.measured}; {', '.join(drawn[:3])} moved on", evidence=evidence)
    return None


def _compare_reads(
    part: DataSubset, key: SampleKey, reads: Sequence[list[tuple[str, Batch]]], text: str
) -> Fault | None:
    """Make the fault of the set or transform from which on reads of a key differ; None if they do not."""
    place, field = next(_iter_differences(reads), (0, ""))
    if not field:
        return None
    stage = "train" if part.split == "train" else "evaluate"
    name = f"the transform '{reads[0][place][0]}'" if place else f"the data set ({type(part.dataset).__name__})"
    return Fault(
        f"{name} {text}",
        at=f"transforms.{stage}.{place - 1}" if place else "data",
        split=part.split,
        sample=key.index,
        measured=f"'{field}' of {describe_sample(part.dataset, key.index)} differs between {len(reads)} reads",
        action="draw from `draws`, which a transform receives" if place else "draw from `key.generator()`",
        evidence={"field": field},
    )


def _get_states(generators: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """Return the states of these and of the global generators as text."""
    states = {name: get() for name, get in _GLOBAL.items()}
    states |= {path.rpartition("__self__.")[2].removeprefix("dataset."): get_state(each) for path, each in generators}
    return {name: _write_state(state) for name, state in states.items()}


def _write_state(state: Any) -> str:
    """Write all of a state as text; NumPy's own text of an array takes 10 ms, and leaves out numbers of a long one."""
    if isinstance(state, Tensor | np.ndarray):
        return np.asarray(state).tobytes().hex()
    items = list(state.values()) if isinstance(state, Mapping) else state
    if isinstance(items, list | tuple):
        return str([_write_state(item) if isinstance(item, Mapping | np.ndarray) else item for item in items])
    return str(items)


def _iter_differences(reads: Sequence[Stages]) -> Iterator[tuple[int, str]]:
    """Yield the stages, and fields, at which reads of a key differ."""
    first = reads[0]
    for other in reads[1:]:
        for place, ((_, one), (_, two)) in enumerate(zip(first, other, strict=True)):
            yield from ((place, name) for name in sorted(one) if not _is_same(one[name], two.get(name)))


def _is_same(first: Any, second: Any) -> bool:
    leaves = [list(array_leaves(value)) for value in (first, second)]
    return len(leaves[0]) == len(leaves[1]) and all(
        one.shape == two.shape and one.dtype == two.dtype and np.array_equal(as_bytes(one), as_bytes(two))
        for (_, one), (_, two) in zip(*leaves, strict=True)
    )


def _find_rebuilt(context: Context, part: DataSubset, keys: Sequence[SampleKey]) -> Fault | None:
    """Compare with a reader built anew, under `sightline check`, if the set or a transform is a plugin's."""
    if not context.is_thorough or not any(map(is_plugin, _list_components(part))):
        return None
    with preserve_random_state():
        random.seed(1)
        np.random.seed(1)
        torch.default_generator.manual_seed(1)
        data = build_data(context.config)
    other = next(each for each in (data.train, data.selection, data.test) if each.split == part.split)
    if not _is_alike(part, other):
        return None
    text = "draws random numbers when it is built: a resumed run, or another process, has other samples"
    for key in keys:
        reads = [list(reader.batch_stages(key)) for reader in (part.reader, other.reader)]
        fault = _compare_reads(part, key, reads, text)
        if fault is not None:
            return fault
    return None


def _list_components(part: DataSubset) -> list[object]:
    """List the data set and the transforms of a split."""
    return [part.dataset, *(get_transform(bound) for bound in part.reader.transforms.functions)]


def _is_suspect(context: Context, part: DataSubset) -> bool:
    """Return True under `sightline check`, and for a split whose set or transforms are of plugins."""
    return context.is_thorough or any(map(is_plugin, _list_components(part)))


def _is_alike(part: DataSubset, other: DataSubset) -> bool:
    """Return True if two parts are of the same classes: a caller may have replaced the config's own data."""
    classes = [list(map(type, _list_components(each))) for each in (part, other)]
    return classes[0] == classes[1] and len(part.dataset) == len(other.dataset)


# --- rows of a batch --------------------------------------------------------------------------------------------------

_NUM_TOGETHER, _MAX_READ_S = 4, 0.003
_TOLERANCE = 1e-4  # of the largest value: a library may sum a larger batch in another order


@check(
    "exchanged-rows",
    "preflight",
    each=splits,
    config_path="data",
    expected="the same values alone and in any batch",
)
def exchanged_rows(context: Context, part: DataSubset) -> Fault | None:
    """A sample has the same values alone and in a batch.

    Finds: Sets and transforms that exchange labels, boxes or clouds of different samples within a batch.
    """
    makes_batches = any(member.get(part.dataset) is not None for member in (DataMembers.get_batch, DataMembers.collate))
    if not makes_batches or not _is_suspect(context, part):
        return None  # samples are read, transformed and collated one by one
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.indices[:_NUM_TOGETHER]]
    try:
        first = _split_rows(part.reader, part.reader(keys[:1]))
        started = compute_seconds()
        part.reader(keys[:1])  # the first may have filled a cache
        if not context.is_thorough and compute_seconds() - started > _MAX_READ_S:
            return None
        rows = _split_rows(part.reader, part.reader(keys))
        alone = [_split_rows(part.reader, part.reader([key])) for key in keys]
    except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
        return None
    for name, values in rows.items() if keys else ():
        own = [single[name][0] for single in alone if name in single]
        if len(own) != len(keys) or len(values) != len(keys) or not _is_close(own[0], first[name][0]):
            continue  # the last: `data-mutation` reports it
        row = next((row for row, value in enumerate(values) if not _is_close(value, own[row])), None)
        if row is not None:
            source = next((index for index, other in enumerate(own) if _is_close(values[row], other)), None)
            return _make_row_fault(part, name, keys[row], row, source)
    return None


def _make_row_fault(part: DataSubset, name: str, key: SampleKey, row: int, source: int | None) -> Fault:
    """Make the fault of the first row of a batch that differs from the sample alone; `source` is whose values it has.

    The first row alone, which is in the same place, was found equal if another one is the first to differ.
    """
    causes = ("data.pairing", "data.duplicate_randomness")
    if source is None:
        causes = ("data.duplicate_randomness", "data.padding") if row else ("data.padding", "data.pairing")
    return Fault(
        f"'{name}' of a sample depends on "
        + ("its place in its batch" if row and source is None else "what else is in its batch"),
        causes=causes,
        split=part.split,
        sample=key.index,
        measured=f"row {row} of a batch of {_NUM_TOGETHER} has "
        + ("values that no sample has alone" if source is None else f"the values of row {source} read alone"),
        action=f"look at what changes '{name}' of whole batches: a transform, `get_batch` or `collate`",
        evidence={"field": name},
    )


def _split_rows(reader: BatchReader, batch: Batch) -> dict[str, list[Tensor]]:
    """Split the tensors of a batch into those of its samples."""
    rows = {}
    for name, value in batch.items():
        field = reader.fields.get(name)
        if not isinstance(value, Tensor) or field is None:
            continue
        if field.collate == "concatenate" and field.offsets in batch:
            rows[name] = list(value.split(batch[field.offsets].diff().tolist()))
        elif field.collate == "stack" and value.ndim:
            rows[name] = list(value)
    return rows


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    one, two = first.double(), second.double()
    scale = float(two.nan_to_num().abs().max()) if two.numel() else 0.0
    return bool(torch.allclose(one, two, rtol=0, atol=_TOLERANCE * scale, equal_nan=True))


# --- samples of a split -----------------------------------------------------------------------------------------------

_MIN_SAMPLES = 8
_MAX_REPEATED = 0.5
_EMPTY_CAUSES = ("data.corrupt_sample", "data.path", "data.missing_modality")
_INPUTS = ("points", "image", "depth", "volume", "range_image", "features")


@check("repeated-samples", "preflight", each=surveys, config_path="data")
def repeated_samples(context: Context, survey: PartStatistics) -> Iterator[Fault]:
    """Samples differ: no input is the same for all indices, and at most half of them repeat another one.

    Finds: Data sets that give the same cloud, image or scan for every index, or an empty one.
    """
    for name in _INPUTS:
        statistics = survey.fields.get(name)
        if statistics is None or statistics.num_hashed < _MIN_SAMPLES:
            continue
        count, total = len(statistics.contents), statistics.num_hashed
        if count > 1 and count >= (1 - _MAX_REPEATED) * total:
            continue
        is_empty = count == 1 and statistics.low == statistics.high
        is_only = all(len(s.contents) <= 1 for other in _INPUTS if (s := survey.fields.get(other)) is not None)
        others_differ = any(
            len(s.contents) > (1 - _MAX_REPEATED) * s.num_hashed
            for other in _INPUTS
            if (s := survey.fields.get(other)) is not None
        )
        yield Fault(
            f"'{name}' is {f'{statistics.low:g} everywhere' if is_empty else 'the same'} in every sample"
            if count == 1
            else f"'{name}' has {count} different values in {total} samples",
            severity="error" if count == 1 else "warning",
            causes=_EMPTY_CAUSES[:: 1 if is_only else -1]
            if is_empty
            else ("data.pairing", "data.sampling", "data.path")
            if others_differ  # the index reaches them: this one is of another sample
            else ("data.sampling", "data.pairing", "data.path"),
            sample=next(iter(statistics.contents.values())),
            measured=f"{count} different of {survey.coverage_text}",
            expected="samples that differ from each other",
            action="look at how `__getitem__` uses the index of its key, and at what it caches",
            evidence={"field": name},
        )
