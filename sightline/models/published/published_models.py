"""Published layouts as models of ours, with the arguments that follow from the shapes of their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sightline.models.published.published import LAYOUTS, OPTIONAL, translate_key, unused_names
from sightline.models.published.published_detectors import DETECTORS
from sightline.models.published.published_model import (
    BY_NORMALS,
    AxisSize,
    ImageSide,
    NumModules,
    PublishedModel,
    PublishedProtocol,
)

__all__ = ["MODELS", "find_layouts"]

_BY_COLOURS: Mapping[int, Mapping[str, Any]] = {
    3: {"colours": False},
    6: {"colours": True},
    9: {"colours": True, "place": True},
}
_PAIRS = PublishedProtocol("contrast", "shapenet_render", ({"name": "pairs"},), "retrieval_accuracy", 64, {})
_NO_POINTS = 0
_IMAGES = PublishedProtocol(
    "classify", "synthetic_shapes", ({"name": "accuracy"},), "overall_accuracy", 64, {_NO_POINTS: {"views": 12}}
)
"""Protocol on views that always exist: ImageNet, which the weights are of, is not a set of ours."""
_PARTS = PublishedProtocol("segment", "shapenet_part", ({"name": "part_iou"},), "instance_miou", 32, BY_NORMALS)
_SCENES = PublishedProtocol("segment", "s3dis", ({"name": "iou"},), "miou", 1, _BY_COLOURS)
_BY_POINTS_AND_PIXELS = tuple({"name": name, "absent": "zero"} for name in ("iou", "iou_by_distance", "pixel_iou"))
_SCANS = PublishedProtocol("segment", "semantic_kitti", _BY_POINTS_AND_PIXELS, "miou", 1, {})
_SMOOTHED: tuple[Mapping[str, Any], ...] = ({"name": "cross_entropy", "label_smoothing": 0.2},)
_NORMALISED: tuple[Mapping[str, Any], ...] = ({"name": "normalize_unit_sphere"},)

_DGCNN = PublishedModel(
    model="dgcnn",
    num_classes=AxisSize("head.4.weight", 0),
    in_channels=AxisSize("edges.0.edge.linear.weight", 1, divisor=2),
    from_shapes={"embedding": AxisSize("embed.linear.weight", 0)},
    assumed={"num_neighbours": 20, "dropout": 0.5},
    losses=_SMOOTHED,
)

_POINT_BERT_INPUT = AxisSize("embed.patches.enter.linear.weight", 1)
_POINT_BERT_WIDTH = AxisSize("trunk.norm.weight", 0)
_POINT_BERT_ASSUMED = {"group_size": 32, "drop_path": 0.1, "dropout": 0.5, "min_squared_norm": 1e-3}
_POINT_BERT = PublishedModel(
    model="point_bert",
    num_classes=AxisSize("head.3.weight", 0),
    in_channels=_POINT_BERT_INPUT,
    from_shapes={"width": _POINT_BERT_WIDTH, "depth": NumModules("trunk.blocks")},
    assumed={"num_heads": 6, "num_groups": 64, **_POINT_BERT_ASSUMED},
    losses=_SMOOTHED,
    evaluate=({"name": "farthest_points", "num_points": 1024, "min_squared_norm": 1e-3},),
    takes_first_points=False,
)


def _pct(**assumed: Any) -> PublishedModel:
    return PublishedModel(
        model="pct",
        num_classes=AxisSize("head.4.weight", 0),
        in_channels=AxisSize("embed.0.linear.weight", 1),
        assumed={"num_centres": (512, 256), "num_neighbours": 32, "dropout": 0.5, **assumed},
        losses=_SMOOTHED,
    )


def _pointnet2(model: str, **assumed: Any) -> PublishedModel:
    return PublishedModel(
        model=model,
        num_classes=AxisSize("head.4.weight", 0),
        in_channels=AxisSize("abstractions.0.groups.0.network.layers.0.linear.weight", 1),
        assumed={"num_centres": (512, 128), "dropout": 0.4, **assumed},
        evaluate=_NORMALISED,
    )


def _subsample(num_points: int) -> tuple[Mapping[str, Any], ...]:
    return ({"name": "sample_points", "num_points": num_points, "if_fewer": "repeat", "score_all": True},)


_IN_BLOCKS: Mapping[str, Any] = {"blocks": {"size_m": 1.0, "stride_m": 0.5, "num_points": 4096}}
_PENALISED: tuple[Mapping[str, Any], ...] = (
    {"name": "cross_entropy"},
    {"name": "feature_transform_penalty", "weight": 0.001},
)


def _point_arguments(protocol: PublishedProtocol) -> dict[str, Any]:
    """Return shared arguments of networks for clouds of one size.

    Subsampled shapes or blocks of scenes, all points scored.
    """
    if protocol is _SCENES:
        return {"protocol": protocol, "up_axis": "z", "task": _IN_BLOCKS}
    return {"protocol": protocol, "evaluate": _subsample(2048)}


def _dgcnn_points(model: str, last: str, protocol: PublishedProtocol, **assumed: Any) -> PublishedModel:
    return PublishedModel(
        model=model,
        num_classes=AxisSize(f"{last}.weight", 0),
        in_channels=AxisSize("levels.edges.0.network.layers.0.linear.weight", 1, divisor=2),
        from_shapes={"embedding": AxisSize("levels.embed.linear.weight", 0)},
        assumed={"dropout": 0.5, **assumed},
        losses=_SMOOTHED,
        **_point_arguments(protocol),
    )


def _pointnet_points(model: str, embedding: str, protocol: PublishedProtocol) -> PublishedModel:
    return PublishedModel(
        model=model,
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=AxisSize(f"{embedding}.linear.weight", 1),
        losses=_PENALISED,
        **_point_arguments(protocol),
    )


def _pointnet2_points(model: str, protocol: PublishedProtocol, **assumed: Any) -> PublishedModel:
    """Describe a PointNet++ segmentation network, whose first abstraction also has the position."""
    return PublishedModel(
        model=model,
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=AxisSize("abstractions.0.groups.0.network.layers.0.linear.weight", 1, others=3),
        assumed={"dropout": 0.5, **assumed},
        **_point_arguments(protocol),
    )


def _dense_transformer(per: str, *, num_categories: int = 0, **recipe: Any) -> PublishedModel:
    """Describe a dense Point Transformer; the one-hot of a category follows the channels of every point."""
    return PublishedModel(
        model="point_transformer_dense",
        num_classes=AxisSize("head.4.weight", 0),
        in_channels=AxisSize("encoder.embed.0.weight", 1, others=num_categories),
        from_shapes={"width": AxisSize("encoder.levels.0.0.enter.weight", 0)},
        assumed={"per": per, "num_blocks": (1, 1, 1, 1, 1), "num_neighbours": 16},
        **recipe,
    )


_CROSSPOINT_VIEWS: tuple[Mapping[str, Any], ...] = (
    {"name": "normalize_unit_sphere"},
    {
        "name": "two_views",
        "each": [
            {"name": "scale", "low": 0.5, "high": 2.0, "isotropic": True},
            {"name": "rotate"},
            {"name": "translate", "max_shift": 0.5, "relative": True},
            {"name": "jitter"},
            {"name": "drop_points"},
        ],
    },
)
_RESIZED: Mapping[str, Any] = {"name": "resize_image", "size_px": 224}
_PICTURES: tuple[Mapping[str, Any], ...] = (_RESIZED, {"name": "normalize_image"})
_CROSSPOINT_PICTURES: tuple[Mapping[str, Any], ...] = (
    _RESIZED,
    {"name": "color_jitter"},
    {"name": "flip_image"},
    {"name": "normalize_image"},
)
_CROSSPOINT_CHANNELS = {
    "dgcnn": AxisSize("points.edges.0.edge.linear.weight", 1, divisor=2),
    "dgcnn_parts": AxisSize("points.levels.edges.0.network.layers.0.linear.weight", 1, divisor=2),
}
_CROSSPOINT_EMBEDDING = {
    "dgcnn": AxisSize("points.embed.linear.weight", 0),
    "dgcnn_parts": AxisSize("points.levels.embed.linear.weight", 0),
}


def _crosspoint(points: str, images: str | None = None) -> PublishedModel:
    """Describe a pre-trained point encoder with its projection head, alone or with an image encoder with its own."""
    both = images is not None
    return PublishedModel(
        model="crosspoint" if both else "intrapoint",
        num_classes=None,
        in_channels=_CROSSPOINT_CHANNELS[points],
        encoders={"points": points, **({"images": images} if images is not None else {})},
        from_shapes={
            "points.embedding": _CROSSPOINT_EMBEDDING[points],
            "embedding": AxisSize("points_head.3.weight", 0),
            "hidden": AxisSize("points_head.0.weight", 0),
        },
        assumed={"points.num_neighbours": 15},
        losses=({"name": "intra_modal"}, *(({"name": "cross_modal"},) if both else ())),
        evaluate=(*_CROSSPOINT_VIEWS, *(_PICTURES if both else ())),
        trains=(*_CROSSPOINT_VIEWS, *(_CROSSPOINT_PICTURES if both else ())),
        protocol=_PAIRS,
        has_image_file=both,
    )


_CROSSPOINT: Mapping[str, PublishedModel] = {
    "crosspoint_cls": _crosspoint("dgcnn"),
    "crosspoint_cls_resnet18": _crosspoint("dgcnn", "resnet18"),
    "crosspoint_cls_resnet50": _crosspoint("dgcnn", "resnet50"),
    "crosspoint_parts": _dgcnn_points("dgcnn_parts", "head.4", _PARTS, num_neighbours=40),
    "crosspoint_seg": _crosspoint("dgcnn_parts"),
    "crosspoint_seg_resnet18": _crosspoint("dgcnn_parts", "resnet18"),
    "crosspoint_seg_resnet50": _crosspoint("dgcnn_parts", "resnet50"),
}


def _image_classifier(encoder: str, **from_shapes: AxisSize | ImageSide) -> PublishedModel:
    return PublishedModel(
        model="image_classifier",
        num_classes=AxisSize("head.weight", 0),
        in_channels=None,
        encoders={"images": encoder},
        from_shapes={f"images.{name}": size for name, size in from_shapes.items()},
        evaluate=_PICTURES,
        trains=_PICTURES,
        up_axis=None,
        protocol=_IMAGES,
        keeps_head=False,
    )


def _vit(encoder: str) -> PublishedModel:
    positions, patches = "images.positions", "images.patches.weight"
    return _image_classifier(encoder, size_px=ImageSide(positions, patches), patch_px=AxisSize(patches, 2))


_IMAGE_NETWORKS: Mapping[str, PublishedModel] = {
    "timm_vit_base": _vit("vit_base"),
    "timm_vit_small": _vit("vit_small"),
    "timm_vit_tiny": _vit("vit_tiny"),
    "darknet_darknet53": _image_classifier("darknet53"),
    "odtask_darknet53": dataclasses.replace(_image_classifier("darknet53"), assumed={"images.slope": 0.01}),
    **{f"torchvision_{name}": _image_classifier(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
}

_FIXED_CUBE = ({"name": "place_cube"}, {"name": "voxelize"}, {"name": "draw_heatmaps"})
_VARIED_CUBE = (
    {"name": "place_cube", "scale": [0.8, 1.2], "max_angle_rad": 0.698, "max_shift": 4.0},
    {"name": "voxelize"},
    {"name": "draw_heatmaps"},
)
_HANDS = PublishedProtocol("pose", "msra_hands", ({"name": "joint_error"},), "mean_error_mm", 16, {})

_VOLUMES: Mapping[str, PublishedModel] = {
    "dragonbook_v2v": PublishedModel(
        model="v2v",
        num_classes=None,
        in_channels=None,
        num_joints=AxisSize("output.weight", 0),
        losses=({"name": "heatmap_mse"},),
        evaluate=_FIXED_CUBE,
        trains=_VARIED_CUBE,
        up_axis=None,
        protocol=_HANDS,
        takes_first_points=False,
    )
}

_SEGMENTATION: Mapping[str, PublishedModel] = {
    "antao97_dgcnn_parts": _dgcnn_points("dgcnn_parts", "head.4", _PARTS, num_neighbours=40),
    "antao97_dgcnn_scenes": _dgcnn_points("dgcnn_scenes", "head.2", _SCENES, num_neighbours=20, first_graph="place"),
    "lulutang0608_point_bert_parts": PublishedModel(
        model="point_bert_parts",
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=_POINT_BERT_INPUT,
        from_shapes={"width": _POINT_BERT_WIDTH},
        assumed={"num_groups": 128, "num_centres": (512, 256), **_POINT_BERT_ASSUMED},
        **_point_arguments(_PARTS),
    ),
    "menghaoguo_pct_parts": PublishedModel(
        model="pct_parts",
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=AxisSize("embed.0.linear.weight", 1),
        assumed={"dropout": 0.5},
        **_point_arguments(_PARTS),
    ),
    "yanx27_pointnet2_ssg_parts": _pointnet2_points(
        "pointnet2_parts", _PARTS, num_centres=(512, 128), radii=(0.2, 0.4), num_neighbours=(32, 64)
    ),
    "yanx27_pointnet2_ssg_scenes": _pointnet2_points(
        "pointnet2_scenes",
        _SCENES,
        num_centres=(1024, 256, 64, 16),
        radii=(0.1, 0.2, 0.4, 0.8),
        num_neighbours=32,
    ),
    "yanx27_pointnet_parts": _pointnet_points("pointnet_parts", "embed.0", _PARTS),
    "yanx27_pointnet_scenes": _pointnet_points("pointnet_scenes", "embed", _SCENES),
}

_BONNETAL_PARTS = {"backbone": "backbone.", "segmentation_decoder": "decoder.", "segmentation_head": "head."}
_BONNETAL_CRF = {"segmentation_CRF": "CRF."}


def _range_image(
    model: str, first: str, *, width: str | None = None, parts: Mapping[str, str] | None = None, **assumed: Any
) -> PublishedModel:
    """Describe a range-image network; `first` is the convolution of the input channels, `width` that of the width."""
    return PublishedModel(
        model=model,
        num_classes=AxisSize("head.conv.weight", 0),
        in_channels=AxisSize(f"{first}.conv.weight", 1),
        from_shapes={} if width is None else {"width": AxisSize(f"{width}.conv.weight", 0)},
        assumed=assumed,
        evaluate=({"name": "project"},),
        trains=({"name": "project"},),
        up_axis="z",
        protocol=_SCANS,
        takes_first_points=False,
        parts={} if parts is None else parts,
    )


def _bonnetal(model: str, first: str, *, width: str | None = None) -> PublishedModel:
    return _range_image(model, first, width=width, parts=_BONNETAL_PARTS, dropout=0.01)


def _bonnetal_crf(model: str) -> PublishedModel:
    """Describe a lidar-bonnetal network with CRF; its weights require the CRF as it was published."""
    parts = {**_BONNETAL_PARTS, **_BONNETAL_CRF}
    return _range_image(model, "stem.0", parts=parts, dropout=0.01, crf=True, compat="as_published")


_RANGE_IMAGES: Mapping[str, PublishedModel] = {
    "lidar_bonnetal_darknet21": _bonnetal("rangenet21", "backbone.stem", width="backbone.stem"),
    "lidar_bonnetal_darknet53": _bonnetal("rangenet53", "backbone.stem", width="backbone.stem"),
    "lidar_bonnetal_squeezeseg": _bonnetal("squeezeseg", "stem.0"),
    "lidar_bonnetal_squeezeseg_crf": _bonnetal_crf("squeezeseg"),
    "lidar_bonnetal_squeezesegv2": _bonnetal("squeezesegv2", "stem.0"),
    "lidar_bonnetal_squeezesegv2_crf": _bonnetal_crf("squeezesegv2"),
    "salsanext": _range_image("salsanext", "context.0.shortcut", width="context.0.first", dropout=0.2),
}

MODELS: Mapping[str, PublishedModel] = {
    "antao97_dgcnn_cls": _DGCNN,
    **_CROSSPOINT,
    "dragonbook_v2v": _VOLUMES["dragonbook_v2v"],
    **_IMAGE_NETWORKS,
    **DETECTORS,
    **_RANGE_IMAGES,
    "lulutang0608_point_bert_cls": _POINT_BERT,
    "lulutang0608_point_bert_pretrained": _POINT_BERT,
    "postech_point_transformer_seg": PublishedModel(
        model="point_transformer",
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=AxisSize("stages.0.down.edge.linear.weight", 1),
        assumed={"per": "point", "strides": (1, 4, 4, 4, 4), "num_neighbours": (8, 16, 16, 16, 16)},
        up_axis="z",
        protocol=_SCENES,
    ),
    "qq456cvb_pct_cls": _pct(head_activation="relu", codes_positions=False, min_squared_norm=None),
    "qq456cvb_point_transformer_cls": _dense_transformer("cloud", evaluate=_NORMALISED),
    "qq456cvb_point_transformer_parts": _dense_transformer(
        "point", num_categories=16, evaluate=_subsample(1024), protocol=_PARTS
    ),
    "strawberry_pct_cls": _pct(head_activation="leaky_relu", codes_positions=False, min_squared_norm=1e-3),
    "strawberry_pct_cls_new": _pct(head_activation="leaky_relu", codes_positions=True, min_squared_norm=1e-3),
    "wangyueft_dgcnn_cls": _DGCNN,
    "wangyueft_pointnet": PublishedModel(
        model="pointnet_plain",
        num_classes=AxisSize("head.2.weight", 0),
        in_channels=AxisSize("encode.0.linear.weight", 1),
        from_shapes={"embedding": AxisSize("encode.4.linear.weight", 0)},
        assumed={"dropout": 0.5},
        losses=_SMOOTHED,
    ),
    "yanx27_pointnet2_msg_cls": _pointnet2("pointnet2_msg", last_dropout=0.5),
    "yanx27_pointnet2_ssg_cls": _pointnet2("pointnet2", radii=(0.2, 0.4), num_neighbours=(32, 64)),
    "yanx27_pointnet_cls": PublishedModel(
        model="pointnet",
        num_classes=AxisSize("head.5.weight", 0),
        in_channels=AxisSize("embed.linear.weight", 1),
        assumed={"dropout": 0.4},
        losses=_PENALISED,
        evaluate=_NORMALISED,
    ),
    **_SEGMENTATION,
}
"""Model of every layout in `published.LAYOUTS`."""


def find_layouts(names: Mapping[str, Tensor]) -> list[str]:
    """List the layouts with exactly these published names, except optional and unused ones."""
    return [layout for layout in LAYOUTS if _has_layout(names, layout)]


def _has_layout(names: Mapping[str, Tensor], layout: str) -> bool:
    table, optional = LAYOUTS[layout], OPTIONAL.get(layout)
    unused = unused_names(map(str, names), layout)
    ours = [translate_key(name, layout) for name in map(str, names) if name not in unused]
    if not ours or None in ours:
        return False
    needed = {name for name in table.values() if optional is None or not name.startswith(f"{optional}.")}
    modules = {name if name in needed else str(name).rpartition(".")[0] for name in ours}
    return needed <= modules
