"""The count test: which reading of boxes puts the most points into them, in one pass over the points near each box."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from sightline.store.boxes3d.conversions import BoxReading, BoxSize
from sightline.store.boxes3d.label_rows import Form

__all__ = ["Choice", "CountedFrame", "Hypothesis", "choose_reading", "count_inside", "count_readings"]

_PARTS: Mapping[str, tuple[str, ...]] = {
    "centre": ("centre", "bottom"),
    "size": ("lwh", "wlh", "hwl"),
    "unit": ("rad", "deg"),
    "sense": ("ccw", "cw"),
    "zero": ("x", "y"),
}
"""What each part of a reading may be; the half-turns -x and -y cover the same points, and cannot be told."""
OPTION_OF = {"centre": "box_centre", "size": "box_size", "unit": "yaw_unit", "sense": "yaw_sense", "zero": "yaw_zero"}
MIN_MORE = 0.03
"""Share of further points by which another reading is better; half of it would be the noise of rounded labels."""
_SAME = 0.005
"""Share of points by which readings that are the best differ at most."""
_MIN_POINTS = 20
"""Points by which another reading is better at least."""
_MIN_ELONGATED = 1.3
"""Ratio of length to width from which a box shows by its sides where its heading is."""


class CountedFrame(NamedTuple):
    """Points (N, 3) of a frame, and the rows (M, 7) of its boxes for each form, by its name."""

    points: np.ndarray
    rows: Mapping[str, np.ndarray]


class Hypothesis(NamedTuple):
    """A form with one reading of its rows."""

    form: str
    reading: BoxReading


@dataclass(frozen=True)
class Choice:
    """The reading that is taken, and the points in boxes by it and by every other.

    `better` is the reading that puts more points into the boxes, though the stated one is taken; None if none does.
    `open_parts` are those that neither the format nor the user states; `is_told` is False where points are too few.
    """

    taken: Hypothesis
    counts: Mapping[Hypothesis, int]
    better: Hypothesis | None = None
    open_parts: frozenset[str] = field(default_factory=frozenset)
    is_told: bool = True
    num_boxes: int = 0
    counted_form: str = ""

    @property
    def _counted(self) -> Hypothesis:
        """What is taken, under the name of the form with the same rows that was counted."""
        return self.taken._replace(form=self.counted_form or self.taken.form)

    @property
    def count(self) -> int:
        """The points in boxes by the reading that is taken."""
        return self.count_of(self._counted)

    def count_of(self, hypothesis: Hypothesis) -> int:
        """Return the points in boxes by another reading."""
        return self.counts.get(_fold(hypothesis), 0)

    def describe(self) -> str:
        """Describe in one line what was taken, why, and what the next best other boxes count."""
        stated = format_reading(self.taken.reading)
        if "form" in self.open_parts:
            stated = f"{self.taken.form}: {stated}"
        if not self.num_boxes:
            return f"{stated} (assumed: there is no box to test it by)"
        own = _find_footprint(self._counted)
        others = [count for item, count in self.counts.items() if _find_footprint(item) != own]
        beside = f", {max(others)} by the next best reading" if others else ""
        reason = "by the count test" if self.open_parts else "by the format or as stated"
        if self.better is not None:
            reason = "as stated"
        elif self.open_parts and not self.is_told:
            reason = "assumed: it cannot be told by so few points, or so nearly equal counts"
        return (
            f"{stated} ({reason}): {self.count} points are inside of {self.num_boxes} boxes{beside}; "
            "front and back, half a turn, cannot be told by points"
        )


def format_reading(reading: BoxReading) -> str:
    """Format a reading as the options by which it is stated."""
    return " ".join(f"{option}={value}" for option, value in reading.options().items())


def count_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Count the points (N, 3) in each box (M, 7), faces included; a point may be in several. (M,) int64, in float64."""
    counts = np.zeros(len(boxes), dtype=np.int64)
    for index, box in enumerate(boxes):
        near = _find_near(points, box[:3], float(np.linalg.norm(box[3:5])) / 2, box[5] / 2)
        counts[index] = int(_is_inside(near - box[:3], box[3:6], np.cos(box[6]), np.sin(box[6])).sum())
    return counts


def _is_inside(local: np.ndarray, sizes: np.ndarray, cosine: float, sine: float) -> np.ndarray:
    along, across = cosine * local[:, 0] + sine * local[:, 1], cosine * local[:, 1] - sine * local[:, 0]
    inside: np.ndarray = (
        (np.abs(along) <= sizes[0] / 2) & (np.abs(across) <= sizes[1] / 2) & (np.abs(local[:, 2]) <= sizes[2] / 2)
    )
    return inside


