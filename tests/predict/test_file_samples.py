"""Clouds from files as samples of a set: what is left alone, what is changed, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.areas.scenes.sets.s3dis import S3dis
from sightline.contract.errors import DataError
from sightline.contract.types import CloudInputSpec, DataInfo, Field, SampleKey
from sightline.store.cloud_preparation import draw_points
from sightline.store.files.cloud_files import PointCloud
from sightline.store.files.column_names import COLOURS
from sightline.store.prepared.prepared_writer import normalize_to_unit_sphere
from sightline.workbench.predict.file_samples import FileSample, make_sample, read_sample
from tests.data.clouds.cloud_writers import write_off
from tests.data.scenes.scene_writers import no_progress, write_s3dis

TETRAHEDRON = np.array([[0, 0, 0], [4.0, 0, 0], [0, 3, 0], [0, 0, 2]])
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def info(form: CloudInputSpec | None, *features: str, low: float | None = -1.0, high: float | None = 1.0) -> DataInfo:
    fields = {"points": Field("points 3", "float32", "radius", "", low, high)}
    fields |= {name: Field("points 3", "float32", "", "", -1.0, 1.0) for name in features}
    return DataInfo({}, fields, features=features, clouds=form)


def sphere(num_points: int, seed: int = 0) -> np.ndarray:
    """A cloud about its mean with radius 1, float32 as prepared ones are."""
    return normalize_to_unit_sphere(np.random.default_rng(seed).standard_normal((num_points, 3)), where="sphere")


def sampled(points: np.ndarray, stated: DataInfo, **options: bool) -> FileSample:
    return make_sample(PointCloud(points.astype(np.float64)), stated, name="a", where="a.npy", **options)


@pytest.mark.parametrize("unit_sphere", ["applied", "promised", "none"])
def test_a_prepared_cloud_keeps_its_bits(unit_sphere: str) -> None:
    points = sphere(64)
    half = points.astype(np.float16).astype(np.float32)
    forms = CloudInputSpec(64, 64, unit_sphere), CloudInputSpec(32, 64, unit_sphere)
    for form, given in ((forms[0], points), (forms[1], points[:32]), (forms[0], half)):
        found = sampled(given, info(form))
        assert np.array_equal(found.fields["points"], given)
        assert (found.fields["points"].dtype, found.treatment) == (np.float32, "as it is")
    found = sampled(points, info(CloudInputSpec(32, 64, unit_sphere)))
    assert np.array_equal(found.fields["points"], points[:32]), "the first ones, as the set takes them"


@pytest.mark.parametrize("change", [lambda p: p * 0.8, lambda p: p + 0.1, lambda p: p * 1000 - 5, lambda p: p * 1e-6])
def test_another_scale_or_place_is_undone_where_preparing_does_it(change: object) -> None:
    moved = change(sphere(64).astype(np.float64))  # type: ignore[operator]
    found = sampled(moved, info(CloudInputSpec(64, 64, "applied")))
    assert np.array_equal(found.fields["points"], normalize_to_unit_sphere(moved, where=""))
    assert found.treatment == "moved to its mean, scaled to radius 1"


@pytest.mark.parametrize(("scale", "told"), [(1000.0, "1000"), (0.001, "0.001")])
def test_another_scale_is_refused_where_preparing_leaves_it(scale: float, told: str) -> None:
    form = CloudInputSpec(64, 64, "promised")
    moved = sphere(64).astype(np.float64) * scale
    with pytest.raises(DataError, match=rf"a\.npy: its points reach {told} from the origin, .* --unit-sphere"):
        sampled(moved, info(form))
    helped = sampled(moved, info(form), to_sphere=True)
    assert np.array_equal(helped.fields["points"], normalize_to_unit_sphere(moved, where=""))
    assert np.array_equal(sampled(moved, info(form), any_scale=True).fields["points"], moved.astype(np.float32))


def test_another_place_is_refused_where_preparing_leaves_it() -> None:
    """Of the set's whole clouds the mean is known to half precision, of a choice of points only as chance has it."""
    form = CloudInputSpec(64, 64, "promised")
    halved = 0.6 * sphere(64).astype(np.float64)
    assert sampled(halved, info(form)).num_points == 64
    for offset in (0.3, 0.01):
        with pytest.raises(
            DataError, match=rf"a\.npy: the mean of its points lies {offset} from the origin, .*--unit-sp"
        ):
            sampled(halved + np.array([0, offset, 0]), info(form))
        assert sampled(halved + np.array([0, offset, 0]), info(form), to_sphere=True).treatment.startswith(
            "moved to its mean"
        )
        assert sampled(halved + np.array([0, offset, 0]), info(form), any_scale=True).treatment == "as it is"
    many = 0.9 * sphere(4096).astype(np.float64)
    for seed in range(20):
        part = np.random.default_rng(seed).permutation(many)[:64]
        assert sampled(part, info(CloudInputSpec(64, 4096, "promised"))).num_points == 64
    with pytest.raises(DataError, match="the mean of its points"):
        sampled(0.6 * many + np.array([0.3, 0, 0]), info(CloudInputSpec(64, 2048, "promised")))


