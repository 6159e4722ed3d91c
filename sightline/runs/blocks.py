"""Blocks inside a config's blocks, and what they were given."""

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
    """A component block of a kind and all blocks inside it, each with its kind, the outer before the inner."""
    yield kind, component
    parameters = registry.REGISTRIES[kind].entry(component).arguments
    for name in component.arguments:
        block = get_block_marker(parameters[name].annotation)
        if block is not None:
            for nested in registry.nested_blocks(component, name):
                yield from iterate_blocks(block.kind, nested)


def get_argument(kind: str, component: ComponentConfig, name: str) -> Any:
    """An argument of a component, or of a block inside it: as given, else its default; None where it has none."""
    for held, block in iterate_blocks(kind, component):
        if name in registry.REGISTRIES[held].entry(block).arguments:
            return _given(held, block, name)
    return None


def find_point_encoder(model: ComponentConfig) -> dict[str, Any]:
    """The block of a model that sees points, itself where it holds none: its name and all its plain arguments."""
    kind, block = next(
        (each for each in iterate_blocks("models", model) if each[0] == "point_encoders"), ("models", model)
    )
    taken = registry.REGISTRIES[kind].entry(block).arguments
    return {"name": block.name} | {
        name: to_plain(_given(kind, block, name))
        for name in sorted(taken)
        if get_block_marker(taken[name].annotation) is None
    }


class NeighbourGraph(NamedTuple):
    """The graph of a model's clouds: the dotted key of its block, how many neighbours a point has there, the number of
    points that its argument is meant for (None: any), and whether it can be meant for one."""

    path: str
    neighbours: int
    expected_num_points: int | None
    can_grow: bool


def find_neighbour_graph(model: ComponentConfig, num_points: int) -> NeighbourGraph | None:
    """The first block of a model with `num_neighbours`, on clouds of so many points; None where there is none."""
    for kind, block in iterate_blocks("models", model):
        parameters = registry.REGISTRIES[kind].entry(block).arguments
        count = _given(kind, block, "num_neighbours") if "num_neighbours" in parameters else None
        if isinstance(count, int):
            can_grow = "neighbours_at" in parameters
            meant_for = _given(kind, block, "neighbours_at") if can_grow else None
            neighbours = scale_num_neighbours(count, reference_num_points=meant_for, num_points=num_points)
            return NeighbourGraph(block.location.path, neighbours, meant_for, can_grow)
    return None


def _given(kind: str, block: ComponentConfig, name: str) -> Any:
    parameter = registry.REGISTRIES[kind].entry(block).arguments[name]
    given = parameter.is_required or name in block.arguments
    return block.arguments.get(name) if given else parameter.default
