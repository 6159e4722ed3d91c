"""Space-filling curves, patches along them, and attention inside: the authors' numbers, loops, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline import ops
from sightline.ops.voxels.curves import CURVES
from sightline.ops.voxels.patch_attention import relative_reach
from tests.golden_parity import Golden, load_golden
from tests.ops.threads import with_one_and_three_threads

Z_CURVES, HILBERT_CURVES = CURVES[:2], CURVES[2:]


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("curve", CURVES)
def test_codes_are_those_of_the_authors(shared: Any, curve: Any) -> None:
    golden = load_golden(shared, "fn_curves", area="voxels")
    cases = [name.removesuffix(f".code.{curve}") for name in golden.arrays if name.endswith(f".code.{curve}")]
    assert len(cases) == 8
    for case in cases:
        cells, codes = golden.tensor(f"{case}.coord"), golden.tensor(f"{case}.code.{curve}")
        depth = int(case.strip("unitd"))
        assert torch.equal(ops.curve_codes(cells, curve=curve, depth=depth), codes)
        assert torch.equal(ops.curve_cells(codes, curve=curve, depth=depth), cells)
        if curve == "hilbert-trans" and f"{case}.batch" in golden.arrays:
            batch = golden.tensor(f"{case}.batch")
            assert torch.equal(codes | batch << (3 * depth), golden.tensor(f"{case}.batched.hilbert-trans"))


def draw_cells(count: int, depth: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**depth, (count, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("curve", CURVES)
def test_curves_pass_every_cell_once_and_back(curve: Any) -> None:
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3)
    codes = ops.curve_codes(cells, curve=curve, depth=3)
    assert codes.sort().values.tolist() == list(range(512))
    path = ops.curve_cells(torch.arange(512), curve=curve, depth=3)
    steps = path.diff(dim=0).abs().sum(dim=1)
    assert (int(steps.max()) == 1) == curve.startswith("hilbert")
    deep = draw_cells(1000, 16)
    assert torch.equal(ops.curve_cells(ops.curve_codes(deep, curve=curve), curve=curve), deep)


@pytest.mark.parametrize("curve", CURVES)
def test_half_the_resolution_is_three_bits_less(curve: Any) -> None:
    """Of the codes of depth D, those of depth D - 1: so that coarse voxels stay in order."""
    cells = draw_cells(400, 9)
    fine = ops.curve_codes(cells, curve=curve, depth=9)
    assert torch.equal(fine >> 3, ops.curve_codes(cells >> 1, curve=curve, depth=8))


def test_codes_of_other_depths() -> None:
    """Those of z never depend on the depth; those of Hilbert's curve are equal every third one."""
    cells = draw_cells(400, 6)
    for curve in CURVES:
        codes = {depth: ops.curve_codes(cells, curve=curve, depth=depth) for depth in (6, 7, 8, 9)}
        equal = [torch.equal(codes[6], codes[depth]) for depth in (7, 8, 9)]
        assert equal == ([True] * 3 if curve in Z_CURVES else [False, False, True])


@pytest.fixture(scope="module")
def serialised(shared: Any) -> Golden:
    return load_golden(shared, "fn_serialization", area="voxels")


@pytest.mark.shared
@pytest.mark.parametrize("case", ["plain", "shuf"])
def test_orders_are_those_of_the_authors(serialised: Golden, case: str) -> None:
    cells, offsets = serialised.tensor("in.grid_coord"), F.pad(serialised.tensor("in.offset"), (1, 0))
    depth = int(serialised.tensor(f"{case}.depth"))
    found = ops.curve_order(cells, offsets, depth=depth)
    permutation = serialised.tensor("shuf.perm")[0] if case == "shuf" else torch.arange(4)
    for name, value in zip(("code", "order", "inverse"), found, strict=True):
        assert torch.equal(value[permutation], serialised.tensor(f"{case}.{name}"))


def test_a_cloud_has_the_order_that_it_has_alone() -> None:
    sizes = (70, 0, 1, 40)
    cells = torch.cat([draw_cells(size, 5, seed=size).unique(dim=0) for size in sizes])
    counts = [len(draw_cells(size, 5, seed=size).unique(dim=0)) for size in sizes]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    whole = ops.curve_order(cells, offsets)
    for first, last in pairwise(offsets.tolist()):
        alone = ops.curve_order(cells[first:last], torch.tensor([0, last - first]))
        assert torch.equal(alone.order + first, whole.order[:, first:last])
        assert torch.equal(alone.inverse + first, whole.inverse[:, first:last])


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_patches_are_those_of_the_authors(shared: Any) -> None:
    golden = load_golden(shared, "fn_patch_padding", area="voxels")
    for case in range(8):
        offsets = F.pad(golden.tensor(f"{case}.sizes").cumsum(0), (1, 0))
        patches = ops.cut_patches(offsets, int(offsets[-1]), size=int(golden.tensor(f"{case}.K")))
        expected = (golden.tensor(f"{case}.{name}").long() for name in ("pad", "unpad", "cu_seqlens"))
        for found, wanted in zip((patches.rows, patches.slots, patches.bounds), expected, strict=True):
            assert torch.equal(found, wanted)


def attend_plainly(values: Tensor, patches: ops.Patches) -> Tensor:
    """Attend in a loop over patches of rows in their own order."""
    parts = []
    for first, last in pairwise(patches.bounds.tolist()):
        query, key, value = values[patches.rows[first:last]].permute(1, 2, 0, 3)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
        parts.append((weights @ value).transpose(0, 1).flatten(1))
    return torch.cat(parts)[patches.slots]


SIZES = [(5,), (8,), (9,), (1, 1, 1), (17, 8, 40), (3, 0, 25), (16, 16), (33,)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_is_a_softmax_inside_of_each_patch(sizes: tuple[int, ...]) -> None:
    """With gradients; of patches of their own lengths, and of padded ones whose number is given."""
    count, offsets = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, 3, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(count, 8, dtype=torch.float64, generator=generator)
    starts = zip(offsets[:-1], sizes, strict=True)
    order = torch.cat([start + torch.randperm(size, generator=generator) for start, size in starts])
    inverse = torch.empty_like(order).scatter(0, order, torch.arange(count))
    exact = ops.cut_patches(offsets, count, size=8)
    expected = attend_plainly(values[order], exact)[inverse]
    (gradient,) = torch.autograd.grad((expected * weights).sum(), values)
    fixed = ops.cut_patches(offsets, count, size=8, num_patches=count // 8 + len(sizes) + 2)
    for patches in (exact, fixed):
        along = patches.along(order, inverse)
        found = ops.patch_attention(values, along)
        assert torch.allclose(found, expected, rtol=0, atol=1e-14)
        (ours,) = torch.autograd.grad((found * weights).sum(), values)
        assert torch.allclose(ours, gradient, rtol=0, atol=1e-14)
    more = F.pad(values, (0, 0, 0, 0, 0, 0, 0, 3), value=torch.nan)
    wide = ops.cut_patches(offsets, count + 3, size=8, num_patches=count // 8 + len(sizes) + 2)
    filled = ops.patch_attention(more, wide.along(order, F.pad(inverse, (0, 3), value=count + 2)))
    assert torch.equal(filled[:count], ops.patch_attention(values, fixed.along(order, inverse)))
    assert not bool(filled[count:].any())


def test_a_table_adds_what_it_has_for_the_distance() -> None:
    """Along each axis, no further than it reaches; in fixed and in padded patches alike."""
    sizes, size = (19, 8, 3), 8
    offsets, reach = torch.tensor([0, *sizes]).cumsum(0), relative_reach(8)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, 3, 2, 4, dtype=torch.float64, generator=generator)
    table = torch.randn(3 * (2 * reach + 1), 2, dtype=torch.float64, generator=generator, requires_grad=True)
    cells = draw_cells(30, 4)
    patches = ops.cut_patches(offsets, 30, size=size)
    bounds, found = patches.bounds.tolist(), ops.patch_attention(values, patches, table=table, cells=cells)
    parts = []
    for first, last in pairwise(bounds):
        rows = patches.rows[first:last]
        scores = torch.einsum("ihd,jhd->hij", values[rows, 0], values[rows, 1]) / 2
        for i, row in enumerate(rows.tolist()):
            for j, other in enumerate(rows.tolist()):
                for axis in range(3):
                    apart = max(-reach, min(reach, int(cells[row, axis] - cells[other, axis])))
                    scores[:, i, j] = scores[:, i, j] + table[axis * (2 * reach + 1) + apart + reach]
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1), values[rows, 2]).flatten(1))
    expected = torch.cat(parts)[patches.slots]
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    padded = ops.cut_patches(offsets, 30, size=size, num_patches=7)
    assert torch.allclose(ops.patch_attention(values, padded, table=table, cells=cells), expected, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(each.square().sum(), table)[0] for each in (found, expected)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-12)


