"""Examination of a run: what the doctor judged of it, how long, and what no rule covers; findings as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.doctor.examine import Examination
from sightline.doctor.finding import Finding
from sightline.doctor.report import Report
from sightline.doctor.verdict import Remedy, add_hint, describe_relations, write_verdict
from sightline.workbench.check.targets.reaching import Reaching

BUDGET_S, QUICK_BUDGET_S = 3.0, 1.5
"""Seconds of a usual processor for the relations of a run's model, if nobody states others, and before a training."""
UNCOVERED = ("whether labels are true, the network fits the task, and the learning rate is a good one",)
"""Questions that no rule answers, of any run."""
TRAINING = Remedy("the steps of the training", "`sightline train` judges its steps itself")


@dataclass
class RunExamination(Examination):
    """Findings on a run and judgements of rules, in the `seconds` of processor time that they took.

    `gaps` are sentences on what of this run no rule covered. `subject` is being examined now, by the rule that
    `judging` names with its number, for which the work of `describe_work` is done. `budget_s` is the processor time for
    relations of the model that the caller states, who can do so unless it `is_quick`. With `is_watched`, the steps of
    the run are judged while it trains, or were. `reaching` is what reaches its losses.
    """

    seconds: float = 0.0
    subject: str = "reads the data and builds the model"
    judging: str = ""
    describe_work: Callable[[], str] = str
    budget_s: float | None = None
    is_quick: bool = False
    is_watched: bool = False
    reaching: Reaching | None = None

    @property
    def doing(self) -> str:
        """What is being examined now, by which of its rules, and how far the work for it has come."""
        return ", ".join(part for part in (self.subject, self.judging, self.describe_work()) if part)

    def turn_to(self, subject: str) -> None:
        """State what is examined from now on."""
        self.subject, self.judging, self.describe_work = subject, "", str

    def note_rule(self, num_judged: int, num_rules: int, code: str) -> None:
        """State the numbers of rules that judged and of all, and the code of the one that judges now."""
        self.judging = f"rule {num_judged + 1} of {num_rules} ({code})"

    def note_work(self, describe: Callable[[], str] = str) -> None:
        """State how far the work for the rules has come: `describe` is called from another thread."""
        self.describe_work = describe

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; of a code with several rules, one that judged counts."""
        gaps = [*dict.fromkeys(self.gaps)]
        loop = None if self.is_watched else TRAINING
        budget_s = None if self.is_quick else BUDGET_S if self.budget_s is None else self.budget_s
        verdict = write_verdict(self, remedies={}, gaps=gaps, loop=loop, budget_s=budget_s, budget="--budget ")
        return {
            "seconds": round(self.seconds, 3),
            "verdict": verdict.lines,
            "judged": verdict.judged,
            "not_judged": verdict.not_judged,
            "not_covered": [*gaps, *UNCOVERED],
            "reaching": None if self.reaching is None else self.reaching.to_dict(),
        }


def describe_examination(
    document: Mapping[str, Any], *, call: str = "--verbose", is_verbose: bool = False
) -> list[str]:
    """Format a document of `RunExamination.to_dict`: the verdict; with `is_verbose` all relations, and what none is.

    `call` is what lists them.
    """
    if not is_verbose:
        return add_hint(document["verdict"], call)
    return [
        *document["verdict"],
        *describe_relations(document["judged"], document["not_judged"]),
        f"in {document['seconds']:.1f} s of processor time; not covered:",
        *(f"  {gap}" for gap in document["not_covered"]),
    ]


@dataclass(frozen=True, repr=False)
class CheckReport(Report):
    """Report on a config or a run: `examination` is what `--json` of `sightline check` has."""

    examination: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self, *, verbose: bool = False) -> str:
        """Format findings, verdict and summary; with `verbose` notes in full, each relation, and what none covers."""
        lines = describe_examination(self.examination, call="report.to_text(verbose=True)", is_verbose=verbose)
        return "\n".join([*describe_findings(self.findings, is_verbose=verbose), *lines, self.summary])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return super().to_dict() | {"examination": dict(self.examination)}


def describe_findings(findings: Sequence[Finding], *, is_verbose: bool = False) -> list[str]:
    """Format warnings and errors in full, then notes, each on one line; with `is_verbose` also these in full.

    Findings that say the same of several places are one, and advice that the finding above gives is not repeated.
    """
    lines: list[str] = []
    printed: dict[tuple[str, str], Finding] = {}
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda each: each.severity == "note"):
        text = finding.summary
        groups.setdefault((finding.code, finding.severity, finding.cause, text), []).append(finding)
    for first, *others in groups.values():
        if first.severity == "note" and not is_verbose:
            lines.append(_format_short(first, len(others)))
            continue
        full = str(first).split("\n")
        earlier = printed.setdefault((first.code, first.action), first)
        if earlier is not first:
            full = [*(line for line in full[:-1] if line != f"  expected: {earlier.expected}"), "  do: as above"]
        also = [f"  also: {other.where}, measured {other.measured}" for other in others]
        num_first = 3 if str(first.where) else 2
        lines += ["\n".join([*full[:num_first], *also, *full[num_first:]])]
    return lines


def _format_short(finding: Finding, num_others: int) -> str:
    """Format a finding as one line: code, cause, summary and location."""
    more = f", and {num_others} more places" if num_others else ""
    text = f"[{finding.code} {finding.severity} {finding.cause}] {finding.summary} ({finding.where}{more})"
    return " ".join(text.split())
