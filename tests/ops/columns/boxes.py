"""Rows of the exam of public functions: those of segments, voxels and boxes."""

from __future__ import annotations

from functools import partial

import torch

from sightline import ops
from tests.ops.columns.rows import (
    BY_VALUES,
    NO_FLOATS,
    RAGGED,
    Axis,
    Row,
    batch,
    boxes,
    chain,
    mask,
    names,
    normal,
    offsets,
    own_cells,
    sides,
    unit,
    upright_boxes,
    whole,
)

# --- segments ---------------------------------------------------------------------------------------------------------

SEGMENT_ROWS = [
    Row(
        "pack",
        {"padded": normal("B", "N", 3), "mask": mask("B", "N")},
        lambda padded, mask: ops.pack(padded, mask=mask),
        ((None, 3), ("B+1",)),
        none="N",
        traits=names(RAGGED),
        differentiable=names("padded"),
        reads=1,
    ),
    Row(
        "unpack",
        {"rows": normal("N", 3), "offsets": offsets("N")},
        lambda rows, offsets: ops.unpack(rows, offsets=offsets),
        (("S", None, 3), ("S", None)),
        none="N",
        traits=names(RAGGED),
        differentiable=names("rows"),
        reads=1,
    ),
    Row(
        "unpack",
        {"rows": normal("N", 3), "offsets": offsets("N")},
        lambda rows, offsets: ops.unpack(rows, offsets=offsets, max_size=8),
        (("S", 8, 3), ("S", 8)),
        none="N",
        differentiable=names("rows"),
        label="to a size",
    ),
    Row(
        "batch_to_offsets",
        {"batch": batch("N")},
        lambda batch: ops.batch_to_offsets(batch, 2),
        ((3,),),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "offsets_to_batch",
        {"offsets": offsets("N"), "rows": normal("N", 3)},
        lambda offsets, rows: ops.offsets_to_batch(offsets, rows.shape[0]),
        (("N",),),
        none="N",
    ),
]

# --- segments: as torch_scatter ---------------------------------------------------------------------------------------

SCATTERED = {"src": normal("B", "N", 3), "index": whole(4, "N")}
IN_ORDER = {"src": normal("N", 3), "index": batch("N")}
BETWEEN = {"src": normal("N", 3), "indptr": offsets("N")}
EXTREMES = ("max", "min")


def _scattered(kind: str) -> Row:
    """`scatter_<kind>` along a dimension, into four segments."""
    function = getattr(ops, f"scatter_{kind}")
    axes: tuple[Axis, ...] = ("B", "N", 3) if "softmax" in kind else ("B", 4, 3)
    return Row(
        f"scatter_{kind}",
        SCATTERED,
        lambda src, index: function(src, index, 1, dim_size=4),
        (axes, axes) if kind in EXTREMES else (axes,),
        none="N",
        differentiable=names("src"),
    )


def _reduced(name: str) -> Row:
    """`segment_<kind>_coo` or `segment_<kind>_csr`, of two segments."""
    function, is_csr = getattr(ops, name), name.endswith("csr")
    axes: tuple[Axis, ...] = ("S" if is_csr else 2, 3)
    return Row(
        name,
        BETWEEN if is_csr else IN_ORDER,
        function if is_csr else lambda src, index: function(src, index, dim_size=2),
        (axes, axes) if name.split("_")[1] in EXTREMES else (axes,),
        none="N",
        differentiable=names("src"),
    )


