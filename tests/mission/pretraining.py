"""What notes on self-supervised learning of point clouds ask for: pre-training, and several processes."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sightline
from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.contract import registry
from tests.command import document_of, refuse, succeed
from tests.engine.published_weights import registered
from tests.mission.cloud_sets import PARTS, are_close, lines_of, prepare_parts, weights
from tests.mission.rows import row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    ONE_STEP,
    SOLIDS,
    document,
    figures,
    findings,
    learn,
    processes,
    skip_but,
    step,
)
from tests.trained import copy_run, trained_run

_PAIRS = (
    *("data.train_size=24", "data.test_size=8", "data.num_points=192", "data.views.count=2", "train.batch_size=8"),
    *("train.steps=1", "log.tensorboard=false", "evaluate.select=test"),
)
_SOLIDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- pre-training and what follows it ---------------------------------------------------------------------------------


def nt_xent(first: Tensor, second: Tensor) -> float:
    """Compute the loss of Chen et al. 2020 at the temperature 0.1 in NumPy: the mean over both anchors of each pair."""
    rows = np.concatenate([first.detach().double().numpy(), second.detach().double().numpy()])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    likeness, size = np.exp(rows @ rows.T / 0.1), len(first)
    partners = [likeness[n, (n + size) % (2 * size)] for n in range(2 * size)]
    others = [likeness[n].sum() - likeness[n, n] for n in range(2 * size)]
    return float(-np.mean(np.log(np.array(partners) / np.array(others))))


@row(
    "S0.8",
    "pre-train CrossPoint with DGCNN",
    "`sightline train configs/contrast/shapenet_render_crosspoint_dgcnn.yaml`",
)
def _crosspoint(work: Path) -> None:
    small = step("contrast/shapenet_render_crosspoint_dgcnn", work)
    names = [type(module).__name__ for module in small.job.model.modules()]
    assert "EdgeConv" in names
    assert set(small.job.loss_weights) == {"intra_modal", "cross_modal"}
    (batch,) = small.send()
    points, others, image = batch["points"], batch["other_points"], batch["image"]
    assert points.shape == others.shape
    assert not torch.equal(points, others), "both views of a cloud are the same"
    model = small.job.model.eval()
    graphs: list[tuple[Tensor, Tensor]] = []
    edges = [module for module in model.modules() if type(module).__name__ == "EdgeConv"]
    hooks = [each.register_forward_pre_hook(lambda _, inputs: graphs.append(inputs)) for each in edges]
    with torch.no_grad():
        out = model(points=points, other_points=others, image=image)
        turned = model(points=others.flip(1), other_points=points.flip(1), image=image)
        unseen = model(points=points, other_points=others, image=torch.zeros_like(image))
    for hook in hooks:
        hook.remove()
    assert are_close(turned["first"], out["second"]), "the second embedding is not that of the second view"
    assert are_close(turned["second"], out["first"])  # in another order of the points, too
    assert not are_close(unseen["pictured"], out["pictured"], 1e-3), "the image moves nothing"
    space, index = (value.numpy() for value in graphs[0])
    far = np.linalg.norm(space[:, :, None] - space[:, None], axis=3)
    assert are_close(np.take_along_axis(far, index, 2).max(2), np.sort(far, 2)[:, :, index.shape[2] - 1], 1e-4)
    with torch.no_grad():
        sums = small.job.task.losses(model, batch, small.job.task.prepare(model, [batch], small.world)[1][0])
    means = {name: float(value) / len(points) for name, value in sums.items()}
    assert means["intra_modal"] == pytest.approx(nt_xent(out["first"], out["second"]), rel=1e-4)
    middle = (out["first"] + out["second"]) / 2
    assert means["cross_modal"] == pytest.approx(nt_xent(middle, out["pictured"]), rel=1e-4)


@row(
    "S0.9",
    "pre-train the per-point branch, then fine-tune it on parts",
    "`sightline train configs/segment/shapenet_part_dgcnn_from_crosspoint.yaml init.from=RUN`",
)
def _fine_tune(work: Path) -> None:
    source = trained_run("crosspoint")
    words = (f"data.root={prepare_parts(work)}", *PARTS, f"init.from={source}", "optimizer.lr=0.00001")
    run = learn("segment/shapenet_part_dgcnn_from_crosspoint", work / "run", *words)
    assert "68 of 93 tensors" in (run / "train.log").read_text()
    lineage = document(run, "lineage.json")
    assert (lineage["from"], lineage["match"]["matched"]) == (str(source), 68)
    learnt, tuned = weights(source), weights(run)
    branch = [name for name in tuned if f"points.{name}" in learnt]
    assert len(branch) == 68
    trained = [name for name in branch if name.endswith((".weight", ".bias"))]
    assert len(trained) > 30
    for name in trained:
        assert are_close(tuned[name], learnt[f"points.{name}"], 1e-3), f"{name} is not the one that was pre-trained"
    moved = [name for name in trained if not torch.equal(tuned[name], learnt[f"points.{name}"])]
    assert len(moved) > len(trained) / 2, "the branch is not tuned"
    state = load_file(source / "checkpoints/last/optimizer.safetensors")
    reached = {name for name, mean in state.items() if name.startswith("points.") and bool(mean.any())}
    got = [name for name in trained if any(key.startswith(f"points.{name}") for key in reached)]
    assert len(got) > len(trained) / 2, "the branch was not pre-trained"


@row(
    "S0.10",
    "see how many weights matched; unmatched names are refused",
    "`sightline train CONFIG init.from=RUN init.may_be_missing=[head]`",
)
def _matched(work: Path) -> None:
    source = trained_run("crosspoint")
    words = (f"data.root={prepare_parts(work)}", *PARTS, f"init.from={source}", *ONE_STEP, "--no-check", *CPU)
    config = CONFIGS / "segment/shapenet_part_dgcnn_from_crosspoint.yaml"
    error = refuse("train", config, *words, "init.may_be_missing=[head]", "--out", work / "run")
    elements = sum(value.numel() for name, value in weights(source).items() if name.startswith("points."))
    assert f"68 of 93 tensors, {elements} of " in error
    assert "missing: category.linear.weight" in error
    assert "head." not in error.partition("missing: ")[2].partition(";")[0]
    assert not (work / "run").exists()
    none = refuse("train", config, *words, "init.may_be_missing=[]", "--out", work / "run")
    assert "missing: " in none
    assert "may_be_missing" in none or "head" in none, none
    strange = refuse("train", config, *words, "init.may_be_missing=[category, join, head, tail]", "--out", work / "run")
    assert "may_be_missing: 'tail' names nothing that is missing" in strange
    whole = refuse("train", config, *words, "init.modules=null", "--out", work / "run")
    assert "0 of 93 tensors" in whole
    assert "unexpected: " in whole
    assert not (work / "run").exists()


def curves_of(page: str, title: str) -> list[list[tuple[float, float]]]:
    """Find the points of the curves of a panel of a chart, in the order in which they are drawn."""
    panels = [panel for panel in page.split("<g transform=")[1:] if f">{title}</text>" in panel]
    assert len(panels) == 1, f"{len(panels)} panels of {title}"
    drawn = re.findall(r'<polyline points="([^"]*)"', panels[0].partition("</g>")[0])
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in drawn]


@row("S0.11", "follow the loss within and across modalities apart, beside chance", "`sightline report RUN`")
def _losses_apart(work: Path) -> None:
    run = copy_run("crosspoint", work)
    line = lines_of(run)[0]
    assert {"chance", "intra_modal_of_chance", "cross_modal_of_chance"} <= line.keys()
    assert line["chance"] == pytest.approx(math.log(5))  # of three pairs: one other view among five
    for name in ("intra_modal", "cross_modal"):
        assert abs(line[f"{name}_of_chance"] * line["chance"] - line[f"loss/{name}"]) < 1e-6
    values = {"intra_modal": (1.5, 1.0, 0.25), "cross_modal": (0.75, 2.0, 1.25)}
    lines = [line | {"step": n + 1, **{f"loss/{name}": value[n] for name, value in values.items()}} for n in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    succeed("report", run, "--out", work / "page.html")
    page = (work / "page.html").read_text()
    assert all(f">{curve}<" in page for curve in ("loss/intra_modal", "loss/cross_modal", "train, chance"))
    for name, value in values.items():
        curve, chance = curves_of(page, f"loss/{name}")
        heights = [y for _, y in curve]
        scale = (heights[2] - heights[0]) / (value[2] - value[0])
        assert scale < 0
        levels = [(y - heights[0]) / scale + value[0] for _, y in (*curve, *chance)]
        assert are_close(levels, [*value, *[math.log(5)] * 3], 0.01), f"the page draws other values of {name}"


@row(
    "S0.12",
    "weigh the cross-modal loss more, and compare",
    "`sightline study CONFIG --vary losses.1.weight=1,3 --out DIR`",
)
def _weighted(work: Path) -> None:
    config = CONFIGS / "contrast/synthetic_shapes_crosspoint.yaml"
    plain = (*_PAIRS, "optimizer={name: sgd, lr: 0.001}")
    succeed("study", config, *plain, "--vary", "losses.1.weight=1,2,3", "--seeds", 1, *CPU, "--out", work)
    runs = [work / f"weight_{weight}/seed_0" for weight in (1, 2, 3)]
    first, _, last = (lines_of(run)[0] for run in runs)
    assert first["loss/cross_modal"] == last["loss/cross_modal"]  # of the same first step, before it is weighed
    added = last["loss/total"] - first["loss/total"]
    assert abs(added - 2 * first["loss/cross_modal"]) < 1e-4
    assert abs(first["loss/total"] - first["loss/intra_modal"] - first["loss/cross_modal"]) < 1e-4
    low, middle, high = (weights(run) for run in runs)
    name = "images_head.3.weight"  # which the loss across modalities alone trains
    step_of_one = middle[name] - low[name]
    assert step_of_one.abs().max() > 1e-6, "the weight changes no update"
    assert are_close(high[name] - middle[name], step_of_one, 0.01 * float(step_of_one.abs().max()))
    study = document(work, "study.json")
    metric = study["metric"]
    for row_of, weight, run in zip(study["rows"], (1, 2, 3), runs, strict=True):
        assert row_of["levels"] == {"losses.1.weight": str(weight)}
        assert row_of["values"] == {"0": figures(run)[metric]}
    compared = {each["level"]: each["pairs"] for each in study["differences"]}
    assert compared == {
        str(weight): [figures(run)[metric] - figures(runs[0])[metric]]
        for weight, run in zip((2, 3), runs[1:], strict=True)
    }


def wandb_record(file: Path) -> bytes:
    """Read a file of wandb offline without the heads of its blocks, of 32 KiB each."""
    written, read, place = file.read_bytes(), b"", 7
    while place + 7 <= len(written):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        size = int.from_bytes(written[place + 4 : place + 6], "little")
        read += written[place + 7 : place + 7 + size]
        place += 7 + size
    return read


@row("S0.13", "log to an external service, which cannot crash a step", "`sightline train CONFIG log.wandb=offline`")
def _external(work: Path) -> None:
    words = ("classify/synthetic_shapes_pointnet", *SOLIDS, *NETWORK, "log.wandb=offline")
    run = learn(words[0], work / "run", *words[1:])
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    record = wandb_record(file)
    assert b"loss/cross_entropy" in record
    for line in lines_of(run):
        numbers = {name: value for name, value in line.items() if name.startswith("loss/") or "accuracy" in name}
        assert numbers
        for name, value in numbers.items():
            key, number = re.escape(f"{line['split']}/{name}".encode()), re.escape(json.dumps(value).encode())
            assert re.search(key + rb".{1,8}" + number, record, re.DOTALL), f"{line['split']}/{name} is not {value}"
    assert figures(run)["overall_accuracy"] >= 0
    service = mock.Mock(**{"log.side_effect": ConnectionError("no route to the service")})
    with mock.patch("wandb.init", return_value=service):
        alone = learn(words[0], work / "alone", *words[1:])
    assert service.log.called
    assert "Wandb is switched off, training goes on" in (alone / "train.log").read_text()
    assert document(alone) == document(run)


# --- processes --------------------------------------------------------------------------------------------------------


@row(
    "S0.14",
    "print and log by one process alone, and not hang in the evaluation",
    "`sightline train CONFIG --processes 2`",
)
def _one_voice(work: Path) -> None:
    run = trained_run("pair")
    text = (run.parent / "log").read_text()
    assert [text.count(words) for words in ("epoch 1/1  step 4/4", "validation at step 4")] == [1, 1]
    lines = [line["split"] for line in lines_of(run)]
    assert (lines.count("train"), lines.count("validation")) == (1, 1)
    log = (run / "train.log").read_text()
    assert [log.count(words) for words in ("2 process(es)", "validation at step 4", "end: done")] == [1, 1, 1]
    assert len([*run.rglob("events.out.tfevents.*")]) == 1
    assert document(run)["data"]["num_samples"] == 36
    first = lines_of(run)[0]
    negatives = (3 * 16 * 30 + 12 * 22) / 60  # in three steps of 16 pairs and one of 12, of both processes
    assert (first.get("num_samples"), first.get("negatives")) == (60, pytest.approx(negatives))


@row("S0.15", "get loss and accuracy over all processes, not those of one", "`sightline evaluate RUN --processes 2`")
def _over_all(work: Path) -> None:
    batches = "evaluate.batch_size=5"  # five: each process has some of them
    processes(work / "log", "evaluate", trained_run("plain"), batches, "--json", work / "two.json")
    two = json.loads((work / "two.json").read_text())
    one = document_of("evaluate", trained_run("plain"), batches, *CPU)
    for key in ("metrics", "losses", "confusion", "per_class"):
        assert two[key] == one[key], f"{key} is not that of all processes"
    assert two["data"]["num_samples"] == 24
    assert two["metrics"] == document(trained_run("plain"))["metrics"]
    counts = np.array(two["confusion"]["counts"])
    assert counts.sum() == 24
    assert two["metrics"]["overall_accuracy"] == pytest.approx(counts.trace() / 24)
    assert two["losses"]["cross_entropy"] == pytest.approx(loss_of_plain(), rel=1e-4)


def loss_of_plain() -> float:
    """Compute the mean loss of the run `plain` over its test part, without an evaluation."""
    run = trained_run("plain")
    batch = sightline.load_data(run, "test")[:]
    with torch.no_grad():
        logits = sightline.load_run(run).model(points=batch["points"])["logits"].double().log_softmax(1)
    return -float(logits[torch.arange(len(logits)), batch["label"]].mean())


@row(
    "S0.16",
    "have an empty loader refused by name",
    "`sightline train CONFIG` ends in one line with both sizes, finding `empty-loader` of `sightline check CONFIG`",
)
def _empty_loader(work: Path) -> None:
    words = (*SOLIDS[:3], *NETWORK, "evaluate.select=test")
    error = refuse(
        "train", _SOLIDS, *words, "train.batch_size=64", "train.tail=drop", "train.steps=1", "--out", work / "run"
    )
    assert "train.tail: drop leaves no step: 24 samples are fewer than train.batch_size 64;" in error
    assert not (work / "run").exists()
    found = findings(_SOLIDS, *words, "train.batch_size=64", skip_but("empty-loader"))
    assert "empty-loader" in found, f"no finding names the loader, only {sorted(found)}"
    assert found["empty-loader"]["summary"] == "train.batch_size is 64, the training part has 24 samples"
    assert found["empty-loader"]["cause"] == "data.sampling"
    enough = findings(_SOLIDS, *words, "train.batch_size=24", skip_but("empty-loader"))
    assert "empty-loader" not in enough


class TwoOutputs(PointNetPlainOutput):
    """Those of a PointNet, and a value at each point that no loss reads."""

    second: Tensor


@row(
    "S0.17",
    "have outputs that no loss uses named before a parallel training",
    "`sightline check CONFIG`, finding `unused-parameters` or `no-gradient`",
)
def _unused(work: Path) -> None:
    class TwoHeads(PointNetPlain):
        def __init__(self, *, num_classes: int, in_channels: int, is_called: bool = True) -> None:
            super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
            self.second_head = nn.Linear(3, num_classes)
            self.is_called = is_called

        def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
            self.second = self.second_head(points) if self.is_called else None
            return super().forward(points=points, features=features)

    class Returning(TwoHeads):
        def forward(self, *, points: Tensor, features: Tensor | None = None) -> TwoOutputs:
            outputs = super().forward(points=points, features=features)
            return {**outputs, "second": self.second}

    words = (*SOLIDS, "losses=[{name: cross_entropy}]", skip_but("unused-parameters", "no-gradient"))
    with registered(registry.models, two_heads=TwoHeads, returning=Returning):
        found = findings(_SOLIDS, *words, "model={name: two_heads}")
        never = findings(_SOLIDS, *words, "model={name: two_heads, is_called: false}")
        returned = findings(_SOLIDS, *words, "model={name: returning}")
    for code, each in (("no-gradient", found), ("unused-parameters", never), ("no-gradient", returned)):
        assert code in each, f"no finding names the outputs, only {sorted(each)}"
        summary = each[code]["summary"]
        assert "second_head.weight" in summary
        assert "second_head.bias" in summary
        assert "encode" not in summary  # layers that the loss uses


@contextmanager
def passes_noted() -> Iterator[list[tuple[bool, int]]]:
    """Note for each pass of `pointnet_plain` whether it is one of training, and its number of clouds."""
    noted: list[tuple[bool, int]] = []
    forward: Callable[..., Any] = PointNetPlain.forward

    @functools.wraps(forward)
    def note(model: PointNetPlain, **inputs: Any) -> Any:
        noted.append((model.training, len(inputs["points"])))
        return forward(model, **inputs)

    with mock.patch.object(PointNetPlain, "forward", note):
        yield noted


@row(
    "S0.18",
    "share one evaluation between training and test, with a batch size of its own",
    "`sightline evaluate RUN evaluate.batch_size=128`",
)
def _one_evaluation(work: Path) -> None:
    plain = trained_run("plain")
    with passes_noted() as passes:
        once = document_of("evaluate", plain, *CPU, "evaluate.batch_size=5")
    assert passes == [(False, size) for size in (5, 5, 5, 5, 4)]
    assert once["metrics"] == document(plain)["metrics"]
    assert once["losses"]["cross_entropy"] == pytest.approx(document(plain)["losses"]["cross_entropy"], rel=1e-5)
    assert once["overrides"] == ["evaluate.batch_size=5"]
    words = (*SOLIDS, *NETWORK, "evaluate.batch_size=5", "evaluate.select=test")
    with passes_noted() as passes:
        run = learn("classify/synthetic_shapes_pointnet", work / "run", *words)
    assert passes[0] == (True, 8)
    assert passes[1:4] == [(False, size) for size in (5, 5, 2)]
    assert not [each for each in passes[4:] if each[0] or each[1] > 5], "the test is evaluated in other batches"
    (line,) = [line for line in lines_of(run) if line["split"] == "test-selected"]
    assert {name: line[name] for name in figures(run)} == figures(run)
    assert line["loss/cross_entropy"] == document(run)["losses"]["cross_entropy"]
    assert document_of("evaluate", run, *CPU)["metrics"] == figures(run)
