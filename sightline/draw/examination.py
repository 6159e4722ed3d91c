"""Page blocks of what checks examined: a table of the subjects, and what no check covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.draw.page import PageBlock, PageTable, PageText


def join_reasons(reasons: Iterable[str], *, most: int | None = None) -> str:
    """Join reasons without repetition, the `most` frequent first: "no boxes, no depth" becomes "no boxes, depth"."""
    ordered = [reason for reason, _ in Counter(reasons).most_common()]
    more = f" and {len(ordered) - most} more reasons" if most is not None and len(ordered) > most + 1 else ""
    ordered = ordered[:most] if more else ordered
    missing = [reason.removeprefix("no ") for reason in ordered if reason.startswith("no ")]
    others = [reason for reason in ordered if not reason.startswith("no ")]
    return ", ".join([*others, *([f"no {', '.join(missing)}"] if missing else [])]) + more


def make_examination_blocks(documents: Sequence[Mapping[str, Any]]) -> list[PageBlock]:
    """Make the blocks of a page from examinations: one table of their subjects, and what no check of theirs covers."""
    subjects: dict[str, _ExaminedSubject] = {}
    for row in (row for document in documents for row in document["subjects"]):
        subject = subjects.setdefault(row["subject"], _ExaminedSubject())
        subject.ran |= set(row["ran"])
        subject.seconds += row["seconds"]
        subject.not_applicable |= row["not_applicable"]
    rows = []
    for name, subject in subjects.items():
        reasons = [reason for check, reason in subject.not_applicable.items() if check not in subject.ran]
        unfit = f"{len(reasons)}: {join_reasons(reasons)}" if reasons else "0"
        rows.append((name, str(len(subject.ran)), f"{subject.seconds:.2f}", unfit))
    columns = ("subject", "checks that ran", "CPU s", "do not apply")
    gaps = dict.fromkeys(f"not covered by a check: {gap}" for document in documents for gap in document["not_covered"])
    return [PageTable(columns, rows, is_numeric=False), PageText("notes", list(gaps))] if rows else []


@dataclass
class _ExaminedSubject:
    """Checks of a subject that ran, their time, and the reasons why others do not apply, over all examinations."""

    ran: set[str] = field(default_factory=set)
    seconds: float = 0.0
    not_applicable: dict[str, str] = field(default_factory=dict)
