"""`run_each` runs all cases from one random state and names those that fail."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.cases import run_each


def test_all_cases_run_and_those_that_fail_are_named() -> None:
    seen = []

    @run_each("factor", (1, 2))
    @run_each("number, expected", [(3, 3), (4, 5), (6, 6)])
    def is_product(number: int, expected: int, factor: int, fixture: str) -> None:
        seen.append((factor, number, fixture, float(torch.rand(()))))
        if number == 6:
            with pytest.raises(ValueError, match="never"):
                pass
        assert number * factor == expected

    assert list(inspect.signature(is_product).parameters) == ["fixture"]
    with pytest.raises(BaseExceptionGroup, match="2 of 2 cases of is_product fail") as caught:
        is_product(fixture="given")
    first, second = caught.value.exceptions
    assert [case[:2] for case in seen] == [(factor, number) for factor in (1, 2) for number in (3, 4, 6)]
    assert {case[2] for case in seen} == {"given"}
    assert len({case[3] for case in seen}) == 1
    assert isinstance(first, BaseExceptionGroup)
    assert first.__notes__ == ["case: {'factor': 1}"]
    assert [inner.__notes__ for inner in first.exceptions] == [
        ["case: {'number': 4, 'expected': 5}"],
        ["case: {'number': 6, 'expected': 6}"],
    ]
    assert isinstance(second, BaseExceptionGroup)
    assert len(second.exceptions) == 3
