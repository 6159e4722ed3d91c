"""Tests of many small cases: one test, whose failure names every case that fails."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

__all__ = ["run_each"]

FAILURES = (Exception, pytest.fail.Exception, BaseExceptionGroup)
"""The second is no `Exception`; the third is of another `run_each`, inside."""


def run_each(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test's body for each case, from the same random state, as `pytest.mark.parametrize` would; all of them.

    For bodies of milliseconds, of which pytest itself would cost more; cases share the test's fixtures.
    """
    parameters, cases = [name.strip() for name in names.split(",")], list(values)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for case in cases:
                torch.default_generator.manual_seed(0)
                arguments = dict(zip(parameters, case if len(parameters) > 1 else (case,), strict=True))
                try:
                    test(**arguments, **fixtures)
                except FAILURES as failure:
                    failure.add_note(f"case: {arguments}")
                    failures.append(failure)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases of {test.__name__} fail", failures)

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in parameters]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate
