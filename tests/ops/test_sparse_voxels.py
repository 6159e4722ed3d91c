"""Sparse voxels, kernel maps and convolutions: the authors' numbers, dense convolutions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import ops
from sightline.ops.voxels.cells import SparseVoxels
from tests.golden_parity import Golden, assert_near_largest, load_golden
from tests.ops.threads import with_one_and_three_threads

STRIDED = {"k2s2": (2, 2, 0), "k3s2p1": (3, 2, 1), "k3s2p0": (3, 2, 0)}


# --- voxels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(shared: Any) -> Golden:
    return load_golden(shared, "fn_grid_sample", area="voxels")


def fnv_keys(cells: np.ndarray) -> np.ndarray:
    """Pointcept's keys: multiply, then xor, from the offset of FNV-1a on; they order voxels, nothing else."""
    key = np.full(len(cells), 14695981039346656037, dtype=np.uint64)
    for axis in range(3):
        key = (key * np.uint64(1099511628211)) ^ cells[:, axis].astype(np.uint64)
    return key


@pytest.mark.shared
@pytest.mark.parametrize("case", ["a", "neg", "lidar"])
def test_voxels_are_those_of_the_authors(samples: Golden, case: str) -> None:
    """Cells, the order of voxels and of their points, the picks of their draws, means, first points, all fragments."""
    given = {name.removeprefix(f"{case}."): samples.tensor(name) for name in samples.arrays if name.startswith(case)}
    voxels = ops.sparse_voxels(given["coord"], side=given["grid_size"].item())
    assert torch.equal(voxels.cells[voxels.inverse], given["grid_coord"])
    assert torch.equal(voxels.lowest[0], given["min"].long())
    assert torch.equal(voxels.inverse, given["ravel.inverse"])
    assert torch.equal(voxels.order, given["ravel.idx_sort_stable"])
    assert torch.equal(voxels.num_points, given["ravel.count"])
    assert torch.equal(voxels.pick(given["ravel.draws"]), given["ravel.train_index"])
    assert torch.equal(voxels.first, given["first"])
    assert torch.allclose(voxels.average(given["feat"].double()), given["mean"].double(), rtol=0, atol=1e-12)
    assert torch.equal(torch.stack([*voxels.iterate_fragments()]), given["ravel.fragments"])
    keys = fnv_keys(voxels.cells.numpy())
    assert np.array_equal(keys[voxels.inverse.numpy()], given["fnv"].numpy().astype(np.uint64))
    order = torch.from_numpy(np.argsort(keys, kind="stable"))  # of our voxels in theirs
    draws = torch.empty_like(order).scatter(0, order, given["fnv.draws"])
    assert torch.equal(voxels.pick(draws)[order], given["fnv.train_index"])
    assert torch.equal(torch.stack([each[order] for each in voxels.iterate_fragments()]), given["fnv.fragments"])


