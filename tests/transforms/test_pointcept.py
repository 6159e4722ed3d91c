"""Augmentation, mixed scenes and views at test time as Pointcept has them: its numbers, symmetries, exactness."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.areas.scenes.sets.labelled_scenes import _scale_colours
from sightline.areas.scenes.transforms import CropPoints, PlaceOnFloor
from sightline.contract.errors import ConfigError, DataError
from sightline.contract.transform import Transform
from sightline.ops.voxels.cells import sparse_voxels
from sightline.parts.transforms.colours import ChromaticAutoContrast, ChromaticJitter, ChromaticTranslation
from sightline.parts.transforms.elastic import bend, smooth
from sightline.parts.transforms.mixed_scenes import MixScenes
from sightline.parts.transforms.point_selection import DropPoints, SamplePoints
from sightline.parts.transforms.points import ClipPoints, Flip, Jitter, Rotate, Scale
from sightline.parts.transforms.views import Views
from tests.cases import run_each
from tests.golden_parity import Golden, load_golden
from tests.transforms.scenes import Given, draws_of, make_scene

BOUND = 1e-5
"""Of its README, in the unit of the field: its code keeps float32."""


class Legacy:
    """The reference's generators at the start of a transform: NumPy's and Python's, each seeded."""

    def __init__(self, seed: int) -> None:
        self.numpy, self.gate = np.random.RandomState(seed), random.Random(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0, *, shape: Sequence[int] = (1,)) -> Tensor:
        return torch.from_numpy(self.numpy.uniform(low, high, tuple(shape)))

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.numpy.standard_normal(shape))


class Chosen(Given):
    """Draws of a choice of points: a permutation, or the number of one point."""

    def permutation(self, length: int) -> Tensor:
        return self._next((length,))

    def bits(self, *shape: int) -> np.ndarray:
        return self._next(shape).numpy().astype(np.uint64)


def rotate(axis: str, legacy: Legacy) -> tuple[Transform, Given]:
    largest = math.pi if axis == "z" else math.pi / 64
    transform = Rotate(up_axis="z", axis=axis, max_angle_rad=largest, about="origin" if axis == "z" else "middle")  # type: ignore[arg-type]
    return transform, Given(legacy.uniform(-1, 1) * largest)


def drop(legacy: Legacy) -> tuple[Transform, Given]:
    """It keeps the first 160 of a permutation, ours drops the first 40."""
    order = torch.from_numpy(legacy.numpy.permutation(200)).roll(40)
    return DropPoints(ratio=0.2, fill="none"), Chosen(order[None])


def crop(legacy: Legacy, **limits: Any) -> tuple[Transform, Given]:
    return CropPoints(up_axis="z", **limits), Chosen(torch.tensor([[legacy.numpy.randint(200)]]))


def contrast(legacy: Legacy) -> tuple[Transform, Given]:
    gate, blend = legacy.uniform(), legacy.uniform()
    return ChromaticAutoContrast(probability=1.0), Given(gate.view(1, 1, 1), blend.view(1, 1, 1))


def shift_colours(legacy: Legacy) -> tuple[Transform, Given]:
    gate, unit = legacy.uniform(), legacy.uniform(shape=(1, 1, 3))
    return ChromaticTranslation(probability=1.0), Given(gate.view(1, 1, 1), (unit - 0.5) * 2 * 0.05)


def disturb_colours(legacy: Legacy) -> tuple[Transform, Given]:
    gate = legacy.uniform()
    return ChromaticJitter(std=0.05, probability=1.0), Given(gate.view(1, 1, 1), legacy.normal(1, 200, 3))


CASES: dict[str, Callable[[Legacy], tuple[Transform, Given]]] = {
    "center_z": lambda _: (PlaceOnFloor(up_axis="z", plan="centre"), Given()),
    "center_noz": lambda _: (PlaceOnFloor(up_axis="z", plan="centre", up="keep"), Given()),
    "dropout": drop,
    "rot_z": lambda legacy: rotate("z", legacy),
    "rot_x": lambda legacy: rotate("x", legacy),
    "rot_y": lambda legacy: rotate("y", legacy),
    "scale": lambda legacy: (
        Scale(low=0.9, high=1.1, isotropic=True),
        Given(legacy.uniform(0.9, 1.1).view(1, 1, 1)),
    ),
    "flip1": lambda _: (Flip(probability=1.0), Given(torch.zeros(1, 1, 3))),
    "jitter": lambda legacy: (Jitter(std=0.005, clip=0.02), Given(legacy.normal(1, 200, 3))),
    "autocontrast": contrast,
    "chrom_trans": shift_colours,
    "chrom_jitter": disturb_colours,
    "sphere": lambda legacy: crop(legacy, max_points=80),
    "sphere_rate": lambda legacy: crop(legacy, max_points=200, max_share=0.6),
    "clip": lambda _: (ClipPoints(extent_m=(0.0, 0.5, 0.2, 2.0, 2.0, 1.5)), Given()),
}
FIELDS = {"coord": "points", "normal": "normals", "color": "colours", "segment": "label"}


