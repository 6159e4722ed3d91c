"""What notes on compressing a Point Transformer ask for."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import sightline
from sightline.areas.clouds.models.pct import OffsetAttention
from sightline.areas.clouds.sets.shapenet_part import ShapeNetPart
from sightline.areas.scenes.sets.s3dis import S3dis
from sightline.compression import parametrised
from sightline.compression.policy import Policy, WeightFormat
from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.layers.vector_attention import PlainVectorAttention
from sightline.parts.metrics import Meter, PartIoU
from sightline.training import published_results
from sightline.workbench.compress.evaluations import EvaluationCache
from sightline.workbench.compress.layer_costs import LayerCost
from sightline.workbench.compress.problem import SearchProblem
from sightline.workbench.compress.search.base import PolicyEvaluator
from tests.command import document_of, succeed
from tests.data.clouds.shapenet_part_writers import CATEGORIES, NAMES, shape_of, write_text
from tests.data.scenes.scene_writers import ROOMS, annotation
from tests.mission.cloud_sets import learn_rooms, prepare_parts
from tests.mission.published import assert_reached
from tests.mission.recomputed import (
    answer_clouds,
    are_in_order,
    attend_offsets,
    count_values,
    distilled,
    means_of_clusters,
    read_weights,
    run_pct,
    run_point_transformer,
    score_classes,
    score_parts,
)
from tests.mission.rows import part, row
from tests.mission.small import (
    CONFIGS,
    CPU,
    SOLIDS,
    document,
    figures,
    find_fault,
    findings,
    learn,
    said,
    skip_but,
    step,
)
from tests.planted.planting import BENCHES
from tests.recipe_steps import TrainingStep
from tests.runs.segments import PARTS
from tests.runtime.healthy_loops import train
from tests.runtime.planted_loops import PLANTS
from tests.trained import copy_run, trained_run


@row(
    "S2.1",
    "read ShapeNet's text archive as it is unpacked",
    "`sightline data prepare shapenet_part --from PATH --to DIR`",
)
def _archive(work: Path) -> None:
    """The folder of the archive lies in what was unpacked, beside what else does; no list names one of its shapes."""
    source = write_text(work / "unpacked/shapenetcore_partanno_segmentation_benchmark_v0_normal")
    shutil.copy(source / "03797390/a.txt", source / "03797390/unlisted.txt")
    succeed("data", "prepare", "shapenet_part", "--from", work / "unpacked", "--to", work / "set")
    for split, keys in {"train": "ab", "validation": "c", "test": "d"}.items():
        parts = ShapeNetPart(split=split, root=str(work / "set"), normals="file")
        shapes = [(category, name, key) for category, name in enumerate(NAMES) for key in keys]
        assert len(parts) == len(shapes)
        for index, (category, name, key) in enumerate(shapes):
            sample, shape = parts[SampleKey(index, 0, 0)], shape_of(name, key)
            assert parts.sample_name(index) == f"{CATEGORIES[name][0]}/{key}"
            assert np.allclose(sample["points"], shape.points, atol=1e-6)
            assert np.allclose(sample["normals"], shape.normals, atol=1e-6)
            assert sample["label"].tolist() == shape.parts.tolist()
            assert int(sample["category"]) == category


@row(
    "S2.2",
    "segment parts with the Point Transformer",
    "`sightline train configs/segment/shapenet_part_point_transformer.yaml`",
)
def _transformer(work: Path) -> None:
    narrow = "{name: point_transformer, widths: [16, 32], strides: [1, 4], num_blocks: [1, 1], num_neighbours: [8, 8]}"
    points = ("transforms.train.0.num_points=24", "transforms.evaluate=[]")
    words = (f"data.root={prepare_parts(work)}", f"model={narrow}", *points, "train.batch_size=8")
    run = learn("segment/shapenet_part_point_transformer", work / "run", *words)
    found = document(run)
    assert 0 < found["metrics"]["instance_miou"] < 1
    assert len(found["per_class"]) >= 16
    for name, value in score_parts(run).items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-9), name
    _assert_point_transformer(run)


def _assert_point_transformer(run: Path) -> None:
    """Compare what the network makes of shapes with the paper's formulas."""
    model = sightline.load_run(run).model
    sharpen(module.score for module in model.modules() if isinstance(module, PlainVectorAttention))
    for sample in itertools.islice(sightline.load_data(run, "test"), 3):
        with torch.no_grad():
            found = model(points=sample["points"][None], features=sample["features"][None])["logits"][0].numpy()
        points, features = (sample[name].double().numpy() for name in ("points", "features"))
        expected = run_point_transformer(model, points, features, num_neighbours=8)
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def sharpen(layers: Iterable[nn.Linear]) -> None:
    """Let points attend to some more than to others: let weights of attention be eightfold."""
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(8)


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
    searched, policy = (work / "run/work/policy.json").read_bytes(), bits_of(work / "run")
    floats = read_weights(work / "float/run", [*policy])
    assert set(policy.values()) <= {2, 4}
    assert not (work / "run/work/finetuned").exists()
    succeed("compress", "run", *words, "--stop-after", "finetune")
    assert (work / "run/work/finetuned/final.json").exists()
    assert not (work / "run/model.slq").exists()
    tuned = read_weights(work / "run/work/finetuned", [*policy])
    succeed("compress", "run", *words)
    assert (work / "run/model.slq").exists()
    assert (work / "run/work/policy.json").read_bytes() == searched  # what was there was gone on from
    packed = read_weights(work / "run", [*policy])
    assert count_values(packed) == {name: 2**bits for name, bits in policy.items()}
    for name, weight in packed.items():
        assert np.array_equal(weight, tuned[name]), name  # the fine-tuned ones
        assert are_in_order(floats[name], weight), name  # quantised from the float run's
    moved = [means_of_clusters(floats[name], weight) for name, weight in packed.items()]
    assert max(np.abs(values / means - 1).max() for values, means in moved) > 2e-3  # and then trained


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
    assert document(run, "work/asked.json")["method"][0] == "ddpg"
    _assert_agent_learns()


