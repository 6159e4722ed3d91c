"""Small finished runs, one a task: trained once a session, by the worker that asks first, and copied by each file."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.boxes3d.vehicles import train_by_heart
from tests.command import succeed
from tests.data.clouds import modelnet_writers, shapenet_render_writers
from tests.probe.contrast import THIN, train_thin
from tests.processes import ROOT, launched_as_forks
from tests.runs.poses import train_pose
from tests.runs.segments import make_parts, make_scenes
from tests.runs.small import SMALL

__all__ = ["BOXES3D", "DETECT", "LIDAR", "RUNS", "break_off", "copy_run", "trained_run"]

CONFIGS = ROOT / "configs"
DETECT = (
    *("data.train_size=8", "data.validation_size=4", "data.test_size=6"),
    *("model.backbone.width=8", "model.neck.width=16", "model.head.num_convs=1"),
    *("train.batch_size=4", "optimizer={name: adam, lr: 0.003}", "task.score=0.02"),
)
LIDAR = (
    *("data.train_size=8", "data.test_size=4", "data.num_columns=64", "train.precision=float32"),
    *("transforms.train.2.width=64", "transforms.evaluate.0.width=64"),
)
_BLOCKS = "{num_layers: 1, width: 8, stride: 2, up_width: 8, up_stride: %d}"
BOXES3D = (
    *("data.train_size=8", "data.validation_size=4", "data.test_size=6", "data.num_columns=128"),
    *("model.pillar_m=[0.64,0.64]", "model.max_pillars=2000", "model.encoder_widths=[8]", "task.score=0.005"),
    f"model.blocks=[{_BLOCKS % 1}, {_BLOCKS % 2}]",
)
_NO_CHECK = ("--no-check", "--device", "cpu", "--out")


def train_classify(folder: Path) -> Path:
    """PointNet after an epoch on a few solids of 32 points, of which evaluation takes 24."""
    cuts = [cut for cut in SMALL if not cut.startswith("train.epochs")]
    words = ("train.epochs=1", "transforms.evaluate=[{name: sample_points, num_points: 24, order: first}]")
    succeed("train", CONFIGS / "classify/synthetic_shapes_pointnet.yaml", *cuts, *words, *_NO_CHECK, folder / "run")
    return folder / "run"


def train_plain(folder: Path) -> Path:
    """PointNet without the networks that align, after two epochs of four steps, with a checkpoint of each."""
    sizes = ("data.train_size=48", "data.test_size=24", "data.num_points=64", "train.batch_size=8", "train.epochs=2")
    model = ("model={name: pointnet_plain, embedding: 16}", "losses=[{name: cross_entropy}]")
    steps = ("optimizer={name: sgd, lr: 0.05}", "train.tail=drop", "evaluate.every=1")
    saved = ("checkpoint.every=1", "checkpoint.keep_last=2", "log.tensorboard=false")
    config = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"
    succeed("train", config, *sizes, *model, *steps, *saved, *_NO_CHECK, folder / "run")
    return folder / "run"


def train_rounded(folder: Path) -> Path:
    """PointNet with the input of a layer rounded."""
    policy = "{head.1.weight: {kind: fp32, activation: {bits: 2, range: 0.5, signed: false}}}"
    config = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"
    succeed("train", config, *SMALL, f"compress={{policy: {policy}}}", *_NO_CHECK, folder / "run")
    return folder / "run"


def pack_plain(folder: Path) -> Path:
    """The run `plain`, searched, trained further with the float one as teacher, and packed."""
    search = ("--ratio", 0.2, "--calibration", 8, "--bits", "2,4,8", "--method", "uniform", "--device", "cpu")
    tuning = ("--epochs", 1, "train.steps=2", "checkpoint.keep_last=1", "--batch-norm", 2)
    with mock.patch("sightline.workbench.check.suite.run_quick", return_value=[]):
        succeed("compress", "run", copy_run("plain", folder / "float"), *search, *tuning, "--out", folder / "packed")
    return folder / "packed"


def search_plain(folder: Path) -> Path:
    """The run `plain`, its bits searched by DDPG: 2 or 4 in each layer but 8 in the first and last, and no more."""
    search = ("--method", "ddpg", "--bits", "2,4", "--ratio", 0.15, "--on", "weights", "--protect-ends", 1)
    words = (
        *search,
        "--calibration",
        8,
        "max_evaluations=40",
        "episodes=60",
        "--epochs",
        1,
        "train.steps=2",
        "--device",
        "cpu",
    )
    float_run = copy_run("plain", folder / "float")
    (folder / "words").write_text("\n".join(map(str, words)))
    succeed("compress", "run", float_run, *words, "--stop-after", "search", "--out", folder / "run")
    return folder / "run"


def train_detect(folder: Path) -> Path:
    """RetinaNet after three epochs on eight crowds, with pictures in tensorboard; in float32 on every machine."""
    words = (*DETECT, "train.epochs=3", "log.tensorboard=true", "train.precision=float32", "model.channels_last=false")
    done = succeed("train", CONFIGS / "detect/synthetic_crowds_retinanet.yaml", *words, *_NO_CHECK, folder / "run")
    assert "COCO, IoU 0.50 to 0.95, at most 100 an image and class; full boxes: " in done.out
    return folder / "run"


def train_lidar(folder: Path) -> Path:
    """SalsaNext of two channels after a step on a few scans of 64 columns, a full turn; in float32 on every machine."""
    config = CONFIGS / "segment/synthetic_lidar_salsanext.yaml"
    succeed("train", config, *LIDAR, "model.width=2", "train.steps=1", *_NO_CHECK, folder / "run")
    return folder / "run"


OWN_ENCODER = """
from torch import Tensor, nn

