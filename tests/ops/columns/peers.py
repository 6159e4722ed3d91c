"""Rows of the exam of public functions: those of points by the names of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sightline import ops
from tests.ops.columns.rows import BY_VALUES, RAGGED, Argument, Row, batch, names, normal, unit, whole

# --- torch-cluster ----------------------------------------------------------------------------------------------------

BATCH = "of a batch"
X = {"x": normal("N", 3)}
X_BATCH = {**X, "batch": batch("N")}
X_Y = {"x": normal("N", 3), "y": normal("M", 3)}
X_Y_BATCH = {**X_Y, "batch_x": batch("N"), "batch_y": batch("M")}


CLUSTER_ROWS = [
    Row("knn", X_Y, lambda x, y: ops.knn(x, y, 3), ((2, None),), none="MN"),
    Row(
        "knn",
        X_Y_BATCH,
        lambda x, y, batch_x, batch_y: ops.knn(x, y, 3, batch_x, batch_y, batch_size=2),
        ((2, None),),
        none="M",
        refused="N",
        traits=names(RAGGED),
        label=BATCH,
        reads=5,
    ),
    Row("knn_graph", X, lambda x: ops.knn_graph(x, 3), ((2, None),), none="N"),
    Row(
        "knn_graph",
        X_BATCH,
        lambda x, batch: ops.knn_graph(x, 3, batch, batch_size=2),
        ((2, None),),
        none="N",
        traits=names(RAGGED),
        label=BATCH,
        reads=3,
    ),
    Row("radius", X_Y, lambda x, y: ops.radius(x, y, 1.5), ((2, None),), none="MN", traits=names(RAGGED), reads=1),
    Row(
        "radius",
        X_Y_BATCH,
        lambda x, y, batch_x, batch_y: ops.radius(x, y, 1.5, batch_x, batch_y, batch_size=2),
        ((2, None),),
        none="MN",
        traits=names(RAGGED),
        label=BATCH,
        reads=5,
    ),
    Row("radius_graph", X, lambda x: ops.radius_graph(x, 1.5), ((2, None),), none="N", traits=names(RAGGED), reads=1),
    Row(
        "radius_graph",
        X_BATCH,
        lambda x, batch: ops.radius_graph(x, 1.5, batch, batch_size=2),
        ((2, None),),
        none="N",
        traits=names(RAGGED),
        label=BATCH,
        reads=5,
    ),
    Row("nearest", X_Y, ops.nearest, (("N",),), none="N", refused="M"),
    Row(
        "nearest",
        X_Y_BATCH,
        ops.nearest,
        (("N",),),
        none="N",
        refused="M",
        traits=names(BY_VALUES),
        label=BATCH,
        reads=5,
    ),
    Row("fps", X, lambda x: ops.fps(x, ratio=0.5), ((None,),), none="N"),
    Row(
        "fps",
        X_BATCH,
        lambda x, batch: ops.fps(x, batch, ratio=0.5, batch_size=2),
        ((None,),),
        none="N",
        traits=names(RAGGED, BY_VALUES),
        label=BATCH,
        reads=4,
    ),
]

# --- PyTorch3D --------------------------------------------------------------------------------------------------------


def _lengths(letter: str) -> Argument:
    """Numbers of points of padded clouds: all but one of the second."""

    def draw(shape: tuple[int, ...], sizes: Mapping[str, int], generator: Any) -> torch.Tensor:
        return (sizes[letter] - torch.arange(shape[0]).clamp(max=1)).clamp(min=0)

    return Argument(("B",), draw)


CLOUDS = {"p1": normal("B", "M", 3), "p2": normal("B", "N", 3)}
PADDED_CLOUDS = {**CLOUDS, "lengths1": _lengths("M"), "lengths2": _lengths("N")}
PADDED = "padded"
K_NEAREST = (("B", "M", 3), ("B", "M", 3), ("B", "M", 3, 3))

PYTORCH3D_ROWS = [
    Row(
        "knn_points",
        CLOUDS,
        lambda p1, p2: ops.knn_points(p1, p2, K=3, return_nn=True),
        K_NEAREST,
        none="MN",
        differentiable=names("p1", "p2"),
    ),
    Row(
        "knn_points",
        PADDED_CLOUDS,
        lambda p1, p2, lengths1, lengths2: ops.knn_points(p1, p2, lengths1, lengths2, K=3, return_nn=True),
        K_NEAREST,
        none="MN",
        differentiable=names("p1", "p2"),
        label=PADDED,
    ),
    Row(
        "knn_gather",
        {"x": normal("B", "M", 3), "idx": whole("M", "B", "N", 2)},
        ops.knn_gather,
        (("B", "N", 2, 3),),
        none="N",
        refused="M",
        differentiable=names("x"),
    ),
    Row(
        "ball_query",
        CLOUDS,
        lambda p1, p2: ops.ball_query(p1, p2, K=3, radius=1.5),
        K_NEAREST,
        none="MN",
        differentiable=names("p1", "p2"),
    ),
    Row(
        "sample_farthest_points",
        {"points": normal("B", "N", 3), "lengths": _lengths("N")},
        lambda points, lengths: ops.sample_farthest_points(points, lengths, K=4),
        (("B", 4, 3), ("B", 4)),
        none="N",
        differentiable=names("points"),
    ),
    Row(
        "chamfer_distance",
        CLOUDS,
        lambda x, y: ops.chamfer_distance(x, y),
        ((),),
        refused="N",
        differentiable=names("p1", "p2"),
    ),
]

# --- pointnet2_ops ----------------------------------------------------------------------------------------------------

POINTNET2_ROWS = [
    Row(
        "furthest_point_sample",
        {"xyz": normal("B", "N", 3)},
        lambda xyz: ops.furthest_point_sample(xyz, 4),
        (("B", 4),),
        refused="N",
    ),
    Row(
        "gather_operation",
        {"features": normal("B", 4, "N"), "idx": whole("N", "B", "M")},
        ops.gather_operation,
        (("B", 4, "M"),),
        none="M",
        refused="N",
        differentiable=names("features"),
    ),
    Row(
        "grouping_operation",
        {"features": normal("B", 4, "N"), "idx": whole("N", "B", "M", 2)},
        ops.grouping_operation,
        (("B", 4, "M", 2),),
        none="M",
        refused="N",
        differentiable=names("features"),
    ),
    Row(
        "three_nn",
        {"unknown": normal("B", "N", 3), "known": normal("B", "M", 3)},
        ops.three_nn,
        (("B", "N", 3), ("B", "N", 3)),
        none="N",
        refused="M",
    ),
    Row(
        "three_interpolate",
        {"features": normal("B", 4, "M"), "idx": whole("M", "B", "N", 3), "weight": unit("B", "N", 3)},
        ops.three_interpolate,
        (("B", 4, "N"),),
        none="N",
        refused="M",
        differentiable=names("features", "weight"),
    ),
]
