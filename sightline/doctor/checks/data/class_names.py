"""Class names that do not belong to the labels: duplicates, another order in a part, ceilings below floors.

No file states for certain which label is which class. In rooms with a ceiling and a floor, their heights show it.
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
_ALWAYS_ABOVE = (
    ("ceiling", "floor"),
    *(("ceiling", name) for name in ("table", "chair", "sofa", "door", "window", "wall")),
    *((name, "floor") for name in ("table", "chair", "sofa", "door", "window", "wall")),
)
"""Pairs (upper, lower) of classes whose mean heights have this order in every room."""
_USUALLY_ABOVE = (("bookcase", "sofa"), ("table", "chair"))
"""Pairs (upper, lower) that usually hold; the other public class order of S3DIS reverses both of them at once."""
_MAX_UP_SHARE = 0.5  # of the distance along another axis; along the up axis of a room the distance is far larger


@check("G4", "class-names", "preflight", config_path="data")
def class_names(context: Context) -> list[Finding]:
    """Class names are unique, all parts number the classes alike, and in rooms the ceiling is above the floor.

    Finds: Class names that do not belong to the labels: duplicates, another order in a part, ceilings below floors.
    """
    declared = list(_facts_findings(context))
    return declared or [finding for survey in context.statistics for finding in _height_findings(context, survey)]


# --- names of the sets ------------------------------------------------------------------------------------------------


def _facts_findings(context: Context) -> Iterator[Finding]:
    parts = distinct_parts(context.built.data)
    trained = parts[0].dataset.info.facts
    for fact in _NAMES:
        names = trained.get(fact) or ()
        duplicates = sorted({name for name in names if list(names).count(name) > 1})
        if duplicates:
            indices = [number for number, name in enumerate(names) if name == duplicates[0]]
            yield class_names.finding(
                context,
                f"two classes are called '{duplicates[0]}'",
                causes=("data.label_mapping", "cfg.class_count"),
                split=parts[0].split,
                measured=f"{fact}: '{duplicates[0]}' is at the indices {', '.join(map(str, indices))}",
                expected="a different name for each class; metrics per class would omit one of them",
                action=f"correct the fact {fact} of the data set",
                evidence={"field": "class names", "looked_at": "the facts of the data sets"},
            )
    for part in parts[1:]:
        if part.dataset is not parts[0].dataset:
            yield from _part_findings(context, part, trained)


def _part_findings(context: Context, part: DataSubset, trained: Mapping[str, Any]) -> Iterator[Finding]:
    """Find the first list of names that differs from training's, in its order or in its names."""
    facts = part.dataset.info.facts
    for fact in (*_NAMES, "parts_of_category"):
        ours, theirs = trained.get(fact), facts.get(fact)
        if ours is None or theirs is None or list(ours) == list(theirs):
            continue
        pairs = itertools.zip_longest(ours, theirs, fillvalue="missing")
        index, (our_entry, their_entry) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        is_reordered = len(ours) == len(theirs) and sorted(map(str, ours)) == sorted(map(str, theirs))
        yield class_names.finding(
            context,
            f"the {part.split} part numbers its classes differently from training"
            + (": the same names in another order" if is_reordered else ""),
            causes=("data.label_mapping", "cfg.class_count")[:: 1 if is_reordered else -1],
            split=part.split,
            measured=f"{fact}[{index}] is {their_entry!r} here",
            expected=f"{our_entry!r}, as in training",
            action="number both parts alike: map labels and names of one to the order of the other",
            evidence={"field": "class names", "looked_at": "the facts of the data sets"},
        )
        return


# --- what the clouds show ---------------------------------------------------------------------------------------------


class _Rooms(NamedTuple):
    """Mean positions (3,) of the classes of each sample with labelled points, and the index of the up axis."""

    positions: list[dict[str, np.ndarray]]
    up: int

    def differences(self, upper: str, lower: str) -> np.ndarray:
        """Compute mean positions of `upper` minus those of `lower`, (rooms, 3), in the rooms that have both."""
        offsets = [means[upper] - means[lower] for means in self.positions if upper in means and lower in means]
        return np.array(offsets).reshape(-1, 3)


