"""One table of runs beside published figures, with every difference between their protocols named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from sightline.config import RunConfig
from sightline.engine.inputs import read_inputs
from sightline.engine.stages import stage_of
from sightline.probe.blocks import argument_of, growing_graph
from sightline.probe.few_shot import FewShot
from sightline.probe.outcome import Probe
from sightline.probe.runs import Probed
from sightline.probe.svm import SVM

__all__ = [
    "COLUMNS",
    "PARTS",
    "Row",
    "compared",
    "differences",
    "markdown_of",
    "protocol_of",
    "published_rows",
]

PARTS = "part_instance_miou"
"""The figure of a run that was fine-tuned on parts."""

COLUMNS: Mapping[str, str] = {
    "probe_svm_accuracy": "SVM",
    "probe_svm_accuracy_standardised": "SVM, standardised",
    "probe_svm_accuracy_random": "SVM, random weights",
    "fewshot_5w10s": "5-way 10-shot",
    "fewshot_5w20s": "5-way 20-shot",
    "fewshot_10w10s": "10-way 10-shot",
    "fewshot_10w20s": "10-way 20-shot",
    "fewshot_5w10s_random": "5-way 10-shot, random weights",
    "by_hand_accuracy": "random forest, by hand",
    PARTS: "parts, instance mIoU",
    f"{PARTS}_scratch": "parts, from scratch",
}
"""Metrics of the table and their headings; figures are percent there, with their deviation where there is one."""

_UNSAID = "not said"


@dataclass(frozen=True)
class Row:
    """A run of ours or figures of others: on which data, by which protocol, with what result.

    `protocol` holds plain values by what they are of; None where it was not said. `remarks` are said below the table.
    """

    who: str
    source: str
    data: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]
    remarks: tuple[str, ...] = field(default=())


def published_rows(names: Sequence[str]) -> list[Row]:
    """What the paper and others reported on these data sets."""
    text = resources.files("sightline.probe").joinpath("published.json").read_text(encoding="utf-8")
    return [
        Row(
            who=row["who"],
            source=row["source"],
            data=row["data"],
            protocol=row["protocol"],
            metrics=row["metrics"],
            remarks=(f"unverified: {row['unverified']}",) if row["unverified"] else (),
        )
        for row in json.loads(text)["rows"]
        if row["data"] in names
    ]


def protocol_of(probed: Probed, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """How a run was made and probed, under the words that published rows use; the probes tell of themselves."""
    config, data = probed.config, probed.data.config.data
    is_contrast = config.task.name == "contrast"
    learnt_on = stage_of(config, read_inputs(probed.run, config))
    graph = growing_graph(config.model, probed.data.num_points)
    gathered = argument_of("tasks", config.task, "negatives") != "process"
    return {
        "pre-training": f"{config.data.name}, {', '.join(loss.name for loss in config.losses)}",
        "pairs per step": config.train.batch_size if is_contrast else "no pairs: trained with labels",
        "negatives of": ("all processes" if gathered else "one process") if is_contrast else None,
        "epochs": config.train.epochs,
        "neighbours": argument_of("models", config.model, "num_neighbours"),
        "points in pre-training": learnt_on["num_points"],
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph[1],
        "C": next((each.choice for each in probes.values() if isinstance(each, SVM)), None),
        "checkpoint": f"{which}, chosen without the test part"
        if _is_blind(config, which)
        else f"{which}, test-selected",
        "few-shot queries": next((each.asked for each in probes.values() if isinstance(each, FewShot)), None),
        "variant": argument_of("data", data, "variant"),
    }


def differences(ours: Row, theirs: Row) -> list[str]:
    """Where two protocols differ, in words; what one side does not say is a difference too."""
    return [
        f"{name}: {_told(ours.protocol.get(name))} here, {_told(theirs.protocol.get(name))} there"
        for name in ours.protocol
        if name in theirs.protocol and ours.protocol[name] != theirs.protocol[name]
    ] + [
        f"{name}: {_told(ours.protocol[name])} here, {_UNSAID} there"
        for name in ("neighbours", "points in pre-training", "variant")
        if ours.protocol.get(name) is not None and name not in theirs.protocol
    ]


def markdown_of(ours: Sequence[Row], others: Sequence[Row]) -> str:
    """The table, protocols, remarks, and for every published row how each of our runs differs from it."""
    rows = [*ours, *others]
    shown = [name for name in COLUMNS if any(name in row.metrics for row in rows)]
    lines = ["# Probes of frozen features", "", "Accuracies in percent; few-shot as mean +- deviation over runs.", ""]
    lines += _table(
        ["", "data", *(COLUMNS[name] for name in shown), "source"],
        ([row.who, row.data, *(_figure(row, name) for name in shown), row.source] for row in rows),
    )
    facts = list(dict.fromkeys(name for row in rows for name in row.protocol))
    lines += ["", "## Protocols", ""]
    lines += _table(
        ["", "data", *facts], ([row.who, row.data, *(_told(row.protocol.get(name)) for name in facts)] for row in rows)
    )
    remarks = [f"- {row.who}, {row.data}: {remark}" for row in rows for remark in row.remarks]
    lines += ["", "## Remarks", "", *remarks] if remarks else []
    lines += ["", "## Differences between the protocols", ""]
    lines += [
        f"- {row.who} against {theirs.who} ({theirs.source}): {'; '.join(found) or 'none found'}"
        for row, theirs, found in compared(ours, others)
    ] or ["None of these data sets has published figures here."]
    return "\n".join(lines) + "\n"


def compared(ours: Sequence[Row], others: Sequence[Row]) -> Iterator[tuple[Row, Row, list[str]]]:
    """A row of ours, a published one of the same data or also of parts, and how they differ; all such pairs."""
    for theirs in others:
        for row in ours:
            if row.data == theirs.data or (PARTS in theirs.metrics and PARTS in row.metrics):
                yield row, theirs, differences(row, theirs)


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def _figure(row: Row, name: str) -> str:
    if name not in row.metrics:
        return ""
    deviation = row.metrics.get(f"{name}_std")
    return f"{100 * row.metrics[name]:.2f}" + (f" +- {100 * deviation:.2f}" if deviation is not None else "")


def _told(value: Any) -> str:
    return _UNSAID if value is None else str(value)


def _is_blind(config: RunConfig, which: str) -> bool:
    """Whether the test part had no say in which weights these are."""
    return which == "last" or config.evaluate.select != "test"
