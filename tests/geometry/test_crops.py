"""Crops about a reference point: against pixels read one by one, symmetries, and both directions of the map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.geometry.pinhole import (
    CropPlacement,
    crop_depth,
    from_crop_coordinates,
    project_points,
    to_crop_coordinates,
)
from tests.cases import run_each

CAMERA = (241.42, -241.42, 160.0, 120.0)


def placed(
    reference: tuple[float, ...], *, side_mm: float = 200.0, angle_rad: float = 0.0, camera: tuple[float, ...] = CAMERA
) -> CropPlacement:
    return CropPlacement(
        *(torch.tensor([each], dtype=torch.float64) for each in (reference, camera, side_mm, angle_rad))
    )


def read_by_hand(depth: np.ndarray, placement: CropPlacement, size: int) -> np.ndarray:
    """Pixel by pixel: the ray through the middle of each, as it meets the plane of the reference point."""
    (x, y, z), (fx, fy, u0, v0) = placement.reference_mm[0].tolist(), placement.camera[0].tolist()
    side, angle = placement.side_mm.item(), placement.angle_rad.item()
    crop = np.ones((size, size))
    for row in range(size):
        for column in range(size):
            right = ((column + 0.5) / size - 0.5) * side * abs(fx) / z
            below = ((row + 0.5) / size - 0.5) * side * abs(fy) / z
            # what is turned by the angle in the crop was turned back in the image
            u = fx * x / z + u0 + right * math.cos(-angle) - below * math.sin(-angle)
            v = fy * y / z + v0 + right * math.sin(-angle) + below * math.cos(-angle)
            pixel_v, pixel_u = math.floor(v + 0.5), math.floor(u + 0.5)
            if not (0 <= pixel_v < depth.shape[0] and 0 <= pixel_u < depth.shape[1]) or depth[pixel_v, pixel_u] <= 0:
                continue
            crop[row, column] = min(1.0, max(-1.0, (depth[pixel_v, pixel_u] - z) / (side / 2)))
    return crop


@pytest.mark.parametrize(
    "placement",
    [
        placed((10.0, 38.0, 333.0)),
        placed((-60.0, -50.0, 300.0), side_mm=180.0, angle_rad=0.7),  # hangs out of the image
        placed((5.0, 5.0, 360.0), angle_rad=-2.5, camera=(200.0, 260.0, 155.0, 118.0)),  # y down, pixels not square
    ],
    ids=["plain", "outside", "y_down"],
)
def test_a_crop_is_what_a_reading_by_hand_sees(placement: CropPlacement) -> None:
    depth = np.random.default_rng(2).uniform(200, 500, (240, 320)).astype(np.float32)
    depth[::7, ::5] = 0
    found = crop_depth(torch.from_numpy(depth)[None], placement, size=24)[0, 0].numpy()
    np.testing.assert_allclose(found, read_by_hand(depth, placement, 24), rtol=0, atol=1e-7)
    assert (found == 1).any()
    assert (found == -1).any()
    assert (np.abs(found) < 1).mean() > 0.2


def test_depths_at_the_faces_of_the_cube() -> None:
    """The back belongs to the cube, as 1; what is beyond it is background, as 1 too; nearer than the front is -1."""
    depths = torch.tensor([399.0, 400.0, 401.0, 300.0, 200.0, 150.0, 0.0])
    images = depths[:, None, None].expand(-1, 9, 9)
    one = placed((0.0, 0.0, 300.0), camera=(30.0, 30.0, 4.0, 4.0))
    rows = one.rows().expand(len(depths), -1)
    found = crop_depth(images, CropPlacement.from_rows(rows), size=8)[:, 0, 4, 4]
    torch.testing.assert_close(found, torch.tensor([0.99, 1.0, 1.0, 0.0, -1.0, -1.0, 1.0]))


def test_an_image_mirrored_about_the_point_has_the_mirrored_crop() -> None:
    depth = torch.rand(1, 41, 41, generator=torch.Generator().manual_seed(0)) * 100 + 280
    one = placed((0.0, 0.0, 330.0), camera=(150.0, -150.0, 20.0, 20.0), side_mm=70.0)
    straight = crop_depth(depth, one, size=32)
    assert torch.equal(crop_depth(depth.flip(-1), one, size=32), straight.flip(-1))
    assert torch.equal(crop_depth(depth.flip(-2), one, size=32), straight.flip(-2))


def test_a_quarter_turn_of_the_crop_is_one_of_the_image() -> None:
    depth = torch.rand(1, 41, 41, generator=torch.Generator().manual_seed(1)) * 100 + 280
    camera = (150.0, -150.0, 20.0, 20.0)
    straight = crop_depth(depth, placed((0.0, 0.0, 330.0), camera=camera, side_mm=70.0), size=32)
    turned = placed((0.0, 0.0, 330.0), camera=camera, side_mm=70.0, angle_rad=math.pi / 2)
    # by a positive angle from u, to the right, to v, downwards: clockwise as one looks at it
    assert torch.equal(crop_depth(depth, turned, size=32), straight.rot90(-1, dims=(-2, -1)))


def test_points_appear_in_the_crop_where_their_offsets_say() -> None:
    """One measured pixel: the pixel of the crop that shows it is that of the offset of its point, turned and scaled."""
    placement = placed((20.0, -10.0, 340.0), side_mm=160.0, angle_rad=0.9)
    v, u, z = 139, 190, 352.0
    depth = torch.zeros(1, 240, 320)
    depth[0, v, u] = z
    point = torch.tensor([[[(u - 160) * z / 241.42, (v - 120) * z / -241.42, z]]], dtype=torch.float64)
    crop = crop_depth(depth, placement, size=512)[0, 0]
    rows, columns = torch.nonzero(crop < 1, as_tuple=True)
    seen = project_points(
        to_crop_coordinates(point, placement) * 80 + placement.reference_mm, placement.camera[:, None]
    )[0, 0]
    middle = project_points(placement.reference_mm, placement.camera)[0]
    wide = 160.0 * 241.42 / 340
    expected = ((seen - middle)[:2] / wide + 0.5) * 512 - 0.5
    assert abs(columns.double().mean() - expected[0]) < 1  # of 512: a fifth of a pixel of the image
    assert abs(rows.double().mean() - expected[1]) < 1
    torch.testing.assert_close(crop[rows, columns], torch.full((len(rows),), 12 / 80))


@run_each("angle_rad", [0.0, 1.1, -3.0])
@run_each("camera", [CAMERA, (300.0, 280.0, 150.0, 110.0)])
def test_offsets_are_undone_exactly(angle_rad: float, camera: tuple[float, ...]) -> None:
    placement = placed((12.0, -40.0, 420.0), side_mm=230.0, angle_rad=angle_rad, camera=camera)
    points = torch.rand(1, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 200 - 100
    points = points + torch.tensor([0.0, 0.0, 420.0])
    torch.testing.assert_close(
        from_crop_coordinates(to_crop_coordinates(points, placement), placement), points, rtol=0, atol=1e-9
    )
    again = CropPlacement.from_rows(placement.rows())
    assert torch.equal(to_crop_coordinates(points, again), to_crop_coordinates(points, placement))


def test_without_a_turn_offsets_are_differences() -> None:
    placement = placed((10.0, 20.0, 300.0), side_mm=100.0)
    found = to_crop_coordinates(
        torch.tensor([[[60.0, -30.0, 310.0], [10.0, 20.0, 300.0]]], dtype=torch.float64), placement
    )
    torch.testing.assert_close(found, torch.tensor([[[1.0, -1.0, 0.2], [0.0, 0.0, 0.0]]], dtype=torch.float64))


def test_the_depth_of_a_turned_point_stays() -> None:
    points: Tensor = torch.tensor([[[30.0, 10.0, 350.0]]], dtype=torch.float64)
    straight, turned = (to_crop_coordinates(points, placed((0.0, 0.0, 330.0), angle_rad=angle)) for angle in (0.0, 1.0))
    assert turned[0, 0, 2] == pytest.approx(straight[0, 0, 2])
    assert torch.linalg.vector_norm(turned[0, 0, :2]) == pytest.approx(torch.linalg.vector_norm(straight[0, 0, :2]))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_placement: found the shape \(2, 8\), expected \(B, 9\)"):
        CropPlacement.from_rows(torch.zeros(2, 8))
