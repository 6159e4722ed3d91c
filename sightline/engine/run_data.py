"""Data of a run, built from its config: splits, their readers, and the facts that they state."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sightline.config import RunConfig
from sightline.config.plain_values import to_plain
from sightline.contract import registry
from sightline.contract.dataset import Dataset, get_data_digest
from sightline.contract.errors import ConfigError, escape_to_one_line
from sightline.contract.facts import check_data_facts
from sightline.contract.types import ComponentConfig
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.divided_copies import divide_copies
from sightline.store.loading.stratified import stratified_split
from sightline.store.loading.transform_pipeline import NamedTransform
from sightline.store.prepared.prepared_set import prepared_root

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSubset:
    """Some samples of a data set, and the readers that train and evaluate on them."""

    dataset: Dataset
    indices: np.ndarray
    reader: BatchReader
    split: str

    def sample_name(self, index: int) -> str:
        """Return the data set's name of a sample, or its index as text if the set names none."""
        sample_name = self.dataset.sample_name
        return str(index) if sample_name is None else str(sample_name(index))

    def evenly_spaced_indices(self, count: int) -> np.ndarray:
        """Return at most `count` of the indices (int64), evenly spaced from the first to the last."""
        positions = np.linspace(0, len(self.indices) - 1, min(count, len(self.indices))).astype(np.int64)
        chosen: np.ndarray = self.indices[positions]
        return chosen


@dataclass(frozen=True)
class Data:
    """Splits of a run (training, selection of the best checkpoint, test) and the facts of its data."""

    train: DataSubset
    selection: DataSubset
    test: DataSubset
    facts: Mapping[str, Any]


def describe_data(facts: Mapping[str, Any], *parts: DataSubset) -> dict[str, Any]:
    """Describe data by numbers of samples, facts, and the digests of the data sets that state one; none is read."""
    digests = dict.fromkeys(str(get_data_digest(part.dataset)) for part in parts)
    return {
        **{f"number of {part.split} samples": len(part.indices) for part in parts},
        "fingerprint of the data": " + ".join(digests),
        **{f"fact {name}": to_plain(value) for name, value in facts.items()},
    }


def log_linked_data_folder(config: RunConfig, world: World) -> None:
    """Log the target of a data folder that is a symbolic link, as the link may change."""
    root = prepared_root(config.data.arguments.get("root"), config.data.name)
    if root.is_symlink():
        target = escape_to_one_line(os.path.realpath(root))
        world.rank_zero_only(logger.warning)("data-link: %s leads to %s", escape_to_one_line(str(root)), target)


def log_unused_validation(config: RunConfig, data: Data, world: World) -> None:
    """Log the size of a validation part that a data set holds out and `evaluate.select: test` does not score."""
    num_unused = data.train.dataset.info.split_sizes.get("validation", 0)
    if config.evaluate.select == "test" and num_unused and config.data.arguments.get("validation_share"):
        world.rank_zero_only(logger.warning)(
            "unused-validation: with evaluate.select=test, the %d samples of the validation part are neither trained "
            "on nor scored; data.validation_share=0 trains on them, unless the files of the set state that part",
            num_unused,
        )


class EmptyValidationError(ConfigError):
    """Too few samples of training to hold some out for validation."""


