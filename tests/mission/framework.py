"""What notes on a framework of parallel training ask for."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import sightline
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.dataset import Dataset
from sightline.contract.loss import Loss
from sightline.contract.metric import MeanMetric
from sightline.contract.model import Model
from sightline.contract.plugins import load_plugins
from sightline.contract.types import DataInfo, Field, Sample, SampleKey
from sightline.draw.pictures import Picture
from sightline.engine.build import build
from sightline.engine.device.transfer import to_device
from sightline.engine.distributed import World
from sightline.store.loading.batch_reader import BatchReader
from tests.command import refuse, succeed
from tests.engine.published_weights import registered
from tests.mission.recomputed import answer_clouds, entropy_of, score_classes
from tests.mission.rows import row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    SOLIDS,
    document,
    figures,
    learn,
)
from tests.processes import ROOT, launched_as_forks
from tests.recipe_steps import TrainingStep
from tests.trained import trained_run

_FILES = (ROOT / "examples/my_plugin.py", ROOT / "examples/my_transform.py")
_PEBBLES = (
    ROOT / "examples/my_plugin.yaml",
    *("--plugin", _FILES[0], "--plugin", _FILES[1]),
    *("train.steps=2", "data.train_size=36", "data.test_size=12", "log.tensorboard=false", "--no-check", *CPU),
)
_CLOUDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


@row("S4.1", "start, train and clean up all processes by one command", "`sightline train CONFIG --processes 2`")
def _one_command(work: Path) -> None:
    run = trained_run("pair")
    assert document(run, "environment.json")["num_processes"] == 2
    assert document(run)["checkpoint"] == "last"
    assert [child for child in multiprocessing.active_children() if child.is_alive()] == []
    _assert_as_by_one_process(run, work / "alone")
    _assert_supervised_as_by_one(work)


def _assert_as_by_one_process(run: Path, alone: Path) -> None:
    """Two processes share each batch, its pairs and its statistics: all is that of one process, but for rounding."""
    words = ("--plugin", run.parent / "own.py", "log.tensorboard=false", "--no-check", *CPU)
    succeed("train", run.parent / "own.yaml", *words, "--out", alone)
    (ours, *_), (theirs, *_) = read_lines(run), read_lines(alone)
    assert ours["num_samples"] == theirs["num_samples"] == 60  # 16 pairs a step, and what is left of 72 shapes
    assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    both = [sightline.load_run(each, plugins=[run.parent / "own.py"]).model.state_dict() for each in (run, alone)]
    for name, weight in both[0].items():
        if name.endswith("weight"):  # the gradients of biases before a norm are rounding
            assert torch.allclose(weight, both[1][name], rtol=1e-3, atol=1e-4), name


def _assert_supervised_as_by_one(work: Path) -> None:
    """Labels of all processes are counted together: losses, gradients and weights are those of one process."""
    network = ("model={name: pointnet_plain, embedding: 16, dropout: 0.0}", NETWORK[1], "transforms.train=[]")
    plain = ("distributed.sync_batch_norm=true", "optimizer={name: sgd, lr: 0.1}", "train.steps=2", "--no-check", *CPU)
    words = ("train", _CLOUDS, *SOLIDS, *network, *plain)
    succeed(*words, "--out", work / "one")
    with launched_as_forks(work / "log"):
        succeed(*words, "--processes", 2, "--out", work / "two")
    ours, theirs = read_lines(work / "two")[0], read_lines(work / "one")[0]
    assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's numbers."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@row("S4.2", "name model, data, metric and loss in one file", "`sightline train CONFIG`")
def _one_file(work: Path) -> None:
    parts = {
        "task": {"name": "classify"},
        "data": {"name": "synthetic_shapes", "train_size": 24, "test_size": 12, "num_points": 32},
        "model": {"name": "pointnet_plain", "embedding": 16},
        "losses": [{"name": "cross_entropy", "weight": 0.5}],
        "metrics": [{"name": "accuracy"}],
        "optimizer": {"name": "adam", "lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluate": {"metric": "overall_accuracy", "select": "test"},
    }
    (work / "one.yaml").write_text(yaml.safe_dump(parts))
    succeed("train", work / "one.yaml", "--no-check", *CPU, "--out", work / "run")
    assert set(figures(work / "run")) == {"overall_accuracy", "mean_class_accuracy"}
    assert set(document(work / "run")["losses"]) == {"cross_entropy"}
    loaded, data = sightline.load_run(work / "run"), sightline.load_data(work / "run", "test")
    assert type(loaded.model).__name__ == "PointNetPlain"
    assert loaded.model.get_submodule("head.0.linear").in_features == 16
    assert (len(data), data[0]["points"].shape) == (12, (32, 3))
    logits, labels = answer_clouds(work / "run")
    assert figures(work / "run") == pytest.approx(score_classes(logits, labels), abs=1e-9)
    assert document(work / "run")["losses"]["cross_entropy"] == pytest.approx(entropy_of(logits, labels).mean(), 1e-4)
    line = read_lines(work / "run")[0]
    assert (line["step"], line["lr"]) == (3, 1e-3)
    assert line["loss/total"] == pytest.approx(0.5 * line["loss/cross_entropy"], rel=1e-6)
    _assert_trained_as_named(work / "one.yaml")
    _assert_best_by_figure(work)


def _assert_best_by_figure(work: Path) -> None:
    """The best checkpoint is that with the best of the figures that the file names."""
    more = ("optimizer.lr=0.02", "train.epochs=4", "evaluate.every=1", "checkpoint.keep_last=4")
    succeed("train", work / "one.yaml", *more, "--no-check", *CPU, "--out", work / "best")
    lines = [line for line in read_lines(work / "best") if line["split"] != "train"]
    values = {line["step"]: line["overall_accuracy"] for line in lines}
    assert min(values.values()) < max(values.values()), "no evaluation is better than another"
    best = int(os.readlink(work / "best" / "checkpoints" / "best").removeprefix("step_"))
    assert values[best] == max(values.values())


def _assert_trained_as_named(config: Path) -> None:
    """A step of Adam moves weights by its rate, and half a loss has half its gradient."""
    gradients = []
    for weight in (0.5, 1.0):
        step = TrainingStep(read_config(config, (f"losses.0.weight={weight}", "loader.workers=0")))
        before = [parameter.detach().clone() for parameter in step.job.model.parameters()]
        step.run()
        parameters = list(step.job.model.parameters())
        gradients.append(torch.cat([each.grad.flatten() for each in parameters if each.grad is not None]))
        moves = [float((now.detach() - then).abs().max()) for now, then in zip(parameters, before, strict=True)]
        assert max(moves) == pytest.approx(1e-3, rel=1e-2)
    assert float(gradients[0].norm() / gradients[1].norm()) == pytest.approx(0.5, rel=1e-3)


@row("S4.3", "register own classes", "`sightline train CONFIG --plugin FILE.py`")
def _own_classes(work: Path) -> None:
    succeed("train", *_PEBBLES, "--out", work / "run")
    assert document(work / "run")["data"]["name"] == "pebbles"
    assert set(document(work / "run")["losses"]) == {"focal"}
    assert "top_1_accuracy" in figures(work / "run")
    loaded = sightline.load_run(work / "run", plugins=_FILES)
    data = sightline.load_data(work / "run", "test", plugins=_FILES)
    assert len(data) == 12, "the plugin's set is not that of the config"
    draws = [np.random.default_rng((1, index)) for index in range(12)]
    for index, (random, sample) in enumerate(zip(draws, data, strict=True)):  # the class of the plugin draws them
        scale = ((1.0, 1.0, 1.0), (1.0, 1.0, 0.5), (0.6, 0.6, 1.0))[index % 3]
        points = random.normal(size=(random.integers(20, 61), 3)) * scale
        assert np.allclose(sample["points"], points, atol=1e-6)
        assert int(sample["label"]) == index % 3
    offsets = [torch.tensor([0, len(sample["points"])]) for sample in data]
    with torch.no_grad():
        answers = [
            loaded.model(points=s["points"], offsets=ends)["logits"] for s, ends in zip(data, offsets, strict=True)
        ]
    logits, labels = torch.cat(answers).double().numpy(), np.arange(12) % 3
    entropies = entropy_of(logits, labels)
    focal = ((1 - np.exp(-entropies)) ** 2 * entropies).mean()
    assert document(work / "run")["losses"]["focal"] == pytest.approx(focal, rel=1e-4)
    assert figures(work / "run")["top_1_accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    _assert_mirrored(work / "run")


def _assert_mirrored(run: Path) -> None:
    """The plugin's transform mirrors some of the training clouds along x, and nothing else."""
    plain = sightline.load_data(run, "train", transforms="none", plugins=_FILES)
    signs = set()
    for own, sample in zip(plain, sightline.load_data(run, "train", plugins=_FILES), strict=True):
        assert torch.equal(own["points"][:, 1:], sample["points"][:, 1:])
        ratio = sample["points"][:, 0] / own["points"][:, 0]
        assert ratio.unique().numel() == 1
        signs.add(float(ratio[0]))
    assert signs == {-1.0, 1.0}


