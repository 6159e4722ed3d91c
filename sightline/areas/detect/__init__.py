"""Detection in images: data sets with boxes, networks, assigners, losses, metrics, and tables of their errors.

The way from a config to detections, for a reader of this folder (B images, P priors, K classes). Names of other rooms
come with their guarantee, so that their files need not be opened.

1. Parts. A block `head: {name: fcos, num_convs: 2}` is the class under that name in `PARTS` of this area, or of a room
   below it (`flip_image`, `greedy`), called with the other keys as keyword arguments; `weight` of a loss (1) is not one
   of them. The registry adds facts that a constructor names: of the data (`num_classes`), and of the part before it
   (`channels` and `strides` of the backbone for the neck, of the neck for the head). A config with `base` has the keys
   of that file, replaced where it states them again; of two blocks with different names the new one alone counts, and
   a list replaces a list.
2. Data. A set of `sets/`, whose labels a format of `store/boxes` reads, gives `image` (H, W, 3), colours of 0 to 255;
   `boxes` (G, 4), left, top, right, bottom in pixels; `label` (G,); `is_ignored` (G,), regions that are neither a
   target nor a mistake; `truth` (T, 7), the labels that metrics read: box in pixels of the file, class, area, is
   ignored. Transforms move image and boxes together, and `to_canvas` (2, 3) records how; they take a batch of one
   sample, and the last one makes `image` (1, 3, H, W), normalised. A batch stacks images and concatenates boxes: those
   of image b are the rows `box_offsets[b]` to `box_offsets[b + 1]`.
3. A step, `engine/step.py`. `train.batch_size` samples are divided among `train.micro_batches` and the processes.
   `prepare_step` calls the task's `prepare`, of its base class `parts.tasks.supervised`: it calls `Detect.context`
   (`task.py`) for each micro-batch, without gradient, then `count` of each loss, and adds up the counts of all
   micro-batches and processes. `Step.loss_sums` calls `losses`: the network's forward, and the forward of each loss,
   each with those keys of batch, outputs and context that its signature names. The loop differentiates the sum over
   losses of weight x loss / count (1 for a count of 0), adds up the gradients of all micro-batches and processes, and
   updates once: no division of the batch changes the step, but for batch norms.
4. Priors and targets. `make_points` lays one point on the middle of each cell, `make_anchors` boxes around it, for
   every level, finest first (`ops.boxes.priors`); `Priors.level_slices` are the rows of each level. The
   assigner gives each prior the index of its box, -1 for background, -2 to be ignored (`assigner.py`: its base).
5. Network, `networks.py`. `Detector` calls backbone, neck and head: one map (B, C, H / stride, W / stride) per level,
   then `logits` (B, P, K) before the sigmoid, `codes` (B, P, 4), and of FCOS `centreness` (B, P), in the order of the
   priors. `decode_boxes(priors, codes)` (`ops.boxes.codes`) makes boxes: codes are distances in pixels
   to the four sides from a point (P, 2), or shifts and logarithms of sizes relative to an anchor (P, 4).
6. Losses, `losses.py`. `target` (B, P), `matched_boxes` (B, P, 4) and `priors` come from the context.
   `find_positive(target)` returns the image and prior of each target that is not negative. The centre-ness of a point
   in its box is sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)); GIoU is IoU - (hull - union) / hull.
7. Detections, `output.py`. `Detect.postprocess` decodes with `DetectionFilter`, keeps what the `suppression` keeps,
   and maps boxes back to the file. Greedy suppression keeps a box if no box of
   its class (of any class without `per_class`) that was kept and scores higher has an IoU above `iou_threshold` with
   it; equal scores count in the order of priors. Metrics of `metrics/` read `detections` and `truth` of all images,
   of the validation part while training and of the test part, with the last weights, at the end. `predictor.py` does
   the same for photos without labels.
"""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "assigners": {
        "fcos": "atss fcos",
        "free_anchor": "free_anchor",
        "ota": "ota",
        "retinanet": "max_iou",
        "yolo": "simota",
    },
    "backbones": {"networks": "resnet101 resnet18 resnet34 resnet50", "yolo": "cspdarknet darknet53"},
    "data": {
        "sets.formats": "coco cvat kitti_boxes label_studio labelme supervisely tensorflow_csv via voc wider_face "
        "yolo_txt",
        "sets.people": "citypersons crowdhuman ecp widerperson",
        "sets.synthetic_crowds": "synthetic_crowds",
    },
    "file_views": {"predictor": "view_photo"},
    "heads": {"fcos": "atss fcos", "retinanet": "retina retina_emd", "yolo": "yolov3 yolox"},
    "losses": {
        "free_anchor": "free_anchor_negative free_anchor_positive",
        "losses": "box_density box_iou_bce box_overlap box_smooth_l1 centreness class_bce earth_mover objectness "
        "sigmoid_focal",
        "transformers_detector": "set_class set_corners set_distillation set_giou set_l1",
    },
    "metrics": {
        "metrics.box_ap": "box_ap",
        "metrics.box_errors": "box_errors",
        "metrics.crowds": "crowd_ap miss_rate",
    },
    "models": {"networks": "detector", "transformers_detector": "transformers_detector"},
    "necks": {"networks": "fpn", "yolo": "pafpn yolov3"},
    "prediction_writers": {"scoring": "DetectionWriter"},
    "predictors": {"predictor": "detect"},
    "public": {
        "assigner": "Assigner Assignment PriorPredictions",
        "losses": "encode_deltas",
        "output": "Suppression",
    },
    "rules": {
        "evaluation_rules": "box-evaluation box-protocol",
        "rules": "anchor-coverage augmentation-mismatch broken-boxes decoded-boxes ignored-regions level-order "
        "loss-normaliser prior-bias swapped-canvas unmatched-boxes",
    },
    "scorings": {"scoring": "BoxScoring"},
    "suppressions": {"output": "adaptive greedy set soft_gaussian soft_linear"},
    "tasks": {"set_task": "detect_set", "task": "detect"},
    "transforms": {
        "combined_images": "mix_up mosaic",
        "transforms": "cut_image fit_image scale_steps turn_image",
    },
    "view_summaries": {"pictures": "summarise_assigners"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`).

A paper is its own file, with its head and its assignment of boxes: `retinanet.py`, `fcos.py` (with ATSS), `yolo.py`
(YOLOv3 and YOLOX with SimOTA: the backbones and necks, too), `ota.py`, `free_anchor.py`; then `losses.py`, and
`output.py`, which decodes. `transformers_detector.py` wraps the detectors of a library, which have no priors, and
`set_task.py` is their task. ResNets and the feature pyramid of RetinaNet and FCOS are in `networks.py`.
"""
