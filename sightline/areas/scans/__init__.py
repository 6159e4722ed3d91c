"""LiDAR scans: range images, their networks, and labels of points."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.kitti_object": "kitti_object",
        "sets.nuscenes_lidarseg": "nuscenes_lidarseg",
        "sets.scan_folder": "scan_folder",
        "sets.semantic_kitti": "semantic_kitti",
        "sets.semantic_poss": "semantic_poss",
        "sets.squeezeseg_npy": "squeezeseg_npy",
        "sets.synthetic_lidar": "synthetic_lidar",
    },
    "descriptions": {"projections": "describe_projection"},
    "losses": {"losses": "pixel_boundary pixel_cross_entropy pixel_lovasz"},
    "metrics": {"metrics": "iou_by_distance pixel_iou"},
    "models": {
        "models.deeplabv3": "deeplabv3",
        "models.frnet": "frnet",
        "models.rangenet": "rangenet21 rangenet53",
        "models.salsanext": "salsanext",
        "models.squeezeseg": "squeezeseg squeezesegv2",
    },
    "public": {"sets.labelled_scans": "LabelledScans NamedScans"},
    "rules": {"rules": "mismatched-labels projection-coverage"},
    "transforms": {
        "frustums": "assign_pixels copy_classes interpolate_ranges mix_frustums",
        "range_projection": "project ring_from_order",
    },
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