def test_what_leaves_the_promised_range_is_refused() -> None:
    metres = info(CloudInputSpec(), low=-50.0, high=50.0)
    with pytest.raises(DataError, match=r"a\.npy: points run from -5e\+04 to .* bring the file to that unit"):
        sampled(np.array([[-50_000.0, 0, 0], [1, 1, 1]]), metres)
    assert sampled(np.array([[-50.0, 0, 0], [1, 1, 1]]), metres).num_points == 2
    with pytest.raises(DataError, match=r"points do not fit into float32"):
        sampled(np.array([[1e60, 0, 0], [1, 1, 1]]), info(None, low=None, high=None))
    with pytest.raises(DataError, match=r"a coordinate is 1e\+300"):
        sampled(np.array([[1e300, 0, 0], [1, 1, 1]]), info(None))


def test_of_a_scan_with_more_points_than_the_set_stores_a_choice_is_made_by_name() -> None:
    """The first points of a scan are one end of the thing."""
    line = np.linspace(0, 5, 1000)[:, None] * np.ones(3)
    found = sampled(line, info(CloudInputSpec(100, 256, "applied")))
    assert found.treatment == "moved to its mean, scaled to radius 1, 100 of 1000 points, chosen by the file's name"
    taken = found.fields["points"][:, 0]
    assert (taken.min() < -0.5, taken.max() > 0.5, len(np.unique(taken))) == (True, True, 100)
    again = make_sample(PointCloud(line), info(CloudInputSpec(100, 256, "applied")), name="a", where="elsewhere/a.npy")
    assert np.array_equal(again.fields["points"], found.fields["points"])


def test_too_few_points_are_refused_by_number() -> None:
    with pytest.raises(DataError, match=r"a\.npy: holds 10 points, the run takes 32; give a denser cloud"):
        sampled(sphere(10), info(CloudInputSpec(32, 64, "applied")))


@pytest.mark.parametrize("unit_sphere", ["applied", "promised"])
def test_a_mesh_is_drawn_by_the_name_of_its_file(unit_sphere: str) -> None:
    cloud = PointCloud(TETRAHEDRON, faces=FACES)
    stated = info(CloudInputSpec(100, 2048, unit_sphere), "normals")
    found = make_sample(cloud, stated, name="bed_0001", where="x/bed_0001.off")
    drawn = draw_points(TETRAHEDRON, FACES, name="bed_0001", where="")
    assert np.array_equal(found.fields["points"], normalize_to_unit_sphere(drawn.points, where="")[:100])
    assert np.array_equal(found.fields["normals"], drawn.normals[:100].astype(np.float32))
    other = make_sample(cloud, stated, name="bed_0002", where="x/bed_0002.off")
    assert not np.array_equal(found.fields["points"], other.fields["points"])
    many = make_sample(cloud, info(CloudInputSpec(3000, 10_000, "applied")), name="a", where="a.off")
    assert many.num_points == 3000
    with pytest.raises(DataError, match="none of the 1 faces has an area"):
        make_sample(PointCloud(TETRAHEDRON, faces=np.array([[0, 0, 1]])), stated, name="a", where="a.off")


