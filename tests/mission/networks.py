"""What notes on self-supervised learning of point clouds ask for: networks, studies, drawings, published figures."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.areas.scenes import point_transformer
from sightline.contract import registry
from sightline.parts.models.vit import ViTEncoder
from tests.command import document_of, succeed
from tests.data.clouds import modelnet_writers
from tests.engine.published_weights import registered
from tests.golden_parity import cloud_inputs, stored_part
from tests.mission.golden import read_golden, relative_error, round_state
from tests.mission.published import assert_reached
from tests.mission.rows import part, row
from tests.mission.small import CONFIGS, CPU, NETWORK, ONE_STEP, SOLIDS, document, figures, learn, processes, said, step
from tests.models.test_point_transformer import padded_as_theirs, ragged_input
from tests.trained import trained_run

_SOLIDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


def run_model(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Compute the logits of a network in evaluation mode."""
    with torch.no_grad():
        logits: Tensor = model.eval()(**inputs)["logits"]
    return logits


# --- networks ---------------------------------------------------------------------------------------------------------


@row(
    "S0.27",
    "use both public forms of the Point Transformer: dense with one-hot, and offsets",
    "`model.name=point_transformer_dense`, `model.name=point_transformer`",
)
def _both_transformers(work: Path) -> None:
    dense = step("segment/shapenet_part_point_transformer_dense", work)
    inputs = {
        name: dense.micro_batches[0][name]
        for name in ("points", "features", "category")
        if name in dense.micro_batches[0]
    }
    assert "category" in inputs
    assert inputs["points"].dim() == 3
    model = dense.job.model
    logits = run_model(model, **inputs)
    others = run_model(model, **inputs | {"category": (inputs["category"] + 1) % 12})
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(logits, others, strict=True))
    turned = run_model(model, **{name: value.flip(0) for name, value in inputs.items()})
    assert relative_error(turned.flip(0), logits) < 1e-4  # each cloud has its own category
    ragged = step("segment/s3dis_point_transformer", work)
    batch = ragged.micro_batches[0]
    assert "offsets" in batch
    bounds = batch["offsets"].tolist()
    inputs = {name: batch[name] for name in ("points", "features") if name in batch}
    logits = run_model(ragged.job.model, **inputs, offsets=batch["offsets"])
    for start, stop in itertools.pairwise(bounds):
        alone = {name: value[start:stop] for name, value in inputs.items()}
        own = run_model(ragged.job.model, **alone, offsets=torch.tensor([0, stop - start]))
        assert relative_error(own, logits[start:stop]) < 1e-3


@part("S0.27")
def _published_transformers(work: Path) -> None:
    """Files of both, by the names and for the outputs of the authors' code."""
    rooms, parts = read_golden("pt_korea_seg_c6"), read_golden("pt_sjtu_partseg_full")
    for layout, golden, inputs in (
        ("postech_point_transformer_seg", rooms, ragged_input(rooms)),
        ("qq456cvb_point_transformer_parts", parts, cloud_inputs(parts)),
    ):
        torch.save({"state_dict": round_state(golden.state())}, work / f"{layout}.pth")
        assert f"layout: {layout}" in said("weights", "convert", work / f"{layout}.pth", "--to", work / layout)
        with mock.patch.object(point_transformer, "build_pyramid", padded_as_theirs):  # in rooms of few points
            logits = run_model(sightline.load_run(work / layout).model.double(), **inputs)
        label = "eval.out.logits"
        assert relative_error(stored_part(golden, label, logits), golden.tensor(label)) < 1e-4


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
    run = trained_run("modelnet")
    model = sightline.load_run(run).model
    assert next(module.in_features for module in model.modules() if isinstance(module, nn.Linear)) == 6
    root = f"data.root={run.parent / 'set'}"  # the folder that it was trained in was renamed
    data = sightline.load_data(run, "train", transforms="none", overrides=[root])
    for index in range(len(data)):
        written = modelnet_writers.cloud(data.sample_name(index).rpartition("/")[2])
        assert np.allclose(data[index]["points"], written[:, :3], atol=1e-5)
        assert np.allclose(data[index]["features"], written[:, 3:], atol=1e-5)
    batch = data[:2]
    logits = run_model(model, points=batch["points"], features=batch["features"])
    turned = run_model(model, points=batch["points"], features=-batch["features"])
    assert (logits - turned).abs().max() > 1e-4  # the network reads them


