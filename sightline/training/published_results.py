"""Figures that papers, repositories and the notes report, beside those of a run, with what differs in how they came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.config.yaml_writer import to_plain
from sightline.engine.build import DataSubset
from sightline.optional_members import DataMembers
from sightline.runs.blocks import find_neighbour_graph, get_argument, iterate_blocks
from sightline.runs.preprocessing_signature import format_setting, preprocessing_signature
from sightline.types import ComponentConfig, DataInfo

__all__ = [
    "Difference",
    "ResultRow",
    "beside_published",
    "checkpoint_in_words",
    "foreign_in_words",
    "format_figure",
    "pretraining_protocol",
    "protocol_differences",
    "published_names",
    "published_rows",
    "run_rows",
    "value_in_words",
]

_OF_OURS = ("arguments", "overrides", "parts config")
"""From the command line, which no published row has."""
_UNSTATED = "not stated"
_PASSES = re.compile(r"_(vote|ensemble)(\d+)$")
_OF_PASSES = {"vote": "votes", "ensemble": "checkpoints averaged"}


_TELLING = {
    "class_names": "its classes are",
    "fov_deg": "its highest and lowest beams are at degrees of",
    "azimuth_deg": "its scans reach from degrees of",
    "beams_deg": "its beams are at degrees of",
}
"""Facts by which a data set of one's own differs from the published one of its layout."""
_MOST_OFF = 0.02
"""The share of test samples that may be lacking: some copies leave out images without boxes, or frames."""


@dataclass(frozen=True)
class ResultRow:
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


@dataclass(frozen=True)
class Difference:
    """A part of the protocol that is not the same here and there; None on a side that does not state it."""

    name: str
    here: Any
    there: Any

    def __str__(self) -> str:
        return f"{self.name}: {value_in_words(self.here)} here, {value_in_words(self.there)} there"


# --- the table ------------------------------------------------------------------------------------------------------


def published_rows(names: Iterable[str]) -> list[ResultRow]:
    """What papers and others reported on these data sets."""
    document, held = _table(), set(names)
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
        if row["data"] in held
    ]


def foreign_in_words(data: ComponentConfig, info: DataInfo) -> str | None:
    """Why a data set is not the one of its name that figures are published on; None where nothing speaks against it.

    One's own photos may lie as COCO's do, and scans of any sensor as SemanticKITTI's: the classes, the sensor and the
    number of test samples decide, each where it is known here and there.
    """
    promise = DataMembers.expected_info.get(registry.data.entry(data).builder)
    facts = {} if promise is None else promise().facts
    for name, words in _TELLING.items():
        here, there = info.facts.get(name), facts.get(name)
        if here is not None and there is not None and sorted(here) != sorted(there):
            return f"{words} {_few(here)} here, {_few(there)} there"
    counts: Mapping[str, int] = _table().get("samples", {}).get(data.name, {})
    tested = ("test",) if "test" in counts else () if info.folds is None else info.folds.tested
    unknown = [name for name in tested if name not in counts]
    if counts and unknown:
        return f"it is tested on {unknown[0]}, which has no labels there"
    here, there = info.split_sizes.get("test"), sum(counts.get(name, 0) for name in tested)
    if here is not None and there and abs(here - there) > _MOST_OFF * there:
        return f"test samples are {here:,} here, {there:,} there"
    return None


def _few(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:3]))
    return shown if len(values) <= 3 else f"{shown}, ... ({len(values)})"


def published_names() -> list[str]:
    """The data sets that have published rows."""
    return sorted({row["data"] for row in _table()["rows"]})


def protocol_differences(ours: ResultRow, theirs: ResultRow) -> list[Difference]:
    """Where two protocols differ; what one side states and the other does not is a difference too."""
    names = [*ours.protocol, *(name for name in theirs.protocol if name not in ours.protocol)]
    are_of_parts = any(name.startswith("part_") and name in theirs.metrics for name in ours.metrics)
    compared_by = [n for n in names if n not in _OF_OURS and (are_of_parts or not n.startswith("parts "))]
    pairs = [Difference(name, ours.protocol.get(name), theirs.protocol.get(name)) for name in compared_by]
    return [each for each in pairs if each.here != each.there]


