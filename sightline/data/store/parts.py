"""The samples of a prepared set that train, validate and test, where their names, lists or order distinguish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.data.store.native import Prepared
from sightline.errors import ConfigError, DataError
from sightline.types import Folds

__all__ = ["Parts", "Rows", "check_part", "last_share", "parts_of"]

Rows = tuple[tuple[str, int], ...]
"""Samples of a prepared set: stored split and row of each."""


class Parts(NamedTuple):
    """The samples that train, validate and test, by part; and what is tested in turn, if anything is."""

    rows: Mapping[str, Rows]
    folds: Folds | None = None


def parts_of(
    prepared: Prepared, *, tested: Sequence[str], test_share: float, validation_share: float, what: str
) -> Parts:
    """The parts of a set whose samples are distinguished by their names, in the order of these.

    Samples whose names begin with one of `tested` are the test part; without any, the lists that the source came with
    decide, else the last samples do. The last share of those that remain chooses the checkpoint: neighbours in time are
    alike, so samples that are drawn at random would be seen in training as good as themselves.
    Raises DataError, which calls a sample `what`, for a beginning that no name has.
    """
    rows = {split: [(split, row) for row in range(len(prepared.names(split)))] for split in prepared.splits}
    if not tested and "test" in rows:
        given = {split: tuple(rows.get(split, ())) for split in ("train", "validation", "test")}
        if not given["validation"]:
            given["train"], given["validation"] = last_share(given["train"], validation_share)
        return Parts(given)
    named = sorted((name, row) for split in rows for name, row in zip(prepared.names(split), rows[split], strict=True))
    unknown = [each for each in tested if not any(name.startswith(each) for name, _ in named)]
    if unknown:
        raise DataError(
            f"{prepared.root}: tested: no {what}'s name begins with '{unknown[0]}'; they run from {named[0][0]} to "
            f"{named[-1][0]}"
        )
    rest = tuple(row for name, row in named if not name.startswith(tuple(tested) or "\0"))
    test = tuple(row for name, row in named if name.startswith(tuple(tested) or "\0"))
    if not tested:
        rest, test = last_share(rest, test_share)
    train, validation = last_share(rest, validation_share)
    names = tuple(name for name, _ in named)
    folds = Folds(names, tuple(name for name in names if name.startswith(tuple(tested)))) if tested else None
    return Parts({"train": train, "validation": validation, "test": test}, folds)


def last_share(rows: Sequence[tuple[str, int]], share: float) -> tuple[Rows, Rows]:
    """The first rows, and the last `share` of them, rounded to the nearest; at least one on either side of a share."""
    count = min(max(round(share * len(rows)), 1), len(rows) - 1) if share and len(rows) > 1 else 0
    return tuple(rows[: len(rows) - count]), tuple(rows[len(rows) - count :])


def check_part(parts: Parts, split: str, *, root: Path, what: str) -> None:
    """Raises ConfigError, which calls a sample `what`, for a part that has none."""
    if not parts.rows.get(split):
        held = ", ".join(f"{name} ({len(rows)})" for name, rows in parts.rows.items())
        advice = "; set evaluate.select: test" if split == "validation" else ""
        raise ConfigError(f"{root}: has no {what} in the part '{split}'; it has {held}{advice}")