# --- studies and pictures ---------------------------------------------------------------------------------------------


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
    words = (work / "pct.yaml", work / "transformer.yaml", *few, *ONE_STEP[1:], "evaluate.select=test", *arms)
    succeed("study", *words)
    study, values = json.loads((work / "out/study.json").read_text()), {}
    assert len(study["rows"]) == 4
    for trained in study["runs"]:
        run, (config, arm) = Path(trained["run"]), trained["levels"]
        kind = {"pct": "PCT", "transformer": "PointTransformer"}[config]
        assert type(sightline.load_run(run).model).__name__ == kind
        counts = Counter(sample["label"].item() for sample in sightline.load_data(run, "train"))
        assert counts == dict.fromkeys(range(12), {"half": 2, "all": 4}[arm])  # the same share of every kind
        assert trained["metrics"] == figures(run)
        values[config, arm] = figures(run)["overall_accuracy"]
        if (config, arm) == ("transformer", "all"):  # as if it had learnt: a second call tabulates what runs ended with
            (run / "final.json").write_text(json.dumps(document(run) | {"metrics": GOOD}))
            values[config, arm] = 0.75
    succeed("study", *words)
    study = json.loads((work / "out/study.json").read_text())
    means = {(line["levels"]["config"], line["levels"]["arm"]): line["mean"] for line in study["rows"]}
    assert means == pytest.approx(values)
    told = {(line["factor"], line["level"], *line["others"].values()): line for line in study["differences"]}
    differences = {
        ("config", "transformer", "half"): values["transformer", "half"] - values["pct", "half"],
        ("config", "transformer", "all"): 0.75 - values["pct", "all"],
        ("arm", "all", "pct"): values["pct", "all"] - values["pct", "half"],
        ("arm", "all", "transformer"): 0.75 - values["transformer", "half"],
    }
    assert {key: line["mean"] for key, line in told.items()} == pytest.approx(differences)
    assert {key: line["num_better"] for key, line in told.items()} == {
        key: int(d > 0) for key, d in differences.items()
    }


GOOD = {"overall_accuracy": 0.75, "mean_class_accuracy": 0.5}


@row("S0.30", "see the accuracy of every kind, and what it is confused with", "`sightline evaluate RUN`")
def _per_kind(work: Path) -> None:
    text = said("evaluate", trained_run("plain"), *CPU)
    assert "confused with" in text
    scores = document(trained_run("plain"))
    worst = min(scores["per_class"], key=lambda name: scores["per_class"][name]["accuracy"])
    other = scores["confused_with"][worst]
    assert re.search(rf"│ {worst} │ \S+ │ [^│]+ │ 2 │ {other['class']} {other['share']:.0%} │", text)
    sizes = ("data.train_size=192", "data.test_size=120", "data.num_points=32", "train.batch_size=32")
    steps = ("optimizer.lr=0.01", "train.steps=24", "evaluate.select=test")  # until some of ten are right, some wrong
    run = learn("classify/synthetic_shapes_pointnet", work / "run", *sizes, *NETWORK, *steps)
    scores, (counts, names) = document(run), count_predictions(run)
    assert scores["confusion"] == {"classes": names, "counts": counts.tolist()}
    shares = set()
    for index, name in enumerate(names):
        of_kind, wrong = counts[index], np.where(np.arange(len(names)) == index, 0, counts[index])
        assert scores["per_class"][name]["count"] == of_kind.sum() == 10
        assert scores["per_class"][name]["accuracy"] == pytest.approx(of_kind[index] / 10)
        assert (name in scores["confused_with"]) == bool(wrong.any())
        if wrong.any():
            other = scores["confused_with"][name]
            assert wrong[names.index(other["class"])] == wrong.max() == other["count"]
            assert other["share"] == wrong.max() / 10
            shares.add((wrong.max(), of_kind[index]))
    assert any(right > 0 and most + right < 10 for most, right in shares)  # right ones, and two kinds of wrong ones


