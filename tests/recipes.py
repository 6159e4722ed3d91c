"""The shipped recipes that need no files, and what brings each down to seconds."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SMALL", "SMALLER", "recipes"]

ROOT = Path(__file__).resolve().parents[1]
_CUBE = (
    "transforms.train=[{name: place_cube, size: 16, max_shift: 1.0}, {name: voxelize}, {name: draw_heatmaps}]",
    "transforms.evaluate=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
)
_FEW_POINTS = "data.num_points=64"
_NARROW = ("data.num_columns=64", "transforms.train.2.width=64", "transforms.evaluate.0.width=64")
_FRUSTUMS = ("data.num_columns=64", "transforms.train.3.width=64", "transforms.evaluate.0.width=64")
_CROWDS = ("data.validation_size=8", "schedule.warmup_epochs=0", "model.backbone.width=8")
_DETECTOR = (*_CROWDS, "model.neck.width=32")
SMALLER = {
    "boxes3d/synthetic_streets_pointpillars": ("data.num_columns=128", "model.max_pillars=2000"),
    "classify/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "contrast/synthetic_shapes_crosspoint": ("data.num_points=192", "data.views.count=2"),
    "contrast/synthetic_shapes_intrapoint_parts": (_FEW_POINTS,),
    "detect/synthetic_crowds_fcos": _DETECTOR,
    "detect/synthetic_crowds_fcos_eca": _DETECTOR,
    "detect/synthetic_crowds_retinanet": _DETECTOR,
    "detect/synthetic_crowds_yolov3": _DETECTOR,
    "detect/synthetic_crowds_yolox": _CROWDS,
    "pose/synthetic_hands_v2v": tuple(word.replace("size: 16", "size: 32") for word in _CUBE),  # 16 diverges
    "pose/synthetic_hands_v2v_small": _CUBE,
    "pose/synthetic_bodies_v2v_small": _CUBE,
    "segment/synthetic_lidar_deeplabv3": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_frnet": (*_FRUSTUMS, "model.width=8"),
    "segment/synthetic_lidar_minkunet": ("data.num_columns=64",),
    "segment/synthetic_lidar_rangenet21": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_salsanext": (*_NARROW, "model.width=4"),
    "segment/synthetic_lidar_squeezeseg": _NARROW,
    "segment/synthetic_rooms_point_transformer": ("data.points_per_m2=10", "transforms.train.5.max_points=512"),
    "segment/synthetic_rooms_ptv3": ("data.points_per_m2=10", "model.drop_path=0"),
    "segment/synthetic_rooms_spunet": ("data.points_per_m2=10",),
    "segment/synthetic_shapes_dgcnn": (_FEW_POINTS,),
    "segment/synthetic_shapes_dgcnn_from_intrapoint": (_FEW_POINTS, "init=null"),
}
"""What brings single recipes down to seconds; the rest is the same for all."""
SMALL = ("data.train_size=24", "data.test_size=8", "train.batch_size=5", "train.tail=drop", "train.epochs=2")


def recipes(root: Path = ROOT) -> list[str]:
    """The shipped recipes that need no files, as `task/name`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in (root / "configs").glob("*/synthetic_*.yaml"))