@row(
    "S4.4",
    "batch samples of unequal length, by an own collation or by padding",
    "`Field('points 3', 'float32', collate='pad')`, or a method `collate`",
)
def _collation(work: Path) -> None:
    succeed("train", *_PEBBLES, "--out", work / "run")  # by `Pebbles.collate`
    data = sightline.load_data(work / "run", "test", plugins=_FILES)
    lengths = [len(data[index]["points"]) for index in range(12)]
    assert len(set(lengths)) > 3
    assert document(work / "run")["data"]["num_samples"] == 12
    batch = BatchReader(Padded())([SampleKey(index, 0, 0) for index in range(3)])
    assert batch["points"].shape == (3, 3, 3)
    assert batch["points_mask"].sum(1).tolist() == [1, 2, 3]
    assert batch["points_mask"].tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert batch["points"][..., 0].tolist() == [[1, 0, 0], [2, 2, 0], [3, 3, 3]]
    assert batch["label"].tolist() == [0, 10, 20]
    own = data[:3]  # of `collate`
    assert own["offsets"].tolist() == [0, *np.cumsum(lengths[:3])]
    assert torch.equal(own["points"], torch.cat([data[index]["points"] for index in range(3)]))
    assert own["label"].tolist() == [0, 1, 2]
    assert own["sample_index"].tolist() == [0, 1, 2]