def build_data(config: RunConfig) -> Data:
    """Build the data sets of every split, hold out a validation part if necessary, and collect the facts."""
    transforms = config.transforms
    train_set = _build_dataset(config, "train")
    facts = dict(train_set.info.facts)
    check_data_facts(config.data, facts)
    splits = train_set.info.split_sizes
    all_indices = np.arange(len(train_set))
    train_indices, held_out, selection_set, split = all_indices, all_indices, train_set, "validation"
    test_set = _build_dataset(config, "test") if "test" in splits else None
    if config.evaluate.select == "test":
        if test_set is None:
            raise ConfigError(
                f"evaluate.select: test, but data set '{config.data.name}' has no test part; it has {', '.join(splits)}"
            )
        selection_set, held_out, split = test_set, np.arange(len(test_set)), "test"
    elif "validation" in splits:
        selection_set = _build_dataset(config, "validation")
        held_out = np.arange(len(selection_set))
    else:
        repeats = train_set.repeats
        size = len(train_set) // repeats
        train_indices, held_out = stratified_split(size, train_set.strata, seed=config.seed)
        train_indices = np.concatenate([train_indices + visit * size for visit in range(repeats)])
        if not len(held_out):
            raise EmptyValidationError(
                f"evaluate.select: a tenth of {size} training samples held out for validation is empty; "
                "use evaluate.select=test or more data"
            )
    train_indices, held_out = divide_copies(train_set, train_indices, selection_set, held_out, test_set)
    train_reader = BatchReader(
        train_set,
        build_transforms(transforms.train, {**facts, "num_epochs": config.train.epochs}),
        mixing_indices=train_indices,
    )
    train = DataSubset(train_set, train_indices, train_reader, "train")
    selection = DataSubset(selection_set, held_out, build_reader(selection_set, transforms.evaluate, facts), split)
    test = selection
    if test_set is not None:
        test_reader = build_reader(test_set, transforms.evaluate, facts)
        test = DataSubset(test_set, np.arange(len(test_set)), test_reader, "test")
    _check_transform_facts(config, train_reader.facts, selection.reader.facts)
    return Data(train, selection, test, {**facts, **train_reader.facts})


def build_part(config: RunConfig, split: str) -> DataSubset:
    """Build one split of a config's data, read with the evaluation transforms."""
    dataset = _build_dataset(config, split)
    return DataSubset(
        dataset, np.arange(len(dataset)), build_reader(dataset, config.transforms.evaluate, dataset.info.facts), split
    )


def read_with(
    config: RunConfig, part: DataSubset, transforms: Literal["train", "evaluate", "none"], training: DataSubset
) -> DataSubset:
    """Return a split that is read with other transforms of the config; those of training mix `training` samples."""
    facts = dict(training.dataset.info.facts)
    if transforms == "train":
        chosen = build_transforms(config.transforms.train, {**facts, "num_epochs": config.train.epochs})
        reader = BatchReader(part.dataset, chosen, mixing_indices=training.indices)
    else:
        reader = build_reader(part.dataset, config.transforms.evaluate if transforms == "evaluate" else (), facts)
    return dataclasses.replace(part, reader=reader)


def build_transforms(components: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> list[NamedTransform]:
    """Build the transforms of these config blocks, in order."""
    return [NamedTransform(c.name, registry.transforms.build(c, facts=facts)) for c in components]


def _build_dataset(config: RunConfig, split: str) -> Dataset:
    dataset = registry.data.build(config.data, facts={"split": split})
    with registry.locate_errors(config.data):
        size = len(dataset)
    if size == 0:
        raise ConfigError(f"{config.data.location}: the {split} part of data set '{config.data.name}' holds no samples")
    return dataset


def build_reader(dataset: Dataset, components: Sequence[ComponentConfig], facts: Mapping[str, Any]) -> BatchReader:
    """Build a reader of a data set with the transforms of these config blocks."""
    return BatchReader(dataset, build_transforms(components, facts))


def _check_transform_facts(config: RunConfig, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Raise ConfigError if transforms state different facts in training and evaluation."""
    for name in sorted(training.keys() | evaluation.keys()):
        ours, theirs = training.get(name), evaluation.get(name)
        if ours != theirs:
            locations = (where for key, where in config.origins.items() if key.startswith("transforms.evaluate."))
            where = next(locations, config.data.location)
            raise ConfigError(
                f"{where}: transforms.train state {name} = {ours}, transforms.evaluate {theirs}; the model "
                "sees both: give both the same transform that states it"
            )
