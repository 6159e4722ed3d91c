"""Cases as they are run: the numbers first, a mismatch is no row, what is missing is said, what is there is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks import runner
from benchmarks.case import (
    BenchmarkCase,
    ExactComparison,
    Implementation,
    Run,
    allclose,
    equal,
    implementation,
)
from benchmarks.memory import MemoryMeter
from benchmarks.runner import BenchmarkReport, Runner

KEYS = {
    **dict.fromkeys(("name", "baseline"), str),
    **dict.fromkeys(("ratio", "ratio_low", "ratio_high", "cpu_s", "baseline_cpu_s"), float),
    **dict.fromkeys(("peak_bytes", "baseline_peak_bytes"), int),
}


class NoMeter(MemoryMeter):
    """Peaks without processes: those of a form are told by its name."""

    def __init__(self) -> None:
        super().__init__(num_threads=1)
        self.asked: list[tuple[str, str, bool]] = []

    def peak_bytes(self, case: str, variant: str, *, is_quick: bool) -> int | None:
        self.asked.append((case, variant, is_quick))
        return {"plain": 100, "fast": 10}.get(variant)


@pytest.fixture(autouse=True)
def _allocator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark changes malloc for the whole process; the other tests keep theirs."""
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: True)


def numbers(*, count: int) -> torch.Tensor:
    return torch.arange(count)


def case(*variants: Implementation, exactly: ExactComparison | None = None) -> BenchmarkCase:
    return BenchmarkCase(
        suite="test",
        label="double_{count}",
        size={"count": 8},
        quick={"count": 2},
        make=numbers,
        baseline=implementation("plain", lambda values: values + values, equal),
        variants=variants,
        exactly=exactly,
    )


RIGHT = implementation("fast", lambda values: 2 * values, equal)


def run(*cases: BenchmarkCase, is_quick: bool = False) -> tuple[BenchmarkReport, NoMeter, list[str]]:
    report, meter, told = BenchmarkReport(), NoMeter(), []
    Runner(repeats=2, is_quick=is_quick, meter=meter).run(cases, report, told.append)
    return report, meter, told


def test_a_row_has_exactly_the_promised_keys() -> None:
    report, _, _ = run(case(RIGHT))
    row = json.loads(json.dumps(report.results[0].to_dict()))
    assert {name: type(value) for name, value in row.items()} == KEYS
    assert (row["name"], row["baseline"]) == ("test/double_8/fast", "plain")
    assert (row["peak_bytes"], row["baseline_peak_bytes"]) == (10, 100)


def test_other_numbers_are_a_failed_case_and_no_row() -> None:
    """It is neither timed nor measured; the form beside it is."""
    timed: list[str] = []

    @contextmanager
    def watched(values: torch.Tensor) -> Iterator[Run]:
        yield lambda: (timed.append("wrong"), 3 * values)[1]

    report, meter, told = run(case(Implementation("wrong", watched, equal), RIGHT))
    assert [result.name for result in report.results] == ["test/double_8/fast"]
    assert report.mismatches == [
        "test/double_8/wrong: other numbers than plain: 7 of 8 entries differ, first (1,): 3, not 2"
    ]
    assert told[-1] == f"FAILED {report.mismatches[0]}"
    assert timed == ["wrong"], "called once, for its numbers"
    assert {name for _, name, _ in meter.asked} == {"plain", "fast"}


def test_the_stricter_comparison_comes_first() -> None:
    """Off by one part in a hundred passes the rule of float32 and fails that of the narrowed inputs."""
    nearly = implementation("nearly", lambda values: 2.02 * values, allclose(0.1))
    report, _, _ = run(case(nearly, exactly=ExactComparison(lambda values: values[:3].double(), allclose(1e-9))))
    assert report.results == []
    assert "off by 4.00e-02 where the largest number is 4.00e+00" in report.mismatches[0]


def test_a_package_that_is_not_there_is_a_line_that_says_how_to_get_it() -> None:
    absent = implementation("other", lambda values: values, equal, needs="no_such_package")
    report, _, told = run(case(RIGHT, absent), case(absent))
    line = "the row 'other' needs the package 'no_such_package': pip install '.[peers]' pycocotools"
    assert report.missing == [line], "said once"
    assert line in told
    assert [result.name for result in report.results] == ["test/double_8/fast"]


def test_a_case_whose_baseline_is_not_there_is_left_out() -> None:
    without = dataclasses.replace(case(RIGHT), baseline=implementation("judge", abs, equal, needs="no_such_package"))
    report, meter, told = run(without, case(RIGHT))
    line = "test/double_8 needs the package 'no_such_package': pip install '.[peers]' pycocotools"
    assert report.missing == [line]
    assert line in told
    assert {name for _, name, _ in meter.asked} == {"plain", "fast"}, "of the other case alone"


def test_what_a_form_opened_is_closed_whatever_happens() -> None:
    events: list[str] = []

    @contextmanager
    def opened(values: torch.Tensor) -> Iterator[Run]:
        events.append("open")
        try:
            yield lambda: 3 * values
        finally:
            events.append("close")

    run(case(Implementation("held", opened, equal)))
    assert events == ["open", "close"]
