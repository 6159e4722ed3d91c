"""Rules: each a predicate over evidence, with its row: code, severity, causes, what holds, what to do.

A rule's arguments name the measurements that it reads. It returns or yields its faults; none, where the relation holds;
it raises `NotApplicableError` where it cannot judge: a relation that did not judge has not run. A rule is an exact
event, which no correct program has, or it is statistical: correct programs have the number too, and chance may carry it
beyond the rule's threshold. Then its rate of false alarms is measured; until it is known to be low, it gives notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import list_arguments
from sightline.doctor.finding import CAUSES, SEVERITIES, Fault, Finding, Severity
from sightline.doctor.rates import may_alarm

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
    is_statistical: bool = False

    @property
    def name(self) -> str:
        """Module and function of the rule, or its code where the event is seen while a loop runs."""
        module, function = self.judge.__module__.removeprefix("sightline."), self.judge.__name__
        return f"{module}.{self.code if function == '<lambda>' else function}"

    @property
    def relation(self) -> str:
        """Code with what holds, in words of the user: `attention: padded places do not reach outputs of true ones`."""
        return f"{self.code}: {self.holds}"

    def find(self, **evidence: Any) -> Iterator[Finding]:
        """Yield the findings of the rule."""
        faults = self.judge(**evidence)
        for fault in (faults,) if isinstance(faults, Fault) else faults or ():
            yield self.build(fault)

    def build(self, fault: Fault) -> Finding:
        """Build the finding of a fault; a note, where the rule's rate of false alarms is not known to be low."""
        cause, *others = dict.fromkeys(fault.causes or self.causes)
        is_known = not self.is_statistical or may_alarm(self.name)
        return Finding(
            code=self.code,
            severity=fault.severity or self.severity if is_known else "note",
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
    """List the findings of a rule, if it applies, by evidence that the caller has, in place of a subject's."""
    try:
        return list(get_rule(judge).find(**evidence))
    except NotApplicableError:
        return []


def rule(
    code: str, severity: Severity, causes: str, *, holds: str, do: str, is_statistical: bool = False
) -> Callable[[Callable[..., Faults]], Any]:
    """Declare a rule; `causes` are words of `CAUSES`, the most likely first, `holds` and `do` parts of each finding."""
    names = tuple(causes.split())
    assert severity in SEVERITIES, f"rule '{code}': there is no severity '{severity}'"
    assert names, f"rule '{code}' names no cause"
    assert CAUSES.issuperset(names), f"rule '{code}': there are no causes {sorted(set(names) - CAUSES)}"

    def declare(judge: Callable[..., Faults]) -> Callable[..., Faults]:
        # A plugin may be read again, and then declares its rules anew.
        key = judge.__module__, judge.__qualname__
        RULES[:] = [known for known in RULES if (known.judge.__module__, known.judge.__qualname__) != key]
        RULES.append(Rule(code, severity, names, holds, do, judge, list_arguments(judge), is_statistical))
        return judge

    return declare
