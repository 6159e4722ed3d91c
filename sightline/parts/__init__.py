"""Losses, metrics, transforms, models and tasks that areas share."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "image_encoders": {
        "models.darknet": "darknet53",
        "models.resnet": "resnet101 resnet18 resnet34 resnet50",
        "models.vit": "vit vit_base vit_small vit_tiny",
    },
    "losses": {
        "losses.classification": "cross_entropy distillation lovasz_softmax",
        "losses.embeddings": "cross_modal feature_transform_penalty intra_modal",
    },
    "metrics": {
        "metrics.labels": "accuracy iou iou_by_distance pixel_iou",
        "metrics.part_iou": "part_iou",
    },
    "models": {"models.resnet": "image_classifier"},
    "public": {"losses.embeddings": "PairLoss", "tasks.supervised": "Supervised"},
    "task_wrappers": {"tasks.distillation": "teacher"},
    "tasks": {
        "tasks.segment": "segment",
        "tasks.supervised": "centre classify pose",
    },
    "transforms": {
        "transforms.images": "chromatic_auto_contrast chromatic_jitter chromatic_translation color_jitter flip_image "
        "hue_saturation normalize_image resize_image",
        "transforms.point_selection": "crop_depth drop_points farthest_points sample_points shuffle_points",
        "transforms.points": "elastic flip jitter normalize_unit_sphere rotate scale translate two_views",
    },
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
