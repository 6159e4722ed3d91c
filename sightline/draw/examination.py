"""Page blocks of what checks examined: a table of the subjects, and what no check covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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


def make_examination_blocks(document: Mapping[str, Any]) -> list[PageBlock]:
    """Make the blocks of a page: a table of the subjects, and what no check covers."""
    rows = [
        (
            row["subject"],
            str(len(row["ran"])),
            f"{row['seconds']:.2f}",
            f"{len(row['not_applicable'])}: {join_reasons(row['not_applicable'].values())}".removesuffix(": "),
        )
        for row in document["subjects"]
    ]
    columns = ("subject", "checks that ran", "CPU s", "do not apply")
    gaps = [f"not covered by a check: {gap}" for gap in document["not_covered"]]
    return [PageTable(columns, rows, is_numeric=False), PageText("notes", gaps)] if rows else []