SCATTER_ROWS = [
    Row(
        "scatter",
        SCATTERED,
        lambda src, index: ops.scatter(src, index, 1, dim_size=4, reduce="mean"),
        (("B", 4, 3),),
        none="N",
        differentiable=names("src"),
    ),
    *map(_scattered, ("sum", "add", "mean", "max", "min", "std", "softmax", "log_softmax", "logsumexp")),
    *(_reduced(f"segment_{kind}{way}") for way in ("coo", "csr") for kind in ("", "sum_", "mean_", "max_", "min_")),
    Row(
        "gather_coo",
        {"src": normal("M", 3), "index": whole("M", "N")},
        ops.gather_coo,
        (("N", 3),),
        none="N",
        differentiable=names("src"),
    ),
    Row(
        "gather_csr",
        {"src": normal("S", 3), "indptr": offsets("N")},
        ops.gather_csr,
        ((None, 3),),
        none="N",
        traits=names(RAGGED, BY_VALUES),
        differentiable=names("src"),
        reads=1,
    ),
]

# --- voxels -----------------------------------------------------------------------------------------------------------

VOXEL_ROWS = [
    Row(
        "grid_cluster",
        {"pos": normal("N", 3), "size": sides(3)},
        ops.grid_cluster,
        (("N",),),
        none="N",
    ),
    Row(
        "voxel_grid",
        {"pos": normal("N", 3), "batch": batch("N")},
        lambda pos, batch: ops.voxel_grid(pos, 0.5, batch),
        (("N",),),
        none="N",
    ),
    Row(
        "consecutive_cluster",
        {"src": whole(4, "N")},
        ops.consecutive_cluster,
        (("N",), (None,)),
        none="N",
        traits=names(RAGGED, NO_FLOATS),
        reads=1,
    ),
]

PILLARS = {"points": normal("N", 4), "offsets": offsets("N")}
COUNTS = (("S",),) * 6
VOXEL_ROWS += [
    Row(
        "hard_pillars",
        PILLARS,
        lambda points, offsets: ops.hard_pillars(
            points, offsets, side_m=(0.5, 0.5), range_m=(-1, -1, -2, 1, 1, 2), max_points=2, max_pillars=4
        ),
        (("S", 4, 2), ("S", 4, 2), ("S", 4), *COUNTS),
        none="N",
    ),
    Row(
        "dynamic_pillars",
        PILLARS,
        lambda points, offsets: ops.dynamic_pillars(points, offsets, side_m=(0.5, 0.5), range_m=(-1, -1, 1, 1)),
        (("N",), ("N",), ("N", 3), ("N",), (), *COUNTS),
        none="N",
    ),
]

CELLS = {"cells": whole(3, "N", 3), "offsets": offsets("N")}
OWN_CELLS = {"cells": own_cells("N"), "offsets": offsets("N")}
SPARSE = ((None, 3), ("S+1",), ("N",), ("N",), (None,), ("S", 3))
VOXEL_ROWS += [
    Row(
        "sparse_voxels",
        {"points": normal("N", 3), "offsets": offsets("N")},
        lambda points, offsets: ops.sparse_voxels(points, offsets, side=0.5),
        SPARSE,
        none="N",
        traits=names(RAGGED),
        reads=1,
    ),
    Row("group_cells", CELLS, ops.group_cells, SPARSE, none="N", traits=names(RAGGED, NO_FLOATS), reads=1),
    Row(
        "pool_cells",
        CELLS,
        lambda cells, offsets: ops.pool_cells(cells, offsets, stride=2),
        SPARSE,
        none="N",
        traits=names(RAGGED, NO_FLOATS),
        reads=1,
    ),
    Row(
        "submanifold_map",
        CELLS,
        lambda cells, offsets: ops.submanifold_map(cells, offsets, size=3),
        (("N", 27), ("N", 27)),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "strided_map",
        OWN_CELLS,
        lambda cells, offsets: ops.strided_map(cells, offsets, size=2, stride=2),
        ((None, 3), ("S+1",), (None, 8), ("N", 8)),
        none="N",
        traits=names(RAGGED, NO_FLOATS),
        reads=1,
    ),
    Row(
        "sparse_convolution",
        {"values": normal("N", 4), "weight": normal(3, 4, 5), "bias": normal(5), "table": chain("N")},
        lambda values, weight, bias, table: ops.sparse_convolution(
            values, weight, ops.KernelMap(table, table.flip(1)), bias
        ),
        (("N", 5),),
        none="N",
        differentiable=names("values", "weight", "bias"),
    ),
]


