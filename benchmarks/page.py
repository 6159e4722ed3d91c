"""Tables of docs/results/bench.md from documents of `python -m benchmarks`: a row for each implementation.

    python -m benchmarks --json default.json; python -m benchmarks --keep-memory --json kept.json
    python -m benchmarks.page default.json kept.json > tables.md

Of the first document every row is shown; a second one of the same cases, with malloc keeping what is freed, adds its
ratio. A row that a later document of the same settings repeats is replaced: `default.json+again.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
HEAD = ("case/form/baseline", "times as fast", "peak MiB, ours/theirs")
KEPT = "with kept memory"


def main(arguments: Sequence[str]) -> None:
    """Print the tables of one or two groups of documents, a table for each suite."""
    missing = [name for group in arguments for name in group.split("+") if not Path(name).is_file()]
    if missing or not arguments:
        sys.exit(f"no such file: {', '.join(missing)}" if missing else __doc__)
    default, *rest = ([json.loads(Path(name).read_text()) for name in group.split("+")] for group in arguments)
    rows, kept = merge_rows(default), merge_rows(rest[0]) if rest else {}
    for suite in dict.fromkeys(name.partition("/")[0] for name in rows):
        head = (*HEAD, *[KEPT] * bool(rest))
        lines = [head, ("---",) * len(head)]
        for name, row in rows.items():
            if name.startswith(f"{suite}/"):
                again = [format_ratio(kept[name]) if name in kept else ""] if rest else []
                lines.append((*format_row(row), *again))
        print(f"### {suite}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")  # noqa: T201


def merge_rows(documents: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    """Return the rows of documents by name, each from the last document that has it."""
    return {row["name"]: row for document in documents for row in document["cases"]}


def format_row(row: Row) -> tuple[str, ...]:
    """Format a row: names, the ratio, and the peak memory of both sides."""
    return (
        f"{row['name'].partition('/')[2]}/{row['baseline']}",
        format_ratio(row),
        "/".join(format_mebibytes(row[key]) for key in ("peak_bytes", "baseline_peak_bytes")),
    )


def format_ratio(row: Row) -> str:
    """Format the median of a ratio; the document has its quartiles."""
    return f"{row['ratio']:.2f}"


def format_mebibytes(size: int | None) -> str:
    """Format bytes as MiB; a question mark where they were not measured."""
    return "?" if size is None else f"{size / 2**20:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
