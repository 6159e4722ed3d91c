"""Rules: each a predicate over evidence, with its row: code, severity, causes, what holds, what to do.

A rule's arguments name the measurements that it reads. It returns or yields its faults; none, where the relation holds;
it raises `NotApplicableError` where it cannot judge: a relation that did not judge has not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sightline.doctor.evidence import list_arguments
from sightline.doctor.finding import CAUSES, SEVERITIES, Fault, Finding, Severity

Faults = Iterable[Fault] | Fault | None


@dataclass(frozen=True)
class Rule:
    """Row of the table of rules; `holds` says in words what every correct program has."""

    code: str
    severity: Severity
    causes: tuple[str, ...]
    holds: str
    action: str
    judge: Callable[..., Faults]
    reads: tuple[str, ...]

    def find(self, **evidence: Any) -> Iterator[Finding]:
        """Yield the findings of the rule."""
        faults = self.judge(**evidence)
        for fault in (faults,) if isinstance(faults, Fault) else faults or ():
            yield self.build(fault)

    def build(self, fault: Fault) -> Finding:
        """Build the finding of a fault."""
        cause, *others = dict.fromkeys(fault.causes or self.causes)
        return Finding(
            code=self.code,
            severity=fault.severity or self.severity,
            summary=fault.summary,
            cause=cause,
            alternatives=tuple(others),
            where=fault.where,
            measured=fault.measured,
            expected=fault.expected or self.holds,
            action=fault.action or self.action,
            evidence=dict(fault.evidence),
        )


RULES: list[Rule] = []
"""All rules, in the order in which they are declared; a code may have several."""


def get_rule(judge: Callable[..., Faults]) -> Rule:
    """Return the row of a rule's function."""
    return next(each for each in RULES if each.judge is judge)


def find_by(judge: Callable[..., Faults], **evidence: Any) -> list[Finding]:
    """List the findings of a rule by evidence that the caller has, in place of a subject's."""
    return list(get_rule(judge).find(**evidence))


def rule(code: str, severity: Severity, causes: str, *, holds: str, do: str) -> Callable[[Callable[..., Faults]], Any]:
    """Declare a rule; `causes` are words of `CAUSES`, the most likely first, `holds` and `do` parts of each finding."""
    names = tuple(causes.split())
    assert severity in SEVERITIES, f"rule '{code}': there is no severity '{severity}'"
    assert names, f"rule '{code}' names no cause"
    assert CAUSES.issuperset(names), f"rule '{code}': there are no causes {sorted(set(names) - CAUSES)}"

    def declare(judge: Callable[..., Faults]) -> Callable[..., Faults]:
        # A plugin may be read again, and then declares its rules anew.
        key = judge.__module__, judge.__qualname__
        RULES[:] = [known for known in RULES if (known.judge.__module__, known.judge.__qualname__) != key]
        RULES.append(Rule(code, severity, names, holds, do, judge, list_arguments(judge)))
        return judge

    return declare
