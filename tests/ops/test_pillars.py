"""Pillars against the numbers of spconv's routine, a loop over points, and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.operator import OPERATORS
from sightline.ops.voxels import pillars as pillars_module
from sightline.ops.voxels.pillars import dynamic_pillars, hard_pillars
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return load_golden(shared, "pillar_assign", area="boxes3d")


@run_each("case", range(3))
def test_hard_pillars_are_those_of_spconv(golden: Golden, case: int) -> None:
    """Bit for bit: order, cells, and the numbers of the points, some of which lie on borders."""
    info, arrays, points = golden.info["cases"][case], golden.arrays, golden.tensor(f"case{case:02}/in_points")
    found = hard_pillars(
        points,
        side_m=info["voxel_size"][:2],
        range_m=info["range"],
        max_points=info["max_points"],
        max_pillars=info["max_voxels"],
    )
    count = info["voxels"]
    index, cells, num_points = found.point_index[0], found.cells[0], found.num_points[0]
    assert np.array_equal(cells[:count], arrays[f"case{case:02}/coords_zyx"][:, 1:])
    assert np.array_equal(num_points[:count], arrays[f"case{case:02}/num_points"])
    assert (index[count:] == -1).all()
    assert (cells[count:] == -1).all()
    assert not num_points[count:].any()
    contents = torch.where(index[:count, :, None] >= 0, points[index[:count].clamp(min=0)], 0)
    step = golden.info["arrays"].get(f"case{case:02}/voxels", {"flat_step": 1})["flat_step"]
    assert np.array_equal(contents.flatten()[::step], arrays[f"case{case:02}/voxels"].ravel())
    assert np.allclose(contents.double().sum(dim=1), arrays[f"case{case:02}/voxel_sum"], rtol=0, atol=1e-12)


@run_each("case", range(3))
def test_dynamic_pillars_are_the_sorted_keys(golden: Golden, case: int) -> None:
    """The file's rule is of float64, in which a point of float32 just below a border is below it."""
    info, points = golden.info["cases"][case], golden.tensor(f"case{case:02}/in_points").double()
    found = dynamic_pillars(
        points, side_m=info["voxel_size"][:2], range_m=[info["range"][axis] for axis in (0, 1, 3, 4)]
    )
    is_inside = found.pillar_index >= 0
    keys = torch.where(is_inside, found.keys[found.pillar_index.clamp(min=0)], -1)
    count = int(found.num_pillars)
    assert np.array_equal(keys, golden.arrays[f"case{case:02}/dynamic_key"])
    assert np.array_equal(found.keys[:count], golden.arrays[f"case{case:02}/dynamic_unique"])
    assert np.array_equal(found.pillar_index[is_inside], golden.arrays[f"case{case:02}/dynamic_inverse"])
    assert np.array_equal(found.num_points[:count], np.bincount(golden.arrays[f"case{case:02}/dynamic_inverse"]))
    assert found.dropped.num_outside.tolist() == [int((~is_inside).sum())]
    assert found.dropped.num_pillars.tolist() == [count]


def fill_in_a_loop(points: Tensor, max_points: int, max_pillars: int) -> tuple[dict[tuple[int, int], list[int]], Any]:
    """Pillars of half a metre in [-2, 2) x [-1, 1) x [-1, 1) as lists of points, and counts of what is dropped."""
    held: dict[tuple[int, int], list[int]] = {}
    refused: set[tuple[int, int]] = set()
    outside = crowded = left_out = 0
    for number, (x, y, z) in enumerate(points[:, :3].tolist()):
        if not (-2 <= x < 2 and -1 <= y < 1 and -1 <= z < 1):
            outside += 1
            continue
        cell = (math.floor((y + 1) / 0.5), math.floor((x + 2) / 0.5))
        if cell not in held and len(held) == max_pillars:
            refused.add(cell)
            left_out += 1
        elif len(held.setdefault(cell, [])) < max_points:
            held[cell].append(number)
        else:
            crowded += 1
    return held, (len(points), outside, crowded, left_out, len(held) + len(refused), len(refused))