def read_input(golden: Golden) -> dict[str, Tensor]:
    """Its cloud in float64, with colours from 0 to 1."""
    fields = {ours: golden.tensor(f"in.{theirs}")[None] for theirs, ours in FIELDS.items()}
    cloud = {name: field if name == "label" else field.double() for name, field in fields.items()}
    return {**cloud, "colours": torch.from_numpy(_scale_colours(cloud["colours"].numpy(), str))}


@run_each("case", CASES)
def test_each_transform_is_that_of_pointcept(shared: Path, case: str) -> None:
    golden = load_golden(shared, "fn_augment", area="voxels")
    transform, given = CASES[case](Legacy(int(golden.arrays["seed"].item())))
    cloud = read_input(golden)
    takes = transform.__call__.__kwdefaults__ or {}
    fields = {name: field for name, field in cloud.items() if name in {"points", *takes} or "chrom" in case}
    if case in ("autocontrast", "chrom_trans", "chrom_jitter"):
        fields = {"colours": cloud["colours"]}
    changed = {**fields, **transform(given, **fields)}
    expected = {key: golden.tensor(f"out.{case}.{key}") for key in FIELDS if f"out.{case}.{key}" in golden.arrays}
    assert expected
    assert not given.numbers
    order = slice(None)
    if "segment" in expected:  # it has points by distance or as drawn, ours in their own order
        rows = {tuple(point): row for row, point in enumerate(golden.arrays["in.coord"].tolist())}
        order = np.argsort([rows[tuple(point)] for point in expected["coord"].tolist()])  # type: ignore[assignment]
    for key, values in expected.items():
        ours = changed[FIELDS[key]][0] * (255 if key == "color" else 1)
        assert ours.shape == values.shape
        assert (ours - values.double()[order]).abs().max() <= BOUND * (255 if key == "color" else 1)


def test_elastic_distortion_is_that_of_pointcept(shared: Path) -> None:
    """Its grids begin one node before the cloud, and have two more along each axis."""
    golden = load_golden(shared, "fn_augment", area="voxels")
    legacy, points = Legacy(int(golden.arrays["seed"].item())), golden.tensor("in.coord").double()
    assert legacy.gate.random() < 0.95
    for granularity, magnitude in ((0.2, 0.4), (0.8, 1.6)):
        low = points.amin(dim=0)
        nodes = ((points.amax(dim=0) - low) / granularity).floor().long() + 3
        grid = smooth(legacy.normal(*nodes.tolist(), 3).float().double())
        points = points + bend(grid, (points - low) / granularity + 1) * magnitude
    assert (points - golden.tensor("out.elastic.coord")).abs().max() <= BOUND


def test_colours_are_shares_of_255_and_its_turn_is_a_view(shared: Path) -> None:
    golden = load_golden(shared, "fn_augment", area="voxels")
    cloud = read_input(golden)
    assert (cloud["colours"][0] - golden.tensor("out.normcolor.color")).abs().max() < BOUND
    view = Views(up_axis="z", views="turns")(draws_of(), 1, points=cloud["points"], normals=cloud["normals"])
    assert (view["points"][0] - golden.tensor("out.rot_target.coord")).abs().max() < BOUND
    assert (view["normals"][0] - golden.tensor("out.rot_target.normal")).abs().max() < BOUND


# --- mixed scenes -----------------------------------------------------------------------------------------------------


def test_pairs_have_the_points_of_both_as_in_pointcept(shared: Path) -> None:
    """Its batches merge a cloud with the next one; an odd last one stays alone."""
    golden = load_golden(shared, "fn_train_protocol", area="voxels")
    for case in range(6):
        sizes = np.diff(golden.arrays[f"mix.{case}.in"], prepend=0).tolist()
        scenes = [make_scene(size, seed=number) for number, size in enumerate(sizes)]
        mixed = []
        for one, *others in (scenes[number : number + 2] for number in range(0, len(scenes), 2)):
            chosen = mix(one, others) if others else one
            mixed.append(chosen["points"].shape[1])
            for name in ("points", "colours", "label"):
                assert torch.equal(chosen[name], torch.cat([one[name], *(other[name] for other in others)], dim=1))
        assert np.cumsum(mixed).tolist() == golden.arrays[f"mix.{case}.out"].tolist()


