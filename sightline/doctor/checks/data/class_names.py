"""Names of classes that are not those of the labels: doubled, in another order in a part, or below the floor.

No file states for certain which label is which class. Where rooms have a ceiling and a floor, their heights show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.core.sample_statistics import PartStatistics, distinct_parts
from sightline.engine.build import DataSubset

__all__ = ["class_names"]

_NAMES = ("class_names", "category_names", "part_names")
_ABOVE = (
    ("ceiling", "floor"),
    *(("ceiling", name) for name in ("table", "chair", "sofa", "door", "window", "wall")),
    *((name, "floor") for name in ("table", "chair", "sofa", "door", "window", "wall")),
)
"""What has its mean height above what, in every room."""
_ORDER_B = (("bookcase", "sofa"), ("table", "chair"))
"""Usually so; the two public orders of S3DIS exchange both pairs, so that both turn round at once."""
_CLEARLY = 0.5  # of the way between two means along another axis: the up axis of a room parts them by far more


@check("G4", "class-names", "preflight", config_path="data")
def class_names(context: Context) -> list[Finding]:
    """No name stands twice, all parts number the classes alike, and rooms have their ceiling above their floor."""
    declared = list(_of_facts(context))
    return declared or [finding for survey in context.statistics for finding in _of_heights(context, survey)]


# --- names of the sets ------------------------------------------------------------------------------------------------


def _of_facts(context: Context) -> Iterator[Finding]:
    parts = distinct_parts(context.built.data)
    trained = parts[0].dataset.info.facts
    for fact in _NAMES:
        names = trained.get(fact) or ()
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            places = [number for number, name in enumerate(names) if name == twice[0]]
            yield class_names.finding(
                context,
                f"two classes are called '{twice[0]}'",
                causes=("data.label_mapping", "cfg.class_count"),
                split=parts[0].split,
                measured=f"{fact}: '{twice[0]}' stands at {', '.join(map(str, places))}",
                expected="a name of its own for each class; figures per class would hide one of them",
                action=f"correct the fact {fact} of the data set",
                evidence={"field": "class names", "looked_at": "the facts of the data sets"},
            )
    for part in parts[1:]:
        if part.dataset is not parts[0].dataset:
            yield from _of_other_part(context, part, trained)


def _of_other_part(context: Context, part: DataSubset, trained: Mapping[str, Any]) -> Iterator[Finding]:
    """The same names in another order, or other names; the first that differs is reported."""
    facts = part.dataset.info.facts
    for fact in (*_NAMES, "parts_of_category"):
        ours, theirs = trained.get(fact), facts.get(fact)
        if ours is None or theirs is None or list(ours) == list(theirs):
            continue
        pairs = itertools.zip_longest(ours, theirs, fillvalue="missing")
        place, (mine, other) = next((p, pair) for p, pair in enumerate(pairs) if pair[0] != pair[1])
        is_reordered = len(ours) == len(theirs) and sorted(map(str, ours)) == sorted(map(str, theirs))
        yield class_names.finding(
            context,
            f"the {part.split} part numbers its classes differently from training"
            + (": the same names in another order" if is_reordered else ""),
            causes=("data.label_mapping", "cfg.class_count")[:: 1 if is_reordered else -1],
            split=part.split,
            measured=f"{fact}[{place}] is {other!r} here",
            expected=f"{mine!r}, as in training",
            action="number both parts alike: map labels and names of one to the order of the other",
            evidence={"field": "class names", "looked_at": "the facts of the data sets"},
        )
        return


# --- what the clouds show ---------------------------------------------------------------------------------------------


class _Rooms(NamedTuple):
    """The mean place (3,) of each class of each sample that is labelled point by point."""

    places: list[dict[str, np.ndarray]]
    up: int

    def differences(self, upper: str, lower: str) -> np.ndarray:
        """How far one class lies from another, (rooms, 3), in the rooms that have both."""
        found = [places[upper] - places[lower] for places in self.places if upper in places and lower in places]
        return np.array(found).reshape(-1, 3)


def _of_heights(context: Context, survey: PartStatistics) -> Iterator[Finding]:
    facts = survey.part.dataset.info.facts
    names, up = facts.get("class_names") or (), facts.get("up_axis")
    if up not in ("x", "y", "z") or not {"ceiling", "floor"} <= set(names):
        return
    places = [
        {names[number]: mean for number, mean in zip(each.classes, each.means, strict=True) if 0 <= number < len(names)}
        for each in survey.labellings
        if each.means is not None and np.isfinite(each.means).all()
    ]
    rooms = _Rooms(places, "xyz".index(up))
    finding = _of_axis(context, survey, rooms) or _of_order(context, survey, rooms)
    if finding is not None:
        yield finding


def _of_axis(context: Context, survey: PartStatistics, rooms: _Rooms) -> Finding | None:
    """Ceiling and floor lie apart along another axis, in every room to the same side."""
    apart = rooms.differences("ceiling", "floor")
    if not len(apart):
        return None
    means = np.abs(apart.mean(axis=0))
    axis = int(means.argmax())
    is_one_way = abs(np.sign(apart[:, axis]).sum()) == len(apart)
    if axis == rooms.up or not is_one_way or means[rooms.up] > _CLEARLY * means[axis]:
        return None
    return class_names.finding(
        context,
        f"ceiling and floor lie apart along {'xyz'[axis]}, but the up axis is {'xyz'[rooms.up]}",
        severity="warning",
        causes=("cfg.axis_swap", "data.label_mapping"),
        split=survey.part.split,
        measured=f"mean distance {means[axis]:.4g} along {'xyz'[axis]}, {means[rooms.up]:.4g} along "
        f"{'xyz'[rooms.up]} in {_count(apart)}",
        expected="the ceiling above the floor along the up axis",
        action="correct the fact up_axis, or the order in which coordinates are read",
        evidence={"field": "class names", "looked_at": survey.coverage_text},
    )


def _of_order(context: Context, survey: PartStatistics, rooms: _Rooms) -> Finding | None:
    """Pairs that stand on their heads in most rooms."""
    turned = [pair for pair in _ABOVE if _is_turned(rooms, *pair)]
    exchanged = [pair for pair in _ORDER_B if _is_turned(rooms, *pair)]
    if turned:
        pairs: Sequence[tuple[str, str]] = turned
        detail, action = "", "compare the order of class_names with that of the files, and look at the set as pictures"
    elif len(exchanged) == len(_ORDER_B):
        pairs, detail = exchanged, ": labels in the other public order of S3DIS (table and chair, sofa and bookcase)?"
        action = "give the order of the files, so that names and labels agree; mIoU hides it, figures per class do not"
    else:
        return None
    upper, lower = pairs[0]
    apart = rooms.differences(upper, lower)[:, rooms.up]
    return class_names.finding(
        context,
        f"the class called '{upper}' lies below the one called '{lower}'{detail}",
        severity="warning",
        causes=("data.label_mapping", "cfg.axis_swap"),
        split=survey.part.split,
        measured=f"so in {int((apart < 0).sum())} of {_count(apart)}, by {-np.mean(apart):.4g} on average"
        + (f"; so too {', '.join(f'{one} and {other}' for one, other in pairs[1:4])}" if pairs[1:] else ""),
        expected=f"the mean height of '{upper}' above that of '{lower}'",
        action=action,
        evidence={"field": "class names", "looked_at": survey.coverage_text},
    )


def _is_turned(rooms: _Rooms, upper: str, lower: str) -> bool:
    heights = rooms.differences(upper, lower)[:, rooms.up]
    return len(heights) > 0 and bool((heights < 0).mean() > 0.5) and float(heights.mean()) < 0


def _count(apart: np.ndarray) -> str:
    return f"{len(apart)} room{'' if len(apart) == 1 else 's'}"