def _assert_agent_learns() -> None:
    """Compare the policies of its last episodes with those that it draws at random first, and with no learning.

    Five equal layers, of which bits are worth most in the first and least in the last, and 3.2 bits on average.
    """
    layers = tuple(LayerCost(f"layer{place}", 1000, 8 * (place + 1), 8 * (place + 2)) for place in range(5))
    worth = dict(zip((layer.name for layer in layers), (8.0, 4.0, 1.0, 0.1, 0.02), strict=True))
    losses: list[float] = []

    def loss_of(policy: Policy) -> float:
        loss = sum(worth[name] * 2.0**-choice.bits for name, choice in policy.items() if choice.bits != 32)
        losses.append(loss)
        return loss

    choices = tuple(WeightFormat("codebook", bits) for bits in range(1, 9))
    problem = SearchProblem(layers, choices, lambda policy: 125 * sum(each.bits for each in policy.values()), 2000)
    component = ComponentConfig("ddpg", {"episodes": 80, "max_evaluations": 1000, "seed": 1})
    search = registry.searches.build(component, facts={})
    best = search.run(problem, PolicyEvaluator(problem, EvaluationCache(loss_of), at_most=1000))
    assert len(losses) > 60, f"only {len(losses)} policies were tried in 80 episodes"
    first, last = losses[2:18], losses[-16:]  # each policy once: the float model, the uniform one, those of episodes
    assert np.mean(last) < 0.8 * np.mean(first)  # 0.4 to 0.6 by the seed; 0.9 to 1.3 of an agent that draws
    bits = [choice.bits for choice in best.values()]
    assert sum(bits) <= 16
    assert bits[0] + bits[1] > bits[3] + bits[4]


