"""Transforms of scenes: voxels, crops, blocks, colours, elastic distortion; references, symmetries, purity."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import convolve
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.areas.scenes.sets.synthetic_rooms import SyntheticRooms
from sightline.areas.scenes.transforms import CropPoints, PlaceOnFloor, SampleBlock, VoxelSample, voxel_groups
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.registry import transforms
from sightline.contract.types import ComponentConfig, SampleKey
from sightline.parts.transforms.colours import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    HueSaturation,
    hsv_from_rgb,
    rgb_from_hsv,
    stretch_contrast,
)
from sightline.parts.transforms.elastic import Elastic, bend, smooth
from sightline.parts.transforms.points import Flip, Jitter, Rotate, Scale
from sightline.store.loading.batch_reader import BatchReader
from sightline.store.loading.transform_pipeline import NamedTransform
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.transforms.scenes import Given, draws_of, make_scene

EPS = torch.finfo(torch.float32).eps

CHOOSING = {
    "voxel_random": VoxelSample(size_m=0.3),
    "voxel_nearest": VoxelSample(size_m=0.3, choice="nearest"),
    "voxel_scored": VoxelSample(size_m=0.3, choice="nearest", score_all=True),
    "crop": CropPoints(up_axis="z", max_points=500),
    "crop_floor": CropPoints(up_axis="z", max_points=500, distance="floor"),
    "block": SampleBlock(up_axis="z", num_points=256, fewest=64),
}
STACKABLE = ("crop", "crop_floor")


def apply(name: str, scene: dict[str, Tensor], *, first: int = 0, seed: int = 3) -> dict[str, Tensor]:
    return CHOOSING[name](draws_of(len(scene["points"]), first=first, seed=seed), **scene)


# --- all that choose --------------------------------------------------------------------------------------------------


@run_each("name", CHOOSING)
def test_what_belongs_to_a_point_goes_with_it(name: str) -> None:
    scene = make_scene()
    chosen = apply(name, scene)
    index = chosen["part"][0]
    for key in ("colours", "label", "normalised_position"):
        assert torch.equal(chosen[key][0], scene[key][0, index])
    moved = chosen["points"][0] - scene["points"][0, index]
    assert (moved - moved[:1]).abs().max() <= 4 * EPS * 3, "as a whole, up to the rounding of one subtraction"
    assert len(index.unique()) == len(index)
    if name != "block":
        assert torch.equal(index, index.sort().values)
        assert not moved.any()


@run_each("name", CHOOSING)
def test_the_same_key_repeats_and_inputs_stay(name: str) -> None:
    scene = make_scene()
    before = {key: field.clone() for key, field in scene.items()}
    first, second = apply(name, scene), apply(name, scene)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for field in first.values():
        field.zero_()
    assert all(torch.equal(scene[key], before[key]) for key in scene)
    other = apply(name, scene, seed=4)
    is_random = name not in ("voxel_nearest", "voxel_scored")
    assert torch.equal(other["part"], second["part"]) != is_random


@pytest.mark.parametrize("name", STACKABLE)
def test_a_stacked_cloud_gets_the_same_bits_alone(name: str) -> None:
    scene = make_scene(num_clouds=4)
    together = apply(name, scene)
    for row in range(4):
        alone = apply(name, {key: field[row : row + 1] for key, field in scene.items()}, first=row)
        assert all(torch.equal(alone[key][0], together[key][row]) for key in together)


@pytest.mark.parametrize("name", [name for name in CHOOSING if name not in STACKABLE])
def test_stacked_clouds_are_refused_where_sizes_would_differ(name: str) -> None:
    with pytest.raises(DataError, match="takes clouds one at a time and got 2 stacked"):
        apply(name, make_scene(num_clouds=2))


# --- voxels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(4))
def test_voxels_are_those_of_the_reference_code(shared: Path, case: int) -> None:
    golden = load_golden(shared, "fn_voxel_sample").arrays
    coord, size = golden[f"case{case}_ravel.coord"], float(golden[f"case{case}_ravel.voxel_size"])
    groups = voxel_groups(coord, size=size)
    expected = golden[f"case{case}_ids.voxel_of_point"]
    members = np.split(groups.order, groups.starts[1:])
    assert len(members) == golden[f"case{case}_ids.num_voxels"]
    assert all((np.diff(rows) > 0).all() for rows in members)
    # voxels are numbered by their first point there
    voxel = np.empty(len(coord), dtype=int)
    for number, rows in enumerate(sorted(members, key=lambda rows: rows[0])):
        voxel[rows] = number
    assert np.array_equal(voxel, expected)
    for way in ("fnv", "ravel"):
        assert sorted(map(len, members)) == sorted(golden[f"case{case}_{way}.count_in_key_order"])


def test_voxels_of_wide_clouds_are_found_in_the_other_way() -> None:
    """Where the number of a voxel and a row do not fit into 63 bits together, the answer is that of NumPy's unique."""
    points = np.random.default_rng(0).uniform(0, 1, (500, 3))
    points[:250] = points[250:]
    groups = voxel_groups(points, size=1e-6)
    expected = np.unique(np.floor((points - points.min(0)) / 1e-6), axis=0, return_counts=True)[1]
    assert np.array_equal(np.diff(groups.starts, append=500), expected)
    assert sorted(groups.order.tolist()) == list(range(500))


