"""The table of what readers of 3D boxes remark: a trap, what is measured of it, and the sentence that says it.

Numbers of traps are those of the specification of 3D boxes. A measurement returns what its sentence needs, or None
where nothing is to be said.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sightline.contract.errors import join_some
from sightline.store.boxes3d.count_test import MIN_MORE, Hypothesis, format_reading
from sightline.store.boxes3d.survey import MAX_PILLARS, NUM_SECTORS, BoxSurvey, is_outside

__all__ = ["TRAPS", "Trap", "list_remarks"]

Measured: TypeAlias = Mapping[str, Any] | None
_FULL_TURN = 6.2931853
"""Radians of a turn, and a hundredth."""
_MAX_ABOVE_GROUND_M = 0.3
_MIN_GROUNDED = 3
_MIN_TESTED_FRAMES = 20
_ENOUGH_BOXES = 41
"""Boxes of a class from which KITTI's AP can reach 1."""
_MIN_DIRECTED = 20
"""Boxes from which their directions say where labels are."""
_MAX_SECTORS = 3
_MIN_SECTOR_SHARE = 0.01
"""Share of the points that a sector has at least in which the sensor sees."""
_MAX_RATIO = 10.0
_MAX_LOST = 0.01
_MIN_LEAKED = 0.5
_MAX_COMMON = 0.5
"""Share of the boxes of a class that have the same sizes, above which equal sizes say nothing."""


class Trap(NamedTuple):
    """A trap: its number, the measurement, and the sentence with the names of what was measured."""

    number: str
    measure: Callable[[BoxSurvey], Measured]
    sentence: str


def _measure_reading(survey: BoxSurvey) -> Measured:
    """T1: another reading puts more points into the boxes than the stated one."""
    choice = survey.choice
    if choice.better is None:
        return None
    more, count = choice.count_of(choice.better), choice.count
    words = {*format_reading(choice.taken.reading).split(), f"form={choice.counted_form}"}
    changed = [word for word in _words(choice.better) if word not in words]
    return {"count": count, "more": more, "taken": format_reading(choice.taken.reading), "other": " ".join(changed)}


def _words(hypothesis: Hypothesis) -> list[str]:
    return [f"form={hypothesis.form}", *format_reading(hypothesis.reading).split()]


def _measure_angles(survey: BoxSurvey) -> Measured:
    """T2: radians beyond a turn."""
    is_radian = survey.choice.taken.reading.unit == "rad"
    return {"angle": survey.largest_angle} if is_radian and survey.largest_angle > _FULL_TURN else None


def _measure_image_boxes(survey: BoxSurvey) -> Measured:
    """T3: image boxes that are placeholders."""
    count, num_unset = survey.image_rows
    return {"unset": num_unset, "count": count} if num_unset else None


def _measure_scored(survey: BoxSurvey) -> Measured:
    """T4: few boxes in the test part of a set that is no trial."""
    tested = [survey.tables[name] for name, split in survey.splits.items() if split == "test"]
    if len(survey.splits) < _MIN_TESTED_FRAMES or not tested:
        return None
    counts = Counter(int(each) for table in tested for each in table.label[~table.is_ignored])
    few = [
        f"{name} {counts[index]} ({max(counts[index] - 1, 0) / 40:.0%})"
        for index, name in enumerate(survey.class_names)
        if counts[index] < _ENOUGH_BOXES
    ]
    return {"few": join_some(few, most=5)} if few else None


