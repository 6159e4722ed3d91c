"""Table of probed runs and published results, with all differences between their protocols."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sightline.probe.few_shot import FewShot
from sightline.probe.outcome import Probe
from sightline.probe.probed_run import ProbedRun
from sightline.probe.svm import SVM
from sightline.runs.blocks import find_neighbour_graph, get_argument
from sightline.runs.inputs import read_inputs
from sightline.training.published_results import (
    Difference,
    ResultRow,
    describe_checkpoint,
    format_figure,
    format_protocol_value,
    pretraining_protocol,
    protocol_differences,
    published_rows,
)

__all__ = [
    "OWN_PARTS",
    "PARTS",
    "column_heading",
    "comparison_rows",
    "probe_markdown",
    "probe_protocol",
    "probe_rows",
]

PARTS = "part_instance_miou_all_parts"
"""Metric of fine-tuning on parts, as published: the prediction may be any part of any category."""
OWN_PARTS = "part_instance_miou"
"""Metric of fine-tuning on parts, with predictions restricted to the parts of the object's category."""

_WORDS: Mapping[str, str] = {
    "probe_svm_accuracy": "SVM",
    "by_hand_accuracy": "random forest, by hand",
    PARTS: "parts, instance mIoU",
    OWN_PARTS: "parts, instance mIoU among own parts",
}
"""Headings of metrics; those of few-shot are made from their setting."""
_SUFFIXES: Mapping[str, str] = {
    "_random": ", random weights",
    "_scratch": ", from scratch",
    "_standardised": ", standardised",
    "_test_queries": ", queries of the test part",
}

_ORDER = ("probe_svm", "fewshot", "by_hand", "part")

_ABOUT = (
    "Accuracies in percent. Few-shot is the mean +- deviation over runs of episodes; figures of random weights are "
    "means over the networks, and where there are several +- the deviation over them."
)


def probe_rows(names: Iterable[str]) -> list[ResultRow]:
    """Return the published rows on these data sets that have a column in the table."""
    return [row for row in published_rows(names) if any(column_heading(name) is not None for name in row.metrics)]


def column_heading(metric: str) -> str | None:
    """Return the heading of a metric in the table, or None if it has no column."""
    for suffix, ending in _SUFFIXES.items():
        if metric.endswith(suffix):
            inner = column_heading(metric.removesuffix(suffix))
            return None if inner is None else inner + ending
    setting = re.fullmatch(r"fewshot_(\d+)w(\d+)s", metric)
    return f"{setting[1]}-way {setting[2]}-shot" if setting else _WORDS.get(metric)


def _rank(metric: str) -> int:
    """Return the sort key of a metric's column, which groups columns by method."""
    return next((index for index, method in enumerate(_ORDER) if metric.startswith(method)), len(_ORDER))


def probe_protocol(probed: ProbedRun, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Build the protocol of training and probing a run, with the entry names of published rows."""
    training_config, data = probed.training_config, probed.data.config.data
    graph = find_neighbour_graph(probed.config.model, probed.data.num_points)
    variant = get_argument("data", data, "variant")
    return {
        **pretraining_protocol(training_config, read_inputs(probed.run, training_config)),
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph.neighbours,
        "C": next((probe.choice for probe in probes.values() if isinstance(probe, SVM)), None),
        "checkpoint": describe_checkpoint(which, is_test_selected=probed.is_test_selected),
        "few-shot queries": next(
            (probe.queries_description for probe in probes.values() if isinstance(probe, FewShot)), None
        ),
        "few-shot runs": next(
            (probe.runs for probe in probes.values() if isinstance(probe, FewShot) and probe.file is None), None
        ),
        "variant": variant,
        "background": None if variant is None else get_argument("data", data, "background"),
    }


def probe_markdown(ours: Sequence[ResultRow], others: Sequence[ResultRow]) -> str:
    """Format table, protocols, remarks and, for every published row, the differences of our runs as Markdown."""
    rows = [*ours, *others]
    shown = sorted({name: None for row in rows for name in row.metrics}, key=_rank)
    headings = {name: heading for name in shown if (heading := column_heading(name)) is not None}
    lines = ["# Probes of frozen features", "", _ABOUT, ""]
    lines += _table(
        ["", "data", *headings.values(), "source"],
        ([row.who, row.data, *(format_figure(row.metrics, name) for name in headings), row.source] for row in rows),
    )
    facts = list(dict.fromkeys(name for row in rows for name in row.protocol))
    lines += ["", "## Protocols", ""]
    lines += _table(
        ["", "data", *facts],
        ([row.who, row.data, *(format_protocol_value(row.protocol.get(name)) for name in facts)] for row in rows),
    )
    chances = [f"{row.who}, {row.data}: {_chance_in_words(row)}" for row in rows if row.chance]
    lines += ["", "## What guessing gets", "", *(f"- {line}" for line in chances)] if chances else []
    remarks = [f"- {row.who}, {row.data}: {remark}" for row in rows for remark in row.remarks]
    lines += ["", "## Remarks", "", *remarks] if remarks else []
    lines += ["", "## Differences between the protocols", ""]
    lines += [
        f"- {row.who} against {published.who} ({published.source}): {'; '.join(map(str, differences)) or 'none found'}"
        for row, published, differences in comparison_rows(ours, others)
    ] or ["None of these data sets has published figures here."]
    return "\n".join(lines) + "\n"


def comparison_rows(
    ours: Sequence[ResultRow], others: Sequence[ResultRow]
) -> Iterator[tuple[ResultRow, ResultRow, list[Difference]]]:
    """Iterate over pairs of our and published rows, on the same data or both on parts, with their differences."""
    for published in others:
        for row in ours:
            if row.data == published.data or (PARTS in published.metrics and PARTS in row.metrics):
                yield row, published, protocol_differences(row, published)


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def _chance_in_words(row: ResultRow) -> str:
    levels = {column_heading(name): value for name, value in row.chance.items()}
    return ", ".join(f"{heading} {100 * value:.2f}" for heading, value in levels.items() if heading is not None)
