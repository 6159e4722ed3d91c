"""Ball queries against SciPy, a hand-worked line, the published numbers, and both forms against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from sightline.ops import operator
from sightline.ops.points.ball_query import packed_points_in_balls, points_in_balls
from sightline.ops.points.farthest_points import farthest_points
from sightline.ops.points.grouping import gather_points
from sightline.ops.points.neighbours import nearest_neighbours
from tests.cases import run_each
from tests.golden_parity import load_golden


@pytest.fixture(params=["compiled", "plain"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(operator, "can_use_numba", lambda *tensors, **named: False)
    return request.param


def test_points_on_a_line_by_hand(form: str) -> None:
    """At 0, 1, 2, 3, 4: within 1 of the point at 2 are 1, 2 and 3, the rim counts; two places are left over."""
    points = torch.arange(5.0).reshape(1, 5, 1)
    found = points_in_balls(points, centres=points[:, [2, 0]], radius=1.0, num_neighbours=5)
    assert found.tolist() == [[[1, 2, 3, 1, 1], [0, 1, 0, 0, 0]]]
    assert points_in_balls(points, centres=points[:, [4]], radius=10.0, num_neighbours=2).tolist() == [[[0, 1]]]
    assert points_in_balls(points[:, :2], centres=points[:, :1], radius=9.0, num_neighbours=4).tolist() == [
        [[0, 1, 0, 0]]
    ]


@run_each("num_points", [40, 700])
@run_each("radius", [0.15, 0.4, 3.0])
def test_agrees_with_scipy(num_points: int, radius: float, form: str) -> None:
    points = torch.rand(2, num_points, 3, dtype=torch.float64)
    found = points_in_balls(points, centres=points[:, :30], radius=radius, num_neighbours=16)
    for cloud, index in zip(points.numpy(), found, strict=True):
        for row, inside in zip(index, cKDTree(cloud).query_ball_point(cloud[:30], radius), strict=True):
            kept = sorted(inside)[:16]
            assert row.tolist() == kept + [kept[0]] * (16 - len(kept))


@run_each("radius", [-1.0, -1e-30, float("nan"), -float("inf")])
def test_a_radius_below_zero_is_refused(radius: float) -> None:
    """Its square is that of a ball: -1 found what 1 does."""
    points, offsets = torch.rand(1, 8, 3), torch.tensor([0, 8])
    with pytest.raises(ValueError, match=f"radius: found {radius:g}, expected 0 or more"):
        points_in_balls(points, centres=points, radius=radius, num_neighbours=2)
    packed = {"offsets": offsets, "centres": points[0], "centre_offsets": offsets}
    with pytest.raises(ValueError, match="radius: found"):
        packed_points_in_balls(points[0], **packed, radius=radius, num_neighbours=2)
    own = points_in_balls(points, centres=points, radius=0.0, num_neighbours=1)
    assert own.flatten().tolist() == list(range(8))


def test_one_cloud_without_its_batch_is_refused_by_shape() -> None:
    points = torch.rand(5, 3)
    for call in (
        lambda: nearest_neighbours(points, num_neighbours=2),
        lambda: points_in_balls(points, centres=points, radius=1.0, num_neighbours=2),
        lambda: farthest_points(points, num_samples=2),
    ):
        with pytest.raises(
            ValueError, match=r"points: found the shape \(5, 3\), expected \(clouds, points, channels\)"
        ):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_forms_agree_on_the_rim(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid of step 0.1 many points lie on the rim but for rounding, which has to fall alike."""
    grid = torch.cartesian_prod(*[torch.arange(9, dtype=dtype)] * 3)[None] / 10
    grid = grid[:, torch.randperm(729)]
    compiled = [points_in_balls(grid, centres=grid, radius=r / 10, num_neighbours=24) for r in (1, 2, 3)]
    monkeypatch.setattr(operator, "can_use_numba", lambda *tensors, **named: False)
    plain = [points_in_balls(grid, centres=grid, radius=r / 10, num_neighbours=24) for r in (1, 2, 3)]
    assert all(torch.equal(*pair) for pair in zip(compiled, plain, strict=True))


