"""Preprocessing signature of a run (data, number of points, normalisation, transforms), to compare two runs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sightline.config import RunConfig
from sightline.config.plain_values import to_plain
from sightline.config.yaml_writer import format_inline
from sightline.contract import registry
from sightline.contract.types import ComponentConfig, DataInfo
from sightline.ops.points.grouping import scale_num_neighbours
from sightline.runs.encoder_blocks import find_neighbour_graph, find_point_encoder

_COMPARED_KEYS = {
    "up_axis": "the up axis",
    "num_points": "the number of points of a cloud",
    "is_in_unit_sphere": "whether clouds lie in the unit sphere about their mean",
    "features": "what points carry besides their place",
    "transforms": "the evaluation transforms of points",
}
"""Compared keys of `preprocessing_signature`, with their descriptions: networks do not transfer between values."""

_PAIR_FIELDS = frozenset({"image", "other_points", "draws", "self"})
"""Fields read only by contrastive pairs: a transform with no other fields changes no cloud."""

IGNORED_ARGUMENTS = frozenset({"name", "fused", "dropout", "num_neighbours", "neighbours_at"})
"""Arguments of an encoder that change no number in evaluation, or are compared by their effect."""


def preprocessing_signature(config: RunConfig, info: DataInfo) -> dict[str, Any]:
    """Build the signature of a run: task, data and network in plain values; None for what its data does not state.

    `num_points` and `is_in_unit_sphere` are the data set's, as changed by evaluation transforms. `transforms` are the
    evaluation transforms that change points otherwise; transforms that make pairs of views belong to the method and
    are not listed. `neighbours` is the number of neighbours of a point in the encoder's graph. `training` are the
    training transforms of points, including those of the views of a pair, `training_images` those of images.
    """
    form = info.clouds
    blocks, training = (
        list(flatten_blocks(components)) for components in (config.transforms.evaluate, config.transforms.train)
    )
    point_counts = [block.arguments["num_points"] for block in blocks if "num_points" in block.arguments]
    is_normalized = any(map(makes_unit_sphere, blocks))
    num_points = point_counts[-1] if point_counts else None if form is None else form.num_points
    graph = None if num_points is None else find_neighbour_graph(config.model, num_points)
    return {
        "name": config.name,
        "task": config.task.name,
        "model": config.model.name,
        "data": to_plain(config.data),
        "up_axis": info.facts.get("up_axis"),
        "num_points": num_points,
        "neighbours": None if graph is None else graph.neighbours,
        "is_in_unit_sphere": True if is_normalized else None if form is None else form.unit_sphere != "none",
        "features": list(info.features),
        "transforms": [to_plain(block) for block in config.transforms.evaluate if _changes_points(block)],
        "training": [to_plain(block) for block in training if _reads_points(block)],
        "training_images": [to_plain(block) for block in training if "image" in read_fields(block)],
        "encoder": find_point_encoder(config.model),
    }


def signature_differences(
    source: Mapping[str, Any], here: Mapping[str, Any], *, names: tuple[str, str] | None = None
) -> list[str]:
    """List differences of two stages' points, or of encoder arguments that change its function but no tensor.

    Each line names both values; values that one stage does not state are ignored.
    The stages are called by the names of their runs and data, or by `names`.
    """
    names = names or (_format_stage(source), _format_stage(here))
    lines = []
    for key, description in _COMPARED_KEYS.items():
        theirs, ours = source[key], here[key]
        if theirs is not None and ours is not None and theirs != ours:
            lines.append(f"{description}: {format_setting(theirs)} in {names[0]}, {format_setting(ours)} in {names[1]}")
    recorded, current = source["encoder"], here["encoder"]
    if recorded is not None and current is not None and recorded["name"] == current["name"]:
        lines += _reach_differences(source, here, names)
        lines += [
            f"the encoder's {argument}: {format_setting(recorded[argument])} in {names[0]}, "
            f"{format_setting(current[argument])} in {names[1]}"
            for argument in sorted(recorded.keys() & current.keys() - IGNORED_ARGUMENTS)
            if recorded[argument] != current[argument]
        ]
    return lines


def _reach_differences(source: Mapping[str, Any], current: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """Describe different reaches of two neighbour graphs, in at most one line."""
    theirs, ours = source["neighbours"], current["neighbours"]
    their_points, our_points = source["num_points"], current["num_points"]
    if (
        theirs is None
        or ours is None
        or scale_num_neighbours(theirs, reference_num_points=their_points, num_points=our_points) == ours
    ):
        return []
    return [
        f"how far the encoder's graph reaches: {theirs} neighbours of {their_points} points in {names[0]}, "
        f"{ours} of {our_points} in {names[1]}"
    ]


def _format_stage(stage: Mapping[str, Any]) -> str:
    return f"{stage['name']} ({stage['data']['name']})"


def flatten_blocks(blocks: Sequence[ComponentConfig]) -> Iterator[ComponentConfig]:
    """Iterate over blocks and the blocks inside them, outer before inner."""
    for block in blocks:
        yield block
        for value in block.arguments.values():
            inner = value if isinstance(value, tuple | list) else [value]
            yield from flatten_blocks([item for item in inner if isinstance(item, ComponentConfig)])


def read_fields(block: ComponentConfig) -> Collection[str]:
    """Return the parameter names of a transform's call: its fields, `draws` and `self`."""
    builder: Any = registry.transforms.entry(block).builder
    return inspect.signature(builder.__call__).parameters


def makes_pairs(block: ComponentConfig) -> bool:
    """Return True if a transform makes the two clouds of a pair from one."""
    return "other_points" in registry.transforms.get_class(block).adds


def makes_unit_sphere(block: ComponentConfig) -> bool:
    """Return True if a transform scales a cloud to the unit sphere."""
    return registry.transforms.get_class(block).makes_unit_sphere


def is_for_pairs(block: ComponentConfig) -> bool:
    """Return True if a transform makes pairs for contrastive learning, or changes only their images."""
    return makes_pairs(block) or set(read_fields(block)) <= _PAIR_FIELDS


def keep_normalising(blocks: Sequence[ComponentConfig]) -> tuple[ComponentConfig, ...]:
    """Drop transforms that make pairs, but keep their scaling to the unit sphere; empty if no pair has that."""
    transforms: list[ComponentConfig] = []
    is_needed = False
    for block in blocks:
        if not is_for_pairs(block):
            transforms.append(block)
            continue
        norms = [transform for transform in flatten_blocks([block]) if makes_unit_sphere(transform)]
        transforms += norms[:1]
        is_needed = is_needed or bool(norms)
    return tuple(transforms) if is_needed else ()


def _reads_points(block: ComponentConfig) -> bool:
    return "points" in read_fields(block) and not makes_pairs(block)


def _changes_points(block: ComponentConfig) -> bool:
    """Return True if a transform changes points other than by their number or a normalisation of the whole cloud."""
    is_compared = makes_unit_sphere(block) or "num_points" in block.arguments
    return _reads_points(block) and not is_compared


def format_setting(value: Any) -> str:
    """Format a plain value: lists by their items, a block as `name {argument: value}`, its arguments as YAML."""
    if isinstance(value, list):
        return ", ".join(map(format_setting, value)) if value else "none"
    if isinstance(value, dict):
        arguments = ", ".join(f"{key}: {format_inline(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']} {{{arguments}}}" if arguments else str(value["name"])
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
