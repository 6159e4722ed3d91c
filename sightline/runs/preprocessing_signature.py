"""What a run reads, in the words in which two runs can be compared: data, number and place of points, transforms."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sightline import registry
from sightline.config import RunConfig
from sightline.config.yaml_writer import format_inline, to_plain
from sightline.geometry.neighbours import scale_num_neighbours
from sightline.optional_members import TransformMembers
from sightline.runs.blocks import find_neighbour_graph, find_point_encoder
from sightline.types import ComponentConfig, DataInfo

__all__ = [
    "flatten_blocks",
    "format_setting",
    "makes_pairs",
    "preprocessing_signature",
    "read_fields",
    "signature_differences",
    "training_differences",
]

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


def preprocessing_signature(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """The task, data and network of a run in plain values; None where its data does not state one.

    `num_points` and `is_in_unit_sphere` are what the set states and evaluation transforms make of it. `transforms` are
    those of evaluation that change points in another way; where they make pairs of views, the views belong to the
    method and are not listed. `neighbours` are those that each of these points has in the graph of the encoder.
    `training` are the training transforms of points, those of the views of a pair included, `training_images` those of
    images.
    """
    form = info.clouds
    blocks, training = (list(flatten_blocks(each)) for each in (config.transforms.evaluate, config.transforms.train))
    builders = [registry.transforms.entry(block).builder for block in blocks]
    counts = [block.arguments["num_points"] for block in blocks if "num_points" in block.arguments]
    is_moved = any(TransformMembers.makes_unit_sphere.get(builder) for builder in builders)
    num_points = counts[-1] if counts else None if form is None else form.num_points
    graph = None if num_points is None else find_neighbour_graph(config.model, num_points)
    return {
        "name": config.name,
        "task": config.task.name,
        "model": config.model.name,
        "data": to_plain(config.data),
        "up_axis": info.facts.get("up_axis"),
        "num_points": num_points,
        "neighbours": None if graph is None else graph.neighbours,
        "is_in_unit_sphere": True if is_moved else None if form is None else form.unit_sphere != "none",
        "features": list(info.features),
        "transforms": [to_plain(block) for block in config.transforms.evaluate if _changes_points(block)],
        "training": [to_plain(block) for block in training if _reads_points(block)],
        "training_images": [to_plain(block) for block in training if "image" in read_fields(block)],
        "encoder": find_point_encoder(config.model),
    }


def training_differences(source: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line where two stages train on points that are changed in other ways; often intended, so not a fault.

    A network that never saw a turned cloud will not recognise one: this names the transforms of one stage alone.
    """
    theirs, ours = source["training"], here["training"]
    if theirs == ours:
        return []
    names = _called(source), _called(here)
    own = _without(theirs, ours), _without(ours, theirs)
    if not any(own):
        return [f"training transforms of points: the same in another order in {names[0]} and in {names[1]}"]
    return [
        f"training transforms of points: {format_setting(own[0])} in {names[0]} alone, "
        f"{format_setting(own[1])} in {names[1]} alone"
    ]


def _without(blocks: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """The blocks that are left once each of the others has taken one like it away."""
    left = list(blocks)
    for other in others:
        if other in left:
            left.remove(other)
    return left


def signature_differences(
    source: Mapping[str, Any], here: Mapping[str, Any], *, names: tuple[str, str] | None = None
) -> list[str]:
    """Where two stages' points differ, or arguments of one encoder that change its function and none of its tensors.

    A line each that names both; what either does not state is passed over.
    They are called by their runs' names and their data, or by `names`.
    """
    names = names or (_called(source), _called(here))
    lines = []
    for key, what in _COMPARED.items():
        theirs, ours = source[key], here[key]
        if theirs is not None and ours is not None and theirs != ours:
            lines.append(f"{what}: {format_setting(theirs)} in {names[0]}, {format_setting(ours)} in {names[1]}")
    learnt, given = source["encoder"], here["encoder"]
    if learnt is not None and given is not None and learnt["name"] == given["name"]:
        lines += _reach(source, here, names)
        lines += [
            f"the encoder's {argument}: {format_setting(learnt[argument])} in {names[0]}, "
            f"{format_setting(given[argument])} in {names[1]}"
            for argument in sorted(learnt.keys() & given.keys() - _PASSED_OVER)
            if learnt[argument] != given[argument]
        ]
    return lines


def _reach(source: Mapping[str, Any], here: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """A line where the graph of the one's clouds reaches farther than that of the other's."""
    had, has = source["neighbours"], here["neighbours"]
    of, among = source["num_points"], here["num_points"]
    if had is None or has is None or scale_num_neighbours(had, reference_num_points=of, num_points=among) == has:
        return []
    return [
        f"how far the encoder's graph reaches: {had} neighbours of {of} points in {names[0]}, {has} of {among} in "
        f"{names[1]}"
    ]


def _called(stage: Mapping[str, Any]) -> str:
    return f"{stage['name']} ({stage['data']['name']})"


def flatten_blocks(blocks: Sequence[ComponentConfig]) -> Iterator[ComponentConfig]:
    """The blocks, and those inside them, each before its own."""
    for block in blocks:
        yield block
        for value in block.arguments.values():
            inner = value if isinstance(value, tuple | list) else [value]
            yield from flatten_blocks([each for each in inner if isinstance(each, ComponentConfig)])


def read_fields(block: ComponentConfig) -> Collection[str]:
    """The parameters of a transform's call: the fields that it takes, and `draws` and `self`."""
    builder: Any = registry.transforms.entry(block).builder
    return inspect.signature(builder.__call__).parameters


def makes_pairs(block: ComponentConfig) -> bool:
    """Whether a transform makes the two clouds of a pair of one."""
    return "other_points" in TransformMembers.adds.get(registry.transforms.entry(block).builder)


def _reads_points(block: ComponentConfig) -> bool:
    return "points" in read_fields(block) and not makes_pairs(block)


def _changes_points(block: ComponentConfig) -> bool:
    """Whether a transform changes points in another way than their number and where they lie as a whole."""
    builder: Any = registry.transforms.entry(block).builder
    is_compared = TransformMembers.makes_unit_sphere.get(builder) or "num_points" in block.arguments
    return _reads_points(block) and not is_compared


def format_setting(value: Any) -> str:
    """A plain value in words: lists by their items, a block as `name {argument: value}`, its arguments as YAML."""
    if isinstance(value, list):
        return ", ".join(map(format_setting, value)) if value else "none"
    if isinstance(value, dict):
        arguments = ", ".join(f"{key}: {format_inline(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']} {{{arguments}}}" if arguments else str(value["name"])
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
