"""Tests of many small cases: pytest's subtests, in the form of `pytest.mark.parametrize`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

__all__ = ["run_each"]


def run_each(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test's body as a subtest for each case, from the same random state; all of them share its fixtures.

    Of two such decorators every case of the upper one meets every case of the lower.
    """
    parameters = [name.strip() for name in names.split(",")]
    rows: list[dict[str, Any]] = [
        dict(zip(parameters, case if len(parameters) > 1 else (case,), strict=True)) for case in values
    ]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        body: Callable[..., None] = getattr(test, "body", test)
        below: list[dict[str, Any]] = getattr(test, "cases", [{}])
        cases = [{**row, **inner} for row in rows for inner in below]

        @functools.wraps(body)
        def run(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for case in cases:
                with subtests.test(**case):
                    torch.default_generator.manual_seed(0)
                    body(**case, **fixtures)

        signature = inspect.signature(body)
        left = [parameter for name, parameter in signature.parameters.items() if name not in cases[0]]
        left.append(inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY))
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        run.body, run.cases = body, cases  # type: ignore[attr-defined]
        return run

    return decorate
