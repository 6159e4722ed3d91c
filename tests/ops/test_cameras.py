"""Cameras: the pinhole by hand and as others have it, rotations against SciPy, and cameras on rings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sightline.ops.points.rotations import (
    axis_rotation,
    euler_matrix,
    quaternion_matrix,
    rotate_points,
    uniform_quaternion,
)
from sightline.ops.views.cameras import Axis, Cameras, Projection, ring_cameras
from sightline.ops.views.pinhole import depth_points, pixel_rays, project_points, unproject_pixels
from tests.cases import run_each
from tests.golden_parity import load_golden

CAMERAS = {
    "MSRA": (241.42, -241.42, 160.0, 120.0),
    "ICVL": (241.42, 241.42, 160.0, 120.0),
    "NYU": (588.036865, -587.075073, 320.0, 240.0),
    "HANDS2017": (475.065948, 475.065857, 315.944855, 245.287079),
    "ITOP": (1 / 0.0035, -1 / 0.0035, 160.0, 120.0),
}


def test_a_pixel_by_hand() -> None:
    """100 px right of the middle and 50 below it, at 200 mm with a focal length of 100 px; y up."""
    camera = np.array([100.0, -100.0, 160.0, 120.0])
    assert unproject_pixels(np.array([260.0, 170.0, 200.0]), camera).tolist() == [200.0, -100.0, 200.0]
    assert project_points(np.array([200.0, -100.0, 200.0]), camera).tolist() == [260.0, 170.0, 200.0]


def test_only_measured_pixels_are_points() -> None:
    depth = np.zeros((4, 5), dtype=np.float32)
    depth[1, 3], depth[3, 0] = 100, 50
    points = depth_points(depth, np.array([10.0, 20.0, 2.0, 1.0]))
    assert points.tolist() == [[10.0, 0.0, 100.0], [-10.0, 5.0, 50.0]]
    assert points.dtype == np.float64


def test_rays_reach_the_points() -> None:
    camera = np.array(CAMERAS["NYU"])
    rays = pixel_rays(camera, width_px=7, height_px=5)
    depth = np.random.default_rng(0).uniform(300, 900, (5, 7))
    assert np.allclose((rays * depth[..., None]).reshape(-1, 3), depth_points(depth, camera), rtol=1e-15)


@run_each("kind", [np.asarray, torch.from_numpy])
@run_each("name", CAMERAS)
def test_back_and_forth(name: str, kind: object) -> None:
    """Of float32 too: it is computed in float64, and a batch may have a camera for each of its samples."""
    draw = np.random.default_rng(1)
    pixels = draw.uniform((0, 0, 300), (320, 240, 900), (6, 50, 3)).astype(np.float32)
    cameras = np.tile(np.array(CAMERAS[name]), (6, 1, 1))
    points = unproject_pixels(kind(pixels), kind(cameras))  # type: ignore[operator]
    back = project_points(points, kind(cameras))  # type: ignore[operator]
    assert type(back) is type(kind(pixels))  # type: ignore[operator]
    assert np.asarray(back).dtype == np.float64
    assert np.abs(np.asarray(back) - pixels).max() < 1e-9


def test_a_float32_tensor_meets_one_camera_in_float64() -> None:
    """One camera without batch axes gives numbers without axes, which torch does not promote a float32 tensor to."""
    pixels = torch.tensor([[10.0, 20.0, 300.0]])
    points = unproject_pixels(pixels, torch.tensor(CAMERAS["HANDS2017"], dtype=torch.float64))
    assert points.dtype == torch.float64
    assert points[0, 0].item() == (10.0 - 315.944855) * 300.0 / 475.065948


def test_a_point_beside_the_camera_appears_nowhere() -> None:
    assert not np.isfinite(project_points(np.array([1.0, 1.0, 0.0]), np.array(CAMERAS["MSRA"]))[:2]).any()


@pytest.mark.shared
@pytest.mark.parametrize("name", CAMERAS)
def test_as_the_authors_release_has_it(shared: Path, name: str) -> None:
    golden = load_golden(shared, "fn_pixel_world", area="pose")
    camera = np.array(CAMERAS[name])
    found = unproject_pixels(golden.arrays[f"{name}.pixel"], camera)
    assert np.abs(found - golden.arrays[f"{name}.world"]).max() < 1e-9 * np.abs(golden.arrays[f"{name}.world"]).max()
    back = project_points(golden.arrays[f"{name}.world"], camera)[:, :2]
    assert np.abs(back - golden.arrays[f"{name}.pixel_back"]).max() < 1e-9 * 320


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ahp_icvl", "ahp_nyu", "ahp_msra"])
def test_as_the_evaluation_code_has_it(shared: Path, name: str) -> None:
    """It carries the direction of y in fy, as we do."""
    golden = load_golden(shared, "fn_pixel_world", area="pose")
    camera = golden.arrays[f"{name}.params"]
    found = unproject_pixels(golden.arrays[f"{name}.uvd"], camera)
    assert np.abs(found - golden.arrays[f"{name}.world"]).max() < 1e-9 * np.abs(found).max()
    assert np.abs(project_points(found, camera) - golden.arrays[f"{name}.back"]).max() < 1e-9 * 1000


@pytest.mark.shared
def test_as_the_pytorch_port_projects(shared: Path) -> None:
    golden = load_golden(shared, "fn_msra_depth", area="pose").arrays
    found = project_points(golden["project.points"], np.array(CAMERAS["MSRA"]))[:, :2]
    assert np.abs(found - golden["project.pixels"]).max() < 1e-9 * 320


# --- Rotation matrices against SciPy, and the bits of one cloud alone and among others ---


# a matrix entry is made of at most four products of numbers up to 1 in float64
BOUND = 8 * np.finfo(np.float64).eps


def drawn(*shape: int, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).uniform(low, high, shape))


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_axis_rotation_agrees_with_scipy(axis: str) -> None:
    angles = drawn(40, low=-7, high=7)
    expected = Rotation.from_euler(axis, angles.numpy()[:, None]).as_matrix()
    assert np.abs(axis_rotation(axis, angles).numpy() - expected).max() < BOUND


def test_a_rotation_is_where_its_angle_is_and_takes_whole_angles() -> None:
    assert axis_rotation("z", torch.zeros(2, device="meta")).device.type == "meta"
    assert torch.equal(axis_rotation("y", torch.tensor([2])), axis_rotation("y", torch.tensor([2.0])))
    assert torch.equal(euler_matrix(torch.tensor([[1, 2, 3]])), euler_matrix(torch.tensor([[1.0, 2.0, 3.0]])))


def test_euler_angles_turn_about_the_fixed_axes_x_y_z() -> None:
    angles = drawn(40, 3, low=-4, high=4)
    assert np.abs(euler_matrix(angles).numpy() - Rotation.from_euler("xyz", angles.numpy()).as_matrix()).max() < BOUND


def test_quaternions_agree_with_scipy() -> None:
    quaternions = uniform_quaternion(drawn(200, 3, low=0, high=1))
    assert np.abs(np.linalg.norm(quaternions, axis=1) - 1).max() < BOUND
    scipy_order = quaternions.numpy()[:, [1, 2, 3, 0]]
    assert np.abs(quaternion_matrix(quaternions).numpy() - Rotation.from_quat(scipy_order).as_matrix()).max() < BOUND


def test_rotating_is_the_matrix_product_and_does_not_see_the_batch() -> None:
    points, angles = drawn(9, 50, 3, low=-1, high=1).float(), drawn(9, 3, low=-1, high=1).float()
    rotated = rotate_points(points, euler_matrix(angles))
    expected = np.einsum("bij,bnj->bni", euler_matrix(angles.double()).numpy(), points.double().numpy())
    assert np.abs(rotated.numpy() - expected).max() < 8 * np.finfo(np.float32).eps
    for row in range(9):
        assert torch.equal(rotate_points(points[row : row + 1], euler_matrix(angles[row : row + 1]))[0], rotated[row])


# --- Cameras on rings: where they stand, what they frame, and what they refuse ---


EPS = float(np.finfo(np.float64).eps)


def seen(cameras: Cameras, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (V, N) by the textbook: x right, y up, divided by the distance where there is a pinhole."""
    x, y, z = np.einsum("vij,nj->ivn", cameras.rotations, points)
    depth = 1 if cameras.distance is None else cameras.distance - z
    return cameras.centre_px + cameras.scale_px * x / depth, cameras.centre_px - cameras.scale_px * y / depth


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_views_turn_rightly_about_the_up_axis(up_axis: Axis) -> None:
    cameras = ring_cameras(12, size_px=64, up_axis=up_axis, elevations_deg=(10, 50))
    products = cameras.rotations @ cameras.rotations.swapaxes(1, 2)
    assert np.abs(products - np.eye(3)).max() < 8 * EPS  # sums of three products of numbers up to 1
    assert np.abs(np.linalg.det(cameras.rotations) - 1).max() < 16 * EPS
    up = np.eye(3)["xyz".index(up_axis)]
    assert np.abs(cameras.rotations[:, 0] @ up).max() == 0  # to the right is level
    assert (cameras.rotations[:, 1] @ up > 0).all()
    heights = np.degrees(np.arcsin(cameras.rotations[:, 2] @ up))
    assert np.allclose(heights, [10] * 6 + [50] * 6)