@row("S2.5", "restrict the bits to 2 and 4", "`sightline compress run RUN --bits 2,4 --out DIR`")
def _two_and_four(work: Path) -> None:
    """In the policy, in all that the search tried, and in the packed weights."""
    assert set(list(bits_of(trained_run("searched")).values())[1:-1]) <= {2, 4}
    run, words = copy_run("searched", work), (trained_run("searched").parent / "words").read_text().splitlines()
    lines = [json.loads(line) for line in (run / "work/evaluations.jsonl").read_text().splitlines()]
    tried = [[layer.get("bits", 32) for layer in line["policy"].values()] for line in lines]
    assert {bits for policy in tried if 32 not in policy for bits in policy[1:-1]} == {2, 4}
    succeed("compress", "run", work / "float/run", *words, "--out", run)
    policy = bits_of(run)
    assert count_values(read_weights(run, [*policy])) == {name: 2**bits for name, bits in policy.items()}


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
    weights = read_weights(work / "run", [*made["policy"]])
    assert {*count_values(weights).values()} == {2**3}  # 3 of 32 bits are less than a tenth, 4 are more
    assert made["ratios"]["weights"] == pytest.approx(3 / 32)
    values = [weight.size for weight in weights.values()]
    coded = sum(math.ceil(3 * size / 8) + 2 * 2**3 for size in values)  # codes, and centres in half precision
    assert made["ratios"]["codebook"] == pytest.approx(coded / (4 * sum(values)))
    assert made["ratios"]["file"] == pytest.approx(made["file_bytes"] / made["float_bytes"])


@row("S2.7", "give the first and the last layer more bits", "`sightline compress run RUN --protect-ends 1 --out DIR`")
def _ends(work: Path) -> None:
    first, *between, last = bits_of(trained_run("searched")).values()
    assert (first, last) == (8, 8)
    assert max(between) < 8
    words = ("--method", "uniform_protected", "--bits", "2,4", "--ratio", 0.15, "--on", "weights")
    words = (*words, "--protect-ends", 1, "--calibration", 8, "--epochs", 0)
    succeed("compress", "run", trained_run("plain"), *words, *CPU, "--out", work / "run")
    weights = read_weights(work / "run", [*document(work / "run", "compression.json")["policy"]])
    first, *between, last = count_values(weights).values()
    assert min(first, last) > 2**4  # 8 bits, as far as so few weights need them
    assert max(between) <= 2**4


@row("S2.8", "distil from the float model", "`sightline compress run RUN --distil --out DIR`")
def _distilled(work: Path) -> None:
    run = trained_run("packed") / "work/finetuned"
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    expected = 0.3 * line["loss/cross_entropy"] + 0.7 * line["loss/distillation"]
    assert line["loss/total"] == pytest.approx(expected, rel=1e-6)
    source = run.parents[2] / "float/run"
    step = TrainingStep(read_config(run / "config.yaml", (f"init.from={source}", f"teacher.from={source}")))
    (batch,), student, teacher = step.micro_batches, step.job.model.eval(), sightline.load_run(source).model
    with torch.no_grad():
        for parameter in student.get_submodule("head").parameters():
            parameter.mul_(3)  # so that they differ by more than rounding
        sums = step.job.task.losses(student, batch, step.job.task.prepare(student, [batch], step.world)[1][0])
        ours, theirs = (model(points=batch["points"])["logits"].double().numpy() for model in (student, teacher))
    distance = distilled(ours, theirs, temperature=4.0)
    assert distance > 0.05
    assert float(sums["distillation"]) / len(ours) == pytest.approx(distance, rel=1e-3)


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
    cells = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    _assert_rows(work, {name: [cell.strip() for cell in cells[name].split("|")[2:-1]] for name in rows[2:]})


