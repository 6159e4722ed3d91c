"""Benchmarks of scans: a scored scan is compared with only reading its files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.case import BenchmarkCase, Implementation, Run
from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS, SemanticKitti
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.run_data import DataSubset
from sightline.store.files.scan_files import write_label_ids
from sightline.store.label_maps import read_label_map
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.evaluate.saved_predictions import ExternalPredictions, score_labels

_IOU = ComponentConfig("iou", {"absent": "zero"})
_BY_DISTANCE = ComponentConfig("iou_by_distance", {"absent": "zero"})


class Scores(NamedTuple):
    """Number of labelled points, and the mean IoU of 19 classes; None if the files were only read."""

    num_labelled: int
    miou: float | None = None


def cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="metrics",
            label=f"{what}_{{scans}}x{{points}}",
            size={"scans": 100, "points": 120_000},
            quick={"scans": 2, "points": 500},
            make=_make_scans,
            baseline=Implementation("reading", _open_reading, _compare_scores),
            variants=(Implementation("sightline", partial(_open_scoring, metrics=metrics), _compare_scores),),
        )
        for what, metrics in (("scan_scores", (_IOU,)), ("scan_scores_by_distance", (_IOU, _BY_DISTANCE)))
    ]


def _make_scans(*, scans: int, points: int) -> dict[str, Any]:
    """Make a scan with labels, predictions that are right at four of five points, and their mean IoU.

    All files have the same content with rolled labels: only their number matters.
    """
    generator = np.random.default_rng(0)
    cloud = np.concatenate((generator.normal(0, 20, (points, 3)), generator.random((points, 1))), axis=1)
    label = generator.integers(0, 20, points)
    guess = np.where(generator.random(points) < 0.8, label, generator.integers(0, 20, points))
    table = np.zeros((20, 20), dtype=np.int64)
    np.add.at(table, (label[label > 0], guess[label > 0]), 1)
    correct = np.diag(table)[1:]
    ious = correct / (table.sum(axis=0) + table.sum(axis=1) - np.diag(table))[1:]
    return {"cloud": cloud.astype("<f4"), "label": label, "guess": guess, "scans": scans, "miou": ious.mean()}


@contextmanager
def _write_scans(inputs: dict[str, Any]) -> Iterator[tuple[DataSubset, Path]]:
    """Prepare a set with these scans as its test split; yield the split and the folder of predictions."""
    label_map = read_label_map("single", LABEL_MAPS)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        (folder / "kitti/sequences/08/velodyne").mkdir(parents=True)
        for number in range(inputs["scans"]):
            inputs["cloud"].tofile(folder / f"kitti/sequences/08/velodyne/{number:06d}.bin")
            for subfolder, labels in (("kitti/sequences/08/labels", "label"), ("sequences/08/predictions", "guess")):
                ids = label_map.ids(np.roll(inputs[labels], number))
                write_label_ids(folder / subfolder / f"{number:06d}.label", ids)
        SemanticKitti.prepare(
            source=folder / "kitti", target=folder / "set", name="semantic_kitti", progress=lambda *_: None
        )
        dataset = SemanticKitti(split="test", root=str(folder / "set"))
        yield DataSubset(dataset, np.arange(len(dataset)), BatchReader(dataset), "test"), folder


@contextmanager
def _open_reading(inputs: dict[str, Any]) -> Iterator[Run]:
    """Read the labels and predictions of every scan, mapped to classes."""
    with _write_scans(inputs) as (part, folder):

        def run() -> Scores:
            predictions, count = ExternalPredictions(folder, part), 0
            for index in part.indices.tolist():
                label = part.dataset[SampleKey(index, 0, 0)]["label"]
                predictions.labels_for(index, num_points=len(label))
                count += int((label > 0).sum())
            return Scores(count)

        yield run


@contextmanager
def _open_scoring(inputs: dict[str, Any], *, metrics: tuple[ComponentConfig, ...]) -> Iterator[Run]:
    with _write_scans(inputs) as (part, folder):

        def run() -> Scores:
            evaluation, _ = score_labels(part, metrics, ExternalPredictions(folder, part))
            counts = sum(map(sum, evaluation.tables["confusion"]["counts"]))
            return Scores(counts, evaluation.metrics["miou"])

        yield run


def _compare_scores(inputs: dict[str, Any], expected: Scores, actual: Scores) -> str | None:
    if actual.num_labelled != expected.num_labelled:
        return f"{actual.num_labelled} labelled points, {expected.num_labelled} are needed"
    error = 0.0 if actual.miou is None else abs(actual.miou - inputs["miou"])
    return None if error <= 1e-12 else f"mean IoU off by {error:.1e}"
