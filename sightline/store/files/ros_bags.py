"""Scans in ROS bags (`.bag`, `.db3`, `.mcap`, folders of rosbag2), read with `rosbags`, unpacked to one file each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sightline.contract.errors import DataError, UserError, assert_installed, join_some, summarise_error
from sightline.store.files.atomic_write import whole_folder
from sightline.store.files.input_files import assert_regular

_MESSAGE = "sensor_msgs/msg/PointCloud2"
_DTYPES = dict(enumerate(("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"), start=1))
"""NumPy's names of the types in PointField."""
_MAX_LISTED = 8


def unpack_bag(source: Path, target: Path, *, topic: str | None = None) -> dict[str, Any]:
    """Write the points of every PointCloud2 message of a topic as NUMBER_STAMP.npy; return counts and notes.

    NUMBER counts the messages, STAMP is the time in their headers in nanoseconds. Columns have the names and types of
    the fields; points that are NaN are included, messages without points are not written. `topic` may be left out if
    only one has such messages. Raises UserError for another topic, and DataError for a damaged bag or message.
    Source: sensor_msgs/PointCloud2.
    """
    assert_installed("rosbags", needed_by=f"{source}: reading ROS bags")
    num_empty = num_points = num_missing = number = 0
    columns: dict[str, None] = {}
    with whole_folder(target) as folder:
        for number, (name, message) in enumerate(_iterate_messages(source, topic), start=1):
            table = _make_table(message, where=f"{source}: message {number - 1} of {name}")
            num_empty, num_points = num_empty + (not len(table)), num_points + len(table)
            if len(table):
                stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                np.save(folder / f"{number - 1:06d}_{stamp}.npy", table)
                columns |= dict.fromkeys(table.dtype.names or ())
                num_missing += int(np.isnan([table[axis] for axis in "xyz"]).all(axis=0).sum())
        if number == num_empty:
            raise DataError(f"{source}: {name} has {number} messages, none with points; name another topic")
    notes = {
        "messages without points are not written": num_empty,
        "points are NaN: read with no_return=nan": num_missing,
    }
    return {
        "target": str(target.resolve()),
        "topic": name,
        "scans": number - num_empty,
        "points": num_points,
        "columns": list(columns),
        "differences": [f"{count} {what}" for what, count in notes.items() if count],
    }


def _iterate_messages(source: Path, topic: str | None) -> Iterator[tuple[str, Any]]:
    """Yield the messages of the topic, with its name, in the order of the bag; definitions in the bag are not used.

    The library makes code of definitions and runs it: the types are those of the library itself.
    """
    from rosbags import rosbag1, rosbag2
    from rosbags.typesys import Stores, get_typestore

    if not source.is_dir():
        assert_regular(source)
    if any(path.stat().st_size for path in (*source.glob("*.db3-wal"), *source.parent.glob(f"{source.name}-wal"))):
        raise DataError(
            f"{source}: has a write-ahead log, which is not read; open the .db3 once with sqlite3 to merge it"
        )
    try:
        is_ros1 = source.suffix.lower() == ".bag"
        types = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)
        parse = types.deserialize_ros1 if is_ros1 else types.deserialize_cdr
        with rosbag1.Reader(source) if is_ros1 else rosbag2.Reader(source) as reader:
            name = _choose_topic(source, {(each.topic, each.msgtype) for each in reader.connections}, topic)
            chosen = [each for each in reader.connections if (each.topic, each.msgtype) == (name, _MESSAGE)]
            num_stated, num_read = sum(each.msgcount for each in chosen), 0
            for _, _, content in reader.messages(chosen):
                yield name, parse(content, _MESSAGE)
                num_read += 1
    except UserError:
        raise
    except Exception as error:  # the library raises its own, SQLite's and zstd's errors, and Python's for damaged bytes
        raise DataError(
            f"{source}: does not read as a ROS bag ({summarise_error(error)}); it is damaged, was not closed (try "
            "`rosbag reindex` or `ros2 bag reindex`), or is in another format"
        ) from error
    if num_read != num_stated or not num_read:
        raise DataError(
            f"{source}: states {num_stated} messages of {name}, has {num_read}; it is empty or cut short: copy it again"
        )


def _choose_topic(source: Path, topics: Collection[tuple[str, str]], topic: str | None) -> str:
    names = sorted(name for name, kind in topics if kind == _MESSAGE and topic in (None, name))
    if len(names) == 1:
        return names[0]
    listed = join_some(sorted(f"{name} ({kind.rpartition('/')[2]})" for name, kind in topics), most=_MAX_LISTED)
    fault = f"{len(names)} topics have PointCloud2; name one: topic={names[0]}" if names else "no topic has PointCloud2"
    wrong = f"topic={topic} has no PointCloud2" if topic else fault
    raise UserError(f"{source}: {wrong}; the bag has {listed or 'no topics'}")


def _make_table(message: Any, *, where: str) -> np.ndarray:
    """Return the points (N,) of a message with its fields, little-endian; a field of several numbers is several."""
    height, width, step = message.height, message.width, message.point_step
    row_step = message.row_step if height > 1 else width * step
    needed = (height - 1) * row_step + width * step if height * width else 0
    if not needed <= len(message.data) <= max(needed, height * message.row_step) or row_step < width * step:
        raise DataError(
            f"{where}: {len(message.data)} bytes, its {height} rows of {width} points need {needed} (point_step "
            f"{step}, row_step {message.row_step}); the bag is damaged: copy it again"
        )
    try:
        fields = [
            (f"{field.name}_{index}" if field.count > 1 else field.name, kind, field.offset + index * kind.itemsize)
            for field in message.fields
            if field.name.strip("_")  # padding has no name
            for kind in [np.dtype(("<", ">")[message.is_bigendian] + _DTYPES[field.datatype])]
            for index in range(min(max(1, field.count), step))
        ]
        names, kinds, offsets = (list(column) for column in zip(*fields, strict=True))
        dtype = np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": step})
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{where}: its fields do not fit points of {step} bytes ({error}); the bag is damaged"
        ) from error
    if missing := [axis for axis in "xyz" if axis not in names]:
        raise DataError(f"{where}: has no field {missing[0]}, it has {join_some(names, most=_MAX_LISTED)}")
    if not needed:
        return np.empty(0, dtype)
    rows = np.ndarray((height, width), dtype, np.ascontiguousarray(message.data), strides=(row_step, step))
    little = np.dtype([(name, kind.newbyteorder("<")) for name, kind in zip(names, kinds, strict=True)])
    return rows.reshape(-1).astype(little)
