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
    "metrics": {"metrics.boxes3d_ap": "boxes3d_ap", "metrics.kitti_ap": "kitti_ap"},
    "prediction_writers": {"prediction_writer": "Box3dWriter"},
    "scorings": {"scoring": "Box3dScoring"},
    "stages": {"stages": "BoxStages"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`).

What areas and tools share of 3D boxes, the table of a frame and the label files of other tools, is in `store/boxes3d`.
"""
