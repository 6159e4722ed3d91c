"""Rows without elements: kept where columns allow them, refused where they do not, and continued to the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.data.store.columns import ColumnSpec
from sightline.data.store.prepared_set import open_prepared, verify
from sightline.data.store.prepared_writer import PreparationPlan, SampleRow, Shard, write_prepared_set
from sightline.errors import DataError

LENGTHS = {"train": [0, 2, 0, 0, 3, 0], "test": [0, 0]}


def plan(root: Path, *, can_be_empty: bool, killed: bool = False) -> PreparationPlan:
    """Rows of these lengths that count up, in two parts a split."""
    columns = {
        "values": ColumnSpec((2,), "float64", True, can_be_empty),
        "flag": ColumnSpec((), "bool", True, can_be_empty),
    }

    def rows(split: str, lengths: Sequence[int], first: int) -> Iterator[SampleRow]:
        for number, length in enumerate(lengths, start=first):
            if killed and (split, number) == ("test", 1):
                raise KeyboardInterrupt
            values = np.arange(2 * length, dtype=np.float64).reshape(length, 2) + number
            yield SampleRow(
                f"{split}{number}", f"row {number}", {"values": values, "flag": np.ones(length, dtype=bool)}
            )

    def part(split: str, first: int, last: int) -> Shard:
        chosen = LENGTHS[split][first:last]
        return Shard(split, f"{split} {first}", len(chosen), (), lambda: rows(split, chosen, first))

    halves = [part(split, *each) for split, n in (("train", 3), ("test", 1)) for each in ((0, n), (n, 2 * n))]
    return PreparationPlan("own", "made", root, columns, tuple(halves), {}, lambda _: {})


def quiet(*_: Any) -> None: ...


def test_empty_rows_come_back_empty(tmp_path: Path) -> None:
    write_prepared_set(plan(tmp_path, can_be_empty=True), tmp_path / "set", progress=quiet)
    prepared = open_prepared(tmp_path / "set", set_names=("own",))
    for split, lengths in LENGTHS.items():
        rows = list(prepared.rows(split, "values"))
        assert [row.shape for row in rows] == [(length, 2) for length in lengths]
        assert np.diff(prepared.offsets(split)).tolist() == lengths
    assert prepared.row("train", "values", 4).tolist() == [[4, 5], [6, 7], [8, 9]]
    assert prepared.manifest["ranges"]["values"] == [1.0, 9.0]
    verify(tmp_path / "set")


def test_a_killed_run_with_empty_rows_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    write_prepared_set(plan(tmp_path, can_be_empty=True), tmp_path / "whole", progress=quiet)
    with pytest.raises(KeyboardInterrupt):
        write_prepared_set(plan(tmp_path, can_be_empty=True, killed=True), tmp_path / "set", progress=quiet)
    told: list[str] = []
    write_prepared_set(plan(tmp_path, can_be_empty=True), tmp_path / "set", progress=lambda *each: told.append(each[2]))
    assert told[:3] == [f"{part}: kept from the run before" for part in ("train 0", "train 3", "test 0")]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("set", "whole")]
    assert files[0] == files[1]
    assert all((tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files[0])


def test_empty_rows_are_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0: values has the shape \(0, 2\), .* with at least one point"):
        write_prepared_set(plan(tmp_path, can_be_empty=False), tmp_path / "set", progress=quiet)
