"""Poses of hands and bodies: depth images, volumes, and joints in mm."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.depth_folder": "depth_folder",
        "sets.hand_sets": "hands2017 icvl_hands msra_hands nyu_hands",
        "sets.itop": "itop",
        "sets.synthetic_bodies": "synthetic_bodies",
        "sets.synthetic_hands": "synthetic_hands",
    },
    "file_views": {"stages": "view_depth_file"},
    "losses": {"refiner": "centre_mse", "v2v": "heatmap_mse"},
    "metrics": {"metrics": "detection_rate joint_error keypoints", "refiner": "centre_error"},
    "models": {"refiner": "scale_net", "v2v": "v2v v2v_small"},
    "predictors": {"predictor": "centre pose"},
    "public": {
        "predictor": "CameraOptions DepthFrameOptions",
        "refiner": "CropPlacement to_crop_coordinates",
        "sets.depth_frames": "DepthCamera DepthFrame DepthFrames FrameSplit Reference Skeleton",
        "sets.depth_sets": "PreparedFrames",
    },
    "references": {"sets.depth_frames": "centre_of_mass file truth"},
    "rules": {"rules": "misplaced-heatmap misplaced-joints misplaced-volume"},
    "stages": {"stages": "DepthStages"},
    "tasks": {"refiner": "centre", "task": "pose"},
    "tools": {"centres": "find_centres"},
    "transforms": {"refiner": "crop_depth", "v2v": "draw_heatmaps place_cube voxelize"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
