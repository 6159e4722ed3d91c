"""The exam that every registered metric takes: found by the registry, a row or more for each in `cases.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.engine.distributed import World
from tests.metrics.cases import CASES
from tests.metrics.exam import CHECKS, Case, Sample, bits, evaluate
from tests.metrics.run_exam import BATCH_SIZE, evaluated
from tests.processes import ROOT, run_ranks

METRICS = [
    entry
    for entry in map(registry.metrics.get_entry, registry.metrics.names())
    if entry.builder.__module__.startswith("sightline.")
]
"""Other tests register plugins in this process."""


def test_every_metric_has_a_row() -> None:
    """A metric that vanishes from the registry is a row too many, a new one a row too few."""
    assert {case.metric for case in CASES} == {entry.name for entry in METRICS}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_metric(check: Callable[[Case], None], case: Case) -> None:
    check(case)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["top_k", "true_class_probability"])
def test_a_metric_of_a_plugin(check: Callable[[Case], None], name: str) -> None:
    load_plugins([ROOT / "examples" / "my_plugin.py", ROOT / "examples" / "my_metric.py"])

    def reference(batches: Sequence[Sequence[Sample]]) -> dict[str, float]:
        rows = [one["probabilities"] for batch in batches for one in batch]
        values = [float(row.argmax() == 1) if name == "top_k" else float(row[1]) for row in rows]
        figure = {"top_k": "top_1_accuracy"}.get(name, name)
        return {figure: np.mean(values).item()} | {f"sample {number}": value for number, value in enumerate(values)}

    check(
        Case(
            name,
            lambda random: [{"probabilities": random.random(4), "label": np.array(1)} for _ in range(7)],
            reference,
        )
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_evaluation_has_the_bits_of_the_metric_alone(case: Case) -> None:
    metric, samples = case.build(), case.samples()
    batches = [range(len(samples))[start : start + BATCH_SIZE] for start in range(0, len(samples), BATCH_SIZE)]
    assert evaluated(case, World()) == bits(metric, evaluate(metric, case.batches(samples, batches), len(samples)))


@pytest.mark.processes
@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.long), 3])
def test_several_processes_have_the_bits_of_one(tmp_path: Path, size: int) -> None:
    out = tmp_path / "results.json"
    run_ranks(["-W", "error", "-m", "tests.metrics.run_exam", str(out)], size)
    assert json.loads(out.read_text()) == {str(case): evaluated(case, World()) for case in CASES}