def _assert_rows(work: Path, rows: dict[str, list[str]]) -> None:
    """Compare the figures of each row with those of its own file's network, and its bits and training with its name."""
    names = [*document(work / "table", "compression.json")["policies"]["mix, seed 0"]]
    for name, (accuracy, class_accuracy, _, num_bytes, codes, *_) in rows.items():
        folder = work / "table/rows" / f"{name.replace(' ', '_').replace(',', '').replace('+_', '')}_seed_0"
        is_quantised, tuned = not name.startswith("float"), folder / "work/finetuned"
        run = work / "float/run" if name == "float" else folder if is_quantised else tuned
        scores = score_classes(*answer_clouds(run))
        assert accuracy == f"{scores['overall_accuracy']:.4f}", name
        assert class_accuracy == f"{scores['mean_class_accuracy']:.4f}", name
        assert tuned.exists() == ("fine-tuning" in name or name == "float, trained as long"), name
        if tuned.exists():
            written = yaml.safe_load((tuned / "config.yaml").read_text())
            assert (written.get("teacher") is not None) == ("distillation" in name), name
        if not is_quantised:
            assert codes == "1.0000", name
            continue
        assert num_bytes == f"{(folder / 'model.slq').stat().st_size:,}", name
        first, *between, last = count_values(read_weights(folder, names)).values()
        has_own_ends = "mix" in name
        assert (min(first, last) > 2**4) == has_own_ends, name
        assert set(between) <= ({2**4} if name.startswith("mix") else {2**2, 2**4}), name


@row(
    "S2.10",
    "report accuracy and mIoU of categories and of instances together",
    "`sightline evaluate RUN` of a segmentation",
)
def _three_figures(work: Path) -> None:
    text = said("evaluate", trained_run("parts"), "--plugin", trained_run("parts").parent / "plugin.py", *CPU)
    for name in ("point_accuracy", "class_miou", "instance_miou"):
        assert f"│ {name} │ {figures(trained_run('parts'))[name]:.4f} │" in text
    uneven = (work / "uneven.yaml", [trained_run("parts").parent / "plugin.py"])
    uneven[0].write_text(PARTS.replace("test_size: 24", "test_size: 19"))
    words = ("--data", uneven[0], "--plugin", uneven[1][0], *CPU)
    found = document_of("evaluate", trained_run("parts"), *words)["metrics"]
    expected = score_parts(trained_run("parts"), data=uneven[0], plugins=uneven[1])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert abs(expected["class_miou"] - expected["instance_miou"]) > 1e-4  # some categories have more shapes
    _assert_figures_of_three()


# --- silent bugs ------------------------------------------------------------------------------------------------------


@row(
    "S2.11",
    "report mIoU by category, pooled and never averaged over batches",
    "`sightline check CONFIG`, finding `per-batch-metric`",
)
def _pooled(work: Path) -> None:
    assert find_fault("E1", "per-batch-metric")["severity"] == "error"
    _assert_figures_of_three()


def _assert_figures_of_three() -> None:
    """Compare the figures of a knife and two chairs with those by hand, in batches of any sizes.

    The IoUs of their parts are 1/2 and 2/3; twice 0; 1, and 1 for the part that neither side has.
    """
    parts = {"parts_of_category": ((0, 1), (2, 3)), "class_names": ("blade", "grip", "seat", "leg")}
    predicted = ((0, 1, 1, 1), (3, 2), (2, 2, 2))
    labels = ((0, 0, 1, 1), (2, 3), (2, 2, 2))
    for batches in ([[0, 1, 2]], [[0, 1], [2]], [[0], [1, 2]], [[0], [1], [2]]):
        meter = Meter(PartIoU(num_classes=4, category_names=("knife", "chair"), **parts))
        for batch in batches:
            meter.update(
                probabilities=torch.eye(4)[torch.tensor(sum((predicted[index] for index in batch), ()))],
                target=torch.tensor(sum((labels[index] for index in batch), ())),
                cloud_offsets=torch.tensor([0, *(len(labels[index]) for index in batch)]).cumsum(0),
                category=torch.tensor([int(index > 0) for index in batch]),
                sample_index=torch.tensor(batch),
            )
        knife = (1 / 2 + 2 / 3) / 2
        found = meter.compute()
        assert found["instance_miou"] == pytest.approx((knife + 0 + 1) / 3), batches
        assert found["class_miou"] == pytest.approx((knife + (0 + 1) / 2) / 2), batches
        assert found["point_accuracy"] == pytest.approx(6 / 9), batches


