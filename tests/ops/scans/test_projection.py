"""Spherical projection: hand-worked points, published images, a float64 loop, borders, and what a projection shows."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.scans.projection_summary import ProjectionSummary
from sightline.ops.views.projection import (
    Projection,
    RangeView,
    count_coverage,
    gather_to_image,
    project_scans,
    rows_by_file_order,
)
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.ops.scans.lidar_scene import BEAMS_DEG, cast_scan

BORDER_POINTS = 5
"""Of a frame: as many may change pixels, as the golden numbers' README says, by the last bit of a float32 angle."""


def projected(points: Tensor, view: RangeView, ring: Tensor | None = None) -> Projection:
    return project_scans(points, view=view, offsets=torch.tensor([0, len(points)]), ring=ring)


def random_points(num_points: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_points, 3, generator=generator) * torch.tensor([20.0, 20.0, 2.0])


# --- worked by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "column"),
    [((10, 0, 0), 256), ((0, 10, 0), 128), ((0, -10, 0), 384), ((-10, 1e-6, 0), 0), ((-10, -1e-6, 0), 511)],
)
def test_columns_worked_by_hand(point: tuple[float, ...], column: int) -> None:
    found = projected(torch.tensor([point], dtype=torch.float32), RangeView(64, 512))
    assert found.pixel.item() % 512 == column
    # elevation 0 lies 3 of the 28 degrees below the upper border: 64 * 3 / 28 = 6.86
    assert found.pixel.item() // 512 == 6
    assert found.point_index.flatten()[found.pixel].item() == 0, "point 0 is drawn"


@run_each(
    "azimuth_deg, aim_deg, column",
    [
        ((45, -45), 44.9, 0),
        ((45, -45), 0, 50),
        ((45, -45), -44.9, 99),
        ((-45, 45), 44.9, 99),
        ((225, 135), 179, 51),
        ((225, 135), -150, 16),
        ((360, 0), 1, 99),
        ((360, 0), 359, 0),
        ((0, -360), 0.1, 99),
        ((50, -50), 60, 0),
    ],
)
def test_partial_and_turned_azimuths(azimuth_deg: tuple[float, float], aim_deg: float, column: int) -> None:
    aim = math.radians(aim_deg)
    view = RangeView(1, 100, fov_deg=(10, -10), azimuth_deg=azimuth_deg)
    found = projected(torch.tensor([[5 * math.cos(aim), 5 * math.sin(aim), 0.0]]), view)
    assert found.pixel.item() == column
    assert found.is_in_view.item() == (aim_deg != 60), "outside: the closest pixel, and not drawn"
    assert (found.point_index >= 0).sum().item() == int(aim_deg != 60)


def test_the_nearest_return_wins_and_of_equal_ones_the_first() -> None:
    far_near_near = torch.tensor([[9.0, 0, 0], [4.0, 0, 0], [4.0, 0, 0], [0, 0, 0]])
    found = projected(far_near_near, RangeView(8, 16))
    assert found.point_index[found.point_index >= 0].tolist() == [1]
    assert found.is_in_view.tolist() == [True, True, True, False], "a range of zero is no return"
    assert count_coverage(found).points_drawn == 1 / 4
    assert count_coverage(found).pixels_filled == 1 / 128


