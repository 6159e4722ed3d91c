"""Cubes of voxels: the spec's hand-worked points, exact inverses, the reference implementations, the release's bias."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.geometry import volumes
from sightline.geometry.volumes import (
    CubePlacement,
    decode,
    gaussian_heatmaps,
    occupancy,
    occupancy_reference,
    to_camera,
    to_voxels,
)
from tests.golden_parity import Golden, load_golden

REFERENCE = torch.tensor([[0.0, 0.0, 350.0]], dtype=torch.float64)
ROUNDING = 1e-9
"""Millimetres or voxels: coordinates of some hundred in float64, through a dozen operations."""


def points(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def hand_cube(**changes: object) -> CubePlacement:
    neutral = CubePlacement.identity(REFERENCE, cube_mm=200.0, size=88)
    fields = {name: getattr(neutral, name) for name in CubePlacement.__dataclass_fields__}
    return CubePlacement(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("point", "voxel"),
    [
        ((0, 0, 350), (44, 44, 44)),
        ((10, -20, 345), (48.4, 35.2, 41.8)),
        ((-99.9, 99.9, 260), (0.044, 87.956, 4.4)),
    ],
)
def test_points_worked_by_hand(point: tuple[float, ...], voxel: tuple[float, ...]) -> None:
    found = to_voxels(points(point), hand_cube())  # type: ignore[arg-type]
    torch.testing.assert_close(found, points(voxel), rtol=0, atol=ROUNDING)  # type: ignore[arg-type]


def test_a_varied_cube_worked_by_hand() -> None:
    varied = hand_cube(
        scale=torch.tensor([1.1], dtype=torch.float64),
        angle_rad=torch.tensor([math.radians(30)], dtype=torch.float64),
        shift=torch.tensor([[1.0, 7.0, 4.0]], dtype=torch.float64),
    )
    found = to_voxels(points((10, -20, 345)), varied)
    torch.testing.assert_close(found, points((56.03156, 35.03687, 41.58)), rtol=0, atol=5e-6)
    torch.testing.assert_close(to_camera(found, varied), points((10, -20, 345)), rtol=0, atol=ROUNDING)


def drawn_placement(count: int, *, compat: str = "none") -> CubePlacement:
    draw = np.random.default_rng(3)
    return CubePlacement(
        torch.from_numpy(draw.normal([0, 0, 350], 15, (count, 3))),
        torch.from_numpy(draw.uniform(0.8, 1.2, count)),
        torch.from_numpy(draw.uniform(-0.7, 0.7, count)),
        torch.from_numpy(
            draw.uniform(0, 8, (count, 3)).round() if compat == "release" else draw.uniform(0, 8, (count, 3))
        ),
        200.0,
        88,
        96,
        "xyz",
        compat,  # type: ignore[arg-type]
    )


def test_every_variation_is_undone_exactly() -> None:
    placement = drawn_placement(1000)
    given = placement.reference_mm[:, None] + torch.from_numpy(
        np.random.default_rng(4).uniform(-150, 150, (1000, 8, 3))
    )
    back = to_camera(to_voxels(given, placement), placement)
    torch.testing.assert_close(back, given, rtol=0, atol=ROUNDING)


def test_a_placement_survives_its_rows() -> None:
    placement = drawn_placement(5, compat="release")
    again = CubePlacement.from_rows(placement.to_rows())
    for name in CubePlacement.__dataclass_fields__:
        before, after = getattr(placement, name), getattr(again, name)
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after


def test_rows_of_different_grids_are_refused() -> None:
    rows = drawn_placement(2).to_rows()
    rows[1, 9] = 44
    with pytest.raises(ValueError, match="different sides, sizes or orders"):
        CubePlacement.from_rows(rows)


def frames(count: int = 3) -> tuple[Tensor, Tensor]:
    """Depth with holes and slopes, of an image that is no square, and a camera of unequal focal lengths."""
    draw = np.random.default_rng(7)
    depth = 350 + 60 * draw.standard_normal((count, 30, 44)).cumsum(axis=2) / 5
    depth[draw.random(depth.shape) < 0.3] = 0
    camera = torch.tensor([[241.0, -250.0, 20.0, 14.5]], dtype=torch.float64).expand(count, -1)
    return torch.from_numpy(depth.astype(np.float32)), camera


def by_hand(depth: np.ndarray, camera: np.ndarray, placement: CubePlacement, sample: int) -> np.ndarray:
    """Pixel by pixel in Python numbers, and nothing of the code under test."""
    volume = np.zeros((placement.size,) * 3, dtype=np.float32)
    fx, fy, u0, v0 = camera
    centre = placement.grid_size / 2
    cosine, sine = math.cos(placement.angle_rad[sample]), math.sin(placement.angle_rad[sample])
    for (row, column), z in np.ndenumerate(depth):
        if z <= 0:
            continue
        point = np.array([(column - u0) * z / fx, (row - v0) * z / fy, z], dtype=np.float64)
        unit = (point - placement.reference_mm[sample].numpy()) / (placement.cube_mm / 2)
        x, y, depth_along = (unit * placement.size / 2) * float(placement.scale[sample])
        turned = np.array([x * cosine - y * sine, x * sine + y * cosine, depth_along])
        voxel = np.floor(turned + centre - placement.shift[sample].numpy()).astype(int)
        if ((voxel >= 0) & (voxel < placement.size)).all():
            volume[tuple(voxel)] = 1
    return volume


def test_occupied_voxels_are_those_found_by_hand() -> None:
    (depth, camera), placement = frames(), drawn_placement(3)
    found = occupancy(depth, camera, placement)
    assert found.shape == (3, 1, 88, 88, 88)
    for sample in range(3):
        expected = by_hand(depth[sample].numpy(), camera[sample].numpy(), placement, sample)
        assert expected.any()
        # A point on a border by rounding may fall to either side; none does among these.
        assert np.array_equal(found[sample, 0].numpy(), expected)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_the_compiled_form_has_the_bits_of_the_plain_one(monkeypatch: pytest.MonkeyPatch, axes: str) -> None:
    (depth, camera), drawn = frames(), drawn_placement(3)
    placement = CubePlacement.from_rows(drawn.to_rows())
    placement = CubePlacement(
        *(getattr(drawn, n) for n in CubePlacement.__dataclass_fields__ if n != "axes" and n != "compat"), axes
    )  # type: ignore[arg-type]
    compiled = occupancy(depth, camera, placement)
    monkeypatch.setattr(volumes, "can_use_numba", lambda *tensors: False)
    assert torch.equal(compiled, occupancy(depth, camera, placement))


def test_a_point_before_the_first_voxel_sets_none() -> None:
    """Cutting off decimals would put a coordinate of -0.3 into voxel 0."""
    voxels = torch.tensor([[[-0.3, 5.0, 5.0], [5.0, -0.999, 5.0], [88.0, 5.0, 5.0], [5.0, 5.0, 5.0]]])
    volume = occupancy_reference(voxels, torch.ones(1, 4, dtype=torch.bool), hand_cube())
    assert volume.nonzero().tolist() == [[0, 0, 5, 5, 5]]


def test_an_empty_frame_is_an_empty_volume() -> None:
    assert not occupancy(torch.zeros(1, 4, 6), torch.tensor([[9.0, 9.0, 3.0, 2.0]]), hand_cube()).any()


def of_golden(golden: Golden, case: str, *, compat: str = "none", shift: str = "trans") -> CubePlacement:
    def number(name: str) -> float:
        return float(golden.arrays[f"{case}.{name}"])

    moved = np.broadcast_to(golden.arrays[f"{case}.{shift}"], (3,)).astype(np.float64)
    return CubePlacement(
        golden.tensor(f"{case}.refpoint")[None],
        torch.tensor([number("new_size") / 100], dtype=torch.float64),
        torch.tensor([number("angle")], dtype=torch.float64),
        torch.from_numpy(moved.copy())[None],
        number("cubic"),
        int(number("crop")),
        int(number("original")),
        "xyz",
        compat,  # type: ignore[arg-type]
    )


def occupied(found: Tensor, placement: CubePlacement) -> np.ndarray:
    volume = occupancy_reference(found, torch.ones(found.shape[:2], dtype=torch.bool), placement)
    return volume[0, 0].nonzero().numpy()


@pytest.mark.shared
@pytest.mark.parametrize("number", range(8))
def test_agrees_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_voxelize", area="pose"), f"case{number}"
    placement, given = of_golden(golden, case), golden.tensor(f"{case}.points")[None]
    found = to_voxels(given, placement)
    torch.testing.assert_close(found[0], golden.tensor(f"{case}.coord"), rtol=0, atol=ROUNDING)
    # Its integer cast also puts (-1, 0) into voxel 0: the correct set stands beside it.
    assert np.array_equal(occupied(found, placement), golden.arrays[f"{case}.occupied_floor"])
    smaller = CubePlacement(
        placement.reference_mm, 1 / placement.scale, placement.angle_rad, placement.shift, *grid(placement)
    )
    integral = golden.tensor(f"{case}.coord_integral_variant")
    torch.testing.assert_close(to_voxels(given, smaller)[0], integral, rtol=0, atol=ROUNDING)


def grid(placement: CubePlacement) -> tuple[float, int, int]:
    return placement.cube_mm, placement.size, placement.grid_size


@pytest.mark.shared
@pytest.mark.parametrize("number", range(6))
def test_agrees_with_the_release(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_release_compat", area="pose"), f"case{number}"
    placement = of_golden(golden, case, compat="release", shift="trans_offset")
    found = to_voxels(golden.tensor(f"{case}.points")[None], placement)
    assert np.array_equal(occupied(found, placement), golden.arrays[f"{case}.occupied"])
    cells = to_voxels(golden.tensor(f"{case}.keypoints")[None], placement) / 2
    maps = gaussian_heatmaps(cells, cells=placement.size // 2, middle=0.0, dtype=torch.float64)
    assert_golden_maps(golden, case, maps.transpose(-1, -3))
    decoded = decode(maps, decoding="argmax") - 0.5
    torch.testing.assert_close(decoded[0], golden.tensor(f"{case}.decoded_cells"), rtol=0, atol=0)
    world = golden.tensor(f"{case}.decoded_world")
    torch.testing.assert_close(to_camera(decoded * 2, placement)[0], world, rtol=0, atol=ROUNDING)


def assert_golden_maps(golden: Golden, case: str, maps: Tensor) -> None:
    """What a file keeps of heat maps (1, J, V, V, V): all of them or every fourth cell, sums and maxima."""
    whole = f"{case}.heat"
    kept = maps[0] if whole in golden.arrays else maps[0][:, 1::4, 1::4, 1::4]
    expected = golden.tensor(whole if whole in golden.arrays else f"{case}.heat_strided")
    assert kept.shape == expected.shape
    torch.testing.assert_close(kept, expected, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(maps[0].sum((1, 2, 3)), golden.tensor(f"{case}.heat_sum"), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(maps[0].amax((1, 2, 3)), golden.tensor(f"{case}.heat_max"), rtol=0, atol=ROUNDING)


# What a change of convention costs, on 200,000 joints in a cube of 200 mm: bias and rms per axis, the mean distance,
# the largest error of an axis. Published tables rest on the first row.
CONVENTIONS = {
    ("release", "release"): (-1.136, 1.733, 2.817, 3.409),
    ("none", "none"): (0.0, 1.312, 2.178, 2.273),
    ("release", "none"): (0.0, None, 2.178, None),
    ("none", "release"): (-1.135, None, 2.817, None),
}
WITHIN_MM = 0.01


@pytest.mark.parametrize(("encoded", "decoded"), CONVENTIONS)
def test_what_the_conventions_cost(encoded: str, decoded: str) -> None:
    """Joints uniform over the cells of one axis; axes are independent, and the largest cell is known in closed form."""
    given = torch.from_numpy(np.random.default_rng(0).uniform(-95, 95, (1, 200_000, 3)))
    centre = torch.zeros(1, 3, dtype=torch.float64)
    ways = {
        compat: CubePlacement(*(getattr(p, n) for n in CubePlacement.__dataclass_fields__ if n != "compat"), compat)  # type: ignore[arg-type]
        for p in [CubePlacement.identity(centre, cube_mm=200.0, size=88)]
        for compat in ("none", "release")
    }
    cells = to_voxels(given, ways[encoded]) / 2
    # The nearest whole number, the lower of two (release), or the cell that holds the joint.
    largest = (cells - 0.5).ceil() if encoded == "release" else cells.floor()
    back = to_camera((largest + (0.0 if decoded == "release" else 0.5)) * 2, ways[decoded])
    error = back - given
    bias, rms, mean, largest_mm = CONVENTIONS[encoded, decoded]
    assert error.mean((0, 1)).sub(bias).abs().max() < WITHIN_MM
    assert error.norm(dim=-1).mean().sub(mean).abs() < WITHIN_MM
    assert rms is None or error.square().mean((0, 1)).sqrt().sub(rms).abs().max() < WITHIN_MM
    assert largest_mm is None or error.abs().max().sub(largest_mm).abs() < WITHIN_MM