@run_each("bad", [np.nan, np.inf, -np.inf])
def test_coordinates_that_are_not_finite_are_in_no_voxel(bad: float) -> None:
    points = np.random.default_rng(0).uniform(0, 1, (50, 3)).astype(np.float32)
    points[7, 1] = bad
    with pytest.raises(DataError, match="coordinates that are not finite"):
        voxel_groups(points, size=0.1)


@pytest.mark.parametrize("choice", ["random", "nearest"])
def test_every_occupied_voxel_keeps_exactly_one_point(choice: str) -> None:
    points = make_scene(5000)["points"]
    kept = VoxelSample(size_m=0.25, choice=choice)(draws_of(), points=points)["points"][0].double().numpy()  # type: ignore[arg-type]
    low = points[0].amin(0).double().numpy()
    before = {tuple(cell) for cell in np.floor((points[0].double().numpy() - low) / 0.25).astype(int)}
    after = [tuple(cell) for cell in np.floor((kept - low) / 0.25).astype(int)]
    # a coordinate within rounding of a face may be counted on its other side in float64: about one in 10^5
    assert abs(len(after) - len(before)) <= 2
    assert len(set(after)) >= len(after) - 2
    assert len(set(after) ^ before) <= 4


def test_the_point_nearest_to_the_centre_is_kept() -> None:
    points = torch.tensor([[[0.0, 0, 0], [0.4, 0.5, 0.5], [0.5, 0.5, 0.6], [1.9, 0.5, 0.5], [1.45, 0.5, 0.5]]])
    kept = VoxelSample(size_m=1.0, choice="nearest")(draws_of(), points=points, part=torch.arange(5)[None])
    assert kept["part"].tolist() == [[1, 4]], "of 1 and 2, equally far, the first"


def test_every_member_of_a_voxel_is_drawn_alike() -> None:
    points = torch.rand(1, 4, 3) * 0.5
    counts = np.zeros(4)
    for index in range(4000):
        part = VoxelSample(size_m=1.0)(draws_of(first=index), points=points, part=torch.arange(4)[None])["part"]
        counts[int(part)] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_all_points_are_answered_for_by_the_nearest_that_stayed() -> None:
    scene = make_scene(4000)
    chosen = CHOOSING["voxel_scored"](draws_of(), **scene)
    points, kept = scene["points"][0].double().numpy(), chosen["points"][0].double().numpy()
    distance, _ = cKDTree(kept).query(points)
    row = chosen["nearest"][0].numpy()
    # another one may win that is equally far to rounding
    assert np.abs(np.linalg.norm(points - kept[row], axis=1) - distance).max() < 16 * EPS
    assert torch.equal(chosen["whole_label"], scene["label"])
    assert (row[chosen["part"][0].numpy()] == np.arange(len(kept))).all(), "those that stayed answer for themselves"
    assert "whole_label" not in VoxelSample(score_all=True)(draws_of(), points=scene["points"])


def test_scores_of_ragged_batches_come_with_their_offsets() -> None:
    rooms = SyntheticRooms(split="test", test_size=3, points_per_m2=5.0)
    keys = [SampleKey(i, 0, 0) for i in range(3)]
    thinned = BatchReader(rooms, [NamedTransform("voxel_sample", VoxelSample(size_m=0.5, score_all=True))])
    assert {"nearest", "whole_label", "whole_offsets"} <= thinned.keys
    batch, whole = thinned(keys), BatchReader(rooms)(keys)
    assert batch.keys() == thinned.keys
    assert torch.equal(batch["whole_offsets"], whole["offsets"])
    assert torch.equal(batch["whole_label"], whole["label"])
    assert (batch["offsets"].diff() < whole["offsets"].diff()).all()
    for start, end, size in zip(
        batch["whole_offsets"][:-1], batch["whole_offsets"][1:], batch["offsets"].diff(), strict=True
    ):
        assert batch["nearest"][start:end].unique().numel() == size


