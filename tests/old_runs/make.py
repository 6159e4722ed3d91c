"""Trains the runs that are kept beside this file: `python -m tests.old_runs.make NAME...`.

They were made before the rooms of the package were rebuilt; `detect`, `detect_points`, `segment_lidar`, `search`,
`study` and `packed` (with a quantised run in `work/finetuned`) on 2026-11-24, before the names inside it were changed.
Make them anew only where a figure was wrong: they stand for all runs that users have. No script touches their folders,
nor `nets.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.command import run_here
from tests.processes import ROOT

HERE = Path(__file__).parent
WORK = Path("/tmp/sightline_old_runs")
"""Where searches, packed runs and studies were made: some of their files name it."""
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
    "detect": (
        "detect/synthetic_crowds_retinanet",
        *("model.backbone.width=2", "model.neck.width=8", "model.head.num_convs=1"),
    ),
    "detect_points": (
        "detect/synthetic_crowds_yolox",
        "model={name: detector, backbone: {name: cspdarknet, width: 1}, neck: {name: pafpn}, head: {name: yolox}}",
    ),
    "segment_lidar": (
        "segment/synthetic_lidar_salsanext",
        "model={name: salsanext, width: 2, dropout: 0.1, circular: true}",
        *("data.num_columns=64", "transforms.train.2.width=64", "transforms.evaluate.0.width=64"),
        "optimizer={name: sgd, lr: 0.2}",
    ),
}
_OWN_NETS = ("pose", "centre")
"""The runs whose network is one of `nets.py`."""
_MANY = ("data.train_size=48", "data.test_size=24", "train.batch_size=8")
_FEW = ("data.train_size=4", "data.validation_size=2", "data.test_size=2", "train.batch_size=2")
_SMALL_DETECTION = (
    *("transforms.train.1.height=64", "transforms.train.1.width=96", "transforms.evaluate.0.height=64"),
    *("transforms.evaluate.0.width=96", "schedule.warmup_epochs=0", "optimizer={name: sgd, lr: 0.01}"),
)
_SIZES = {
    "detect": (*_FEW, *_SMALL_DETECTION),
    "detect_points": ("data.train_size=24", *_FEW[1:], *_SMALL_DETECTION, "task.score=0.001"),
    "segment_lidar": ("data.train_size=32", "data.test_size=2", "train.batch_size=2"),
}
_SMALL = (
    *("train.epochs=2", "evaluate.every=1"),
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
        given = (ROOT / f"configs/{config}.yaml", *_SIZES.get(name, _MANY), *_SMALL, *words)
        done = run_here("train", *given, *plugin_words(name), "--no-check", "--device", "cpu", "--out", run)
        assert done.code == 0, done.err
        shutil.copytree(run / "checkpoints", to / "checkpoints", symlinks=True)
        for file in KEPT:
            shutil.copy(run / file, to / file)
        _strip_record(run / "environment.json", to / "environment.json")
        if name in _OWN_NETS:
            shutil.copytree(run / "plugins", to / "plugins")


SEARCH = ("--ratio", 0.2, "--calibration", 8, "--bits", "2,4,8", "--device", "cpu")
STUDY = ("--arm", "slow=optimizer.lr=1e-4", "--arm", "fast=optimizer.lr=1e-2", "--seeds", 2, "train.epochs=1")


def search_words(run: Path, out: Path) -> tuple[object, ...]:
    """A search by two methods for a run, or its repetition from the record in `out`."""
    return ("compress", "search", run, *SEARCH, "--method", "uniform,random", "max_evaluations=40", "--out", out)


def packing_words(run: Path, out: Path) -> tuple[object, ...]:
    """A run searched, trained further with the float one as teacher, and packed."""
    tuning = ("--epochs", 1, "train.steps=2", "checkpoint.keep_last=1", "--batch-norm", 2)
    return ("compress", run, *SEARCH, "--method", "uniform", *tuning, "--out", out)


def study_words(out: Path) -> tuple[object, ...]:
    """Two arms of two seeds each, on the config of the run `centre`."""
    config = HERE / "centre" / "config.yaml"
    return ("study", config, *plugin_words("centre"), *STUDY, "checkpoint.keep_last=1", "--device", "cpu", "--out", out)


def make_folder(name: str, to: Path) -> None:
    """The search, the packed run with its fine-tuning, or the study, without what tells of the machine."""
    shutil.rmtree(WORK, ignore_errors=True)
    run = Path(shutil.copytree(HERE / "classify", WORK / "classify", symlinks=True))
    out = WORK / name
    words = {"search": search_words(run, out), "packed": packing_words(run, out), "study": study_words(out)}[name]
    done = run_here(*words)
    assert done.code == 0, done.err
    for path in [*out.rglob("sessions.jsonl"), *out.rglob("train.log"), *out.rglob("findings.json")]:
        path.unlink()
    for folder in out.rglob("predictions"):
        shutil.rmtree(folder)
    for path in out.rglob("environment.json"):
        _strip_record(path, path)
    shutil.copytree(out, to, symlinks=True)
    shutil.rmtree(WORK)


def _strip_record(source: Path, target: Path) -> None:
    """Versions and plugins alone of `environment.json`."""
    record = json.loads(source.read_text())
    kept = {"versions": record["versions"], "plugins": [each | {"path": PLUGIN.name} for each in record["plugins"]]}
    target.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        (make if name in RUNS else make_folder)(name, HERE / name)