def test_pillars_of_frames_are_those_of_a_loop() -> None:
    """Each frame by itself, one of them empty at the end, with points that are no numbers; in all places else is -1."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 90, 90, 240, 240])
    points = 1.2 * torch.randn(240, 5, generator=generator)
    points[::9, :3] = (points[::9, :3] * 2).round() / 2
    points[7, 0], points[8, 2], points[9, 1] = torch.nan, torch.inf, -torch.inf
    found = hard_pillars(
        points, offsets, side_m=(0.5, 0.5), range_m=(-2, -1, -1, 2, 1, 1), max_points=3, max_pillars=20
    )
    for frame in range(4):
        first = int(offsets[frame])
        held, counts = fill_in_a_loop(points[first : offsets[frame + 1]], 3, 20)
        expected = [[*([first + row for row in rows]), *[-1] * (3 - len(rows))] for rows in held.values()]
        assert found.point_index[frame].tolist() == expected + [[-1] * 3] * (20 - len(held))
        assert found.cells[frame].tolist() == [[*cell] for cell in held] + [[-1, -1]] * (20 - len(held))
        assert found.num_points[frame].tolist() == [*map(len, held.values()), *[0] * (20 - len(held))]
        assert tuple(int(count[frame]) for count in found.dropped) == counts
    inside = found.dropped.num_points - found.dropped.num_outside
    dropped = found.dropped.num_crowded + found.dropped.num_left_out
    assert dropped[[0, 2]].all()
    assert torch.equal(found.dropped.share_of_points, dropped / inside.clamp(min=1))
    assert found.dropped.share_of_pillars[3].item() == 0


def test_by_hand() -> None:
    """Cells of 1 m from 0 to 3 along x, 0 to 2 along y: three points in one, one in another, one at the far end."""
    points = torch.tensor([[2.5, 1.5, 0], [0.5, 0.5, 0], [2.0, 1.0, 0.9], [2.9, 1.9, -1], [3, 1, 0], [0.1, 1, 0]])
    grid: dict[str, Any] = {"side_m": (1, 1)}
    found = hard_pillars(points, **grid, range_m=(0, 0, -1, 3, 2, 1), max_points=2, max_pillars=2)
    assert found.point_index.tolist() == [[[0, 2], [1, -1]]]
    assert found.cells.tolist() == [[[1, 2], [0, 0]]]
    assert found.num_points.tolist() == [[2, 1]]
    assert [int(count) for count in found.dropped] == [6, 1, 1, 1, 3, 1]
    assert found.dropped.share_of_points.item() == pytest.approx(2 / 5)
    assert found.dropped.share_of_pillars.item() == pytest.approx(1 / 3)
    dynamic = dynamic_pillars(points, torch.tensor([0, 2, 6]), **grid, range_m=(0, 0, 3, 2))
    assert dynamic.keys.tolist() == [0, 5, 7, 11, -1, -1]
    assert dynamic.pillar_index.tolist() == [1, 0, 3, 3, -1, 2]
    assert dynamic.cells.tolist() == [[0, 0, 0], [0, 1, 2], [1, 1, 0], [1, 1, 2], *[[-1] * 3] * 2]
    assert dynamic.num_points.tolist() == [1, 1, 1, 2, 0, 0]
    assert dynamic.dropped.num_outside.tolist() == [0, 1]
    assert hard_pillars(points[:0], **grid, range_m=(0, 0, 0, 1, 1, 1), max_points=1, max_pillars=1).dropped[0] == 0


def test_a_grid_too_large_for_a_table_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same bits: first the kernel's, then those of the plain form, which alone may be called."""
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    given = (points, torch.tensor([0, 120, 200]))
    hard: dict[str, Any] = {"side_m": (0.5, 0.5), "range_m": (-2, -2, -1, 2, 2, 1), "max_points": 2, "max_pillars": 9}
    first = hard_pillars(*given, **hard), dynamic_pillars(*given, side_m=(0.5, 0.5), range_m=(-2, -2, 2, 2))
    monkeypatch.setattr(pillars_module, "_MAX_TABLE", 1)
    for name in ("_fill_pillars", "_number_pillars"):
        monkeypatch.setattr(pillars_module, name, None)
    again = hard_pillars(*given, **hard), dynamic_pillars(*given, side_m=(0.5, 0.5), range_m=(-2, -2, 2, 2))
    for one, other in zip(first, again, strict=True):
        for value, same in zip([*one[:-1], *one[-1]], [*other[:-1], *other[-1]], strict=True):
            assert torch.equal(value, same)


def test_what_a_frame_gives_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision and whole numbers too: the plain form is 20 times as slow."""
    for name in ("hard_pillars", "dynamic_pillars"):
        monkeypatch.setattr(OPERATORS[name], "plain", None)
    for points in (torch.zeros(4, 3), torch.zeros(4, 3).half(), torch.zeros(4, 3).double(), torch.zeros(4, 3).int()):
        hard_pillars(points, side_m=(1, 1), range_m=(0, 0, 0, 1, 1, 1), max_points=1, max_pillars=1)
        dynamic_pillars(points, side_m=(1, 1), range_m=(0, 0, 1, 1))


GIVEN: dict[str, Any] = {
    "points": torch.zeros(4, 4),
    "side_m": (0.5, 0.5),
    "range_m": (0, 0, 0, 1, 1, 1),
    "max_points": 2,
    "max_pillars": 2,
}


@run_each(
    "changes, message",
    [
        ({"points": torch.zeros(4, 2)}, r"points: found \(4, 2\) torch\.float32, expected numbers \(N, 3\) or more"),
        ({"side_m": (0.5, 0.5, 4)}, "side_m: found 3 numbers, expected 2: along x and along y"),
        ({"side_m": (0.0, 0.5)}, "range_m: 0 to 1 along x with pillars of 0.0; at least one has to fit"),
        ({"range_m": (0, 0, 1, 1)}, "range_m: found 4 numbers, expected 6"),
        ({"range_m": (0, 1, 0, 1, 0, 1)}, "range_m: 1 to 0 along y"),
        ({"range_m": (0, 0, 0, math.inf, 1, 1)}, "range_m: 0 to inf along x"),
        ({"max_points": 0}, "max_points: found 0, allowed is a number of at least 1"),
        ({"side_m": (1e-12, 1e-12)}, "side_m: a grid of .* cells is too large; raise the sides or cut the range"),
        ({"offsets": torch.tensor([0, 3])}, r"offsets \[0, 3\] of 4 points; they start at 0, never fall, and end at"),
        ({"offsets": torch.tensor([0, 3, 2, 4])}, r"offsets \[0, 3, 2, 4\] of 4 points"),
        ({"offsets": [0, 4]}, "found a list of offsets"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    given = GIVEN | changes
    with pytest.raises(ValueError, match=message):
        hard_pillars(given.pop("points"), **given)


def test_pillars_of_a_plane_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(ValueError, match="range_m: found 6 numbers, expected 4: x, y lowest, x, y highest"):
        dynamic_pillars(GIVEN["points"], side_m=(1, 1), range_m=(0, 0, 0, 1, 1, 1))
