"""One table of runs beside published figures, with every difference between their protocols named."""

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
    checkpoint_in_words,
    format_figure,
    pretraining_protocol,
    protocol_differences,
    published_rows,
    value_in_words,
)

__all__ = [
    "OWN_PARTS",
    "PARTS",
    "comparison_rows",
    "heading_of",
    "probe_markdown",
    "probe_rows",
    "protocol_of",
]

PARTS = "part_instance_miou_all_parts"
"""The figure of a run that was fine-tuned on parts, as published: the prediction may be any part of any category."""
OWN_PARTS = "part_instance_miou"
"""The same with predictions among the parts of the object's own category."""

_WORDS: Mapping[str, str] = {
    "probe_svm_accuracy": "SVM",
    "by_hand_accuracy": "random forest, by hand",
    PARTS: "parts, instance mIoU",
    OWN_PARTS: "parts, instance mIoU among own parts",
}
"""Headings of metrics; those of few-shot name their setting."""
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
    """The published rows on these data sets that have a column in the table."""
    return [row for row in published_rows(names) if any(heading_of(name) is not None for name in row.metrics)]


def heading_of(metric: str) -> str | None:
    """What a metric is called in the table; None for one that has no column."""
    for suffix, words in _SUFFIXES.items():
        if metric.endswith(suffix):
            inner = heading_of(metric.removesuffix(suffix))
            return None if inner is None else inner + words
    setting = re.fullmatch(r"fewshot_(\d+)w(\d+)s", metric)
    return f"{setting[1]}-way {setting[2]}-shot" if setting else _WORDS.get(metric)


def _rank(metric: str) -> int:
    """Where a metric's column stands: those of one method together."""
    return next((place for place, method in enumerate(_ORDER) if metric.startswith(method)), len(_ORDER))


def protocol_of(probed: ProbedRun, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """How a run was made and probed, under the words that published rows use; the probes describe themselves."""
    learnt, data = probed.training_config, probed.data.config.data
    graph = find_neighbour_graph(probed.config.model, probed.data.num_points)
    variant = get_argument("data", data, "variant")
    return {
        **pretraining_protocol(learnt, read_inputs(probed.run, learnt)),
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph.neighbours,
        "C": next((each.choice for each in probes.values() if isinstance(each, SVM)), None),
        "checkpoint": checkpoint_in_words(which, is_test_selected=probed.is_test_selected),
        "few-shot queries": next((each.asked for each in probes.values() if isinstance(each, FewShot)), None),
        "few-shot runs": next(
            (each.runs for each in probes.values() if isinstance(each, FewShot) and each.file is None), None
        ),
        "variant": variant,
        "background": None if variant is None else get_argument("data", data, "background"),
    }


def probe_markdown(ours: Sequence[ResultRow], others: Sequence[ResultRow]) -> str:
    """The table, protocols, remarks, and for every published row how each of our runs differs from it."""
    rows = [*ours, *others]
    shown = sorted({name: None for row in rows for name in row.metrics}, key=_rank)
    headings = {name: heading for name in shown if (heading := heading_of(name)) is not None}
    lines = ["# Probes of frozen features", "", _ABOUT, ""]
    lines += _table(
        ["", "data", *headings.values(), "source"],
        ([row.who, row.data, *(format_figure(row.metrics, name) for name in headings), row.source] for row in rows),
    )
    facts = list(dict.fromkeys(name for row in rows for name in row.protocol))
    lines += ["", "## Protocols", ""]
    lines += _table(
        ["", "data", *facts],
        ([row.who, row.data, *(value_in_words(row.protocol.get(name)) for name in facts)] for row in rows),
    )
    chances = [f"{row.who}, {row.data}: {_chance_in_words(row)}" for row in rows if row.chance]
    lines += ["", "## What guessing gets", "", *(f"- {line}" for line in chances)] if chances else []
    remarks = [f"- {row.who}, {row.data}: {remark}" for row in rows for remark in row.remarks]
    lines += ["", "## Remarks", "", *remarks] if remarks else []
    lines += ["", "## Differences between the protocols", ""]
    lines += [
        f"- {row.who} against {theirs.who} ({theirs.source}): {'; '.join(map(str, found)) or 'none found'}"
        for row, theirs, found in comparison_rows(ours, others)
    ] or ["None of these data sets has published figures here."]
    return "\n".join(lines) + "\n"


def comparison_rows(
    ours: Sequence[ResultRow], others: Sequence[ResultRow]
) -> Iterator[tuple[ResultRow, ResultRow, list[Difference]]]:
    """A row of ours, a published one of the same data or also of parts, and how they differ; all such pairs."""
    for theirs in others:
        for row in ours:
            if row.data == theirs.data or (PARTS in theirs.metrics and PARTS in row.metrics):
                yield row, theirs, protocol_differences(row, theirs)


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def _chance_in_words(row: ResultRow) -> str:
    levels = {heading_of(name): value for name, value in row.chance.items()}
    return ", ".join(f"{heading} {100 * value:.2f}" for heading, value in levels.items() if heading is not None)
