"""Sets whose rows have lengths of their own: kept in one stretch and read row by row."""

from __future__ import annotations

import functools
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.contract.errors import DataError, RunError
from sightline.store.prepared.prepared_set import PreparedSet, add_digest, open_prepared
from sightline.store.prepared.prepared_writer import (
    ColumnSpec,
    PreparationPlan,
    SampleRow,
    Shard,
    write_prepared_set,
)

SIZES = {"train": [3, 1, 700, 20], "test": [5, 9]}
"""Points per cloud; 700 points are more than a buffer of the file holds, one is the least."""
COLUMNS = {
    "points": ColumnSpec((3,), "float32", is_ragged=True),
    "label": ColumnSpec((), "uint8", is_ragged=True),
    "category": ColumnSpec((), "int64"),
}


def write_source(root: Path) -> Path:
    """A file per cloud: x y z label."""
    generator = np.random.default_rng(7)
    for split, sizes in SIZES.items():
        (root / split).mkdir(parents=True)
        for number, size in enumerate(sizes):
            table = np.column_stack([generator.normal(size=(size, 3)), generator.integers(0, 9, size)])
            np.savetxt(root / split / f"{number}.txt", table)
    return root


def read_source(file: Path) -> dict[str, Any]:
    table = np.loadtxt(file, ndmin=2)
    return {"points": table[:, :3], "label": table[:, 3], "category": int(file.stem)}


def rows_of(files: tuple[Path, ...]) -> Iterator[SampleRow]:
    for file in files:
        yield SampleRow(file.stem, str(file), read_source(file))


def prepare(source: Path, target: Path, *, room: int = 1) -> dict[str, Any]:
    """A part of two clouds each; `room` is what each is thought to need."""
    parts = []
    for split, sizes in SIZES.items():
        files = [source / split / f"{number}.txt" for number in range(len(sizes))]
        for first in range(0, len(files), 2):
            pair = tuple(files[first : first + 2])
            parts.append(Shard(split, f"{split}/{first}", len(pair), pair, functools.partial(rows_of, pair), room))
    plan = PreparationPlan("toy", "text", source, COLUMNS, tuple(parts), {}, lambda prepared: {})
    return write_prepared_set(plan, target, progress=lambda *told: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "in")


@pytest.fixture
def prepared(source: Path, tmp_path: Path) -> PreparedSet:
    prepare(source, tmp_path / "set")
    return open_prepared(tmp_path / "set", set_names=("toy",))


def test_every_row_is_read_as_it_was_written(prepared: PreparedSet, source: Path) -> None:
    for split, sizes in SIZES.items():
        assert prepared.offsets(split).tolist() == [0, *np.cumsum(sizes)]
        for number in range(len(sizes)):
            expected = read_source(source / split / f"{number}.txt")
            np.testing.assert_array_equal(prepared.row(split, "points", number), expected["points"].astype(np.float32))
            np.testing.assert_array_equal(prepared.row(split, "label", number), expected["label"])
            assert prepared.row(split, "category", number) == number
        assert [len(row) for row in prepared.rows(split, "label")] == sizes
        assert prepared.array(split, "points").shape == (sum(sizes), 3)


def test_files_are_those_of_numpy(prepared: PreparedSet, tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", np.array(prepared.array("train", "points")))
    assert (prepared.root / "train.points.npy").read_bytes() == (tmp_path / "points.npy").read_bytes()


def test_a_worker_is_sent_paths_and_maps_the_files_itself(prepared: PreparedSet) -> None:
    whole = prepared.array("train", "points")
    sent = pickle.dumps(prepared)
    assert len(sent) < whole.nbytes
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy.row("train", "points", 2), prepared.row("train", "points", 2))
    with pytest.raises(ValueError, match="read-only"):
        copy.row("train", "points", 2)[0, 0] = 1.0


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (np.full((2, 4), np.nan), r"1\.txt: points\[0, 0\] is nan"),
        (np.empty((0, 4)), r"1\.txt: points has the shape \(0, 3\), \(points, 3\) with at least one point is needed"),
    ],
)
def test_faulty_clouds_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: np.ndarray, fault: str
) -> None:
    read = np.loadtxt
    monkeypatch.setattr(np, "loadtxt", lambda file, ndmin: table if file.name == "1.txt" else read(file, ndmin=ndmin))
    with pytest.raises(DataError, match=fault):
        prepare(source, tmp_path / "set")


def test_too_little_room_is_told_before_the_work(source: Path, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(RunError, match=r"[\d,]+ bytes are needed, [\d,]+ are free; make room there and run the same"):
        prepare(source, tmp_path / "set", room=free)
    assert not (tmp_path / "set.partial").exists()


def test_offsets_that_are_no_starts_of_rows_are_refused(prepared: PreparedSet) -> None:
    path = prepared.root / "test.offsets.npy"
    np.save(path, np.array([0, 9, 5]))
    with pytest.raises(DataError, match=r"test\.offsets\.npy: does not rise from 0 to 14"):
        prepared.offsets("test")
    np.save(path, np.array([0, 5, 14], dtype=np.int32))
    with pytest.raises(DataError, match=r"holds int32 \(3,\), the manifest lists int64 \(3,\)"):
        PreparedSet(prepared.root, add_digest(prepared.manifest)).offsets("test")


def test_equal_clouds_are_found(source: Path, tmp_path: Path) -> None:
    shutil.copyfile(source / "train/2.txt", source / "test/1.txt")
    prepare(source, tmp_path / "set")
    manifest = open_prepared(tmp_path / "set", set_names=("toy",)).manifest
    assert manifest["duplicates"] == [["train/2", "test/1"]]
    assert "1 of 2 samples of test (50.0%) are in train, too" in manifest["differences"][0]
