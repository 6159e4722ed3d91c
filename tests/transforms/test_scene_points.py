"""Transforms of scenes: one point per voxel, crops, blocks; symmetries, purity, and the reference code's voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from sightline.data.loading.batch_reader import BatchReader, NamedTransform
from sightline.data.synthetic.synthetic_rooms import SyntheticRooms
from sightline.errors import DataError
from sightline.registry import transforms
from sightline.transforms.points import Flip, Jitter, Rotate, Scale
from sightline.transforms.scene_points import CropPoints, PlaceOnFloor, SampleBlock, VoxelSample, voxel_groups
from sightline.types import ComponentConfig, SampleKey
from tests.cases import run_each
from tests.golden_parity import load_golden
from tests.transforms.scenes import draws_of, make_scene

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
    for key in ("colours", "label", "place"):
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


def test_configs_build_them_by_name() -> None:
    facts = {"up_axis": "z"}
    for name, arguments in (
        ("voxel_sample", {"size_m": 0.1, "score_all": True}),
        ("crop_points", {"max_points": 100}),
        ("sample_block", {"num_points": 100}),
        ("place_on_floor", {"plan": "centre"}),
    ):
        changed = transforms.build(ComponentConfig(name, arguments), facts=facts)(
            draws_of(), points=make_scene()["points"]
        )
        assert changed["points"].shape[2] == 3


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