def test_the_first_view_of_things_upright_in_z_stands_on_x() -> None:
    """Seen from x with z up, y is to the right: the right-handed frame as a plan shows it."""
    first = ring_cameras(4, size_px=64, elevations_deg=(0,)).rotations[0]
    assert np.allclose(first, [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_rings_are_turned_by_half_a_step() -> None:
    towards = ring_cameras(8, size_px=64, elevations_deg=(0, 0)).rotations[:, 2]
    azimuths = np.degrees(np.arctan2(towards[:, 1], towards[:, 0])) % 360
    assert np.allclose(azimuths, [0, 90, 180, 270, 45, 135, 225, 315])


@pytest.mark.parametrize("projection", ["parallel", "pinhole"])
def test_the_unit_sphere_fills_95_hundredths_of_the_picture(projection: Projection) -> None:
    """The outline of a sphere is a circle, seen from a pinhole too, whose radius is that of the tangent cone."""
    cameras = ring_cameras(6, size_px=100, projection=projection)
    generator = np.random.default_rng(0)
    points = generator.normal(size=(200_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    columns, rows = seen(cameras, points)
    radii = np.hypot(columns - 49.5, rows - 49.5).max(axis=1)
    assert (radii <= 47.5 + 1e-9).all()
    assert (radii > 47.4).all()


def test_a_pinhole_shows_what_is_near_larger() -> None:
    cameras = ring_cameras(1, size_px=101, elevations_deg=(0,), projection="pinhole")
    columns, _ = seen(cameras, np.array([[0.5, 0.4, 0], [-0.5, 0.4, 0]]))
    scale = 0.95 * 50.5 * math.sqrt(8)
    assert np.allclose(columns[0], [50 + scale * 0.4 / 2.5, 50 + scale * 0.4 / 3.5])


@run_each(
    "num_views, elevations, told",
    [
        (7, (10.0, 20.0), "7 views on 2 elevations: as many on each"),
        (0, (10.0,), "0 views on 1 elevations"),
        (3, (), "3 views on 0 elevations"),
        (2, (10.0, -91.0), "an elevation of -91 degrees: it must lie within -90 and 90"),
        (1, (math.nan,), "an elevation of nan degrees"),
        (2, (30.0, math.nan), "an elevation of nan degrees"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(num_views: int, elevations: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ring_cameras(num_views, size_px=8, elevations_deg=elevations)
