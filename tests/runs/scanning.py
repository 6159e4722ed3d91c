"""Small runs over range images of the embedded streets, whose samples and facts are edited: for planting bugs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.config import read_config
from sightline.contract.types import DataInfo, Sample, SampleKey
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from tests.conftest import ROOT

SMALL = (
    "data.num_columns=128",
    "data.train_size=12",
    "data.test_size=3",
    "transforms.train.2.width=128",
    "transforms.evaluate.0.width=128",
    "model={name: squeezeseg, circular: true}",
)
Edit = Callable[[SyntheticLidar, Sample, SampleKey], Sample]
"""A sample of the set -> another one."""
READ = SyntheticLidar.__getitem__


def make_scans(
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
    edit: Edit = lambda dataset, sample, key: sample,
    facts: dict[str, Any] | None = None,
) -> TrainingSetup:
    """The shipped recipe on scans of 128 columns, with other samples, or with other facts than its scans have."""
    describe = SyntheticLidar._describe

    def described(dataset: SyntheticLidar, **given: bool) -> DataInfo:
        info = describe(dataset, **given)
        return dataclasses.replace(info, facts={**info.facts, **(facts or {})})

    monkeypatch.setattr(SyntheticLidar, "_describe", described)
    monkeypatch.setattr(SyntheticLidar, "__getitem__", lambda dataset, key: edit(dataset, READ(dataset, key), key))
    path = ROOT / "configs/segment/synthetic_lidar_salsanext.yaml"
    given = tuple(word.partition("=")[0] for word in overrides)
    small = [word for word in SMALL if not word.startswith(given)]
    return build(read_config(path, (*small, *overrides)), World())
