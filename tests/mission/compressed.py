"""What notes on compressing a Point Transformer ask for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sightline
from sightline.areas.clouds.sets.shapenet_part import ShapeNetPart
from sightline.contract.types import SampleKey
from tests.command import succeed
from tests.data.clouds.shapenet_part_writers import NAMES, shape_of
from tests.mission.clouds import learn_rooms, prepare_parts
from tests.mission.published import assert_reached
from tests.mission.rows import row
from tests.mission.small import CONFIGS, CPU, SOLIDS, document, figures, find_fault, learn, said, step
from tests.runtime.planted_loops import PLANTS
from tests.trained import copy_run, trained_run


@row(
    "S2.1",
    "read ShapeNet's text archive as it is unpacked",
    "`sightline data prepare shapenet_part --from PATH --to DIR`",
)
def _archive(work: Path) -> None:
    parts = ShapeNetPart(split="test", root=str(prepare_parts(work)), normals="file")
    assert len(parts) == len(NAMES)
    for index, name in enumerate(NAMES):
        sample, shape = parts[SampleKey(index, 0, 0)], shape_of(name, "d")
        assert np.allclose(sample["points"], shape.points, atol=1e-6)
        assert np.allclose(sample["normals"], shape.normals, atol=1e-6)
        assert sample["label"].tolist() == shape.parts.tolist()


@row(
    "S2.2",
    "segment parts with the Point Transformer",
    "`sightline train configs/segment/shapenet_part_point_transformer.yaml`",
)
def _transformer(work: Path) -> None:
    narrow = "{name: point_transformer, widths: [16, 32], strides: [1, 4], num_blocks: [1, 1], num_neighbours: [8, 8]}"
    points = [f"transforms.{when}.0.num_points=24" for when in ("train", "evaluate")]
    words = (f"data.root={prepare_parts(work)}", f"model={narrow}", *points, "train.batch_size=8")
    found = document(learn("segment/shapenet_part_point_transformer", work / "run", *words))
    assert 0 < found["metrics"]["instance_miou"] < 1
    assert len(found["per_class"]) >= 16


# --- compression ------------------------------------------------------------------------------------------------------


@row(
    "S2.3",
    "run the stages apart: pre-train, search, fine-tune",
    "`sightline compress run RUN --stop-after search --out DIR`, `--stop-after finetune`, and without it",
)
def _stages(work: Path) -> None:
    search = (
        "--method",
        "uniform",
        "--bits",
        "2,4",
        "--ratio",
        0.2,
        "--calibration",
        8,
        "--epochs",
        1,
        "train.steps=2",
    )
    words = (copy_run("plain", work / "float"), *search, *CPU, "--out", work / "run")
    succeed("compress", "run", *words, "--stop-after", "search")
    searched = (work / "run/work/policy.json").read_bytes()
    assert not (work / "run/work/finetuned").exists()
    succeed("compress", "run", *words, "--stop-after", "finetune")
    assert (work / "run/work/finetuned/final.json").exists()
    assert not (work / "run/model.slq").exists()
    succeed("compress", "run", *words)
    assert (work / "run/model.slq").exists()
    assert (work / "run/work/policy.json").read_bytes() == searched  # what was there was gone on from


def bits_of(run: Path) -> dict[str, int]:
    """Read how many bits each layer has by the policy of a search."""
    policy = json.loads((run / "work/policy.json").read_text())
    return {name: layer["bits"] for name, layer in policy.items()}


@row("S2.4", "search the bits by reinforcement learning", "`sightline compress run RUN --method ddpg --out DIR`")
def _ddpg(work: Path) -> None:
    run = trained_run("searched")
    lines = [json.loads(line) for line in (run / "work/evaluations.jsonl").read_text().splitlines()]
    losses = {json.dumps(line["policy"]): line["loss"] for line in lines}
    assert len(losses) > 4
    chosen = json.dumps(json.loads((run / "work/policy.json").read_text()))
    tried = [loss for policy, loss in losses.items() if "fp32" not in policy]
    assert losses.get(chosen, min(tried)) == min(tried)


@row("S2.5", "restrict the bits to 2 and 4", "`sightline compress run RUN --bits 2,4 --out DIR`")
def _two_and_four(work: Path) -> None:
    assert set(list(bits_of(trained_run("searched")).values())[1:-1]) <= {2, 4}


@row(
    "S2.6",
    "preserve a tenth of the size of the weights",
    "`sightline compress run RUN --ratio 0.1 --on weights --out DIR`",
)
def _tenth(work: Path) -> None:
    words = ("--method", "uniform", "--ratio", 0.1, "--on", "weights", "--calibration", 8, "--epochs", 0)
    succeed("compress", "run", trained_run("plain"), *words, *CPU, "--out", work / "run")
    made = document(work / "run", "compression.json")
    assert 0.05 < made["ratios"]["weights"] <= 0.1
    assert (work / "run/model.slq").stat().st_size == made["file_bytes"] < made["float_bytes"] / 4


@row("S2.7", "give the first and the last layer more bits", "`sightline compress run RUN --protect-ends 1 --out DIR`")
def _ends(work: Path) -> None:
    first, *between, last = bits_of(trained_run("searched")).values()
    assert (first, last) == (8, 8)
    assert max(between) < 8


@row("S2.8", "distil from the float model", "`sightline compress run RUN --distil --out DIR`")
def _distilled(work: Path) -> None:
    run = trained_run("packed") / "work/finetuned"
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    expected = 0.3 * line["loss/cross_entropy"] + 0.7 * line["loss/distillation"]
    assert line["loss/total"] == pytest.approx(expected, rel=1e-6)


@row(
    "S2.9",
    "tabulate float, mix, preserved, fine-tuned and distilled",
    "`sightline compress report RUN --out DIR`",
)
def _table(work: Path) -> None:
    words = (
        "--method",
        "uniform",
        "--bits",
        "2,4",
        "--ratio",
        0.15,
        "--calibration",
        8,
        "--epochs",
        1,
        "train.steps=1",
    )
    succeed("compress", "report", copy_run("plain", work / "float"), *words, *CPU, "--out", work / "table")
    table = (work / "table/compression.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        *("float", "float, trained as long", "mix", "mix + fine-tuning", "mix + fine-tuning + distillation"),
        *("0.15 preserve", "0.15 preserve, mix", "0.15 preserve, mix + fine-tuning"),
        "0.15 preserve, mix + fine-tuning + distillation",
    ]


@row(
    "S2.10",
    "report accuracy and mIoU of categories and of instances together",
    "`sightline evaluate RUN` of a segmentation",
)
def _three_figures(work: Path) -> None:
    text = said("evaluate", trained_run("parts"), "--plugin", trained_run("parts").parent / "plugin.py", *CPU)
    for name in ("point_accuracy", "class_miou", "instance_miou"):
        assert f"│ {name} │ {figures(trained_run('parts'))[name]:.4f} │" in text


# --- silent bugs ------------------------------------------------------------------------------------------------------


@row(
    "S2.11",
    "report mIoU by category, pooled and never averaged over batches",
    "`sightline check CONFIG`, finding `per-batch-metric`",
)
def _pooled(work: Path) -> None:
    assert find_fault("E1", "per-batch-metric")["severity"] == "error"


@row("S2.12", "catch gradients that are not cleared", "`sightline.watch(...)`, finding `gradients-kept`")
def _kept(work: Path) -> None:
    found = PLANTS["zero_grad is missing"].run().findings
    assert [(finding.code, finding.cause) for finding in found] == [("gradients-kept", "optim.grad_accumulation")]


@row(
    "S2.13",
    "catch empty clusters, and the NaN that comes of them",
    "`sightline check CONFIG`, findings `broken-codebook`, `non-finite`",
)
def _empty_clusters(work: Path) -> None:
    assert find_fault("O61", "broken-codebook")["severity"] == "error"
    assert find_fault("K1", "broken-codebook")["severity"] == "error"
    assert [finding.code for finding in PLANTS["NaN in the data"].run().findings] == ["non-finite"]


@row(
    "S2.14", "catch outputs that are frozen after quantisation", "`sightline check CONFIG`, finding `quantised-outputs`"
)
def _frozen(work: Path) -> None:
    assert find_fault("K17", "quantised-outputs")["severity"] == "error"


# --- other sets, and lengths ------------------------------------------------------------------------------------------


@row(
    "S2.15",
    "segment S3DIS, also for a few epochs alone",
    "`sightline train configs/segment/s3dis_point_transformer.yaml train.epochs=4`",
)
def _few_epochs(work: Path) -> None:
    run = learn_rooms(work, "train.steps=null", "train.epochs=4", "evaluate.every=4")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["epoch"] for line in lines if line["split"] == "train"} == {0, 1, 2, 3}
    assert document(run)["data"]["num_samples"] == 2


@row(
    "S2.16",
    "classify ModelNet40 by PCT, also in a notebook",
    "`sightline train configs/classify/modelnet40_pct.yaml`, `sightline.train_run(CONFIG)`",
)
def _pct(work: Path) -> None:
    step("classify/modelnet40_pct", work)
    words = [*SOLIDS, "model={num_centres: [16, 8], num_neighbours: 4}", "train.steps=1", "log.tensorboard=false"]
    result = sightline.train_run(CONFIGS / "classify/synthetic_shapes_pct.yaml", words, out=work / "run", device="cpu")
    assert result.is_finished
    assert result.document is not None
    assert result.document["metrics"] == figures(work / "run")


@row(
    "S2.17",
    "stand beside the papers' figures of ShapeNet, S3DIS and ModelNet40 at full length",
    "`sightline evaluate RUN --against published`, docs/results/gpu/results.jsonl",
    letter="E",
)
def _full_length(work: Path) -> None:
    assert_reached("modelnet40", "shapenet_part", "s3dis")
