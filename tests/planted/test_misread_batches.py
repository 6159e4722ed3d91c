"""Batches whose samples are not those that are read alone: the data are named, not the model or the metric."""

from __future__ import annotations

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.suite import run_quick
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter


def test_joints_of_another_frame_are_no_fault_of_the_metric_or_the_maps() -> None:
    case = next(case for case in FAULTS if case.id == "C9")
    with Planter() as planter:
        case.plant_into(planter)
        smaller = [f"transforms.{part}.0.size=16" for part in ("train", "evaluate")]
        words = (*smaller, *planter.overrides)
        built = planter.change(build(read_config(BENCHES / f"{case.bench}.yaml", words), World()))
        found = [finding for finding in run_quick(built, World()) if finding.severity != "note"]
    assert found[0].cause == "data.pairing"
    assert {finding.code for finding in found} <= {"misplaced-joints", "exchanged-rows", "training-targets"}, list(
        map(str, found)
    )
    (joints,) = [finding for finding in found if finding.code == "misplaced-joints"]
    assert "another frame" in joints.summary
