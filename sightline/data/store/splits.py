"""The samples of a prepared set that train, validate and test, where their names, lists or order distinguish them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.data.store.prepared_set import PreparedSet
from sightline.errors import ConfigError, DataError
from sightline.types import Folds

__all__ = ["Deal", "RowRefs", "SplitRows", "check_part", "count_held", "make_splits", "split_off_last"]

RowRefs = tuple[tuple[str, int], ...]
"""Samples of a prepared set: stored split and row of each."""
Deal = Callable[[Sequence[tuple[str, int]], float], tuple[RowRefs, RowRefs]]
"""Given rows and a share, those that remain and those that are held out, in the order of the rows."""


class SplitRows(NamedTuple):
    """The samples that train, validate and test, by part; and what is tested in turn, if anything is.

    `dealt` are the parts that neither the source nor the config names.
    """

    rows: Mapping[str, RowRefs]
    folds: Folds | None = None
    dealt: tuple[str, ...] = ()


def split_off_last(rows: Sequence[tuple[str, int]], share: float) -> tuple[RowRefs, RowRefs]:
    """The first rows, and the last `share` of them, rounded to the nearest; at least one on either side of a share."""
    count = count_held(len(rows), share)
    return tuple(rows[: len(rows) - count]), tuple(rows[len(rows) - count :])


def count_held(size: int, share: float) -> int:
    """The number of samples that a share of so many is: the nearest, and at least one on either side of a share."""
    return min(max(round(share * size), 1), size - 1) if share and size > 1 else 0


def make_splits(
    prepared: PreparedSet,
    *,
    test_names: Sequence[str],
    test_share: float,
    validation_share: float,
    what: str,
    deal: Deal = split_off_last,
) -> SplitRows:
    """The parts of a set whose samples are distinguished by their names, in the order of these.

    Samples whose names begin with one of `test_names` are the test part; without any, the lists that the source came
    with
    decide, else `deal` does, which holds a share of the rows out. A share of those that remain chooses the checkpoint.
    Both are the last by name, unless `deal` says other: neighbours in time are alike, so samples that are drawn at
    random would be seen in training as good as themselves.
    Raises DataError, which calls a sample `what`, for a beginning that no name has.
    """
    rows = {split: [(split, row) for row in range(len(prepared.names(split)))] for split in prepared.splits}
    if not test_names and "test" in rows:
        given = {split: tuple(rows.get(split, ())) for split in ("train", "validation", "test")}
        if not given["validation"]:
            given["train"], given["validation"] = deal(given["train"], validation_share)
            return SplitRows(given, dealt=("validation",))
        return SplitRows(given)
    named = sorted((name, row) for split in rows for name, row in zip(prepared.names(split), rows[split], strict=True))
    unknown = [each for each in test_names if not any(name.startswith(each) for name, _ in named)]
    if unknown:
        raise DataError(
            f"{prepared.root}: tested: no {what}'s name begins with '{unknown[0]}'; they run from {named[0][0]} to "
            f"{named[-1][0]}"
        )
    rest = tuple(row for name, row in named if not name.startswith(tuple(test_names) or "\0"))
    test = tuple(row for name, row in named if name.startswith(tuple(test_names) or "\0"))
    if not test_names:
        rest, test = deal(rest, test_share)
    train, validation = deal(rest, validation_share)
    names = tuple(name for name, _ in named)
    folds = Folds(names, tuple(name for name in names if name.startswith(tuple(test_names)))) if test_names else None
    dealt = ("validation",) if test_names else ("validation", "test")
    return SplitRows({"train": train, "validation": validation, "test": test}, folds, dealt)


def check_part(parts: SplitRows, split: str, *, root: Path, what: str) -> None:
    """Raises ConfigError, which calls a sample `what`, for a part that has none."""
    if not parts.rows.get(split):
        held = ", ".join(f"{name} ({len(rows)})" for name, rows in parts.rows.items())
        advice = "; set evaluate.select: test" if split == "validation" else ""
        raise ConfigError(f"{root}: has no {what} in the part '{split}'; it has {held}{advice}")
