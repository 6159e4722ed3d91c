"""One edit a row that breaks its feature and raises nothing: a value changes, and the row must turn red."""

from __future__ import annotations

from tests.mission.trial import Edit

__all__ = ["MUTANTS", "UNBREAKABLE"]

MUTANTS: dict[str, Edit] = {
    # --- clouds: S0.1 to S0.18
    # --- clouds: S0.19 to S0.35
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
    # --- pedestrians: S3
    "S3.4": Edit(
        "areas/detect/sets/coco.py",
        'return xywh_to_xyxy(annotation["bbox"])',
        'return tuple(float(number) for number in annotation["bbox"])',
    ),
    # --- scans: S4
}
"""Edits by the numbers of rows; `python -m tests.mission --mutants` applies each to a copy of the package."""

UNBREAKABLE: dict[str, str] = {}
"""Rows that no edit of the package breaks in silence, each with the reason."""
