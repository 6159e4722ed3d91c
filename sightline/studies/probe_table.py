"""One table of runs beside published figures, with every difference between their protocols named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from sightline.config.show import to_plain
from sightline.probe.few_shot import FewShot
from sightline.probe.outcome import Probe
from sightline.probe.runs import Probed
from sightline.probe.svm import SVM
from sightline.runs.blocks import argument_of, blocks_within, graph_of
from sightline.runs.inputs import read_inputs
from sightline.runs.stages import in_words, stage_of

__all__ = [
    "OWN_PARTS",
    "PARTS",
    "ProbeRow",
    "compared",
    "differences",
    "heading_of",
    "markdown_of",
    "protocol_of",
    "published_rows",
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

_OF_OURS = ("arguments", "overrides", "parts config")
"""From the command line, which no published row has."""
_UNSTATED = "not stated"
_ABOUT = (
    "Accuracies in percent. Few-shot is the mean +- deviation over runs of episodes; figures of random weights are "
    "means over the networks, and where there are several +- the deviation over them."
)


@dataclass(frozen=True)
class ProbeRow:
    """A run of ours or figures of others: on which data, by which protocol, with what result.

    `protocol` holds plain values by what they are of; None where it was not stated. `chance` is what guessing gets of a
    metric. `remarks` are printed below the table.
    """

    who: str
    source: str
    data: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]
    chance: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=())


def published_rows(names: Sequence[str]) -> list[ProbeRow]:
    """What the paper and others reported on these data sets."""
    text = resources.files("sightline.studies").joinpath("published.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return [
        ProbeRow(
            who=row["who"],
            source=row["source"],
            data=row["data"],
            protocol=(document["protocols"][row["as"]] if "as" in row else {}) | row["protocol"],
            metrics=row["metrics"],
            remarks=(f"unverified: {row['unverified']}",) if row["unverified"] else (),
        )
        for row in document["rows"]
        if row["data"] in names
    ]


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


def protocol_of(probed: Probed, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """How a run was made and probed, under the words that published rows use; the probes describe themselves."""
    learnt, data = probed.learnt, probed.data.config.data
    is_contrast = learnt.task.name == "contrast"
    stage = stage_of(learnt, read_inputs(probed.run, learnt))
    graph = graph_of(probed.config.model, probed.data.num_points)
    variant = argument_of("data", data, "variant")
    gathered = argument_of("tasks", learnt.task, "negatives") != "process"
    return {
        "pre-training": learnt.data.name,
        "losses": in_words(to_plain(learnt.losses)),
        "encoder": stage["encoder"]["name"],
        "image encoder": next(
            (block.name for kind, block in blocks_within("models", learnt.model) if kind == "image_encoders"), "none"
        ),
        "training transforms of points": in_words(stage["training"]),
        "training transforms of images": in_words(stage["training_images"]),
        "number format": learnt.train.precision,
        "pairs per step": learnt.train.batch_size if is_contrast else "no pairs: trained with labels",
        "negatives of": ("all processes" if gathered else "one process") if is_contrast else None,
        "epochs": learnt.train.epochs,
        "neighbours": argument_of("models", learnt.model, "num_neighbours"),
        "points in pre-training": stage["num_points"],
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph.neighbours,
        "C": next((each.choice for each in probes.values() if isinstance(each, SVM)), None),
        "checkpoint": f"{which}, test-selected"
        if probed.is_test_selected
        else f"{which}, chosen without the test part",
        "few-shot queries": next((each.asked for each in probes.values() if isinstance(each, FewShot)), None),
        "few-shot runs": next(
            (each.runs for each in probes.values() if isinstance(each, FewShot) and each.file is None), None
        ),
        "variant": variant,
        "background": None if variant is None else argument_of("data", data, "background"),
    }


def differences(ours: ProbeRow, theirs: ProbeRow) -> list[str]:
    """Where two protocols differ, in words; what one side states and the other does not is a difference too."""
    names = [*ours.protocol, *(name for name in theirs.protocol if name not in ours.protocol)]
    are_of_parts = PARTS in ours.metrics and PARTS in theirs.metrics
    compared_by = [n for n in names if n not in _OF_OURS and (are_of_parts or not n.startswith("parts "))]
    pairs = [(name, ours.protocol.get(name), theirs.protocol.get(name)) for name in compared_by]
    return [f"{name}: {_in_words(here)} here, {_in_words(there)} there" for name, here, there in pairs if here != there]


def markdown_of(ours: Sequence[ProbeRow], others: Sequence[ProbeRow]) -> str:
    """The table, protocols, remarks, and for every published row how each of our runs differs from it."""
    rows = [*ours, *others]
    shown = sorted({name: None for row in rows for name in row.metrics}, key=_rank)
    headings = {name: heading for name in shown if (heading := heading_of(name)) is not None}
    lines = ["# Probes of frozen features", "", _ABOUT, ""]
    lines += _table(
        ["", "data", *headings.values(), "source"],
        ([row.who, row.data, *(_figure(row, name) for name in headings), row.source] for row in rows),
    )
    facts = list(dict.fromkeys(name for row in rows for name in row.protocol))
    lines += ["", "## Protocols", ""]
    lines += _table(
        ["", "data", *facts],
        ([row.who, row.data, *(_in_words(row.protocol.get(name)) for name in facts)] for row in rows),
    )
    chances = [f"{row.who}, {row.data}: {_chance_in_words(row)}" for row in rows if row.chance]
    lines += ["", "## What guessing gets", "", *(f"- {line}" for line in chances)] if chances else []
    remarks = [f"- {row.who}, {row.data}: {remark}" for row in rows for remark in row.remarks]
    lines += ["", "## Remarks", "", *remarks] if remarks else []
    lines += ["", "## Differences between the protocols", ""]
    lines += [
        f"- {row.who} against {theirs.who} ({theirs.source}): {'; '.join(found) or 'none found'}"
        for row, theirs, found in compared(ours, others)
    ] or ["None of these data sets has published figures here."]
    return "\n".join(lines) + "\n"


def compared(ours: Sequence[ProbeRow], others: Sequence[ProbeRow]) -> Iterator[tuple[ProbeRow, ProbeRow, list[str]]]:
    """A row of ours, a published one of the same data or also of parts, and how they differ; all such pairs."""
    for theirs in others:
        for row in ours:
            if row.data == theirs.data or (PARTS in theirs.metrics and PARTS in row.metrics):
                yield row, theirs, differences(row, theirs)


def _table(columns: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (list(columns), ["---"] * len(columns), *cells)]


def _figure(row: ProbeRow, name: str) -> str:
    if name not in row.metrics:
        return ""
    deviation = row.metrics.get(f"{name}_std")
    return f"{100 * row.metrics[name]:.2f}" + (f" +- {100 * deviation:.2f}" if deviation is not None else "")


def _in_words(value: Any) -> str:
    return _UNSTATED if value is None else str(value)


def _chance_in_words(row: ProbeRow) -> str:
    levels = {heading_of(name): value for name, value in row.chance.items()}
    return ", ".join(f"{heading} {100 * value:.2f}" for heading, value in levels.items() if heading is not None)
