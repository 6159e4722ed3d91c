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

UNBREAKABLE: dict[str, str] = {}
"""Rows that no edit of the package breaks in silence, each with the reason."""