def _find_near(points: np.ndarray, centre: np.ndarray, radius: float, height: float) -> np.ndarray:
    """Return the points in a square column about a centre, a little wider than stated."""
    radius, height = radius + 1e-6, height + 1e-6
    column = points[np.abs(points[:, 0] - centre[0]) <= radius]
    column = column[np.abs(column[:, 1] - centre[1]) <= radius]
    near: np.ndarray = column[np.abs(column[:, 2] - centre[2]) <= height]
    return near


def count_readings(points: np.ndarray, rows: np.ndarray, readings: Sequence[BoxReading]) -> np.ndarray:
    """Count the points (N, 3) in the boxes of rows (M, 7) by each of H readings: (H, M) int64."""
    counts = np.zeros((len(readings), len(rows)), dtype=np.int64)
    boxes = np.stack([reading.to_boxes(rows) for reading in readings])
    for index, row in enumerate(rows):
        reach = float(np.linalg.norm(row[3:6]))
        near = _find_near(points, row[:3], reach / 2, reach)
        x, y, z = (near - row[:3]).T
        half, shift = boxes[:, index, 3:6, None] / 2, boxes[:, index, 2, None] - row[2]
        cosine, sine = np.cos(boxes[:, index, 6, None]), np.sin(boxes[:, index, 6, None])
        is_inside = (np.abs(cosine * x + sine * y) <= half[:, 0]) & (np.abs(cosine * y - sine * x) <= half[:, 1])
        counts[:, index] = (is_inside & (np.abs(z - shift) <= half[:, 2])).sum(axis=1)
    return counts


def choose_reading(
    frames: Collection[CountedFrame],
    forms: Mapping[str, Form],
    stated: Mapping[str, Any],
    *,
    excludes_rad: bool = False,
) -> Choice:
    """Choose the form and reading of boxes: parts that the user or the format states as they are, the others by counts.

    The first form's reading is taken unless another has more than `MIN_MORE` further points; among equals the one whose
    boxes are longer than wide, then the nearest to the first. `stated` are parts by name that the user gave.
    `excludes_rad` where angles are beyond a turn of radians.
    """
    first_name, first = next(iter(forms.items()))
    default = Hypothesis(first_name, replace(first.reading, **stated))
    groups = _group_forms(forms, frames)
    hypotheses = [*_list_hypotheses(groups, stated)]
    if excludes_rad and "unit" not in stated and "unit" not in first.is_stated:
        hypotheses = [item for item in hypotheses if item.reading.unit == "deg"]
    counts = _count_all(frames, hypotheses)
    num_boxes = sum(len(frame.rows[first_name]) for frame in frames)
    allowed = [item for item in hypotheses if _find_form(item, groups, stated)]
    taken, is_told = _choose(default, allowed, counts, frames)
    other, _ = _choose(taken, hypotheses, counts, frames)
    if other != taken:  # what is stated does not fit: the rest is as in the reading that does, not to fit the fault
        taken = _restate(other, forms[other.form], stated)
        is_told = False
    named = taken._replace(form=_find_form(taken, groups, stated) or taken.form)
    open_parts = frozenset(_PARTS) - {*stated} - first.is_stated
    if len(forms) > 1:
        open_parts |= {"form"}
    return Choice(named, counts, other if other != taken else None, open_parts, is_told, num_boxes, taken.form)


def _group_forms(forms: Mapping[str, Form], frames: Collection[CountedFrame]) -> dict[str, dict[str, Form]]:
    """Group the forms whose rows are the same, so that their readings alone differ, by the first of them."""
    groups: dict[str, dict[str, Form]] = {}
    for name, form in forms.items():
        same = [
            first for first in groups if all(np.array_equal(frame.rows[first], frame.rows[name]) for frame in frames)
        ]
        groups.setdefault(same[0] if same else name, {})[name] = form
    return groups


def _list_hypotheses(groups: Mapping[str, Mapping[str, Form]], stated: Mapping[str, Any]) -> Iterator[Hypothesis]:
    """List every reading of every group of forms once, half-turns as one."""
    for name, forms in groups.items():
        readings: dict[BoxReading, None] = {}
        for form in forms.values():
            own = _fold_reading(replace(form.reading, **stated))
            choices = [dict.fromkeys((getattr(own, part), *values)) for part, values in _PARTS.items()]
            for values in itertools.product(*choices):
                readings[BoxReading(**dict(zip(_PARTS, values, strict=True)))] = None
        yield from (Hypothesis(name, reading) for reading in readings)


