"""Concatenation of several data sets of one kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from sightline.contract import registry
from sightline.contract.arguments import DataBlock
from sightline.contract.dataset import Dataset, get_data_digest
from sightline.contract.errors import ConfigError
from sightline.contract.types import DataInfo, Dealing, Sample, SampleKey


@registry.data.add("concat")
class Concat(Dataset):
    """Concatenation of several data sets; every sample is read as from its own set.

    The sets have the same splits, the same fields, and the same facts except `class_counts`, which are added, and
    `box_type`, which names all of them. Images with boxes have their index in the split, from 1, as id in files of
    results. Raises ConfigError, naming the two sets and the difference, for others. Source: made here.
    """

    def __init__(self, *, sets: tuple[DataBlock, ...], split: str) -> None:
        if not sets:
            raise ConfigError("sets: is empty; give at least one data set")
        self._sets: tuple[Any, ...] = sets
        self._ends = list(accumulate(len(data_set) for data_set in sets))
        self.info = _combine_infos([data_set.info for data_set in sets])
        if any(data_set.collate is not None for data_set in sets):
            raise ConfigError("sets: one of them combines its samples in a way of its own; train on it alone")
        strata = [data_set.strata for data_set in sets]
        self.strata = None if any(data_set is None for data_set in strata) else np.concatenate(strata)
        fingerprints = [data_set.fingerprint for data_set in sets]
        self.fingerprint = None if None in fingerprints else " + ".join(map(str, fingerprints))
        digests = [get_data_digest(data_set) for data_set in sets]
        self.content_sha256 = None if None in digests else " + ".join(map(str, digests))
        if "boxes" in self.info.fields:
            self.classes = getattr(sets[0], "classes", None)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: SampleKey) -> Sample:
        set_index, index = self._locate(key.index)
        return self._sets[set_index][dataclasses.replace(key, index=index)]

    def sample_name(self, index: int) -> str:
        """Name of a sample in reports."""
        set_index, local_index = self._locate(index)
        return f"{set_index + 1}/{self._sets[set_index].sample_name(local_index)}"

    def record(self, index: int) -> Any:
        """Return the boxes of an image, if the sets have images with boxes."""
        set_index, local_index = self._locate(index)
        return self._sets[set_index].record(local_index)

    def image(self, index: int) -> Any:
        """Return name, id and size of an image for files of results."""
        set_index, local_index = self._locate(index)
        return self._sets[set_index].image(local_index)._replace(name=self.sample_name(index), image_id=index + 1)

    def set_index(self) -> Any:
        """Return the index of every image and class of the sets, in this split or not."""
        set_indices = [data_set.set_index() for data_set in self._sets]
        names = (
            f"{set_number}/{key}"
            for set_number, data_set in enumerate(set_indices, start=1)
            for key in data_set.images
            if type(key) is str
        )
        return set_indices[0]._replace(
            images=frozenset(names), category_ids=frozenset().union(*(set_index[1] for set_index in set_indices))
        )

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of a sample's set, and the sample's index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"concat: sample {index}, of {len(self)}")
        set_index = int(np.searchsorted(self._ends, index, side="right"))
        return set_index, index - (self._ends[set_index - 1] if set_index else 0)


def _combine_infos(infos: Sequence[DataInfo]) -> DataInfo:
    """Combine the infos of the sets. Raises ConfigError naming the first difference."""
    first = infos[0]
    for set_number, info in enumerate(infos[1:], start=2):
        _assert_same("fields", first.fields, info.fields, set_number)
        _assert_same("splits", dict.fromkeys(first.split_sizes, ""), dict.fromkeys(info.split_sizes, ""), set_number)
        _assert_same("facts", _select_common_facts(first.facts), _select_common_facts(info.facts), set_number)
        if info.features != first.features:
            raise ConfigError(f"sets: set {set_number} has the features {info.features}, set 1 {first.features}")
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
    """Return the rule by which all sets were split; None if they differ, as the config then states each."""
    stated = [dealing for dealing in dealings if dealing is not None]
    if len(stated) < len(dealings) or len({(dealing.rule, dealing.seed) for dealing in stated}) != 1:
        return None
    parts = tuple(dict.fromkeys(part for dealing in stated for part in dealing.parts))
    return dataclasses.replace(stated[0], parts=parts)


def _select_common_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that must agree; of counts and kinds of boxes only if they are stated."""
    return {name: "" if name in ("class_counts", "box_type") else value for name, value in facts.items()}


def _assert_same(subject: str, first: Mapping[str, Any], other: Mapping[str, Any], set_number: int) -> None:
    """Raise ConfigError naming the first key of two mappings with different values."""
    for name in sorted(first.keys() | other.keys()):
        ours, theirs = (facts.get(name, "nothing") for facts in (first, other))
        if ours != theirs:
            raise ConfigError(
                f"sets: {subject} must agree; '{name}' is {theirs} in set {set_number} and {ours} in set 1"
            )