def make_voxels(*sizes: int, side: float = 0.25) -> tuple[Tensor, Tensor, SparseVoxels]:
    points = torch.rand(sum(sizes), 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return points, offsets, ops.sparse_voxels(points, offsets, side=side)


def test_voxels_of_a_batch_are_those_of_its_clouds() -> None:
    """Of packed clouds, one of them empty: cells from 0 in each, and the points of each voxel in a loop."""
    points, offsets, voxels = make_voxels(300, 0, 1, 90)
    assert voxels.lowest.shape == (4, 3)
    for cloud in range(4):
        rows = slice(*offsets[cloud : cloud + 2].tolist())
        own = slice(*voxels.offsets[cloud : cloud + 2].tolist())
        alone = ops.sparse_voxels(points[rows], side=0.25)
        assert torch.equal(alone.cells, voxels.cells[own])
        assert torch.equal(alone.inverse, voxels.inverse[rows] - own.start)
        if len(alone.cells):
            assert alone.cells.amin(dim=0).tolist() == [0, 0, 0]
            corner = (alone.cells + alone.lowest) * 0.25
            inside = points[rows].double() - corner[alone.inverse]
            assert bool(((inside >= 0) & (inside < 0.25)).all())
    members: dict[int, list[int]] = {}
    for point, voxel in enumerate(voxels.inverse.tolist()):
        members.setdefault(voxel, []).append(point)
    listed = [voxels.order[first:last].tolist() for first, last in zip(voxels.starts, voxels.starts[1:], strict=False)]
    assert listed == [members[voxel] for voxel in range(len(voxels.cells))]


def test_every_point_is_in_a_fragment_and_a_fragment_has_every_voxel() -> None:
    points, _, voxels = make_voxels(500, 200)
    fragments = [*voxels.iterate_fragments()]
    assert len(fragments) == voxels.num_points.max()
    assert torch.cat(fragments).unique().tolist() == list(range(len(points)))
    assert all(torch.equal(voxels.inverse[each], torch.arange(len(voxels.cells))) for each in fragments)


def test_labels_are_voted_and_never_averaged() -> None:
    voxels = ops.group_cells(torch.tensor([[0, 0, 0]] * 5 + [[1, 0, 0]] * 2 + [[2, 0, 0]]))
    labels = torch.tensor([4, 1, 4, 1, 255, 255, 3, 255])
    assert voxels.vote(labels, 5, 255).tolist() == [1, 3, 255]  # a tie: the lowest
    assert voxels.count_labels(labels, 5, 255).sum(dim=1).tolist() == [4, 1, 0]
    with pytest.raises(ValueError, match=r"labels: found \[255\], expected 0 to 4"):
        voxels.vote(labels, 5)


def test_pooling_keeps_cells_in_their_places() -> None:
    cells = torch.tensor([[5, 0, 3], [6, 1, 3], [7, 1, 2], [5, 0, 2]])
    pooled = ops.pool_cells(cells, torch.tensor([0, 4]), stride=2)
    assert pooled.cells.tolist() == [[2, 0, 1], [3, 0, 1]]
    assert pooled.inverse.tolist() == [0, 1, 1, 0]
    values = torch.tensor([[1.0], [5], [4], [1]], requires_grad=True)
    highest = pooled.highest(values)
    highest.sum().backward()
    assert highest.tolist() == [[1], [5]]
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [1, 1, 0, 0]  # of equal ones the first
    assert pooled.spread(highest.detach()).flatten().tolist() == [1, 5, 5, 1]


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("no side", lambda: ops.sparse_voxels(torch.rand(3, 3), side=0.0), "side: found 0.0, expected a length above 0"),
    (
        "not finite",
        lambda: ops.sparse_voxels(torch.tensor([[0, 0, 0], [0, torch.nan, 0]]), side=1.0),
        "points: 1 of 2 have coordinates that are not finite, first row 1",
    ),
    (
        "counts",
        lambda: ops.group_cells(torch.zeros(5, 3, dtype=torch.int64), torch.tensor([2, 3])),
        r"offsets \[2, 3\] of 5 points; they start at 0",
    ),
    ("floats", lambda: ops.group_cells(torch.rand(5, 3)), r"cells: found \(5, 3\) torch.float32, expected whole"),
    (
        "too far apart",
        lambda: ops.sparse_voxels(torch.tensor([[0.0, 0, 0], [1e9, 1e9, 1e9]]), side=0.01),
        "cannot be numbered in 64 bits; raise the side",
    ),
    (
        "below 0",
        lambda: ops.submanifold_map(torch.tensor([[0, -1, 0]]), torch.tensor([0, 1]), size=3),
        r"cells: found \[0, -1, 0\] as the lowest, expected 0 or more",
    ),
    (
        "even",
        lambda: ops.submanifold_map(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0, 1]), size=2),
        "size: found 2, expected an odd number",
    ),
    (
        "two in a cell",
        lambda: ops.strided_map(torch.zeros(3, 3, dtype=torch.int64), torch.tensor([0, 3]), size=2, stride=2),
        "cells: 2 voxels are in a cell with another; keep one of each cell",
    ),
    (
        "gaps",
        lambda: ops.strided_map(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0, 1]), size=2, stride=3),
        "size 2, stride 3, padding 0: the kernels have to cover all cells",
    ),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_makes_no_sense_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maps(shared: Any) -> Golden:
    return load_golden(shared, "fn_kernel_maps", area="voxels")


def read_cells(golden: Golden, case: str) -> tuple[Tensor, Tensor, list[int]]:
    indices = golden.tensor(f"{case}.indices").long()
    cloud = indices[:, 0].contiguous()
    offsets = ops.batch_to_offsets(cloud, int(cloud.max()) + 1)
    return indices[:, 1:].contiguous(), offsets, golden.tensor(f"{case}.spatial").tolist()


@pytest.mark.shared
@pytest.mark.parametrize("case", ["small", "mid", "tight"])
def test_maps_are_those_of_spconv(maps: Golden, case: str) -> None:
    """Integers, equal; of `tight`, whose extent leaves voxels without an output, with that extent alone."""
    cells, offsets, extent = read_cells(maps, case)
    for size in (3, 5):
        expected = maps.tensor(f"{case}.subm{size}.table")
        table = ops.submanifold_map(cells, offsets, size=size).table
        assert torch.equal(table[: len(expected)].int(), expected.int())
        assert (table >= 0).sum(dim=0).tolist() == maps.tensor(f"{case}.subm{size}.pairs_per_kernel").tolist()
    for name, (size, stride, padding) in STRIDED.items():
        found = ops.strided_map(cells, offsets, size=size, stride=stride, padding=padding, extent=extent)
        outputs = maps.tensor(f"{case}.{name}.out_indices").long()
        assert torch.equal(found.cells, outputs[:, 1:])
        assert torch.equal(ops.offsets_to_batch(found.offsets, len(outputs)), outputs[:, 0])
        assert torch.equal(found.map.table.int(), maps.tensor(f"{case}.{name}.table").int())
        free = ops.strided_map(cells, offsets, size=size, stride=stride, padding=padding)
        assert (len(free.cells) > len(found.cells)) == (case == "tight")
        assert bool((free.map.reverse >= 0).any(dim=1).all()) or padding == 0  # every voxel reaches an output


