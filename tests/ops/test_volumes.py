"""Crops, voxels and heat maps of depth images: hand-worked points, exact inverses, reference implementations."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops.views.depth_crops import CropPlacement, crop_depth, from_crop_coordinates, to_crop_coordinates
from sightline.ops.views.pinhole import project_points
from sightline.ops.voxels import cubes as volumes
from sightline.ops.voxels.cubes import CubePlacement, occupancy, occupancy_reference, to_camera, to_voxels
from sightline.ops.voxels.heat_maps import Decoding, decode_heatmaps, gaussian_heatmaps, heatmap_peaks, soft_argmax
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden

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


# --- cubes of voxels --------------------------------------------------------------------------------------------------


REFERENCE = torch.tensor([[0.0, 0.0, 350.0]], dtype=torch.float64)
ROUNDING = 1e-9
"""Millimetres or voxels: coordinates of some hundred in float64, through a dozen operations."""


def points(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def hand_cube(**changes: object) -> CubePlacement:
    neutral = CubePlacement.identity(REFERENCE, cube_mm=200.0, size=88)
    fields = {name: getattr(neutral, name) for name in CubePlacement.__dataclass_fields__}
    return CubePlacement(**{**fields, **changes})  # type: ignore[arg-type]


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
    monkeypatch.setattr(volumes, "can_use_numba", lambda *tensors, **named: False)
    assert torch.equal(compiled, occupancy(depth, camera, placement))


def test_a_point_before_the_first_voxel_sets_none() -> None:
    """Cutting off decimals would put a coordinate of -0.3 into voxel 0."""
    voxels = torch.tensor([[[-0.3, 5.0, 5.0], [5.0, -0.999, 5.0], [88.0, 5.0, 5.0], [5.0, 5.0, 5.0]]])
    volume = occupancy_reference(voxels, torch.ones(1, 4, dtype=torch.bool), hand_cube())
    assert volume.nonzero().tolist() == [[0, 0, 5, 5, 5]]


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
    maps = gaussian_heatmaps(cells, placement.size // 2, axes="xyz", middle=0.0, dtype=torch.float64)
    assert_golden_maps(golden, case, maps.transpose(-1, -3))
    decoded = decode_heatmaps(maps, decoding="argmax", axes="xyz") - 0.5
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


# --- heat maps --------------------------------------------------------------------------------------------------------


def inner_joints(count: int = 40) -> Tensor:
    """Coordinates at least four spreads from every border of a map of 44 cells."""
    return torch.from_numpy(np.random.default_rng(2).uniform(7, 37, (count, 3, 3)))


def test_the_product_is_the_dense_exponential() -> None:
    joints = torch.from_numpy(np.random.default_rng(1).uniform(-6, 18, (4, 5, 3)))
    grid = torch.stack(torch.meshgrid(*[torch.arange(12) + 0.5] * 3, indexing="ij"), dim=-1)
    exact = torch.exp(-((grid - joints[:, :, None, None, None]) ** 2).sum(dim=-1) / (2 * 1.7**2))
    torch.testing.assert_close(
        gaussian_heatmaps(joints, 12, axes="xyz", dtype=torch.float64), exact, rtol=1e-13, atol=1e-15
    )
    # float32 rounds two factors and their product: three half units of the last place.
    torch.testing.assert_close(gaussian_heatmaps(joints, 12, axes="xyz").double(), exact, rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize(("joint", "mean_square"), [((0, 22, 22), 1.606e-4), ((0, 0, 0), 4.014e-5)])
def test_a_joint_on_a_border_keeps_what_reaches_in(joint: tuple[float, ...], mean_square: float) -> None:
    """Half of it on a face, an eighth in a corner."""
    maps = gaussian_heatmaps(torch.tensor([[joint]], dtype=torch.float64), 44, axes="xyz", dtype=torch.float64)
    assert maps.square().mean().item() == pytest.approx(mean_square, rel=1e-3)


@pytest.mark.parametrize(
    ("decoding", "bound"),
    # The fit is exact for a Gaussian; the middle of a cell is off by half of it; a softmax of 50 times the map and the
    # cells above half of it are means over a few cells, off by less than a third of one.
    [("parabola", 1e-6), ("argmax", 0.5), ("soft", 0.3), ("centroid", 0.3)],
)
def test_a_joint_is_read_back(decoding: str, bound: float) -> None:
    joints = inner_joints()
    maps = gaussian_heatmaps(joints, 44, axes="xyz", dtype=torch.float64)
    assert (decode_heatmaps(maps, decoding=decoding, axes="xyz") - joints).abs().max() <= bound  # type: ignore[arg-type]


@pytest.mark.parametrize("decoding", ["parabola", "argmax", "soft", "centroid"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_trace_of_torchscript_decodes_alike(decoding: Decoding) -> None:
    """On maps other than those it was recorded with, of unequal sides."""
    first, other = (torch.rand(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    traced = torch.jit.trace(lambda maps: decode_heatmaps(maps, decoding=decoding, axes="xyz"), (first,))
    torch.testing.assert_close(traced(other), decode_heatmaps(other, decoding=decoding, axes="xyz"), rtol=0, atol=1e-12)
    largest = np.stack(np.unravel_index(other.flatten(2).argmax(-1).numpy(), (4, 5, 6)), axis=-1)
    np.testing.assert_array_equal(decode_heatmaps(other, decoding="argmax", axes="xyz").numpy(), largest + 0.5)


def test_parabola_of_float32_maps_is_as_good_as_their_rounding() -> None:
    joints = inner_joints()
    assert (decode_heatmaps(gaussian_heatmaps(joints, 44, axes="xyz"), axes="xyz") - joints).abs().max() < 1e-5


def test_parabola_stays_where_it_cannot_be_laid() -> None:
    """At a border, beside a cell that is not positive, and where nothing is higher than anything else."""
    maps = torch.zeros(1, 3, 5, 5, 5, dtype=torch.float64)
    maps[0, 0, 0, 2, 4] = 1.0
    maps[0, 1, 2, 2, 2], maps[0, 1, 1, 2, 2], maps[0, 1, 3, 2, 2] = 1.0, -0.5, 0.5
    expected = [[0.5, 2.5, 4.5], [2.5, 2.5, 2.5], [0.5, 0.5, 0.5]]
    assert decode_heatmaps(maps, axes="xyz").tolist() == [expected]


def test_no_answer_leaves_its_cell() -> None:
    """Noise has parabolas that point far away; half a cell is as far as one may go."""
    maps = torch.rand(8, 4, 6, 5, 7, dtype=torch.float64)
    assert (decode_heatmaps(maps, axes="xyz") - decode_heatmaps(maps, decoding="argmax", axes="xyz")).abs().max() <= 0.5


def test_equal_maxima_give_the_first() -> None:
    maps = torch.zeros(1, 1, 4, 4, 4)
    maps[0, 0, 1, 2, 3] = maps[0, 0, 1, 3, 0] = 2.0
    assert decode_heatmaps(maps, decoding="argmax", axes="xyz").tolist() == [[[1.5, 2.5, 3.5]]]
    assert heatmap_peaks(maps).tolist() == [[2.0]]


def test_a_soft_coordinate_has_the_gradient_of_finite_differences() -> None:
    logits = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(soft_argmax, axes="xyz"), (logits,))


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_targets_agree_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_heatmap", area="pose"), f"case{number}"
    placement, joints = of_golden(golden, case), golden.tensor(f"{case}.keypoints")[None]
    cells = to_voxels(joints, placement) / 2
    assert_golden_maps(golden, case, gaussian_heatmaps(cells, placement.size // 2, axes="xyz", dtype=torch.float64))


@pytest.mark.shared
@pytest.mark.parametrize("number", range(3))
def test_decoding_agrees_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_decode", area="pose"), f"case{number}"
    maps = golden.tensor(f"{case}.heat").requires_grad_()
    cells = decode_heatmaps(maps.detach(), decoding="argmax", axes="xyz")
    assert torch.equal(cells, golden.tensor(f"{case}.cells"))
    # Its `evaluate` takes 88 voxels and two to a cell, whatever the map's size.
    cube = CubePlacement.identity(
        golden.tensor(f"{case}.refpoint")[:, 0], cube_mm=float(golden.arrays[f"{case}.cubic"]), size=88
    )
    torch.testing.assert_close(to_camera(cells * 2, cube), golden.tensor(f"{case}.world"), rtol=0, atol=1e-9)
    soft = soft_argmax(maps, axes="xyz")
    torch.testing.assert_close(soft, golden.tensor(f"{case}.soft_coord"), rtol=0, atol=1e-9)
    (soft * golden.tensor(f"{case}.soft_w")).sum().backward()
    torch.testing.assert_close(maps.grad, golden.tensor(f"{case}.soft_grad"), rtol=0, atol=1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(4))
def test_coordinates_agree_with_the_port(shared: Path, number: int) -> None:
    golden, case = load_golden(shared, "fn_decode", area="pose"), f"warp{number}"
    size = int(golden.arrays[f"{case}.crop"])
    reference = golden.tensor(f"{case}.refpoint")[None]
    cube = CubePlacement.identity(reference, cube_mm=float(golden.arrays[f"{case}.cubic"]), size=size)
    found = to_camera(golden.tensor(f"{case}.coord")[None], cube)
    torch.testing.assert_close(found[0], golden.tensor(f"{case}.world"), rtol=0, atol=1e-9)