def format_figure(metrics: Mapping[str, float], name: str) -> str:
    """A figure in percent, in mm where its name says so; with its deviation, or the end of its range."""
    if name not in metrics:
        return ""
    unit = 1 if name.endswith("_mm") else 100
    deviation, end = metrics.get(f"{name}_std"), metrics.get(f"{name}_to")
    spread = "" if deviation is None else f" +- {unit * deviation:.2f}"
    return f"{unit * metrics[name]:.2f}{spread}" + ("" if end is None else f" to {unit * end:.2f}")


def value_in_words(value: Any) -> str:
    """A value of a protocol."""
    return _UNSTATED if value is None else str(value)


def _table() -> Any:
    return json.loads(resources.files("sightline.training").joinpath("published.json").read_text(encoding="utf-8"))


# --- a run of ours --------------------------------------------------------------------------------------------------


def beside_published(
    config: RunConfig,
    part: DataSubset,
    metrics: Mapping[str, float],
    *,
    which: str,
    lineage: Mapping[str, Any] | None,
    tested: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Published rows of the run's data set and metrics: those of the same model first, then the nearest protocols.

    Each has `who`, `source`, `metrics` (a range has two, the second with the suffix `_to`), `here` (the same figures of
    the run), `remarks`, `protocol` and `differences`, a list of `name`, `here` and `there`. Of plain figures, those of
    votes and those of averaged checkpoints the ones whose protocol is nearest stand beside a row. `tested` names the
    folds that several runs test together. None for data of one's own (`foreign_in_words`).
    """
    info, theirs = part.dataset.info, [_of_one_stage(row) for row in published_rows([config.data.name])]
    if theirs and foreign_in_words(config.data, info) is not None:
        return []
    plain = _protocol(config, info, which=which, lineage=lineage, tested=tested)
    ours = run_rows(config, plain, metrics)
    found = []
    for row in theirs:
        stated = {name: _argument(config, name) for name in row.protocol if "." in name}
        near = [
            (ResultRow(each.who, each.source, each.data, {**each.protocol, **stated}, each.metrics), shared)
            for each in ours
            if (shared := [name for name in row.metrics if name in each.metrics])
        ]
        if near:
            mine, shared = min(near, key=lambda pair: len(protocol_differences(pair[0], row)))
            found.append(_entry(mine, row, shared))
    return sorted(found, key=_distance)


def run_rows(config: RunConfig, protocol: Mapping[str, Any], metrics: Mapping[str, float]) -> list[ResultRow]:
    """The figures of a run, those of votes and of averaged checkpoints as rows of their own, under plain names."""
    by_passes: dict[tuple[str, int] | None, dict[str, float]] = {}
    for name, value in metrics.items():
        match = _PASSES.search(name)
        passes = (_OF_PASSES[match[1]], int(match[2])) if match else None
        by_passes.setdefault(passes, {})[_PASSES.sub("", name)] = value
    return [
        ResultRow(config.name, "this run", config.data.name, {**protocol, **dict([passes] if passes else [])}, found)
        for passes, found in by_passes.items()
    ]


def pretraining_protocol(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """How a run learned that is judged by a probe, under the words of the published rows."""
    stage = preprocessing_signature(config, info)
    is_contrast = config.task.name == "contrast"
    gathered = get_argument("tasks", config.task, "negatives") != "process"
    return {
        "pre-training": config.data.name,
        "losses": format_setting(to_plain(config.losses)),
        "encoder": stage["encoder"]["name"],
        "image encoder": next(
            (block.name for kind, block in iterate_blocks("models", config.model) if kind == "image_encoders"), "none"
        ),
        "training transforms of points": format_setting(stage["training"]),
        "training transforms of images": format_setting(stage["training_images"]),
        "number format": config.train.precision,
        "pairs per step": config.train.batch_size if is_contrast else "no pairs: trained with labels",
        "negatives of": ("all processes" if gathered else "one process") if is_contrast else None,
        "epochs": config.train.epochs,
        "neighbours": get_argument("models", config.model, "num_neighbours"),
        "points in pre-training": stage["num_points"],
    }


def checkpoint_in_words(which: str, *, is_test_selected: bool) -> str:
    """Which weights figures are of, and whether the test part chose them."""
    return f"{which}, test-selected" if is_test_selected else f"{which}, chosen without the test part"


def _protocol(
    config: RunConfig, info: DataInfo, *, which: str, lineage: Mapping[str, Any] | None, tested: Sequence[str]
) -> dict[str, Any]:
    is_test_selected = which != "last" and config.evaluate.select == "test"
    points = preprocessing_signature(config, info)["num_points"]
    evaluated = {"checkpoint": checkpoint_in_words(which, is_test_selected=is_test_selected)}
    if config.task.name == "contrast":
        from sightline.probe.svm import choice_in_words  # the rooms of probes are not imported for others

        probe = {"points in the probe": points, "C": choice_in_words()}
        return pretraining_protocol(config, info) | probe | evaluated
    _, *inner = (block.name for _, block in iterate_blocks("models", config.model))
    graph = None if points is None else find_neighbour_graph(config.model, points)
    facts = {
        "model": config.model.name + (f" of {', '.join(inner)}" if inner else ""),
        "pre-training": _source_of(lineage),
        "weights": None,
        "points": points,
        "neighbours": None if graph is None else graph.neighbours,
        "tested on": ", ".join(tested or (() if info.folds is None else info.folds.tested)) or None,
        "epochs": config.train.epochs if config.train.steps is None else f"{config.train.steps} steps",
        "batch size": config.train.batch_size,
        "votes": 1,
        "checkpoints averaged": 1,
    }
    found = facts | evaluated | _given("data", config.data) | _given("task", config.task)
    if lineage is not None and "layout" in lineage:  # others trained these weights, not this config
        found |= dict.fromkeys(("pre-training", "epochs", "batch size", "checkpoint"))
        found["weights"] = f"published, layout {lineage['layout']}"
    return {name: value for name, value in found.items() if value is not None}


def _source_of(lineage: Mapping[str, Any] | None) -> str:
    """What first weights were trained on: the data of their run, or what is known of a published layout."""
    if lineage is None:
        return "none"
    before = lineage.get("lineage")
    if before is not None and "layout" in before:
        layout = before["layout"]
        return str(_table()["pretrained"].get(layout, f"published weights, layout {layout}"))
    return "not known" if lineage.get("source") is None else str(lineage["source"]["data"]["name"])


def _given(section: str, block: ComponentConfig) -> dict[str, Any]:
    """What a block gives other than by default, by dotted keys: of a block within it the name.

    Of a task that is what it chooses by a word; its counts and bounds no published row states.
    """
    known = registry.REGISTRIES[_KINDS[section]].entry(block).arguments
    found: dict[str, Any] = {}
    for name, value in block.arguments.items():
        if name in _NOT_PROTOCOL or not (known[name].is_required or value != known[name].default):
            continue
        if isinstance(value, ComponentConfig):
            found[f"{section}.{name}.name"] = value.name
        elif section == "data" or isinstance(value, str | bool):
            found[f"{section}.{name}"] = to_plain(value)
    return found


_NOT_PROTOCOL = ("root", "num_points", "views")
"""Of a block: places, and what is stated as `points`."""
_KINDS = {"data": "data", "model": "models", "task": "tasks", "optimizer": "optimizers"}


def _argument(config: RunConfig, path: str) -> Any:
    """The value of a config's dotted key, defaults included; in a list of blocks the next word is a block's name."""
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
            value, kind = next((each for each in value if each.name == name), None), "transforms"
        else:
            value = getattr(value, name, None)
    return to_plain(value)


def _of_one_stage(row: ResultRow) -> ResultRow:
    """A row of fine-tuning on parts, which tables of probes show beside its pre-training, as one of a run on parts."""
    if "parts data" not in row.protocol:
        return row
    kept = {name: row.protocol[name] for name in ("pre-training", "neighbours") if name in row.protocol}
    own = {name.removeprefix("parts "): value for name, value in row.protocol.items() if name.startswith("parts ")}
    own["batch size"] = own.pop("clouds per step")
    del own["data"]
    metrics = {name.removeprefix("part_"): value for name, value in row.metrics.items()}
    return ResultRow(
        row.who, row.source, row.data, {"model": row.protocol["encoder"], **kept, **own}, metrics, remarks=row.remarks
    )


def _distance(entry: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether a row is of another model, and in how much of what it states it differs."""
    stated = [each["name"] for each in entry["differences"] if each["there"] is not None]
    return "model" in stated, len(stated)


def _entry(mine: ResultRow, theirs: ResultRow, shared: Sequence[str]) -> dict[str, Any]:
    return {
        "who": theirs.who,
        "source": theirs.source,
        "metrics": {name: value for name, value in theirs.metrics.items() if name.removesuffix("_to") in shared},
        "here": {name: mine.metrics[name] for name in shared},
        "remarks": list(theirs.remarks),
        "protocol": dict(theirs.protocol),
        "differences": [asdict(each) for each in protocol_differences(mine, theirs)],
    }
