"""The exam that every registered metric takes: found by the registry, a row or more for each in `cases.py`."""

from __future__ import annotations

import doctest
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sightline.contract import registry
from sightline.contract.plugins import load_plugins
from sightline.engine.distributed import World
from tests.metrics.cases import CASES
from tests.metrics.exam import CHECKS, Case, bits, evaluate
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
def test_a_metric_of_a_plugin(check: Callable[[Case], None]) -> None:
    load_plugins([ROOT / "examples" / "my_plugin.py"])
    draw = lambda random: [{"probabilities": random.random(4), "label": np.array(1)} for _ in range(7)]  # noqa: E731
    samples_of = itertools.chain.from_iterable
    right = lambda batches: [one["probabilities"].argmax() == 1 for one in samples_of(batches)]  # noqa: E731
    check(Case("top_k", draw, lambda batches: {"top_1_accuracy": float(np.mean(right(batches)))}))


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


@pytest.mark.parametrize("entry", METRICS, ids=lambda entry: entry.name)
def test_the_example_of_the_docstring_runs(entry: registry.RegistryEntry) -> None:
    """In an interpreter that has imported nothing: what it imports, makes and prints is what a user would."""
    [example] = doctest.DocTestFinder(recurse=False).find(entry.builder, entry.name, globs={})
    sources = [line.source for line in example.examples]
    assert [f"Meter({entry.builder.__name__}(" in source for source in sources].count(True) == 1
    assert sources[-1] == "meter.compute()\n"
    printed: list[str] = []
    doctest.DocTestRunner(Figures(), verbose=False).run(example, out=printed.append)
    assert not printed, "".join(printed)


class Figures(doctest.OutputChecker):
    """Compares dictionaries of figures, to the rounding of another CPU's functions."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        ours, shown = (eval(text or "{}", {"nan": math.nan}) for text in (got, want))
        return ours == pytest.approx(shown, rel=1e-12, abs=1e-12, nan_ok=True)
