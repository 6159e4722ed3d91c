"""Which rules of the doctor were asked while a program ran, and which of them gave an error or a warning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

from sightline.doctor import examine
from sightline.doctor.finding import Fault, Finding
from sightline.doctor.rules import Rule
from sightline.doctor.watch.watch import Watch
from tests.doctor.cells import list_cells

Asked = dict[str, bool]
"""By the name of a rule that was asked: whether it gave an alarm, also one that was turned into a note since."""


@cache
def list_monitored() -> list[str]:
    """List the rules that monitors of a loop give evidence to, by their names."""
    judges = [judge for (_, subject), found in list_cells().items() if subject == "loop" for judge in found]
    return sorted({f"doctor.rules.{judge.name}" for judge in judges if judge.askers})


@contextmanager
def recorded() -> Iterator[Asked]:
    """Context in which the rules that judge are kept; those that monitors ask are asked in each loop."""
    asked: Asked = {}
    grave: list[tuple[str, str, str]] = []
    judge, build, publish, leave = examine._judge, Rule.build, Watch._publish, Watch.__exit__

    def judge_and_keep(rule: Rule, evidence: Any, examination: Any) -> None:
        first = len(grave)
        judge(rule, evidence, examination)
        if examination.judgements[-1].outcome in ("held", "broken"):
            is_broken = any(name == rule.name for name, *_ in grave[first:])
            asked[rule.name] = asked.get(rule.name, False) or is_broken

    def build_and_keep(rule: Rule, fault: Fault) -> Finding:
        finding = build(rule, fault)
        if (fault.severity or rule.severity) != "note":
            grave.append((rule.name, finding.code, finding.summary))
        return finding

    def publish_and_keep(watch: Watch, finding: Finding) -> None:
        publish(watch, finding)
        for name, code, summary in grave:
            if (code, summary) == (finding.code, finding.summary):
                asked[name] = True

    def leave_and_keep(watch: Watch, *error: Any) -> None:
        leave(watch, *error)
        for name in list_monitored() if watch._loop.step else ():
            asked.setdefault(name, False)

    with (
        mock.patch.object(examine, "_judge", judge_and_keep),
        mock.patch.object(Rule, "build", build_and_keep),
        mock.patch.object(Watch, "_publish", publish_and_keep),
        mock.patch.object(Watch, "__exit__", leave_and_keep),
    ):
        yield asked
