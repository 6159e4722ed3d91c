"""Stated lengths of series beside where their padding lies: behind them, before them, or counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.forms.form import Batch
from sightline.doctor.subject import Subject, replace_leaf
from sightline.instrument.random_state import seed_all

_MIN_STEPS, _MIN_ENDS = 4, 3
"""Steps of a series, and different numbers of padded places, without which padding is not told from values."""


class Stated(NamedTuple):
    """Input of series along an axis, of which `numbers` says how long each is, and the places that one number fills.

    `padding` are those places of each series of the first batch, `lengths` what is stated of it.
    """

    path: str
    numbers: str
    kind: Literal["before", "counted"]
    lengths: list[int]
    padding: list[int]


@measure(passes=2)
def stated_lengths(subject: Subject) -> list[Stated]:
    """Find series whose padding lies before them though their last values are not read, or that lengths count."""
    pairs = list(_iter_pairs(subject.batches[0]))
    if not pairs:
        raise NotApplicableError("no lengths of series")
    found = []
    for path, axis, numbers in pairs:
        rows, lengths = _get(subject.batches[0], path, axis), dict(dense_leaves(subject.batches[0].inputs))[numbers]
        before, behind = (_count_padding(each) for each in (rows, rows.flip(1)))
        if before is not None and torch.equal(rows.shape[1] - before, lengths) and int(lengths.min()) < rows.shape[1]:
            if _ignores_last(subject, path, axis, before):
                found.append(Stated(path, numbers, "before", lengths.tolist(), before.tolist()))
        elif behind is not None and all(_are_whole(batch, path, axis, numbers) for batch in subject.batches):
            found.append(Stated(path, numbers, "counted", lengths.tolist(), behind.tolist()))
    return found


def _iter_pairs(batch: Batch) -> Iterator[tuple[str, int, str]]:
    """Yield each input of series, the axis of its steps, and the whole numbers beside it that may be lengths."""
    leaves = dict(dense_leaves(batch.inputs))
    for numbers, lengths in leaves.items():
        if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool or len(lengths) < 2:
            continue
        for path, leaf in leaves.items():
            fits = [axis for axis in (1, 0) if leaf.ndim > 1 and _fits(leaf, axis, lengths)]
            yield from ((path, axis, numbers) for axis in fits[:1])


def _fits(leaf: Tensor, axis: int, lengths: Tensor) -> bool:
    """Return True for as many series as lengths, whose steps are as many as the largest of these."""
    size = leaf.shape[axis]
    is_whole = size >= _MIN_STEPS and int(lengths.max()) == size and int(lengths.min()) > 0
    return is_whole and leaf.shape[1 - axis] == len(lengths)


def _get(batch: Batch, path: str, axis: int) -> Tensor:
    """Return the series (B, T, ...) of an input."""
    return dict(dense_leaves(batch.inputs))[path].movedim(axis, 1)


def _count_padding(rows: Tensor) -> Tensor | None:
    """Count the first places of each row that one number fills, and which it fills nowhere else; None without any."""
    flat = rows.flatten(2) if rows.ndim > 2 else rows[..., None]
    number = flat[:, 0, 0].mode()[0]
    is_filled = (flat == number).all(-1)
    counts = is_filled.long().cumprod(1).sum(1)
    is_alone = int(is_filled.sum()) == int(counts.sum())
    is_padded = is_alone and len(counts.unique()) >= _MIN_ENDS and int(counts.max()) < rows.shape[1]
    return counts if is_padded and int((counts > 1).sum()) > 1 else None


def _are_whole(batch: Batch, path: str, axis: int, numbers: str) -> bool:
    leaves = dict(dense_leaves(batch.inputs))
    return numbers in leaves and path in leaves and bool((leaves[numbers] == leaves[path].shape[axis]).all())


def _ignores_last(subject: Subject, path: str, axis: int, before: Tensor) -> bool:
    """Return True if the outputs of padded series stay as their last values are exchanged, and move with the first."""
    inputs, model = subject.batches[0].inputs, subject.jitter(subject.copy("eval"), seed=5)
    leaf = dict(dense_leaves(inputs))[path]
    rows, is_padded = leaf.movedim(axis, 1), before > 1
    order = torch.arange(len(rows)).roll(1)
    answers: list[Any] = [_run_model(subject, model, inputs, is_padded)]
    for place in (slice(-1, None), slice(None)):
        changed = rows.clone()
        changed[:, place] = rows[order][:, place] if not rows.is_floating_point() else 1.5 * rows[order][:, place] + 0.5
        answers.append(_run_model(subject, model, replace_leaf(inputs, path, changed.movedim(1, axis)), is_padded))
    first, last, whole = answers
    return bool(first) and all(map(torch.equal, first, last)) and not all(map(torch.equal, first, whole))


def _run_model(subject: Subject, model: Any, inputs: Any, kept: Tensor) -> list[Tensor]:
    seed_all(0)
    with torch.no_grad():
        outputs = subject.call(model, inputs)
    return [t[kept] for _, t in dense_leaves(outputs) if t.ndim and len(t) == len(kept)]
