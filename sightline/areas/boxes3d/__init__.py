"""3D boxes on LiDAR: sets of clouds with boxes, their pictures, and their scores."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.boxes3d_folder": "boxes3d_folder",
        "sets.kitti_boxes3d": "kitti_boxes3d",
        "sets.labels3d": "labels3d",
        "sets.synthetic_streets3d": "synthetic_streets3d",
    },
    "losses": {"losses": "anchor_box anchor_class anchor_direction"},
    "metrics": {
        "metrics.boxes3d_ap": "boxes3d_ap",
        "metrics.boxes3d_errors": "boxes3d_errors",
        "metrics.kitti_ap": "kitti_ap",
    },
    "models": {"pointpillars": "pointpillars"},
    "prediction_writers": {"prediction_writer": "Box3dWriter"},
    "predictors": {"predictor": "detect3d"},
    "rules": {"rules": "anchor-coverage broken-boxes unmatched-boxes"},
    "scorings": {"scoring": "Box3dScoring"},
    "stages": {"stages": "BoxStages"},
    "tasks": {"task": "detect3d"},
    "transforms": {"transforms": "limit_extent move_objects paste_objects"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`).

What areas and tools share of 3D boxes, the table of a frame and the label files of other tools, is in `store/boxes3d`.
"""