def count_predictions(run: Path) -> tuple[np.ndarray, list[str]]:
    """Count the classes that a run predicts for its test part, a row for each true class."""
    data = sightline.load_data(run, "test")
    batch, names = data[: len(data)], list(data.class_names)
    predicted = run_model(sightline.load_run(run).model, points=batch["points"]).argmax(dim=1)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (batch["label"].numpy(), predicted.numpy()), 1)
    return counts, names


@row(
    "S0.31",
    "check augmentation by eye, and tune hyper-parameters",
    "`sightline view CONFIG --all --out DIR`, `sightline sweep CONFIG --space KEY=A,B --out DIR`",
)
def _augmentation(work: Path) -> None:
    few = (*SOLIDS, *NETWORK, "log.tensorboard=false")
    for epoch in (0, 1):
        words = ("--num", 1, "--epoch", epoch, "--all", "--out", work / str(epoch))
        (seen,) = document_of("view", _SOLIDS, *few, *words)["samples"]
        data = sightline.load_data(_SOLIDS, "train", overrides=few)
        data.epoch = epoch
        stages = {stage["stage"]: stage["extent"] for stage in seen["stages"]}
        raw = sightline.load_data(_SOLIDS, "train", overrides=few, transforms="none")
        assert_extent(next(iter(stages.values())), raw[0]["points"])
        augmented = [extent for name, extent in stages.items() if name.startswith("train")]
        assert augmented, stages
        assert_extent(augmented[-1], data[0]["points"])  # what the network gets in that epoch
    first, second = ((work / f"{epoch}/train_train_00000.png").read_bytes() for epoch in (0, 1))
    is_same = first == second
    assert not is_same, "both epochs have the same picture"


def assert_extent(extent: Any, points: Tensor) -> None:
    assert extent["min"] == pytest.approx(points.amin(dim=0).tolist(), abs=1e-5)
    assert extent["max"] == pytest.approx(points.amax(dim=0).tolist(), abs=1e-5)


@part("S0.31")
def _tuned(work: Path) -> None:
    sizes = ("data.train_size=192", "data.test_size=48", "data.num_points=32", "train.batch_size=32")
    few = (*sizes, *NETWORK, "evaluate.select=test", "log.tensorboard=false")
    words = ("train.steps=24", "evaluate.every=8", "--space", "optimizer.lr=1e-6,0.01", "--trials", 2, "--seed", 2)
    text = said("sweep", _SOLIDS, *few, *words, *CPU, "--out", work / "sweep")
    sweep = json.loads((work / "sweep/sweep.json").read_text())
    best = sweep["best"]
    assert f"best: trial {best['trial']}" in text
    rates = []
    for trial in sweep["trials"]:
        config = yaml.safe_load((Path(trial["run"]) / "config.yaml").read_text())
        rates.append(float(config["optimizer"]["lr"]))
        assert [float(word.partition("optimizer.lr=")[2]) for word in trial["overrides"]] == rates[-1:]
        lines = [json.loads(line) for line in (Path(trial["run"]) / "metrics.jsonl").read_text().splitlines()]
        assert trial["value"] == max(line[sweep["metric"]] for line in lines if sweep["metric"] in line)
    assert sorted(rates) == [1e-6, 0.01]
    assert best["value"] == max(trial["value"] for trial in sweep["trials"])
    assert best["overrides"] == ["optimizer.lr=0.01"]  # by the other nothing is learnt