import sightline

_rectify = lambda values: values.relu()  # private, and nothing that can be pickled


class _Layers(nn.Sequential):
    forward = lambda self, values: _rectify(nn.Sequential.forward(self, values))


@sightline.register.point_encoder("own_encoder")
class OwnEncoder(sightline.Encoder):
    feature_width = 16

    def __init__(self, *, in_channels: int) -> None:
        super().__init__()
        self._layers = nn.Sequential(_Layers(nn.Linear(in_channels, 16)), nn.Linear(16, 16))

    def encode(self, *, points: Tensor, features: Tensor | None = None) -> Tensor:
        return self._layers(points).amax(dim=1)
"""


def train_boxes3d(folder: Path) -> Path:
    """PointPillars of few channels after two epochs on eight streets of 128 columns; in float32 on every machine."""
    config = CONFIGS / "boxes3d/synthetic_streets_pointpillars.yaml"
    succeed("train", config, *BOXES3D, "train.epochs=2", "train.precision=float32", *_NO_CHECK, folder / "run")
    return folder / "run"


def train_pair(folder: Path) -> Path:
    """An encoder of a plugin, pre-trained for an epoch by two processes; `log` beside it is what they print."""
    (folder / "own.py").write_text(OWN_ENCODER)
    (folder / "own.yaml").write_text(
        THIN.replace("{name: dgcnn, num_neighbours: 8, embedding: 16}", "{name: own_encoder}").replace("log:", "#")
    )
    words = (
        "--plugin",
        folder / "own.py",
        "log.tensorboard=true",
        "distributed.sync_batch_norm=true",
        "--processes",
        2,
    )
    with launched_as_forks(folder / "log"):
        succeed("train", folder / "own.yaml", *words, *_NO_CHECK, folder / "run")
    return folder / "run"


def train_modelnet(folder: Path) -> Path:
    """The smallest network after a step on eight clouds of ModelNet40's text form, which lie in `set`."""
    source = modelnet_writers.write_layout("text", folder / "source")
    succeed("data", "prepare", "modelnet40", "--from", source, "--to", folder / "set")
    data = (f"data.root={folder / 'set'}", "data.num_points=6", "data.normals=file", "evaluate.select=test")
    network = ("model={name: pointnet_plain, embedding: 16}", "losses=[{name: cross_entropy}]")
    steps = ("train.batch_size=3", "train.steps=1", "loader.workers=0", "log.tensorboard=false")
    config = CONFIGS / "classify/modelnet40_pointnet.yaml"
    succeed("train", config, *data, *network, *steps, *_NO_CHECK, folder / "run")
    return folder / "run"


def train_crosspoint(folder: Path) -> Path:
    """CrossPoint, its branch for parts, after a step on six pairs of clouds and images of 12 pixels a side."""
    source = shapenet_render_writers.write_release(folder / "source")
    succeed("data", "prepare", "shapenet_render", "--from", source, "--to", folder / "set", "size_px=12")
    points = "{name: dgcnn_parts, num_neighbours: 4, embedding: 16}"
    model = f"model={{name: crosspoint, embedding: 16, points: {points}, images: {{name: resnet18}}}}"
    sizes = ("transforms.train.1.size_px=16", "transforms.evaluate.1.size_px=16", "train.batch_size=3")
    steps = ("train.steps=1", "loader.workers=0", "log.tensorboard=false", f"data.root={folder / 'set'}")
    config = CONFIGS / "contrast/shapenet_render_crosspoint_dgcnn_seg.yaml"
    succeed("train", config, model, *sizes, *steps, *_NO_CHECK, folder / "run")
    return folder / "run"


RUNS: dict[str, Callable[[Path], Path]] = {
    "boxes3d": train_boxes3d,
    "classify": train_classify,
    "contrast": train_thin,
    "crosspoint": train_crosspoint,
    "detect": train_detect,
    "lidar": train_lidar,
    "modelnet": train_modelnet,
    "packed": pack_plain,
    "pair": train_pair,
    "parts": make_parts,
    "plain": train_plain,
    "pose": lambda folder: train_pose(folder / "run"),
    "rounded": train_rounded,
    "scenes": make_scenes,
    "searched": search_plain,
    "vehicles": train_by_heart,
}
"""Makes a run and what it needs, a plugin for example, in an empty folder; returns the run."""


def trained_run(name: str) -> Path:
    """The run itself, which all tests of a session share: to be read alone."""
    folder = Path(os.environ["SIGHTLINE_TRAINED_RUNS"])  # set by tests/conftest.py
    folder.mkdir(exist_ok=True)
    made = folder / name
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            part = Path(tempfile.mkdtemp(dir=folder))
            run = RUNS[name](part)
            (part / "name").write_text(run.name)
            os.rename(part, made)
    return made / (made / "name").read_text()


def copy_run(name: str, to: Path) -> Path:
    """Copy a run, with what is beside it, into a folder; returns the copy of the run."""
    run = trained_run(name)
    shutil.copytree(run.parent, to, symlinks=True, dirs_exist_ok=True)
    return to / run.name


def break_off(run: Path) -> None:
    """Leave a run as it was after its checkpoint before the last."""
    first, last = sorted((run / "checkpoints").glob("step_*"))
    shutil.rmtree(last)
    for link in (run / "checkpoints").glob("*"):
        if link.is_symlink():
            link.unlink()
            link.symlink_to(first.name)
    (run / "final.json").unlink()