def test_a_map_does_not_depend_on_the_order_of_voxels_or_threads() -> None:
    cells = torch.randint(0, 9, (400, 3), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    offsets, order = (
        torch.tensor([0, len(cells)]),
        torch.randperm(len(cells), generator=torch.Generator().manual_seed(1)),
    )
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    straight = ops.submanifold_map(cells, offsets, size=3).table.long()
    one, three = with_one_and_three_threads(lambda: ops.submanifold_map(cells[order], offsets, size=3).table)
    assert torch.equal(one, three)
    expected = torch.where(straight[order] >= 0, place[straight[order].clamp(min=0)], -1)
    assert torch.equal(one.long(), expected)


def test_clouds_of_a_batch_are_no_neighbours() -> None:
    cells = torch.tensor([[0, 0, 0], [0, 0, 1]] * 2)
    table = ops.submanifold_map(cells, torch.tensor([0, 2, 4]), size=3).table
    assert sorted(table[0][table[0] >= 0].tolist()) == [0, 1]
    assert sorted(table[2][table[2] >= 0].tolist()) == [2, 3]


# --- convolution ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def convolutions(shared: Any) -> Golden:
    return load_golden(shared, "fn_sparse_conv", area="voxels")


def from_spconv(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1, weight.shape[-1]).permute(1, 2, 0)


@pytest.mark.shared
@pytest.mark.parametrize("case", ["small", "tight"])
def test_convolutions_and_gradients_are_those_of_the_authors(convolutions: Golden, case: str) -> None:
    golden = convolutions
    cells, offsets, extent = read_cells(golden, case)

    def compare(name: str, prefix: str, kernel_map: ops.KernelMap, feature: str) -> None:
        key = f"{case}.{name}{prefix}"
        values, weight = (golden.tensor(label).clone().requires_grad_() for label in (feature, f"{key}w"))
        has_bias = f"{key}b" in golden.arrays
        bias = golden.tensor(f"{key}b").clone().requires_grad_() if has_bias else None
        result = ops.sparse_convolution(values, from_spconv(weight), kernel_map, bias)
        found = {"out": result}
        if f"{key}cot" in golden.arrays:
            (result * golden.tensor(f"{key}cot")).sum().backward()
            found |= {f"g_{'in' if prefix == '.inv.' else 'feat'}": values.grad, "g_w": weight.grad}
            found |= {"g_b": bias.grad} if bias is not None else {}
        for label, value in found.items():
            assert (value - golden.tensor(f"{key}{label}")).abs().max().item() <= 1e-12, f"{key}{label}"

    for size in (3, 5):
        compare(f"subm{size}", ".", ops.submanifold_map(cells, offsets, size=size), f"{case}.feat")
    for name, (size, stride, padding) in STRIDED.items():
        coarse = ops.strided_map(cells, offsets, size=size, stride=stride, padding=padding, extent=extent)
        compare(name, ".", coarse.map, f"{case}.feat")
        if f"{case}.{name}.inv.in" in golden.arrays:
            compare(name, ".inv.", coarse.map.inverted(), f"{case}.{name}.inv.in")


@pytest.mark.shared
@pytest.mark.parametrize("case", ["small", "tight"])
def test_kernels_of_other_libraries_are_arranged(convolutions: Golden, case: str) -> None:
    """Size 1 of spconv, and the places of MinkowskiEngine and torchsparse, as the layouts of published weights do."""
    from sightline.published.translation import CHANGES

    golden = convolutions
    cells, offsets, _ = read_cells(golden, case)
    values = golden.tensor(f"{case}.feat")
    around = ops.submanifold_map(cells, offsets, size=3)
    row = torch.arange(len(cells), dtype=torch.int32)[:, None]
    itself = ops.KernelMap(row, row)
    down = ops.strided_map(cells, offsets, size=2, stride=2)
    rows = (
        ("spconv", "a.weight", "k1.w", itself, "k1.out"),
        ("minkowski", "a.kernel", "mink3.kernel", around, "mink3.out"),
        ("minkowski", "a.kernel", "k2.kernel", down.map, "k2.out_minkowski"),
        ("torchsparse", "a.kernel", "mink3.kernel", around, "mink3.out"),
        ("torchsparse", "a.kernel", "k2.kernel", down.map, "k2.out_torchsparse"),
    )
    for library, name, weight, kernel_map, expected in rows:
        arranged = CHANGES["arrange_kernels"]({name: golden.tensor(f"{case}.{weight}")}, library)["a.weight"]
        assert arranged is not None
        bias = golden.tensor(f"{case}.k1.b") if weight == "k1.w" else None
        found = ops.sparse_convolution(values, arranged, kernel_map, bias)
        assert (found - golden.tensor(f"{case}.{expected}")).abs().max().item() <= 1e-12, (library, weight)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_full_grid_it_is_the_dense_convolution(size: int, stride: int, padding: int, dtype: torch.dtype) -> None:
    """Values and gradients of all voxels of two clouds, in float64, with widths that are no multiple of a vector."""
    torch.manual_seed(0)
    axis = torch.arange(6)
    cells, offsets = torch.cartesian_prod(axis, axis, axis).repeat(2, 1), torch.tensor([0, 216, 432])
    dense = torch.randn(2, 5, 6, 6, 6).double().requires_grad_()
    kernel = torch.randn(21, 5, size, size, size).double().requires_grad_()
    expected = F.conv3d(dense, kernel, stride=stride, padding=padding)
    if stride == 1:
        kernel_map = ops.submanifold_map(cells, offsets, size=size)
    else:
        kernel_map = ops.strided_map(cells, offsets, size=size, stride=stride, padding=padding, extent=[6] * 3).map
    values = dense.detach().permute(0, 2, 3, 4, 1).reshape(432, 5).to(dtype).requires_grad_()
    weight = kernel.detach().permute(2, 3, 4, 1, 0).reshape(size**3, 5, 21).to(dtype).requires_grad_()
    found = ops.sparse_convolution(values, weight, kernel_map)
    bound = {torch.float32: 5e-6, torch.float64: 1e-14}[dtype]  # up to 2,625 products, one after another
    assert_near_largest(found, expected.permute(0, 2, 3, 4, 1).reshape(-1, 21).detach(), bound, "values")
    cotangent = torch.randn(expected.shape).double()
    expected.backward(cotangent)
    found.backward(cotangent.permute(0, 2, 3, 4, 1).reshape(-1, 21).to(dtype))
    for name, ours, theirs in (
        ("of values", values.grad, dense.grad.permute(0, 2, 3, 4, 1).reshape(432, 5)),
        ("of weights", weight.grad, kernel.grad.permute(2, 3, 4, 1, 0).reshape(size**3, 5, 21)),
    ):
        assert_near_largest(ours, theirs, bound, name)


def test_a_map_of_other_voxels_is_refused() -> None:
    kernel_map = ops.submanifold_map(torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.tensor([0, 2]), size=3)
    with pytest.raises(ValueError, match="for 3 voxels and a kernel of 27 places; the map is of other voxels"):
        ops.sparse_convolution(torch.rand(3, 4), torch.rand(27, 4, 4), kernel_map)
    with pytest.raises(ValueError, match=r"table: found rows 5 to 7, expected -1 \(none\) to 1"):
        ops.sparse_convolution(torch.rand(2, 4), torch.rand(27, 4, 4), kernel_map._replace(table=kernel_map.table + 6))


def test_half_precision_is_rounded_before_and_after_the_sums() -> None:
    cells = torch.randint(0, 6, (90, 3), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    kernel_map = ops.submanifold_map(cells, torch.tensor([0, len(cells)]), size=3)
    torch.manual_seed(0)
    values, weight = torch.randn(len(cells), 8), torch.randn(27, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.sparse_convolution(values, weight, kernel_map)
    rounded = (values.bfloat16().float(), weight.bfloat16().float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, ops.sparse_convolution(*rounded, kernel_map).bfloat16())


@pytest.mark.parametrize("channels", [16, 128])
def test_bits_of_a_cloud_depend_on_no_other_and_on_no_thread(channels: int) -> None:
    """In the kernel's own form, and with matrix products of wide layers."""
    _, _, voxels = make_voxels(400, 3, 250)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(voxels.cells), channels, generator=generator)
    weight = torch.randn(27, channels, channels, generator=generator)
    kernel_map = ops.submanifold_map(voxels.cells, voxels.offsets, size=3)
    one, three = with_one_and_three_threads(lambda: ops.sparse_convolution(values, weight, kernel_map))
    assert torch.equal(one, three)
    for cloud in range(3):
        rows = slice(*voxels.offsets[cloud : cloud + 2].tolist())
        offsets = torch.tensor([0, rows.stop - rows.start])
        alone = ops.submanifold_map(voxels.cells[rows], offsets, size=3)
        assert torch.equal(ops.sparse_convolution(values[rows], weight, alone), one[rows])
