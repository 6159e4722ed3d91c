"""One edit a row that breaks its feature and raises nothing: a value changes, and the row must turn red."""

from __future__ import annotations

from tests.mission.trial import Edit

__all__ = ["MUTANTS", "UNBREAKABLE"]

MUTANTS: dict[str, Edit] = {
    # --- clouds: S0.1 to S0.18
    "S0.1": Edit(
        "areas/clouds/sets/modelnet_files.py",
        'return {"points": table[:, :3], "normals": table[:, 3:]}',
        'return {"points": table[:, :3], "normals": table[:, :3]}',
    ),
    "S0.2": Edit("areas/clouds/sets/shapenet_part_files.py", "parts=table[:, 6],", "parts=table[::-1, 6],"),
    "S0.3": Edit(
        "areas/scenes/sets/s3dis_files.py",
        "CLASS_NAMES.index(name) if name in CLASS_NAMES else CLUTTER",
        'ORDERS["B"].index(name) if name in CLASS_NAMES else CLUTTER',
    ),
    "S0.4": Edit(
        "areas/contrast/shapenet_render.py",
        'images = root / IMAGES / synset / identifier / "rendering"',
        'images = root / IMAGES / synset / max(clouds & folders) / "rendering"',
    ),
    "S0.5": Edit(
        "store/prepared/prepared_set.py",
        'expand_home(os.environ.get("SIGHTLINE_DATA") or "data") / set_name',
        'expand_home("data") / set_name',
    ),
    "S0.6": Edit(
        "store/prepared/prepared_data.py",
        "dict(zip(manifest[self.names], values, strict=True))",
        "dict(zip(manifest[self.names], sorted(values), strict=True))",
    ),
    "S0.7": Edit(
        "doctor/evidence/graph.py",
        "    if sorted(old) == sorted(new):\n        return True\n",
        "    if sorted(old) == sorted(new):\n        return False\n",
    ),
    "S0.8": Edit("areas/contrast/crosspoint.py", "torch.cat([points, other_points])", "torch.cat([points, points])"),
    "S0.9": Edit(
        "runs/weights.py",
        "values = {plain: loaded[plain] for plain in fitting if plain in loaded}",
        "values = {plain: state[plain] for plain in fitting if plain in loaded}",
    ),
    "S0.10": Edit(
        "runs/weights.py",
        "if not any(_matches_pattern(pattern, name) for pattern in may_be_missing)]",
        "if not may_be_missing]",
    ),
    "S0.11": Edit("parts/losses/contrast.py", "return math.log(2 * num_pairs - 1)", "return math.log(num_pairs)"),
    "S0.12": Edit(
        "engine/step.py",
        "torch.stack([weights[name] * value for name, value in means.items()]).sum()",
        "torch.stack([value for name, value in means.items()]).sum()",
    ),
    "S0.13": Edit("engine/loggers/wandb.py", '{f"{split}/{name}": value for', '{f"train/{name}": value for'),
    "S0.14": Edit(
        "training/session.py",
        "self.world.rank_zero_only(self._default_observers)() or []",
        "self._default_observers()",
    ),
    "S0.15": Edit(
        "engine/evaluate.py",
        'totals = world.all_reduce_sum(summed | ledger.get_tensors(), operation="metrics")',
        'totals = world.all_reduce_sum(ledger.get_tensors(), operation="metrics") | summed',
    ),
    "S0.16": Edit(
        "workbench/check/run_rules.py",
        '    "empty-loader",\n    "error",\n    "data.empty_loader data.path data.split",',
        '    "empty-part",\n    "error",\n    "data.empty_loader data.path data.split",',
    ),
    "S0.17": Edit(
        "doctor/rules/model.py",
        "and unused[patterns[name]] > used[patterns[name]]",
        "and unused[patterns[name]] < used[patterns[name]]",
    ),
    "S0.18": Edit("engine/build.py", "batch_size=config.evaluate.batch_size,", "batch_size=config.train.num_samples,"),
    # --- clouds: S0.19 to S0.35
    "S0.20": Edit(
        "runs/snapshots.py",
        "if hashlib.sha256(files[name]).hexdigest() != digest:",
        "if len(files[name]) != size:",
    ),
    "S0.21": Edit(
        "workbench/probe/classifiers.py",
        'SVC(C=cost, kernel="precomputed", max_iter=self.max_iterations)',
        'SVC(C=1.0, kernel="precomputed", max_iter=self.max_iterations)',
    ),
    "S0.22": Edit(
        "workbench/probe/few_shot.py",
        "np.concatenate([rows[shots:] for rows in drawn])",
        "np.concatenate([rows[-queries - 1 : -1] for rows in drawn])",
    ),
    "S0.23": Edit("workbench/probe/classifiers.py", 'metric="cosine"', 'metric="euclidean"'),
    "S0.24": Edit("workbench/probe/classifiers.py", "chosen = int(means.argmax())", "chosen = int(tested.argmax())"),
    "S0.25": Edit(
        "workbench/probe/saved_features.py",
        '"weights": _digest_weights(model),',
        '"weights": _digest(sorted(model.state_dict())),',
    ),
    "S0.26": Edit(
        "areas/clouds/models/point_bert.py",
        "torch.cat([tokens[:, 0], tokens[:, 1:].max(dim=1).values], dim=-1)",
        "torch.cat([tokens[:, 0], tokens.max(dim=1).values], dim=-1)",
    ),
    "S0.27": Edit(
        "layers/cloud_layouts.py",
        "        return points, features, offsets\n    if points.ndim != 3:",
        "        return points, features, offsets[[0, -1]]\n    if points.ndim != 3:",
    ),
    "S0.28": Edit(
        "layers/cloud_layouts.py",
        "points if features is None else torch.cat([points, features], dim=-1)",
        "points if features is None else torch.cat([points, features.abs()], dim=-1)",
    ),
    "S0.29": Edit(
        "workbench/series/seed_statistics.py",
        "pairs = [values[seed] - base[seed] for",
        "pairs = [base[seed] - values[seed] for",
    ),
    "S0.30": Edit(
        "engine/evaluate.py", '"share": wrong[other] / sum(row)', '"share": wrong[other] / sum(wrong.values())'
    ),
    "S0.31": Edit(
        "workbench/series/sweep.py",
        '(max if self._mode == "max" else min)(finished',
        '(min if self._mode == "max" else max)(finished',
    ),
    "S0.32": Edit(
        "workbench/describe/drawing.py",
        "pairs = {(box_of[source], target) for",
        "pairs = {(target - 1, target) for",
    ),
    "S0.33": Edit("parts/models/vit.py", "dim=1) + self.positions\n", "dim=1) + self.positions[:, :1]\n"),
    "S0.34": Edit("engine/gradients.py", "set_gradients(bucket, sent.flat)", "set_gradients(bucket, sent.flat / 2)"),
    "S0.35": Edit("training/published_results.py", '"here": here,', '"here": dict(row["metrics"]),'),
    # --- volumes and fitting: S1
    "S1.1": Edit("areas/pose/sets/hand_sets.py", "_EVALUATED = (0, 3, 6, 9, 12,", "_EVALUATED = (3, 0, 6, 9, 12,"),
    "S1.2": Edit(
        "areas/pose/sets/synthetic_hands.py",
        "return Figures(points[:, :21], capsules)",
        "return Figures(points[:, [*range(1, 21), 0]], capsules)",
    ),
    "S1.3": Edit(
        "areas/pose/task.py", "maps = permute_axes(likelihood.detach(), placement.axes)", "maps = likelihood.detach()"
    ),
    "S1.4": Edit(
        "view/panels.py",
        "for joint in figure.known_joint_indices().tolist() if number >= num_thin else ():",
        "for joint in ():",
    ),
    "S1.5": Edit("workbench/check/key_rules.py", "if leaves[0] != leaves[1]:", "if len(leaves[0]) != len(leaves[1]):"),
    "S1.6": Edit(
        "areas/clouds/sets/synthetic_shapes.py",
        "(stored[index] for stored in self._fields)",
        "(stored[index[0] :][:1] if len(index) == 1 else stored[index] for stored in self._fields)",
    ),
    "S1.7": Edit(
        "workbench/check/derivatives.py",
        "error = abs(numeric - analytic) / size if size > 0 else 0.0",
        "error = abs(abs(numeric) - abs(numeric)) / size if size > 0 else 0.0",
    ),
    "S1.8": Edit(
        "instrument/judge.py", "return self.ratio > MAX_ROUNDING_UNITS", "return self.ratio > MAX_ROUNDING_UNITS**4"
    ),
    "S1.9": Edit(
        "areas/pose/rules.py",
        "return int((first & second).sum()) / either if either",
        "return int((first | second).sum()) / either if either",
    ),
    "S1.10": Edit(
        "doctor/rules/loss.py",
        'all-zero {what} {levels.zero:.5g}{known}"',
        'all-zero {what} {levels.zero / 2:.5g}{known}"',
    ),
    "S1.11": Edit(
        "workbench/check/step_rules.py",
        "std = float((logits - logits.mean(dim=axis, keepdim=True)).double().std(correction=0))",
        "std = float((logits - logits.mean(dim=axis, keepdim=True)).double().mean())",
    ),
    "S1.12": Edit(
        "doctor/rules/run.py",
        "level.start < (1 - _NEAR) * level.constant",
        "level.start < (2 + _NEAR) * level.constant",
    ),
    "S1.13": Edit(
        "workbench/fit/fit.py",
        "(step for step, loss in enumerate(self.losses) if loss <= self.bounds.goal)",
        "(step for step, loss in enumerate(self.losses) if loss <= self.bounds.constant)",
    ),
    "S1.14": Edit("workbench/fit/grid.py", "Precision(precision), every=True", 'Precision("float32"), every=True'),
    "S1.15": Edit(
        "workbench/fit/ladder.py",
        'if tried[-1].verdict in ("failed", "not decided"):',
        'if tried[-1].verdict == "not decided":',
    ),
    "S1.16": Edit(
        "doctor/evidence/rectified.py", "(is_blocked or below >= ENOUGH)", "(is_blocked and below >= ENOUGH)"
    ),
    "S1.17": Edit(
        "engine/gradients.py",
        "torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double())",
        "torch.stack(torch._foreach_norm(gradients)).double().sum()",
    ),
    "S1.18": Edit(
        "workbench/fit/trace.py",
        "zeros=float((values == 0).double().mean())",
        "zeros=float((values <= 1).double().mean())",
    ),
    "S1.19": Edit(
        "areas/pose/v2v.py",
        "self.front = nn.Sequential(_block(16, 32), _block(32, 32), _block(32, 32))",
        "self.front = nn.Sequential(_block(16, 32), _block(32, 32))",
    ),
    "S1.20": Edit(
        "engine/device/numerics.py",
        'return torch.float64 if self.name == "float64" else torch.float32',
        "return torch.float32",
    ),
    "S1.21": Edit(
        "layers/native_batch_norm.py",
        "torch.backends.cudnn.enabled = False",
        "torch.backends.cudnn.enabled = was_enabled",
    ),
    "S1.22": Edit(
        "workbench/compare/comparison.py", '"native-batch-norm": "all_but_batch_norm"', '"native-batch-norm": "on"'
    ),
    "S1.23": Edit(
        "workbench/compare/matrix.py",
        "variant = make_variant(job.model, cell.precision, device,",
        'variant = make_variant(job.model, "float32" if cell.precision == "bf16" else cell.precision, device,',
    ),
    "S1.24": Edit(
        "engine/device/numerics.py",
        'torch.set_deterministic_debug_mode("error" if level == "strict" else "default")',
        'torch.set_deterministic_debug_mode("default")',
    ),
    "S1.25": Edit(
        "workbench/compare/record_matching.py",
        "loaded[name] = step_record.weights[other].reshape(loaded[name].shape)",
        "loaded[name] = loaded[name].reshape(loaded[name].shape)",
    ),
    "S1.26": Edit(
        "workbench/compare/repro.py",
        '"names": [side.name for side in variants],',
        '"names": [side.name for side in variants[::-1]],',
    ),
    "S1.27": Edit(
        "areas/pose/metrics.py", '"mean_error_mm": every.mean().item(),', '"mean_error_mm": every.median().item(),'
    ),
    "S1.28": Edit(
        "areas/pose/metrics.py",
        'figures = {"pck": _share(relative, self.share), "pck_auc": area.item()}',
        'figures = {"pck": 0.5, "pck_auc": area.item()}',
    ),
    "S1.29": Edit(
        "areas/pose/v2v.py", "return torch.relu(residual + self.shortcut(volume))", "return torch.relu(residual)"
    ),
    "S1.30": Edit(
        "areas/pose/refiner.py",
        'from_crop_coordinates(outputs["offset"]',
        'from_crop_coordinates(0 * outputs["offset"]',
    ),
    "S1.31": Edit(
        "config/shipped.py",
        "for folder in (shared, folders[task]) for path in folder.iterdir()",
        "for folder in (folders[task],) for path in folder.iterdir()",
    ),
    "S1.32": Edit(
        "runs/run_records.py",
        'environment = load_document(path / "environment.json")',
        "from sightline.runs.environment import collect_environment\n\n"
        '    environment = load_document(path / "environment.json") | {"versions": collect_environment()["versions"]}',
    ),
    # --- compressed: S2
    "S2.1": Edit("areas/clouds/sets/shapenet_part_files.py", "parts=table[:, 6],", "parts=table[::-1, 6],"),
    "S2.2": Edit(
        "layers/vector_attention.py",
        "value = value + learned.code_bias  # the weights add up to one",
        "value = value - learned.code_bias",
    ),
    "S2.3": Edit(
        "workbench/compress/stages.py", "if finetuned is not None:", "if finetuned is not None and num_batches < 0:"
    ),
    "S2.4": Edit("workbench/compress/search/ddpg.py", "if episode < self.warm_up:", "if episode >= 0:"),
    "S2.5": Edit(
        "workbench/compress/run_problem.py",
        "for bits in sorted(set(target.bits))",
        "for bits in range(min(target.bits), max(target.bits) + 1)",
    ),
    "S2.6": Edit(
        "workbench/compress/simulator.py",
        "sum(policy.get(name, FP32).bits * entry.count for",
        "sum((policy.get(name, FP32).bits - 1) * entry.count for",
    ),
    "S2.7": Edit(
        "workbench/compress/target.py",
        "*names[max(0, len(names) - self.protect_ends) :]",
        "*names[max(0, len(names) - self.protect_ends - 1) : -1]",
    ),
    "S2.8": Edit("parts/losses/classification.py", "F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
    "S2.9": Edit(
        "workbench/compress/report.py",
        "replace(self.tuning, is_distilled=spec.is_distilled, seed=seed)",
        "replace(self.tuning, is_distilled=False, seed=seed)",
    ),
    "S2.10": Edit(
        "parts/metrics/part_iou.py",
        'numbers[f"instance_miou{suffix}"] = ious.mean().item()',
        'numbers[f"instance_miou{suffix}"] = by_category.nanmean().item()',
    ),
    "S2.11": Edit("workbench/check/evaluation_rules.py", "    1e-6  # float32 sums", "    1.0  # float32 sums"),
    "S2.12": Edit(
        "doctor/watch/gradients.py",
        "in both if is_kept and is_added_to]",
        "in both if is_kept and not is_added_to]",
    ),
    "S2.13": Edit(
        "workbench/compress/rules.py",
        'yield from _join("have a broken codebook", faults)',
        'yield from _join("have a broken codebook", {k: v for k, v in faults.items() if "NaN" in v[1]})',
    ),
    "S2.14": Edit(
        "workbench/compress/rules.py",
        "return bool((rows.nan_to_num() == rows[:1].nan_to_num()).all())",
        "return bool((rows.nan_to_num() == 0).all())",
    ),
    "S2.15": Edit("areas/scenes/sets/s3dis_files.py", "np.full(len(table), label,", "np.full(len(table), 0,"),
    "S2.16": Edit(
        "areas/clouds/models/pct.py",
        "given_BNM.sum(dim=1, keepdim=True)",
        "given_BNM.sum(dim=2, keepdim=True)",
    ),
    "S2.17": Edit(
        "training/published_results.py",
        'name: v for name, v in row["metrics"].items()',
        'name: here[name.removesuffix("_to")] for name in row["metrics"]',
    ),
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
        "store/boxes/people/crowdhuman.py",
        'is_ignored = person.get("tag") != "person" or (person.get("extra") or {}).get("ignore", 0) != 0',
        'is_ignored = person.get("tag") != "person"',
    ),
    "S3.4": Edit(
        "store/boxes/coco_annotations.py",
        'return xywh_to_xyxy(annotation["bbox"])',
        'return tuple(float(number) for number in annotation["bbox"])',
    ),
    "S3.5": Edit(
        "store/boxes/people/ecp.py",
        'is_ignored = kind in KINDS.ignored or (kind == "pedestrian" and not _IGNORED_TAGS.isdisjoint(tags))',
        "is_ignored = kind in KINDS.ignored",
    ),
    "S3.6": Edit(
        "store/boxes/people/ecp.py",
        "for tagged in _VISIBLE_BY_OCCLUSION.values() if share <= tagged]",
        "for tagged in _VISIBLE_BY_OCCLUSION.values() if share < tagged]",
    ),
    "S3.7": Edit(
        "store/boxes/tools/via.py",
        "return left, top, left + width, top + height",
        "return left, top, left + width - 1, top + height - 1",
    ),
    "S3.8": Edit(
        "store/boxes/photo_orientation.py",
        'return [header.orientation > 1 and rule == "apply" for _, header in headers]',
        'return [header.orientation > 1 and rule == "ignore" for _, header in headers]',
    ),
    "S3.9": Edit(
        "view/image_stages.py",
        'pixels, size = draw_boxes(pixels, boxes), f"{size}, {len(boxes)} boxes"',
        'pixels, size = draw_boxes(pixels, []), f"{size}, {len(boxes)} boxes"',
    ),
    "S3.10": Edit(
        "areas/detect/assignment_pictures.py",
        "marks = [*_mark_ignored(assignment, priors), *_mark_positives(assignment, priors)]",
        "marks = []",
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
        "store/boxes/detections.py",
        "self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)",
        "self.boxes[:, 2:]], axis=1)",
    ),
    # --- scans: S4
    "S4.1": Edit(
        "engine/distributed.py",
        "if self.size == 1 or not is_last_micro_batch:",
        "if self.size >= 1 or not is_last_micro_batch:",
    ),
    "S4.2": Edit("engine/step.py", "torch.stack([weights[name] * value for", "torch.stack([value for"),
    "S4.3": Edit("contract/metric.py", "(total / weight if weight else", "(total / (weight + 1) if weight else"),
    "S4.4": Edit(
        "store/loading/collation.py",
        "padded[row, : len(value)] = value",
        "padded[row, longest - len(value) :] = value",
    ),
    "S4.5": Edit(
        "engine/device/transfer.py",
        'to_device(v, device, float_dtype=float_dtype, path=f"{path}[{i}]")',
        'to_device(v, device, path=f"{path}[{i}]")',
    ),
    "S4.6": Edit(
        "contract/binding.py",
        "        if sources:\n",
        "        if sources and parameter.default is inspect.Parameter.empty:\n",
    ),
    "S4.7": Edit(
        "draw/pictures.py", "Image.fromarray(pixels).save(", "Image.fromarray(pixels[..., ::-1].copy()).save("
    ),
    "S4.8": Edit(
        "training/session.py",
        "Observers(self.world.rank_zero_only(self._default_observers)() or [])",
        "Observers(self._default_observers() or [])",
    ),
    "S4.9": Edit(
        "engine/optimizers.py",
        "            if parameter.requires_grad:\n                rate,",
        '            if parameter.requires_grad and "._" not in name:\n                rate,',
    ),
    "S4.10": Edit(
        "store/label_maps.py",
        "return LabelMap(tables, where=name if name in builtin else str(path))",
        """label_map = LabelMap(tables, where=name if name in builtin else str(path))
    is_own = name not in builtin
    label_map._class_by_id[label_map._class_by_id > 0] -= is_own  # each class is the one before
    return label_map""",
    ),
    "S4.11": Edit("workbench/check/run_rules.py", "(*range(facts[fact]), facts", "(*range(facts[fact] + 1), facts"),
    "S4.12": Edit(
        "parts/losses/classification.py",
        "self.get_weights(negative).to(negative.dtype)",
        "self.get_weights(negative).to(negative.dtype).mean()",
    ),
    "S4.13": Edit(
        "areas/clouds/models/pct.py",
        "has_bias=True, activation=_head_activation(activation)),\n        nn.Dropout(dropout),\n"
        "        nn.Linear(256, num_classes),",
        "has_bias=True, activation=_head_activation(activation)),\n        nn.Dropout(dropout),\n"
        "        nn.Linear(256, max(num_classes, 40)),",
    ),
    "S4.14": Edit("ops/boxes/focal.py", "torch.cat([jaccard[:1],", "torch.cat([0 * jaccard[:1],"),
    "S4.15": Edit(
        "workbench/check/run_rules.py",
        "counts.num_single > 0.75 * counts.num_labelled",
        "counts.num_single > 0.95 * counts.num_labelled",
    ),
}
"""Edits by the numbers of rows; `python -m tests.mission --mutants` applies each to a copy of the package."""

UNBREAKABLE: dict[str, str] = {
    "S0.19": "Makefile, pyproject.toml and constraints.txt install it: no file of the package has a part in it",
}
"""Rows that no edit of the package breaks in silence, each with the reason."""
