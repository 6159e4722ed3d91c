"""What verbs show a person: notes, tables, findings. Standard output for results, standard error for the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from sightline.errors import escape_to_one_line
from sightline.optional_members import DataMembers
from sightline.training.published_results import Difference, format_figure

__all__ = ["print_note", "show_difficulty", "show_evaluation", "show_findings", "show_table"]


_NARROWED = 16
"""Of a column: characters that still hold a shape or a class."""


def print_note(text: str) -> None:
    """A line for the person at the terminal, or several; what else is not printable is shown as escapes."""
    sys.stderr.write("".join(f"{escape_to_one_line(line)}\n" for line in text.split("\n")))
    sys.stderr.flush()


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    unbroken: str = "",
    droppable: Sequence[str] = (),
) -> None:
    """A table on standard output; plain and unbroken where that is not a terminal.

    The cells of the column `unbroken` are never broken. Where a terminal is too narrow, those of `droppable` are
    narrowed, then left out, the first of them first, and the title notes it.
    """
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)  # cells are data
    cells = [[_cell(value) for value in row] for row in rows]
    kept, dropped = list(range(len(columns))), []
    for name in droppable:
        widths = [_width([columns[at], *(row[at] for row in cells)], columns[at] in droppable) for at in kept]
        if sum(widths) + 1 > console.width:
            kept.remove(columns.index(name))
            dropped.append(name)
    narrow = f" (the terminal is too narrow for: {', '.join(dropped)})" if dropped else ""
    console.print(title + narrow, highlight=False, markup=False)
    table = Table()
    for index in kept:
        table.add_column(columns[index], overflow="fold", no_wrap=columns[index] == unbroken)
    for row in cells:
        table.add_row(*(row[index] for index in kept))
    console.print(table)


def show_evaluation(document: Mapping[str, Any], *, title: str, dataset: object = None) -> None:
    """Metrics as one table, and the rows per class or joint as another; below, what simple predictions reach."""
    label = f" ({document['selection']})" if document["selection"] == "test-selected" else ""
    rows = list(document["per_class"].items())
    if rows:
        info = getattr(dataset, "info", None)
        noun = "joint" if info is not None and "joint_names" in info.facts else "class"
        names = [name for name in rows[0][1] if name != "count"]
        show_table(
            f"per {noun}", [noun, *names, "count"], [[n, *(r[k] for k in names), r.get("count")] for n, r in rows]
        )
    for table in (document[name] for name in document if name.startswith("by_distance")):
        points = ("points", *table["points"])
        classes = [(name, *("" if iou is None else iou for iou in ious)) for name, ious in table["iou"].items()]
        show_table("IoU per class by distance", ("class", *table["stretches"]), [*classes, points])
    if hard := document.get("hard_classes"):
        listed = ", ".join(f"{escape_to_one_line(name)} {value:.4g}" for name, value in hard["classes"].items())
        print_note(f"hardest by {hard['figure']}: {listed}")
    data = document["data"]
    by = ""
    headers = [document[name] for name in document if name.startswith("scored_boxes")]
    for scored in headers:
        kind = f"{data.get('box_type', 'unnamed')} boxes"
        by += f"\n{scored['protocol']}; {kind}: {scored['num_boxes']} to find, {scored['num_ignored']} ignored"
    bins = {name: row for name, row in document.get("crowd_bins", {}).items() if row["count"]}
    if bins:
        columns = ("crowd_ap", "mr2", "recall", "count")
        show_table("by kind of label", ("labels", *columns), [(n, *(r[c] for c in columns)) for n, r in bins.items()])
    theirs: Mapping[str, float] = document.get("pycocotools", {})
    show_table(
        f"{title}{label}, {data['num_samples']} samples{by}",
        ["metric", "value", *(["pycocotools"] if theirs else [])],
        [(name, value, *([theirs.get(name)] if theirs else [])) for name, value in document["metrics"].items()],
    )
    for name, reason in {name: why for scored in headers for name, why in scored["undefined"].items()}.items():
        print_note(f"no figure ({name}): {reason}")
    for metric, answers in {**DataMembers.baselines.get(dataset), **document.get("yardsticks", {})}.items():
        listed = ", ".join(f"{value:.3f} for {answer}" for answer, value in answers.items())
        print_note(f"to compare {metric} with: {listed}")
    if document.get("published"):
        _show_published(document["published"])


def _show_published(rows: Sequence[Mapping[str, Any]]) -> None:
    """Published rows beside a run, as `beside_published` makes them; of the run's own model with both protocols."""
    names = list(dict.fromkeys(name for row in rows for name in row["here"]))
    here = {name: value for row in reversed(rows) for name, value in row["here"].items()}
    cells = [["this run", "", *(format_figure(here, name) for name in names), ""]]
    remarks = []
    for row in rows:
        found = [Difference(**each) for each in row["differences"]]
        stated, unstated = ([each for each in found if (each.there is None) == is_open] for is_open in (False, True))
        differs = ", ".join(each.name for each in stated)
        cells.append([row["who"], row["source"], *(format_figure(row["metrics"], name) for name in names), differs])
        missing = [f"not stated there: {', '.join(f'{each.name} ({each.here} here)' for each in unstated)}"][
            : len(unstated)
        ]
        if not any(each.name == "model" for each in stated):
            remarks.append(f"{row['who']} ({row['source']}): {'; '.join([*map(str, stated), *missing])}")
        remarks += [f"{row['who']} ({row['source']}): {line}" for line in row["remarks"]]
    show_table("published figures on this data set (percent, or mm)", ["", "source", *names, "differs in"], cells)
    for line in remarks:
        print_note(line)


def show_difficulty(difficulty: Any) -> None:
    """Why classes are hard: a row each, then the hardest samples and what the columns have to do with the IoU."""
    columns = ("class", "IoU", "points", f"training {difficulty.unit}", "at boundaries", "taken for")
    rows = [
        (
            row.name,
            row.iou,
            row.num_points,
            row.trained_on,
            row.boundary_share,
            ", ".join(f"{label} -> {answer} {share:.0%}" for label, answer, share in row.confusions[:2]),
        )
        for row in difficulty.rows
    ]
    show_table("why classes are hard", columns, rows, unbroken="class")
    if difficulty.hardest:
        print_note(
            escape_to_one_line("hardest: " + ", ".join(f"{name} ({iou:.3f})" for name, iou in difficulty.hardest))
        )
    if difficulty.summary():
        print_note(escape_to_one_line(difficulty.summary()))


def show_findings(findings: Sequence[Any], *, is_verbose: bool = False) -> None:
    """Warnings and errors in full, notes on one line each, or where `is_verbose` in full as well."""
    for finding in findings:
        is_short = finding.severity == "note" and not is_verbose
        print_note(_in_one_line(finding) if is_short else str(finding))


def _width(column: Sequence[str], may_be_narrowed: bool) -> int:
    """Of a column: its longest cell, or what it may be narrowed to, a space on either side, and the line after it."""
    longest = max(map(cell_len, column))
    return 3 + (min(longest, _NARROWED) if may_be_narrowed else longest)


def _in_one_line(finding: Any) -> str:
    """Guard, code, cause, summary and place, whatever breaks of lines the summary has."""
    text = f"[{finding.guard} {finding.code} {finding.severity} {finding.cause}] {finding.summary} ({finding.where})"
    return " ".join(text.split())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else escape_to_one_line(str(value))