def test_features_come_from_the_file_or_are_named_as_missing() -> None:
    stated = info(CloudInputSpec(), "normals", "heat")
    points = sphere(16).astype(np.float64)
    normals = np.tile([0.0, 0, 1], (16, 1))
    heat = np.linspace(0, 1, 16)
    found = make_sample(
        PointCloud(points, normals, channels={"heat": heat, "other": heat}), stated, name="a", where="a.ply"
    )
    assert {name: field.shape for name, field in found.fields.items()} == {
        "points": (16, 3),
        "normals": (16, 3),
        "heat": (16, 1),
    }
    with pytest.raises(DataError, match=r"a\.ply: has no normals, heat, which .* it has points, other; add"):
        make_sample(PointCloud(points, channels={"other": heat}), stated, name="a", where="a.ply")
    with pytest.raises(DataError, match=r"a\.ply: normals run from 0 to 7"):
        make_sample(PointCloud(points, 7 * normals, channels={"heat": heat}), stated, name="a", where="a.ply")


def test_every_row_knows_where_it_comes_from() -> None:
    """Rows of the file where points were chosen, places in its own coordinates however the cloud was moved."""
    points = sphere(100).astype(np.float64) * 30 - 7
    for form in (
        CloudInputSpec(40, 256, "applied"),
        CloudInputSpec(unit_sphere="applied"),
        CloudInputSpec(unit_sphere="none"),
    ):
        found = sampled(points, info(form, low=None, high=None))
        origin = found.origin
        assert origin is not None
        assert origin.rows is not None
        assert np.array_equal(origin.points, points)
        assert np.array_equal(origin.positions, points[origin.rows])
        assert len(origin.rows) == found.num_points
        moved = found.fields["points"] if form.unit_sphere == "none" else found.fields["points"] * 30
        apart = np.linalg.norm(moved - moved[0], axis=1) / np.linalg.norm(moved - moved[0], axis=1).max()
        expected = np.linalg.norm(origin.positions - origin.positions[0], axis=1)
        assert np.allclose(apart, expected / expected.max(), rtol=0, atol=1e-5)


def test_of_a_mesh_the_places_are_on_its_surface_and_no_row_is_a_corner() -> None:
    stated = info(CloudInputSpec(32, 64, "applied"))
    origin = make_sample(PointCloud(TETRAHEDRON * 10, faces=FACES[:1]), stated, name="a", where="a.off").origin
    assert origin is not None
    assert origin.rows is None
    assert np.array_equal(origin.points, TETRAHEDRON * 10)
    x, y, z = origin.positions.T
    assert (len(origin.positions), np.abs(z).max()) == (32, 0)
    assert min(x.min(), y.min(), (1 - x / 40 - y / 30).min()) >= -1e-12, "in the triangle of the floor"


def test_corners_of_a_mesh_are_its_points_where_none_are_drawn(tmp_path: Path) -> None:
    write_off(tmp_path / "a.off", TETRAHEDRON, FACES)
    stated = info(CloudInputSpec(), low=None, high=None)
    assert read_sample(tmp_path / "a.off", stated).num_points == 2048
    found = read_sample(tmp_path / "a.off", stated, draws_meshes=False)
    assert np.array_equal(found.fields["points"], TETRAHEDRON)
    assert found.origin is not None
    assert found.origin.rows is not None


def test_colours_are_shares_or_bytes() -> None:
    stated = info(CloudInputSpec(), "colours", low=None, high=None)
    shares = np.array([[0.0, 0.5, 1.0], [0.25, 1.0, 0.125]])
    for given, expected, told in (
        (shares, shares, "as it is"),
        (np.array([[0.0, 255, 51], [17, 1, 2]]), [[0, 1, 0.2], [1 / 15, 1 / 255, 2 / 255]], "colours divided by 255"),
    ):
        cloud = PointCloud(TETRAHEDRON[:2], channels=dict(zip(COLOURS, given.T, strict=True)))
        found = make_sample(cloud, stated, name="a", where="a.ply")
        assert np.array_equal(found.fields["colours"], np.float32(expected))
        assert found.treatment == told
    for wrong in ([[0.5, 1.5, 0], [0, 0, 0]], [[300.0, 0, 0], [0, 0, 0]]):
        cloud = PointCloud(TETRAHEDRON[:2], channels=dict(zip(COLOURS, np.array(wrong).T, strict=True)))
        with pytest.raises(DataError, match=r"a\.ply: colours run from"):
            make_sample(cloud, stated, name="a", where="a.ply")
    with pytest.raises(DataError, match="has no colours, which the run was trained with; it has points, red;"):
        make_sample(PointCloud(TETRAHEDRON, channels={"red": np.ones(4)}), stated, name="a", where="a.ply")


