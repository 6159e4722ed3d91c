"""Names of CrossPoint's published weights in terms of ours: the point branch alone, or with an image branch."""

from __future__ import annotations

from collections.abc import Mapping

from sightline.models.published.published_images import residual_network
from sightline.models.published.published_segmentation import ANTAO97_DGCNN_PARTS

__all__ = ["CROSSPOINT_LAYOUTS", "CROSSPOINT_UNUSED", "IMAGE_PREFIX", "POINT_PREFIX"]

POINT_PREFIX = "point_model."
IMAGE_PREFIX = "img_model."
"""Prefixes of the names if both branches are one state, as in their training script."""

_NUM_EDGES = 4
_SEGMENTATION_ALONE = ("conv7", "conv8", "conv9", "conv10", "conv11", "bn7", "bn8", "bn9", "bn10")


def _head(ours: str) -> dict[str, str]:
    return {f"inv_head.{index}": f"{ours}.{index}" for index in (0, 1, 3)}


_CLS = {
    **{f"conv{i + 1}.0": f"points.edges.{i}.edge.linear" for i in range(_NUM_EDGES)},
    **{f"conv{i + 1}.1": f"points.edges.{i}.edge.norm" for i in range(_NUM_EDGES)},
    **{f"bn{i + 1}": f"points.edges.{i}.edge.norm" for i in range(_NUM_EDGES)},
    "conv5.0": "points.embed.linear",
    "conv5.1": "points.embed.norm",
    "bn5": "points.embed.norm",
    **_head("points_head"),
}
_SEG = {
    **{
        theirs: f"points.{ours}"
        for theirs, ours in ANTAO97_DGCNN_PARTS.items()
        if theirs.split(".")[0] not in _SEGMENTATION_ALONE
    },
    **_head("points_head"),
}
_DEPTHS = {"resnet18": ((2, 2, 2, 2), 2), "resnet50": ((3, 4, 6, 3), 3)}


def _both(points: Mapping[str, str], network: str) -> dict[str, str]:
    depths, num_convolutions = _DEPTHS[network]
    images = residual_network(f"{IMAGE_PREFIX}resnet.", "images.", depths, num_convolutions)
    return {
        **{f"{POINT_PREFIX}{theirs}": ours for theirs, ours in points.items()},
        **images,
        **{f"{IMAGE_PREFIX}{theirs}": ours for theirs, ours in _head("images_head").items()},
    }


CROSSPOINT_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "crosspoint_cls": _CLS,
    "crosspoint_parts": ANTAO97_DGCNN_PARTS,
    "crosspoint_seg": _SEG,
    **{
        f"{layout}_{network}": _both(points, network)
        for layout, points in (("crosspoint_cls", _CLS), ("crosspoint_seg", _SEG))
        for network in _DEPTHS
    },
}
"""Per published layout: their module -> our module, as `published.LAYOUTS`. Two branches come in two files."""

_NORMS_OF_THE_HEAD = tuple(f"bn{number}.*" for number in range(7, 11))

CROSSPOINT_UNUSED: Mapping[str, tuple[str, ...]] = {
    "crosspoint_parts": ("inv_head.*",),
    "crosspoint_seg": _NORMS_OF_THE_HEAD,
    **{f"crosspoint_seg_{name}": tuple(f"{POINT_PREFIX}{each}" for each in _NORMS_OF_THE_HEAD) for name in _DEPTHS},
}
"""Batch norms of an unused head in pre-training, and an unused projection in fine-tuning."""