# --- drawings ---------------------------------------------------------------------------------------------------------


@row("S0.32", "draw a network, call by call", "`sightline describe CONFIG --svg FILE.svg`")
def _drawing(work: Path) -> None:
    succeed("describe", _SOLIDS, *SOLIDS, *NETWORK, "--svg", work / "model.svg")
    drawn = re.findall(r">([\w.]+)<", (work / "model.svg").read_text())
    assert [name for name in drawn if name.endswith(".linear")][:2] == ["encode.0.linear", "encode.1.linear"]


class Logits(TypedDict):
    """`logits` (B, num_classes)."""

    logits: Tensor


class Branching(sightline.Model):
    """Two maps of the same points, added and mapped again: the second is declared first."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.second, self.first = nn.Linear(5, 5), nn.Linear(in_channels, 5)
        self.head = nn.Linear(5, num_classes)

    def forward(self, *, points: Tensor) -> Logits:
        first = self.first(points)
        return {"logits": self.head((first + self.second(first)).amax(dim=1))}


@part("S0.32")
def _drawn_branches(work: Path) -> None:
    """Boxes in the order of the calls, the sizes between them, and an arrow for every tensor, past a box, too."""
    with registered(registry.models, branching=Branching):
        words = ("model={name: branching}", "losses=[{name: cross_entropy}]")
        succeed("describe", _SOLIDS, *SOLIDS, *words, "--svg", work / "model.svg")
    names, arrows, texts = read_drawing(work / "model.svg")
    assert names == ["points", "first", "second", "head", "logits"]
    assert arrows == {(0, 1), (1, 2), (1, 3), (2, 3), (3, 4)}
    assert {"B × 32 × 3", "B × 32 × 5", "B × 12"} <= set(texts)
    assert [texts.count(number) for number in ("20", "30", "72")] == [1, 1, 1]  # parameters: 3 x 5 + 5, and so on
    assert [texts.count(f"{number} MAC") for number in ("480", "800", "60")] == [1, 1, 1]  # 32 points x 3 x 5


def read_drawing(file: Path) -> tuple[list[str], set[tuple[int, int]], list[str]]:
    """Read the name in each box from the top, the arrows as pairs of boxes, and all texts of a drawing."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(file.read_text())
    boxes = sorted(
        (float(box.attrib["y"]), float(box.attrib["y"]) + float(box.attrib["height"]))
        for box in root.iter(f"{svg}rect")
        if float(box.attrib.get("rx", 0))
    )
    texts = [(float(text.attrib["y"]), text.text or "") for text in root.iter(f"{svg}text")]

    def find_box(height: float) -> int:
        return next((place for place, (top, bottom) in enumerate(boxes) if top <= height <= bottom), -1)

    inside = [[text for height, text in texts if find_box(height) == place] for place in range(len(boxes))]
    names = [next((text for text in box if text.islower()), "") for box in inside]
    arrows = set()
    for path in root.iter(f"{svg}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        arrows.add((find_box(numbers[1]), find_box(numbers[-1])))
    return names, arrows, [text for _, text in texts]


@row(
    "S0.33",
    "use a vision transformer as the branch of images",
    "`sightline train configs/contrast/shapenet_render_crosspoint_dgcnn_vit.yaml`",
)
def _vision_transformer(work: Path) -> None:
    small = step("contrast/shapenet_render_crosspoint_dgcnn_vit", work)
    model = small.job.model
    images = model.get_submodule("images")
    names = [type(module).__name__ for module in images.modules()]
    assert (names[0], names.count("MultiHeadAttention")) == ("ViTSmallEncoder", 12)
    assert isinstance(images, ViTEncoder)
    image = small.micro_batches[0]["image"]
    with torch.no_grad():
        features = images.eval().encode(image=image)
        assert relative_error(features, transform_patches(images, image, patch_px=16)) < 1e-3
        outputs = model.eval()(**{name: small.micro_batches[0][name] for name in ("points", "other_points", "image")})
        pictured = model.get_submodule("images_head")(features)
    assert relative_error(outputs["pictured"], pictured) < 1e-4


def transform_patches(model: ViTEncoder, image: Tensor, *, patch_px: int) -> Tensor:
    """Compute a vision transformer's feature by torch's own layers: patches row by row, a class token in front."""
    weights = dict(model.named_parameters())
    patches = F.unfold(image, patch_px, stride=patch_px).mT @ weights["patches.weight"].flatten(1).mT
    patches = patches + weights["patches.bias"]
    tokens = torch.cat([weights["class_token"].expand(len(image), -1, -1), patches], dim=1) + weights["positions"]
    for number in range(12):
        layer = nn.TransformerEncoderLayer(
            384, 6, 1536, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        ours = {
            name.partition(f"blocks.{number}.")[2]: value
            for name, value in weights.items()
            if f"blocks.{number}." in name
        }
        layer.load_state_dict(
            {THEIRS[name.rpartition(".")[0]].format(name.rpartition(".")[2]): v for name, v in ours.items()}
        )
        tokens = layer.eval()(tokens)
    return F.layer_norm(tokens[:, 0], (384,), weights["norm.weight"], weights["norm.bias"], 1e-6)


THEIRS = {
    "attend_norm": "norm1.{}",
    "change_norm": "norm2.{}",
    "attend.qkv": "self_attn.in_proj_{}",
    "attend.project": "self_attn.out_proj.{}",
    "change.0": "linear1.{}",
    "change.2": "linear2.{}",
}
"""Names of torch's layer of a transformer by ours."""


# --- own parts, published figures -------------------------------------------------------------------------------------


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
    settings = ("optimizer={name: sgd, lr: 0.1}", "distributed.sync_batch_norm=true", "train.steps=2")
    words = (run.parent / "own.yaml", "--plugin", run.parent / "own.py", *settings, "--no-check")
    processes(work / "log", "train", *words, "--out", work / "two")
    succeed("train", *words, *CPU, "--out", work / "one")
    two, one = (load_file(work / name / "checkpoints/last/model.safetensors") for name in ("two", "one"))
    for name, value in one.items():  # a step of half the batch each is one of all of it
        assert np.allclose(two[name], value, rtol=1e-3, atol=1e-5), f"{name} differs from that of one process"


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
    words = ("--against", "published", *CPU, "--json", work / "found.json")
    text = said("evaluate", run, *words)
    found = json.loads((work / "found.json").read_text())["published"]
    assert len(found) > 5
    papers = {each["who"]: each["metrics"] for each in found if each["who"].endswith("(paper)")}
    assert {who: papers.get(who, {}).get("overall_accuracy") for who in PAPERS} == PAPERS
    reached = figures(run)
    for each in found:  # beside each stands the same figure of this run
        assert each["here"] == {name: reached[name] for name in each["here"]}
        assert each["here"].keys() == {name for name in each["metrics"] if name in reached}
    line = re.search(r"│ this run │ +│ (\S+) │", text)
    assert line is not None, text
    assert float(line[1]) == pytest.approx(100 * reached["overall_accuracy"], abs=0.005)
    assert re.search(r"│ PointNet \(paper\) │ Qi et al. 2017 │ 89.20 │ 86.20 │", text)


PAPERS = {
    "PointNet (paper)": 0.892,
    "DGCNN (paper)": 0.935,
    "PCT (paper)": 0.932,
    "Point Transformer (paper)": 0.937,
}
"""Overall accuracy of ModelNet40 in tables of the papers; of DGCNN's two the one of 2,048 points."""


@part("S0.35", "E")
def _reached(work: Path) -> None:
    assert_reached("modelnet40", "shapenet_part", "s3dis", at_least=1)
