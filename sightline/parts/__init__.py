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
        "losses.contrast": "cross_modal intra_modal",
        "losses.feature_transform": "feature_transform_penalty",
    },
    "metrics": {
        "metrics.accuracy": "accuracy",
        "metrics.calibration": "calibration",
        "metrics.iou": "iou",
        "metrics.part_iou": "part_iou",
    },
    "models": {
        "models.image_classifier": "image_classifier",
        "models.ptv3": "ptv3",
        "models.voxel_unet": "minkunet spunet",
    },
    "public": {
        "boxes.assigner": "Assigner Assignment PriorPredictions",
        "boxes.padded": "PaddedBoxes",
        "boxes.suppression": "Suppression SuppressionResult",
        "losses.contrast": "PairLoss",
        "tasks.supervised": "Supervised",
    },
    "rules": {"voxels.rules": "cross-sample-leak voxel-grid"},
    "task_wrappers": {"tasks.distillation": "teacher"},
    "tasks": {
        "tasks.classification": "classify",
        "tasks.segment": "segment",
    },
    "transforms": {
        "transforms.colours": (
            "center_colors chromatic_auto_contrast chromatic_jitter chromatic_translation hue_saturation"
        ),
        "transforms.elastic": "elastic",
        "transforms.images": "color_jitter flip_image normalize_image resize_image",
        "transforms.mixed_scenes": "mix_scenes",
        "transforms.point_selection": "drop_points farthest_points sample_points shuffle_points",
        "transforms.points": "clip_points flip jitter normalize_unit_sphere rotate scale translate",
        "transforms.two_views": "two_views",
        "transforms.views": "views",
    },
    "view_summaries": {"boxes.assignment_report": "summarise_assigners"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
