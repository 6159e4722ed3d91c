"""The checks of detection find nothing in the shipped recipes, whatever crowds are drawn."""

from __future__ import annotations

import pytest

from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.conftest import ROOT


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("assigner", ["own", "atss"])
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_shipped_detectors_are_not_flagged(name: str, assigner: str, seed: int) -> None:
    words = [f"seed={seed}", f"data.data_seed={seed}"]
    words += [] if assigner == "own" else [f"task.assigner.name={assigner}"]
    built = build(read_config(ROOT / f"configs/detect/synthetic_crowds_{name}.yaml", words), World())
    all_rules()
    _, found = examine_run(Context(built, World()))
    assert found == [], list(map(str, found))
