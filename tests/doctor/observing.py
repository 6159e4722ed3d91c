"""What `sightline.check` and `sightline.watch` say while a subject runs, whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import sightline
from sightline.contract.errors import UserError
from sightline.doctor import examine
from tests.planted.trial import Alarm, make_alarms

CRASHED = "crashed"
"""Code of an alarm for a check that ends in a traceback: false on correct code, and no finding of a bug."""


@contextmanager
def judged() -> Iterator[list[Any]]:
    """Context in which the judgement of each rule is recorded, whoever asks for it."""
    judgements: list[Any] = []
    real = examine.Judgement

    def record(*arguments: Any, **more: Any) -> Any:
        judgements.append(real(*arguments, **more))
        return judgements[-1]

    with mock.patch.object(examine, "Judgement", record):
        yield judgements


@contextmanager
def observed(without: Collection[str] = ()) -> Iterator[list[Alarm]]:
    """Context in which both are recorded; the list is complete after it. A check that fails returns no findings.

    Arguments of `watch` that are named in `without` do not reach it. Measurements that fail are recorded, too.
    """
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
            alarms.extend(make_alarms("check", report.findings, with_notes=True))
            return report
        return SimpleNamespace(findings=[])

    def watch(*arguments: Any, **options: Any) -> Any:
        passed = {name: value for name, value in options.items() if name not in without}
        watches.append(real_watch(*arguments, **passed))
        return watches[-1]

    with (
        mock.patch.object(sightline, "check", check),
        mock.patch.object(sightline, "watch", watch),
        judged() as judgements,
    ):
        try:
            yield alarms
        finally:
            for judgement in judgements:
                if judgement.outcome == "failed":
                    name = judgement.reason.partition(":")[0]
                    alarms.append(Alarm("failed", judgement.reason, name, "failed", summary=judgement.rule.code))
            for each in watches:
                alarms.extend(make_alarms("training", each.findings, with_notes=True))


def observe(subject: Callable[[], object], without: Collection[str] = ()) -> tuple[Alarm, ...]:
    """Run a subject; return each alarm, note and failed measurement once, those of `check` first."""
    with observed(without) as alarms:
        try:
            subject()
        except Exception as error:  # noqa: BLE001 - what was found before it counts
            text = f"{type(error).__name__}: {error}"
            alarms.append(Alarm("subject", text, CRASHED, "error", summary=text))
    kinds = {"note": "note", "failed": "failed"}
    first = {(kinds.get(alarm.severity, ""), alarm.key): alarm for alarm in reversed(alarms)}
    return tuple(first.values())[::-1]
