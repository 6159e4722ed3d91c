"""Page blocks of what checks examined: a table of the subjects, and what no check covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    rows_of: dict[str, list[Mapping[str, Any]]] = {}
    for row in (row for document in documents for row in document["subjects"]):
        rows_of.setdefault(row["subject"], []).append(row)
    rows = []
    for subject, examined in rows_of.items():
        ran = {code for row in examined for code in row["ran"]}
        unfit = {code: reason for row in examined for code, reason in row["not_applicable"].items() if code not in ran}
        seconds = sum(row["seconds"] for row in examined)
        reasons = f"{len(unfit)}: {join_reasons(unfit.values())}".removesuffix(": ")
        rows.append((subject, str(len(ran)), f"{seconds:.2f}", reasons))
    columns = ("subject", "checks that ran", "CPU s", "do not apply")
    gaps = dict.fromkeys(f"not covered by a check: {gap}" for document in documents for gap in document["not_covered"])
    return [PageTable(columns, rows, is_numeric=False), PageText("notes", list(gaps))] if rows else []
