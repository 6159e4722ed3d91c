"""Terminal output of verbs: notes, tables, findings. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from sightline.contract.dataset import Dataset
from sightline.contract.errors import UserError, escape_to_one_line
from sightline.doctor.finding import SEVERITIES
from sightline.runs.run_records import format_interval, list_errors, note_figures
from sightline.verbs.opening import TRAINING_LINE

if TYPE_CHECKING:
    from sightline.config import RunConfig
    from sightline.doctor.finding import Finding

_NARROW_WIDTH = 16
"""Width in characters of a narrowed column: enough for a shape or a class name."""
_TREE_WIDTH, _MAX_LISTED, _MAX_COUNTS = 110, 40, 100
"""Width in characters of the lines of a tree, and how many values and counts one of them lists."""
_NO_BREAK = "\u00a0"
"""Non-breaking space, used while lines are wrapped."""
_LABELS = {"boxes_outside": "boxes_wholly_outside_their_image"}
"""Printed names of JSON keys that a reader may misunderstand."""


def print_note(text: str) -> None:
    """Print lines to standard error; characters that are not printable are escaped."""
    TRAINING_LINE.clear()
    sys.stderr.write("".join(f"{escape_to_one_line(line)}\n" for line in text.split("\n")))
    sys.stderr.flush()


def list_unapplied_passes(config: RunConfig, noun: str) -> list[str]:
    """List the settings of evaluation by which a run predicts a sample in several passes, where one is made."""
    votes, tile = config.evaluate.votes, config.evaluate.tile
    lines = [f"one pass a {noun}: evaluate.votes ({votes}) is not applied"] if votes > 1 else []
    return lines if tile is None else [*lines, f"one pass a {noun}: evaluate.tile ({tile}) is not applied"]


def load_config(path: Path, overrides: Sequence[str], plugins: Sequence[Path]) -> RunConfig:
    """Load the config of a file or run directory with plugins and overrides, and print its notes."""
    from sightline.training.config_source import read_with_plugins  # slow, as torch is: tables do without

    read = read_with_plugins(path, overrides, plugins)
    for line in read.notes:
        print_note(f"warning: {line}")
    return read.config


def split_options(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split KEY=VALUE words into those of these names, and the others. Raises UserError for a key given twice."""
    values: dict[str, str] = {}
    rest = []
    for word in words:
        key, _, text = word.partition("=")
        if key.strip() not in names:
            rest.append(word)
        elif key.strip() in values:
            raise UserError(f"{key.strip()}= is given twice; give it once")
        else:
            values[key.strip()] = text.strip()
    return values, tuple(rest)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    unbroken: str = "",
    droppable: Sequence[str] = (),
) -> None:
    """Print a table to standard output, 160 characters wide unless that is a terminal.

    Cells of the column `unbroken` are never wrapped. If the terminal is too narrow, the columns `droppable` are
    narrowed, then left out in their order, and the title notes it.
    """
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)  # cells are data
    cells = [[_format_cell(value) for value in row] for row in rows]
    shown_columns, dropped = list(range(len(columns))), []
    for name in droppable:
        widths = [
            _column_width([columns[index], *(row[index] for row in cells)], columns[index] in droppable)
            for index in shown_columns
        ]
        if sum(widths) + 1 > console.width:
            shown_columns.remove(columns.index(name))
            dropped.append(name)
    narrow = f" (the terminal is too narrow for: {', '.join(dropped)})" if dropped else ""
    console.print(title + narrow, highlight=False, markup=False)
    table = Table()
    for index in shown_columns:
        table.add_column(columns[index], overflow="fold", no_wrap=columns[index] == unbroken)
    for row in cells:
        table.add_row(*(row[index] for index in shown_columns))
    console.print(table)


