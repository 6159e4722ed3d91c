"""Neighbours in every form: against SciPy, sums of NumPy, exact integers, published numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.ops import operator, products
from sightline.ops.points import neighbour_kernels, neighbours
from sightline.ops.points.distances import paired_squared_distances, squared_distances
from sightline.ops.points.grouping import SortedIndex, gather_points, gather_rows, scale_num_neighbours
from sightline.ops.points.neighbour_kernels import neighbours_by_product, neighbours_by_tree
from sightline.ops.points.neighbours import nearest_neighbours
from sightline.ops.points.proven_neighbours import neighbours_by_proof
from tests.cases import run_each
from tests.golden_parity import load_golden

Search = Callable[[Tensor, Tensor, int], Tensor | None]


@pytest.mark.shared
@pytest.mark.parametrize("case", [f"case{number}" for number in range(5)])
def test_published_numbers(shared: Path, case: str) -> None:
    """Of every sampled centre to every point. Theirs is the expansion a^2 - 2ab + b^2: its rounding is the bound."""
    golden = load_golden(shared, "fn_pointnet_ops")
    points, chosen = golden.tensor(f"{case}.xyz"), golden.tensor(f"{case}.fps_idx")
    centres = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    found = squared_distances(centres.permute(2, 0, 1), points.permute(2, 0, 1))
    expected = golden.tensor(f"{case}.sqdist")
    bound = 16 * 2.2e-16 * float(points.square().sum(dim=-1).max())  # eight roundings of terms up to 2 |p|^2
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    paired = paired_squared_distances(centres[:, :, None], points[:, None])
    assert torch.equal(paired, found)


def test_distances_far_from_the_origin_lose_nothing() -> None:
    """(1e8, 0, 0) and (1e8 + 1, 2, 0): 5 exactly, where squares of 1e16 would leave no digit of it in float64."""
    points = torch.tensor([[[1e8, 0, 0], [1e8 + 1, 2, 0]]], dtype=torch.float64).permute(2, 0, 1)
    assert squared_distances(points, points).tolist() == [[[0, 5], [5, 0]]]


# --- Nearest neighbours in every form against SciPy, sums of NumPy, and exact integers ---


@pytest.fixture(params=["compiled", "plain"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled loops, and what they are held to."""
    if request.param == "plain":
        monkeypatch.setattr(operator, "can_use_numba", lambda *tensors, **named: False)
    return request.param


def by_exact_sort(points: Tensor, count: int) -> np.ndarray:
    """Order by (distance, index) of integer coordinates, in whole numbers: nothing to round."""
    grid = points.numpy().astype(np.int64)
    squared = ((grid[:, :, None] - grid[:, None]) ** 2).sum(-1)
    return squared.argsort(axis=-1, kind="stable")[..., :count]


def by_numpy(points: Tensor, queries: Tensor, count: int) -> np.ndarray:
    """The contract, in NumPy: products rounded, then added, channel after channel; ties to the lower index."""
    squared = np.zeros((len(points), queries.shape[1], points.shape[1]), dtype=points.numpy().dtype)
    for channel in range(points.shape[2]):
        difference = queries.numpy()[:, :, None, channel] - points.numpy()[:, None, :, channel]
        squared = squared + difference * difference
    return squared.argsort(axis=-1, kind="stable")[..., :count]


