"""Transforms of a split applied to its samples one by one, and the verdicts of rules on what they change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sightline.contract.binding import BoundFunction
from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import DataSubset
from sightline.ops.numba_kernels import compute_seconds
from sightline.store.loading.batch_reader import takes_others

_MAX_SAMPLES = 16


class TransformStep(NamedTuple):
    """One transform applied to one sample: the batches of one before and after it, and the fields that it takes.

    `apply` applies it to another batch, with the same random numbers; `ignored` is the label that losses leave out.
    """

    number: int
    name: str
    key: SampleKey
    before: Batch
    after: Batch
    takes: frozenset[str]
    ignored: int | None
    apply: Callable[[Batch], Batch]


class Verdict(NamedTuple):
    """Comparison of a field with the one that carries it; `is_proof` if one broken sample proves a fault."""

    field: str
    carrier: str
    is_broken: bool
    measured: str
    expected: str
    cause: str = "data.augment_target_mismatch"
    is_proof: bool = True


def iter_steps(part: DataSubset, judged: set[int], *, seed: int, most_seconds: float) -> Iterator[TransformStep]:
    """Yield the judged transforms of up to 16 samples, in that CPU time but of one sample at least.

    It ends early where a sample cannot be read, which `first-step` reports.
    """
    started = compute_seconds()
    for index in part.evenly_spaced_indices(_MAX_SAMPLES):
        key = SampleKey(int(index), 0, seed)
        try:
            stages = list(itertools.islice(part.reader.batch_stages(key), max(judged) + 2))
        except Exception:  # noqa: BLE001 - a data set may fail in any way
            return
        for number in sorted(judged):
            yield _make_step(part, number, key, stages[number][1], stages[number + 1])
        if compute_seconds() - started > most_seconds:
            return


def _make_step(part: DataSubset, number: int, key: SampleKey, before: Batch, after: tuple[str, Batch]) -> TransformStep:
    transforms, ignored = part.reader.transforms, part.dataset.info.facts.get("ignore_index")

    def apply(batch: Batch) -> Batch:
        return transforms.apply_one(number, batch, [key])

    takes = frozenset(transforms.functions[number].names)
    return TransformStep(number, after[0], key, before, after[1], takes, ignored, apply)


def is_plugin(component: object) -> bool:
    """Return True for a component that is not of this package."""
    return not type(component).__module__.startswith("sightline.")


def get_transform(bound: BoundFunction) -> object:
    """Return the transform whose `__call__` is bound."""
    return getattr(bound.function, "__self__", bound.function)


def find_plugin_transforms(part: DataSubset, *, is_thorough: bool = False) -> set[int]:
    """Return the indices of transforms that do not mix samples, and are of plugins or `is_thorough`."""
    functions = [
        (index, bound) for index, bound in enumerate(part.reader.transforms.functions) if not takes_others(bound)
    ]
    return {index for index, bound in functions if is_thorough or is_plugin(get_transform(bound))}