def test_published_numbers(shared, form: str) -> None:
    golden = load_golden(shared, "fn_pointnet_ops")
    for case in range(5):
        points, expected = golden.tensor(f"case{case}.xyz"), golden.tensor(f"case{case}.ball_idx")
        centres = gather_points(points, golden.tensor(f"case{case}.fps_idx")[:, None])[:, 0]
        radius = float(golden.arrays[f"case{case}.radius"])
        found = points_in_balls(points, centres=centres, radius=radius, num_neighbours=expected.shape[2])
        assert torch.equal(found, expected)


def test_an_empty_ball_is_reported(shared, form: str) -> None:
    """The published code leaves an index outside the cloud here."""
    golden = load_golden(shared, "fn_pointnet_ops")
    points, centres = golden.tensor("ball_empty.xyz"), golden.tensor("ball_empty.centres")
    nearest = f"{float((points[0] - centres[0, 0]).norm(dim=1).min()):.6g}"
    with pytest.raises(
        ValueError, match=rf"centres\[0\]: centre 0 has no point within 0.5, the nearest one is {nearest} a"
    ):
        points_in_balls(points, centres=centres, radius=0.5, num_neighbours=3)
    both = torch.cat([points[:, :1], centres], dim=1)
    with pytest.raises(ValueError, match=r"centres\[0\]: centre 1 has no point"):
        points_in_balls(points, centres=both, radius=0.5, num_neighbours=3)


def test_not_finite_names_the_sample() -> None:
    points = torch.zeros(2, 4, 3)
    points[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"points\[1\]: point 2 is \[nan"):
        points_in_balls(points, centres=torch.zeros(2, 1, 3), radius=1.0, num_neighbours=2)
    with pytest.raises(ValueError, match=r"centres\[1\]: point 2 is \[nan"):
        points_in_balls(torch.zeros(2, 4, 3), centres=points, radius=1.0, num_neighbours=2)
    with pytest.raises(ValueError, match=r"centres \(1, 4, 3\) torch.float32 on cpu do not go with points \(2, 4, 3\)"):
        points_in_balls(torch.zeros(2, 4, 3), centres=torch.zeros(1, 4, 3), radius=1.0, num_neighbours=2)


def test_no_neighbours_are_refused(form: str) -> None:
    with pytest.raises(ValueError, match="0 neighbours asked for"):
        points_in_balls(torch.zeros(1, 4, 3), centres=torch.zeros(1, 2, 3), radius=1.0, num_neighbours=0)


def test_empty_balls_are_marked_if_asked(form: str) -> None:
    """Points at 0 and 1 of each cloud; the centres at 0.5 and 9 of the first, 20 of the second."""
    points = torch.tensor([[[0.0], [1.0]], [[30.0], [31.0]]])
    centres = torch.tensor([[[0.5], [9.0]], [[20.0], [31.0]]])
    found = points_in_balls(points, centres=centres, radius=1.0, num_neighbours=3, empty="mark")
    assert found.tolist() == [[[0, 1, 0], [-1, -1, -1]], [[-1, -1, -1], [0, 1, 0]]]
    packed = {"offsets": torch.tensor([0, 2, 4]), "centres": centres.flatten(0, 1), "radius": 1.0, "num_neighbours": 3}
    rows = packed_points_in_balls(points.flatten(0, 1), **packed, centre_offsets=torch.tensor([0, 1, 4]), empty="mark")
    assert rows.tolist() == [[0, 1, 0], [-1, -1, -1], [-1, -1, -1], [2, 3, 2]]
    with pytest.raises(ValueError, match=r"centres\[1\]: centre 0 has no point within 1, the nearest one is 21 away"):
        packed_points_in_balls(points.flatten(0, 1), **packed, centre_offsets=torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="empty: found 'skip', expected 'refuse' or 'mark'"):
        points_in_balls(points, centres=centres, radius=1.0, num_neighbours=3, empty="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"index: rows -1..1 named in clouds of 2 points"):
        gather_points(points, found)
