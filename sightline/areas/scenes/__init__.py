"""Scenes: rooms of any size, packed with offsets, and Point Transformer."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "data": {
        "sets.s3dis": "s3dis s3dis_one_room",
        "sets.scannet": "scannet scannet200",
        "sets.scene_folder": "scene_folder",
        "sets.synthetic_rooms": "synthetic_rooms",
    },
    "models": {"point_transformer": "point_transformer"},
    "point_encoders": {"point_transformer": "point_transformer"},
    "public": {"sets.labelled_scenes": "LabelledScenes"},
    "rules": {"rules": "cropped-class"},
    "transforms": {"transforms": "crop_points place_on_floor sample_block voxel_sample"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
