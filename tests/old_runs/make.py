"""Trains the runs that are kept beside this file: `python -m tests.old_runs.make`.

They were made before the rooms of the package were rebuilt. Make them anew only where a figure was wrong: they stand
for all runs that users have.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from tests.command import run_here
from tests.processes import ROOT

HERE = Path(__file__).parent
PLUGIN = HERE / "nets.py"
_TINY = "widths: [8, 16], strides: [1, 4], num_neighbours: [4, 4], num_blocks: [1, 1]"
_CUBE = (
    "transforms.train=[{name: place_cube, size: 16, max_shift: 1.0}, {name: voxelize}, {name: draw_heatmaps}]",
    "transforms.evaluate=[{name: place_cube, size: 16}, {name: voxelize}, {name: draw_heatmaps}]",
)
RUNS = {
    "classify": (
        "classify/synthetic_shapes_pointnet",
        "model={name: pointnet_plain, embedding: 16}",
        "losses=[{name: cross_entropy}]",
        "data.num_points=64",
        "optimizer={name: sgd, lr: 0.05}",
    ),
    "segment_parts": (
        "segment/synthetic_shapes_point_transformer",
        f"model={{name: point_transformer, {_TINY}}}",
        "data.num_points=64",
        "train.ema_decay=0.9",
    ),
    "segment_rooms": (
        "segment/synthetic_rooms_point_transformer",
        f"model={{name: point_transformer, {_TINY}}}",
        "data.points_per_m2=10",
        "transforms.train.5.max_points=512",
    ),
    "contrast": (
        "contrast/synthetic_shapes_intrapoint_parts",
        f"model={{name: intrapoint, points: {{name: point_transformer, {_TINY}}}, embedding: 16, hidden: 16}}",
        "data.num_points=64",
    ),
    "pose": ("pose/synthetic_hands_v2v_small", "model={name: tiny_volumes}", *_CUBE, "train.precision=float32"),
    "centre": ("pose/synthetic_hands_scale_net", "model={name: tiny_offset}"),
}
_OWN_NETS = ("pose", "centre")
"""The runs whose network is one of `nets.py`."""
_SMALL = (
    *("data.train_size=48", "data.test_size=24", "train.epochs=2", "train.batch_size=8", "evaluate.every=1"),
    *("checkpoint.every=1", "checkpoint.keep_last=2", "log.tensorboard=false", "train.tail=drop"),
)
KEPT = ("config.yaml", "facts.json", "inputs.json", "metrics.jsonl", "final.json")


def plugin_words(name: str) -> tuple[object, ...]:
    """`--plugin nets.py` for the runs that were made with it."""
    return ("--plugin", PLUGIN) if name in _OWN_NETS else ()


def make(name: str, to: Path) -> None:
    """A run of two epochs with the checkpoints of both, without what tells of the machine."""
    config, *words = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        given = (ROOT / f"configs/{config}.yaml", *_SMALL, *words)
        done = run_here("train", *given, *plugin_words(name), "--no-check", "--device", "cpu", "--out", run)
        assert done.code == 0, done.err
        shutil.copytree(run / "checkpoints", to / "checkpoints", symlinks=True)
        for file in KEPT:
            shutil.copy(run / file, to / file)
        record = json.loads((run / "environment.json").read_text())
        kept = {"versions": record["versions"], "plugins": [each | {"path": PLUGIN.name} for each in record["plugins"]]}
        (to / "environment.json").write_text(json.dumps(kept, indent=2) + "\n")
        if name in _OWN_NETS:
            shutil.copytree(run / "plugins", to / "plugins")


if __name__ == "__main__":
    for name in RUNS:
        make(name, HERE / name)