def test_voxels_that_are_too_small_are_refused() -> None:
    with pytest.raises(DataError, match="too small; raise size_m"):
        VoxelSample(size_m=1e-9)(draws_of(), points=torch.tensor([[[0.0, 0, 0], [10, 10, 10]]]))


# --- crops and blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axes"), [("crop", [0, 1, 2]), ("crop_floor", [0, 1])])
def test_a_crop_is_what_lies_around_one_of_its_points(name: str, axes: list[int]) -> None:
    scene = make_scene()
    kept = apply(name, scene)["part"][0].numpy()
    points = scene["points"][0, :, axes].double().numpy()
    is_crop = [
        set(np.argsort(np.linalg.norm(points - points[centre], axis=1))[:500]) == set(kept.tolist()) for centre in kept
    ]
    assert any(is_crop)


def test_small_clouds_are_not_cropped() -> None:
    assert CropPoints(up_axis="z", max_points=3000)(draws_of(), **make_scene(3000)) == {}


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_a_block_is_upright_and_centred(up_axis: str) -> None:
    scene, up = make_scene(20_000), "xyz".index(up_axis)
    sample = SampleBlock(up_axis=up_axis, size_m=1.0, num_points=512)(draws_of(), **scene)  # type: ignore[arg-type]
    floor = sample["points"][0, :, [axis for axis in range(3) if axis != up]]
    assert floor.abs().max() <= 0.5
    assert torch.equal(sample["points"][0, :, up], scene["points"][0, sample["part"][0], up])
    assert len(sample["points"][0]) == 512


def test_a_block_of_few_points_repeats_them_evenly() -> None:
    sample = SampleBlock(up_axis="z", size_m=100.0, num_points=50, fewest=1024)(draws_of(), **make_scene(20))
    counts = np.bincount(sample["part"][0], minlength=20)
    assert set(counts.tolist()) == {2, 3}


def test_blocks_with_few_points_are_drawn_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    crowd, lonely = torch.rand(500, 3, generator=generator) * 0.4, torch.arange(1500)[:, None] * 5.0 + 10
    points = torch.cat((crowd, lonely.expand(-1, 3)))[None]
    block = SampleBlock(up_axis="z", size_m=1.0, num_points=64, fewest=400)
    for index in range(20):
        part = block(draws_of(first=index), points=points, part=torch.arange(2000)[None])["part"]
        # one of four points is in the crowd: 64 draws miss it once in 10^8
        assert (part < 500).all()


def test_placed_clouds_begin_at_the_floor() -> None:
    scene = make_scene(num_clouds=3)["points"] - torch.tensor([7.0, -3.0, 1.0])
    placed = PlaceOnFloor(up_axis="z")(draws_of(3), points=scene)["points"]
    assert not placed.amin(dim=1).any()
    centred = PlaceOnFloor(up_axis="y", plan="centre", up="keep")(draws_of(3), points=scene)["points"]
    assert torch.equal(centred[..., 1], scene[..., 1])
    middle = (centred.amin(dim=1) + centred.amax(dim=1)) / 2
    assert middle[:, [0, 2]].abs().max() < 16 * EPS


# --- those for any cloud, on ragged samples ---------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [Rotate(up_axis="z"), Scale(), Flip(), Jitter()])
def test_moves_of_points_work_on_ragged_rooms(transform: object) -> None:
    rooms = SyntheticRooms(split="test", test_size=2, points_per_m2=5.0)
    keys = [SampleKey(i, 1, 0) for i in range(2)]
    plain = BatchReader(rooms)(keys)
    moved = BatchReader(rooms, [NamedTransform("move", transform)])(keys)  # type: ignore[arg-type]
    assert moved.keys() == plain.keys()
    assert torch.equal(moved["offsets"], plain["offsets"])
    assert torch.equal(moved["label"], plain["label"])
    assert not torch.equal(moved["points"], plain["points"])
    alone = BatchReader(rooms, [NamedTransform("move", transform)])(keys[1:])  # type: ignore[arg-type]
    assert torch.equal(alone["points"], moved["points"][moved["offsets"][1] :])


# --- transforms of colours --------------------------------------------------------------------------------------------


