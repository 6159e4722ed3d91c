"""Rules of runs: planted cases whose cause they name first, and benches as they are, of which they find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.doctor.causes import merge_findings
from sightline.doctor.finding import Finding
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import examine_run
from sightline.workbench.check.suite import all_rules
from tests.doctor.broken_sets import BROKEN
from tests.marks import long_but
from tests.planted.catalog import FAULTS
from tests.planted.planting import BENCHES, Planter

BY_ID = {case.id: case for case in FAULTS}
FOUND = {
    "O18": "absent-class-score",
    **dict.fromkeys("O60 B23 B24 B25".split(), "anchor-coverage"),
    **dict.fromkeys("O22 D18".split(), "augmentation-mismatch"),
    **dict.fromkeys("O61 K2 K3 K4 K5 K6 K7 K8 K20 K34".split(), "broken-codebook"),
    **dict.fromkeys("O51 B15 B16 B19 B21".split(), "broken-boxes"),
    **dict.fromkeys("O40 D7 D14".split(), "channel-contract"),
    "F2": "checkpoint-match",
    **dict.fromkeys("O23 O36 O39".split(), "class-counts"),
    **dict.fromkeys("O49".split(), "data-mutation"),
    **dict.fromkeys("O29 D1".split(), "exchanged-rows"),
    "O32": "feature-scale",
    "N9": "final-activation",
    **dict.fromkeys("O56 B30 B31 B32".split(), "ignored-regions"),
    "O10": "initial-loss",
    "D6": "label-range",
    **dict.fromkeys("O19 D8 D10".split(), "label-outside-parts"),
    **dict.fromkeys("B39 B40 B41 B42 B43".split(), "level-order"),
    "O48": "metric-unit",
    "D12": "mismatched-labels",
    **dict.fromkeys("O43 O46 C6 C7".split(), "misplaced-heatmap"),
    **dict.fromkeys("O44 O45 C2 C3 C4 C9 C10".split(), "misplaced-joints"),
    **dict.fromkeys("C1 C5 C8".split(), "misplaced-volume"),
    "N6": "no-gradient",
    "O12": "non-finite",
    "D5": "non-finite-data",
    "O15": "own-generator",
    "O20": "padded-points",
    **dict.fromkeys("O72 E1".split(), "per-batch-metric"),
    **dict.fromkeys("O59 B36 B37".split(), "prior-bias"),
    **dict.fromkeys("O38 D11 D13 D15 D16".split(), "projection-coverage"),
    **dict.fromkeys("K17 K18 K19".split(), "quantised-outputs"),
    **dict.fromkeys("D2 D4".split(), "repeated-samples"),
    **dict.fromkeys("K16 K31 K32".split(), "rounding-gradient"),
    "D9": "scattered-labels",
    **dict.fromkeys("N3 N4".split(), "still-statistics"),
    **dict.fromkeys("O50 B22".split(), "swapped-canvas"),
    **dict.fromkeys("K23 K24 K25 K26 K27 K28 K36".split(), "unfit-teacher"),
    **dict.fromkeys("O52 B26 B27 B28 B29".split(), "unmatched-boxes"),
    **dict.fromkeys("O62 O63 K9 K10 K11 K12 K13 K14 K15 K29 K30".split(), "unquantised-weights"),
    "O14": "untrained-class",
    **dict.fromkeys("O13 R1 R2 R3".split(), "update-size"),
    **dict.fromkeys("O7 R4".split(), "zero-learning-rate"),
}
"""Codes of findings of planted cases, of which the first has the true cause."""
CHECKED = (
    "anchor-coverage broken-codebook class-counts data-mutation ignored-regions initial-loss label-range "
    "misplaced-heatmap misplaced-volume per-batch-metric quantised-outputs swapped-canvas unmatched-boxes"
).split()
"""Codes that tests/mission finds by the command, on every change: their cases here are of the long suite."""


def judge(bench: str, case: str = "") -> list[Finding]:
    """Judge a bench, with the plant of a case, by the rules of runs."""
    all_rules()
    with Planter() as planter:
        if case:
            BY_ID[case].plant_into(planter)
        words = ("seed=1", *(() if any("data=" in word for word in planter.overrides) else ("data.data_seed=1",)))
        config = read_config(BENCHES / f"{bench}.yaml", (*words, *planter.overrides))
        examination, findings = examine_run(Context(planter.change(build(config, World())), World()))
    assert examination.list_reasons("failed") == []
    return merge_findings(findings)


DAILY = {code: name for name, code in FOUND.items() if code not in CHECKED}.values()
"""One case a code."""


@pytest.mark.parametrize("name", long_but(DAILY, FOUND))
def test_a_planted_bug_is_found(name: str) -> None:
    findings = judge(BY_ID[name].bench, name)
    assert findings[0].cause == BY_ID[name].cause
    assert FOUND[name] in {finding.code for finding in findings}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_set_promises_is_held(name: str, tmp_path: Path) -> None:
    code, _, make_run = BROKEN[name]
    all_rules()
    _, findings = examine_run(Context(make_run(tmp_path), World()))
    assert merge_findings(findings)[0].code == code


@pytest.mark.parametrize("bench", sorted({BY_ID[name].bench for name in FOUND}))
def test_a_bench_as_it_is_has_no_finding(bench: str) -> None:
    assert judge(bench) == []
