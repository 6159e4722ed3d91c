"""The pinhole camera: by hand, back and forth, and as the release and the evaluation code of others have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.geometry.pinhole import depth_points, pixel_rays, project_points, unproject_pixels
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