def print_tree(tree: Any, indent: int = 0) -> None:
    """Print a document as an indented tree; None and empty values are left out, long lists are shortened."""
    for key, value in tree.items():
        pad = "  " * indent
        if value is None or (isinstance(value, str | dict | list | tuple) and not value):
            continue
        key = _LABELS.get(key, key)
        if isinstance(value, dict) and not all(type(number) is int for number in value.values()):
            sys.stdout.write(f"{pad}{escape_to_one_line(str(key))}:\n")
            print_tree(value, indent + 1)
            continue
        text = _format_leaf(value)
        lines = textwrap.wrap(
            f"{pad}{escape_to_one_line(str(key))}: {text.replace(' ', _NO_BREAK) if key.startswith('for_') else text}",
            _TREE_WIDTH,
            subsequent_indent=f"{pad}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        sys.stdout.write("".join(f"{line}\n" for line in lines).replace(_NO_BREAK, " "))


def show_evaluation(document: Mapping[str, Any], *, title: str, dataset: Dataset | None = None) -> None:
    """Print the metrics, the rows per class or joint, and below them the metrics of simple baselines."""
    label = f" ({document['selection']})" if document["selection"] == "test-selected" else ""
    rows = list(document["per_class"].items())
    facts = {} if dataset is None else dataset.info.facts
    noun, plural = ("joint", "joints") if "joint_names" in facts else ("class", "classes")
    if rows:
        columns = _list_class_columns(document)
        cells = [[name, *(column.get(name) for column in columns.values())] for name, _ in rows]
        show_table(
            f"per {noun}", [noun, *columns], cells, droppable=[name for name in columns if name not in rows[0][1]]
        )
    for table in (document[name] for name in document if name.startswith("by_distance")):
        points = ("points", *table["points"])
        classes = [(name, *("" if iou is None else iou for iou in ious)) for name, ious in table["iou"].items()]
        show_table("IoU per class by distance", ("class", *table["stretches"]), [*classes, points])
    if hard := document.get("hard_classes"):
        listed = ", ".join(f"{escape_to_one_line(name)} ({value:.4g})" for name, value in hard["classes"].items())
        print_note(f"hardest {plural} by {hard['figure']}: {listed}")
    data = document["data"]
    box_lines = ""
    for scored in (document[name] for name in document if name.startswith("scored_boxes")):
        kind = f"{scored.get('box_type') or data.get('box_type', 'unnamed')} boxes"
        box_lines += f"\n{scored['protocol']}; {kind}: {scored['num_boxes']} to find, {scored['num_ignored']} ignored"
    columns_of_errors, errors = list_errors(document)
    if errors:
        show_table("errors by kind", columns_of_errors, errors, droppable=columns_of_errors[-1:])
    if missed := document.get("missed_by"):
        of_missed = [(name, row["labels"], row["missed"]) for name, row in missed.items()]
        show_table("missed labels", ("labels", "count", "missed"), of_missed)
    bins = {name: row for name, row in document.get("crowd_bins", {}).items() if row["count"]}
    if bins:
        names = ("crowd_ap", "mr2", "recall", "count")
        show_table("by kind of label", ("labels", *names), [(n, *(r[c] for c in names)) for n, r in bins.items()])
    for by_difficulty in (document[name] for name in document if name.startswith("by_difficulty")):
        figures = dict.fromkeys(name for row in by_difficulty.values() for name in row if name != "not_counted")
        lines = [[name, *(row.get(figure) for figure in figures)] for name, row in by_difficulty.items()]
        show_table("by difficulty", ("labels", *figures), lines)
        for name, row in by_difficulty.items():
            if why := ", ".join(f"{count} {reason}" for reason, count in row["not_counted"].items()):
                print_note(f"labels of '{name}' that do not count: {why}")
    protocol = f", by {document['protocol']}" if "protocol" in document else ""
    heading = f"{title}{label}, {data['num_samples']} samples{protocol}{box_lines}"
    show_table(heading, ["metric", "value"], list(document["metrics"].items()))
    if interval := document.get("interval"):
        value, around = document["metrics"][interval["figure"]], f"{interval['low']:.4g} to {interval['high']:.4g}"
        samples = f"bootstrap over {interval['num_samples']} samples"
        print_note(f"{interval['figure']} {value:.4g} ({100 * interval['level']:g} % interval {around}, {samples})")
    for line in note_figures(document):
        print_note(line)
    for metric, baselines in {
        **({} if dataset is None else dataset.baselines),
        **document.get("yardsticks", {}),
    }.items():
        listed = ", ".join(f"{value:.3f} for {baseline}" for baseline, value in baselines.items())
        print_note(f"to compare {metric} with: {listed}")
    if document.get("published"):
        show_published(document["published"], "these files" if "predictions" in document else "this run")


def _list_class_columns(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """List the columns of the table of classes, title → class → cell: figures with intervals, count, and causes."""
    rows, intervals = document["per_class"], document.get("class_intervals", {})
    columns: dict[str, dict[str, Any]] = {}
    for figure in next(iter(rows.values())):
        columns[figure] = {name: row.get(figure) for name, row in rows.items()}
        if of_classes := {name: row[figure] for name, row in intervals.items() if figure in row}:
            columns[f"{figure}, 95 %"] = {name: format_interval(interval) for name, interval in of_classes.items()}
    columns["count"] = columns.pop("count", {})
    if confused := document.get("confused_with"):
        columns["confused with"] = {name: "{class} {share:.0%}".format_map(row) for name, row in confused.items()}
    if causes := document.get("class_causes"):
        columns["likely cause"] = {name: "; ".join(texts) for name, texts in causes.items()}
    return columns


def show_published(rows: Sequence[Mapping[str, Any]], ours: str) -> None:
    """Print published rows next to a run, as `list_published` makes them, each followed by its stated protocol."""
    from sightline.training.published_results import format_figure

    names = list(dict.fromkeys(name for row in rows for name in row["here"]))
    our_metrics = {name: value for row in reversed(rows) for name, value in row["here"].items()}
    cells = [[ours, "", *(format_figure(our_metrics, name) for name in names)]]
    cells += [[row["who"], row["source"], *(format_figure(row["metrics"], name) for name in names)] for row in rows]
    show_table("published figures on this data set (percent, or mm)", ["", "source", *names], cells)
    for row in rows:
        stated = ", ".join(f"{name} {value}" for name, value in row["protocol"].items())
        for line in (*([f"protocol: {stated}"] if stated else []), *row["remarks"]):
            print_note(f"{row['who']} ({row['source']}): {line}")


def show_findings(findings: Sequence[Any], *, is_verbose: bool = False) -> None:
    """Print warnings and errors in full, then notes on one line each; with `is_verbose` notes in full as well."""
    from sightline.workbench.check.examination import describe_findings

    for text in describe_findings(findings, is_verbose=is_verbose):
        print_note(text)


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, errors first."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def count_findings(name: str, findings: Sequence[Finding], *, is_strict: bool) -> tuple[dict[str, int], int]:
    """Print the numbers of errors and warnings; return them, and exit code 1 for an error (`is_strict`: a warning)."""
    errors, warnings = (sum(finding.severity == kind for finding in findings) for kind in ("error", "warning"))
    print_note(f"{name}: {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return {"errors": errors, "warnings": warnings}, int(errors > 0 or (is_strict and warnings > 0))


def _column_width(column: Sequence[str], may_be_narrowed: bool) -> int:
    """Compute the width of a column: its longest cell, narrowed if allowed, with two spaces and a border."""
    longest = max(map(cell_len, column))
    return 3 + (min(longest, _NARROW_WIDTH) if may_be_narrowed else longest)


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else escape_to_one_line(str(value))


def _format_leaf(value: Any) -> str:
    if isinstance(value, dict):
        counts = [f"{escape_to_one_line(name)}{_NO_BREAK}{count}" for name, count in value.items()]
        return _shorten(counts, most=_MAX_COUNTS)
    if isinstance(value, list | tuple):
        return _shorten([*map(_format_leaf, value)], most=_MAX_LISTED)
    return f"{value:.4g}" if isinstance(value, float) else escape_to_one_line(str(value))


def _shorten(texts: Sequence[str], *, most: int) -> str:
    return ", ".join(texts[:most]) + (f", ... ({len(texts)} in all)" if len(texts) > most else "")
