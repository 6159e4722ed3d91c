"""Benchmark of reading S3DIS rooms from raw text, against `numpy.loadtxt`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sightline.bench.case import BenchmarkCase, Implementation, Run
from sightline.data.scenes.s3dis import S3dis
from sightline.data.scenes.s3dis_files import list_rooms, read_room

_FILES = ("wall_1", "floor_1", "ceiling_1", "table_1", "chair_1", "board_1")
_SHARES = (0.38, 0.28, 0.18, 0.1, 0.04, 0.02)


class RoomParts(NamedTuple):
    """Concatenated points of a room's files: coordinates minus `origin`, and colours, (N, 3) each."""

    points: np.ndarray
    colours: np.ndarray
    origin: np.ndarray | float = 0.0


def cases() -> list[BenchmarkCase]:
    """Make the cases: reading a room, and preparing an area of rooms of mean size, including hashed files."""
    return [
        BenchmarkCase(
            suite="data",
            label=f"s3dis_{what}_{{rooms}}x{{points}}",
            size={"rooms": rooms, "points": points},
            quick={"rooms": rooms, "points": 2_000},
            make=_make_texts,
            baseline=Implementation("loadtxt", _open_loadtxt, _compare_rooms),
            variants=(Implementation("sightline", form, _compare_rooms),),
        )
        for what, form, rooms, points in (
            ("reading", _open_reader, 1, 600_000),
            ("preparing", _open_preparation, 3, 1_000_000),
        )
    ]


def _make_texts(*, rooms: int, points: int) -> dict[str, Any]:
    """Make the points of a room, and its annotation files in the release's format; all rooms are equal."""
    generator = np.random.default_rng(0)
    tables, texts = [], []
    for share in _SHARES:
        count = max(2, int(share * points))
        coordinates = generator.uniform(-25, 25, 3) + generator.normal(size=(count, 3))
        table = np.column_stack((coordinates, generator.integers(20, 256, (count, 3))))
        rows = ("%.3f %.3f %.3f %d %d %d\n" % tuple(row) for row in table.tolist())  # noqa: UP031 - twice as fast here
        texts.append("".join(rows).encode())
        tables.append(torch.from_numpy(coordinates))
    return {"points": torch.cat(tables), "texts": texts, "rooms": rooms}


@contextmanager
def _write_rooms(inputs: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        for number in range(inputs["rooms"]):
            annotations = Path(folder) / "raw" / "Area_1" / f"office_{number + 1}" / "Annotations"
            annotations.mkdir(parents=True)
            for name, text in zip(_FILES, inputs["texts"], strict=True):
                (annotations / f"{name}.txt").write_bytes(text)
        yield Path(folder)


@contextmanager
def _open_loadtxt(inputs: dict[str, Any]) -> Iterator[Run]:
    with _write_rooms(inputs) as folder:
        paths = [path for room in list_rooms(folder / "raw") for path, _ in room.files]

        def run() -> RoomParts:
            table = np.concatenate([np.loadtxt(path) for path in paths])
            return RoomParts(table[:, :3], table[:, 3:])

        yield run


@contextmanager
def _open_reader(inputs: dict[str, Any]) -> Iterator[Run]:
    with _write_rooms(inputs) as folder:
        (room,) = list_rooms(folder / "raw")

        def run() -> RoomParts:
            table = read_room(room)
            return RoomParts(table.points, table.colours)

        yield run


@contextmanager
def _open_preparation(inputs: dict[str, Any]) -> Iterator[Run]:
    """Prepare the set completely (read, check, write, hash, move), and read the result back."""
    with _write_rooms(inputs) as folder:
        target = folder / "set"

        def run() -> RoomParts:
            # the previous set is deleted: else every run would pay for memory that no run has touched yet
            shutil.rmtree(target, ignore_errors=True)
            S3dis.prepare(source=folder / "raw", target=target, name="s3dis", progress=lambda done, total, what: None)
            points, colours, origins = (
                np.load(target / f"Area_1.{column}.npy", mmap_mode="r") for column in ("points", "colours", "origin_m")
            )
            return RoomParts(points, colours, origins[0])  # the rooms are alike, and so are their corners

        yield run


def _compare_rooms(inputs: Any, expected: RoomParts, actual: RoomParts) -> str | None:
    """Compare rows in order: colours exactly, coordinates to the float32 rounding of a room's size."""
    if actual.points.shape != expected.points.shape or not np.array_equal(actual.colours, expected.colours):
        return f"{actual.points.shape} numbers and their colours, {expected.points.shape} are needed"
    error = float(np.abs(actual.points + actual.origin - expected.points).max())
    return None if error <= 2e-6 else f"off by {error:.1e}"
