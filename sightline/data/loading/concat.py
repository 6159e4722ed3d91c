"""Several data sets of one kind as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from sightline import registry
from sightline.arguments import DataBlock
from sightline.errors import ConfigError
from sightline.optional_members import DataMembers
from sightline.types import DataInfo, Dealing, Sample, SampleKey

__all__ = ["Concat"]


@registry.data.add("concat")
class Concat:
    """The samples of several data sets, one set after another, each read as by itself.

    The sets have the same splits, the same fields, and the same facts but for `class_counts`, which add up, and
    `box_type`, which names all of them. Images with boxes have their place in the part, from 1, as id in files of
    results. Raises ConfigError, naming the two sets and what differs, for others. Source: made here.
    """

    def __init__(self, *, sets: tuple[DataBlock, ...], split: str) -> None:
        if not sets:
            raise ConfigError("sets: is empty; give at least one data set")
        self._sets: tuple[Any, ...] = sets
        self._ends = list(accumulate(len(each) for each in sets))
        self.info = _joined([each.info for each in sets])
        if any(DataMembers.collate.get(each) is not None for each in sets):
            raise ConfigError("sets: one of them combines its samples in a way of its own; train on it alone")
        strata = [DataMembers.strata.get(each) for each in sets]
        self.strata = None if any(each is None for each in strata) else np.concatenate(strata)
        prints = [DataMembers.fingerprint.get(each) for each in sets]
        self.fingerprint = None if None in prints else " + ".join(map(str, prints))
        if "boxes" in self.info.fields:
            self.classes = getattr(sets[0], "classes", None)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: SampleKey) -> Sample:
        own, index = self._place(key.index)
        return self._sets[own][dataclasses.replace(key, index=index)]

    def name_of(self, index: int) -> str:
        """The number of the sample's set, from 1, and what that set calls it."""
        own, place = self._place(index)
        name_of = DataMembers.name_of.get(self._sets[own])
        return f"{own + 1}/{place if name_of is None else name_of(place)}"

    def record(self, index: int) -> Any:
        """The boxes of an image, of sets of images with boxes."""
        own, place = self._place(index)
        return self._sets[own].record(place)

    def image(self, index: int) -> Any:
        """What names an image in files of results, and its size."""
        own, place = self._place(index)
        return self._sets[own].image(place)._replace(name=self.name_of(index), image_id=index + 1)

    def set_index(self) -> Any:
        """Every image of the sets by name, and every class of them, whether of this part or not."""
        every = [each.set_index() for each in self._sets]
        names = (f"{own}/{key}" for own, each in enumerate(every, start=1) for key in each.images if type(key) is str)
        return every[0]._replace(images=frozenset(names), category_ids=frozenset().union(*(e[1] for e in every)))

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a sample's set, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"concat: sample {index}, of {len(self)}")
        own = int(np.searchsorted(self._ends, index, side="right"))
        return own, index - (self._ends[own - 1] if own else 0)


def _joined(infos: Sequence[DataInfo]) -> DataInfo:
    first = infos[0]
    for place, info in enumerate(infos[1:], start=2):
        _assert_same("fields", first.fields, info.fields, place)
        _assert_same("splits", dict.fromkeys(first.split_sizes, ""), dict.fromkeys(info.split_sizes, ""), place)
        _assert_same("facts", _common(first.facts), _common(info.facts), place)
        if info.features != first.features:
            raise ConfigError(f"sets: set {place} has the features {info.features}, set 1 {first.features}")
    facts = dict(first.facts)
    if "class_counts" in facts:
        facts["class_counts"] = tuple(map(sum, zip(*(info.facts["class_counts"] for info in infos), strict=True)))
    if "box_type" in facts:
        facts["box_type"] = " + ".join(dict.fromkeys(info.facts["box_type"] for info in infos))
    sizes = {split: sum(info.split_sizes[split] for info in infos) for split in first.split_sizes}
    clouds = first.clouds if all(info.clouds == first.clouds for info in infos) else None
    dealing = _common_dealing([info.dealing for info in infos])
    return dataclasses.replace(first, facts=facts, split_sizes=sizes, clouds=clouds, folds=None, dealing=dealing)


def _common_dealing(dealings: Sequence[Dealing | None]) -> Dealing | None:
    """The rule by which all sets dealt their parts; None where they differ, as the config then says of each."""
    found = [each for each in dealings if each is not None]
    if len(found) < len(dealings) or len({(each.rule, each.seed) for each in found}) != 1:
        return None
    parts = tuple(dict.fromkeys(part for each in found for part in each.parts))
    return dataclasses.replace(found[0], parts=parts)


def _common(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that must agree; of counts and kinds of boxes only whether they are stated."""
    return {name: "" if name in ("class_counts", "box_type") else value for name, value in facts.items()}


def _assert_same(what: str, first: Mapping[str, Any], other: Mapping[str, Any], place: int) -> None:
    for name in sorted(first.keys() | other.keys()):
        ours, theirs = (each.get(name, "nothing") for each in (first, other))
        if ours != theirs:
            raise ConfigError(f"sets: {what} must agree; '{name}' is {theirs} in set {place} and {ours} in set 1")
