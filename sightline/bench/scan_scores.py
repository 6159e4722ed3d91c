"""Scores of LiDAR scans from predictions in files, against reading the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sightline.bench.case import BenchmarkCase, Implementation, Run
from sightline.data.files.scan_files import write_label_ids
from sightline.data.loading.batch_reader import BatchReader
from sightline.data.scans.label_maps import read_label_map
from sightline.data.scans.semantic_kitti import LABEL_MAPS, SemanticKitti
from sightline.engine.build import DataSubset
from sightline.evaluation.external_predictions import ExternalPredictions, score_labels
from sightline.types import ComponentConfig, SampleKey

__all__ = ["cases"]

_IOU = ComponentConfig("iou", {"absent": "zero"})
_BY_DISTANCE = ComponentConfig("iou_by_distance", {"absent": "zero"})


class Scores(NamedTuple):
    """The points with a label, and the mean IoU of 19 classes; None where only files were read."""

    num_labelled: int
    miou: float | None = None


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="metrics",
            label=f"{what}_{{scans}}x{{points}}",
            size={"scans": 100, "points": 120_000},
            quick={"scans": 2, "points": 500},
            make=_scans,
            baseline=Implementation("reading", _read, _same_scores),
            variants=(Implementation("sightline", partial(_scored, metrics=metrics), _same_scores),),
        )
        for what, metrics in (("scan_scores", (_IOU,)), ("scan_scores_by_distance", (_IOU, _BY_DISTANCE)))
    ]


def _scans(*, scans: int, points: int) -> dict[str, Any]:
    """One scan with labels and predictions that are right at four points of five, and the mean IoU of these.

    All files hold the same but for the turn of their labels: only their number matters.
    """
    generator = np.random.default_rng(0)
    cloud = np.concatenate((generator.normal(0, 20, (points, 3)), generator.random((points, 1))), axis=1)
    label = generator.integers(0, 20, points)
    guess = np.where(generator.random(points) < 0.8, label, generator.integers(0, 20, points))
    table = np.zeros((20, 20), dtype=np.int64)
    np.add.at(table, (label[label > 0], guess[label > 0]), 1)
    right = np.diag(table)[1:]
    ious = right / (table.sum(axis=0) + table.sum(axis=1) - np.diag(table))[1:]
    return {"cloud": cloud.astype("<f4"), "label": label, "guess": guess, "scans": scans, "miou": ious.mean()}


@contextmanager
def _on_disk(inputs: dict[str, Any]) -> Iterator[tuple[DataSubset, Path]]:
    """A prepared set of these scans as its test part, and the folder of predictions."""
    label_map = read_label_map("single", LABEL_MAPS)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        (folder / "kitti/sequences/08/velodyne").mkdir(parents=True)
        for number in range(inputs["scans"]):
            inputs["cloud"].tofile(folder / f"kitti/sequences/08/velodyne/{number:06d}.bin")
            for place, labels in (("kitti/sequences/08/labels", "label"), ("sequences/08/predictions", "guess")):
                ids = label_map.ids(np.roll(inputs[labels], number))
                write_label_ids(folder / place / f"{number:06d}.label", ids)
        SemanticKitti.prepare(
            source=folder / "kitti", target=folder / "set", name="semantic_kitti", progress=lambda *_: None
        )
        dataset = SemanticKitti(split="test", root=str(folder / "set"))
        yield DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test"), folder


@contextmanager
def _read(inputs: dict[str, Any]) -> Iterator[Run]:
    """Every scan, its labels and its predictions, read and mapped to classes."""
    with _on_disk(inputs) as (part, folder):

        def run() -> Scores:
            given, count = ExternalPredictions(folder, part), 0
            for index in part.indices.tolist():
                label = part.dataset[SampleKey(index, 0, 0)]["label"]
                given.labels_for(index, num_points=len(label))
                count += int((label > 0).sum())
            return Scores(count)

        yield run


@contextmanager
def _scored(inputs: dict[str, Any], *, metrics: tuple[ComponentConfig, ...]) -> Iterator[Run]:
    with _on_disk(inputs) as (part, folder):

        def run() -> Scores:
            evaluation, _ = score_labels(part, metrics, ExternalPredictions(folder, part))
            counts = sum(map(sum, evaluation.tables["confusion"]["counts"]))
            return Scores(counts, evaluation.metrics["miou"])

        yield run


def _same_scores(inputs: dict[str, Any], expected: Scores, found: Scores) -> str | None:
    if found.num_labelled != expected.num_labelled:
        return f"{found.num_labelled} labelled points, {expected.num_labelled} are needed"
    off = 0.0 if found.miou is None else abs(found.miou - inputs["miou"])
    return None if off <= 1e-12 else f"mean IoU off by {off:.1e}"
