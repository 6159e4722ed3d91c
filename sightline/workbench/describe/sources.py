"""Run to describe, built on its data or, if that is missing, on random samples of the expected fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.config import RunConfig, locate_errors
from sightline.contract import registry
from sightline.contract.draws import Draws
from sightline.contract.errors import DataError, MissingDataError
from sightline.contract.members import DataMembers
from sightline.contract.schema import signature_parameters
from sightline.contract.types import DataInfo, Field, PrintedTable, Sample, SampleKey
from sightline.engine.build import Data, DataSubset, TrainingSetup, build, build_transforms
from sightline.engine.run_loading import OpenRun
from sightline.runs.lineage import INPUTS_FILE
from sightline.runs.run_files import RunFiles
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.describe.trace import preserve_all_rng_states

_NUM_SAMPLES = 64
_DEFAULT_LENGTH = 1024
"""Default length of a named axis: the points per cloud in classification papers."""


class DataDescription(NamedTuple):
    """Description of a run's data that an area adds (`PARTS["descriptions"]`): its key, figures, and lines to print."""

    name: str
    document: Mapping[str, Any]
    lines: list[str | PrintedTable]


class DescribedRun(NamedTuple):
    """Run to describe, the origin of its batch as text, and whether samples were made up (`is_promised`)."""

    built: TrainingSetup
    batch: str
    is_promised: bool = False


def build_subject(opened: OpenRun) -> DescribedRun:
    """Build a run on its own data or, if that is missing, on random samples of the fields expected of the data.

    The expected fields are those that the run recorded or its data set declares. Initial weights of the config are not
    loaded. Global random states do not change. Raises DataError if neither data nor expected fields are available.
    """
    config, world = opened.config, opened.world
    with preserve_all_rng_states():
        try:
            built = build(config, world, is_resumed=True)
            return DescribedRun(
                built, f"the first samples of data set '{config.data.name}', with its training transforms"
            )
        except MissingDataError as error:
            info, source = _find_expected_info(config, opened.files, error)
            with locate_errors(config.origins):
                data = _make_placeholder_data(config, info)
            built = build(config, world, is_resumed=True, data=data)
            reason = " ".join(str(error).split())
            origin = f"random samples as {source} declares them, because the data is missing ({reason})"
            return DescribedRun(built, origin, is_promised=True)


class PlaceholderDataset:
    """Data set of random samples with the shapes, dtypes and bounds of the fields of `info`.

    `lengths` maps named axes to their length ("points": 1024), 1,024 by default. The same key gives the same sample.
    """

    def __init__(self, *, info: DataInfo, lengths: Mapping[str, int]) -> None:
        self.info = info
        self._lengths = lengths

    def __len__(self) -> int:
        return _NUM_SAMPLES

    def __getitem__(self, key: SampleKey) -> Sample:
        draws = Draws.for_samples([key])
        return {name: self._value(field, draws.stream(name)) for name, field in self.info.fields.items()}

    def _value(self, field: Field, draws: Draws) -> Tensor:
        shape = [
            int(word) if word.isdigit() else self._lengths.get(word, _DEFAULT_LENGTH) for word in field.shape.split()
        ]
        low = field.low if field.low is not None else 0.0
        high = field.high if field.high is not None else low + 1.0
        unit = draws.uniform(*shape)[0]
        dtype = getattr(torch, field.dtype)
        if dtype.is_floating_point:
            return (low + (high - low) * unit).to(dtype)
        return (low + (unit * (high - low + 1)).floor()).clamp(max=high).to(dtype)


def _find_expected_info(config: RunConfig, run: RunFiles | None, error: DataError) -> tuple[DataInfo, str]:
    """Return the expected DataInfo and who declares it; raises `error` if nobody does."""
    if run is not None and (run.path / INPUTS_FILE).is_file():
        return run.inputs, f"the run {run.path}"
    builder = registry.data.entry(config.data).builder
    promise = DataMembers.expected_info.get(builder)
    if promise is None:
        raise error
    parameters = signature_parameters(promise)
    arguments = {name: value for name, value in config.data.arguments.items() if name in parameters}
    return promise(**arguments), f"data set '{config.data.name}'"


def _make_placeholder_data(config: RunConfig, info: DataInfo) -> Data:
    dataset = PlaceholderDataset(info=info, lengths=_lengths(config, info))
    parts = [
        DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset, build_transforms(blocks, info.facts)), split)
        for blocks, split in ((config.transforms.train, "train"), (config.transforms.evaluate, "test"))
    ]
    return Data(parts[0], parts[1], parts[1], {**info.facts, **parts[0].reader.facts})


def _lengths(config: RunConfig, info: DataInfo) -> dict[str, int]:
    """Find the lengths of named axes: from the data's arguments (`num_points` of "points"), else from stored clouds.

    If neither defines it, clouds have as many points as the transforms select.
    """
    lengths = {"points": max([_DEFAULT_LENGTH, *_selected_points(config)])}
    if info.clouds is not None and info.clouds.stored_points is not None:
        lengths["points"] = info.clouds.stored_points
    for name, value in config.data.arguments.items():
        match = re.fullmatch(r"num_(\w+)", name)
        if match and isinstance(value, int) and not isinstance(value, bool):
            lengths[match.group(1)] = value
    return lengths


def _selected_points(config: RunConfig) -> list[int]:
    """List the numbers of points that transforms select."""
    blocks = (*config.transforms.train, *config.transforms.evaluate)
    return [count for block in blocks if isinstance(count := block.arguments.get("num_points"), int)]