def turned_about(num_points: int, num_channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points that are few vectors with channels in another order: equal distances from the origin, but for rounding."""
    few = torch.randn(4, num_channels, dtype=dtype)
    order = torch.stack([torch.randperm(num_channels) for _ in range(num_points)])
    return few[torch.randint(0, 4, (num_points,))].gather(1, order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_channels", "count"), [(3, 8), (7, 1), (3, 200), (64, 20)])
def test_agrees_with_scipy(num_channels: int, count: int, dtype: torch.dtype, form: str) -> None:
    points = torch.randn(3, 200, num_channels, dtype=dtype)
    found = nearest_neighbours(points, num_neighbours=count)
    for cloud, index in zip(points.double().numpy(), found, strict=True):
        distance, expected = cKDTree(cloud).query(cloud, k=count)
        ours = np.linalg.norm(cloud[index] - cloud[:, None], axis=-1)
        # Where the order differs from the exact one, two distances are equal to rounding: compare those, not places.
        bound = (num_channels + 4) * torch.finfo(dtype).eps
        np.testing.assert_allclose(ours, distance.reshape(ours.shape), rtol=bound)
        if dtype == torch.float64:
            np.testing.assert_array_equal(index, expected.reshape(index.shape))


@run_each("dtype", [torch.float32, torch.float64])
@run_each("num_channels", [1, 2, 3, 5, 6, 9, 64, 131])
@run_each("num_points", [1, 33, 300])
def test_every_sum_is_rounded_as_written(num_points: int, num_channels: int, dtype: torch.dtype, form: str) -> None:
    points = torch.stack(
        [turned_about(num_points, num_channels, dtype), torch.randn(num_points, num_channels).to(dtype)]
    )
    queries = torch.cat([torch.zeros(2, 1, num_channels, dtype=dtype), points[:, :20], points[:, :9] + 0.1], dim=1)
    count = min(num_points, 21)
    expected = by_numpy(points, queries, count)
    np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=count, queries=queries), expected)


@run_each("num_channels", [3, 8])
@run_each("count", [1, 7, 26, 60])
def test_ties_go_to_the_lower_index(count: int, num_channels: int, form: str) -> None:
    points = torch.randint(0, 3, (4, 60, num_channels)).float()  # 27 places for 60 points: ties and duplicates
    points[:, :, 3:] = 0
    found = nearest_neighbours(points, num_neighbours=count)
    np.testing.assert_array_equal(found, by_exact_sort(points, count))


@pytest.mark.parametrize("num_channels", [3, 6])
def test_at_map_coordinates_float32_finds_the_neighbours_of_float64(num_channels: int, form: str) -> None:
    """A street of 60 m at 1e4 m: float32 steps of 1 mm, so the points' differences are exact or nearly so.

    A squared distance is off by C + 2 roundings at most. Where float32 orders two points otherwise than float64, they
    are equal to within that, and their places alone may differ.
    """
    points = (torch.rand(2, 1500, num_channels) * 60 + 1e4).float()
    index = nearest_neighbours(points, num_neighbours=16)
    exact = nearest_neighbours(points.double(), num_neighbours=16)
    wide = points.double()
    squared, expected = (((gather_points(wide, i) - wide[:, :, None]) ** 2).sum(-1) for i in (index, exact))
    bound = (num_channels + 2) * torch.finfo(torch.float32).eps
    assert ((squared - expected).abs() <= bound * expected).all()
    assert (index != exact).float().mean() < 1e-3  # ties to rounding are rare: millimetre steps, 60 m


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1e6, 1e18, 1e25])
@pytest.mark.parametrize("num_channels", [3, 32])
def test_numbers_of_any_size(scale: float, num_channels: int, form: str) -> None:
    """Squares that vanish or leave the range tie at 0 or infinity, and go by index in every form."""
    points = torch.randn(1, 60, num_channels) * scale
    with np.errstate(over="ignore", under="ignore"):
        expected = by_numpy(points, points, 10)
    np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=10), expected)


def by_proof(points: Tensor, queries: Tensor, count: int) -> Tensor | None:
    return neighbours_by_proof(points, queries, count, neighbours.measure_all)


BY_PRODUCT = pytest.mark.parametrize("search", [neighbours_by_product, by_proof])


@BY_PRODUCT
def test_the_product_rules_out_no_neighbour_where_its_digits_are_few(search: Search) -> None:
    """Two clusters 2000 apart, 1e-3 wide: the expansion's error, 2e-1, is larger than all distances within them."""
    points = torch.randn(1, 200, 24) * 1e-3
    points[:, ::2] += 1000
    points[:, 1::2] -= 1000
    expected = by_numpy(points, points, 15)
    index = search(points, points, 15)
    assert index is not None
    np.testing.assert_array_equal(index, expected)


@BY_PRODUCT
def test_distances_decide_where_scores_are_too_near(search: Search) -> None:
    """Six points on every shell about the query, their coordinates permuted: equal but for the order of adding."""
    shells = torch.linspace(1, 3, 50)[:, None] * torch.randn(16).sort().values
    points = torch.stack([shell[torch.randperm(16)] for shell in shells for _ in range(6)])[torch.randperm(300)][None]
    queries = torch.zeros(1, 32, 16)
    for count in (1, 4, 6, 15, 40):  # within a run, at its end, and over several
        index = search(points, queries, count)
        assert index is not None
        np.testing.assert_array_equal(index, by_numpy(points, queries, count))


def test_convolutions_in_reduced_precision_are_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(1, 256, 64)
    expected = by_numpy(points, points, 9)
    np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=9), expected)
    conv = getattr(torch.backends.mkldnn, "conv", None)
    if conv is None:
        return
    monkeypatch.setattr(products.F, "conv2d", lambda *arguments: pytest.fail("a rounded product"))
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "bf16"
        np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=9), expected)
    finally:
        conv.fp32_precision = before


def test_products_in_reduced_precision_are_not_relied_on() -> None:
    points = torch.randn(1, 100, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=9), by_numpy(points, points, 9))
    torch.set_float32_matmul_precision("medium")
    try:
        assert neighbours_by_product(points, points, 9) is None
        np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=9), by_numpy(points, points, 9))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randint(0, 5, (2, 50, 4)).float()
    plain = operator.OPERATORS["nearest_neighbours"].plain
    whole = plain(points, None, 6), neighbours_by_product(points, points, 6)
    monkeypatch.setattr(neighbours, "_ENTRIES_AT_ONCE", {"cpu": 700})  # 7 queries at a time, and a last chunk of 1
    monkeypatch.setattr(neighbour_kernels, "_ENTRIES_AT_ONCE", 350)  # the same, per cloud
    assert torch.equal(plain(points, None, 6), whole[0])
    assert torch.equal(neighbours_by_product(points, points, 6), whole[1])


