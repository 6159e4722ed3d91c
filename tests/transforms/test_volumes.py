"""From a depth frame to crops, voxels and heat maps: input and target agree under every variation; bits are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.pose.refiner import CentreMSE, CropDepth
from sightline.areas.pose.sets.synthetic_hands import SyntheticHands
from sightline.areas.pose.task import decode_joints
from sightline.areas.pose.v2v import DrawHeatmaps, PlaceCube, Voxelize
from sightline.contract.draws import Draws
from sightline.contract.errors import ConfigError
from sightline.contract.types import SampleKey
from sightline.ops.views.depth_crops import CropPlacement, from_crop_coordinates
from sightline.ops.voxels.cubes import CubePlacement, to_camera, to_voxels
from sightline.ops.voxels.heat_maps import decode_heatmaps

VARIED = {"size": 44, "scale": (0.8, 1.2), "max_angle_rad": math.radians(40), "max_shift": 2.0}


def draws(*indices: int, epoch: int = 0) -> Draws:
    return Draws.for_samples([SampleKey(index, epoch, 0) for index in indices])


def sample(count: int = 4) -> dict[str, Tensor]:
    """A few joints that are points of the frame as well: pixels whose depth is theirs."""
    draw = np.random.default_rng(11)
    depth, camera = np.zeros((count, 60, 90), dtype=np.float32), np.array([200.0, -210.0, 44.0, 31.0])
    rows, columns = draw.integers(20, 40, (count, 5)), draw.integers(30, 60, (count, 5))
    z = draw.uniform(330, 370, (count, 5)).astype(np.float32)
    np.put_along_axis(depth.reshape(count, -1), rows * 90 + columns, z, axis=1)
    z = np.take_along_axis(depth.reshape(count, -1), rows * 90 + columns, axis=1)
    joints = np.stack([(columns - 44) * z / 200, (rows - 31) * z / -210, z], axis=-1)
    return {
        "depth": torch.from_numpy(depth),
        "camera": torch.from_numpy(np.tile(camera, (count, 1))),
        "joints": torch.from_numpy(joints),
        "visible": torch.ones(count, 5, dtype=torch.bool),
        "reference": torch.tensor([[0.0, 0.0, 350.0]]).expand(count, -1).clone(),
    }


def place(given: dict[str, Tensor], keys: Draws, **arguments: object) -> Tensor:
    cube = PlaceCube(cube_mm=200.0, **{**VARIED, **arguments})  # type: ignore[arg-type]
    return cube(keys, reference=given["reference"])["placement"]


def test_a_joint_on_the_surface_lies_in_an_occupied_voxel_whatever_the_variation() -> None:
    given = sample()
    placement = place(given, draws(0, 1, 2, 3))
    volume = Voxelize()(draws(0, 1, 2, 3), depth=given["depth"], camera=given["camera"], placement=placement)["volume"]
    voxels = to_voxels(given["joints"].double(), CubePlacement.from_rows(placement)).floor().long()
    assert (voxels >= 0).all()
    assert (voxels < 44).all()
    for number, own in enumerate(voxels):
        assert volume[number, 0][tuple(own.T)].all()
    assert volume.sum() <= 4 * 5  # and nothing else


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_targets_mean_the_true_joints_back_in_the_camera(axes: str) -> None:
    """Through scale, turn and shift and back: to the rounding of float32 heat maps, in cells of 9 mm."""
    given = sample()
    placement = place(given, draws(0, 1, 2, 3), axes=axes)
    heatmaps = DrawHeatmaps()(draws(0), joints=given["joints"], visible=given["visible"], placement=placement)[
        "heatmaps"
    ]
    found = decode_joints(heatmaps, CubePlacement.from_rows(placement), decoding="parabola")
    assert (found - given["joints"]).abs().max() < 1e-3


@pytest.mark.parametrize(("scale", "low", "high"), [((0.8, 1.2), 0.8, 1.2), ((1.0, 1.0), 1.0, 1.0)])
def test_variations_stay_within_what_is_said(scale: tuple[float, float], low: float, high: float) -> None:
    keys = draws(*range(2000))
    cube = PlaceCube(cube_mm=200.0, size=88, scale=scale, max_angle_rad=0.5, max_shift=4.0)
    placed = CubePlacement.from_rows(cube(keys, reference=torch.zeros(2000, 3))["placement"])
    assert placed.scale.min() >= low - 1e-7
    assert placed.scale.max() <= high + 1e-7
    assert 0.49 < placed.angle_rad.abs().max() <= 0.5
    assert placed.shift.min() >= 0
    assert placed.shift.max() <= 8  # 4 is neutral
    assert (placed.shift.mean(dim=0) - 4).abs().max() < 0.2  # the deviation of the mean is 0.05
    assert (placed.shift[:, 0] - placed.shift[:, 1]).abs().max() > 4


def test_without_variation_the_cube_is_neutral() -> None:
    placed = CubePlacement.from_rows(PlaceCube(cube_mm=250.0)(draws(0), reference=torch.ones(1, 3))["placement"])
    assert (placed.scale.item(), placed.angle_rad.item(), placed.cube_mm) == (1.0, 0.0, 250.0)
    assert placed.shift.tolist() == [[4.0, 4.0, 4.0]]
    assert (placed.size, placed.grid_size) == (88, 96)


def test_the_release_shifts_by_whole_voxels() -> None:
    rows = PlaceCube(cube_mm=200.0, max_shift=4.0, compat="release")(draws(*range(50)), reference=torch.zeros(50, 3))
    shift = CubePlacement.from_rows(rows["placement"]).shift
    assert torch.equal(shift, shift.round())
    assert set(shift.unique().tolist()) <= set(range(9))


def test_a_sample_has_the_same_bits_alone_and_in_company() -> None:
    given = sample()
    together = place(given, draws(7, 3, 9, 1))
    alone = place({"reference": given["reference"][2:3]}, draws(9))
    assert torch.equal(together[2], alone[0])
    one = {name: value[2:3] for name, value in given.items()}
    both = Voxelize()(draws(0), depth=given["depth"], camera=given["camera"], placement=together)["volume"]
    single = Voxelize()(draws(0), depth=one["depth"], camera=one["camera"], placement=alone)["volume"]
    assert torch.equal(both[2], single[0])


def test_what_comes_in_is_left_as_it_was() -> None:
    """The question of those notes: an edit of a sample that the next epoch did not see."""
    given = sample()
    before = {name: value.clone() for name, value in given.items()}
    placement = place(given, draws(0, 1, 2, 3))
    Voxelize()(draws(0), depth=given["depth"], camera=given["camera"], placement=placement)
    DrawHeatmaps()(draws(0), joints=given["joints"], visible=given["visible"], placement=placement)
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_scale_changes_input_and_target_and_neither_joint_nor_frame() -> None:
    given = sample(1)
    small, large = (place(given, draws(0), scale=(s, s), max_angle_rad=0.0, max_shift=0.0) for s in (0.8, 1.2))
    volumes, maps = [], []
    for placement in (small, large):
        volumes.append(
            Voxelize()(draws(0), depth=given["depth"], camera=given["camera"], placement=placement)["volume"]
        )
        target = DrawHeatmaps()(draws(0), joints=given["joints"], visible=given["visible"], placement=placement)
        maps.append(decode_heatmaps(target["heatmaps"], axes="xyz"))
    assert not torch.equal(*volumes)
    # Distances between joints in cells grow by the ratio of the two scales.
    apart = [each[0, 0] - each[0, 1] for each in maps]
    torch.testing.assert_close(apart[1], apart[0] * 1.5, rtol=1e-4, atol=1e-4)


def test_a_hidden_joint_has_an_empty_target() -> None:
    given = sample(1)
    visible = given["visible"].clone()
    visible[0, 3] = False
    heatmaps = DrawHeatmaps()(draws(0), joints=given["joints"], visible=visible, placement=place(given, draws(0)))
    assert [bool(each.any()) for each in heatmaps["heatmaps"][0]] == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"size": 42}, "size 42 is not a multiple of 4"), ({"scale": (1.2, 0.8)}, "the smaller factor comes first")],
)
def test_what_makes_no_cube_is_refused(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PlaceCube(cube_mm=200.0, **arguments)  # type: ignore[arg-type]


def test_the_release_reads_half_a_voxel_off() -> None:
    """Its targets decoded by its own rule lie 1.1 mm short of the joints on average, along each axis."""
    joints = torch.from_numpy(np.random.default_rng(0).uniform(-70, 70, (40, 5, 3)))
    placement = PlaceCube(cube_mm=200.0, compat="release")(draws(*range(40)), reference=torch.zeros(40, 3))["placement"]
    maps = DrawHeatmaps()(draws(0), joints=joints, visible=torch.ones(40, 5, dtype=torch.bool), placement=placement)
    found = decode_joints(maps["heatmaps"], CubePlacement.from_rows(placement), decoding="parabola")
    # The deviation of the mean of 200 errors of 1.3 mm each is 0.09.
    assert ((found - joints).mean((0, 1)) + 1.136).abs().max() < 0.4
    neutral = CubePlacement.identity(torch.zeros(40, 3), cube_mm=200.0, size=88)
    assert (to_camera(to_voxels(joints, neutral), neutral) - joints).abs().max() < 1e-9


# --- crops of a depth frame -------------------------------------------------------------------------------------------


VARIED_CROPS = {"moved_mm": 5.0, "scale": (0.9, 1.1), "max_angle_rad": math.pi}


def crop_draws(*indices: int) -> Draws:
    return Draws.for_samples([SampleKey(index, 0, 0) for index in indices])


@pytest.fixture(scope="module")
def hands() -> dict[str, Tensor]:
    frames = SyntheticHands(split="train", train_size=4, test_size=1)
    return frames.get_batch([SampleKey(index, 0, 0) for index in range(4)])


def crops(given: dict[str, Tensor], keys: Draws, **arguments: object) -> dict[str, Tensor]:
    transform = CropDepth(cube_mm=200.0, **arguments)  # type: ignore[arg-type]
    return transform(keys, depth=given["depth"], camera=given["camera"], reference=given["reference"])


def test_the_true_joint_has_no_loss_whatever_the_variation(hands: dict[str, Tensor]) -> None:
    """Target and decoding are two readings of one placement: the offset of the true joint leads back to it."""
    placement = crops(hands, crop_draws(0, 1, 2, 3), **VARIED_CROPS)["crop_placement"]
    loss = CentreMSE(centre_joint=5)
    zero = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    given = {"joints": hands["joints"].double(), "visible": hands["visible"], "crop_placement": placement}
    loss(offset=zero, **given).backward()
    offset = -zero.grad / 2  # of a squared distance
    assert loss(offset=offset, **given) < 1e-24
    found = from_crop_coordinates(offset[:, None], CropPlacement.from_rows(placement))[:, 0]
    torch.testing.assert_close(found, hands["joints"][:, 5].double(), rtol=0, atol=1e-9)


def test_variations_are_those_that_are_said(hands: dict[str, Tensor]) -> None:
    many = {name: value[:1].expand(2000, *value.shape[1:]) for name, value in hands.items() if name != "depth"}
    many["depth"] = torch.zeros(2000, 1, 1)
    placed = CropPlacement.from_rows(crops(many, crop_draws(*range(2000)), size=1, **VARIED_CROPS)["crop_placement"])
    moved = placed.reference_mm - many["reference"].double()
    assert (moved.std(dim=0) - 5).abs().max() < 0.4  # of 2000 draws the deviation's own is 0.08
    assert moved.mean(dim=0).abs().max() < 0.5
    assert 180 <= placed.side_mm.min() < 182
    assert 218 < placed.side_mm.max() <= 220.001
    assert 3.1 < placed.angle_rad.abs().max() <= math.pi + 1e-6


def test_without_variation_the_crop_lies_about_the_reference(hands: dict[str, Tensor]) -> None:
    placed = CropPlacement.from_rows(crops(hands, crop_draws(0, 1, 2, 3))["crop_placement"])
    assert torch.equal(placed.reference_mm, hands["reference"].double())
    assert torch.equal(placed.camera, hands["camera"])
    assert placed.side_mm.tolist() == [200.0] * 4
    assert placed.angle_rad.tolist() == [0.0] * 4
    assert crops(hands, crop_draws(0, 1, 2, 3), side_mm=160.0)["crop_placement"][:, 7].tolist() == [160.0] * 4


def test_a_sample_has_the_same_bits_alone_and_nothing_given_changes(hands: dict[str, Tensor]) -> None:
    before = {name: value.clone() for name, value in hands.items()}
    together = crops(hands, crop_draws(7, 3, 9, 1), **VARIED_CROPS)
    alone = crops({name: value[2:3] for name, value in hands.items()}, crop_draws(9), **VARIED_CROPS)
    assert all(torch.equal(together[name][2:3], alone[name]) for name in together)
    assert all(torch.equal(before[name], hands[name]) for name in before)
    assert together["crop"].shape == (4, 1, 128, 128)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crop_depth: scale \[1.1, 0.9\] is empty; the smaller factor comes first"):
        CropDepth(cube_mm=200.0, scale=(1.1, 0.9))