def _find_form(hypothesis: Hypothesis, groups: Mapping[str, Mapping[str, Form]], stated: Mapping[str, Any]) -> str:
    """Return the first form of a hypothesis' group that may be read so; "" if what is stated excludes it."""
    forms = groups[hypothesis.form]
    folded = _fold(hypothesis)
    return next((name for name, form in forms.items() if _agrees(folded, form, stated)), "")


def _fold_reading(reading: BoxReading) -> BoxReading:
    return replace(reading, zero=reading.zero.removeprefix("-"))  # type: ignore[arg-type]


def _fold(hypothesis: Hypothesis) -> Hypothesis:
    """Return the hypothesis of the same points whose zero is a positive axis."""
    return hypothesis._replace(reading=_fold_reading(hypothesis.reading))


def _find_footprint(hypothesis: Hypothesis) -> Hypothesis:
    """Return the one hypothesis of all that cover the same points: width for length is a quarter of a turn."""
    reading = _fold_reading(hypothesis.reading)
    if reading.size in ("wlh", "hwl"):
        size: BoxSize = "lwh" if reading.size == "wlh" else "hlw"
        reading = replace(reading, size=size, zero="y" if reading.zero == "x" else "x")
    return hypothesis._replace(reading=reading)


def _agrees(hypothesis: Hypothesis, form: Form, stated: Mapping[str, Any]) -> bool:
    """Return True if a reading has the values that the user, or else the format, states."""
    own = _fold_reading(replace(form.reading, **stated))
    fixed = {*stated, *form.is_stated}
    return all(getattr(hypothesis.reading, part) == getattr(own, part) for part in _PARTS if part in fixed)


def _restate(hypothesis: Hypothesis, form: Form, stated: Mapping[str, Any]) -> Hypothesis:
    """Return a hypothesis with the values that the user, or else the format, states."""
    own = replace(form.reading, **stated)
    fixed = {part: getattr(own, part) for part in _PARTS if part in {*stated, *form.is_stated}}
    return hypothesis._replace(reading=replace(hypothesis.reading, **fixed))


def _count_all(frames: Collection[CountedFrame], hypotheses: Sequence[Hypothesis]) -> dict[Hypothesis, int]:
    totals = dict.fromkeys(hypotheses, 0)
    for name in dict.fromkeys(item.form for item in hypotheses):
        members = [item for item in hypotheses if item.form == name]
        for frame in frames:
            found = count_readings(frame.points, frame.rows[name], [item.reading for item in members]).sum(axis=1)
            for item, count in zip(members, found.tolist(), strict=True):
                totals[item] += count
    return totals


def _choose(
    default: Hypothesis,
    allowed: Sequence[Hypothesis],
    counts: Mapping[Hypothesis, int],
    frames: Collection[CountedFrame],
) -> tuple[Hypothesis, bool]:
    """Choose among the allowed; also return whether the counts tell it from readings of other points."""
    folded = _fold(default)
    own, best = counts.get(folded, 0), max((counts[item] for item in allowed), default=0)
    if best <= own * (1 + MIN_MORE) or best - own < _MIN_POINTS:
        footprint = _find_footprint(default)
        rivals = [
            item for item in allowed if _find_footprint(item) != footprint and counts[item] * (1 + MIN_MORE) > own
        ]
        return default, own >= _MIN_POINTS and not rivals
    equals = [item for item in allowed if counts[item] >= best * (1 - _SAME)]

    def rank(item: Hypothesis) -> tuple[bool, int]:
        return _is_wide(item, frames), _count_changes(item.reading, folded.reading)

    chosen = min(equals, key=rank)
    return _unfold(chosen, default), True


def _unfold(chosen: Hypothesis, default: Hypothesis) -> Hypothesis:
    """Return the half-turn of a chosen reading that is a known convention: the default's, or clockwise from -y."""
    reading, zero = chosen.reading, default.reading.zero
    if reading.zero == zero.removeprefix("-"):
        return chosen._replace(reading=replace(reading, zero=zero))
    if reading.zero == "y" and reading.sense == "cw":
        return chosen._replace(reading=replace(reading, zero="-y"))
    return chosen


def _count_changes(reading: BoxReading, other: BoxReading) -> int:
    return sum(getattr(reading, part) != getattr(other, part) for part in _PARTS)


def _is_wide(hypothesis: Hypothesis, frames: Collection[CountedFrame]) -> bool:
    """Return True if most of the boxes that are not square are wider than long by a reading."""
    rows = np.concatenate([frame.rows[hypothesis.form] for frame in frames])
    boxes = hypothesis.reading.to_boxes(rows)
    ratio = boxes[:, 3] / boxes[:, 4]
    return int((ratio < 1 / _MIN_ELONGATED).sum()) > int((ratio > _MIN_ELONGATED).sum())