def test_reach_of_tables_is_the_published_one() -> None:
    assert [relative_reach(size) for size in (16, 48, 128, 1024)] == [7, 11, 15, 31]


def test_a_cloud_has_the_bits_that_it_has_alone() -> None:
    """Whatever clouds are beside it, and with any number of threads."""
    sizes = (100, 1, 300, 64, 130)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    values = torch.randn(sum(sizes), 3, 2, 16, generator=torch.Generator().manual_seed(0))
    one, three = with_one_and_three_threads(
        lambda: ops.patch_attention(values, ops.cut_patches(offsets, len(values), size=64))
    )
    assert torch.equal(one, three)
    for first, last in pairwise(offsets.tolist()):
        patches = ops.cut_patches(torch.tensor([0, last - first]), last - first, size=64)
        assert torch.equal(ops.patch_attention(values[first:last], patches), one[first:last])


CELLS = torch.zeros(2, 3, dtype=torch.int64)
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("deep", lambda: ops.curve_codes(CELLS, curve="z", depth=17), "depth: found 17, expected 1 to 16"),
    ("no curve", lambda: ops.curve_codes(CELLS, curve="peano"), "curve: found 'peano', expected one of z, z-trans"),  # type: ignore[arg-type]
    ("floats", lambda: ops.curve_codes(CELLS.double(), curve="z"), r"cells: found \(2, 3\) torch.float64"),
    (
        "too far",
        lambda: ops.curve_codes(CELLS + 2**17, curve="hilbert"),
        "cells: found 131072 to 131072, a curve of depth 16 has 0 to 65535: subtract the lowest cell",
    ),
    ("of the cloud", lambda: ops.curve_cells(torch.tensor([1 << 50]), curve="z"), "mask those of the cloud off"),
    (
        "many clouds",
        lambda: ops.curve_order(CELLS[:0], torch.zeros(2**15 + 1, dtype=torch.int64)),
        "32768 clouds and a curve of 16 bits an axis do not fit into 63 bits",
    ),
    ("no size", lambda: ops.cut_patches(torch.tensor([0, 2]), 2, size=0), "size: found 0, expected at least 1"),
    ("counts", lambda: ops.cut_patches(torch.tensor([2, 3]), 5, size=2), r"offsets \[2, 3\] of 5 rows"),
    (
        "too few",
        lambda: ops.cut_patches(torch.tensor([0, 9]), 9, size=4, num_patches=2),
        "num_patches: found 2 for 9 rows of 1 clouds in patches of 4; give at least 3",
    ),
    (
        "of other rows",
        lambda: ops.patch_attention(torch.rand(3, 3, 1, 4), ops.cut_patches(torch.tensor([0, 9]), 9, size=4)),
        "patches of 9 rows for 3 rows; cut them for these rows",
    ),
    (
        "no heads",
        lambda: ops.patch_attention(torch.rand(9, 12), ops.cut_patches(torch.tensor([0, 9]), 9, size=4)),
        r"query_key_value: found \(9, 12\), expected \(N, 3, heads, width\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