ALL = {
    "chromatic_auto_contrast": ChromaticAutoContrast(probability=1.0),
    "chromatic_translation": ChromaticTranslation(probability=1.0),
    "chromatic_jitter": ChromaticJitter(probability=1.0),
    "hue_saturation": HueSaturation(),
}


def golden_case(shared: Path, case: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Colours in and out (1, N, 3), 0 to 1, and the draws in order."""
    arrays = load_golden(shared, "fn_augment").arrays
    before, after = (torch.from_numpy(arrays[f"{case}.{key}"])[None, :, 3:] / 255 for key in ("input", "output"))
    draws = [torch.from_numpy(np.asarray(arrays[f"{case}.draw{i}"])) for i in range(3) if f"{case}.draw{i}" in arrays]
    return before, after, draws


def test_contrast_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (_, blend, *_) = golden_case(shared, "korea_contrast")
    given = Given(torch.zeros(1, 1, 1), blend.view(1, 1, 1))  # its gate was open
    assert (ChromaticAutoContrast()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_shift_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (gate, unit, *_) = golden_case(shared, "korea_colour_shift")
    # it draws u in 0..1 and shifts by (u - 1/2) * 2 * 0.05 of the range
    given = Given(gate.view(1, 1, 1), ((unit - 0.5) * 0.1)[None])
    assert (ChromaticTranslation()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_noise_is_that_of_the_reference_code(shared: Path) -> None:
    before, after, (gate, normal, *_) = golden_case(shared, "korea_colour_jitter")
    given = Given(gate.view(1, 1, 1), normal[None])
    assert (ChromaticJitter()(given, colours=before)["colours"] - after).abs().max() < 1e-12


def test_hue_and_saturation_are_those_of_the_reference_code(shared: Path) -> None:
    before, after, (hue, saturation, *_) = golden_case(shared, "korea_hue_sat")
    # it draws u in 0..1: a turn of (u - 1/2) * 2 * 0.5, a factor of 1 + (u - 1/2) * 2 * 0.2
    given = Given((hue - 0.5).view(1, 1), (1 + (saturation - 0.5) * 0.4).view(1, 1))
    ours = HueSaturation()(given, colours=before)["colours"]
    assert torch.equal((ours * 255).floor(), (after * 255).round()), "it rounds down to 8 bits"


def test_hsv_is_that_of_the_standard_library() -> None:
    colours = torch.cat(
        (make_scene(200)["colours"][0].double(), torch.cartesian_prod(*[torch.tensor([0, 0.5, 1])] * 3))
    )
    expected = torch.tensor([colorsys.rgb_to_hsv(*each) for each in colours.tolist()], dtype=torch.float64)
    assert (hsv_from_rgb(colours) - expected).abs().max() < 1e-12
    back = torch.tensor([colorsys.hsv_to_rgb(*each) for each in expected.tolist()], dtype=torch.float64)
    assert (rgb_from_hsv(expected) - back).abs().max() < 1e-12
    assert (rgb_from_hsv(hsv_from_rgb(colours)) - colours).abs().max() < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_a_cloud_gets_the_same_bits_alone_and_in_any_batch(name: str) -> None:
    scene = make_scene(300, 4)["colours"]
    before = scene.clone()
    together = ALL[name](draws_of(4), colours=scene)["colours"]
    assert torch.equal(scene, before)
    assert together.dtype == scene.dtype
    assert together.min() >= 0
    assert together.max() <= 1 + 2 * EPS
    assert not torch.equal(together, scene)
    for row in range(4):
        alone = ALL[name](draws_of(1, first=row), colours=scene[row : row + 1])["colours"]
        assert torch.equal(alone[0], together[row])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    if name != "chromatic_jitter":  # whose noise belongs to a place in the list
        assert torch.equal(ALL[name](draws_of(4), colours=scene[:, order])["colours"], together[:, order])
    together.zero_()
    assert torch.equal(scene, before)


@pytest.mark.parametrize("name", [name for name in ALL if name != "hue_saturation"])
def test_as_many_clouds_change_as_asked(name: str) -> None:
    colours = make_scene(5, 4000)["colours"]
    changed = transforms.build(ComponentConfig(name, {"probability": 0.3}), facts={})(draws_of(4000), colours=colours)
    share = (changed["colours"] != colours).flatten(1).any(dim=1).double().mean()
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    never = transforms.build(ComponentConfig(name, {"probability": 0.0}), facts={})(draws_of(4000), colours=colours)
    assert torch.equal(never["colours"], colours)


def test_shifts_and_noise_have_the_asked_size() -> None:
    grey = torch.full((2000, 50, 3), 0.5)
    shift = (ChromaticTranslation(max_shift=0.05, probability=1.0)(draws_of(2000), colours=grey)["colours"] - grey)[
        :, 0
    ]
    assert shift.abs().max() <= 0.05 + EPS
    assert abs(shift.double().std() - 0.05 / math.sqrt(3)) < 5 * 0.05 / math.sqrt(6000), "uniform: its width / sqrt 12"
    noise = (ChromaticJitter(std=0.01, probability=1.0)(draws_of(2000), colours=grey)["colours"] - grey).double()
    assert abs(noise.std() / 0.01 - 1) < 5 / math.sqrt(2 * noise.numel()) + 8 * EPS / 0.01


def test_contrast_of_a_channel_without_any_stays() -> None:
    flat = torch.full((1, 10, 3), 0.25)
    assert torch.equal(stretch_contrast(flat, torch.full((1, 1, 1), 0.7)), flat)
    full = stretch_contrast(make_scene(50)["colours"], torch.ones(1, 1, 1))
    assert torch.equal(full.amin(1), torch.zeros(1, 3))
    assert torch.equal(full.amax(1), torch.ones(1, 3))


# --- Elastic distortion: SciPy's smoothing and interpolation, softness, purity ---


def test_smoothing_is_scipys_convolution() -> None:
    grid = torch.randn(5, 4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = grid.numpy()
    for axis in (0, 1, 2) * 2:
        kernel = np.ones([3 if i == axis else 1 for i in range(4)]) / 3
        expected = convolve(expected, kernel, mode="constant", cval=0)
    assert np.abs(smooth(grid).numpy() - expected).max() < 1e-14


def test_between_the_nodes_it_is_scipys_linear_interpolation() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(5, 4, 7, 3, dtype=torch.float64, generator=generator)
    place = torch.rand(200, 3, dtype=torch.float64, generator=generator) * torch.tensor([4.0, 3.0, 6.0])
    place = torch.cat((place, torch.tensor([[0.0, 0, 0], [4, 3, 6]], dtype=torch.float64)))
    expected = RegularGridInterpolator([np.arange(n) for n in (5, 4, 7)], grid.numpy())(place.numpy())
    assert np.abs(bend(grid, place).numpy() - expected).max() < 1e-13


def test_elastic_clouds_get_the_same_bits_alone_and_in_any_batch() -> None:
    points = make_scene(400, 4)["points"] * torch.tensor([1.0, 2.0, 0.5, 3.0]).view(4, 1, 1)  # grids of four sizes
    before = points.clone()
    transform = Elastic(probability=1.0)
    together = transform(draws_of(4), points=points)["points"]
    assert torch.equal(points, before)
    for row in range(4):
        alone = transform(draws_of(1, first=row), points=points[row : row + 1])["points"]
        assert torch.equal(alone[0], together[row])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform(draws_of(4), points=points[:, order])["points"], together[:, order])


def test_neighbours_move_alike_and_the_share_is_kept() -> None:
    points = make_scene(2000)["points"]
    twin = points + 1e-3
    transform = Elastic(granularities=(0.8,), magnitudes=(0.4,), probability=1.0)
    both = transform(draws_of(), points=torch.cat((points, twin), dim=1))["points"]
    moved = both[:, :2000] - points
    assert moved.abs().max() > 0.02
    # between nodes 0.8 m apart values of a deviation below 1 change by at most a few per node, times the magnitude
    assert (both[:, 2000:] - twin - moved).abs().max() < 6 * 3 * 1e-3 / 0.8 * 0.4
    unmoved = Elastic(probability=0.0)(draws_of(), points=points)["points"]
    assert torch.equal(unmoved, points)
    share = (
        (
            Elastic(probability=0.4)(draws_of(1000), points=make_scene(5, 1000)["points"])["points"]
            != make_scene(5, 1000)["points"]
        )
        .flatten(1)
        .any(1)
        .double()
        .mean()
    )
    assert abs(share - 0.4) < 5 * np.sqrt(0.24 / 1000)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 granularities and 1 magnitudes"):
        Elastic(magnitudes=(0.1,))
    with pytest.raises(DataError, match="is too fine; give a larger granularity"):
        Elastic(granularities=(1e-3,), magnitudes=(0.1,))(draws_of(), points=make_scene()["points"])
