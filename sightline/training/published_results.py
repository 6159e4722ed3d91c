"""Published results of papers and repositories on the data set of a run, with the protocol that each one states."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from sightline.contract import registry
from sightline.contract.types import ComponentConfig, DataInfo

_COMPARED_FACTS = {
    "class_names": "its classes are",
    "fov_deg": "its highest and lowest beams are at degrees of",
    "azimuth_deg": "its scans reach from degrees of",
    "beams_deg": "its beams are at degrees of",
}
"""Facts by which a user's own data set differs from the published one of the same layout."""
_MAX_DEVIATION = 0.02
"""Largest relative difference in test samples: some copies leave out images without boxes, or frames."""
_PASSES = {"votes": "vote", "checkpoints averaged": "ensemble"}
"""Words of a protocol that state several passes, and how the names of such metrics of ours end."""


def list_published(
    data: ComponentConfig, info: DataInfo, metrics: Mapping[str, float], *, model: ComponentConfig | None = None
) -> list[dict[str, Any]]:
    """List the published results on a data set by any of these metrics, those of the same model first.

    Each has `who`, `source`, `protocol` as far as it is stated, `metrics` (a range has two, the second with the suffix
    `_to`), `here` (the same metrics of ours, with as many votes or averaged checkpoints where we have them) and
    `remarks`. Empty for a user's own data in a published layout (`describe_foreign_data`).
    """
    table = _read_table()
    if describe_foreign_data(data, info) is not None:
        return []
    entries = []
    for row in table["rows"]:
        protocol = (table["protocols"][row["as"]] if "as" in row else {}) | row["protocol"]
        suffix = next((f"_{end}{protocol[word]}" for word, end in _PASSES.items() if word in protocol), "")
        here = {name: metrics.get(name + suffix, metrics.get(name)) for name in row["metrics"]}
        here = {name: value for name, value in here.items() if value is not None}
        if row["data"] == data.name and here:
            entries.append(
                {
                    "who": row["who"],
                    "source": row["source"],
                    "protocol": protocol,
                    "metrics": {name: v for name, v in row["metrics"].items() if name.removesuffix("_to") in here},
                    "here": here,
                    "remarks": [f"unverified: {row['unverified']}"] if row["unverified"] else [],
                }
            )
    ours = None if model is None else _describe_model(model)
    return sorted(entries, key=lambda entry: entry["protocol"].get("model") != ours)


def describe_foreign_data(data: ComponentConfig, info: DataInfo) -> str | None:
    """Describe why a data set differs from the published one of its name; None if nothing shows a difference.

    Own photos may have the layout of COCO, and scans of any sensor that of SemanticKITTI: the classes, the sensor and
    the number of test samples are compared, if they are known on both sides.
    """
    promise = registry.data.get_class(data).expected_info
    facts = {} if promise is None else promise().facts
    for name, phrase in _COMPARED_FACTS.items():
        ours, published = info.facts.get(name), facts.get(name)
        if ours is not None and published is not None and sorted(ours) != sorted(published):
            return f"{phrase} {_shorten(ours)} here, {_shorten(published)} there"
    counts: Mapping[str, int] = _read_table()["samples"].get(data.name, {})
    tested = ("test",) if "test" in counts else () if info.folds is None else info.folds.tested
    unknown = [name for name in tested if name not in counts]
    if counts and unknown:
        return f"it is tested on {unknown[0]}, which has no labels there"
    ours, published = info.split_sizes.get("test"), sum(counts.get(name, 0) for name in tested)
    if ours is not None and published and abs(ours - published) > _MAX_DEVIATION * published:
        return f"test samples are {ours:,} here, {published:,} there"
    return None


def explain_no_rows(data: ComponentConfig, info: DataInfo, metrics: Iterable[str]) -> str:
    """Return the reason why nothing published can be compared with these metrics."""
    names = sorted({row["data"] for row in _read_table()["rows"]})
    if data.name not in names:
        return f"there are no published results on '{data.name}'; the table has {', '.join(names)}"
    if reason := describe_foreign_data(data, info):
        return f"these data differ from the '{data.name}' of the published results: {reason}"
    return f"the published results on '{data.name}' have other metrics than {', '.join(metrics)}"


def format_figure(metrics: Mapping[str, float], name: str) -> str:
    """Format a metric in percent, or in mm for names in _mm, with its deviation or the end of its range."""
    if name not in metrics:
        return ""
    unit = 1 if name.endswith("_mm") else 100
    deviation, end = metrics.get(f"{name}_std"), metrics.get(f"{name}_to")
    spread = "" if deviation is None else f" +- {unit * deviation:.2f}"
    return f"{unit * metrics[name]:.2f}{spread}" + ("" if end is None else f" to {unit * end:.2f}")


def _describe_model(model: ComponentConfig) -> str:
    """Describe a model as published rows do: "dgcnn", or "detector of resnet50, fpn, retina"."""
    _, *inner = (block.entry.name for block in registry.models.bind(model).iterate())
    return model.name + (f" of {', '.join(inner)}" if inner else "")


def _shorten(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:3]))
    return shown if len(values) <= 3 else f"{shown}, ... ({len(values)})"


def _read_table() -> Any:
    return json.loads(resources.files("sightline.training").joinpath("published.json").read_text(encoding="utf-8"))