def mix(scene: dict[str, Tensor], others: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return MixScenes(probability=1.0)(draws_of(), lambda count: others[:count], **without_part(scene))


def without_part(scene: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: field for name, field in scene.items() if name != "part"}


def test_a_cell_of_both_scenes_is_one_voxel_and_cells_are_told_apart_as_by_torchsparse(shared: Path) -> None:
    """Voxels are made of the mixed points: as many as there are different cells; its keys are equal where cells are."""
    golden = load_golden(shared, "fn_train_protocol", area="voxels")
    cells = golden.tensor("hash.coord").long()
    both = cells[torch.cat([torch.arange(200), torch.arange(0, 200, 3)])]
    keys = np.concatenate([golden.arrays["hash.key"], golden.arrays["hash.key"][::3]])
    for cloud in both[:, 3].unique():
        rows = both[:, 3] == cloud
        points = (both[rows, :3] + 0.5) * 0.02
        scene = {"points": points[None], "label": torch.zeros(1, len(points), dtype=torch.int64)}
        mixed = mix(scene, [scene])
        voxels = sparse_voxels(mixed["points"][0], torch.tensor([0, 2 * len(points)]), side=0.02)
        assert len(voxels.cells) == len(np.unique(keys[rows.numpy()]))


def test_scenes_are_mixed_with_their_probability_and_labels_of_points() -> None:
    scene = without_part(make_scene(5))
    mixes = [bool(MixScenes()(draws_of(first=n), lambda _: [scene], **scene)) for n in range(1000)]
    assert abs(np.mean(mixes) - 0.8) < 5 * math.sqrt(0.16 / 1000)
    assert MixScenes(probability=1.0)(draws_of(), None, **scene) == {}
    with pytest.raises(DataError, match=r"a label for each of 5 points, got \[1\]"):
        MixScenes(probability=1.0)(draws_of(), lambda _: [scene], points=scene["points"], label=torch.zeros(1))


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "num_different"), [("scannet", 13, 12), ("scales", 10, 10), ("turns", 4, 4), ("mirrors", 8, 8)]
)
def test_the_first_view_is_the_cloud_and_others_keep_its_shape(name: str, count: int, num_different: int) -> None:
    points = make_scene(40)["points"].double()
    views = Views(up_axis="z", views=name)  # type: ignore[arg-type]
    assert views.num_passes == count
    seen = [views(draws_of(), number, points=points)["points"] for number in range(count)]
    assert torch.equal(seen[0], points)
    assert len({view.numpy().tobytes() for view in seen}) == num_different
    determinants = []
    for view in seen:
        moved = torch.linalg.lstsq(points[0], view[0]).solution
        size = moved.det().abs() ** (1 / 3)
        assert (moved.T @ moved / size**2 - torch.eye(3)).abs().max() < 1e-9
        determinants.append(round(float(moved.det().sign())))
    assert determinants.count(-1) == (4 if name == "mirrors" else 0)


def test_flips_of_pointcept_are_half_a_turn(shared: Path) -> None:
    golden = load_golden(shared, "fn_augment", area="voxels")
    points = read_input(golden)["points"]
    expected = golden.tensor("out.flip1.coord")
    for name, number in (("scannet", 2), ("scannet", 12), ("scales", 5), ("turns", 2)):
        view = Views(up_axis="z", views=name)(draws_of(), number, points=points)["points"][0]  # type: ignore[arg-type]
        assert (view - expected).abs().max() < BOUND


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Views(up_axis="z", views=({"turn_deg": 90.0},)), "begin the list with {}"),
        (lambda: Views(up_axis="z", views=()), "begin the list with {}"),
        (lambda: DropPoints(ratio=0.2, max_ratio=0.5), "ratio stands in place of max_ratio"),
        (lambda: ClipPoints(extent_m=(0, 0, 1, 1, 1, 0)), "has to begin with the lowest"),
    ],
)
def test_contradictory_arguments_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build()


# --- gates ------------------------------------------------------------------------------------------------------------


def test_gates_leave_a_share_of_the_clouds_as_they_are() -> None:
    points = make_scene(8, 1000)["points"]
    rotated = Rotate(up_axis="z", probability=0.5)(draws_of(1000), points=points)["points"]
    dropped = DropPoints(ratio=0.25, probability=0.2)(draws_of(1000), points=points)["points"]
    for changed, share in ((rotated, 0.5), (dropped, 0.2)):
        found = (changed != points).flatten(1).any(1).double().mean()
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 1000)
    num_lost = (dropped != points).any(dim=2).sum(dim=1)
    assert set(num_lost.tolist()) <= {0, 1, 2}, "two of eight, of which one may be the first point itself"


def test_a_sample_of_fewer_points_is_all_of_them() -> None:
    scene = make_scene(30)
    kept = SamplePoints(num_points=50, if_fewer="keep")(draws_of(), points=scene["points"], part=scene["part"])
    assert torch.equal(kept["part"].sort().values, scene["part"])
