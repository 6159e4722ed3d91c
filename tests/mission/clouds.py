"""What notes on self-supervised learning of point clouds ask for: environments, probes, networks and figures."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import sightline
from tests.command import document_of, run_here, succeed
from tests.data.clouds import modelnet_writers
from tests.data.preparing import flip_bit
from tests.mission.rows import part, row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    ONE_STEP,
    SOLIDS,
    document,
    learn,
    said,
    step,
)
from tests.processes import ROOT
from tests.published_weights import write_weights
from tests.trained import copy_run, trained_run

_SOLIDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- environments and weights -----------------------------------------------------------------------------------------


@row(
    "S0.19", "install the same environment on another server", "`make install`, with the versions of `constraints.txt`"
)
def _same_environment(work: Path) -> None:
    words = ["make", "-n", "-B", "install"]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"pip .*install .*-c constraints\.txt", planned)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    needed = [
        re.split(r"[<>=;\[ ]", need)[0]
        for need in importlib.metadata.requires("sightline") or ()
        if "extra" not in need
    ]
    assert {name for name in needed if name.lower() not in {pin.lower() for pin in pins}} == set()


@row(
    "S0.20", "load the weights of a parallel run on one process; damaged files are refused", "`sightline evaluate RUN`"
)
def _parallel_weights(work: Path) -> None:
    run = copy_run("pair", work)
    words = (run, "--plugin", work / "own.py", *CPU)
    assert document_of("evaluate", *words)["metrics"] == document(run)["metrics"]
    flip_bit(run / "checkpoints/last/model.safetensors")
    done = run_here("evaluate", *words)
    assert done.code != 0
    assert "model.safetensors" in done.err


# --- probes -----------------------------------------------------------------------------------------------------------


def probe(run: Path, *words: object) -> dict[str, float]:
    """Probe a run; return its figures."""
    (found,) = document_of("evaluate", run, "--probe", *words, *CPU)["runs"]
    figures_of_run: dict[str, float] = found["metrics"]
    return figures_of_run


@row("S0.21", "fit a linear SVM on frozen features, on the CPU", "`sightline evaluate RUN --probe svm`")
def _svm(work: Path) -> None:
    found = probe(trained_run("contrast"), "svm", "C=100")
    assert found["probe_svm_accuracy"] == document(trained_run("contrast"))["metrics"]["probe_svm_accuracy"] > 0.25
    assert found["probe_svm_accuracy_random"] != found["probe_svm_accuracy"]


@row("S0.22", "run few-shot episodes", "`sightline evaluate RUN --probe few-shot`")
def _few_shot(work: Path) -> None:
    found = probe(trained_run("contrast"), "few-shot", "ways=[2]", "shots=[2]", "queries=2")
    assert 0.5 < found["fewshot_2w2s"] <= 1
    assert found["fewshot_2w2s_std"] > 0


@row(
    "S0.23",
    "rate features by their neighbours and by logistic regression, too",
    "`sightline evaluate RUN --probe knn,linear`",
    letter="A",
)
def _neighbours(work: Path) -> None:
    found = probe(trained_run("contrast"), "knn,linear")
    assert 1 / 12 < found["probe_knn_accuracy"] <= 1
    assert 1 / 12 < found["probe_linear_accuracy"] <= 1


@row(
    "S0.24",
    "see why a small C wins: the accuracy by C, and the scale of the features",
    "`sightline evaluate RUN --probe svm`",
)
def _by_c(work: Path) -> None:
    text = said("evaluate", trained_run("contrast"), "--probe", "svm", "C=[0.001, 100]", *CPU)
    small, large = (re.findall(rf"│ {c} │ .*?\d\.\d{{4}} │", text)[0] for c in (r"0\.001", "100"))
    assert float(small.split()[-2]) <= float(large.split()[-2])


@part("S0.24", "B")
def _by_c_and_scale(work: Path) -> None:
    words = ("--probe", "svm", "C=[0.001, 100]", *CPU, "--json", work / "found.json")
    text = said("evaluate", trained_run("contrast"), *words)
    columns = re.search(r"│ 100 │ (\S+) │ (\S+) │ (\S+) │ (\S+) │ chosen │", text)
    assert columns is not None
    (found,) = json.loads((work / "found.json").read_text())["runs"]
    assert float(columns[4]) == pytest.approx(found["metrics"]["probe_svm_accuracy"], abs=1e-4)
    variance = re.search(r"variance (\S+),", text)
    assert variance is not None
    assert float(columns[1]) == pytest.approx(100 * float(variance[1]), rel=1e-2)


@row(
    "S0.25",
    "save features once, and load them the next time",
    "`sightline evaluate RUN --probe svm`, twice",
    letter="C",
)
def _saved_features(work: Path) -> None:
    run = copy_run("contrast", work)
    first = probe(run, "svm", "C=100")
    again = said("evaluate", run, "--probe", "svm", "C=100", *CPU, "--json", work / "again.json")
    assert f"features from {run / 'features'}" in again
    assert json.loads((work / "again.json").read_text())["runs"][0]["metrics"] == first


@row(
    "S0.26",
    "use a pre-trained Point-BERT as a frozen extractor",
    "`sightline weights FILE --to DIR`, then `sightline train configs/classify/modelnet40_point_bert_frozen_cpu.yaml "
    "init.from=DIR`",
)
def _extractor(work: Path) -> None:
    small = step("classify/modelnet40_point_bert_frozen_cpu", work)
    frozen = [name for name, value in small.job.model.named_parameters() if not value.requires_grad]
    assert {name.partition(".")[0] for name in frozen} >= {"embed", "trunk"}
    assert not any(name.startswith("head") for name in frozen)


@part("S0.26", "W")
def _extractor_weights(work: Path) -> None:
    write_weights(work / "file", "lulutang0608_point_bert_pretrained")
    text = said("weights", work / "file/weights.pth", "--to", work / "run")
    assert "layout: lulutang0608_point_bert_pretrained" in text
    model = sightline.load_run(work / "run").model
    assert model.encode(points=torch.randn(2, 128, 3)).shape == (2, 768)  # type: ignore[operator]


@part("S0.26", "D")
def _extractor_of_the_hub(work: Path) -> None:
    """Of the names that its file on the hub has."""
    layouts = [each for each in said("list", "layouts").split() if "pointcloud" in each and "point_bert" in each]
    write_weights(work / "file", layouts[0])
    assert f"layout: {layouts[0]}" in said("weights", work / "file/weights.pth", "--to", work / "run")


# --- networks, studies, figures ---------------------------------------------------------------------------------------


@row(
    "S0.27",
    "use both public forms of the Point Transformer: dense with one-hot, and offsets",
    "`model.name=point_transformer_dense`, `model.name=point_transformer`",
)
def _both_transformers(work: Path) -> None:
    dense = step("segment/shapenet_part_point_transformer_dense", work)
    assert "category" in dense.micro_batches[0]
    assert dense.micro_batches[0]["points"].dim() == 3
    ragged = step("segment/s3dis_point_transformer", work)
    assert "offsets" in ragged.micro_batches[0]


@row(
    "S0.28",
    "train with or without normals; the width of the input follows",
    "`sightline train CONFIG data.normals=file`",
)
def _normals(work: Path) -> None:
    widths = []
    for normals in ("none", "file"):
        (rows,) = (document_of("describe", _SOLIDS, *SOLIDS, *NETWORK, f"data.normals={normals}")["modules"],)
        widths.append(next(each["inputs"][0][-1] for each in rows if each["class_name"] == "Linear"))
    assert widths == [3, 6]


@row(
    "S0.29",
    "compare Point Transformer and PCT at several sizes of data",
    "`sightline study A B --arm '10%=data.fraction=0.1' --arm 100%= --out DIR`",
)
def _compared(work: Path) -> None:
    (work / "transformer.yaml").write_text(
        f"base: {CONFIGS / 'classify/synthetic_shapes_pct.yaml'}\n"
        "model: {name: point_transformer, per: cloud, widths: [16, 32], strides: [1, 4], num_blocks: [1, 1], "
        "num_neighbours: [8, 8]}\n"
    )
    (work / "pct.yaml").write_text(
        f"base: {CONFIGS / 'classify/synthetic_shapes_pct.yaml'}\n"
        "model: {name: pct, num_centres: [16, 8], num_neighbours: 4}\n"
    )
    few = ("data.train_size=48", "data.test_size=12", "data.num_points=32", "train.batch_size=4", "train.steps=1")
    arms = ("--arm", "half=data.fraction=0.5", "--arm", "all=", "--seeds", 1, *CPU, "--out", work / "out")
    succeed("study", work / "pct.yaml", work / "transformer.yaml", *few, *ONE_STEP[1:], "evaluate.select=test", *arms)
    study = json.loads((work / "out/study.json").read_text())
    assert len(study["rows"]) == 4


@row("S0.30", "see the accuracy of every kind, and what it is confused with", "`sightline evaluate RUN`")
def _per_kind(work: Path) -> None:
    text = said("evaluate", trained_run("plain"), *CPU)
    assert "confused with" in text
    scores = document(trained_run("plain"))
    worst = min(scores["per_class"], key=lambda name: scores["per_class"][name]["accuracy"])
    other = scores["confused_with"][worst]
    assert re.search(rf"│ {worst} │ \S+ │ [^│]+ │ 2 │ {other['class']} {other['share']:.0%} │", text)


@row(
    "S0.31",
    "check augmentation by eye, and tune hyper-parameters",
    "`sightline view CONFIG --out DIR`, `sightline sweep CONFIG --space KEY=A,B --out DIR`",
)
def _augmentation(work: Path) -> None:
    few = (*SOLIDS, *NETWORK, "log.tensorboard=false")
    for epoch in (0, 1):
        succeed("view", _SOLIDS, *few, "--num", 1, "--epoch", epoch, "--out", work / str(epoch))
    first, second = ((work / f"{epoch}/train_train_00000.png").read_bytes() for epoch in (0, 1))
    is_same = first == second
    assert not is_same, "both epochs have the same picture"
    words = ("train.steps=1", "evaluate.every=1", "--space", "optimizer.lr=0.001,0.1", "--trials", 2)
    text = said("sweep", _SOLIDS, *few, *words, *CPU, "--out", work / "sweep")
    best = json.loads((work / "sweep/sweep.json").read_text())["best"]
    assert f"best: trial {best['trial']}" in text


@row("S0.32", "draw a network, call by call", "`sightline describe CONFIG --svg FILE.svg`")
def _drawing(work: Path) -> None:
    succeed("describe", _SOLIDS, *SOLIDS, *NETWORK, "--svg", work / "model.svg")
    drawn = re.findall(r">([\w.]+)<", (work / "model.svg").read_text())
    assert [name for name in drawn if name.endswith(".linear")][:2] == ["encode.0.linear", "encode.1.linear"]


@row(
    "S0.33",
    "use a vision transformer as the branch of images",
    "`sightline train configs/contrast/shapenet_render_crosspoint_dgcnn_vit.yaml`",
)
def _vision_transformer(work: Path) -> None:
    small = step("contrast/shapenet_render_crosspoint_dgcnn_vit", work)
    names = [type(module).__name__ for module in small.job.model.get_submodule("images").modules()]
    assert (names[0], names.count("MultiHeadAttention")) == ("ViTSmallEncoder", 12)


@row(
    "S0.34",
    "put an own encoder into a training of several processes",
    "`sightline train CONFIG --plugin FILE.py --processes 2`",
)
def _own_encoder(work: Path) -> None:
    run = trained_run("pair")
    assert document(run, "environment.json")["num_processes"] == 2
    model = sightline.load_run(run, plugins=[run.parent / "own.py"]).model
    assert type(model.get_submodule("points")).__name__ == "OwnEncoder"
    assert document(run)["metrics"]["probe_svm_accuracy"] > 2 / 12


@row(
    "S0.35",
    "stand beside published figures, and reach them",
    "`sightline evaluate RUN --against published`, at published lengths",
)
def _published(work: Path) -> None:
    random = np.random.default_rng(0)
    whole = {"X_test": random.normal(size=(2468, 6, 3)).astype(np.float16) / 4, "y_test": np.arange(2468) % 40}
    packed = modelnet_writers.write_npz(
        work / "packed.npz", **whole, name_test=np.array([f"c{n}" for n in range(2468)])
    )
    succeed("data", "prepare", "modelnet40", "--from", packed, "--to", work / "set")
    words = (f"data.root={work / 'set'}", "data.num_points=6", "train.batch_size=3", *NETWORK, "evaluate.select=test")
    run = learn("classify/modelnet40_pointnet", work / "run", *words)
    found = document_of("evaluate", run, "--against", "published", *CPU)["published"]
    assert len(found) > 5


@part("S0.35", "E")
def _reached(work: Path) -> None:
    page = (ROOT / "docs/results/gpu.md").read_text()
    reached = re.findall(r"\| `?(?:modelnet40|shapenet_part|s3dis)\w*`? \| [\d.]+ \| ([\d.]+) of ([\d.]+) epochs", page)
    assert any(done == full for done, full in reached)
