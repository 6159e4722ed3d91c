"""Small runs of the streets with boxes, whose frames are cast once, and sets whose samples are edited."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.config import read_config
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.run_data import build_transforms
from sightline.store.loading.batch_reader import BatchReader
from tests.conftest import ROOT
from tests.doctor.segmenting import Edited

CONFIG: Path = ROOT / "configs/boxes3d/synthetic_streets_pointpillars.yaml"
EXTENT = "[-23.04, -11.52, -3, 23.04, 11.52, 1]"
SMALL = (
    *("data.train_size=8", "data.validation_size=4", "data.test_size=4", "data.num_columns=96", "train.batch_size=2"),
    *("model.pillar_m=[0.64, 0.64]", "model.max_pillars=600", "model.encoder_widths=[8]", "train.precision=float32"),
    "model.blocks=[{num_layers: 1, width: 16, stride: 2, up_width: 16, up_stride: 1}]",
)
_CAST: dict[Any, Any] = {}


def make_streets(*overrides: str, edit: Callable[[dict, int], dict] | None = None) -> TrainingSetup:
    """The shipped recipe with a narrow network and few frames; `edit(sample, index)` changes those of the training."""
    words = (*SMALL, *(() if any("extent_m=" in word for word in overrides) else (f"model.extent_m={EXTENT}",)))
    built = build(read_config(CONFIG, (*words, *overrides)), World())
    for part in (built.data.train, built.data.selection, built.data.test):
        dataset: Any = part.dataset
        dataset._cache = _CAST.setdefault((dataset._split, dataset._num_columns), dataset._cache)
    return built if edit is None else _with_samples(built, edit)


def _with_samples(built: TrainingSetup, edit: Callable[[dict, int], dict]) -> TrainingSetup:
    dataset = Edited(built.data.train.dataset, edit)
    reader = BatchReader(dataset, build_transforms(built.config.transforms.train, dataset.info.facts))
    part = dataclasses.replace(built.data.train, dataset=dataset, reader=reader)
    job = dataclasses.replace(built.job, stream=dataclasses.replace(built.job.stream, reader=reader))
    return dataclasses.replace(built, data=dataclasses.replace(built.data, train=part), job=job)
