"""Sets of a training's loader, epoch by epoch: what they hold, and whether it is drawn anew."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence.programs.drawn import find_drawn_once, mark_set
from sightline.doctor.rules import find_by
from sightline.doctor.rules.programs.drawn import drawn_once
from sightline.doctor.trace import RowDigests
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor

_MAX_MARKED, _NUM_COMPARED = 16, 2
"""Epochs at whose start the set is marked, and those whose samples are compared."""


class SetMonitor(Monitor):
    """Marks of the set that training reads, at the first passes of its first epochs."""

    def __init__(self) -> None:
        self._num_epochs = 0
        self._set: weakref.ref[Any] | None = None
        self._collate: Any = None
        self._marks: list[Any] = []
        self._epochs: list[list[RowDigests] | None] = []
        """Samples of the passes of the first epochs; None for one of which a pass was not read."""

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        """Mark the set in the first pass of an epoch, and keep its samples."""
        if not call.has_gradient or loop.loader is None or loop.num_epochs > _MAX_MARKED:
            return
        if loop.num_epochs != self._num_epochs:
            self._num_epochs = loop.num_epochs
            self._mark(loop.loader())
            self._epochs += [[]] * (len(self._epochs) < _NUM_COMPARED)
        if self._num_epochs <= _NUM_COMPARED and self._epochs and (known := self._epochs[-1]) is not None:
            self._epochs[-1] = None if call.digests is None else [*known, call.digests]

    def _mark(self, loader: Any) -> None:
        data: Any = getattr(loader, "dataset", None)
        while hasattr(data, "dataset"):
            data = data.dataset
        if hasattr(data, "__dict__") and hasattr(data, "__weakref__"):
            marks = attempt("a mark of the set", mark_set, {"data": data})
            if self._set is None:
                self._set, self._collate = weakref.ref(data), getattr(loader, "collate_fn", None)
            is_same = self._set() is data and not isinstance(marks, MissingError)
            self._marks.append(marks if is_same else None)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge a set that was the same in all of two epochs or more."""
        data = None if self._set is None else self._set()
        if data is None or len(self._marks) < 2 or any(each != self._marks[0] or not each for each in self._marks):
            return
        repeats = self._compare_epochs()
        if repeats is not False:
            known = {"data": data, "collate": self._collate, "epochs": self._num_epochs, "repeats": bool(repeats)}
            drawn = attempt("draws of the set", find_drawn_once, known)
            if not isinstance(drawn, MissingError):
                yield from find_by(drawn_once, drawn=drawn)

    def _compare_epochs(self) -> bool | None:
        """Return True if all samples of the first epoch are there in the second, as often; None if not all are known.

        A last batch that is left out may have others in each.
        """
        passes = [epoch for epoch in self._epochs if epoch]
        if len(passes) < _NUM_COMPARED:
            return None
        first, second = (Counter(row for each in epoch for row in each.values.tolist()) for epoch in passes)
        size = max(len(each.values) for each in passes[0])
        return bool(first) and max((first - second).total(), (second - first).total()) < size