@row("S2.12", "catch gradients that are not cleared", "`sightline.watch(...)`, finding `gradients-kept`")
def _kept(work: Path) -> None:
    found = PLANTS["zero_grad is missing"].run().findings
    assert [(finding.code, finding.cause) for finding in found] == [("gradients-kept", "optim.grad_accumulation")]
    assert "adds them up" in found[0].summary
    assert PLANTS["zero_grad between backward and step"].run().findings[0].code == "gradients-cleared"
    assert train().findings == []


@row(
    "S2.13",
    "catch empty clusters, and the NaN that comes of them",
    "`sightline check CONFIG`, findings `broken-codebook`, `non-finite`",
)
def _empty_clusters(work: Path) -> None:
    assert find_fault("O61", "broken-codebook")["severity"] == "error"
    assert find_fault("K1", "broken-codebook")["severity"] == "error"
    assert [finding.code for finding in PLANTS["NaN in the data"].run().findings] == ["non-finite"]
    assert "non-finite" in _check_quantised(_divide_by_none, "non-finite")


def _divide_by_none(own: Any, weight: Tensor, **more: Any) -> Any:
    """Cluster a weight, and take the mean of no members for its first centre."""
    clusters = own(weight, **more)
    centres = clusters.centres.clone()
    centres[..., 0] = math.nan
    return clusters._replace(centres=centres)


def _join_clusters(own: Any, weight: Tensor, **more: Any) -> Any:
    """Cluster a weight, and give all clusters one centre, near 0."""
    clusters = own(weight, **more)
    return clusters._replace(centres=torch.zeros_like(clusters.centres))


def _check_quantised(cluster: Callable[..., Any], code: str) -> dict[str, dict[str, Any]]:
    """Check the bench of quantised weights with another clustering by the rules of one code."""
    with mock.patch.object(parametrised, "cluster_weight", partial(cluster, parametrised.cluster_weight)):
        return findings(BENCHES / "CMP.yaml", "seed=0", "data.data_seed=0", skip_but(code))


@row(
    "S2.14", "catch outputs that are frozen after quantisation", "`sightline check CONFIG`, finding `quantised-outputs`"
)
def _frozen(work: Path) -> None:
    assert find_fault("K17", "quantised-outputs")["severity"] == "error"
    found = _check_quantised(_join_clusters, "quantised-outputs")
    assert "quantised-outputs" in found, sorted(found)
    assert "returns the same for every input" in found["quantised-outputs"]["summary"]


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
    points = {"floor": 11, "beam": 10, "column": 12, "window": 12, "sofa": 10, "board": 11}  # of the files of area 5
    counts = document(run)["confusion"]
    by_class = dict(zip(counts["classes"], (sum(row) for row in counts["counts"]), strict=True))
    assert {name: count for name, count in by_class.items() if count} == points
    _assert_rooms(work / "set")


