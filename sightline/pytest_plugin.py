"""Plugin of pytest: the fixture `sightline_doctor`. It needs torch and NumPy alone, and imports them when it is asked.

pytest loads it wherever sightline is installed, and leaves it out with `-p no:sightline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import sightline
from sightline.contract.errors import UserError

if TYPE_CHECKING:
    from sightline.doctor.report import Report
    from sightline.doctor.watch.watch import Watch

_FAILING = {"error": ("error",), "warning": ("error", "warning")}
"""Severities that fail a test, by the least grave of them."""


class Doctor:
    """`sightline.check` and `sightline.watch` for a test, which fails with the text of what they find.

    An argument `fail_on` is the least grave severity that fails the test, "warning" or "error". What is intended is
    named by `declared=["code"]`, as in the functions themselves; the other arguments are theirs, too.
    """

    def check(self, model: Any, *arguments: Any, fail_on: str = "warning", **named: Any) -> Report:
        """Judge a module with its loss and batches by `sightline.check`, and return the report."""
        __tracebackhide__ = True
        severities = _list_severities(fail_on)
        report = sightline.check(model, *arguments, **named)
        _fail(report, severities)
        return report

    def watch(self, model: Any, *, fail_on: str = "warning", **named: Any) -> WatchedLoop:
        """Context of a training loop, watched by `sightline.watch`; an exception of the loop is passed on as it is."""
        __tracebackhide__ = True
        return WatchedLoop(sightline.watch(model, **named), _list_severities(fail_on))


class WatchedLoop:
    """Context that gives a `Watch`, and at its end fails the test with what that has found."""

    def __init__(self, watch: Watch, severities: tuple[str, ...]) -> None:
        self._watch = watch
        self._severities = severities

    def __enter__(self) -> Watch:
        return self._watch.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        __tracebackhide__ = True
        self._watch.__exit__(kind, *error)
        if kind is None:
            _fail(self._watch.report, self._severities)


@pytest.fixture(scope="session")
def sightline_doctor() -> Doctor:
    """Doctor of training programs: `sightline_doctor.check(model, loss, loader)` fails the test with what it finds."""
    return Doctor()


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Leave the assertions of sightline as they are.

    pytest rewrites those of every package that brings a plugin: ours say a user's mistake in one line, and would be
    followed by the values of an expression that the user has not written.
    """
    hook: Any = early_config.pluginmanager.rewrite_hook
    if hasattr(hook, "_must_rewrite"):  # the only list that pytest has of them
        hook._must_rewrite -= {name for name in hook._must_rewrite if name.partition(".")[0] == "sightline"}
        hook._marked_for_rewrite_cache.clear()


def _list_severities(fail_on: str) -> tuple[str, ...]:
    if fail_on not in _FAILING:
        raise UserError(f"sightline_doctor: fail_on is {' or '.join(map(repr, _FAILING))}; found {fail_on!r}")
    return _FAILING[fail_on]


def _fail(report: Report, severities: tuple[str, ...]) -> None:
    __tracebackhide__ = True
    if any(finding.severity in severities for finding in report.findings):
        pytest.fail(str(report))
