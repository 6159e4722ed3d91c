"""Detection in images: data sets with boxes, networks, assigners, losses, metrics, and the pages of their errors."""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "assigners": {
        "assigners.optimal_transport": "ota simota",
        "assigners.static": "atss fcos free_anchor max_iou",
    },
    "backbones": {"networks": "cspdarknet darknet53 resnet101 resnet18 resnet34 resnet50"},
    "checks": {"checks": "anchor-coverage broken-boxes ignored-regions decoded-boxes swapped-canvas unmatched-boxes"},
    "data": {
        "sets.coco": "coco",
        "sets.crowdhuman": "crowdhuman",
        "sets.people": "citypersons ecp widerperson",
        "sets.synthetic_crowds": "synthetic_crowds",
        "sets.yolo_txt": "yolo_txt",
    },
    "descriptions": {"anchor_coverage": "describe_anchors"},
    "file_views": {"photo_view": "view_photo"},
    "heads": {"heads": "atss fcos retina retina_emd yolov3 yolox"},
    "losses": {
        "free_anchor_losses": "free_anchor_negative free_anchor_positive",
        "losses": "box_density box_iou_bce box_overlap box_smooth_l1 centreness class_bce earth_mover objectness "
        "quality_focal sigmoid_focal",
    },
    "metrics": {
        "metrics.box_ap": "box_ap",
        "metrics.box_errors": "box_errors",
        "metrics.crowds": "crowd_ap miss_rate",
    },
    "models": {"networks": "detector"},
    "necks": {
        "networks": "fpn pafpn",
        "heads": "yolov3",
    },
    "prediction_writers": {"box_results": "DetectionWriter"},
    "predictors": {"predictor": "detect"},
    "scorings": {"scoring": "BoxScoring"},
    "tasks": {"task": "detect"},
    "tools": {"sets.convert": "LAYOUTS convert_annotations"},
    "transforms": {"transforms": "cut_image fit_image mix_up mosaic scale_steps turn_image"},
    "view_summaries": {"assigners.report": "summarise_assigners"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
