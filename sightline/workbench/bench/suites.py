"""Library of the package's benchmark cases, and those of geometry, data and metrics, each against its plain form.

A scored scan is compared with only reading its files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.areas.pose.sets.synthetic_hands import HAND_CAMERA, SyntheticHands
from sightline.areas.pose.transforms import PlaceCube
from sightline.areas.scans.sets.label_maps import read_label_map
from sightline.areas.scans.sets.semantic_kitti import LABEL_MAPS, SemanticKitti
from sightline.compute.geometry.boxes.overlaps import iou, pairwise_iou
from sightline.compute.geometry.boxes.suppression import greedy_nms, greedy_nms_reference, soft_nms, soft_nms_reference
from sightline.compute.geometry.capsules import CapsuleDepth, render_capsules, render_capsules_reference
from sightline.compute.geometry.pinhole import ring_cameras
from sightline.compute.geometry.rendering import render_cloud, render_cloud_reference
from sightline.compute.geometry.volumes import CubePlacement, gaussian_heatmaps, gaussian_heatmaps_reference, to_voxels
from sightline.contract.draws import Draws
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.engine.build import DataSubset
from sightline.store.files.scan_files import write_label_ids
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.bench import networks, training
from sightline.workbench.bench.case import (
    BenchmarkCase,
    CaseLibrary,
    Implementation,
    Run,
    allclose,
    equal,
    implementation,
)
from sightline.workbench.evaluate.saved_predictions import ExternalPredictions, score_labels

WIDTH, HEIGHT = 1344, 800
"""Size of an image, in pixels."""
_CUBE_MM = 200.0


# --- boxes -----------------------------------------------------------------------------------------------------------


def _list_box_cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="geometry",
            label="box_iou_{boxes}x{others}",
            size={"boxes": 10_000, "others": 1000},
            quick={"boxes": 200, "others": 50},
            make=_make_box_sets,
            baseline=implementation("plain", lambda sets: iou(sets["boxes"][:, None], sets["others"]), equal),
            variants=(implementation("sightline", lambda sets: pairwise_iou(sets["boxes"], sets["others"]), equal),),
        ),
        *(
            _suppression_case(name, 10_000, equal, greedy_nms, greedy_nms_reference, num_classes, threshold=0.5)
            for name, num_classes in (("greedy", 1), ("greedy_20_classes", 20), ("greedy_80_classes", 80))
        ),
        *(
            _suppression_case(
                f"soft_{name}",
                1000,
                allclose(1e-6),
                lambda **inputs: soft_nms(**inputs)._asdict(),
                lambda **inputs: soft_nms_reference(**inputs)._asdict(),
                limit=limit,
                is_linear=name == "linear",
                min_score=1e-3,
            )
            for name, limit in (("linear", 0.3), ("gaussian", 0.5))
        ),
    ]


def _suppression_case(
    name: str, boxes: int, agrees: Any, form: Any, plain: Any, num_classes: int = 1, **limits: Any
) -> BenchmarkCase:
    """Make a case of NMS; with classes, a plain loop of each class by itself stands beside the one of all."""

    def run_by_class(inputs: dict[str, Any]) -> Any:
        rows = [(inputs["labels"] == number).nonzero()[:, 0] for number in range(num_classes)]
        parts = [row[plain(**{key: value[row] for key, value in inputs.items()}, **limits)] for row in rows]
        kept = torch.cat(parts).sort().values
        return kept[inputs["scores"][kept].argsort(descending=True, stable=True)]

    by_class = (implementation("plain_loop_by_class", run_by_class, agrees),) if num_classes > 1 else ()
    return BenchmarkCase(
        suite="geometry",
        label=f"suppress_{name}_{{boxes}}",
        size={"boxes": boxes},
        quick={"boxes": 200},
        make=partial(_make_detections, num_classes=num_classes),
        baseline=implementation("plain_loop", lambda inputs: plain(**inputs, **limits), agrees),
        variants=(*by_class, implementation("sightline", lambda inputs: form(**inputs, **limits), agrees)),
    )


def draw_people(num_boxes: int, per_person: int, generator: torch.Generator) -> Tensor:
    """Draw boxes (N, 4) around standing people of 20 to 245 px in an image of 1344 x 800, several per person."""
    people = -(-num_boxes // per_person)
    centres = torch.rand(people, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    heights = torch.exp(3 + 2.5 * torch.rand(people, 1, generator=generator))
    sizes = heights * torch.tensor([0.41, 1.0])
    centres, sizes = (item.repeat_interleave(per_person, dim=0)[:num_boxes] for item in (centres, sizes))
    centres = centres + 0.1 * sizes * torch.randn(num_boxes, 2, generator=generator)
    sizes = sizes * torch.exp(0.1 * torch.randn(num_boxes, 2, generator=generator))
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)


def _make_box_sets(*, boxes: int, others: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"boxes": draw_people(boxes, 20, generator), "others": draw_people(others, 1, generator)}


def _make_detections(*, boxes: int, num_classes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(boxes, generator=generator)
    people = draw_people(boxes, 20, generator)
    return {"boxes": people, "scores": scores, "labels": torch.randint(0, num_classes, (boxes,), generator=generator)}


# --- pictures and volumes --------------------------------------------------------------------------------------------


def _list_data_cases() -> list[BenchmarkCase]:
    return [
        BenchmarkCase(
            suite="data",
            label="render_{clouds}x{points}_{views}x{size_px}px",
            size={"clouds": 4, "points": 1024, "views": 12, "size_px": 96},
            quick={"clouds": 1, "points": 64, "views": 2, "size_px": 24},
            make=_make_clouds,
            baseline=implementation("plain", _render_reference, equal),
            variants=(implementation("sightline", _render, equal),),
        ),
        BenchmarkCase(
            suite="data",
            label="capsules_{frames}x24_320x240px",
            size={"frames": 8},
            quick={"frames": 1},
            make=_make_hands,
            baseline=implementation("plain", partial(_render_depths, render_capsules_reference), equal),
            variants=(implementation("sightline", partial(_render_depths, render_capsules), equal),),
        ),
        BenchmarkCase(
            suite="data",
            label="heatmaps_{frames}x21x{size}",
            size={"frames": 4, "size": 88},
            quick={"frames": 1, "size": 24},
            make=make_frames,
            baseline=implementation("dense", _make_dense_heatmaps, allclose(1e-6)),
            variants=(implementation("sightline", _make_heatmaps, allclose(1e-6)),),
        ),
    ]


def _make_clouds(*, clouds: int, points: int, views: int, size_px: int) -> dict[str, Any]:
    shapes = SyntheticShapes(split="train", train_size=clouds, num_points=points)
    batch = shapes.get_batch([SampleKey(index, 0, 0) for index in range(clouds)])
    return {"points": batch["points"], "cameras": ring_cameras(views, size_px=size_px)}


def _render_reference(inputs: dict[str, Any]) -> Tensor:
    views = [render_cloud_reference(cloud.numpy(), inputs["cameras"]) for cloud in inputs["points"]]
    return torch.stack([torch.from_numpy(view) for view in views])


def _render(inputs: dict[str, Any]) -> Tensor:
    views = [render_cloud(cloud.numpy(), inputs["cameras"]) for cloud in inputs["points"]]
    return torch.stack([torch.from_numpy(view) for view in views])


def _make_hands(*, frames: int) -> dict[str, Any]:
    hands = SyntheticHands(split="train", forearm=1.0).figures(range(frames))
    return {"capsules": torch.from_numpy(hands.capsules)}


def _render_depths(render: Callable[..., CapsuleDepth], inputs: dict[str, Any]) -> Tensor:
    capsules, size = inputs["capsules"].numpy(), {"height_px": HAND_CAMERA.height_px, "width_px": HAND_CAMERA.width_px}
    rendered = render(capsules, HAND_CAMERA.intrinsics, **size)
    return torch.from_numpy(np.stack((rendered.depth, rendered.owner)))


def make_frames(*, frames: int, size: int) -> dict[str, Any]:
    """Make hands in cubes that vary as in training."""
    hands = SyntheticHands(split="train", train_size=frames, test_size=1)
    keys = [SampleKey(index, 0, 0) for index in range(frames)]
    batch = hands.get_batch(keys)
    place_cube = PlaceCube(cube_mm=_CUBE_MM, size=size, scale=(0.8, 1.2), max_angle_rad=0.698, max_shift=4.0)
    rows = place_cube(Draws.for_samples(keys), reference=batch["reference"])["placement"]
    placement = CubePlacement.from_rows(rows)
    return {**batch, "placement": placement, "cells": to_voxels(batch["joints"].double(), placement) / 2}


def _make_dense_heatmaps(inputs: dict[str, Any]) -> Tensor:
    return gaussian_heatmaps_reference(inputs["cells"], cells=inputs["placement"].size // 2).float()


def _make_heatmaps(inputs: dict[str, Any]) -> Tensor:
    return gaussian_heatmaps(inputs["cells"], cells=inputs["placement"].size // 2)


# --- scores of scans -------------------------------------------------------------------------------------------------


_IOU = ComponentConfig("iou", {"absent": "zero"})
_BY_DISTANCE = ComponentConfig("iou_by_distance", {"absent": "zero"})


class Scores(NamedTuple):
    """Number of labelled points, and the mean IoU of 19 classes; None if the files were only read."""

    num_labelled: int
    miou: float | None = None


def _list_score_cases() -> list[BenchmarkCase]:
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


LIBRARY = CaseLibrary(
    {
        "geometry": _list_box_cases,
        "models": lambda: [*networks.cases(), *training.recipe_cases()],
        "data": _list_data_cases,
        "metrics": _list_score_cases,
        "train": training.cases,
        "compress": list,
    }
)
