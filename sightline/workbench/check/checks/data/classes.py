"""Checks of classes: balance, names, labels that do not belong to their samples.

No file states for certain which label is which class. In rooms with a ceiling and a floor, their heights show it.

The range jumps at the edges of objects, and most changes of the label between neighbouring pixels are at such edges.
Labels of another scan change as often, but at other pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import join_some
from sightline.workbench.check.checks.data.projection_coverage import PartImages, images_by_part
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import ClassCounts, PartStatistics, distinct_parts

_MAX_LISTED_UNTRAINED = 5
_MIN_CLASSES, _MIN_PER_CLASS = 3, 20
_BACKGROUND = frozenset({"background", "__background__", "_background_", "bg", "none"})


@check(
    "G38",
    "untrained-class",
    "preflight",
    severity="warning",
    causes=("data.split", "data.label_mapping", "data.sampling"),
    config_path="data",
)
def untrained_class(context: Context) -> Iterator[Fault]:
    """Every class of an evaluated part occurs in training; judged only if the training part is fully counted.

    Finds: Evaluated classes without training samples; classes of boxes that count from 1.

    The first class of boxes is not background, and is not the only one of several that never occurs.
    """
    trained, *evaluated = context.class_counts
    if trained is not None and context.statistics[0].boxed and _is_shifted(context, trained.targets):
        yield Fault(
            f"no box has the class {class_display_name(context, 0)}: labels count from 1?",
            causes=("data.label_mapping", "cfg.class_count"),
            split="train",
            measured=f"0 of {trained.targets.sum()} boxes, {trained.targets[-1]} of the last, {trained.looked_at}",
            expected=f"labels from 0 to {len(trained.targets) - 1}, and no class for background",
            action="subtract 1 from the labels, or map category ids to indices of class_names",
        )
    elif trained is not None and trained.is_whole:
        for counts in evaluated:
            if counts is not None:
                yield from _untrained_faults(context, trained, counts)


def _is_shifted(context: Context, targets: np.ndarray) -> bool:
    name = (context.built.data.facts.get("class_names") or ("",))[0]
    is_many = len(targets) >= _MIN_CLASSES and targets.sum() >= _MIN_PER_CLASS * len(targets)
    is_only = is_many and bool((targets[1:] > 0).all())
    return bool(targets[0] == 0 < targets.sum()) and (is_only or name.lower() in _BACKGROUND)


def class_display_name(context: Context, number: int) -> str:
    """Return the number and name of a class, or only its number if it has no name."""
    names = context.built.data.facts.get("class_names") or ()
    return f"{number} ({names[number]})" if number < len(names) else str(number)


def _untrained_faults(context: Context, trained: ClassCounts, evaluated: ClassCounts) -> Iterator[Fault]:
    if len(trained.targets) != len(evaluated.targets):
        return
    missing = np.flatnonzero((trained.targets == 0) & (evaluated.targets > 0)).tolist()
    if not missing:
        return
    listed = join_some([class_display_name(context, number) for number in missing], most=_MAX_LISTED_UNTRAINED)
    share = evaluated.targets[missing].sum() / evaluated.targets.sum()
    yield Fault(
        f"the {evaluated.split} part has {'a class' if len(missing) == 1 else f'{len(missing)} classes'} "
        f"without training samples: {listed}",
        split=evaluated.split,
        measured="; ".join(
            f"class {class_display_name(context, number)}: 0 of {trained.targets.sum()} training targets, "
            f"{evaluated.targets[number]} of {evaluated.targets.sum()} here"
            for number in missing[:_MAX_LISTED_UNTRAINED]
        )
        + f"; {share:.2%} of these targets cannot be predicted",
        expected="each class that is evaluated among the training samples",
        action="split the data so that each part has every class (shuffled or stratified), or leave the class out",
        evidence={"missing": missing, "looked_at": evaluated.looked_at},
    )


_MAX_LISTED = 3
_MIN_IMBALANCE = 1.1
"""Ratio of the most frequent class to the rarest one at which shares are reported."""


@check(
    "G38",
    "class-balance",
    "preflight",
    is_quick=False,
    severity="note",
    causes=("data.imbalance", "data.sampling", "data.split"),
    config_path="data",
)
def class_balance(context: Context) -> Fault | None:
    """Nothing must hold: a note lists each class's share in each part, as imbalance is a fact, not a fault.

    Finds: Classes with unequal shares of the targets, and classes without a target in a part.
    """
    censuses = [census for census in context.class_counts if census is not None and census.targets.sum() > 0]
    training = next((census for census in censuses if census.split == "train"), None)
    if training is None or len(training.targets) == 1:
        return None
    shares = training.targets / training.targets.sum()
    present = [number for number in np.argsort(-shares, kind="stable").tolist() if shares[number] > 0]
    rare, frequent = shares[present[-1]], shares[present[0]]
    absences = _describe_absences(context, censuses)
    if frequent < _MIN_IMBALANCE * rare and not absences:
        return None
    return Fault(
        f"classes have {rare:.2%} to {frequent:.2%} of the training {name_unit(context, training)}, "
        f"1 : {frequent / rare:.3g}{absences}",
        split="train",
        measured=_describe_extremes(context, training, present),
        expected="nothing; if rare classes matter, weight the loss or look at their metrics",
        action="read evidence.classes for every class (--json), and the metrics per class of `sightline evaluate`",
        evidence={
            "classes": _tabulate_classes(context, censuses),
            "looked_at": "; ".join(census.looked_at for census in censuses),
        },
    )


def _describe_extremes(context: Context, training: ClassCounts, present: Sequence[int]) -> str:
    """Describe the most frequent and the rarest classes with their counts."""
    is_all = len(present) <= 2 * _MAX_LISTED
    listed = present if is_all else [*present[:_MAX_LISTED], *present[-_MAX_LISTED:]]
    entries = []
    for number in listed:
        samples_text = "" if name_unit(context, training) == "samples" else f" in {training.samples[number]} samples"
        entries.append(f"{class_display_name(context, number)}: {training.targets[number]}{samples_text}")
    if not is_all:
        entries.insert(_MAX_LISTED, "..")
    return ", ".join(entries)


def name_unit(context: Context, census: ClassCounts) -> str:
    """Return the unit that targets count: "boxes", "samples" or "points"."""
    if any(survey.boxed for survey in context.statistics):
        return "boxes"
    return "samples" if (census.targets == census.samples).all() else "points"


def _describe_absences(context: Context, censuses: Sequence[ClassCounts]) -> str:
    """Describe the classes that a part lacks, and the samples with a single class."""
    text = ""
    for census in censuses:
        absent = np.flatnonzero(census.targets == 0).tolist()
        if absent:
            names = join_some([class_display_name(context, number) for number in absent], most=_MAX_LISTED)
            text += f"; {census.split} has no {names}"
        if census.num_single:
            text += f"; {census.num_single} of {census.num_labelled} samples of {census.split} have a single class"
    return text


def _tabulate_classes(context: Context, censuses: Sequence[ClassCounts]) -> dict[str, dict[str, list[int]]]:
    """Build the table class -> part -> [number of targets, number of samples with the class]."""
    num_classes = min(len(census.targets) for census in censuses)
    return {
        class_display_name(context, number): {
            census.split: [int(census.targets[number]), int(census.samples[number])] for census in censuses
        }
        for number in range(num_classes)
    }


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


_MIN_JUMP = 1.1
"""Ratio of neighbouring ranges; on flat ground neighbours in a row differ by some thousandths."""
_MIN_CHANGES = 60
"""Number of changes of the label; with fewer, as in scans of one class, nothing is reported."""
_MIN_CHANCE_RATIO, _MIN_EXCESS = 5.0, 0.15
"""Share of label changes that are at jumps: as a multiple of chance, and in excess of chance.

