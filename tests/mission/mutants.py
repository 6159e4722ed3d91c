"""One edit a row that breaks its feature and raises nothing: a value changes, and the row must turn red."""

from __future__ import annotations

from tests.mission.trial import Edit

__all__ = ["MUTANTS", "UNBREAKABLE"]

MUTANTS: dict[str, Edit] = {
    # --- clouds: S0.1 to S0.18
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

UNBREAKABLE: dict[str, str] = {
    "S0.19": "Makefile, pyproject.toml and constraints.txt install it: no file of the package has a part in it",
}
"""Rows that no edit of the package breaks in silence, each with the reason."""