@pytest.mark.parametrize("num_points", [1, 2, 31, 32, 33, 64, 65, 257, 1000])
def test_trees_of_any_size(num_points: int) -> None:
    points = torch.randint(0, 12, (2, num_points, 3)).float()
    count = min(num_points, 12)
    np.testing.assert_array_equal(neighbours_by_tree(points, points, count), by_exact_sort(points, count))


def test_half_precision_is_compared_in_float32(form: str) -> None:
    points = torch.randint(0, 9, (1, 40, 64)).to(torch.bfloat16)
    np.testing.assert_array_equal(nearest_neighbours(points, num_neighbours=5), by_exact_sort(points.float(), 5))


def test_no_queries_no_answers(form: str) -> None:
    found = nearest_neighbours(torch.zeros(2, 5, 3), num_neighbours=2, queries=torch.zeros(2, 0, 3))
    assert found.shape == (2, 0, 2)
    assert found.dtype == torch.int64


def test_indices_of_the_published_graph_features(shared, form: str) -> None:
    golden = load_golden(shared, "fn_graph_feature")
    for case in range(6):
        expected = golden.tensor(f"case{case}.idx")
        points = golden.tensor(f"case{case}.x").mT
        assert torch.equal(nearest_neighbours(points, num_neighbours=expected.shape[2]), expected)


def test_more_neighbours_than_points_names_both() -> None:
    with pytest.raises(ValueError, match=r"9 neighbours asked for in clouds of 8 points"):
        nearest_neighbours(torch.zeros(1, 8, 3), num_neighbours=9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_names_the_sample(bad: float) -> None:
    points = torch.zeros(4, 8, 3)
    points[2, 5, 1] = bad
    with pytest.raises(ValueError, match=r"points\[2\]: point 5 is \[0.0, -?(nan|inf), 0.0\]"):
        nearest_neighbours(points, num_neighbours=3)
    with pytest.raises(ValueError, match=r"queries\[2\]: point 5 is"):
        nearest_neighbours(torch.zeros(4, 8, 3), num_neighbours=3, queries=points)


@pytest.mark.parametrize("queries", [torch.zeros(1, 4, 3), torch.zeros(2, 4, 2), torch.zeros(2, 4, 3).double()])
def test_queries_that_do_not_belong_to_the_points(queries: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"queries \(\d, 4, \d\) torch.float\d\d on cpu do not go with points \(2, 6, 3\)"
    ):
        nearest_neighbours(torch.zeros(2, 6, 3), num_neighbours=2, queries=queries)


@run_each("num_channels", [3, 16])
def test_no_neighbours_are_refused(num_channels: int, form: str) -> None:
    with pytest.raises(ValueError, match="0 neighbours asked for"):
        nearest_neighbours(torch.zeros(1, 8, num_channels), num_neighbours=0)


@run_each(
    "count, meant_for, num_points, expected",
    [
        (10, None, 4096, 10),
        (10, 256, 1024, 40),
        (10, 256, 256, 10),
        (10, 256, 64, 3),  # 2.5: a half is rounded up
        (20, 1024, 2048, 40),
        (1, 1024, 64, 1),  # the point itself at least
        (5, 24, 31, 6),  # 6.46
    ],
)
def test_neighbours_in_proportion(count: int, meant_for: int | None, num_points: int, expected: int) -> None:
    assert scale_num_neighbours(count, reference_num_points=meant_for, num_points=num_points) == expected


def test_points_that_are_no_tensor_or_lie_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"points: found a list, expected a tensor \(clouds, points, channels\)"):
        nearest_neighbours([[[0.0]]], num_neighbours=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"queries .* on meta do not go with points \(1, 4, 3\) torch.float32 on cpu"):
        nearest_neighbours(torch.zeros(1, 4, 3), num_neighbours=1, queries=torch.zeros(1, 4, 3, device="meta"))


# --- rows by a sorted index ------------------------------------------------------------------------------------------


def test_gathered_rows_and_their_gradients_are_those_of_indexing() -> None:
    """Rows that are used often, once and never; gradients of the gradient too, and in the order of the index."""
    index = SortedIndex.from_index(torch.tensor([4, 0, 4, 4, 2, 0]))
    first, second = (torch.randn(6, width, dtype=torch.float64, requires_grad=True) for width in (3, 2))
    found, expected = gather_rows(index, first, second), [first[index.original], second[index.original]]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    loss, plain = (sum(rows.square().sum() for rows in both) for both in (found, expected))
    for ours, theirs in zip(*(torch.autograd.grad(each, (first, second)) for each in (loss, plain)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-14)
    torch.autograd.gradgradcheck(lambda rows: gather_rows(index, rows)[0].pow(3), first)
    values = torch.randn(6, 2, requires_grad=True)
    weight = torch.randn(6, 2)
    (gradient,) = torch.autograd.grad((gather_rows(index, values)[0] * weight).sum(), values)
    assert torch.equal(gradient[4], (weight[0] + weight[2]) + weight[3])
