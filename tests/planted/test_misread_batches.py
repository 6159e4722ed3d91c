"""Batches whose samples are not those that are read alone: the data are named, not the model or the metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.suite import run_all, run_quick
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter


def _find(name: str, *, is_quick: bool) -> list[Finding]:
    """Return the errors and warnings of a case before it trains."""
    case = next(case for case in FAULTS if case.id == name)
    with Planter() as planter:
        case.plant_into(planter)
        built = planter.change(build(read_config(Path(BENCHES) / f"{case.bench}.yaml", planter.overrides), World()))
        found = run_quick(built, World()) if is_quick else run_all(built, World())
    return [finding for finding in found if finding.severity != "note"]


@pytest.mark.parametrize("is_quick", [True, False])
def test_joints_of_another_frame_are_no_fault_of_the_metric_or_the_maps(is_quick: bool) -> None:
    found = _find("C9", is_quick=is_quick)
    assert found[0].cause == "data.pairing"
    assert {finding.code for finding in found} <= {"misplaced-joints", "exchanged-rows"}, list(map(str, found))
    (joints,) = [finding for finding in found if finding.code == "misplaced-joints"]
    assert "another frame" in joints.summary


def test_a_batch_with_images_of_other_objects_is_no_fault_of_the_model() -> None:
    for is_quick in (True, False):
        found = _find("O29", is_quick=is_quick)
        assert (found[0].code, found[0].cause) == ("exchanged-rows", "data.pairing")
        assert "cross-sample-leak" not in [finding.code for finding in found]
