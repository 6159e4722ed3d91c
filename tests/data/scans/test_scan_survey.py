"""Sensors, and a look at scans of any sensor before they are prepared: what it finds, and what it proposes."""

from __future__ import annotations

import shlex
import typing
from pathlib import Path

import numpy as np
import pytest

from sightline.areas.scans.sets.scan_folder import ScanFolder
from sightline.commands.data import InfoOptions
from sightline.config import read_config
from sightline.contract.errors import ConfigError
from sightline.contract.registry import DATA_FACTS
from sightline.store.files.sensors import SensorBlock, SensorName, make_sensor
from sightline.verbs import data
from tests.cases import run_each
from tests.data.scans.lidar_writers import street_scan, write_bin, write_own
from tests.runs.small import ROOT


def own(**keys: object) -> SensorBlock:
    return typing.cast(SensorBlock, keys)


@pytest.mark.parametrize("name", typing.get_args(SensorName))
def test_presets_are_whole(name: SensorName) -> None:
    sensor = make_sensor(None, preset=name, owner="the test")
    assert len(sensor.elevations_rad()) == sensor.num_beams
    assert (np.diff(sensor.elevations_rad()) < 0).all()
    assert sensor.facts().keys() <= DATA_FACTS


def test_the_hdl64_has_two_blocks_of_beams() -> None:
    """By hand from the data sheet's blocks: 32 beams from 2 to -8.33 degrees, 32 from -8.83 to -24.33."""
    sensor = make_sensor(None, preset="hdl64", owner="the test")
    beams = sensor.beams_deg
    assert (beams[0], beams[31], beams[32], beams[63]) == (2.0, -8.33, -8.83, -24.33)
    assert np.allclose(np.diff(beams[:32]), -10.33 / 31, atol=2e-6)
    assert np.allclose(np.diff(beams[32:]), -0.5)
    assert sensor.fov_deg == (3.0, -25.0)


def test_columns_run_from_the_left_edge_to_the_right_one() -> None:
    turn = make_sensor(None, preset="vlp16", owner="the test").azimuths_rad(4)
    assert np.rad2deg(turn).tolist() == pytest.approx([135, 45, -45, -135])
    part = make_sensor(own(preset="vlp16", azimuth_deg=(45.0, -45.0)), preset=None, owner="the test").azimuths_rad(512)
    assert np.rad2deg(part[[0, -1]]).tolist() == pytest.approx([45 - 90 / 1024, -45 + 90 / 1024])


def test_a_block_changes_what_it_names() -> None:
    sensor = make_sensor(own(num_beams=32), preset="hdl64", owner="the test")
    assert (sensor.num_beams, sensor.beams_deg, sensor.fov_deg) == (32, (), (3.0, -25.0))
    assert sensor.input_mean is None  # those of the preset are of its own beams
    same = make_sensor(own(num_beams=64, fov_deg=[3.0, -25.0], azimuth_deg=(45.0, -45.0)), preset="hdl64", owner="it")
    assert (len(same.beams_deg), same.input_mean) == (64, (12.12, 10.88, 0.23, -1.04, 0.21))
    wider = make_sensor(own(fov_deg=(10.0, -20.0)), preset="hdl64", owner="the test")
    assert (wider.num_beams, wider.beams_deg, wider.input_mean) == (64, (), None)
    for preset in (None, "hdl64"):
        table = make_sensor(own(beams_deg=[5.0, 0.0, -9.5]), preset=preset, owner="the test")  # type: ignore[arg-type]
        assert table.fov_deg == (5.0, -9.5)
    assert (table.num_beams, table.fov_deg, table.beams_deg) == (3, (5.0, -9.5), (5.0, 0.0, -9.5))
    assert make_sensor(own(preset="os1_64"), preset="hdl64", owner="the test").fov_deg == (22.5, -22.5)


