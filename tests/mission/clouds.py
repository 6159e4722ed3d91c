"""What notes on self-supervised learning of point clouds ask for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor, nn

import sightline
from sightline.areas.clouds.models.pointnet import PointNetPlain, PointNetPlainOutput
from sightline.contract import registry
from tests.command import document_of, refuse, succeed
from tests.data.clouds import modelnet_writers, shapenet_part_writers, shapenet_render_writers
from tests.data.scenes.scene_writers import write_s3dis
from tests.engine.published_weights import registered
from tests.mission.rows import row
from tests.mission.small import (
    CONFIGS,
    CPU,
    NETWORK,
    SOLIDS,
    document,
    figures,
    find_fault,
    findings,
    learn,
    processes,
    said,
    step,
)
from tests.trained import copy_run, trained_run

_PARTS = (
    "model={name: dgcnn_parts, num_neighbours: 4, embedding: 16}",
    *("transforms.train.0.num_points=24", "transforms.evaluate.0.num_points=24", "train.batch_size=8"),
)
_PAIRS = (
    *("data.train_size=24", "data.test_size=8", "data.num_points=192", "data.views.count=2", "train.batch_size=8"),
    *("train.steps=1", "log.tensorboard=false", "evaluate.select=test"),
)
_SOLIDS = CONFIGS / "classify/synthetic_shapes_pointnet.yaml"


# --- data sets --------------------------------------------------------------------------------------------------------


@row(
    "S0.1",
    "train on ModelNet40, from text files with normals or packed",
    "`sightline data prepare modelnet40 --from PATH --to DIR`",
)
def _modelnet40(work: Path) -> None:
    run = trained_run("modelnet")
    assert document(run)["data"] == {"name": "modelnet40", "split": "test", "num_samples": 2}
    assert sightline.load_run(run).facts["in_channels"] == 6
    packed = modelnet_writers.write_layout("npz", work / "packed")
    made = document_of("data", "prepare", "modelnet40", "--from", packed, "--to", work / "set")
    assert (made["layout"], made["splits"]["train"]["num_rows"]) == ("npz", 6)


@row(
    "S0.2",
    "train on the 16 kinds and 50 parts of ShapeNetPart, six columns and a label a point",
    "`sightline data prepare shapenet_part --from PATH --to DIR`",
)
def _shapenet_part(work: Path) -> None:
    root = prepare_parts(work)
    run = learn("segment/shapenet_part_dgcnn", work / "run", f"data.root={root}", "data.normals=file", *_PARTS)
    facts = sightline.load_run(run).facts
    assert (len(facts["parts_of_category"]), facts["num_classes"], facts["in_channels"]) == (16, 50, 6)
    assert 0 < figures(run)["instance_miou"] < 1


def prepare_parts(work: Path) -> Path:
    """Prepare a small ShapeNetPart."""
    source = shapenet_part_writers.write_text(work / "parts")
    succeed("data", "prepare", "shapenet_part", "--from", source, "--to", work / "set")
    return work / "set"


@row("S0.3", "segment the rooms of S3DIS", "`sightline data prepare s3dis --from PATH --to DIR`")
def _s3dis(work: Path) -> None:
    run = learn_rooms(work)
    assert document(run)["data"] == {"name": "s3dis", "split": "test", "num_samples": 2}  # area 5
    assert sightline.load_run(run).facts["num_classes"] == 13
    assert document(run)["confusion"]["counts"][0] == [0] * 13  # no ceiling there


def learn_rooms(work: Path, *words: str) -> Path:
    """Train a Point Transformer on small rooms."""
    succeed("data", "prepare", "s3dis", "--from", write_s3dis(work / "rooms"), "--to", work / "set")
    narrow = "{name: point_transformer, widths: [16, 32], strides: [1, 4], num_blocks: [1, 1], num_neighbours: [8, 8]}"
    few = (f"data.root={work / 'set'}", "data.repeats=1", "train.batch_size=2", f"model={narrow}")
    return learn("segment/s3dis_point_transformer", work / "run", *few, *words)


@row(
    "S0.4",
    "pair clouds with rendered images, and be told which half is missing",
    "`sightline data prepare shapenet_render --from PATH --to DIR`",
)
def _shapenet_render(work: Path) -> None:
    source = shapenet_render_writers.write_release(work / "release")
    shutil.rmtree(source / "ShapeNetRendering/02691156/10155/rendering")
    text = said("data", "prepare", "shapenet_render", "--from", source, "--to", work / "set", "size_px=12")
    assert "02691156 airplane: clouds 2, image_folders 2, pairs 1" in text
    assert "left out: 02691156/10155 (0 of 24)" in text
    assert figures(trained_run("crosspoint"))["cross_retrieval_accuracy"] >= 0  # pairs of such files were trained on


@row("S0.5", "keep data behind links, and be told where files were sought", "`sightline train CONFIG data.root=LINK`")
def _links(work: Path) -> None:
    (work / "link").symlink_to(trained_run("modelnet").parent / "set")
    words = ("data.num_points=6", "data.normals=file", "train.batch_size=3", *NETWORK, "evaluate.select=test")
    linked = learn("classify/modelnet40_pointnet", work / "run", f"data.root={work / 'link'}", *words)
    assert document(linked) == document(trained_run("modelnet"))
    error = refuse("train", CONFIGS / "classify/modelnet40_pointnet.yaml", f"data.root={work / 'gone'}")
    assert f"{work / 'gone'}: there is no such folder" in error
    assert f"sightline data prepare modelnet40 --from PATH --to {work / 'gone'}" in error


@row("S0.6", "see how many objects a class has, and how many points an object", "`sightline data info DIR`")
def _counts(work: Path) -> None:
    text = said("data", "info", trained_run("modelnet").parent / "set")
    assert "airplane 3, bathtub 0, bed 1" in text
    assert "points_per_shape: 6" in text


@row(
    "S0.7",
    "know the axis order that a network expects",
    "`sightline describe CONFIG`, finding `exchanged-axes` of `sightline check CONFIG`",
)
def _axis_order(work: Path) -> None:
    rows = document_of("describe", _SOLIDS, *SOLIDS, *NETWORK)["modules"]
    assert rows[0]["inputs"][0][1:] == [32, 3]  # points, then coordinates
    assert "turns (8, 64, 3) into (8, 3, 64)" in find_fault("O8", "exchanged-axes")["summary"]


# --- pre-training and what follows it ---------------------------------------------------------------------------------


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


@row(
    "S0.9",
    "pre-train the per-point branch, then fine-tune it on parts",
    "`sightline train configs/segment/shapenet_part_dgcnn_from_crosspoint.yaml init.from=RUN`",
)
def _fine_tune(work: Path) -> None:
    words = (f"data.root={prepare_parts(work)}", *_PARTS, f"init.from={trained_run('crosspoint')}")
    run = learn("segment/shapenet_part_dgcnn_from_crosspoint", work / "run", *words)
    assert "68 of 93 tensors" in (run / "train.log").read_text()
    lineage = document(run, "lineage.json")
    assert (lineage["from"], lineage["match"]["matched"]) == (str(trained_run("crosspoint")), 68)


@row(
    "S0.10",
    "see how many weights matched; unmatched names are refused",
    "`sightline train CONFIG init.from=RUN init.may_be_missing=[head]`",
)
def _matched(work: Path) -> None:
    words = (f"data.root={prepare_parts(work)}", *_PARTS, f"init.from={trained_run('crosspoint')}")
    config = CONFIGS / "segment/shapenet_part_dgcnn_from_crosspoint.yaml"
    error = refuse("train", config, *words, "init.may_be_missing=[head]", "--out", work / "run")
    assert "68 of 93 tensors" in error
    assert "missing: category.linear.weight" in error
    assert not (work / "run").exists()


@row("S0.11", "follow the loss within and across modalities apart, beside chance", "`sightline report RUN`")
def _losses_apart(work: Path) -> None:
    run = copy_run("crosspoint", work)
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("intra_modal", "cross_modal"):
        assert abs(line[f"{name}_of_chance"] * line["chance"] - line[f"loss/{name}"]) < 1e-6
    succeed("report", run, "--out", work / "page.html")
    page = (work / "page.html").read_text()
    assert all(f">{curve}<" in page for curve in ("loss/intra_modal", "loss/cross_modal", "train, chance"))


@row(
    "S0.12",
    "weigh the cross-modal loss more, and compare",
    "`sightline study CONFIG --vary losses.1.weight=1,3 --out DIR`",
)
def _weighted(work: Path) -> None:
    config = CONFIGS / "contrast/synthetic_shapes_crosspoint.yaml"
    succeed("study", config, *_PAIRS, "--vary", "losses.1.weight=1,3", "--seeds", 1, *CPU, "--out", work)
    first, second = (
        json.loads((work / f"weight_{weight}/seed_0/metrics.jsonl").read_text().splitlines()[0]) for weight in (1, 3)
    )
    assert first["loss/cross_modal"] == second["loss/cross_modal"]  # of the same first step, before it is weighed
    added = second["loss/total"] - first["loss/total"]
    assert abs(added - 2 * first["loss/cross_modal"]) < 1e-4


@row("S0.13", "log to an external service, which cannot crash a step", "`sightline train CONFIG log.wandb=offline`")
def _external(work: Path) -> None:
    run = learn("classify/synthetic_shapes_pointnet", work / "run", *SOLIDS, *NETWORK, "log.wandb=offline")
    (record,) = (run / "wandb").glob("offline-run-*/*.wandb")
    assert b"loss/cross_entropy" in record.read_bytes()
    assert figures(run)["overall_accuracy"] >= 0


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
    lines = [json.loads(line)["split"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (lines.count("train"), lines.count("validation")) == (1, 1)
    assert document(run)["data"]["num_samples"] == 36


@row("S0.15", "get loss and accuracy over all processes, not those of one", "`sightline evaluate RUN --processes 2`")
def _over_all(work: Path) -> None:
    processes(work / "log", "evaluate", trained_run("plain"), "--json", work / "two.json")
    two, one = json.loads((work / "two.json").read_text()), document(trained_run("plain"))
    assert {key: two[key] for key in ("metrics", "losses", "confusion")} == {
        key: one[key] for key in ("metrics", "losses", "confusion")
    }
    assert two["data"]["num_samples"] == 24


@row("S0.16", "have an empty loader refused by name", "`sightline train CONFIG` ends with `empty-loader`")
def _empty_loader(work: Path) -> None:
    words = (*SOLIDS[:3], *NETWORK, "train.batch_size=64", "train.tail=drop", "evaluate.select=test")
    error = refuse("train", _SOLIDS, *words, "--out", work / "run")
    assert "24" in error


@row(
    "S0.17",
    "have outputs that no loss uses named before a parallel training",
    "`sightline check CONFIG`, finding `unused-parameters` or `no-gradient`",
)
def _unused(work: Path) -> None:
    class TwoHeads(PointNetPlain):
        def __init__(self, *, num_classes: int, in_channels: int) -> None:
            super().__init__(num_classes=num_classes, in_channels=in_channels, embedding=16)
            self.second_head = nn.Linear(3, num_classes)

        def forward(self, *, points: Tensor, features: Tensor | None = None) -> PointNetPlainOutput:
            self.second = self.second_head(points)
            return super().forward(points=points, features=features)

    with registered(registry.models, two_heads=TwoHeads):
        found = findings(_SOLIDS, *SOLIDS, "model={name: two_heads}", "losses=[{name: cross_entropy}]")
    (code,) = found.keys() & {"unused-parameters", "no-gradient"}
    assert "second_head.weight" in found[code]["summary"]


@row(
    "S0.18",
    "share one evaluation between training and test, with a batch size of its own",
    "`sightline evaluate RUN evaluate.batch_size=128`",
)
def _one_evaluation(work: Path) -> None:
    once = document_of("evaluate", trained_run("plain"), *CPU, "evaluate.batch_size=5")
    assert once["metrics"] == document(trained_run("plain"))["metrics"]
    assert once["overrides"] == ["evaluate.batch_size=5"]
