"""What a run reads, in the words in which two runs can be compared: data, number and place of points, transforms."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.config.show import to_plain
from sightline.engine.blocks import encoder_of_clouds
from sightline.geometry.neighbours import neighbours_in_proportion
from sightline.types import Component, DataInfo

__all__ = ["blocks_inside", "differences", "stage_of"]

_COMPARED = {
    "up_axis": "the up axis",
    "num_points": "the number of points of a cloud",
    "is_in_unit_sphere": "whether clouds lie in the unit sphere about their mean",
    "features": "what points carry besides their place",
    "transforms": "the evaluation transforms of points",
}
"""Of `stage_of`: what a network that learned one value will not expect of another."""

_PASSED_OVER = frozenset({"name", "fused", "dropout", "num_neighbours", "neighbours_at"})
"""Arguments of an encoder that change no number in evaluation, or are compared by what they come to."""


def stage_of(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """What a run does and reads, and what its network is, in plain values; None where its data does not say.

    `num_points` and `is_in_unit_sphere` are what the set states and evaluation transforms make of it. `transforms` are
    those of evaluation that change points in another way; where they make pairs of views, the views belong to the
    method and are not listed.
    """
    form = info.clouds
    blocks = list(blocks_inside(config.transforms.evaluate))
    builders = [registry.transforms.entry(block).builder for block in blocks]
    counts = [block.arguments["num_points"] for block in blocks if "num_points" in block.arguments]
    is_moved = any(getattr(builder, "makes_unit_sphere", False) for builder in builders)
    return {
        "name": config.name,
        "task": config.task.name,
        "model": config.model.name,
        "data": to_plain(config.data),
        "up_axis": info.facts.get("up_axis"),
        "num_points": counts[-1] if counts else None if form is None else form.num_points,
        "is_in_unit_sphere": True if is_moved else None if form is None else form.unit_sphere != "none",
        "features": list(info.features),
        "transforms": [to_plain(block) for block in config.transforms.evaluate if _changes_points(block)],
        "encoder": encoder_of_clouds(config.model),
    }


def differences(
    source: Mapping[str, Any], here: Mapping[str, Any], *, names: tuple[str, str] | None = None
) -> list[str]:
    """Where two stages' points differ, or arguments of one encoder that change its function and none of its tensors.

    A line each that names both; what either does not know is passed over.
    They are called by their runs' names and their data, or as `names` says.
    """
    names = names or (_called(source), _called(here))
    lines = []
    for key, what in _COMPARED.items():
        theirs, ours = source[key], here[key]
        if theirs is not None and ours is not None and theirs != ours:
            lines.append(f"{what}: {_told(theirs)} in {names[0]}, {_told(ours)} in {names[1]}")
    theirs, ours = source.get("encoder"), here.get("encoder")  # a lineage of before has none
    if theirs is not None and ours is not None and theirs["name"] == ours["name"]:
        lines += _reach(source, here, names)
        lines += [
            f"the encoder's {argument}: {_told(theirs[argument])} in {names[0]}, {_told(ours[argument])} in {names[1]}"
            for argument in theirs.keys() & ours.keys() - _PASSED_OVER
            if theirs[argument] != ours[argument]
        ]
    return lines


def _reach(source: Mapping[str, Any], here: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """A line where the graph of the one's clouds reaches farther than that of the other's."""
    counts = [stage["encoder"].get("num_neighbours") for stage in (source, here)]
    sizes = [stage["num_points"] for stage in (source, here)]
    if not all(isinstance(count, int) for count in counts) or None in sizes:
        return []
    had, has = (
        neighbours_in_proportion(count, meant_for=stage["encoder"].get("neighbours_at"), num_points=size)
        for count, stage, size in zip(counts, (source, here), sizes, strict=True)
    )
    if neighbours_in_proportion(had, meant_for=sizes[0], num_points=sizes[1]) == has:
        return []
    return [
        f"how far the encoder's graph reaches: {had} neighbours of {sizes[0]} points in {names[0]}, {has} of "
        f"{sizes[1]} in {names[1]}"
    ]


def _called(stage: Mapping[str, Any]) -> str:
    return f"{stage['name']} ({stage['data']['name']})"


def blocks_inside(blocks: Sequence[Component]) -> Iterator[Component]:
    """The blocks, and those inside them, each before its own."""
    for block in blocks:
        yield block
        for value in block.arguments.values():
            inner = value if isinstance(value, tuple | list) else [value]
            yield from blocks_inside([each for each in inner if isinstance(each, Component)])


def _changes_points(block: Component) -> bool:
    builder: Any = registry.transforms.entry(block).builder
    is_counted = getattr(builder, "makes_unit_sphere", False) or "num_points" in block.arguments
    makes_pairs = "other_points" in getattr(builder, "adds", {})
    return "points" in inspect.signature(builder.__call__).parameters and not is_counted and not makes_pairs


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_told, value)) if value else "none"
    if isinstance(value, dict):
        arguments = ", ".join(f"{key}: {item}" for key, item in value.items() if key != "name")
        return f"{value['name']} {{{arguments}}}" if arguments else str(value["name"])
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
