"""What notes on a framework of parallel training, and on LiDAR, ask for."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import sightline
from sightline.areas.scans.sets.semantic_kitti import SemanticKitti
from sightline.contract import registry
from sightline.contract.dataset import Dataset
from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.draw.pictures import Picture
from sightline.parts.losses.classification import CrossEntropy
from sightline.store.loading.batch_reader import BatchReader
from tests.command import refuse, succeed
from tests.data.scans.lidar_writers import write_semantic_kitti
from tests.engine.published_weights import registered
from tests.mission.rows import row
from tests.mission.small import CONFIGS, CPU, NETWORK, SOLIDS, document, figures, find_fault, learn, step
from tests.processes import ROOT
from tests.trained import trained_run

_PEBBLES = (
    ROOT / "examples/my_plugin.yaml",
    *("--plugin", ROOT / "examples/my_plugin.py", "--plugin", ROOT / "examples/my_transform.py"),
    *("train.steps=2", "data.train_size=36", "data.test_size=12", "log.tensorboard=false", "--no-check", *CPU),
)
_CLOUDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- the framework ----------------------------------------------------------------------------------------------------


@row("S4.1", "start, train and clean up all processes by one command", "`sightline train CONFIG --processes 2`")
def _one_command(work: Path) -> None:
    run = trained_run("pair")
    assert document(run, "environment.json")["num_processes"] == 2
    assert document(run)["checkpoint"] == "last"
    assert [child for child in multiprocessing.active_children() if child.is_alive()] == []


@row("S4.2", "name model, data, metric and loss in one file", "`sightline train CONFIG`")
def _one_file(work: Path) -> None:
    parts = {
        "task": {"name": "classify"},
        "data": {"name": "synthetic_shapes", "train_size": 24, "test_size": 12, "num_points": 32},
        "model": {"name": "pointnet_plain", "embedding": 16},
        "losses": [{"name": "cross_entropy"}],
        "metrics": [{"name": "accuracy"}],
        "optimizer": {"name": "adam", "lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluate": {"metric": "overall_accuracy", "select": "test"},
    }
    (work / "one.yaml").write_text(yaml.safe_dump(parts))
    succeed("train", work / "one.yaml", "--no-check", *CPU, "--out", work / "run")
    assert set(figures(work / "run")) == {"overall_accuracy", "mean_class_accuracy"}
    assert set(document(work / "run")["losses"]) == {"cross_entropy"}


@row("S4.3", "register own classes", "`sightline train CONFIG --plugin FILE.py`")
def _own_classes(work: Path) -> None:
    succeed("train", *_PEBBLES, "--out", work / "run")
    assert document(work / "run")["data"]["name"] == "pebbles"
    assert set(document(work / "run")["losses"]) == {"focal"}
    assert "top_1_accuracy" in figures(work / "run")


@row(
    "S4.4",
    "batch samples of unequal length, by an own collation or by padding",
    "`Field(collate='pad')`, or a method `collate`",
)
def _collation(work: Path) -> None:
    succeed("train", *_PEBBLES, "--out", work / "run")  # by `Pebbles.collate`
    data = sightline.load_data(
        work / "run", "test", plugins=[ROOT / "examples/my_plugin.py", ROOT / "examples/my_transform.py"]
    )
    lengths = [len(data[index]["points"]) for index in range(12)]
    assert len(set(lengths)) > 3
    assert document(work / "run")["data"]["num_samples"] == 12
    batch = BatchReader(Padded())([SampleKey(index, 0, 0) for index in range(3)])
    assert batch["points"].shape == (3, 3, 3)
    assert batch["points_mask"].sum(1).tolist() == [1, 2, 3]


class Padded(Dataset):
    """Clouds of one, two and three points."""

    def __init__(self) -> None:
        fields = {"points": Field("points 3", "float32", collate="pad"), "label": Field("", "int64")}
        self.info = DataInfo({"num_classes": 1}, fields, {"train": 3})

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: SampleKey) -> Sample:
        return {"points": torch.ones(key.index + 1, 3), "label": torch.tensor(0)}


@row(
    "S4.5",
    "leave moving tensors to the device and its format to the framework",
    "`sightline train CONFIG --device cuda train.precision=float64`",
)
def _moved(work: Path) -> None:
    """No line of the plugin converts anything: its float32 points meet float64 weights."""
    succeed("train", *_PEBBLES, "train.precision=float64", "--out", work / "run")
    assert 0 <= figures(work / "run")["top_1_accuracy"] <= 1


@row("S4.6", "let models and losses take the values of a batch by name", "`def forward(self, *, points, label)`")
def _by_name(work: Path) -> None:
    class Named(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(self, *, logits: Tensor, label: Tensor, sample_index: Tensor) -> Tensor:
            return (logits.logsumexp(1) - logits.gather(1, label[:, None])[:, 0] + 0 * sample_index).sum()

    class Misnamed(Named):
        def forward(self, *, logits: Tensor, lable: Tensor) -> Tensor:
            return logits.sum()

    model = ("model={name: pointnet_plain, embedding: 16}", "evaluate.select=test")
    with registered(registry.losses, named=Named, misnamed=Misnamed):
        run = learn("classify/synthetic_shapes_pointnet", work / "run", *SOLIDS, *model, "losses=[{name: named}]")
        error = refuse("train", _CLOUDS, *SOLIDS, *model, "losses=[{name: misnamed}]", "--out", work / "never")
    assert document(run)["losses"]["named"] > 0
    assert "needs 'lable'" in error
    assert "label" in error.replace("lable", "")


@row("S4.7", "log pictures from metrics", "method `pictures` of a metric")
def _pictures(work: Path) -> None:
    class Drawn(MeanMetric):
        figures = ("drawn",)
        higher_is_better = True

        def values(self, *, logits: Tensor, label: Tensor) -> Tensor:
            return (logits.argmax(1) == label).float()

        def pictures(self, state: object) -> list[Picture]:
            return [Picture("own_picture", np.full((8, 8, 3), 128, dtype=np.uint8))]

    with registered(registry.metrics, drawn=Drawn):
        words = (*SOLIDS, *NETWORK, "metrics=[{name: drawn}]", "evaluate={metric: drawn, select: test}")
        run = learn("classify/synthetic_shapes_pointnet", work / "run", *words)
    assert (run / "predictions/own_picture.png").exists()


@row(
    "S4.8",
    "have loggers opened after the start, by the first process alone",
    "`sightline train CONFIG --processes 2 log.tensorboard=true`",
)
def _loggers(work: Path) -> None:
    run = trained_run("pair")
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "train.log").read_text().count("validation at step 4") == 1


@row(
    "S4.9",
    "use private names and unpicklable parts without breaking the start",
    "`sightline train CONFIG --plugin FILE.py --processes 2`",
)
def _private_names(work: Path) -> None:
    run = trained_run("pair")
    (plugin,) = (run / "plugins").glob("*.py")
    assert "_rectify = lambda" in plugin.read_text()
    model = sightline.load_run(run, plugins=[run.parent / "own.py"]).model
    assert "_Layers" in [type(module).__name__ for module in model.modules()]


# --- scans ------------------------------------------------------------------------------------------------------------


@row(
    "S4.10",
    "map sparse ids of labels, up to 255, to classes",
    "`sightline data prepare semantic_kitti --from PATH --to DIR`, `data.label_map=FILE`",
)
def _sparse_ids(work: Path) -> None:
    scans = write_semantic_kitti(work / "in", {"00": 2, "08": 1})
    succeed("data", "prepare", "semantic_kitti", "--from", work / "in", "--to", work / "set")
    data = SemanticKitti(split="train", root=str(work / "set"))
    sample, ids = data[SampleKey(0, 0, 0)], scans[data.sample_name(0)].ids
    names = data.info.facts["class_names"]
    for number, name in {10: "car", 40: "road", 252: "car", 255: "motorcyclist"}.items():
        if (ids == number).any():
            assert {names[label] for label in sample["label"][torch.from_numpy(ids == number)].tolist()} == {name}
    assert int(sample["label"].max()) < len(names)


@row(
    "S4.11", "catch labels beyond the classes before the GPU asserts", "`sightline check CONFIG`, finding `label-range`"
)
def _label_range(work: Path) -> None:
    assert find_fault("D6", "label-range")["severity"] == "error"


@row(
    "S4.12",
    "weigh classes by their counts, whatever their number",
    "`losses: [{name: cross_entropy, class_weights: inverse}]`",
)
def _weights(work: Path) -> None:
    for recipe in ("segment/semantic_kitti_salsanext", "segment/squeezeseg_npy_squeezeseg"):
        step(recipe, work, "losses=[{name: cross_entropy, class_weights: inverse}]")
    for counts in ((3, 1), tuple(range(1, 301))):
        loss = CrossEntropy(class_weights="inverse", num_classes=len(counts), class_counts=counts)
        expected = [1 / (count / sum(counts) + 0.001) for count in counts]
        label = torch.arange(len(counts))
        assert float(loss.count(label=label)) == pytest.approx(sum(expected), rel=1e-5)


@row("S4.13", "let the output's channels follow the data set", "fact `num_classes`")
def _channels(work: Path) -> None:
    outputs = {}
    for run in ("plain", "modelnet"):
        outputs[run] = sightline.load_run(trained_run(run)).model.state_dict()["head.2.weight"].shape[0]
    assert outputs == {"plain": 12, "modelnet": 40}


@row(
    "S4.14",
    "share one loss between KITTI's objects and SemanticKITTI",
    "`losses: [{name: lovasz_softmax}]` in both recipes",
)
def _shared_loss(work: Path) -> None:
    weights = []
    for recipe in ("segment/kitti_object_squeezeseg", "segment/semantic_kitti_squeezesegv2"):
        small = step(recipe, work, "losses=[{name: lovasz_softmax}]")
        weights.append(set(small.job.loss_weights))
    assert weights == [{"lovasz_softmax"}, {"lovasz_softmax"}]


@row("S4.15", "be warned of projected scans that show one class", "`sightline check CONFIG`, finding `class-counts`")
def _one_class(work: Path) -> None:
    assert "class" in find_fault("O39", "class-counts")["summary"]
