"""From a cloud to the points of a sample, and what all sets of clouds share: normals and fractions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sightline.areas.clouds.sets.synthetic_shapes import SyntheticShapes
from sightline.contract.errors import DataError
from sightline.contract.types import SampleKey
from sightline.ops.points.normals import estimate_normals
from sightline.store.cloud_preparation import EstimatedNormals, prepare_cloud
from sightline.store.files.cloud_files import PointCloud
from sightline.store.loading.stratified import stratified_subset
from sightline.store.scene_preparation import prepare_scene
from tests.cases import run_each
from tests.data.clouds.cloud_writers import solid

CLOUD = PointCloud(solid("rod", 3, 50), normals=2 * solid("ball", 1, 50), channels={"ring": np.arange(50.0)})
CUBE = np.array([[x, y, z] for x in (0.0, 2.0) for y in (0.0, 2.0) for z in (0.0, 2.0)])
FLOOR = PointCloud(CUBE, faces=np.array([[0, 2, 4], [2, 6, 4]]))


def rows_of(prepared: dict[str, np.ndarray]) -> list[int]:
    """Which points of CLOUD were taken, in order: the ring says so."""
    return prepared["channels"][:, 0].astype(int).tolist()


@run_each("choice", ["random", "farthest"])
@run_each("num_points", [1, 20, 50])
def test_no_point_comes_twice_where_there_are_enough(choice: str, num_points: int) -> None:
    taken = rows_of(
        prepare_cloud(CLOUD, num_points=num_points, choice=choice, channels=["ring"], normalisation="none")  # type: ignore[arg-type]
    )
    assert len(taken) == len(set(taken)) == num_points


@pytest.mark.parametrize("choice", ["random", "farthest"])
def test_of_too_few_points_all_are_taken_before_some_again(choice: str) -> None:
    prepared = prepare_cloud(CLOUD, num_points=70, choice=choice, with_normals=True, channels=["ring"])  # type: ignore[arg-type]
    taken = rows_of(prepared)
    assert sorted(taken[:50]) == list(range(50))
    assert len(taken) == 70
    centred = CLOUD.points[taken] - CLOUD.points[taken].mean(axis=0)
    np.testing.assert_allclose(prepared["points"], centred / np.linalg.norm(centred, axis=1).max(), atol=1e-7)
    assert CLOUD.normals is not None
    directions = CLOUD.normals[taken] / np.linalg.norm(CLOUD.normals[taken], axis=1, keepdims=True)
    np.testing.assert_allclose(prepared["normals"], directions, atol=1e-7)  # float32 rounds by 6e-8


def test_farthest_points_are_those_of_the_plain_rule() -> None:
    """Against the definition in NumPy, from the first point on."""
    taken = rows_of(prepare_cloud(CLOUD, num_points=12, choice="farthest", channels=["ring"]))
    nearest = np.full(50, np.inf)
    expected = [0]
    for _ in range(11):
        nearest = np.minimum(nearest, np.linalg.norm(CLOUD.points - CLOUD.points[expected[-1]], axis=1))
        expected.append(int(nearest.argmax()))
    assert taken == expected


def test_farthest_points_among_points_that_coincide() -> None:
    points = np.repeat(CUBE, 5, axis=0)
    cloud = PointCloud(points, channels={"ring": np.arange(40.0)})
    taken = rows_of(prepare_cloud(cloud, num_points=30, choice="farthest", channels=["ring"]))
    assert len(set(taken)) == 30
    assert {tuple(points[row]) for row in taken[:8]} == {tuple(corner) for corner in CUBE}


def test_equal_clouds_give_equal_bits_wherever_they_lie_in_memory() -> None:
    twin = PointCloud(np.asfortranarray(CLOUD.points), normals=CLOUD.normals)
    one = prepare_cloud(CLOUD, num_points=16, with_normals=True, where="one")
    other = prepare_cloud(twin, num_points=16, with_normals=True, where="other")
    for name, values in one.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, other[name])


def test_a_mesh_is_drawn_evenly_over_its_faces() -> None:
    """The floor of a cube, 2 x 2: mean 1, variance 1/3 along x and y, none along z; the bound is 5 deviations."""
    prepared = prepare_cloud(FLOOR, num_points=4000, normalisation="none", with_normals=True)
    points = prepared["points"].astype(np.float64)
    assert (points[:, 2] == 0).all()
    assert np.abs(points[:, :2].mean(axis=0) - 1).max() < 5 * np.sqrt(1 / 3 / 4000)
    assert np.abs(points[:, :2].var(axis=0) - 1 / 3).max() < 5 * np.sqrt((1 / 5 - 1 / 9) / 4000)
    np.testing.assert_array_equal(np.abs(prepared["normals"]), [[0, 0, 1]] * 4000)
    assert len(np.unique(points, axis=0)) == 4000
    vertices = prepare_cloud(FLOOR, num_points=8, normalisation="none", faces="ignore")["points"]
    assert sorted(map(tuple, vertices.tolist())) == sorted(map(tuple, CUBE.tolist()))


def test_the_unit_sphere_is_left_out_on_request() -> None:
    prepared = prepare_cloud(CLOUD, num_points=50, normalisation="none", channels=["ring"])
    np.testing.assert_array_equal(prepared["points"], CLOUD.points[rows_of(prepared)].astype(np.float32))


@run_each(
    "cloud, options, words",
    [
        (PointCloud(np.ones((5, 3))), {}, "all 4 points coincide"),
        (PointCloud(CLOUD.points), {"with_normals": True}, "has no normals; .*columns=.*estimated"),
        (CLOUD, {"channels": ["intensity"]}, r"no channel intensity \(it has ring\)"),
        (FLOOR, {"channels": ["ring"]}, "faces=ignore"),
        (PointCloud(CUBE, faces=np.array([[0, 0, 1]])), {}, "none of the 1 faces has an area"),
        (PointCloud(CUBE * 1e200), {}, r"a coordinate is 2e\+200"),
        (PointCloud(CUBE + 5e6), {"normalisation": "none"}, "float32 has steps of .*normalisation=unit_sphere"),
    ],
)
def test_what_cannot_be_prepared(cloud: PointCloud, options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=f"^a.ply: .*{words}"):
        prepare_cloud(cloud, num_points=4, where="a.ply", **options)  # type: ignore[arg-type]


def test_far_coordinates_are_fine_once_they_are_centred() -> None:
    """The same cloud, 5,000 km away: float64 keeps it, and the unit sphere brings it back. 1e-9 is 5e6 * 2^-52."""
    near = prepare_cloud(PointCloud(CUBE, faces=None), num_points=8, choice="farthest")["points"]
    far = prepare_cloud(PointCloud(CUBE + 5e6, faces=None), num_points=8, choice="farthest")["points"]
    np.testing.assert_allclose(far, near, atol=1e-7)


def test_a_stray_point_is_named_and_spread_out_clouds_are_not_refused() -> None:
    """At 1e30 all other points become one. A scan of a plain and a tower far away is a cloud like any other."""
    points = np.random.default_rng(0).normal(size=(500, 3))
    far = points.copy()
    far[7, 1] = -1e30
    told = r"a\.ply: point 7 lies 1e\+30 from the middle, 99 % of the 500 points within .*; take out the 1 points"
    with pytest.raises(DataError, match=told):
        prepare_cloud(PointCloud(far), num_points=64, where="a.ply")
    with pytest.raises(DataError, match=told):
        prepare_scene(PointCloud(far), scale=1.0, colour_max=255, with_colours=False, normals=None, where="a.ply")
    far[7, 1] = 900 * np.abs(points).max() / 2
    coincide = np.zeros((500, 3))
    coincide[0] = 5
    heavy = np.random.default_rng(1).standard_cauchy(size=(5000, 3)).clip(-1e4, 1e4)
    for cloud in (far, coincide, far[:50], heavy):
        assert np.isfinite(prepare_cloud(PointCloud(cloud), num_points=500, where="a.ply")["points"]).all()


# --- normals and fractions --------------------------------------------------------------------------------------------


def keys(*indices: int) -> list[SampleKey]:
    return [SampleKey(index, 0, 0) for index in indices]


@pytest.mark.parametrize(("normals", "width"), [("none", 3), ("file", 6), ("estimated", 6)])
def test_the_input_width_follows_the_normals(normals: str, width: int) -> None:
    shapes = SyntheticShapes(split="train", train_size=12, num_points=64, normals=normals)  # type: ignore[arg-type]
    assert shapes.info.facts["in_channels"] == width
    assert shapes.info.features == (("normals",) if width == 6 else ())


def test_estimated_normals_of_solids_are_near_the_exact_ones() -> None:
    """Up to the sign, which the estimate cannot know; edges are where it is off. The median is far from them."""
    exact = SyntheticShapes(split="train", train_size=12, num_points=512, normals="file").get_batch(keys(*range(12)))
    found = SyntheticShapes(split="train", train_size=12, num_points=512, normals="estimated")
    batch = found.get_batch(keys(*range(12)))
    assert torch.equal(batch["points"], exact["points"])
    cosine = (batch["normals"] * exact["normals"]).sum(dim=2).abs()
    # A plane through 16 of 512 points of a unit ball spans 0.35 rad: cos(0.35 / 2) = 0.98.
    assert cosine.median() > 0.97
    assert torch.equal(found[SampleKey(7, 3, 1)]["normals"], batch["normals"][7])
    other = pickle.loads(pickle.dumps(found))
    assert torch.equal(other.get_batch(keys(7))["normals"][0], batch["normals"][7])


def test_a_set_too_large_to_remember_gives_the_same_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    points = SyntheticShapes(split="test", test_size=6, num_points=64).get_batch(keys(4, 1, 4))["points"].numpy()
    index = np.array([4, 1, 4])
    small = EstimatedNormals(str).estimate(index, points)
    monkeypatch.setattr("sightline.store.cloud_preparation._MAX_CACHE_BYTES", 0)
    np.testing.assert_array_equal(EstimatedNormals(str).estimate(index, points), small)
    np.testing.assert_array_equal(small[1], estimate_normals(torch.from_numpy(points[1:2]))[0].numpy())


def test_a_cloud_without_normals_is_named() -> None:
    line = np.linspace(0, 1, 32, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    with pytest.raises(DataError, match=r"^lamp_3: its normals cannot be estimated .*set normals: none"):
        EstimatedNormals(lambda index: f"lamp_{index}").estimate(np.array([3]), line[None])


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999, 1.0])
def test_a_fraction_of_every_stratum(fraction: float) -> None:
    """Counts worked out apart from the code: round to the nearest, halves to even, at least one."""
    strata = np.repeat([5, 2, 9], [1, 15, 100])
    taken = stratified_subset(strata, fraction, seed=3)
    assert (np.diff(taken) > 0).all()
    for stratum, size in ((5, 1), (2, 15), (9, 100)):
        assert (strata[taken] == stratum).sum() == max(1, np.rint(fraction * size))
    assert len(np.unique([stratified_subset(strata, 0.5, seed=s).tobytes() for s in range(20)])) == 20
