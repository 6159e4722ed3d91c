"""Names of classes: unique, alike in all parts, and in rooms in the order of their heights.

No file states for certain which label is which class. In rooms with a ceiling and a floor, their heights show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import PartStatistics, distinct_parts

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


@check("class-names", "preflight", config_path="data")
def class_names(context: Context) -> list[Fault]:
    """Class names are unique, all parts number the classes alike, and in rooms the ceiling is above the floor.

    Finds: Class names that do not belong to the labels: duplicates, another order in a part, ceilings below floors.
    """
    declared = list(_iter_name_faults(context))
    return declared or [fault for survey in context.statistics for fault in _iter_height_faults(survey)]


def _iter_name_faults(context: Context) -> Iterator[Fault]:
    first, *others = distinct_parts(context.built.data)
    trained, evidence = first.dataset.info.facts, {"field": "class names", "looked_at": "the facts of the data sets"}
    for fact in _NAMES:
        names = list(trained.get(fact) or ())
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            indices = [number for number, name in enumerate(names) if name == duplicates[0]]
            yield Fault(
                f"two classes are called '{duplicates[0]}'",
                causes=("data.label_mapping", "cfg.class_count"),
                split=first.split,
                measured=f"{fact}: '{duplicates[0]}' is at the indices {', '.join(map(str, indices))}",
                expected="a different name for each class; metrics per class would omit one of them",
                action=f"correct the fact {fact} of the data set",
                evidence=evidence,
            )
    for part in others:
        facts = part.dataset.info.facts
        lists: dict[str, Any] = {f: (trained.get(f), facts.get(f)) for f in (*_NAMES, "parts_of_category")}
        differing = [fact for fact, (ours, theirs) in lists.items() if _is_other_list(ours, theirs)]
        for fact in differing[:1]:
            ours, theirs = lists[fact]
            pairs = itertools.zip_longest(ours, theirs, fillvalue="missing")
            index, (our_entry, their_entry) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            is_reordered = len(ours) == len(theirs) and sorted(map(str, ours)) == sorted(map(str, theirs))
            yield Fault(
                f"the {part.split} part numbers its classes differently from training"
                + (": the same names in another order" if is_reordered else ""),
                causes=("data.label_mapping", "cfg.class_count")[:: 1 if is_reordered else -1],
                split=part.split,
                measured=f"{fact}[{index}] is {their_entry!r} here",
                expected=f"{our_entry!r}, as in training",
                action="number both parts alike: map labels and names of one to the order of the other",
                evidence=evidence,
            )


def _is_other_list(ours: Any, theirs: Any) -> bool:
    return ours is not None and theirs is not None and list(ours) != list(theirs)


# --- what the clouds show ---------------------------------------------------------------------------------------------


class _Rooms(NamedTuple):
    """Mean positions (3,) of the classes of each sample with labelled points, and the index of the up axis."""

    positions: list[dict[str, np.ndarray]]
    up: int

    def differences(self, upper: str, lower: str) -> np.ndarray:
        """Compute mean positions of `upper` minus those of `lower`, (rooms, 3), in the rooms that have both."""
        offsets = [means[upper] - means[lower] for means in self.positions if upper in means and lower in means]
        return np.array(offsets).reshape(-1, 3)


def _iter_height_faults(survey: PartStatistics) -> Iterator[Fault]:
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
    fault = _judge_axis(rooms) or _judge_order(rooms)
    if fault is not None:
        evidence = {"field": "class names", "looked_at": survey.coverage_text}
        yield replace(fault, severity="warning", split=survey.part.split, evidence=evidence)


def _judge_axis(rooms: _Rooms) -> Fault | None:
    """Find an axis, other than up, along which ceiling and floor are apart, to the same side in every room."""
    offsets = rooms.differences("ceiling", "floor")
    if not len(offsets):
        return None
    means = np.abs(offsets.mean(axis=0))
    axis = int(means.argmax())
    is_one_way = abs(np.sign(offsets[:, axis]).sum()) == len(offsets)
    if axis == rooms.up or not is_one_way or means[rooms.up] > _MAX_UP_SHARE * means[axis]:
        return None
    return Fault(
        f"ceiling and floor are apart along {'xyz'[axis]}, but the up axis is {'xyz'[rooms.up]}",
        causes=("cfg.axis_swap", "data.label_mapping"),
        measured=f"mean distance {means[axis]:.4g} along {'xyz'[axis]}, {means[rooms.up]:.4g} along "
        f"{'xyz'[rooms.up]} in {_format_num_rooms(offsets)}",
        expected="the ceiling above the floor along the up axis",
        action="correct the fact up_axis, or the order in which coordinates are read",
    )


def _judge_order(rooms: _Rooms) -> Fault | None:
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
    return Fault(
        f"the class called '{upper}' is below the one called '{lower}'{detail}",
        causes=("data.label_mapping", "cfg.axis_swap"),
        measured=f"in {int((offsets < 0).sum())} of {_format_num_rooms(offsets)}, by {-np.mean(offsets):.4g} "
        "on average"
        + (f"; likewise {', '.join(f'{one} and {other}' for one, other in pairs[1:4])}" if pairs[1:] else ""),
        expected=f"the mean height of '{upper}' above that of '{lower}'",
        action=action,
    )


def _is_upside_down(rooms: _Rooms, upper: str, lower: str) -> bool:
    heights = rooms.differences(upper, lower)[:, rooms.up]
    return len(heights) > 0 and bool((heights < 0).mean() > 0.5) and float(heights.mean()) < 0


def _format_num_rooms(offsets: np.ndarray) -> str:
    return f"{len(offsets)} room{'' if len(offsets) == 1 else 's'}"
