"""Files of numbers that the authors' own code gave, `shared/golden`, which not every run of the tests opens."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["LONG", "UNREAD", "WAITING", "list_golden"]

UNREAD: dict[str, str] = {
    "lidar/border_mask": "sightline has no mask of the borders between classes",
    "lidar/panoptic_eval": "sightline has no panoptic metric",
    "points/pt_nico": "sightline has no such network",
    "lidar/salsanext_adf": "sightline has no SalsaNext that states uncertainties",
}
"""Files that no test opens, each with the reason."""
_BOXES = "networks that predict 3D boxes on LiDAR"
_VOXELS = "networks on sparse voxels"
WAITING: dict[str, str] = {
    f"{area}/{name}": network
    for area, network, names in (
        (
            "boxes3d",
            _BOXES,
            "centerpoint_pillar_nus centerpoint_targets nuscenes_eval",
        ),
        (
            "voxels",
            _VOXELS,
            "fn_curves fn_interpolate "
            "fn_patch_padding fn_serialization "
            "keys_ptv3_base_scannet keys_sonata_encoder "
            "ptv3_block_fixed ptv3_block_fixed_rpe ptv3_block_varlen ptv3_small_fixed_rpe "
            "ptv3_small_plain ptv3_small_postnorm ptv3_small_shuffle ptv3_small_sonata ptv3_small_v151 "
            "spvcnn_small",
        ),
    )
    for name in names.split()
}
"""Files of networks that sightline has not yet; each leaves the list when a test opens it."""
LONG = frozenset(
    {
        *("detect/crowddetection_yolov3", "detect/odtask_retina_resnet50"),
        *("lidar/lb_darknet21", "lidar/lb_darknet53"),
        *("points/crosspoint_resnet50", "points/pct_cls", "points/pct_cls_posenc", "points/pct_menghao_sjtu"),
        *("points/pointbert_partseg", "points/pointnet2_msg_cls", "points/pointnet2_ssg_cls_normal"),
        *("points/pointnet2_ssg_semseg", "points/pt_sjtu_cls_full", "pose/v2v_s24_j16", "pose/v2v_s88_j21"),
    }
)
"""Files that only tests of `make test-long` open: large networks, of which a smaller one is compared every day."""


def list_golden() -> set[str] | None:
    """Return all files of numbers, each as area/name; None where the shared samples are missing."""
    shared = Path(os.environ.get("SIGHTLINE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (shared / "data").is_dir():
        return None
    return {f"{path.parent.name}/{path.stem}" for path in (shared / "golden").glob("*/*.json")}
