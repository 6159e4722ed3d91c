"""What `sightline.check` and `sightline.watch` say while a subject runs, whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import sightline
from sightline.contract.errors import UserError
from tests.planted.trial import Alarm, make_alarms

CRASHED = "crashed"
"""Code of an alarm for a check that ends in a traceback: false on correct code, and no finding of a bug."""


@contextmanager
def observed() -> Iterator[list[Alarm]]:
    """Context in which both are recorded; the list is complete after it. A check that fails returns no findings."""
    alarms: list[Alarm] = []
    watches: list[Any] = []
    real_check, real_watch = sightline.check, sightline.watch

    def check(*arguments: Any, **options: Any) -> Any:
        try:
            report = real_check(*arguments, **options)
        except UserError as error:
            alarms.append(Alarm("check", str(error), "refused", "error", summary=str(error)))
        except Exception as error:  # noqa: BLE001 - a crash is a result
            text = f"{type(error).__name__}: {error}"
            alarms.append(Alarm("check", text, CRASHED, "error", summary=text))
        else:
            alarms.extend(make_alarms("check", report.findings))
            return report
        return SimpleNamespace(findings=[])

    def watch(*arguments: Any, **options: Any) -> Any:
        watches.append(real_watch(*arguments, **options))
        return watches[-1]

    with mock.patch.object(sightline, "check", check), mock.patch.object(sightline, "watch", watch):
        try:
            yield alarms
        finally:
            for each in watches:
                alarms.extend(make_alarms("training", each.findings))


def observe(subject: Callable[[], object]) -> tuple[Alarm, ...]:
    """Run a subject; return each alarm once, those of `check` first."""
    with observed() as alarms:
        try:
            subject()
        except Exception as error:  # noqa: BLE001 - what was found before it counts
            text = f"{type(error).__name__}: {error}"
            alarms.append(Alarm("subject", text, CRASHED, "error", summary=text))
    return tuple({alarm.key: alarm for alarm in reversed(alarms)}.values())[::-1]