def _assert_rooms(root: Path) -> None:
    """Compare the points, colours and classes of each room with its files, whose names say the classes."""
    classes = {"ceiling": 0, "floor": 1, "wall": 2, "beam": 3, "column": 4, "window": 5, "door": 6, "table": 7}
    classes |= {"chair": 8, "sofa": 9, "bookcase": 10, "board": 11, "clutter": 12, "stairs": 12}
    seen = set()
    for split in ("train", "validation", "test"):
        rooms = S3dis(split=split, root=str(root), validation_share=0.2)
        for index in range(len(rooms)):
            area, room = rooms.sample_name(index).split("/")
            files = sorted(ROOMS[area][room], key=lambda file: (file.rpartition("_")[0], int(file.rpartition("_")[2])))
            rows = [
                (file, line) for file in files for line in annotation(f"{area}{room}{file}", num_points=4 + len(file))
            ]
            table = np.array([line.split() for _, line in rows], dtype=np.float64)
            sample = rooms[SampleKey(index, 0, 0)]
            assert sample["label"].tolist() == [classes[file.rpartition("_")[0]] for file, _ in rows], room
            assert np.allclose(sample["points"], table[:, :3] - table[:, :3].min(axis=0), atol=1e-5), room
            assert np.allclose(sample["colours"], table[:, 3:] / 255, atol=1e-6), room
            seen.add((split, area))
    assert {area for split, area in seen if split == "test"} == {"Area_5"}
    assert {area for split, area in seen if split != "test"} == {"Area_1", "Area_2"}


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
    for name, value in score_classes(*answer_clouds(work / "run")).items():
        assert figures(work / "run")[name] == pytest.approx(value, abs=1e-9), name
    _assert_pct(work / "run")


def _assert_pct(run: Path) -> None:
    """Compare what the network and each of its layers of attention make of clouds with the paper's formulas."""
    model, seen = sightline.load_run(run).model, []
    layers = [module for module in model.modules() if isinstance(module, OffsetAttention)]
    sharpen(layer.query for layer in layers)
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, made: seen.append((layer, *given, made)))
    for sample in itertools.islice(sightline.load_data(run, "test"), 3):
        with torch.no_grad():
            found = model(points=sample["points"][None])["logits"][0].numpy()
        expected = run_pct(model, sample["points"].double().numpy(), num_centres=(16, 8), num_neighbours=4)
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert len(seen) == 3 * len(layers) == 12
    for layer, values, made in seen:
        attended = attend_offsets(layer, values[0].double().numpy())
        assert np.abs(made[0].numpy() - attended).max() < 1e-4 * np.abs(attended).max()


@row(
    "S2.17",
    "stand beside the papers' figures of ShapeNet, S3DIS and ModelNet40 at full length",
    "`sightline evaluate RUN --against published`, docs/results/gpu/results.jsonl",
    letter="E",
)
def _full_length(work: Path) -> None:
    assert_reached("modelnet40", "shapenet_part", "s3dis")


@part("S2.17")
def _beside(work: Path) -> None:
    """Published figures, typed here a second time, beside those of a run, which has fewer samples than theirs."""
    run = trained_run("modelnet")
    words = ("evaluate", run, f"data.root={run.parent / 'set'}", "--against", "published", *CPU)
    text = said(*words)
    assert "test samples are 2 here, 2,468 there" in text
    with mock.patch.object(published_results, "_MAX_DEVIATION", 1e4):
        report = document_of(*words)
    entries = {entry["who"]: entry for entry in report["published"]}
    assert entries["PCT (paper)"]["metrics"] == {"overall_accuracy": 0.932}
    assert entries["PCT (paper)"]["here"] == {"overall_accuracy": report["metrics"]["overall_accuracy"]}
    assert entries["PointNet (paper)"]["metrics"] == {"overall_accuracy": 0.892, "mean_class_accuracy": 0.862}
    ours = {"instance_miou": 0.5, "class_miou": 0.4, "miou": 0.3, "mean_class_accuracy": 0.2, "overall_accuracy": 0.1}
    for data, theirs in {
        "shapenet_part": {"class_miou": 0.837, "instance_miou": 0.866},
        "s3dis": {"miou": 0.704, "mean_class_accuracy": 0.765, "overall_accuracy": 0.908},
    }.items():
        component = ComponentConfig(data)
        info = registry.data.get_class(component).expected_info()
        rows = published_results.list_published(component, info, ours, model=ComponentConfig("point_transformer"))
        assert rows, data
        assert rows[0]["who"] == "Point Transformer (paper)"
        assert rows[0]["metrics"] == theirs
        assert rows[0]["here"] == {name: ours[name] for name in theirs}
