"""What verbs show a person: notes, tables, findings. Standard output for results, standard error for the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["note", "show_evaluation", "show_findings", "show_table"]


def note(text: str) -> None:
    """A line for the person at the terminal."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on standard output; plain and unbroken where that is no terminal."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(title, highlight=False, markup=False)
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def show_evaluation(document: Mapping[str, Any], *, title: str) -> None:
    """Metrics as one table, and the rows per class as another."""
    label = f" ({document['selection']})" if document["selection"] == "test-selected" else ""
    rows = list(document["per_class"].items())
    if rows:
        names = [name for name in rows[0][1] if name != "count"]
        show_table(
            "per class", ["class", *names, "count"], [[n, *(r[k] for k in names), r.get("count")] for n, r in rows]
        )
    data = document["data"]
    show_table(f"{title}{label}, {data['num_samples']} samples", ["metric", "value"], list(document["metrics"].items()))


def show_findings(findings: Sequence[Any], *, is_verbose: bool = False) -> None:
    """Warnings and errors in full, notes on one line each, or where `is_verbose` in full as well."""
    for finding in findings:
        is_short = finding.severity == "note" and not is_verbose
        note(_in_one_line(finding) if is_short else str(finding))


def _in_one_line(finding: Any) -> str:
    """Code, cause, summary and place, whatever breaks of lines the summary has."""
    text = f"[{finding.code} {finding.severity} {finding.cause}] {finding.summary} ({finding.where})"
    return " ".join(text.split())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)
