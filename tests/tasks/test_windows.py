"""Windows cover every point, and what they say together is what a model of single points says at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline.tasks.segment import BlockWindows, SphereWindows, column_windows, sphere_windows, split_clouds


def room(num_points: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_points, 3, generator=generator, dtype=torch.float64) * torch.tensor([4.3, 2.9, 2.5])


def cloud(points: Tensor, features: Tensor | None = None) -> dict:
    whole = {"points": points, "offsets": torch.tensor([0, len(points)])}
    return whole if features is None else {**whole, "features": features}


def test_a_small_cloud_is_one_sphere_in_its_own_order() -> None:
    (index,) = sphere_windows(room(50), max_points=50)
    assert index.tolist() == list(range(50))


def test_spheres_cover_everything_and_hold_the_nearest() -> None:
    points = room(500)
    seen: set[int] = set()
    for index in sphere_windows(points, max_points=120):
        assert len(index) == 120
        assert index.tolist() == sorted(set(index.tolist()))
        middle = points[next(row for row in range(500) if row not in seen)]
        distance = (points - middle).norm(dim=1)
        outside = torch.ones(500, dtype=torch.bool)
        outside[index] = False
        assert distance[index].max() <= distance[outside].min()
        seen |= set(index.tolist())
    assert seen == set(range(500))


@pytest.mark.parametrize(("size_m", "stride_m"), [(1.0, 0.5), (1.0, 1.0), (10.0, 5.0), (0.7, 0.3)])
def test_blocks_cover_everything_and_hold_what_lies_over_their_square(size_m: float, stride_m: float) -> None:
    points = room(400)
    covered = torch.zeros(400, dtype=torch.bool)
    for middle, index in column_windows(points, size_m=size_m, stride_m=stride_m):
        assert middle[2] == 0
        assert float((points[index] - middle)[:, :2].abs().max()) <= size_m / 2 + 1e-9
        covered[index] = True
    assert bool(covered.all())


def test_half_strides_see_a_point_in_the_middle_four_times() -> None:
    points = torch.cat([torch.tensor([[0.0, 0, 0], [4.0, 4, 0]]), torch.tensor([[1.75, 1.75, 1.0]])])
    assert sum(2 in index.tolist() for _, index in column_windows(points, size_m=1.0, stride_m=0.5)) == 4


def test_a_point_on_the_far_edge_is_not_lost_to_rounding() -> None:
    points = torch.linspace(0, 0.7, 50, dtype=torch.float32)[:, None] * torch.ones(3)
    held = torch.cat([index for _, index in column_windows(points, size_m=0.1, stride_m=0.1)])
    assert set(held.tolist()) == set(range(50))


def of_single_points(batch: dict) -> Tensor:
    """Logits that depend on a point's features alone."""
    return torch.stack([batch["features"].sum(dim=-1), batch["features"][..., 0] * 3], dim=-1)


@pytest.mark.parametrize(
    "windows",
    [
        SphereWindows(max_points=60, origin="minimum"),
        SphereWindows(max_points=1000, origin="kept"),
        BlockWindows(size_m=1.0, stride_m=0.5, num_points=32),
        BlockWindows(size_m=0.5, stride_m=0.5, num_points=7),
    ],
)
def test_a_model_of_single_points_says_the_same_in_windows(windows) -> None:
    points = room(300)
    features = torch.rand(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = cloud(points, features)
    torch.testing.assert_close(windows(of_single_points, whole), of_single_points(whole), rtol=1e-12, atol=1e-12)


def test_overlapping_windows_are_averaged_by_how_often_a_point_was_answered() -> None:
    numbers = iter(range(1, 100))
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        asked.append(batch["points"])
        return torch.full((len(batch["points"]), 1), float(next(numbers)))

    points = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0, 0])
    found = SphereWindows(max_points=3, origin="kept")(answer, cloud(points))
    # Around 0: 0 1 2. The first unseen is 3, whose nearest three are 2 3 4.
    assert found.flatten().tolist() == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert asked[1][:, 0].tolist() == [2.0, 3.0, 4.0]


def test_windows_may_start_at_their_own_minimum() -> None:
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        asked.append(batch["points"])
        return torch.zeros(len(batch["points"]), 1)

    SphereWindows(max_points=40, origin="minimum")(answer, cloud(room(100)))
    assert len(asked) > 2
    assert all(points.amin(dim=0).tolist() == [0.0, 0.0, 0.0] for points in asked)


def test_blocks_come_in_equal_numbers_of_points_about_their_middle() -> None:
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        assert "offsets" not in batch
        asked.append(batch["points"])
        return torch.zeros(*batch["points"].shape[:2], 1)

    BlockWindows(size_m=1.0, stride_m=1.0, num_points=16)(answer, cloud(room(333)))
    assert {points.shape[1] for points in asked} == {16}
    assert float(torch.cat(asked)[..., :2].abs().max()) <= 0.5 + 1e-9


def test_windows_of_a_column_each_see_all_of_it() -> None:
    asked: list[Tensor] = []

    def answer(batch: dict) -> Tensor:
        asked.append(batch["points"])
        return torch.zeros(*batch["points"].shape[:2], 1)

    column = torch.rand(64, 3, generator=torch.Generator().manual_seed(3))
    by_height = column[column[:, 2].argsort()]  # as files order points by object: the floor first, the ceiling last
    BlockWindows(size_m=2.0, stride_m=1.0, num_points=16)(answer, cloud(by_height))
    heights = torch.cat(asked)[..., 2]
    assert heights.shape == (4, 16)
    assert float((heights.mean(dim=1) - by_height[:, 2].mean()).abs().max()) < 0.1


def test_clouds_of_a_batch_come_one_by_one() -> None:
    batch = {"points": room(9), "offsets": torch.tensor([0, 4, 9]), "category": torch.tensor([3, 1])}
    first, second = split_clouds(batch)
    assert (len(first["points"]), first["category"].tolist(), first["offsets"].tolist()) == (4, [3], [0, 4])
    assert torch.equal(second["points"], batch["points"][4:])