class Padded(Dataset):
    """Clouds of one, two and three points."""

    def __init__(self) -> None:
        fields = {"points": Field("points 3", "float32", collate="pad"), "label": Field("", "int64")}
        self.info = DataInfo({"num_classes": 1}, fields, {"train": 3})

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: SampleKey) -> Sample:
        return {"points": torch.full((key.index + 1, 3), key.index + 1.0), "label": torch.tensor(10 * key.index)}


@row(
    "S4.5",
    "leave moving tensors to the device and its format to the framework",
    "`sightline train CONFIG --device cuda train.precision=float64`",
)
def _moved(work: Path) -> None:
    """No line of the plugin converts anything: its float32 points meet float64 weights.

    The device `meta` stands for a GPU, which not every machine has.
    """
    succeed("train", *_PEBBLES, "train.precision=float64", "--out", work / "run")
    assert 0 <= figures(work / "run")["top_1_accuracy"] <= 1
    seen: list[set[torch.dtype]] = []

    class Seen(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(self, *, logits: Tensor, points: Tensor, label: Tensor) -> Tensor:
            seen.append({logits.dtype, points.dtype})
            assert label.dtype == torch.int64
            return logits.square().sum()

    for precision in ("float64", "float32"):
        with registered(registry.losses, seen=Seen):
            words = (*SOLIDS, *NETWORK[:1], "losses=[{name: seen}]", f"train.precision={precision}")
            learn("classify/synthetic_shapes_pointnet", work / precision, *words, "evaluate.select=test")
        assert seen, precision
        assert set().union(*seen) == {getattr(torch, precision)}
        seen.clear()
    _assert_all_moved()


class Boxed(NamedTuple):
    """Part of a batch."""

    boxes: Tensor
    names: tuple[str, ...]


@dataclass
class Volume:
    """Part of a batch."""

    voxels: Tensor
    spacing_mm: float


def _assert_all_moved() -> None:
    """Tensors move, at any depth, floating ones as one format, and others keep theirs; the rest stays as it is."""
    half, count, truth = torch.ones(2, dtype=torch.float16), torch.arange(3, dtype=torch.int32), torch.tensor([True])
    batch = {
        "points": torch.ones(4, 3),
        "label": torch.arange(4),
        "clouds": [torch.ones(1, 3), torch.ones(2, 3, dtype=torch.float64)],
        "pair": (half, {"count": count, "truth": truth}),
        "boxed": Boxed(torch.ones(2, 4), ("a", "b")),
        "volume": Volume(torch.ones(2, 2), 1.5),
        "name": "scan",
        "size": 3,
    }
    moved = to_device(batch, torch.device("meta"), float_dtype=torch.float64)
    tensors = [moved["points"], *moved["clouds"], moved["pair"][0], moved["boxed"].boxes, moved["volume"].voxels]
    assert [tensor.dtype for tensor in tensors] == [torch.float64] * 6
    others = [moved["label"], moved["pair"][1]["count"], moved["pair"][1]["truth"]]
    assert [tensor.dtype for tensor in others] == [torch.int64, torch.int32, torch.bool]
    assert {tensor.device.type for tensor in (*tensors, *others)} == {"meta"}
    assert (moved["name"], moved["size"], moved["boxed"].names, moved["volume"].spacing_mm) == (
        "scan",
        3,
        ("a", "b"),
        1.5,
    )
    here = to_device(batch, torch.device("cpu"), float_dtype=torch.float64)
    assert [tensor.tolist() for tensor in here["clouds"]] == [[[1.0] * 3], [[1.0] * 3] * 2]


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
    _assert_given_by_name(work / "told")
    assert "needs 'lable'" in error
    assert "label" in error.replace("lable", "")


class ToldOutput(TypedDict):
    """Logits, and whether the batch's indices were given."""

    logits: Tensor
    told: Tensor


class Told(Model):
    """Says the label that it is given, with certainty; values with a default are given where the batch has them."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self, *, label: Tensor, points: Tensor, sample_index: Tensor | None = None, unknown: Tensor | None = None
    ) -> ToldOutput:
        given = points.new_full((len(label),), float(sample_index is not None and unknown is None))
        return {"logits": 10.0 * nn.functional.one_hot(label, len(self.bias)) + self.bias, "told": given}


def _assert_given_by_name(out: Path) -> None:
    """Train a network that says the label, and a loss of output, label, points and index, in any order."""
    seen: list[bool] = []

    class Both(Loss):
        def count(self, *, label: Tensor) -> Tensor:
            return torch.tensor(label.numel())

        def forward(
            self, *, points: Tensor, sample_index: Tensor | None = None, told: Tensor, label: Tensor, logits: Tensor
        ) -> Tensor:
            seen.append(points.shape[1:] == (32, 3) and sample_index is not None and len(sample_index) == len(label))
            assert bool((logits.argmax(dim=1) == label).all())
            return (told + 0 * logits[:, 0]).sum()

    with registered(registry.models, told=Told), registered(registry.losses, both=Both):
        words = ("model={name: told}", "losses=[{name: both}]", "transforms.train=[]", "evaluate.select=test")
        run = learn("classify/synthetic_shapes_pointnet", out, *SOLIDS, *words)
    assert figures(run)["overall_accuracy"] == 1
    assert document(run)["losses"]["both"] == 1
    assert seen
    assert all(seen)


@row("S4.7", "log pictures from metrics", "method `pictures` of a metric")
def _pictures(work: Path) -> None:
    class Drawn(MeanMetric):
        figures = ("drawn",)
        higher_is_better = True

        def values(self, *, logits: Tensor, label: Tensor) -> Tensor:
            return (logits.argmax(1) == label).float()

        def pictures(self, state: object) -> list[Picture]:
            pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
            pixels[0, 0] = len(state["weights"]), 0, 200  # type: ignore[index] # of as many rows as test samples
            return [Picture("own_picture", pixels, "a caption")]

    with registered(registry.metrics, drawn=Drawn):
        words = (*SOLIDS, *NETWORK, "metrics=[{name: drawn}]", "evaluate={metric: drawn, select: test}")
        run = learn("classify/synthetic_shapes_pointnet", work / "run", *words, "log.tensorboard=true")
    assert (run / "predictions/own_picture.png").exists()
    expected = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    expected[0, 0] = 12, 0, 200
    events = read_events(run)
    assert "test-selected/own_picture" in events.Tags()["images"]
    (logged,) = events.Images("test-selected/own_picture")
    assert logged.step == 1
    for picture in (run / "predictions/own_picture.png", io.BytesIO(logged.encoded_image_string)):
        assert np.array_equal(np.asarray(Image.open(picture)), expected)


def read_events(run: Path) -> Any:
    """Read the file of events of a run, by tensorboard's own reader."""
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()


@row(
    "S4.8",
    "have loggers opened after the start, by the first process alone",
    "`sightline train CONFIG --processes 2 log.tensorboard=true`",
)
def _loggers(work: Path) -> None:
    run = trained_run("pair")
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert (run / "train.log").read_text().count("validation at step 4") == 1
    events, lines = read_events(run), read_lines(run)
    logged = events.Tags()["scalars"]
    assert {line["split"] for line in lines} == {"train", "validation"}
    for line in lines:
        names = [name for name in line if f"{line['split']}/{name}" in logged]
        assert {"num_samples", "loss/intra_modal"} <= {*names}
        for name in names:
            (scalar,) = events.Scalars(f"{line['split']}/{name}")
            if name not in ("samples_per_s", "epoch"):
                assert (scalar.step, scalar.value) == (line["step"], pytest.approx(line[name], rel=1e-6)), name


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
    assert plugin.read_text() == (run.parent / "own.py").read_text()
    encoder, points = model.get_submodule("points"), torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    weights = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    assert set(weights) == {f"_layers.{name}" for name in ("0.0.weight", "0.0.bias", "1.weight", "1.bias")}
    hidden = np.maximum(points.numpy() @ weights["_layers.0.0.weight"].T + weights["_layers.0.0.bias"], 0)
    expected = (hidden @ weights["_layers.1.weight"].T + weights["_layers.1.bias"]).max(axis=1)
    assert np.allclose(encoder.encode(points=points).detach().numpy(), expected, atol=1e-5)
    load_plugins([run.parent / "own.py"])
    first = build(read_config(run / "config.yaml"), World()).job.model.get_submodule("points").state_dict()
    for name, weight in encoder.state_dict().items():
        assert not torch.allclose(weight, first[name], atol=1e-5), name  # private ones learn, too
        assert torch.allclose(weight, first[name], atol=0.1), name  # and began as the seed says
