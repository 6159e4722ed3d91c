"""Published results of papers and repositories next to those of a run, with the differences of their protocols."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from sightline.config import RunConfig
from sightline.config.run_config import to_plain
from sightline.contract import registry
from sightline.contract.members import DataMembers
from sightline.contract.types import ComponentConfig, DataInfo
from sightline.engine.build import DataSubset
from sightline.runs.preprocessing_signature import format_setting, preprocessing_signature
from sightline.runs.weights import find_neighbour_graph, get_argument

_UNSTATED = "not stated"
_PASSES_PATTERN = re.compile(r"_(vote|ensemble)(\d+)$")
_PASSES_ENTRIES = {"vote": "votes", "ensemble": "checkpoints averaged"}


_COMPARED_FACTS = {
    "class_names": "its classes are",
    "fov_deg": "its highest and lowest beams are at degrees of",
    "azimuth_deg": "its scans reach from degrees of",
    "beams_deg": "its beams are at degrees of",
}
"""Facts by which a user's own data set differs from the published one of the same layout."""
_MAX_DEVIATION = 0.02
"""Largest relative difference in test samples: some copies leave out images without boxes, or frames."""


@dataclass(frozen=True)
class ResultRow:
    """Result of a run of ours or of a publication: data set, protocol and metrics.

    `protocol` maps names to plain values; None if not stated. `remarks` are printed below the table.
    """

    who: str
    source: str
    data: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Difference of one protocol entry here and there; None on a side that does not state the entry."""

    name: str
    here: Any
    there: Any

    def __str__(self) -> str:
        return f"{self.name}: {format_protocol_value(self.here)} here, {format_protocol_value(self.there)} there"


# --- the table ------------------------------------------------------------------------------------------------------


def published_rows(names: Iterable[str]) -> list[ResultRow]:
    """Return the published rows on these data sets."""
    document, data_names = _read_table(), set(names)
    return [
        ResultRow(
            who=row["who"],
            source=row["source"],
            data=row["data"],
            protocol=(document["protocols"][row["as"]] if "as" in row else {}) | row["protocol"],
            metrics=row["metrics"],
            remarks=(f"unverified: {row['unverified']}",) if row["unverified"] else (),
        )
        for row in document["rows"]
        if row["data"] in data_names
    ]


def describe_foreign_data(data: ComponentConfig, info: DataInfo) -> str | None:
    """Describe why a data set differs from the published one of its name; None if nothing shows a difference.

    Own photos may have the layout of COCO, and scans of any sensor that of SemanticKITTI: the classes, the sensor and
    the number of test samples are compared, if they are known on both sides.
    """
    promise = DataMembers.expected_info.get(registry.data.entry(data).builder)
    facts = {} if promise is None else promise().facts
    for name, phrase in _COMPARED_FACTS.items():
        ours, published = info.facts.get(name), facts.get(name)
        if ours is not None and published is not None and sorted(ours) != sorted(published):
            return f"{phrase} {_shorten(ours)} here, {_shorten(published)} there"
    counts: Mapping[str, int] = _read_table().get("samples", {}).get(data.name, {})
    tested = ("test",) if "test" in counts else () if info.folds is None else info.folds.tested
    unknown = [name for name in tested if name not in counts]
    if counts and unknown:
        return f"it is tested on {unknown[0]}, which has no labels there"
    ours, published = info.split_sizes.get("test"), sum(counts.get(name, 0) for name in tested)
    if ours is not None and published and abs(ours - published) > _MAX_DEVIATION * published:
        return f"test samples are {ours:,} here, {published:,} there"
    return None


def _shorten(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:3]))
    return shown if len(values) <= 3 else f"{shown}, ... ({len(values)})"


def published_names() -> list[str]:
    """List the data sets that have published rows."""
    return sorted({row["data"] for row in _read_table()["rows"]})


def protocol_differences(ours: ResultRow, theirs: ResultRow) -> list[Difference]:
    """List the differences of two protocols; an entry that only one side states is a difference, too."""
    names = [*ours.protocol, *(name for name in theirs.protocol if name not in ours.protocol)]
    compared_by = [name for name in names if not name.startswith("parts ")]
    pairs = [Difference(name, ours.protocol.get(name), theirs.protocol.get(name)) for name in compared_by]
    return [pair for pair in pairs if pair.here != pair.there]


def format_figure(metrics: Mapping[str, float], name: str) -> str:
    """Format a metric in percent, or in mm for names in _mm, with its deviation or the end of its range."""
    if name not in metrics:
        return ""
    unit = 1 if name.endswith("_mm") else 100
    deviation, end = metrics.get(f"{name}_std"), metrics.get(f"{name}_to")
    spread = "" if deviation is None else f" +- {unit * deviation:.2f}"
    return f"{unit * metrics[name]:.2f}{spread}" + ("" if end is None else f" to {unit * end:.2f}")


def format_protocol_value(value: Any) -> str:
    """Format a value of a protocol; None is "not stated"."""
    return _UNSTATED if value is None else str(value)


def _read_table() -> Any:
    return json.loads(resources.files("sightline.training").joinpath("published.json").read_text(encoding="utf-8"))


# --- a run of ours --------------------------------------------------------------------------------------------------


def compare_with_published(
    config: RunConfig,
    part: DataSubset,
    metrics: Mapping[str, float],
    *,
    which: str,
    lineage: Mapping[str, Any] | None,
    tested: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """List published rows on the run's data set and metrics: those of the same model first, then by nearest protocol.

    Each has `who`, `source`, `metrics` (a range has two, the second with the suffix `_to`), `here` (the same metrics of
    the run), `remarks`, `protocol` and `differences`, a list of `name`, `here` and `there`. A row is compared with the
    plain, the voted or the checkpoint-averaged metrics of the run, by the nearest protocol. `tested` names the folds
    that several runs test together. Empty for a user's own data (`describe_foreign_data`).
    """
    info, published = part.dataset.info, [_convert_parts_row(row) for row in published_rows([config.data.name])]
    if published and describe_foreign_data(config.data, info) is not None:
        return []
    plain = _protocol(config, info, which=which, lineage=lineage, tested=tested)
    ours = run_rows(config, plain, metrics)
    entries = []
    for row in published:
        stated = {name: _get_value(config, name) for name in row.protocol if "." in name}
        candidates = [
            (
                ResultRow(our_row.who, our_row.source, our_row.data, {**our_row.protocol, **stated}, our_row.metrics),
                shared,
            )
            for our_row in ours
            if (shared := [name for name in row.metrics if name in our_row.metrics])
        ]
        if candidates:
            mine, shared = min(candidates, key=lambda pair: len(protocol_differences(pair[0], row)))
            entries.append(comparison_entry(mine, row, shared))
    return sorted(entries, key=_sort_key)


def compare_figures_with_published(
    data: ComponentConfig, info: DataInfo, metrics: Mapping[str, float]
) -> list[dict[str, Any]]:
    """List published rows on a data set for predictions of unknown origin: entries of the protocol that data show.

    The rows are as those of `compare_with_published`; entries that only the publication states are no differences.
    """
    published = [_convert_parts_row(row) for row in published_rows([data.name])]
    if published and describe_foreign_data(data, info) is not None:
        return []
    ours = ResultRow("these predictions", "files", data.name, _non_default_arguments("data", data), metrics)
    shared = {id(row): [name for name in row.metrics if name in metrics] for row in published}
    entries = [comparison_entry(ours, row, shared[id(row)]) for row in published if shared[id(row)]]
    known = [[row for row in entry["differences"] if row["here"] is not None] for entry in entries]
    return [entry | {"differences": rows} for entry, rows in zip(entries, known, strict=True)]


def explain_no_rows(data: ComponentConfig, info: DataInfo, metrics: Iterable[str]) -> str:
    """Return the reason why nothing published can be compared with these metrics."""
    names = published_names()
    if data.name not in names:
        return f"there are no published results on '{data.name}'; the table has {', '.join(names)}"
    if reason := describe_foreign_data(data, info):
        return f"these data differ from the '{data.name}' of the published results: {reason}"
    return f"the published results on '{data.name}' have other metrics than {', '.join(metrics)}"


def run_rows(config: RunConfig, protocol: Mapping[str, Any], metrics: Mapping[str, float]) -> list[ResultRow]:
    """Return the metrics of a run as rows: plain, with votes and with averaged checkpoints, under plain names."""
    by_passes: dict[tuple[str, int] | None, dict[str, float]] = {}
    for name, value in metrics.items():
        match = _PASSES_PATTERN.search(name)
        passes = (_PASSES_ENTRIES[match[1]], int(match[2])) if match else None
        by_passes.setdefault(passes, {})[_PASSES_PATTERN.sub("", name)] = value
    return [
        ResultRow(
            config.name, "this run", config.data.name, {**protocol, **dict([passes] if passes else [])}, row_metrics
        )
        for passes, row_metrics in by_passes.items()
    ]


def pretraining_protocol(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """Return the pre-training protocol of a probed run, with the entry names of the published rows."""
    stage = preprocessing_signature(config, info)
    is_contrast = config.task.name == "contrast"
    gathered = get_argument("tasks", config.task, "negatives") != "process"
    blocks = registry.models.bind(config.model).iterate()
    return {
        "pre-training": config.data.name,
        "losses": format_setting(to_plain(config.losses)),
        "encoder": stage["encoder"]["name"],
        "image encoder": next((block.entry.name for block in blocks if block.kind is registry.image_encoders), "none"),
        "training transforms of points": format_setting(stage["training"]),
        "training transforms of images": format_setting(stage["training_images"]),
        "number format": config.train.precision,
        "pairs per step": config.train.batch_size if is_contrast else "no pairs: trained with labels",
        "negatives of": ("all processes" if gathered else "one process") if is_contrast else None,
        "epochs": config.train.epochs,
        "neighbours": get_argument("models", config.model, "num_neighbours"),
        "points in pre-training": stage["num_points"],
    }


def describe_checkpoint(which: str, *, is_test_selected: bool) -> str:
    """Describe the checkpoint of metrics, and whether it was selected on the test split."""
    return f"{which}, test-selected" if is_test_selected else f"{which}, chosen without the test part"


def _protocol(
    config: RunConfig, info: DataInfo, *, which: str, lineage: Mapping[str, Any] | None, tested: Sequence[str]
) -> dict[str, Any]:
    is_test_selected = which != "last" and config.evaluate.select == "test"
    points = preprocessing_signature(config, info)["num_points"]
    checkpoint = {"checkpoint": describe_checkpoint(which, is_test_selected=is_test_selected)}
    if config.task.name == "contrast":
        from sightline.workbench.probe.classifiers import (
            describe_choice,  # probes are imported only for contrastive runs
        )

        probe = {"points in the probe": points, "C": describe_choice()}
        return pretraining_protocol(config, info) | probe | checkpoint
    _, *inner = (block.entry.name for block in registry.models.bind(config.model).iterate())
    graph = None if points is None else find_neighbour_graph(config.model, points)
    facts = {
        "model": config.model.name + (f" of {', '.join(inner)}" if inner else ""),
        "pre-training": _describe_source(lineage),
        "weights": None,
        "points": points,
        "neighbours": None if graph is None else graph.neighbours,
        "tested on": ", ".join(tested or (() if info.folds is None else info.folds.tested)) or None,
        "epochs": config.train.epochs if config.train.steps is None else f"{config.train.steps} steps",
        "batch size": config.train.batch_size,
        "votes": 1,
        "checkpoints averaged": 1,
    }
    protocol = (
        facts | checkpoint | _non_default_arguments("data", config.data) | _non_default_arguments("task", config.task)
    )
    if lineage is not None and "layout" in lineage:  # others trained these weights, not this config
        protocol |= dict.fromkeys(("pre-training", "epochs", "batch size", "checkpoint"))
        protocol["weights"] = f"published, layout {lineage['layout']}"
    return {name: value for name, value in protocol.items() if value is not None}


def _describe_source(lineage: Mapping[str, Any] | None) -> str:
    """Describe the pre-training data of a run's initial weights: its run's data set, or that of a published layout."""
    if lineage is None:
        return "none"
    source_lineage = lineage.get("lineage")
    if source_lineage is not None and "layout" in source_lineage:
        layout = source_lineage["layout"]
        return str(_read_table()["pretrained"].get(layout, f"published weights, layout {layout}"))
    return "not known" if lineage.get("source") is None else str(lineage["source"]["data"]["name"])


def _non_default_arguments(section: str, block: ComponentConfig) -> dict[str, Any]:
    """Return the arguments of a block that differ from their defaults, by dotted keys; a nested block by its name.

    Of a task only strings and booleans are returned: published rows do not state its numbers.
    """
    parameters = registry.REGISTRIES[_KINDS[section]].entry(block).arguments
    arguments: dict[str, Any] = {}
    for name, value in block.arguments.items():
        if name in _NOT_PROTOCOL or not (parameters[name].is_required or value != parameters[name].default):
            continue
        if isinstance(value, ComponentConfig):
            arguments[f"{section}.{name}.name"] = value.name
        elif section == "data" or isinstance(value, str | bool):
            arguments[f"{section}.{name}"] = to_plain(value)
    return arguments


_NOT_PROTOCOL = ("root", "num_points", "views")
"""Arguments that are not protocol: paths, and the number of points, which is stated as `points`."""
_KINDS = {"data": "data", "model": "models", "task": "tasks", "optimizer": "optimizers"}


def _get_value(config: RunConfig, path: str) -> Any:
    """Get the value of a config's dotted key, including defaults; in a list of blocks, the next name is a block's."""
    section, *names = path.split(".")
    value = getattr(config, section)
    kind = _KINDS.get(section)
    while names:
        name = names.pop(0)
        if isinstance(value, ComponentConfig):
            value = (
                value.name if name == "name" else get_argument(kind, value, name) if kind else value.arguments.get(name)
            )
            kind = None
        elif isinstance(value, tuple | list):
            value, kind = next((block for block in value if block.name == name), None), "transforms"
        else:
            value = getattr(value, name, None)
    return to_plain(value)


def _convert_parts_row(row: ResultRow) -> ResultRow:
    """Convert a row of fine-tuning on parts, as in tables of probes, to a row of a part segmentation run."""
    if "parts data" not in row.protocol:
        return row
    pretraining = {name: row.protocol[name] for name in ("pre-training", "neighbours") if name in row.protocol}
    parts_protocol = {
        name.removeprefix("parts "): value for name, value in row.protocol.items() if name.startswith("parts ")
    }
    parts_protocol["batch size"] = parts_protocol.pop("clouds per step")
    del parts_protocol["data"]
    metrics = {name.removeprefix("part_"): value for name, value in row.metrics.items()}
    return ResultRow(
        row.who,
        row.source,
        row.data,
        {"model": row.protocol["encoder"], **pretraining, **parts_protocol},
        metrics,
        remarks=row.remarks,
    )


def _sort_key(entry: Mapping[str, Any]) -> tuple[bool, int]:
    """Sort key of a row: whether its model differs, and in how many of its stated entries."""
    stated = [difference["name"] for difference in entry["differences"] if difference["there"] is not None]
    return "model" in stated, len(stated)


def comparison_entry(ours: ResultRow, published: ResultRow, shared: Sequence[str]) -> dict[str, Any]:
    """Return a published row as a dictionary, beside our shared metrics and the differences of both protocols."""
    return {
        "who": published.who,
        "source": published.source,
        "metrics": {name: value for name, value in published.metrics.items() if name.removesuffix("_to") in shared},
        "here": {name: ours.metrics[name] for name in shared},
        "remarks": list(published.remarks),
        "protocol": dict(published.protocol),
        "differences": [asdict(difference) for difference in protocol_differences(ours, published)],
    }
