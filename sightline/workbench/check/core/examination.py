"""Examination: which checks ran of each subject, how long, which do not apply, what no check covers; its text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sightline.doctor.finding import Finding
from sightline.draw.examination import join_reasons

SUBJECTS = ("data", "model", "loss", "optimiser", "metric", "weights", "compression", "plugin")
"""Subjects of checks, in the order in which they are printed; `plugin` stands for checks of a user's own."""
_OF_MODULES = {
    "class": "metric",
    "initial": "loss",
    "scored": "metric",
    "metrics": "metric",
    "layers": "model",
    "processes": "model",
}
"""Subjects of modules by the first word of their name, which else is the subject itself."""
_NUM_REASONS = 3
UNCOVERED = ("whether labels are true, the network fits the task, and the learning rate is a good one",)
"""Questions that no check answers, of any run."""


def find_subject(module: str) -> str:
    """Return the subject of the checks of a module, by its name."""
    if ".areas." in module:
        return "data"
    word = module.rpartition("check.checks.")[2].replace(".", "_").partition("_")[0]
    subject = _OF_MODULES.get(word, word)
    return subject if subject in SUBJECTS else SUBJECTS[-1]


class FasterSetting(NamedTuple):
    """Overrides with which a step was measured to be faster on this machine: the ratio, and the seconds of both."""

    overrides: tuple[str, ...]
    ratio: float
    own_s: float
    faster_s: float
    num_samples: int

    def __str__(self) -> str:
        return (
            f"this machine computes in bf16, which the config leaves unused: {' '.join(self.overrides)} makes a step "
            f"{self.ratio:.1f} times as fast ({1000 * self.faster_s:.0f} ms for {self.num_samples} samples, in float32 "
            f"{1000 * self.own_s:.0f}); `sightline profile` measures more steps, `sightline study` what it costs"
        )


class Examination:
    """Record of what the checks examined; the checks write into it while they run.

    `gaps` are sentences on what of this run no check covered, `faster` is a setting that was measured to be faster.
    `doing` says what is being examined now.
    """

    def __init__(self) -> None:
        self.ran: dict[str, list[str]] = {}
        self.idle: dict[str, dict[str, str]] = {}
        self.seconds = dict.fromkeys(SUBJECTS, 0.0)
        self.gaps: list[str] = []
        self.faster: FasterSetting | None = None
        self.doing = "reads the data and builds the model"
        self._inner_s = 0.0

    @contextmanager
    def count_time(self, subject: str) -> Iterator[None]:
        """Context whose processor time belongs to a subject, except that of contexts inside it."""
        started, outer_s, self._inner_s = time.process_time(), self._inner_s, 0.0
        try:
            yield
        finally:
            total_s = time.process_time() - started
            self.seconds[subject] += total_s - self._inner_s
            self._inner_s = outer_s + total_s

    def add(self, subject: str, code: str, *, idle: str = "") -> None:
        """Add a check that ran, or one that does not apply, with the reason."""
        if idle:
            self.idle.setdefault(subject, {})[code] = idle
        elif code not in self.idle.get(subject, {}):
            self.ran.setdefault(subject, []).append(code)

    @property
    def subjects(self) -> list[str]:
        """Subjects with checks, in their order."""
        return [subject for subject in SUBJECTS if subject in self.ran or subject in self.idle]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "seconds": round(sum(self.seconds.values()), 3),
            "subjects": [
                {
                    "subject": subject,
                    "ran": self.ran.get(subject, []),
                    "seconds": round(self.seconds[subject], 3),
                    "not_applicable": self.idle.get(subject, {}),
                }
                for subject in self.subjects
            ],
            "not_covered": [*dict.fromkeys(self.gaps), *UNCOVERED],
            **({} if self.faster is None else {"faster": {**self.faster._asdict(), "text": str(self.faster)}}),
        }


def describe_examination(document: Mapping[str, Any], *, is_verbose: bool = False) -> list[str]:
    """Format a document of `Examination.to_dict` as lines: one for each subject, and those on what is not covered.

    Of the reasons why checks do not apply three are listed; with `is_verbose` all.
    """
    rows = document["subjects"]
    count = sum(len(row["ran"]) for row in rows)
    lines = [f"{count} checks ran in {document['seconds']:.1f} s of processor time"]
    for row in rows:
        reasons = row["not_applicable"].values()
        listed = join_reasons(reasons, most=None if is_verbose else _NUM_REASONS)
        idle = f"   {len(reasons)} do not apply: {listed}" if reasons else ""
        lines.append(f"  {row['subject']:<12}{len(row['ran']):>3}{row['seconds']:>7.1f} s{idle}")
    faster = [document["faster"]["text"]] if "faster" in document else []
    return (
        [*lines, "not covered by a check:", *(f"  {gap}" for gap in document["not_covered"]), *faster] if rows else []
    )


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
