"""ROS bags of both generations: fields, layouts of messages, choice of the topic, and damaged bags refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract.errors import DataError, MissingExtraError, UserError
from sightline.store.files.ros_bags import unpack_bag
from sightline.store.files.scan_reading import read_scan, ring_column, to_raw_scan
from tests.cases import run_each
from tests.command import run_here

VELODYNE = np.dtype(
    {
        "names": ["x", "y", "z", "intensity", "ring", "time"],
        "formats": ["<f4", "<f4", "<f4", "<f4", "<u2", "<f8"],
        "offsets": [0, 4, 8, 16, 20, 24],
        "itemsize": 32,
    }
)
KINDS = ("first.bag", "second", "single.db3", "single.mcap")
NUMBERS = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def make_points(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    points = np.zeros(count, VELODYNE)
    for name in VELODYNE.names or ():
        points[name] = generator.integers(0, 64, count)
    return points


def make_message(points: np.ndarray, store: Any, **changes: Any) -> Any:
    """A message of one row, `changes` in place of its values; `height` divides the points into rows."""
    types = store.types
    height = changes.pop("height", 1)
    fields = [
        types["sensor_msgs/msg/PointField"](name=name, offset=at, datatype=NUMBERS[kind.str[1:]], count=1)
        for name, (kind, at, *_) in (points.dtype.fields or {}).items()
    ]
    stamp = types["builtin_interfaces/msg/Time"](sec=5, nanosec=7)
    seq = {"seq": 0} if "seq" in types["std_msgs/msg/Header"].__dataclass_fields__ else {}
    values = {
        "header": types["std_msgs/msg/Header"](stamp=stamp, frame_id="lidar", **seq),
        "height": height,
        "width": len(points) // height,
        "fields": fields,
        "is_bigendian": False,
        "point_step": points.dtype.itemsize,
        "row_step": points.nbytes // height,
        "data": np.frombuffer(points.tobytes(), dtype=np.uint8),
        "is_dense": True,
        **changes,
    }
    return types["sensor_msgs/msg/PointCloud2"](**values)


def write_bag(path: Path, *clouds: tuple[str, np.ndarray, dict[str, Any]]) -> Path:
    """Write clouds (topic, points, changes of the message) with the library's own writers; return what to read."""
    pytest.importorskip("rosbags", reason="pip install 'sightline[rosbags]'")
    from rosbags import rosbag1, rosbag2
    from rosbags.typesys import Stores, get_typestore

    is_ros1 = path.suffix == ".bag"
    store = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)
    folder = path.with_suffix("") if path.suffix else path
    plugin = rosbag2.StoragePlugin.MCAP if path.suffix == ".mcap" else rosbag2.StoragePlugin.SQLITE3
    opened = rosbag1.Writer(path) if is_ros1 else rosbag2.Writer(folder, version=9, storage_plugin=plugin)
    encode = store.serialize_ros1 if is_ros1 else store.serialize_cdr
    with opened as writer:
        kinds = {topic: "sensor_msgs/msg/PointCloud2" for topic, _, _ in clouds} | {"/chatter": "std_msgs/msg/String"}
        topics = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in kinds.items()}
        writer.write(topics["/chatter"], 1, encode(store.types["std_msgs/msg/String"](data="a"), kinds["/chatter"]))
        for time, (topic, points, changes) in enumerate(clouds, start=2):
            writer.write(topics[topic], time, encode(make_message(points, store, **changes), kinds[topic]))
    return next(folder.glob(f"*{path.suffix}")) if path.suffix in (".db3", ".mcap") else path