Real scans of KITTI have 14 to 57 and 0.23 to 0.67, with labels of another scan 0.6 to 6.7 and -0.01 to 0.14.
"""


class _Pairs(NamedTuple):
    """Counts of pairs of neighbouring pixels in a row that are both filled and labelled."""

    num_pairs: float
    num_jumps: float
    num_changes: float
    num_both: float


@check(
    "G2",
    "mismatched-labels",
    "preflight",
    each=images_by_part,
    severity="warning",
    causes=("data.pairing", "data.ordering"),
    config_path="data",
)
def mismatched_labels(context: Context, images: PartImages) -> Fault | None:
    """Labels of range images change at range jumps five times as often as by chance, or 15 % more of them.

    Finds: Labels of another scan, or in another order than the points: they change where the range does not.
    """
    pairs = _count_pairs(images, context.built.data.facts.get("ignore_index"))
    if not _is_by_chance(pairs):
        return None
    chance, share = pairs.num_jumps / pairs.num_pairs, pairs.num_both / pairs.num_changes
    return Fault(
        "labels do not fit the points: the label does not change at the edges of objects",
        measured=f"the range jumps at {share:.1%} of {pairs.num_changes:.0f} changes of the label in "
        f"{images.num_scans} scans, and at {chance:.1%} of all neighbouring pixels",
        expected=f"at least {_MIN_CHANCE_RATIO:g} times as often at changes of the label, or at {_MIN_EXCESS:.0%} more",
        action="check that labels belong to the scan of the same name, one per point and in the order of the "
        "points: `sightline view`",
        evidence={"field": "label", **pairs._asdict()},
    )


def _count_pairs(images: PartImages, ignored: int | None) -> _Pairs:
    ranges = images.range_image
    label: Tensor = torch.cat([batch["label"] for batch in images.batches if "label" in batch] or [ranges * 0]).cpu()
    is_labelled = (ranges > 0) & (label != (-1 if ignored is None else ignored))
    is_pair = is_labelled[..., 1:] & is_labelled[..., :-1]
    nearer, farther = (pick(ranges[..., 1:], ranges[..., :-1]) for pick in (torch.minimum, torch.maximum))
    is_jump = is_pair & (farther > _MIN_JUMP * nearer)
    is_change = is_pair & (label[..., 1:] != label[..., :-1])
    return _Pairs(*(float(mask.sum()) for mask in (is_pair, is_jump, is_change, is_jump & is_change)))


def _is_by_chance(pairs: _Pairs) -> bool:
    """Return True if too few label changes are at jumps, even with two standard deviations more of them."""
    if pairs.num_changes < _MIN_CHANGES or not pairs.num_jumps:
        return False
    max_share = (pairs.num_both + 2 * pairs.num_both**0.5 + 2) / pairs.num_changes
    chance = pairs.num_jumps / pairs.num_pairs
    return max_share < _MIN_CHANCE_RATIO * chance and (max_share - chance) / (1 - chance) < _MIN_EXCESS
