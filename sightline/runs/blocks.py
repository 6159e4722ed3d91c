"""Blocks inside a config's blocks, and what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sightline import registry
from sightline.config.show import to_plain
from sightline.geometry.neighbours import neighbours_in_proportion
from sightline.schema import block_of
from sightline.types import Component

__all__ = ["Graph", "argument_of", "blocks_within", "encoder_of_clouds", "graph_of"]


def blocks_within(kind: str, component: Component) -> Iterator[tuple[str, Component]]:
    """A component block of a kind and all blocks inside it, each with its kind, the outer before the inner."""
    yield kind, component
    parameters = registry.REGISTRIES[kind].entry(component).arguments
    for name in component.arguments:
        block = block_of(parameters[name].annotation)
        if block is not None:
            for nested in registry.blocks_of(component, name):
                yield from blocks_within(block.kind, nested)


def argument_of(kind: str, component: Component, name: str) -> Any:
    """An argument of a component, or of a block inside it: as given, else its default; None where it has none."""
    for held, block in blocks_within(kind, component):
        if name in registry.REGISTRIES[held].entry(block).arguments:
            return _given(held, block, name)
    return None


def encoder_of_clouds(model: Component) -> dict[str, Any]:
    """The block of a model that sees points, itself where it holds none: its name and all its plain arguments."""
    kind, block = next(
        (each for each in blocks_within("models", model) if each[0] == "point_encoders"), ("models", model)
    )
    taken = registry.REGISTRIES[kind].entry(block).arguments
    return {"name": block.name} | {
        name: to_plain(_given(kind, block, name)) for name in sorted(taken) if block_of(taken[name].annotation) is None
    }


class Graph(NamedTuple):
    """The graph of a model's clouds: the dotted key of its block, how many neighbours a point has there, the number of
    points that its argument is meant for (None: any), and whether it can be meant for one."""

    path: str
    neighbours: int
    meant_for: int | None
    can_grow: bool


def graph_of(model: Component, num_points: int) -> Graph | None:
    """The first block of a model with `num_neighbours`, on clouds of so many points; None where there is none."""
    for kind, block in blocks_within("models", model):
        parameters = registry.REGISTRIES[kind].entry(block).arguments
        count = _given(kind, block, "num_neighbours") if "num_neighbours" in parameters else None
        if isinstance(count, int):
            can_grow = "neighbours_at" in parameters
            meant_for = _given(kind, block, "neighbours_at") if can_grow else None
            neighbours = neighbours_in_proportion(count, meant_for=meant_for, num_points=num_points)
            return Graph(block.where.path, neighbours, meant_for, can_grow)
    return None


def _given(kind: str, block: Component, name: str) -> Any:
    parameter = registry.REGISTRIES[kind].entry(block).arguments[name]
    given = parameter.is_required or name in block.arguments
    return block.arguments.get(name) if given else parameter.default
