"""Training, validation and test samples of a prepared set, split by name prefix, by the source's lists or by order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sightline.contract.errors import ConfigError, DataError
from sightline.contract.types import Folds
from sightline.store.prepared.prepared_set import PreparedSet

SPLITS = ("train", "validation", "test")
RowRefs = tuple[tuple[str, int], ...]
"""References to samples of a prepared set: stored split and row of each."""
Deal = Callable[[Sequence[tuple[str, int]], float], tuple[RowRefs, RowRefs]]
"""Function of rows and a share that returns the remaining and the held-out rows, in the order of the rows."""


class SplitRows(NamedTuple):
    """Samples of the training, validation and test split; and the folds of a cross-validation, if there is one.

    `dealt` lists the splits that neither the source nor the config names.
    """

    rows: Mapping[str, RowRefs]
    folds: Folds | None = None
    dealt: tuple[str, ...] = ()


def split_off_last(rows: Sequence[tuple[str, int]], share: float) -> tuple[RowRefs, RowRefs]:
    """Split off the last `share` of the rows, rounded; both sides get at least one row unless the share is 0."""
    count = count_held(len(rows), share)
    return tuple(rows[: len(rows) - count]), tuple(rows[len(rows) - count :])


def hold_out_ends(rows: Sequence[tuple[str, int]], *, share: float) -> tuple[RowRefs, RowRefs]:
    """Hold out the last `share` of the rows of each stored split, as `split_off_last`."""
    pairs = [split_off_last([*members], share) for _, members in itertools.groupby(rows, key=lambda row: row[0])]
    trained, held_out = (tuple(row for pair in pairs for row in pair[side]) for side in (0, 1))
    return trained, held_out


def count_held(size: int, share: float) -> int:
    """Count the samples of a share, rounded; at least one on each side unless the share is 0."""
    return min(max(round(share * size), 1), size - 1) if share and size > 1 else 0


def order_by_hash(names: Sequence[str], *, seed: int) -> list[int]:
    """Return indices of names in an order that is drawn by `seed`; names that are added later change no other's."""
    hashes = [hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).hexdigest() for name in names]
    return sorted(range(len(names)), key=hashes.__getitem__)


def deal_by_hash(
    names: Sequence[str], *, test_share: float, validation_share: float, seed: int, where: str, advice: str
) -> list[str]:
    """Return the split of every name, drawn by `seed`: shares are rounded to the nearest, at least one name unless 0.

    Names that are added later change the split of few others. Raises DataError, between `where` and `advice`, for too
    few names.
    """
    num_test = max(1, round(test_share * len(names)))
    num_validation = max(1, round(validation_share * len(names))) if validation_share else 0
    if num_test + num_validation >= len(names):
        raise DataError(
            f"{where}, too few for {num_test} to test, {num_validation} to validate and one to train on; add some, or "
            f"{advice}"
        )
    order, splits = order_by_hash(names, seed=seed), ["train"] * len(names)
    for split, indices in (("test", order[:num_test]), ("validation", order[num_test:][:num_validation])):
        for index in indices:
            splits[index] = split
    return splits


def make_splits(
    prepared: PreparedSet,
    *,
    test_names: Sequence[str],
    test_share: float,
    validation_share: float,
    what: str,
    deal: Deal = split_off_last,
) -> SplitRows:
    """Assign the samples of a set to splits by their names, in the order of the names.

    Samples whose names begin with one of `test_names` are the test split; without `test_names`, the lists of the source
    decide, else `deal` holds out a share of the rows. A share of the remaining rows is the validation split. Both are
    the last by name, unless `deal` does otherwise: neighbours in time are alike, so random test samples would have near
    copies in the training split. Raises DataError, which calls a sample `what`, for a prefix that no name has.
    """
    rows = {split: [(split, row) for row in range(len(prepared.names(split)))] for split in prepared.splits}
    if not test_names and "test" in rows:
        stored_rows = {split: tuple(rows.get(split, ())) for split in SPLITS}
        if not stored_rows["validation"]:
            stored_rows["train"], stored_rows["validation"] = deal(stored_rows["train"], validation_share)
            return SplitRows(stored_rows, dealt=("validation",))
        return SplitRows(stored_rows)
    named_rows = sorted(
        (name, row) for split in rows for name, row in zip(prepared.names(split), rows[split], strict=True)
    )
    unused = [prefix for prefix in test_names if not any(name.startswith(prefix) for name, _ in named_rows)]
    if unused:
        raise DataError(
            f"{prepared.root}: tested: no {what}'s name begins with '{unused[0]}'; they run from {named_rows[0][0]} to "
            f"{named_rows[-1][0]}"
        )
    remaining = tuple(row for name, row in named_rows if not name.startswith(tuple(test_names) or "\0"))
    test = tuple(row for name, row in named_rows if name.startswith(tuple(test_names) or "\0"))
    if not test_names:
        remaining, test = deal(remaining, test_share)
    train, validation = deal(remaining, validation_share)
    names = tuple(name for name, _ in named_rows)
    folds = Folds(names, tuple(name for name in names if name.startswith(tuple(test_names)))) if test_names else None
    dealt = ("validation",) if test_names else ("validation", "test")
    return SplitRows({"train": train, "validation": validation, "test": test}, folds, dealt)


def stored_splits(prepared: PreparedSet) -> SplitRows:
    """Return the rows of the folder's own splits."""
    sizes = {split: facts["num_rows"] for split, facts in prepared.manifest["splits"].items()}
    return SplitRows({split: tuple((split, row) for row in range(size)) for split, size in sizes.items()})


def split_by_folds(
    prepared: PreparedSet,
    tested: Sequence[str],
    *,
    deal: Callable[[RowRefs], tuple[RowRefs, RowRefs]],
    advice: str,
    noun: str = "",
) -> SplitRows:
    """Test the stored splits that are `tested`; of the rows of all others, `deal` holds some out for validation.

    Raises DataError, which calls them `noun` and ends with the `advice`, for a tested one that is not there.
    """
    folds = stored_splits(prepared).rows
    missing = [name for name in tested if name not in folds]
    if missing:
        raise DataError(
            f"{prepared.root}: holds no {noun and f'{noun} '}{missing[0]}, it holds {', '.join(folds)}; {advice}"
        )
    train, validation = deal(tuple(row for name, rows in folds.items() if name not in tested for row in rows))
    rows = {"train": train, "validation": validation, "test": tuple(row for name in tested for row in folds[name])}
    return SplitRows(rows, Folds(tuple(folds), tuple(tested)))


def check_part(parts: SplitRows, split: str, *, root: Path, what: str) -> None:
    """Raise ConfigError, which calls a sample `what`, for a split that has none."""
    if not parts.rows.get(split):
        available = ", ".join(f"{name} ({len(rows)})" for name, rows in parts.rows.items())
        advice = "; set evaluate.select: test" if split == "validation" else ""
        raise ConfigError(f"{root}: has no {what} in the part '{split}'; it has {available}{advice}")
