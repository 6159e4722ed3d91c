"""Rules of runs: planted cases whose cause they name first, and benches as they are, of which they find nothing."""

from __future__ import annotations

import pytest

from sightline.config import read_config
from sightline.doctor.finding import Finding
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_checks
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter

BY_ID = {case.id: case for case in FAULTS}
POSE = {
    **dict.fromkeys("O43 O46 C6 C7".split(), "misplaced-heatmap"),
    **dict.fromkeys("O44 O45 C2 C3 C4 C9 C10".split(), "misplaced-joints"),
    **dict.fromkeys("C1 C5 C8".split(), "misplaced-volume"),
}
FOUND = {**POSE}


def judge(bench: str, case: str = "") -> list[Finding]:
    """Judge a bench, with the plant of a case, by the rules of runs."""
    all_checks()
    with Planter() as planter:
        if case:
            BY_ID[case].plant_into(planter)
        words = ("seed=1", *(() if any("data=" in word for word in planter.overrides) else ("data.data_seed=1",)))
        config = read_config(BENCHES / f"{bench}.yaml", (*words, *planter.overrides))
        examination, findings = examine_run(Context(planter.change(build(config, World())), World()))
    assert examination.list_reasons("failed") == []
    return findings


@pytest.mark.parametrize("name", FOUND)
def test_a_planted_bug_is_found(name: str) -> None:
    first, *_ = judge(BY_ID[name].bench, name)
    assert (first.code, first.cause) == (FOUND[name], BY_ID[name].cause)


@pytest.mark.parametrize("bench", sorted({BY_ID[name].bench for name in FOUND}))
def test_a_bench_as_it_is_has_no_finding(bench: str) -> None:
    assert judge(bench) == []