@run_each(
    "block, told",
    [
        (own(), "my set needs fov_deg and num_beams of the sensor; give them, or a preset: hdl64, hdl32, vlp16"),
        (own(fov_deg=(-25.0, 3.0), num_beams=4), r"fov_deg is \[-25, 3\]; the highest elevation comes first"),
        (own(fov_deg=(3.0, -25.0), num_beams=4, azimuth_deg=(-45.0, 45.0)), "the left edge comes first"),
        (own(fov_deg=(3.0, -25.0), num_beams=4, azimuth_deg=(200.0, -200.0)), "at most 360 degrees"),
        (own(beams_deg=(3.0, 1.0), num_beams=4), "beams_deg has 2 elevations, num_beams is 4"),
        (own(beams_deg=(3.0, 1.0, 1.0)), r"beams_deg\[2\] is 1 after 1; give every beam once"),
        (own(preset="vlp16", input_mean=(0.0,) * 5), "give both input_mean and input_std"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(block: SensorBlock, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^sensor: .*{told}"):
        make_sensor(block, preset=None, owner="my set")


# --- A look at scans of any sensor before they are prepared: what it finds, and what it proposes ---


COLUMNS = ("x", "y", "z", "intensity", "ring")
PLAIN = COLUMNS[:4]


@pytest.fixture(scope="module")
def scans_ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a sensor of 16 beams from 12 to -18 degrees that sees 100 degrees ahead, remissions to 255."""
    folder = tmp_path_factory.mktemp("ahead")
    write_own(folder, 4, num_columns=400)
    return folder


def test_of_a_sensor_that_nobody_knows(scans_ahead: Path) -> None:
    """Within half a degree, as beams are counted by tenths."""
    found = ScanFolder.survey(scans_ahead, columns=COLUMNS)
    high, low = found["sensor"]["elevations_deg"]
    assert (high, low) == pytest.approx((12.0, -18.0), abs=0.5)
    assert found["sensor"]["azimuths_deg"] == [50.0, -50.0]
    assert found["sensor"]["rings"].startswith(
        "a column of whole numbers from 0 (the highest beam) to 15, read as num_"
    )
    assert float(found["sensor"]["columns_per_turn"].split(",")[0]) == pytest.approx(1440, rel=1e-3)
    block = f"fov_deg: [{high}, {low}], azimuth_deg: [50.0, -50.0], num_beams: 16, remission_max: 255"
    assert found["proposed"] == f"sensor: {{{block}}}"
    assert list(found["projected"]) == ["16 x 416", "16 x 208", "16 x 112"]
    shown = [each["points_shown"] for each in found["projected"].values()]
    assert shown == sorted(shown, reverse=True)
    size = "height: 16, width: 416, rows: ring"
    assert found["proposed_projection"] == f"{{name: project, {size}}} shows {shown[0]:.0%} of points"
    assert shown[0] >= 0.99
    assert all(each["ceiling_knn"] > 0.5 for each in found["projected"].values())
    assert shlex.split(found["for_config"]) == [
        f"data.sensor={{{block}}}",
        "transforms.evaluate.0.height=16",
        "transforms.evaluate.0.width=416",
        "transforms.evaluate.0.rows=ring",
        f"transforms.train=[{{name: flip, axes: [y]}}, {{name: project, {size}}}]",
        "model.circular=false",
    ]
    without = ScanFolder.survey(scans_ahead, columns=(*PLAIN, "_"))
    assert without["sensor"]["rings"] == "16"  # by the elevations, as the files list columns of a part of a turn
    assert "rows" not in without["proposed_projection"]


@pytest.mark.parametrize(("high", "scale"), [(1.0, 1), (200.0, 255), (4000.0, 65535), (70000.5, 70001)])
def test_the_proposed_scale_of_remissions_holds_them(tmp_path: Path, high: float, scale: int) -> None:
    """Of remissions of 16 bits 255 was proposed, which the data set then refused."""
    [scan] = write_own(tmp_path, 1)
    write_bin(tmp_path / "000.bin", scan._replace(remission=scan.remission / scan.remission.max() * np.float32(high)))
    assert f"remission_max: {scale}}}" in ScanFolder.survey(tmp_path, columns=PLAIN)["proposed"]


def test_without_a_step_the_narrowest_width_that_shows_the_points_is_proposed(tmp_path: Path) -> None:
    for number in range(2):
        generator = np.random.default_rng(number)
        azimuth = generator.uniform(-np.pi, np.pi, 200)
        points = np.stack([10 * np.cos(azimuth), 10 * np.sin(azimuth), generator.uniform(-2, 2, 200)], axis=1)
        np.concatenate([points, np.ones((200, 1))], axis=1).astype("<f4").tofile(tmp_path / f"{number}.bin")
    found = ScanFolder.survey(tmp_path, columns=PLAIN)
    assert found["sensor"]["columns_per_turn"].startswith("not found")
    assert list(found["projected"]) == ["64 x 2048", "64 x 1024", "64 x 512"]
    assert "width: 512} shows" in found["proposed_projection"]


def test_voxels_are_as_large_as_the_distance_of_two_beams(scans_ahead: Path, tmp_path: Path) -> None:
    """At the median range of the points, between 5 and 20 cm; coordinates in millimetres have no neighbours."""
    points = np.concatenate([np.fromfile(path, "<f4").reshape(-1, 5)[:, :3] for path in scans_ahead.glob("*.bin")])
    median = float(np.median(np.linalg.norm(points, axis=1)))
    found = ScanFolder.survey(scans_ahead, columns=COLUMNS)["voxels"]
    assert found["grid_m"] == pytest.approx(min(0.2, np.radians(30 / 15) * median), rel=0.1)
    assert shlex.split(found["for_config"])[1] == f"model.grid_m={found['grid_m']}"
    assert found["best_miou"] > 0.98
    assert "doubts" not in found
    values = np.fromfile(scans_ahead / "000.bin", "<f4").reshape(-1, 5)
    (values * np.array([1000, 1000, 1000, 1, 1], "<f4")).tofile(tmp_path / "a.bin")
    (doubt,) = ScanFolder.survey(tmp_path, columns=COLUMNS)["voxels"]["doubts"]
    assert doubt.startswith("a voxel of 0.2 m has 1.0 of the 27")


def test_scans_without_labels(scans_ahead: Path, tmp_path: Path) -> None:
    """As files allow: no class, and no ceiling."""
    (tmp_path / "000000.bin").write_bytes((scans_ahead / "000.bin").read_bytes())
    found = ScanFolder.survey(tmp_path, columns=COLUMNS)
    assert "ceiling_nearest" not in found["projected"]["16 x 416"]
    assert found["sensor"]["rings"].endswith("read as num_beams=16")


def test_real_scans_have_the_measured_shares(shared: Path, tmp_path: Path) -> None:
    """An HDL-64E that turns ten times a second and fires every 46.08 us, 2,170 times, rounded to 0.09 degrees.

    By the specification's measurements, 2,048 columns show 0.785 to 0.814 of the points.
    """
    for path in (shared / "data/kitti_object_mini/velodyne").glob("*.bin"):
        if path.stat().st_size > 16 * 100_000:  # others are cut to the camera's view
            (tmp_path / path.name).symlink_to(path)
    found = ScanFolder.survey(tmp_path, columns=PLAIN)
    assert found["sensor"]["rings"] == "64"
    assert float(found["sensor"]["columns_per_turn"].split(",")[0]) == pytest.approx(2170, rel=0.01)
    assert list(found["projected"]) == ["64 x 2160", "64 x 1088", "64 x 544"]
    shown = found["projected"]["64 x 2160"]["points_shown"]
    assert 0.785 - 0.01 <= shown <= 0.814 + 0.02
    assert 0.05 <= found["voxels"]["grid_m"] <= 0.08
    assert found["voxels"]["neighbours_of_27"] > 3, "the specification has 5.0 of such a scan at 5 cm"
    assert "best_miou" not in found["voxels"]


def test_the_verb_takes_options_for_files_alone(scans_ahead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = data.info(
        InfoOptions(dataset="scan_folder", options=("columns=[x, y, z, intensity, ring]",), source=scans_ahead)
    )
    assert done == 0
    said = capsys.readouterr().out
    assert "proposed: sensor: {fov_deg: [" in said
    (line,) = [line for line in said.splitlines() if line.startswith("    'data.sensor=")]  # not wrapped: to be copied
    words = shlex.split(line)
    config = read_config(ROOT / "configs" / "segment" / "own_scans.yaml", words)
    assert config.data.arguments["sensor"]["num_beams"] == 16
    assert [config.transforms.evaluate[0].arguments[side] for side in ("height", "width")] == [16, 416]
    with pytest.raises(ConfigError, match="colums"):
        data.info(InfoOptions(dataset="scan_folder", options=("colums=[x, y, z]",), source=scans_ahead))
    with pytest.raises(Exception, match="options need --from PATH"):
        data.info(InfoOptions(dataset="scan_folder", options=("columns=[x, y, z]",)))


def test_scans_of_one_point_or_none(tmp_path: Path) -> None:
    _, scan = street_scan(0)
    write_bin(tmp_path / "a.bin", scan._replace(**{n: getattr(scan, n)[:1] for n in ("points", "remission")}))
    (tmp_path / "b.bin").write_bytes(b"")
    found = ScanFolder.survey(tmp_path, columns=PLAIN)
    assert found["sensor"]["rings"] == "none found"


@pytest.mark.parametrize(("rings", "proposed", "doubt"), [(21, 32, "there are 21 rings"), (16, 16, ""), (64, 64, "")])
def test_a_number_of_beams_that_no_sensor_has_is_doubted(tmp_path: Path, rings: int, proposed: int, doubt: str) -> None:
    """Beams into the sky leave no return and no ring, whether rings are a column or groups of elevations."""
    azimuths, elevations = np.linspace(0, -2 * np.pi, 90, endpoint=False) - 1e-3, np.linspace(2, -20, rings)
    ring, azimuth = np.repeat(np.arange(rings), 90), np.tile(azimuths, rings)
    elevation = np.radians(elevations)[ring]
    x, y, z = (10 * each for each in (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation),
                                      np.sin(elevation)))  # fmt: skip
    for source, columns in (("groups of elevations", PLAIN), ("a column", COLUMNS)):
        folder = tmp_path / source
        folder.mkdir()
        further = [ring] if columns == COLUMNS else []
        np.stack([x, y, z, np.ones_like(x), *further], axis=1).astype("<f4").tofile(folder / "a.bin")
        found = ScanFolder.survey(folder, columns=columns)
        assert f"num_beams: {proposed}," in found["proposed"]
        doubts = " ".join(found.get("doubts", []))
        assert doubts.startswith(f"num_beams: {doubt} by {source}") if doubt else not doubts
        assert ("data sheet" in doubts) == bool(doubt)


def test_a_sensor_without_rings_is_a_guess_and_said_to_be_one(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(scale=10, size=(500, 4)).astype("<f4")
    points[:, 3] = 1
    points.tofile(tmp_path / "a.bin")
    assert ScanFolder.survey(tmp_path, columns=PLAIN)["doubts"][0].startswith("num_beams: 64 is a guess")
