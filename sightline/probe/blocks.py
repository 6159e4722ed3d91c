"""Blocks inside a config's blocks, and what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sightline import registry
from sightline.geometry.neighbours import neighbours_in_proportion
from sightline.schema import block_of
from sightline.types import Component

__all__ = ["argument_of", "blocks_within", "growing_graph"]


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


def growing_graph(model: Component, num_points: int) -> tuple[str, int] | None:
    """The block of a model whose neighbours may grow with the cloud, by its dotted key, and how many a point of a
    cloud of `num_points` has there; None where there is no such block."""
    for kind, block in blocks_within("models", model):
        if "neighbours_at" in registry.REGISTRIES[kind].entry(block).arguments:
            count, meant_for = (_given(kind, block, name) for name in ("num_neighbours", "neighbours_at"))
            return block.where.path, neighbours_in_proportion(count, meant_for=meant_for, num_points=num_points)
    return None


def _given(kind: str, block: Component, name: str) -> Any:
    parameter = registry.REGISTRIES[kind].entry(block).arguments[name]
    given = parameter.is_required or name in block.arguments
    return block.arguments.get(name) if given else parameter.default