def test_points_above_and_below_are_drawn_in_the_outer_rows_and_counted() -> None:
    found = projected(torch.tensor([[5.0, 0, 3], [5.0, 0, -3], [5.0, 0, 0], [0, 0, 5.0]]), RangeView(4, 8))
    assert (found.pixel // 8).tolist() == [0, 3, 0, 0]
    assert found.is_clamped.tolist() == [True, True, False, True]
    assert count_coverage(found).points_clamped == 3 / 4


# --- the published code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(18))
def test_images_are_those_of_the_published_code(shared: Path, case: int) -> None:
    golden = load_golden(shared, "laserscan_projection", area="lidar")
    arrays = {key.split("/")[1]: value for key, value in golden.arrays.items() if key.startswith(f"case{case:02d}/")}
    height, width, up, down = arrays["sensor"]
    points, row_of, column_of = torch.from_numpy(arrays["points"]), *arrays["filled_rowcol"].T
    found = projected(points, RangeView(int(height), int(width), fov_deg=(up, down)))
    assert np.array_equal(found.pixel, arrays["proj_y"].astype(int) * int(width) + arrays["proj_x"])
    assert np.array_equal(found.ranges, arrays["unproj_range"])
    shown = found.point_index[0]
    assert {tuple(place) for place in (shown >= 0).nonzero().tolist()} == set(zip(row_of, column_of, strict=True))
    differs = shown[row_of, column_of].numpy() != arrays["proj_idx"]
    assert differs.sum() <= golden.info["cases"][case]["tied_pixels"]
    remission = gather_to_image(found.point_index, torch.from_numpy(arrays["remission"]), empty=-1)[
        0, row_of, column_of
    ].numpy()
    assert np.array_equal(remission[~differs], arrays["proj_remission"][~differs])
    xyz = gather_to_image(found.point_index, points, empty=-1)[0, row_of, column_of].numpy()
    assert np.array_equal(xyz[~differs], arrays["proj_xyz"][~differs])
    # their mask is wrong at the pixel of point 0 alone
    assert np.array_equal(arrays["proj_mask"], (arrays["proj_idx"] > 0).astype(int))


@pytest.mark.parametrize("frame", range(6))
def test_real_frames_are_those_of_the_published_code(shared: Path, frame: int) -> None:
    golden = load_golden(shared, "laserscan_projection_real", area="lidar")
    info = golden.info["frames"][frame]
    points = torch.from_numpy(np.fromfile(shared / "data" / info["frame"], dtype=np.float32).reshape(-1, 4)[:, :3])
    found = projected(points, RangeView(info["H"], info["W"], fov_deg=(info["fov_up"], info["fov_down"])))
    differs = found.point_index[0].numpy() != golden.arrays[f"{info['key']}proj_idx"]
    assert differs.sum() <= info["tied_pixels"] + BORDER_POINTS
    assert abs(count_coverage(found).num_drawn - info["filled"]) <= BORDER_POINTS
    if f"{info['key']}proj_x_every16" in golden.arrays:
        pixel = (
            golden.arrays[f"{info['key']}proj_y_every16"] * info["W"] + golden.arrays[f"{info['key']}proj_x_every16"]
        )
        assert (found.pixel[::16].numpy() != pixel).sum() <= BORDER_POINTS
    if "label_pixels" in info:
        file = shared / "data" / info["frame"].replace("velodyne", "labels").replace(".bin", ".label")
        label = torch.from_numpy((np.fromfile(file, dtype=np.uint32) & 0xFFFF).astype(np.int64))
        ids, counts = gather_to_image(found.point_index, label, empty=0).unique(return_counts=True)
        assert dict(zip(map(str, ids.tolist()), counts.tolist(), strict=True)) == info["label_pixels"]


def test_the_whole_real_scan_has_one_row_for_each_laser(shared: Path) -> None:
    frame = shared / "data" / "kitti_object_mini" / "velodyne" / "000000.bin"
    points = torch.from_numpy(np.fromfile(frame, dtype=np.float32).reshape(-1, 4)[:, :3])
    rows = rows_by_file_order(points)
    assert rows.max() == 63
    assert torch.equal(rows_by_file_order(points * torch.tensor([1.0, -1.0, 1.0])), rows), "mirrored"
    by_file, by_pitch = (
        count_coverage(projected(points, RangeView(64, 2048, rows=rows))) for rows in ("scan", "pitch")
    )
    assert by_file.points_drawn > 0.92 > 0.79 > by_pitch.points_drawn > 0.78, "the spec: 78.5 to 81.4 % by pitch"


# --- against plain forms ----------------------------------------------------------------------------------------------


def test_pixels_are_those_of_a_loop_in_float64() -> None:
    points = random_points(2000).double()
    view = RangeView(32, 256, fov_deg=(10.67, -30.67))
    found = projected(points, view)
    nearest: dict[int, tuple[float, int]] = {}
    for number, (x, y, z) in enumerate(points.tolist()):
        distance = math.hypot(x, y, z)
        u = 0.5 * (1 - math.atan2(y, x) / math.pi) * 256
        v = (1 - (math.degrees(math.asin(z / distance)) + 30.67) / (10.67 + 30.67)) * 32
        pixel = min(max(math.floor(v), 0), 31) * 256 + min(max(math.floor(u), 0), 255)
        assert found.pixel[number] == pixel
        nearest[pixel] = min(nearest.get(pixel, (math.inf, -1)), (distance, number))
    shown = found.point_index.flatten()
    assert {int(pixel): int(shown[pixel]) for pixel in (shown >= 0).nonzero()} == {
        pixel: number for pixel, (_, number) in nearest.items()
    }


@pytest.mark.parametrize("rows", ["pitch", "table", "scan", "ring"])
def test_scans_of_any_lengths_are_projected_as_if_alone(rows: str) -> None:
    lengths = [700, 0, 1, 300, 0]
    points, ring = random_points(sum(lengths)), torch.arange(sum(lengths)) % 8
    view = RangeView(8, 64, rows=rows, beams_deg=tuple(range(8, -8, -2)))  # type: ignore[arg-type]
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    together = project_scans(points, view=view, offsets=offsets, ring=ring)
    assert together.point_index.shape == (5, 8, 64)
    for scan, (first, last) in enumerate(pairwise(offsets.tolist())):
        alone = projected(points[first:last], view, ring[first:last])
        assert torch.equal(together.pixel[first:last], alone.pixel)
        assert torch.equal(
            together.point_index[scan], torch.where(alone.point_index[0] >= 0, alone.point_index[0] + first, -1)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_shows_the_same_points() -> None:
    points, offsets = random_points(50_000), torch.tensor([0, 20_000, 50_000])
    here = project_scans(points, view=RangeView(64, 512), offsets=offsets)
    there = project_scans(points.to("cuda"), view=RangeView(64, 512), offsets=offsets.to("cuda"))
    assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))


