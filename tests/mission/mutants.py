"""One edit a row that breaks its feature and raises nothing: a value changes, and the row must turn red."""

from __future__ import annotations

from tests.mission.trial import Edit

__all__ = ["MUTANTS", "UNBREAKABLE"]

MUTANTS: dict[str, Edit] = {
    # --- clouds: S0.1 to S0.18
    # --- clouds: S0.19 to S0.35
    # --- volumes and fitting: S1
    # --- compressed: S2
    # --- pedestrians: S3
    "S3.1": Edit(
        "areas/detect/yolo.py",
        "F.interpolate(self.routes[level](outputs[0]), maps[level].shape[2:])",
        'F.interpolate(self.routes[level](outputs[0]), maps[level].shape[2:], mode="bilinear")',
    ),
    "S3.2": Edit(
        "published/files.py",
        '_DARKNET_ORDER = ("norm.bias", "conv.bias", "norm.weight"',
        '_DARKNET_ORDER = ("norm.weight", "conv.bias", "norm.bias"',
    ),
    "S3.3": Edit(
        "areas/detect/sets/crowdhuman.py",
        'is_ignored = person.get("tag") != "person" or (person.get("extra") or {}).get("ignore", 0) != 0',
        'is_ignored = person.get("tag") != "person"',
    ),
    "S3.4": Edit(
        "areas/detect/sets/coco.py",
        'return xywh_to_xyxy(annotation["bbox"])',
        'return tuple(float(number) for number in annotation["bbox"])',
    ),
    "S3.5": Edit(
        "areas/detect/sets/ecp.py",
        'is_ignored = kind in KINDS.ignored or (kind == "pedestrian" and not _IGNORED_TAGS.isdisjoint(tags))',
        "is_ignored = kind in KINDS.ignored",
    ),
    "S3.6": Edit(
        "areas/detect/sets/ecp.py",
        "for tagged in _VISIBLE_BY_OCCLUSION.values() if share <= tagged]",
        "for tagged in _VISIBLE_BY_OCCLUSION.values() if share < tagged]",
    ),
    "S3.7": Edit(
        "areas/detect/sets/tools/via.py",
        "return left, top, left + width, top + height",
        "return left, top, left + width - 1, top + height - 1",
    ),
    "S3.8": Edit(
        "areas/detect/sets/photo_orientation.py",
        'return [header.orientation > 1 and rule == "apply" for _, header in headers]',
        'return [header.orientation > 1 and rule == "ignore" for _, header in headers]',
    ),
    "S3.9": Edit(
        "view/image_stages.py",
        'pixels, size = draw_boxes(pixels, boxes), f"{size}, {len(boxes)} boxes"',
        'pixels, size = draw_boxes(pixels, []), f"{size}, {len(boxes)} boxes"',
    ),
    "S3.10": Edit(
        "areas/detect/pictures.py",
        "marks=_mark_positives(assignment, priors)",
        "marks=[]",
    ),
    "S3.11": Edit(
        "ops/boxes/overlaps.py",
        "total = area if is_ioa else area + areas[column] - intersection",
        "total = area if is_ioa else max(area, areas[column])",
    ),
    "S3.12": Edit(
        "areas/detect/yolo.py",
        "matched[candidates], num_claims[candidates] = owner, count",
        "num_claims[candidates] = count",
    ),
    "S3.13": Edit(
        "areas/detect/rules.py",
        "avoidable = int((assigned.is_unmatched & (assigned.best_free >= _MIN_IOU)).sum())",
        "avoidable = int((assigned.is_unmatched & (assigned.best_free >= 1 - _MIN_IOU)).sum())",
    ),
    "S3.14": Edit(
        "doctor/evidence/terms.py",
        "kept.append((tensor, tensor.detach().clone()))",
        "kept.append((tensor, tensor.detach()))",
    ),
    "S3.15": Edit(
        "workbench/check/key_rules.py",
        "for _, tensor in array_leaves(each.get(field))] for each in (one, two)",
        "for _, tensor in array_leaves(each.get(field))] for each in (one, one)",
    ),
    "S3.16": Edit(
        "doctor/rules/loss.py",
        "right, wrong = each.right[4.0], each.wrong[4.0]",
        "wrong, right = each.right[4.0], each.wrong[4.0]",
    ),
    "S3.17": Edit(
        "doctor/evidence/terms.py",
        "far / near if near > 0 else 0.0",
        "near / far if far > 0 else 0.0",
    ),
    "S3.18": Edit(
        "areas/detect/rules.py",
        "other, other_count = enlarged[name]",
        "other, other_count = original[name]",
    ),
    "S3.19": Edit(
        "areas/detect/rules.py",
        "if swapped - filled <= _MAX_GAIN:",
        "if filled - swapped <= _MAX_GAIN:",
    ),
    "S3.20": Edit(
        "engine/run_data.py",
        'config.transforms.evaluate if transforms == "evaluate" else ()',
        'config.transforms.evaluate if transforms != "train" else ()',
    ),
    "S3.21": Edit(
        "config/overrides.py",
        "    if not (isinstance(base.value, dict) and isinstance(override.value, dict)):\n        return override",
        "    if not (isinstance(base.value, dict) and isinstance(override.value, dict)):\n"
        "        return base if isinstance(base.value, list) else override",
    ),
    "S3.22": Edit(
        "areas/detect/metrics/box_ap.py",
        '"_small": (0.0, 32.0**2)',
        '"_small": (0.0, 16.0**2)',
    ),
    "S3.23": Edit(
        "areas/detect/networks.py",
        'values = maps[-1] if self.p6_source == "c5" else outputs[-1]',
        'values = maps[-1] if self.p6_source == "c5" else merged[-1]',
    ),
    "S3.24": Edit(
        "ops/boxes/suppression.py",
        "left[other] *= one - overlaps[other] if",
        "left[other] *= one - overlaps[other] * overlaps[other] if",
    ),
    "S3.25": Edit(
        "areas/detect/output.py",
        "thresholds = density.to(boxes).clamp(min=self.iou_threshold)",
        "thresholds = density.to(boxes).clamp(max=self.iou_threshold, min=0)",
    ),
    "S3.26": Edit(
        "areas/detect/rules.py",
        "learned = int(((target >= 0) | (is_inside & (target == BACKGROUND))).sum())",
        "learned = int((target >= 0).sum())",
    ),
    "S3.27": Edit(
        "ops/boxes/overlaps.py",
        "return overlap - _ratio(enclosing - union, enclosing, eps)",
        "return overlap - _ratio(enclosing - union, union, eps)",
    ),
    "S3.28": Edit(
        "layers/attention.py",
        "weights = self.expand(self.reduce(image.mean(dim=(2, 3))).relu()).sigmoid()",
        "weights = self.expand(self.reduce(image.mean(dim=(2, 3)))).sigmoid()",
    ),
    "S3.29": Edit(
        "areas/detect/combined_images.py",
        "shift = torch.tensor([[1, 0, left], [0, 1, top]], dtype=torch.float64)",
        "shift = torch.tensor([[1, 0, top], [0, 1, left]], dtype=torch.float64)",
    ),
    "S3.30": Edit(
        "areas/detect/metrics/box_errors.py",
        "_MATCH_IOU, _BACKGROUND_IOU = 0.5, 0.1",
        "_MATCH_IOU, _BACKGROUND_IOU = 0.5, 0.4",
    ),
    "S3.31": Edit(
        "areas/detect/pictures.py",
        "image = draw_boxes(get_image_pixels(batch, index, pixels), drawn, legend=legend)",
        "image = draw_boxes(get_image_pixels(batch, index, pixels), [], legend=legend)",
    ),
    "S3.32": Edit(
        "parts/tasks/supervised.py",
        '        self.on_phase_end("forward")\n        return self._sums(batch, outputs, context)',
        '        sums = self._sums(batch, outputs, context)\n        self.on_phase_end("forward")\n        return sums',
    ),
    "S3.33": Edit(
        "engine/distributed.py",
        "dist.all_reduce(flat, group=group, async_op=True)",
        "dist.all_reduce(flat.clone(), group=group, async_op=True)",
    ),
    "S3.34": Edit(
        "published/layouts/detectors.yaml",
        "    fpn.P{3..5}_2: neck.outputs.{0..2}.conv",
        "    fpn.P{3..5}_2: neck.outputs.{2..0}.conv",
    ),
    "S3.35": Edit(
        "training/published.json",
        '{"crowd_ap": 0.8188, "mr2": 0.5644, "ji": 0.7316}',
        '{"crowd_ap": 0.8188, "mr2": 0.4644, "ji": 0.7316}',
    ),
    "S3.36": Edit(
        "areas/detect/sets/detections.py",
        "self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)",
        "self.boxes[:, 2:]], axis=1)",
    ),
    # --- scans: S4
}
"""Edits by the numbers of rows; `python -m tests.mission --mutants` applies each to a copy of the package."""

UNBREAKABLE: dict[str, str] = {}
"""Rows that no edit of the package breaks in silence, each with the reason."""
