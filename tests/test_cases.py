"""`run_each` makes every case a subtest, from one random state."""

from __future__ import annotations

import inspect
from unittest import mock

import torch

from tests.cases import run_each


def test_every_case_is_a_subtest_of_its_own() -> None:
    seen = []

    @run_each("factor", (1, 2))
    @run_each("number, expected", [(3, 3), (4, 5), (6, 6)])
    def is_product(number: int, expected: int, factor: int, fixture: str) -> None:
        seen.append((factor, number, fixture, float(torch.rand(()))))
        assert number * factor == expected

    assert list(inspect.signature(is_product).parameters) == ["fixture", "subtests"]
    subtests = mock.MagicMock()
    failed = subtests.test.return_value.__exit__
    failed.return_value = True  # as pytest's own: a failure is noted, and the next case runs
    is_product(fixture="given", subtests=subtests)
    cases = [(factor, number) for factor in (1, 2) for number in (3, 4, 6)]
    assert [case[:2] for case in seen] == cases
    assert [(call.kwargs["factor"], call.kwargs["number"]) for call in subtests.test.call_args_list] == cases
    assert {case[2] for case in seen} == {"given"}
    assert len({case[3] for case in seen}) == 1
    kinds = [call.args[0] for call in failed.call_args_list]
    assert kinds == [None, AssertionError, None, AssertionError, AssertionError, AssertionError]