def test_scans_without_returns_make_empty_images() -> None:
    for points in (torch.zeros(0, 3), torch.zeros(7, 3)):
        found = projected(points, RangeView(4, 8))
        assert (found.point_index == -1).all()
        assert count_coverage(found).points_drawn == count_coverage(found).points_clamped == 0
    assert (
        project_scans(
            torch.zeros(0, 3), view=RangeView(4, 8, rows="scan"), offsets=torch.tensor([0])
        ).point_index.shape[0]
        == 0
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def test_beams_of_a_known_sensor_are_found_by_ring_table_and_file() -> None:
    scan = cast_scan(noise_m=0.0)
    for rows in ("ring", "table", "scan"):
        view = RangeView(64, 2048, rows=rows, beams_deg=BEAMS_DEG)  # type: ignore[arg-type]
        found = projected(scan.points, view, scan.ring)
        assert torch.equal(found.pixel // 2048, scan.ring), rows
        assert count_coverage(found).points_drawn == 1, "the spec, section 8: rows by ring keep every point"
        assert not found.is_clamped.any()
    by_pitch = projected(scan.points, RangeView(64, 2048))
    assert len((by_pitch.pixel // 2048).unique()) == 56, "the spec: 56 of 64 rows are used"
    assert count_coverage(by_pitch).points_drawn == pytest.approx(0.878, abs=0.005)


def test_a_table_takes_the_nearest_beam() -> None:
    aims = torch.deg2rad(torch.tensor([12.6, 12.0, 7.6, 7.4, 1.0, -1.0, -2.4, -2.6]))
    points = torch.stack((aims.cos(), torch.zeros(8), aims.sin()), dim=1)
    found = projected(points, RangeView(3, 4, rows="table", beams_deg=(10, 5, 0)))
    assert (found.pixel // 4).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert found.is_clamped.tolist() == [True, False, False, False, False, False, False, True]


def test_points_without_azimuth_end_no_beam() -> None:
    turn = torch.arange(0.05, 6.2, 0.1)
    beam = torch.stack((turn.cos(), turn.sin(), torch.zeros(62)), dim=1)
    scan = torch.cat((beam, beam))
    scan[[0, 40, 61, 62, 63]] = 0
    assert rows_by_file_order(scan).tolist() == [0] * 64 + [1] * 60
    assert rows_by_file_order(scan[:1]).tolist() == [0]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_wrong_views_are_refused() -> None:
    for arguments, text in (
        ({"fov_deg": (-25.0, 3.0)}, "upper border"),
        ({"azimuth_deg": (90.0, 90.0)}, "not equal"),
        ({"azimuth_deg": (300.0, -300.0)}, "up to 360"),
        ({"rows": "table", "beams_deg": (1.0, 0.0)}, "2 beams for a height of 4 rows"),
        ({"beams_deg": (0.0, 1.0)}, "highest first"),
    ):
        with pytest.raises(ValueError, match=text):
            RangeView(4, 8, **arguments)  # type: ignore[arg-type]


def test_wrong_points_and_rings_are_named() -> None:
    points, offsets, view = random_points(10), torch.tensor([0, 6, 10]), RangeView(4, 8, rows="ring")
    ring = torch.zeros(10, dtype=torch.int64)
    with pytest.raises(ValueError, match="needs the ring of every point"):
        project_scans(points, view=view, offsets=offsets)
    for wrong in (4, -1):
        ring[8] = wrong
        with pytest.raises(ValueError, match=rf"ring\[8\], point 2 of scan 1, is {wrong}; .* rows 0 to 3"):
            project_scans(points, view=view, offsets=offsets, ring=ring)
    points[5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"points\[5\], point 5 of scan 0, is .*remove"):
        project_scans(points, view=RangeView(4, 8), offsets=offsets)


# --- What a projection shows, and the figures of a perfect network: worked by hand ---


AHEAD = RangeView(height=1, width=4, fov_deg=(10.0, -10.0), azimuth_deg=(90.0, -90.0))
# Columns of 45 degrees: two points in the first, the nearer of class 1; one in the third; one above the image in it.
POINTS = torch.tensor([[0.1, 5.0, 0.0], [0.2, 9.0, 0.0], [3.0, -0.5, 0.0], [4.0, -0.5, 4.0]])
LABEL = torch.tensor([1, 2, 2, 2])


def summary(label: torch.Tensor | None, *, ignored: int | None = 0) -> dict[str, float]:
    made = ProjectionSummary(AHEAD, 3, ignored)
    for points in (POINTS, POINTS * 2):  # the same pixels twice
        made.add(points, label=label, offsets=torch.tensor([0, len(points)]))
    return made.figures()


def test_by_hand() -> None:
    """Point 1 gets class 1 of the nearer one, so class 1 has IoU 1/2 and class 2 has 2/3; the vote repairs nothing."""
    found = summary(LABEL)
    assert found["points_shown"] == 0.5
    assert found["points_clamped"] == 0.25
    assert found["pixels_filled"] == 0.5
    assert found["ceiling_nearest"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-4)


def test_ignored_points_count_nowhere_whatever_index_they_have() -> None:
    for ignored, index in ((0, 0), (255, 255), (None, 255)):
        label = torch.tensor([1, index, 2, 2])
        assert summary(label, ignored=ignored)["ceiling_nearest"] == 1.0


def test_without_labels_there_is_no_ceiling() -> None:
    assert set(summary(None)) == {"points_shown", "points_clamped", "pixels_filled"}
    assert set(summary(torch.zeros(4, dtype=torch.int64))) == set(summary(None))
