"""What notes on labelling scans of LiDAR ask for."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import sightline
from sightline.areas.scans.sets.semantic_kitti import SemanticKitti
from sightline.areas.scans.sets.synthetic_lidar import SyntheticLidar
from sightline.config import read_config
from sightline.contract.types import Sample, SampleKey
from sightline.parts.losses.classification import CrossEntropy
from sightline.training.split_data import SplitData
from tests.command import succeed
from tests.data.scans.lidar_writers import write_labels, write_semantic_kitti
from tests.mission.recomputed import entropy_of, lovasz, softmax
from tests.mission.rows import row
from tests.mission.small import (
    CONFIGS,
    document,
    find_fault,
    findings,
    skip_but,
    step,
)
from tests.recipe_steps import SmallStep, small_recipe
from tests.trained import LIDAR, trained_run


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
    _assert_own_map(work)


_CLASSES = {
    "unlabeled": (0, 1, 52, 99),
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (13, 16, 20, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
"""Classes of single scans with the ids of each, typed here a second time, from the publication."""
_OWN_CLASSES = {"ignored": (0, 1, 52, 99, 31, 253), "thing": (10, 252, 30, 254, 255), "ground": (40, 48, 60, 72)}
"""A user's classes; all other ids are `rest`."""


def _assert_own_map(work: Path) -> None:
    """Each id of the files is the class that the map says, in the published one and in a user's file."""
    ids = sorted(number for numbers in _CLASSES.values() for number in numbers)
    write_semantic_kitti(work / "all", {"00": 2, "08": 1})
    written = {}
    for path in sorted((work / "all").rglob("*.label")):
        every = np.resize(np.roll(ids, len(written)), path.stat().st_size // 4)
        write_labels(path, every, np.arange(len(every)) % 50)
        written[f"{path.parents[1].name}/{path.stem}"] = every
    succeed("data", "prepare", "semantic_kitti", "--from", work / "all", "--to", work / "sets")
    mapped = {number for numbers in _OWN_CLASSES.values() for number in numbers}
    own = {**_OWN_CLASSES, "rest": tuple(number for number in ids if number not in mapped)}
    tables = {
        "labels": {numbers[0]: name for name, numbers in own.items()},
        "learning_map": {number: label for label, numbers in enumerate(own.values()) for number in numbers},
        "learning_map_inv": {label: numbers[0] for label, numbers in enumerate(own.values())},
        "learning_ignore": {0: True, 1: False, 2: False, 3: False},
    }
    (work / "map.yaml").write_text(yaml.safe_dump(tables))
    for label_map, classes in {"single": _CLASSES, work / "map.yaml": own}.items():
        for split in ("train", "test"):
            words = (f"data.root={work / 'sets'}", f"data.label_map={label_map}", "data.validation_share=0")
            config = CONFIGS / "segment/semantic_kitti_salsanext.yaml"
            data = sightline.load_data(config, split, transforms="none", overrides=words)
            assert (data.class_names, data.facts["ignore_index"]) == (tuple(classes), 0)
            for index in range(len(data)):
                label = {number: place for place, numbers in enumerate(classes.values()) for number in numbers}
                expected = [label[int(number)] for number in written[data.sample_name(index)]]
                assert data[index]["label"].tolist() == expected, (label_map, split)
            if split == "train":
                every = [label[int(number)] for name, ids in written.items() if name < "08" for number in ids]
                assert data.facts["class_counts"] == tuple(np.bincount(every).tolist())


@row(
    "S4.11", "catch labels beyond the classes before the GPU asserts", "`sightline check CONFIG`, finding `label-range`"
)
def _label_range(work: Path) -> None:
    finding = find_fault("D6", "label-range")
    assert finding["severity"] == "error"
    assert "12 of num_classes 12" in finding["measured"]
    path = CONFIGS / "segment/synthetic_lidar_salsanext.yaml"
    for label, is_fault in ((0, False), (255, True), (-1, True)):
        with mock.patch.object(SyntheticLidar, "__getitem__", partialmethod(_label_one, label)):
            found = findings(path, *LIDAR, "model.width=2", skip_but("label-range"))
        assert ("label-range" in found) == is_fault, label


_read_scan = SyntheticLidar.__getitem__


def _label_one(data: SyntheticLidar, label: int, key: SampleKey) -> Sample:
    """Read a scan, of whose points one has another label."""
    sample = _read_scan(data, key)
    sample["label"][3] = label
    return sample


@row(
    "S4.12",
    "weigh classes by their counts, whatever their number",
    "`losses: [{name: cross_entropy, class_weights: inverse}]`",
)
def _weights(work: Path) -> None:
    for recipe in ("segment/semantic_kitti_salsanext", "segment/squeezeseg_npy_squeezeseg"):
        words = (recipe, work, "losses=[{name: cross_entropy, class_weights: inverse}]")
        _assert_weighted(step(*words), sightline.load_data(small_recipe(*words), "train", transforms="none"))
    for counts in ((3, 1), tuple(range(1, 301))):
        loss = CrossEntropy(class_weights="inverse", num_classes=len(counts), class_counts=counts)
        expected = [1 / (count / sum(counts) + 0.001) for count in counts]
        label = torch.arange(len(counts))
        assert float(loss.count(label=label)) == pytest.approx(sum(expected), rel=1e-5)
        logits = torch.randn(len(counts), len(counts), generator=torch.Generator().manual_seed(0))
        entropies = entropy_of(logits.double().numpy(), label.numpy())
        assert float(loss(logits=logits, label=label)) == pytest.approx((entropies * expected).sum(), rel=1e-4)


def answer_pixels(small: SmallStep) -> tuple[np.ndarray, np.ndarray, dict[str, float], dict[str, float]]:
    """Logits (B, P, C) of a step's first batch, its labels (B, P), and the sum and the count of each loss."""
    task, model, (batch, *_) = small.job.task, small.job.model.eval(), small.send()
    with torch.no_grad():
        counts, (context,) = task.prepare(model, [batch], small.world)
        logits, sums = task.outputs(model, batch)["logits"].double(), task.losses(model, batch, context)
    shown = [{name: float(value) for name, value in values.items()} for values in (sums, counts)]
    labels = batch["label"].flatten(1).numpy()
    return logits.flatten(1, -2).numpy(), labels, *shown


def _assert_weighted(small: SmallStep, data: SplitData) -> None:
    """Compare sum and count of a loss with the shares of classes among all labels of the training scans."""
    counts = np.bincount(np.concatenate([sample["label"] for sample in data]), minlength=len(data.class_names))
    assert (counts > 0).sum() > 3
    weights = np.where(counts > 0, 1 / (counts / counts.sum() + 0.001), 0)
    weights[data.facts["ignore_index"]] = 0
    logits, labels, sums, numbers = answer_pixels(small)
    weight = weights[labels.ravel()]
    entropies = entropy_of(logits.reshape(-1, logits.shape[-1]), labels.ravel())
    assert sums["cross_entropy"] == pytest.approx((weight * entropies).sum(), rel=1e-4)
    assert numbers["cross_entropy"] == pytest.approx(weight.sum(), rel=1e-6)


@row("S4.13", "let the output's channels follow the data set", "fact `num_classes`")
def _channels(work: Path) -> None:
    outputs = {}
    for run in ("plain", "modelnet"):
        outputs[run] = sightline.load_run(trained_run(run)).model.state_dict()["head.2.weight"].shape[0]
    assert outputs == {"plain": 12, "modelnet": 40}
    points = torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(0))
    for recipe in ("classify/synthetic_shapes_pointnet", "classify/synthetic_shapes_pct"):
        for number in (5, 45):
            words = ("model={num_centres: [16, 8], num_neighbours: 4}",) if "pct" in recipe else ()
            config = read_config(CONFIGS / f"{recipe}.yaml", words)
            model = sightline.build_model(config, num_classes=number).eval()
            assert model(points=points)["logits"].shape == (2, number)
    run = trained_run("lidar")
    logits = document(run)["confusion"]
    assert len(logits["counts"]) == len(logits["classes"]) == len(sightline.load_run(run).class_names)
    assert [len(row) for row in logits["counts"]] == [len(logits["classes"])] * len(logits["classes"])


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
        logits, labels, sums, counts = answer_pixels(small)
        expected = [lovasz(softmax(rows), label, ignored=0) for rows, label in zip(logits, labels, strict=True)]
        assert sums["lovasz_softmax"] == pytest.approx(sum(expected), rel=1e-4)
        assert counts["lovasz_softmax"] == len(expected)
    assert weights == [{"lovasz_softmax"}, {"lovasz_softmax"}]


@row("S4.15", "be warned of projected scans that show one class", "`sightline check CONFIG`, finding `class-counts`")
def _one_class(work: Path) -> None:
    finding = find_fault("O39", "class-counts")
    assert "samples have points of a single class" in finding["summary"]
