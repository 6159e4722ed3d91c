"""Poses of hands and bodies: depth images, volumes, and joints in mm."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.depth_folder": "depth_folder",
        "sets.hand_sets": "hands2017 icvl_hands nyu_hands",
        "sets.itop": "itop",
        "sets.msra_hands": "msra_hands",
        "sets.synthetic_hands": "synthetic_bodies synthetic_hands",
    },
    "file_views": {"depth_view": "view_depth_file"},
    "losses": {"losses": "centre_mse heatmap_cross_entropy heatmap_mse joint_l1"},
    "metrics": {"metrics": "centre_error detection_rate joint_error keypoints"},
    "models": {"scale_net": "scale_net", "v2v": "v2v v2v_small"},
    "predictors": {"predictor": "centre pose"},
    "references": {"sets.references": "centre_of_mass file truth"},
    "rules": {"rules": "misplaced-heatmap misplaced-joints misplaced-volume"},
    "stages": {"stages": "DepthStages"},
    "tools": {"set_centres": "find_centres"},
    "transforms": {"transforms": "draw_heatmaps place_cube voxelize"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
