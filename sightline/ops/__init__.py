"""Operators on points, boxes and images: exact, the same indices on every device, no compiler needed.

Plain forms in torch run anywhere; numba's kernels on CPUs and Triton's on GPUs take their place where these libraries
are installed. They work in anybody's module, with autograd, autocast and `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from sightline.ops.boxes.focal import sigmoid_focal_loss
from sightline.ops.boxes.formats import box_convert, masks_to_boxes, remove_small_boxes
from sightline.ops.boxes.losses import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss
from sightline.ops.boxes.overlaps import (
    box_area,
    box_ioa,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from sightline.ops.boxes.points_in_boxes import points_in_boxes
from sightline.ops.boxes.regions import roi_align
from sightline.ops.boxes.rotated_overlaps import (
    box3d_iou,
    box3d_iou_bev,
    box3d_nearest_iou_bev,
    box3d_overlap,
    box3d_overlap_bev,
)
from sightline.ops.boxes.rotated_suppression import box3d_nms, circle_nms
from sightline.ops.boxes.suppression import batched_nms, nms, soft_nms
from sightline.ops.points.ball_query import packed_points_in_balls, points_in_balls
from sightline.ops.points.batch_statistics import batch_statistics, statistics_gradients
from sightline.ops.points.edge_convolution import EdgeSums, edge_extremes, edge_gradients
from sightline.ops.points.farthest_points import farthest_points, packed_farthest_points
from sightline.ops.points.grouping import gather_points
from sightline.ops.points.interpolation import interpolate, packed_interpolate
from sightline.ops.points.meshes import areas_and_normals, sample_surface, vertex_normals
from sightline.ops.points.neighbours import Neighbours, nearest_neighbours, packed_nearest_neighbours
from sightline.ops.points.normals import estimate_normals
from sightline.ops.points.pointnet2 import (
    GroupAll,
    QueryAndGroup,
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    three_interpolate,
    three_nn,
)
from sightline.ops.points.pytorch3d import (
    KNN,
    ball_query,
    chamfer_distance,
    knn_gather,
    knn_points,
    sample_farthest_points,
)
from sightline.ops.points.rotations import (
    axis_rotation,
    euler_matrix,
    quaternion_matrix,
    rotate_points,
    uniform_quaternion,
)
from sightline.ops.points.torch_cluster import fps, knn, knn_graph, nearest, radius, radius_graph
from sightline.ops.segments.offsets import batch_to_offsets, offsets_to_batch, pack, unpack
from sightline.ops.segments.scatter import (
    scatter,
    scatter_add,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_std,
    scatter_sum,
)
from sightline.ops.segments.softmax import scatter_log_softmax, scatter_logsumexp, scatter_softmax
from sightline.ops.segments.sorted_rows import (
    gather_coo,
    gather_csr,
    segment_coo,
    segment_csr,
    segment_max_coo,
    segment_max_csr,
    segment_mean_coo,
    segment_mean_csr,
    segment_min_coo,
    segment_min_csr,
    segment_sum_coo,
    segment_sum_csr,
)
from sightline.ops.voxels.cells import SparseVoxels, group_cells, pool_cells, sparse_voxels
from sightline.ops.voxels.curves import CurveOrder, curve_cells, curve_codes, curve_order
from sightline.ops.voxels.grid import consecutive_cluster, grid_cluster, voxel_grid
from sightline.ops.voxels.heat_maps import decode_heatmaps, gaussian_heatmaps, heatmap_peaks, soft_argmax
from sightline.ops.voxels.kernel_maps import CoarseCells, KernelMap, strided_map, submanifold_map
from sightline.ops.voxels.patch_attention import patch_attention
from sightline.ops.voxels.patches import Patches, cut_patches
from sightline.ops.voxels.pillars import DroppedPoints, DynamicPillars, HardPillars, dynamic_pillars, hard_pillars
from sightline.ops.voxels.sparse_convolution import sparse_convolution
from sightline.ops.waits import check

__all__ = [
    "KNN",
    "CoarseCells",
    "CurveOrder",
    "DroppedPoints",
    "DynamicPillars",
    "EdgeSums",
    "GroupAll",
    "HardPillars",
    "KernelMap",
    "Neighbours",
    "Patches",
    "QueryAndGroup",
    "SparseVoxels",
    "areas_and_normals",
    "axis_rotation",
    "ball_query",
    "batch_statistics",
    "batch_to_offsets",
    "batched_nms",
    "box3d_iou",
    "box3d_iou_bev",
    "box3d_nearest_iou_bev",
    "box3d_nms",
    "box3d_overlap",
    "box3d_overlap_bev",
    "box_area",
    "box_convert",
    "box_ioa",
    "box_iou",
    "chamfer_distance",
    "check",
    "circle_nms",
    "clip_boxes_to_image",
    "complete_box_iou",
    "complete_box_iou_loss",
    "consecutive_cluster",
    "curve_cells",
    "curve_codes",
    "curve_order",
    "cut_patches",
    "decode_heatmaps",
    "distance_box_iou",
    "distance_box_iou_loss",
    "dynamic_pillars",
    "edge_extremes",
    "edge_gradients",
    "estimate_normals",
    "euler_matrix",
    "farthest_points",
    "fps",
    "furthest_point_sample",
    "gather_coo",
    "gather_csr",
    "gather_operation",
    "gather_points",
    "gaussian_heatmaps",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "grid_cluster",
    "group_cells",
    "grouping_operation",
    "hard_pillars",
    "heatmap_peaks",
    "interpolate",
    "knn",
    "knn_gather",
    "knn_graph",
    "knn_points",
    "masks_to_boxes",
    "nearest",
    "nearest_neighbours",
    "nms",
    "offsets_to_batch",
    "pack",
    "packed_farthest_points",
    "packed_interpolate",
    "packed_nearest_neighbours",
    "packed_points_in_balls",
    "patch_attention",
    "points_in_balls",
    "points_in_boxes",
    "pool_cells",
    "quaternion_matrix",
    "radius",
    "radius_graph",
    "remove_small_boxes",
    "roi_align",
    "rotate_points",
    "sample_farthest_points",
    "sample_surface",
    "scatter",
    "scatter_add",
    "scatter_log_softmax",
    "scatter_logsumexp",
    "scatter_max",
    "scatter_mean",
    "scatter_min",
    "scatter_softmax",
    "scatter_std",
    "scatter_sum",
    "segment_coo",
    "segment_csr",
    "segment_max_coo",
    "segment_max_csr",
    "segment_mean_coo",
    "segment_mean_csr",
    "segment_min_coo",
    "segment_min_csr",
    "segment_sum_coo",
    "segment_sum_csr",
    "sigmoid_focal_loss",
    "soft_argmax",
    "soft_nms",
    "sparse_convolution",
    "sparse_voxels",
    "statistics_gradients",
    "strided_map",
    "submanifold_map",
    "three_interpolate",
    "three_nn",
    "uniform_quaternion",
    "unpack",
    "vertex_normals",
    "voxel_grid",
]