def _height_findings(context: Context, survey: PartStatistics) -> Iterator[Finding]:
    facts = survey.part.dataset.info.facts
    names, up = facts.get("class_names") or (), facts.get("up_axis")
    if up not in ("x", "y", "z") or not {"ceiling", "floor"} <= set(names):
        return
    positions = [
        {
            names[label]: mean
            for label, mean in zip(sample.classes, sample.means, strict=True)
            if 0 <= label < len(names)
        }
        for sample in survey.labellings
        if sample.means is not None and np.isfinite(sample.means).all()
    ]
    rooms = _Rooms(positions, "xyz".index(up))
    finding = _finding_axis(context, survey, rooms) or _finding_order(context, survey, rooms)
    if finding is not None:
        yield finding


def _finding_axis(context: Context, survey: PartStatistics, rooms: _Rooms) -> Finding | None:
    """Find an axis, other than up, along which ceiling and floor are apart, to the same side in every room."""
    offsets = rooms.differences("ceiling", "floor")
    if not len(offsets):
        return None
    means = np.abs(offsets.mean(axis=0))
    axis = int(means.argmax())
    is_one_way = abs(np.sign(offsets[:, axis]).sum()) == len(offsets)
    if axis == rooms.up or not is_one_way or means[rooms.up] > _MAX_UP_SHARE * means[axis]:
        return None
    return class_names.finding(
        context,
        f"ceiling and floor are apart along {'xyz'[axis]}, but the up axis is {'xyz'[rooms.up]}",
        severity="warning",
        causes=("cfg.axis_swap", "data.label_mapping"),
        split=survey.part.split,
        measured=f"mean distance {means[axis]:.4g} along {'xyz'[axis]}, {means[rooms.up]:.4g} along "
        f"{'xyz'[rooms.up]} in {_format_num_rooms(offsets)}",
        expected="the ceiling above the floor along the up axis",
        action="correct the fact up_axis, or the order in which coordinates are read",
        evidence={"field": "class names", "looked_at": survey.coverage_text},
    )


def _finding_order(context: Context, survey: PartStatistics, rooms: _Rooms) -> Finding | None:
    """Find pairs of classes that are upside down in most rooms."""
    upside_down = [pair for pair in _ALWAYS_ABOVE if _is_upside_down(rooms, *pair)]
    exchanged = [pair for pair in _USUALLY_ABOVE if _is_upside_down(rooms, *pair)]
    if upside_down:
        pairs: Sequence[tuple[str, str]] = upside_down
        detail, action = "", "compare the order of class_names with that of the files, and look at pictures of the set"
    elif len(exchanged) == len(_USUALLY_ABOVE):
        pairs, detail = exchanged, ": labels in the other public order of S3DIS (table and chair, sofa and bookcase)?"
        action = "list class_names in the order of the files' labels; mIoU hides the fault, metrics per class do not"
    else:
        return None
    upper, lower = pairs[0]
    offsets = rooms.differences(upper, lower)[:, rooms.up]
    return class_names.finding(
        context,
        f"the class called '{upper}' is below the one called '{lower}'{detail}",
        severity="warning",
        causes=("data.label_mapping", "cfg.axis_swap"),
        split=survey.part.split,
        measured=f"in {int((offsets < 0).sum())} of {_format_num_rooms(offsets)}, by {-np.mean(offsets):.4g} "
        "on average"
        + (f"; likewise {', '.join(f'{one} and {other}' for one, other in pairs[1:4])}" if pairs[1:] else ""),
        expected=f"the mean height of '{upper}' above that of '{lower}'",
        action=action,
        evidence={"field": "class names", "looked_at": survey.coverage_text},
    )


def _is_upside_down(rooms: _Rooms, upper: str, lower: str) -> bool:
    heights = rooms.differences(upper, lower)[:, rooms.up]
    return len(heights) > 0 and bool((heights < 0).mean() > 0.5) and float(heights.mean()) < 0


def _format_num_rooms(offsets: np.ndarray) -> str:
    return f"{len(offsets)} room{'' if len(offsets) == 1 else 's'}"
