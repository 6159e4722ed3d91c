"""What a grid of voxels makes of clouds, counted in loops; grids that do not fit, and twins that do."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from sightline.parts.voxels.grids import GridSummary
from tests.cases import run_each


def count_by_hand(points: np.ndarray, label: np.ndarray, offsets: list[int], side: float, ignored: int) -> dict:
    """Count voxels, neighbours, voxels of several classes and the best mIoU, a voxel at a time."""
    members = defaultdict(list)
    for cloud, (first, last) in enumerate(pairwise(offsets)):
        for row in range(first, last):
            members[cloud, *np.floor(points[row].astype(np.float64) / side).astype(int)].append(label[row])
    around = [
        sum((c, x + i, y + j, z + k) in members for i, j, k in product((-1, 0, 1), repeat=3)) for c, x, y, z in members
    ]
    classes = {voxel: Counter(each for each in votes if each != ignored) for voxel, votes in members.items()}
    labelled = [votes for votes in classes.values() if votes]
    pairs = Counter()
    for votes in labelled:
        best = min(each for each in votes if votes[each] == max(votes.values()))
        for true, count in votes.items():
            pairs[true, best] += count
    ious = []
    for each in {true for true, _ in pairs} | {best for _, best in pairs}:
        missed = sum(count for (true, best), count in pairs.items() if (true == each) != (best == each))
        ious.append(pairs[each, each] / (pairs[each, each] + missed))
    return {
        "grid_m": side,
        "voxels_per_cloud": round(len(members) / (len(offsets) - 1)),
        "points_per_voxel": round(len(points) / len(members), 2),
        "most_points": max(map(len, members.values())),
        "neighbours_of_27": round(float(np.mean(around)), 1),
        "voxels_of_several_classes": round(sum(len(votes) > 1 for votes in labelled) / len(labelled), 4),
        "best_miou": round(float(np.mean(ious)), 4),
    }


def test_figures_are_those_of_a_count_by_hand() -> None:
    """Two clouds, one after the other and at once; points of 255 have no class."""
    generator = np.random.default_rng(0)
    points = generator.uniform(-1, 1, (700, 3)).astype(np.float32)
    label = (points[:, 0] * 2 + 2 + generator.normal(0, 0.1, 700)).clip(0, 3).astype(np.int64)
    label[generator.uniform(size=700) < 0.1] = 255
    expected = count_by_hand(points, label, [0, 400, 700], 0.3, 255)
    whole, parts = GridSummary(0.3, 4, 255), GridSummary(0.3, 4, 255)
    given = torch.from_numpy(points), torch.from_numpy(label)
    whole.add(given[0], label=given[1], offsets=torch.tensor([0, 400, 700]))
    for first, last in ((0, 400), (400, 700)):
        parts.add(given[0][first:last], label=given[1][first:last])
    for found in (whole.figures(), parts.figures()):
        assert {name: found[name] for name in expected} == expected
    assert 0.5 < expected["best_miou"] < 0.95


def surface(*, scale: float = 1.0, classes: int = 2, is_mixed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A floor of 4 m with 500 points on a square metre, in halves of a class each, or of classes by chance."""
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 4, (8000, 3)) * (1, 1, 0)
    label = generator.integers(0, classes, 8000) if is_mixed else (points[:, 0] * classes / 4).astype(np.int64)
    return torch.from_numpy(points * scale), torch.from_numpy(label)


@run_each(
    "plant, told",
    [
        (
            {"scale": 1000.0},
            "a voxel of 0.05 m has 1.0 of the 27 in a kernel of size 3, itself among them, so that",
        ),
        ({"scale": 0.01}, "a voxel of 0.05 m has 8000 points on average, which become one: correct the unit of the"),
        ({"is_mixed": True}, "no network with voxels of 0.05 m has a mIoU above 0.6"),
        ({}, ""),
        ({"scale": 2.0}, ""),
    ],
)
def test_a_grid_that_does_not_fit_is_doubted(plant: dict, told: str) -> None:
    grid = GridSummary(0.05, 2)
    points, label = surface(**plant)
    grid.add(points, label=label)
    doubts = grid.list_doubts()
    assert len(doubts) == (told != "") + (plant.get("scale") == 0.01), "one voxel has both classes, too"
    assert (doubts[0] if doubts else "").startswith(told)
    assert grid.figures().get("doubts", []) == doubts


def test_nothing_was_added() -> None:
    grid = GridSummary(0.05, 2)
    grid.add(torch.zeros(0, 3))
    assert grid.figures()["voxels_per_cloud"] == 0
    assert not grid.list_doubts()
    with pytest.raises(ValueError, match="not finite"):
        grid.add(torch.full((3, 3), torch.nan))
