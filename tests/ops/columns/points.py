"""Rows of the exam of public functions: those of points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sightline import ops
from tests.ops.columns.rows import (
    NUMPY,
    RAGGED,
    Argument,
    Row,
    batch,
    faces,
    names,
    normal,
    offsets,
    quaternions,
    unit,
    whole,
)

POINTS = {"points": normal("B", "N", 3)}
WITH_QUERIES = {**POINTS, "queries": normal("B", "M", 3)}
PACKED = {"points": normal("N", 3), "offsets": offsets("N")}
PACKED_WITH_QUERIES = {**PACKED, "queries": normal("M", 3), "query_offsets": offsets("M")}
CLOUD = {"x": normal("N", 3)}
CLOUDS = {**CLOUD, "batch": batch("N")}
TWO_CLOUDS = {"x": normal("N", 3), "y": normal("M", 3), "batch_x": batch("N"), "batch_y": batch("M")}
CHANNELS = 4
EDGES = {"pairs": normal("B", "N", 2 * CHANNELS), "index": whole("N", "B", "N", 3), "sign": normal(CHANNELS)}
GRAPHS = names(RAGGED)


def _gradients_of_edges(pairs: Tensor, index: Tensor, chosen: Tensor, slope: Tensor) -> Tensor:
    position = torch.zeros_like(chosen, dtype=torch.uint8)
    terms = {"chosen": chosen, "constant": slope, "slope": slope, "shift": slope}
    return ops.edge_gradients(pairs, index, position, **terms)


def _statistics(values: Tensor) -> tuple[Tensor, ...]:
    moved = (values - values[0]).double()
    sums = moved.sum(dim=0), moved.square().sum(dim=0)
    running = {"running_mean": values[1], "running_var": values[2], "momentum": 0.1, "eps": 1e-5}
    return ops.batch_statistics(values[0], *sums, **running, num_values=values.shape[0], dtype=values.dtype)


POINT_ROWS = [
    Row(
        "nearest_neighbours",
        WITH_QUERIES,
        lambda points, queries: ops.nearest_neighbours(points, num_neighbours=3, queries=queries),
        (("B", "M", 3),),
        none="M",
        refused="N",
    ),
    Row(
        "nearest_neighbours",
        {"points": normal("B", "N", 24)},
        lambda points: ops.nearest_neighbours(points, num_neighbours=3),
        (("B", "N", 3),),
        refused="N",
        label="of features",
    ),
    Row(
        "packed_nearest_neighbours",
        PACKED_WITH_QUERIES,
        lambda points, offsets, queries, query_offsets: ops.packed_nearest_neighbours(
            points, offsets=offsets, num_neighbours=3, queries=queries, query_offsets=query_offsets
        ),
        (("M", 3), ("M", 3)),
        none="M",
        refused="N",
        reads=4,
    ),
    Row(
        "points_in_balls",
        WITH_QUERIES,
        lambda points, centres: ops.points_in_balls(
            points, centres=centres, radius=1.5, num_neighbours=3, empty="mark"
        ),
        (("B", "M", 3),),
        none="MN",
    ),
    Row(
        "packed_points_in_balls",
        PACKED_WITH_QUERIES,
        lambda points, offsets, centres, centre_offsets: ops.packed_points_in_balls(
            points,
            offsets=offsets,
            centres=centres,
            centre_offsets=centre_offsets,
            radius=1.5,
            num_neighbours=3,
            empty="mark",
        ),
        (("M", 3),),
        none="MN",
        reads=4,
    ),
    Row(
        "farthest_points",
        {**POINTS, "start": whole("N", "B")},
        lambda points, start: ops.farthest_points(points, 4, start=start),
        (("B", 4),),
        refused="N",
    ),
    Row(
        "packed_farthest_points",
        {**PACKED, "num_samples": Argument(("S",), lambda shape, sizes, generator: torch.full(shape, 2))},
        lambda points, offsets, num_samples: ops.packed_farthest_points(points, num_samples, offsets=offsets),
        ((None,), ("S+1",)),
        refused="N",
        traits=names(RAGGED),
        reads=3,
    ),
    Row(
        "interpolate",
        {"features": normal("B", "N", 4), **WITH_QUERIES},
        lambda features, points, queries: ops.interpolate(features, points=points, queries=queries),
        (("B", "M", 4),),
        none="M",
        refused="N",
        differentiable=names("features"),
    ),
    Row(
        "packed_interpolate",
        {"features": normal("N", 4), **PACKED_WITH_QUERIES},
        lambda features, points, offsets, queries, query_offsets: ops.packed_interpolate(
            features, points=points, offsets=offsets, queries=queries, query_offsets=query_offsets
        ),
        (("M", 4),),
        none="M",
        refused="N",
        differentiable=names("features"),
        reads=4,
    ),
    Row(
        "gather_points",
        {"values": normal("B", "N", 3), "index": whole("N", "B", "M", 2)},
        ops.gather_points,
        (("B", "M", 2, 3),),
        none="M",
        refused="N",
        differentiable=names("values"),
    ),
    Row(
        "estimate_normals",
        POINTS,
        lambda points: ops.estimate_normals(points, num_neighbours=6),
        (("B", "N", 3),),
        refused="N",
    ),
    Row(
        "edge_extremes",
        {**EDGES, "shift": normal(CHANNELS)},
        lambda pairs, index, sign, shift: ops.edge_extremes(pairs, index, sign=sign.sign(), shift=shift),
        (("B", "N", CHANNELS), ("B", "N", CHANNELS), (CHANNELS,), (CHANNELS,)),
        none="N",
        differentiable=names("pairs"),
    ),
    Row(
        "edge_gradients",
        {
            "pairs": normal("B", "N", 2 * CHANNELS),
            "index": whole("N", "B", "N", 3),
            "chosen": normal("B", "N", CHANNELS),
            "slope": normal(CHANNELS),
        },
        _gradients_of_edges,
        (("B", "N", 2 * CHANNELS),),
        none="N",
        differentiable=names("pairs", "chosen", "slope"),
    ),
    Row(
        "batch_statistics",
        {"values": unit("N", 3)},
        _statistics,
        ((3,), (3,), (3,), (3,)),
        differentiable=names("values"),
    ),
    Row(
        "statistics_gradients",
        {name: unit("N") for name in ("to_bias", "to_weight", "scale", "inverse_deviation")},
        lambda *terms: ops.statistics_gradients(*terms, num_values=9),
        (("N",), ("N",)),
        none="N",
        differentiable=names("to_bias", "to_weight", "scale", "inverse_deviation"),
    ),
    Row(
        "axis_rotation",
        {"angle": normal("N")},
        lambda angle: ops.axis_rotation("y", angle),
        (("N", 3, 3),),
        none="N",
        differentiable=names("angle"),
    ),
    Row(
        "euler_matrix",
        {"angles": normal("N", 3)},
        ops.euler_matrix,
        (("N", 3, 3),),
        none="N",
        differentiable=names("angles"),
    ),
    Row(
        "uniform_quaternion",
        {"uniform": unit("N", 3)},
        ops.uniform_quaternion,
        (("N", 4),),
        none="N",
        differentiable=names("uniform"),
    ),
    Row(
        "quaternion_matrix",
        {"quaternion": quaternions("N")},
        ops.quaternion_matrix,
        (("N", 3, 3),),
        none="N",
        differentiable=names("quaternion"),
    ),
    Row(
        "rotate_points",
        {**POINTS, "matrix": normal("B", 3, 3)},
        ops.rotate_points,
        (("B", "N", 3),),
        none="N",
        differentiable=names("points", "matrix"),
    ),
    Row(
        "areas_and_normals",
        {"vertices": normal("N", 3), "faces": faces("E")},
        lambda vertices, faces: ops.areas_and_normals(vertices.numpy(), faces.numpy()),
        (("E",), ("E", 3)),
        none="E",
        traits=names(NUMPY),
    ),
    Row(
        "vertex_normals",
        {"vertices": normal("N", 3), "faces": faces("E")},
        lambda vertices, faces: ops.vertex_normals(vertices.numpy(), faces.numpy()),
        (("N", 3),),
        none="E",
        traits=names(NUMPY),
    ),
    Row(
        "sample_surface",
        {"vertices": normal("N", 3), "faces": faces("E")},
        lambda vertices, faces: ops.sample_surface(
            vertices.numpy(), faces.numpy(), num_points=5, generator=np.random.default_rng(0)
        ),
        ((5, 3), (5, 3), (5,)),
        refused="E",
        traits=names(NUMPY),
    ),
]