def test_the_normalised_position_of_points_is_their_share_of_the_extent() -> None:
    points = np.array([[2.0, -1, 5], [4, 1, 5], [3.5, 0, 5]])
    found = make_sample(
        PointCloud(points), info(CloudInputSpec(), "normalised_position", low=None, high=None), name="a", where="a.ply"
    )
    assert found.fields["normalised_position"].tolist() == [[0, 0, 0], [1, 1, 0], [0.75, 0.5, 0]]
    with pytest.raises(DataError, match="points do not fit into float32"):
        make_sample(
            PointCloud(points * 1e40),
            info(CloudInputSpec(), "normalised_position", low=None, high=None),
            name="a",
            where="a.ply",
        )


def test_a_raw_room_of_s3dis_is_the_sample_of_its_set(tmp_path: Path) -> None:
    """The text of a whole room, without names for its columns, against the room that was made of its annotations."""
    raw = write_s3dis(tmp_path / "raw")
    S3dis.prepare(source=raw, target=tmp_path / "set", name="s3dis", progress=no_progress)
    rooms = S3dis(split="test", root=str(tmp_path / "set"), test_area=5, normalised_position=True)
    for index in range(len(rooms)):
        room = rooms.sample_name(index).rpartition("/")[2].removeprefix("Area_5_")
        found = read_sample(raw / "Area_5" / room / f"{room}.txt", rooms.info)
        sample = rooms[SampleKey(index, 0, 0)]
        for name in ("points", "colours", "normalised_position"):
            assert found.fields[name].dtype == np.float32
            assert np.array_equal(sorted(found.fields[name].tolist()), sorted(sample[name].tolist()))
        assert found.treatment == "prepared as the set was"


def test_scenes_are_measured_from_their_lowest_corner() -> None:
    scene = {"scale": 0.01, "colour_max": 1.0}
    stated = info(CloudInputSpec(columns=("x", "y", "z", "r", "g", "b"), scene=scene), "colours", low=None, high=None)
    points = np.array([[100.0, -50, 7e6], [300, -250, 7e6 + 25]])
    channels = dict(zip(COLOURS, np.array([[0.0, 0.5, 1.0], [1.0, 0.2, 0.0]]).T, strict=True))
    found = make_sample(PointCloud(points, channels=channels), stated, name="a", where="a.ply")
    assert np.array_equal(found.fields["points"], np.float32([[0, 2, 0], [2, 0, 0.25]]))
    assert np.array_equal(found.fields["colours"], np.float32([[0, 128, 255], [255, 51, 0]]) / np.float32(255))
    assert found.origin is not None
    assert np.array_equal(found.origin.positions, points)
    with pytest.raises(DataError, match=r"a\.ply: has no colours, which the run was trained with"):
        make_sample(PointCloud(points), stated, name="a", where="a.ply")


def test_a_few_points_of_a_scene_may_lie_far_out_and_another_unit_may_not() -> None:
    """The set's rooms reach 10 m. Two of 300 points at 30 m are named; 4 of them, or millimetres, are refused."""
    scene = {"scale": 1.0, "colour_max": 255.0}
    stated = info(CloudInputSpec(columns=("x", "y", "z"), scene=scene), low=-20.0, high=20.0)
    room = np.random.default_rng(0).uniform(0, 10, size=(300, 3))
    few, many = room.copy(), room.copy()
    few[:2, 0] = many[:4, 0] = 30
    found = make_sample(PointCloud(few), stated, name="a", where="a.ply")
    assert found.treatment == "prepared as the set was, 2 of 300 points far beyond those of the run's set"
    assert np.array_equal(found.fields["points"], (few - few.min(axis=0)).astype(np.float32))
    faults = (
        (many, r"4 of \d+ points \(1\.3\d %\) lie beyond 20 .* up to 1 % may; take these points out"),
        (room * 1000, "bring the file to the unit and frame of the run's set"),
    )
    for points, told in faults:
        with pytest.raises(DataError, match=rf"a\.ply: .*{told}"):
            make_sample(PointCloud(points), stated, name="a", where="a.ply")
