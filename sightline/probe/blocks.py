"""Blocks inside a config's blocks, and what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sightline import registry
from sightline.schema import block_of
from sightline.types import Component

__all__ = ["argument_of", "blocks_within"]


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
        parameters = registry.REGISTRIES[held].entry(block).arguments
        if name in parameters:
            given = parameters[name].is_required or name in block.arguments
            return block.arguments.get(name) if given else parameters[name].default
    return None
