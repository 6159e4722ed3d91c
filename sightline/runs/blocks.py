"""Nested config blocks and their arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sightline import registry
from sightline.config.yaml_writer import to_plain
from sightline.geometry.neighbours import scale_num_neighbours
from sightline.schema import get_block_marker
from sightline.types import ComponentConfig

__all__ = ["NeighbourGraph", "find_neighbour_graph", "find_point_encoder", "get_argument", "iterate_blocks"]


def iterate_blocks(kind: str, component: ComponentConfig) -> Iterator[tuple[str, ComponentConfig]]:
    """Iterate over a component block of a kind and all blocks inside it, each with its kind, outer before inner."""
    yield kind, component
    parameters = registry.REGISTRIES[kind].entry(component).arguments
    for name in component.arguments:
        block = get_block_marker(parameters[name].annotation)
        if block is not None:
            for nested in registry.nested_blocks(component, name):
                yield from iterate_blocks(block.kind, nested)


def get_argument(kind: str, component: ComponentConfig, name: str) -> Any:
    """Return an argument of a component or of a block inside it: as configured, else its default, else None."""
    for block_kind, block in iterate_blocks(kind, component):
        if name in registry.REGISTRIES[block_kind].entry(block).arguments:
            return _resolve_argument(block_kind, block, name)
    return None


def find_point_encoder(model: ComponentConfig) -> dict[str, Any]:
    """Return name and plain arguments of a model's point encoder, or of the model if it has none."""
    kind, block = next(
        (entry for entry in iterate_blocks("models", model) if entry[0] == "point_encoders"), ("models", model)
    )
    parameters = registry.REGISTRIES[kind].entry(block).arguments
    return {"name": block.name} | {
        name: to_plain(_resolve_argument(kind, block, name))
        for name in sorted(parameters)
        if get_block_marker(parameters[name].annotation) is None
    }


class NeighbourGraph(NamedTuple):
    """Neighbour graph of a model: dotted key of its block, neighbours per point, and expected number of points.

    `expected_num_points` is None if the argument is meant for any number; `can_grow` is True if it can name one.
    """

    path: str
    neighbours: int
    expected_num_points: int | None
    can_grow: bool


def find_neighbour_graph(model: ComponentConfig, num_points: int) -> NeighbourGraph | None:
    """Find the first block of a model with `num_neighbours`, for clouds of `num_points` points; None without one."""
    for kind, block in iterate_blocks("models", model):
        parameters = registry.REGISTRIES[kind].entry(block).arguments
        count = _resolve_argument(kind, block, "num_neighbours") if "num_neighbours" in parameters else None
        if isinstance(count, int):
            can_grow = "neighbours_at" in parameters
            expected_num_points = _resolve_argument(kind, block, "neighbours_at") if can_grow else None
            neighbours = scale_num_neighbours(count, reference_num_points=expected_num_points, num_points=num_points)
            return NeighbourGraph(block.location.path, neighbours, expected_num_points, can_grow)
    return None


def _resolve_argument(kind: str, block: ComponentConfig, name: str) -> Any:
    parameter = registry.REGISTRIES[kind].entry(block).arguments[name]
    is_given = parameter.is_required or name in block.arguments
    return block.arguments.get(name) if is_given else parameter.default
