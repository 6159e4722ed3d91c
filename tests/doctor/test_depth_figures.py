"""Checks of data on synthetic hands and bodies: silent on healthy frames, and a mix-up of units is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.data.synthetic.synthetic_bodies import SyntheticBodies
from sightline.data.synthetic.synthetic_hands import SyntheticHands
from sightline.doctor.checks.data.channel_contract import channel_contract
from sightline.doctor.checks.data.data_mutation import data_mutation
from sightline.doctor.checks.data.dataset_mismatch import dataset_mismatch
from sightline.doctor.checks.data.duplicate_clouds import duplicate_clouds
from sightline.doctor.checks.data.non_finite_data import non_finite_data
from sightline.doctor.context import Context
from sightline.engine.distributed import World
from tests.doctor.planting import Wrapped, make, with_data

OF_DATA = (channel_contract, data_mutation, duplicate_clouds, non_finite_data, dataset_mismatch)
"""They look at data sets alone, so the rest of the run may be anything."""
SETS: dict[str, Callable[[], Any]] = {
    "hands": lambda: SyntheticHands(split="train", train_size=16),
    "side": lambda: SyntheticBodies(split="train", train_size=16),
    "top": lambda: SyntheticBodies(split="train", train_size=16, view="top"),
}


def context_of(folder: Path, dataset: Any) -> Context:
    built = make(folder, "data.train_size=16", "data.test_size=12", "train.batch_size=4", "evaluate.select=test")
    return Context(with_data(built, lambda inner: dataset), World())


@pytest.mark.parametrize("name", SETS)
def test_healthy_frames_are_not_flagged(tmp_path: Path, name: str) -> None:
    context = context_of(tmp_path, SETS[name]())
    assert [finding for check in OF_DATA for finding in check(context)] == []


@pytest.mark.parametrize(("field", "factor"), [("depth", 1e-3), ("joints", 1e-3), ("joints", 1e3)])
def test_metres_for_millimetres_are_flagged(tmp_path: Path, field: str, factor: float) -> None:
    wrong = Wrapped(SETS["hands"](), lambda batch, keys: {**batch, field: batch[field] * factor})
    findings = channel_contract(context_of(tmp_path, wrong))
    assert [finding.cause for finding in findings] == ["data.normalisation"]
    assert f"'{field}'" in findings[0].summary
