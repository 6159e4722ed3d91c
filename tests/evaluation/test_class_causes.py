"""Why a class is worse than others: few training samples, points beside another class's; and the table that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial
import torch

from sightline.engine.distributed import World
from sightline.runs.class_causes import describe_class_causes
from sightline.workbench.evaluate.surroundings import Surroundings
from tests.command import document_of, run_here
from tests.trained import copy_run

FACTS = {"num_classes": 3, "class_names": ("low", "middle", "high"), "ignore_index": 255}


def causes(
    counts: tuple[int, ...], ranked: dict[str, float], *, are_points: bool = False, **more: Any
) -> dict[str, Any]:
    described = {"per_class": {name: {} for name in FACTS["class_names"]}, **more}
    return describe_class_causes(described, ranked, {**FACTS, "class_counts": counts}, are_points=are_points)


# --- few training samples: counts by hand ----------------------------------------------------------------------------


def test_a_poor_class_of_few_samples_is_named_with_their_number() -> None:
    found = causes((12, 98, 120), {"low": 0.5, "middle": 0.8, "high": 0.9})
    assert found["class_causes"] == {"low": ["12 training samples (median 98)"]}
    assert found["training_counts"] == {
        "of": "samples",
        "median": 98,
        "classes": {"low": 12, "middle": 98, "high": 120},
    }
    of_points = causes((10, 490, 500), {"low": 0.5, "middle": 0.8, "high": 0.9}, are_points=True)
    assert of_points["class_causes"] == {"low": ["1.00% of the training points (median 49.00%)"]}


def test_no_cause_is_named_where_none_is_known() -> None:
    better = causes((12, 98, 120), {"middle": 0.5, "high": 0.8, "low": 0.9})  # few samples, and the best
    equal = causes((12, 98, 120), {"low": 0.5, "middle": 0.5, "high": 0.5})
    many = causes((50, 98, 120), {"low": 0.5, "middle": 0.8, "high": 0.9})  # more than half of the median
    for found in (better, equal, many):
        assert "class_causes" not in found
    assert causes((), {"low": 0.5, "middle": 0.8, "high": 0.9}) == {}
    assert causes((12, 98), {"low": 0.5, "middle": 0.8, "high": 0.9}) == {}  # of another number of classes


def test_points_of_a_category_are_those_of_its_parts() -> None:
    facts = {"class_names": ("blade", "grip", "seat", "leg"), "class_counts": (5, 6, 100, 200)}
    facts |= {"category_names": ("knife", "chair"), "parts_of_category": ((0, 1), (2, 3))}
    described = {"per_class": {"knife": {}, "chair": {}}}
    found = describe_class_causes(described, {"knife": 0.1, "chair": 0.9}, facts, are_points=True)
    assert found["training_counts"]["classes"] == {"knife": 11, "chair": 300}
    assert found["class_causes"] == {"knife": ["3.54% of the training points (median 50.00%)"]}


# --- points beside another class's: counts by SciPy's tree, rules by hand ---------------------------------------------


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a room whose class is the third of the height that it lies in, some ignored, and predictions."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 3, (int(rng.integers(80, 160)), 3))
    label = points[:, 2].astype(np.int64)
    label[::10] = 255
    return points, label, rng.integers(0, 3, len(points))


def counted(points: np.ndarray, label: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """All points, those beside another class, wrong ones, and wrong ones beside another class, of each class."""
    _, nearest = scipy.spatial.cKDTree(points).query(points, k=9)
    beside = ((label[nearest] != label[:, None]) & (label[nearest] != 255)).any(axis=1)
    wrong = seen != label
    return np.array([[(m & (label == c)).sum() for m in (label >= 0, beside, wrong, wrong & beside)] for c in range(3)])


@pytest.mark.parametrize("per_batch", [1, 2, 4])
def test_points_beside_another_class_are_those_of_a_tree(per_batch: int) -> None:
    scenes = [scene(seed) for seed in range(4)]
    surroundings = Surroundings(FACTS, World())
    for start in range(0, 4, per_batch):
        part = scenes[start : start + per_batch]
        points, label, seen = (torch.from_numpy(np.concatenate(column)) for column in zip(*part, strict=True))
        offsets = torch.tensor([0, *np.cumsum([len(each[1]) for each in part])])
        surroundings({"points": points, "label": label, "offsets": offsets, "nearest": offsets}, {"seen": seen})
    expected = sum(counted(*each) for each in scenes)
    found = surroundings.finish()
    assert [[*row.values()] for row in found.values()] == expected.tolist()
    assert [*found["low"]] == ["points", "beside", "wrong", "wrong_beside"]


def test_dense_clouds_are_counted_as_packed_ones() -> None:
    points, label, seen = (torch.from_numpy(column[:60]) for column in scene(0))
    probabilities = torch.nn.functional.one_hot(seen, 3).double()
    dense, packed = Surroundings(FACTS, World()), Surroundings(FACTS, World())
    predictions = {"probabilities": probabilities.repeat(2, 1), "cloud_offsets": torch.tensor([0, 60, 120])}
    dense({"points": points.repeat(2, 1, 1), "label": label.repeat(2, 1)}, predictions)
    offsets = torch.tensor([0, 60])
    for _ in range(2):
        packed({"points": points, "label": label, "offsets": offsets, "nearest": offsets}, {"seen": seen})
    assert dense.finish() == packed.finish() != {}


def test_range_images_are_not_counted() -> None:
    surroundings = Surroundings(FACTS, World())
    surroundings({"label": torch.zeros(1, 4, 8, dtype=torch.int64)}, {"seen": torch.zeros(32, dtype=torch.int64)})
    assert surroundings.finish() == {}


def test_errors_beside_another_class_are_a_cause_where_they_are_more_than_by_chance() -> None:
    ranked, of_all = {"low": 0.5, "middle": 0.8, "high": 0.9}, {"points": 1000, "beside": 200}
    for row, text in {
        (100, 71): ["71% of its wrong points lie beside another class (of all 20%)"],
        (100, 49): None,  # most errors lie elsewhere
        (20, 20): None,  # too few
    }.items():
        table = {"low": {**of_all, "wrong": row[0], "wrong_beside": row[1]}}
        assert causes((), ranked, class_surroundings=table).get("class_causes", {}).get("low") == text
    everywhere = {"low": {"points": 1000, "beside": 800, "wrong": 100, "wrong_beside": 95}}
    assert "class_causes" not in causes((), ranked, class_surroundings=everywhere)


# --- as `sightline evaluate` prints and writes them -------------------------------------------------------------------


def test_evaluate_prints_and_writes_intervals_and_surroundings(tmp_path: Path) -> None:
    """Five rooms of thirds of the height: every class is in all rooms; the figures are those of the training's end."""
    run = copy_run("scenes", tmp_path)
    words = ("evaluate", run, "--plugin", tmp_path / "plugin.py", "--device", "cpu")
    found = document_of(*words)
    assert [row["iou"]["num_samples"] for row in found["class_intervals"].values()] == [5, 5, 5]
    for name, row in found["class_intervals"].items():
        assert row["iou"]["low"] < found["per_class"][name]["iou"] < row["iou"]["high"]
    table = found["class_surroundings"]
    assert table.keys() == {"low", "middle", "high"}
    assert table["middle"]["beside"] / table["middle"]["points"] > table["low"]["beside"] / table["low"]["points"]
    printed = run_here(*words).out
    assert "iou, 95 %" in printed