def _cut(offsets: torch.Tensor, num_rows: int) -> ops.Patches:
    """Patches of four slots, whose number does not depend on values."""
    return ops.cut_patches(offsets, num_rows, size=4, num_patches=num_rows // 4 + offsets.shape[0] - 1)


VOXEL_ROWS += [
    Row(
        "curve_codes",
        {"cells": whole(50, "N", 3)},
        lambda cells: ops.curve_codes(cells, curve="hilbert", depth=6),
        (("N",),),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "curve_cells",
        {"codes": whole(2**18, "N")},
        lambda codes: ops.curve_cells(codes, curve="hilbert-trans", depth=6),
        (("N", 3),),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "curve_order",
        CELLS,
        lambda cells, offsets: ops.curve_order(cells, offsets, depth=9),
        ((4, "N"), (4, "N"), (4, "N")),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "cut_patches",
        {"offsets": offsets("N"), "rows": normal("N", 3)},
        lambda offsets, rows: _cut(offsets, rows.shape[0])[:3],
        ((None,), ("N",), ("N",)),
        none="N",
        traits=names(RAGGED),
    ),
    Row(
        "patch_attention",
        {"query_key_value": normal("N", 3, 2, 4), "offsets": offsets("N")},
        lambda query_key_value, offsets: ops.patch_attention(query_key_value, _cut(offsets, query_key_value.shape[0])),
        (("N", 8),),
        none="N",
        differentiable=names("query_key_value"),
    ),
]

# --- boxes ------------------------------------------------------------------------------------------------------------

BOXES = {"boxes": boxes("N")}
DETECTIONS = {**BOXES, "scores": unit("N")}
BOTH = {"boxes1": boxes("N"), "boxes2": boxes("M")}
KEPT = names(RAGGED)

BOX_ROWS = [
    Row("box_area", BOXES, ops.box_area, (("N",),), none="N", differentiable=names("boxes")),
    Row("box_iou", BOTH, ops.box_iou, (("N", "M"),), none="NM", differentiable=names(*BOTH)),
    Row("box_ioa", BOTH, ops.box_ioa, (("N", "M"),), none="NM", differentiable=names(*BOTH)),
    Row(
        "clip_boxes_to_image",
        BOXES,
        lambda boxes: ops.clip_boxes_to_image(boxes, (6, 8)),
        (("N", 4),),
        none="N",
        differentiable=names("boxes"),
    ),
    Row(
        "nms", DETECTIONS, lambda boxes, scores: ops.nms(boxes, scores, 0.3), ((None,),), none="N", traits=KEPT, reads=1
    ),
    Row(
        "batched_nms",
        {**DETECTIONS, "idxs": whole(3, "N")},
        lambda boxes, scores, idxs: ops.batched_nms(boxes, scores, idxs, 0.3),
        ((None,),),
        none="N",
        traits=KEPT,
        reads=1,
    ),
    Row(
        "soft_nms",
        DETECTIONS,
        lambda boxes, scores: ops.soft_nms(boxes, scores, min_score=0.3),
        ((None,), (None,)),
        none="N",
        traits=KEPT,
        reads=1,
    ),
    Row(
        "box3d_nms",
        {"boxes": upright_boxes("N"), "scores": unit("N"), "labels": whole(3, "N")},
        lambda boxes, scores, labels: ops.box3d_nms(boxes, scores, 0.2, labels, max_candidates=4, max_kept=3),
        ((None,),),
        none="N",
        traits=KEPT,
        reads=1,
    ),
    Row(
        "circle_nms",
        {"centres": normal("N", 2), "scores": unit("N")},
        lambda centres, scores: ops.circle_nms(centres, scores, 0.5),
        ((None,),),
        none="N",
        traits=KEPT,
        reads=1,
    ),
    Row(
        "sigmoid_focal_loss",
        {"inputs": normal("N", 3), "targets": whole(2, "N", 3)},
        lambda inputs, targets: ops.sigmoid_focal_loss(inputs, targets),
        (("N", 3),),
        none="N",
        differentiable=names("inputs"),
    ),
    *(
        Row(
            "points_in_boxes",
            {"points": normal("N", 3), "boxes": upright_boxes("M")},
            partial(ops.points_in_boxes, frame=frame),
            (("N",),),
            none="NM",
            label=f"of a {frame}",
        )
        for frame in ("camera", "lidar")
    ),
    *(
        Row(
            name,
            {"boxes1": upright_boxes("N"), "boxes2": upright_boxes("M")},
            getattr(ops, name),
            (("N", "M"),),
            none="NM",
            differentiable=names(*BOTH),
        )
        for name in ("box3d_iou", "box3d_iou_bev", "box3d_nearest_iou_bev", "box3d_overlap", "box3d_overlap_bev")
    ),
    Row(
        "box3d_iou",
        {"boxes1": upright_boxes("N"), "boxes2": upright_boxes("N")},
        partial(ops.box3d_iou, aligned=True),
        (("N",),),
        none="N",
        differentiable=names(*BOTH),
        label="of aligned rows",
    ),
    Row(
        "box_convert",
        BOXES,
        lambda boxes: ops.box_convert(boxes, "xyxy", "cxcywh"),
        (("N", 4),),
        none="N",
        differentiable=names("boxes"),
    ),
    *(
        Row(
            name,
            {"boxes1": boxes("N", is_square=True), "boxes2": boxes("M", is_square=True)},
            getattr(ops, name),
            (("N", "M"),),
            none="NM",
            differentiable=names(*BOTH),
        )
        for name in ("generalized_box_iou", "distance_box_iou", "complete_box_iou")
    ),
    *(
        Row(
            f"{name}_loss",
            {"boxes1": boxes("N", is_square=True), "boxes2": boxes("N", is_square=True)},
            getattr(ops, f"{name}_loss"),
            (("N",),),
            none="N",
            differentiable=names(*BOTH),
        )
        for name in ("generalized_box_iou", "distance_box_iou", "complete_box_iou")
    ),
    Row(
        "remove_small_boxes",
        BOXES,
        lambda boxes: ops.remove_small_boxes(boxes, 5.0),
        ((None,),),
        none="N",
        traits=KEPT,
        reads=1,
    ),
    Row(
        "masks_to_boxes",
        {"masks": whole(2, "N", 6, 7)},
        ops.masks_to_boxes,
        (("N", 4),),
        none="N",
        traits=names(NO_FLOATS),
    ),
    Row(
        "roi_align",
        {"input": normal(2, 3, 8, 8), "boxes": boxes("N"), "image": whole(2, "N")},
        lambda input, boxes, image: ops.roi_align(
            input, torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1), 4, 0.5, sampling_ratio=2
        ),
        (("N", 3, 4, 4),),
        none="N",
        differentiable=names("input", "boxes"),
    ),
]

# --- heat maps --------------------------------------------------------------------------------------------------------

MAPS = {"heatmaps": unit("B", 4, 6, 7)}

MAP_ROWS = [
    Row(
        "gaussian_heatmaps",
        {"joints": normal("B", 4, 2)},
        lambda joints: ops.gaussian_heatmaps(joints, 8, dtype=joints.dtype),
        (("B", 4, 8, 8),),
        differentiable=names("joints"),
    ),
    Row("decode_heatmaps", MAPS, ops.decode_heatmaps, (("B", 4, 2),), differentiable=names("heatmaps")),
    Row("soft_argmax", MAPS, ops.soft_argmax, (("B", 4, 2),), differentiable=names("heatmaps")),
    Row("heatmap_peaks", MAPS, ops.heatmap_peaks, (("B", 4),), differentiable=names("heatmaps")),
]