@run_each("kind", KINDS)
def test_every_message_becomes_a_scan(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    folder = tmp_path_factory.mktemp("bags")
    clouds = [make_points(24, 0), make_points(12, 1)]
    bag = write_bag(folder / kind, *(("/points", points, {}) for points in clouds), ("/points", make_points(0), {}))
    report = unpack_bag(bag, folder / "out")
    assert (report["topic"], report["scans"], report["points"]) == ("/points", 2, 36)
    assert report["differences"] == ["1 messages without points are not written"]
    files = sorted((folder / "out").iterdir())
    assert [path.name for path in files] == ["000000_5000000007.npy", "000001_5000000007.npy"]
    for path, points in zip(files, clouds, strict=True):
        scan = read_scan(path, columns=None)
        assert np.array_equal(scan.points, np.stack([points[axis] for axis in "xyz"], axis=1))
        assert np.array_equal(scan.channels["time"], points["time"])
        assert np.array_equal(ring_column(scan), points["ring"])
        assert np.load(path).dtype["ring"] == np.dtype("<u2")


def pad_rows(points: np.ndarray, height: int) -> dict[str, Any]:
    """Changes for rows with 8 bytes behind each."""
    rows = np.frombuffer(points.tobytes(), np.uint8).reshape(height, -1)
    padded = np.pad(rows, ((0, 0), (0, 8)), constant_values=255)
    return {"height": height, "row_step": padded.shape[1], "data": padded.ravel()}


LAYOUTS: list[tuple[str, np.dtype, dict[str, Any]]] = [
    ("organised", VELODYNE, {"height": 4}),
    ("padded rows", VELODYNE, pad_rows(make_points(24), 4)),
    ("no row_step in a single row", VELODYNE, {"row_step": 0}),
    ("big endian", VELODYNE.newbyteorder(">"), {"is_bigendian": True}),
]


@run_each("title, dtype, changes", LAYOUTS)
def test_layouts_of_messages_give_the_same_points(
    tmp_path_factory: pytest.TempPathFactory, title: str, dtype: np.dtype, changes: dict[str, Any]
) -> None:
    folder, points = tmp_path_factory.mktemp("bags"), make_points(24)
    stored = points.astype(dtype)
    unpack_bag(write_bag(folder / "a.bag", ("/points", stored, dict(changes))), folder / "out")
    (path,) = (folder / "out").iterdir()
    table = np.load(path)
    for name in VELODYNE.names or ():
        assert np.array_equal(table[name], points[name]), title


def test_points_without_a_return_keep_their_place(tmp_path: Path) -> None:
    points = make_points(24)
    for axis in "xyz":
        points[axis][[3, 5]] = np.nan
    bag = write_bag(tmp_path / "a.bag", ("/points", points, {"is_dense": False}))
    assert unpack_bag(bag, tmp_path / "out")["differences"] == ["2 points are NaN: read with no_return=nan"]
    (path,) = (tmp_path / "out").iterdir()
    assert np.isnan(read_scan(path, columns=None, no_return="nan").points[[3, 5]]).all()


def test_reflectivity_is_the_remission_where_intensity_is_missing(tmp_path: Path) -> None:
    points = make_points(24)
    livox = points.astype(
        [("reflectivity" if n == "intensity" else n, points.dtype[n]) for n in points.dtype.names or ()]
    )
    unpack_bag(write_bag(tmp_path / "a.bag", ("/points", livox, {})), tmp_path / "out")
    (path,) = (tmp_path / "out").iterdir()
    scan = to_raw_scan(read_scan(path, columns=None), np.zeros(24), ring_order="top_first", num_beams=None, path=path)
    assert np.array_equal(scan.remission, points["intensity"])


def test_one_of_several_topics_is_named(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a.bag", ("/front", make_points(4), {}), ("/rear", make_points(6), {}))
    with pytest.raises(UserError, match=r"2 topics have PointCloud2; name one: topic=/front; the bag has .*/rear"):
        unpack_bag(bag, tmp_path / "out")
    for topic in ("/side", "/chatter"):
        listed = r"the bag has /chatter \(String\), /front"
        with pytest.raises(UserError, match=rf"topic={topic} has no PointCloud2; {listed}"):
            unpack_bag(bag, tmp_path / "out", topic=topic)
    assert list(tmp_path.iterdir()) == [bag], "nothing is left of what was refused"
    done = run_here("data", "convert", bag, "--to", tmp_path / "out", "topic=/rear")
    assert done.code == 0, done.err
    assert "points: 6" in done.out


FAULTY: list[tuple[dict[str, Any], str]] = [
    ({"width": 25}, "768 bytes, its 1 rows of 25 points need 800"),
    ({"height": 4, "row_step": 64}, "its 4 rows of 6 points need"),
    ({"point_step": 30}, "its fields do not fit points of 30 bytes"),
    ({"point_step": 20, "data": np.zeros(480, np.uint8)}, "its fields do not fit points of 20 bytes"),
    ({"fields": []}, "its fields do not fit"),
    ({"width": 0, "data": np.zeros(0, np.uint8)}, "has 1 messages, none with points"),
]


@run_each("changes, words", FAULTY)
def test_faulty_messages_are_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], words: str
) -> None:
    folder = tmp_path_factory.mktemp("bags")
    bag = write_bag(folder / "a.bag", ("/points", make_points(24), dict(changes)))
    with pytest.raises(DataError, match=words):
        unpack_bag(bag, folder / "out")
    assert list(folder.iterdir()) == [bag]


@run_each("kind", KINDS)
def test_damaged_bags_are_refused_or_whole(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """Cut or with a byte changed: refused, or all messages are there."""
    folder = tmp_path_factory.mktemp("bags")
    bag = write_bag(folder / kind, *(("/points", make_points(40, seed), {}) for seed in range(3)))
    file = next(bag.glob("*.db3")) if bag.is_dir() else bag
    content, generator = file.read_bytes(), np.random.default_rng(0)
    for round_number in range(24):
        place = int(generator.integers(len(content)))
        changed = bytes([content[place] ^ 0x55])
        is_cut = round_number % 2 == 0
        file.write_bytes(content[:place] if is_cut else content[:place] + changed + content[place + 1 :])
        try:
            report = unpack_bag(bag, folder / f"out{round_number}")
        except DataError:
            continue
        assert report["scans"] == 3, (round_number, place)


def test_other_files_are_refused(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "a", ("/points", make_points(4), {}))
    (tmp_path / "b.bag").write_bytes(b"no bag at all")
    (tmp_path / "c.txt").write_text("no bag at all")
    for name, words in (("b.bag", "does not read as a ROS bag"), ("c.txt", "Unrecognized"), ("d.bag", "no such file")):
        with pytest.raises(DataError, match=words):
            unpack_bag(tmp_path / name, tmp_path / "out")
    next(bag.glob("*.db3")).with_suffix(".db3-wal").write_bytes(b"rows")
    with pytest.raises(DataError, match="has a write-ahead log"):
        unpack_bag(bag, tmp_path / "out")


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a.bag: reading ROS bags needs .* pip install 'sightline\[rosbags\]'"):
        unpack_bag(tmp_path / "a.bag", tmp_path / "out")
