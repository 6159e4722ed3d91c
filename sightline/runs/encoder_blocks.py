"""Blocks of a model's config: its point encoder, its neighbour graph, and their arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

from sightline.config.plain_values import to_plain
from sightline.contract import registry
from sightline.contract.types import ComponentConfig
from sightline.ops.points.grouping import scale_num_neighbours


def get_argument(kind: str, component: ComponentConfig, name: str) -> Any:
    """Return an argument of a component or of a block inside it: as configured, else its default, else None."""
    blocks = registry.REGISTRIES[kind].bind(component).iterate()
    return next((block.get_argument(name) for block in blocks if name in block.entry.arguments), None)


def find_point_encoder(model: ComponentConfig) -> dict[str, Any]:
    """Return name and plain arguments of a model's point encoder, or of the model if it has none."""
    bound = registry.models.bind(model)
    encoder = next((block for block in bound.iterate() if block.kind is registry.point_encoders), bound)
    names = sorted(name for name, parameter in encoder.entry.arguments.items() if parameter.block is None)
    plain = {name: to_plain(encoder.get_argument(name)) for name in names}
    return {"name": encoder.entry.name, **plain}


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
    for block in registry.models.bind(model).iterate():
        count = block.get_argument("num_neighbours") if "num_neighbours" in block.entry.arguments else None
        if isinstance(count, int):
            can_grow = "neighbours_at" in block.entry.arguments
            expected_num_points = block.get_argument("neighbours_at") if can_grow else None
            neighbours = scale_num_neighbours(count, reference_num_points=expected_num_points, num_points=num_points)
            return NeighbourGraph(block.component.location.path, neighbours, expected_num_points, can_grow)
    return None
