"""Trainings of shipped recipes at published length, as the GPU's queue recorded them: which figures were reached."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.gpu import read_results
from benchmarks.gpu_page import RESULTS
from sightline.config import read_config
from sightline.config.plain_values import to_plain
from tests.mission.small import CONFIGS

__all__ = ["assert_reached", "list_missing"]

NEAR = 0.01
"""How far below the published figure a training may end."""


def assert_reached(*data: str, at_least: int | None = None, file: Path = RESULTS) -> None:
    """Raise AssertionError unless recipes of these data sets reached a published figure; of all, or of so many."""
    missing = {name: reasons for name in data if (reasons := list_missing(name, file))}
    needed = len(data) if at_least is None else at_least
    told = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in missing.items())
    assert len(data) - len(missing) >= needed, told


def list_missing(data: str, file: Path = RESULTS) -> list[str]:
    """List what keeps each recorded training on a data set from a published figure; empty if one reached it."""
    recipes = {path.stem: path for path in CONFIGS.glob(f"*/{data}_*.yaml")}
    reasons = []
    for line in read_results(file):
        kind, _, recipe = line["job"].partition(" ")
        if kind == "training" and recipe in recipes:
            reason = describe_shortfall(line, recipes[recipe])
            if not reason:
                return []
            reasons.append(f"{recipe} at {line['commit']}: {reason}")
    return reasons or [f"no line of a training in {file.name}"]


def describe_shortfall(line: Mapping[str, Any], config: Path) -> str:
    """Describe why a line of a training is no published figure reached; empty if it is.

    It must have ended without an error, on a GPU, at a commit, after all epochs of its recipe, with the figure of the
    last one, which no test part has chosen.
    """
    recipe, figures = read_config(config), line.get("figures", {})
    epochs, done = recipe.train.epochs, figures.get("last_epoch")
    if "epochs=" in str(figures.get("words")) or "steps=" in str(figures.get("words")):
        return "its length is another"
    if done != epochs:
        return f"ended after epoch {done} of {epochs}"
    if "error" in line or line["card"] == "cpu" or line["commit"].endswith("-changed"):
        return line.get("error", f"on {line['card']}, at {line['commit']}")
    published = dict(list_figures(recipe.data.name, describe_model(to_plain(recipe.model))))
    if not published:
        return "nothing is published of its model"
    reached = {name: figures.get(f"last_{name}") for name in published}
    if any(value is not None and value >= published[name] - NEAR for name, value in reached.items()):
        return ""
    return ", ".join(f"{name} {value}, published {published[name]}" for name, value in reached.items())


def describe_model(block: Mapping[str, Any]) -> str:
    """Describe a model as the table of published figures does: "dgcnn", or "detector of resnet50, fpn, retina"."""
    parts = [part["name"] for part in block.values() if isinstance(part, Mapping) and "name" in part]
    return block["name"] + (f" of {', '.join(parts)}" if parts else "")


def list_figures(data: str, model: str) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a model on a data set, each with the lowest value that was published of it.

    Not the miss rate of pedestrians, of which less is better.
    """
    named: dict[str, list[float]] = {}
    for row in _read_table()["rows"]:
        if row["data"] == data and row["protocol"].get("model") == model:
            for name, value in row["metrics"].items():
                if not name.startswith("mr") and not name.endswith(("_std", "_to")):
                    named.setdefault(name, []).append(value)
    return ((name, min(values)) for name, values in named.items())


@cache
def _read_table() -> Any:
    return json.loads(resources.files("sightline.training").joinpath("published.json").read_text(encoding="utf-8"))