def _measure_names(survey: BoxSurvey) -> Measured:
    """T5: names of classes that differ in case or blanks alone."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in survey.class_names:
        groups[re.sub(r"[\s_-]+", "", name).lower()].append(name)
    alike = [" and ".join(names) for names in groups.values() if len(names) > 1]
    return {"alike": join_some(alike, most=4)} if alike else None


def _measure_ground(survey: BoxSurvey) -> Measured:
    """T6: bottoms of a class that are far from the ground beside them."""
    heights: defaultdict[int, list[float]] = defaultdict(list)
    for frame in survey.frames:
        table = survey.tables[frame.name]
        for label, height in zip(table.label.tolist(), frame.above_ground_m.tolist(), strict=True):
            if label >= 0 and np.isfinite(height):
                heights[label].append(height)
    far = [
        f"{survey.class_names[label]} {np.median(values):+.2f} m (median of {len(values)})"
        for label, values in sorted(heights.items())
        if len(values) >= _MIN_GROUNDED and abs(np.median(values)) > _MAX_ABOVE_GROUND_M
    ]
    return {"far": join_some(far, most=5)} if far else None


def _measure_range(survey: BoxSurvey) -> Measured:
    """T7: boxes outside of the stated range, and points that its z leaves out."""
    if not survey.is_range_stated:
        return None
    outside = is_outside(survey.boxes, survey.range_m)
    low = np.median([frame.share_outside_z for frame in survey.frames]) if survey.frames else 0.0
    if not outside.any() and low <= 0.5:
        return None
    return {"outside": int(outside.sum()), "count": len(outside), "share": f"{low:.0%}"}


def _measure_columns(survey: BoxSurvey) -> Measured:
    """T13: raw files that other columns fit better."""
    stated, fitting = survey.bin_columns
    return {"stated": stated, "fitting": fitting} if fitting else None


def _measure_remission(survey: BoxSurvey) -> Measured:
    """T14: remissions of frames on different scales, or beyond what they are divided by."""
    quantiles = {
        frame.name: frame.remission[2] for frame in survey.frames if frame.remission and frame.remission[2] > 0
    }
    if not quantiles:
        return None
    least, most = min(quantiles, key=quantiles.__getitem__), max(quantiles, key=quantiles.__getitem__)
    high = max(frame.remission[3] for frame in survey.frames if frame.remission)
    scale = survey.remission_max
    if quantiles[most] <= _MAX_RATIO * quantiles[least] and high <= scale * (1 + 1e-6):
        return None
    return {
        "least": f"{quantiles[least]:.3g} in {least}",
        "most": f"{quantiles[most]:.3g} in {most}",
        "high": f"{high:.4g}",
        "scale": f"{scale:g}",
    }


def _measure_directions(survey: BoxSurvey) -> Measured:
    """T15: points all around and boxes ahead alone, or boxes where there are no points."""
    boxes = survey.boxes
    if len(boxes) < _MIN_DIRECTED or not survey.frames:
        return None
    azimuth = np.arctan2(boxes[:, 1], boxes[:, 0])
    sectors = ((azimuth + np.pi) / (2 * np.pi) * NUM_SECTORS).astype(np.int64).clip(0, NUM_SECTORS - 1)
    with_boxes = set(np.unique(sectors).tolist())
    points = np.sum([frame.directions for frame in survey.frames], axis=0)
    with_points = set(np.flatnonzero(points >= _MIN_SECTOR_SHARE * points.sum()).tolist())
    blind = int(np.isin(sectors, [*(set(range(NUM_SECTORS)) - with_points)]).sum())
    if blind > 0.1 * len(boxes):
        return {"what": f"{blind} of {len(boxes)} boxes are in directions without points", "advice": "leave them out"}
    if len(with_points) == NUM_SECTORS and len(with_boxes) <= _MAX_SECTORS:
        what = f"points are all around, all {len(boxes)} boxes in {len(with_boxes)} of {NUM_SECTORS} directions"
        return {
            "what": what,
            "advice": "what is not labelled is trained as background: cut the clouds by azimuth_deg, as [-45, 45]",
        }
    return None


def _measure_leaks(survey: BoxSurvey) -> Measured:
    """T22: test frames beside training frames with the same objects."""
    numbered = {_split_number(name): name for name in survey.splits}
    test = [name for name, split in survey.splits.items() if split in ("test", "validation")]
    common = _find_common_sizes(survey)
    leaked = []
    for name in test:
        stem, number = _split_number(name)
        beside = [numbered.get((stem, number + step), "") for step in (-1, 1)] if number >= 0 else []
        trained = [other for other in beside if other and survey.splits[other] == "train"]
        mine = _list_sizes(survey, name) - common
        if any(mine & _list_sizes(survey, other) for other in trained):
            leaked.append(name)
    if len(leaked) < 2 or len(leaked) < _MIN_LEAKED * len(test):
        return None
    return {"count": len(leaked), "all": len(test), "names": join_some(leaked, most=3)}


def _split_number(name: str) -> tuple[str, int]:
    """Return a name without its last number, and the number, -1 without one."""
    match = re.search(r"(\d+)(\D*)$", name)
    return (name, -1) if match is None else (name[: match.start()] + match[2], int(match[1][:18]))


def _list_sizes(survey: BoxSurvey, name: str) -> set[tuple[int, ...]]:
    """Return class and sizes in mm of the boxes of a frame."""
    table = survey.tables[name]
    sizes = np.round(table.boxes[:, 3:6] * 1000).astype(np.int64).tolist()
    return {(label, *size) for label, size in zip(table.label.tolist(), sizes, strict=True)}


def _find_common_sizes(survey: BoxSurvey) -> set[tuple[int, ...]]:
    """Return class and sizes that many frames have: boxes of one size for all objects of a class."""
    counts = Counter(size for name in survey.splits for size in _list_sizes(survey, name))
    return {size for size, count in counts.items() if count > max(2, _MAX_COMMON * len(survey.splits))}


def _measure_pillars(survey: BoxSurvey) -> Measured:
    """T23: frames with more pillars than the usual limit."""
    lost = {frame.name: frame.share_dropped for frame in survey.frames if frame.share_dropped > _MAX_LOST}
    if not lost:
        return None
    worst = max(lost, key=lost.__getitem__)
    most = max(frame.num_pillars for frame in survey.frames)
    shown = {"count": len(lost), "all": len(survey.frames), "worst": f"{lost[worst]:.1%} in {worst}"}
    return {**shown, "limit": MAX_PILLARS, "most": most, "side": f"{survey.pillar_m:g}"}


TRAPS = (
    Trap(
        "T1",
        _measure_reading,
        "boxes are read as {taken} with {count} points inside; {other} puts {more} inside, more than "
        f"{MIN_MORE:.0%} beyond: state it if the tool writes so",
    ),
    Trap("T2", _measure_angles, "angles run to {angle:.4g}, beyond a turn of radians: are they degrees? yaw_unit=deg"),
    Trap(
        "T3",
        _measure_image_boxes,
        "{unset} of {count} boxes have a placeholder for the box in the image: KITTI's scores are void in the image, "
        "and count none of them at all where its height is 0; score them by boxes3d_ap",
    ),
    Trap(
        "T4",
        _measure_scored,
        "few boxes are tested: {few} is the most that KITTI's AP at 40 recalls can be; test more frames, or score by "
        "boxes3d_ap",
    ),
    Trap(
        "T5", _measure_names, "names of classes differ in case or blanks alone: {alike}; a score takes them for others"
    ),
    Trap(
        "T6",
        _measure_ground,
        "bottoms of boxes are far from the ground beside them: {far}; is z a centre or a bottom, of this sensor?",
    ),
    Trap(
        "T7",
        _measure_range,
        "the range leaves out {outside} of {count} boxes, and its z {share} of the points within its x and y (median): "
        "widen it, or leave range_m out to have it proposed",
    ),
    Trap(
        "T13",
        _measure_columns,
        "raw files are read with {stated} columns, and {fitting} fit their numbers better: state them by columns=[...]",
    ),
    Trap(
        "T14",
        _measure_remission,
        "99 % of the remissions are up to {least}, and up to {most} (largest {high}, divided by {scale}): bring "
        "them to one scale, or state remission_max",
    ),
    Trap("T15", _measure_directions, "{what}: {advice}"),
    Trap(
        "T22",
        _measure_leaks,
        "{count} of {all} frames that are evaluated have boxes of the same class and sizes as a neighbour that is "
        "trained on ({names}): split by drives or by time",
    ),
    Trap(
        "T23",
        _measure_pillars,
        "{count} of {all} frames have more than {limit:,} pillars of {side} m (at most {most:,}): a network with that "
        "limit loses {worst} of the points; take more pillars, or larger ones",
    ),
)
"""What readers, `data info` and `data prepare` remark, in the order of the traps."""


def list_remarks(survey: BoxSurvey) -> list[str]:
    """Return the sentences of all traps that a set has, each behind the number of its trap."""
    measured = ((trap, trap.measure(survey)) for trap in TRAPS)
    return [f"{trap.number}: {trap.sentence.format(**values)}" for trap, values in measured if values is not None]
