"""Joints and volumes of sets that read one of both in another way."""

from __future__ import annotations

import pytest

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.context import CHECKS, Context
from sightline.workbench.check.suite import all_checks
from tests.marks import long_but
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter

BY_ID = {case.id: case for case in FAULTS}
CODES = ("misplaced-joints", "misplaced-volume")
WORDS = {
    "C2": "their axes are x, z, y",
    "C3": "they are about (+40, +0, +0) mm off",
    "C5": "about a point (+40, ",
    "C9": "those of another frame",
    "C10": "mirrored left to right",
    "O45": "mm too small",
}


def judge(case: str, seed: int) -> list[Finding]:
    all_checks()
    with Planter() as planter:
        if case:
            BY_ID[case].plant_into(planter)
        built = build(read_config(BENCHES / "POSE.yaml", (f"seed={seed}", f"data.data_seed={seed}")), World())
        context = Context(built, World())
        return [finding for code in CODES for finding in CHECKS[code](context)]


@pytest.mark.parametrize("seed", long_but([1], range(6)))
@pytest.mark.parametrize("name", WORDS)
def test_the_cause_is_first_and_in_words(name: str, seed: int) -> None:
    finding, *_ = judge(name, seed)
    assert finding.cause == BY_ID[name].cause
    assert WORDS[name] in finding.summary


@pytest.mark.parametrize("seed", long_but([1], range(6)))
def test_frames_as_they_are(seed: int) -> None:
    assert judge("", seed) == []
