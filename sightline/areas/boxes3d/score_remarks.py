"""What figures of 3D boxes hide: one table of traps, each with its measurement and its sentence.

`score` prints them, and `report` reads them from what an evaluation has written. Those that make a score
meaningless, T25 and T27, are errors: `scoring.py` raises their sentences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sightline.contract.errors import join_some

__all__ = ["REMARKS", "FrameIds", "KittiLabels", "MatchedPairs", "StatedNames", "list_remarks"]


class KittiLabels(NamedTuple):
    """What KITTI's rules made of all labels: rows of `by_difficulty`, and image columns of detections and labels.

    `detections` (D, 5) and `truths` (T, 7) as in `metrics.rows.ImageColumn`, of labels that are not ignored; none where
    images decide on nothing.
    """

    rows: Mapping[str, Mapping[str, Any]]
    detections: np.ndarray = np.zeros((0, 5))
    truths: np.ndarray = np.zeros((0, 7))


class MatchedPairs(NamedTuple):
    """Boxes (N, 7) of one class that were detected, each beside that of its label."""

    name: str
    detected: np.ndarray
    labelled: np.ndarray


class StatedNames(NamedTuple):
    """Names of classes in files of detections with the number of boxes, and those of the data set."""

    found: Mapping[str, int]
    known: Sequence[str]
    neighbours: Sequence[str] = ()


class FrameIds(NamedTuple):
    """Ids of frames in files of detections, and of the data set's frames that are scored."""

    found: Sequence[str]
    wanted: Sequence[str]


Subject = KittiLabels | MatchedPairs | StatedNames | FrameIds
Facts = Iterator[dict[str, Any]]


class Remark(NamedTuple):
    """A trap: `measure` yields for each alarm the numbers that complete `sentence`."""

    trap: str
    of: type
    measure: Callable[..., Facts]
    sentence: str


_MIN_PAIRS = 10
_MIN_REVERSED, _MAX_AXIS_RAD = 0.35, 0.5
"""Share of headings that point backwards, and the mean error of their lines, from which a convention is at fault."""
_MIN_SIZE_ERROR, _TIMES_SMALLER = 0.25, 2.0
"""Error of sizes from which another order of them is suspected, if that is so many times smaller."""
_ALLOWS_ALL = 41
"""Labels from which KITTI's AP can be 1."""


def list_remarks(subject: Subject) -> list[str]:
    """Return the sentences of all traps of the table that a subject is in."""
    return [
        remark.sentence.format(**facts)
        for remark in REMARKS
        if isinstance(subject, remark.of)
        for facts in remark.measure(subject)
    ]


def _boxless_labels(labels: KittiLabels) -> Facts:
    is_flat = ~(labels.truths[:, 3] - labels.truths[:, 1] > 0)
    if is_flat.sum() * 2 > len(is_flat):
        yield {"count": int(is_flat.sum()), "total": len(is_flat)}


def _uncounted_labels(labels: KittiLabels) -> Facts:
    for name, row in labels.rows.items():
        why = row["not_counted"]
        if not row["count"] and why and why.get("no image box", 0) * 2 <= sum(why.values()):
            yield {"name": name, "why": ", ".join(f"{count} {reason}" for reason, count in why.items())}


def _boxless_detections(labels: KittiLabels) -> Facts:
    is_flat = ~(np.abs(labels.detections[:, 3] - labels.detections[:, 1]) > 0)
    if is_flat.sum() * 2 > len(is_flat):
        yield {"count": int(is_flat.sum()), "total": len(is_flat)}


def _equal_image_boxes(labels: KittiLabels) -> Facts:
    for noun, rows in (("labels", labels.truths), ("detections", labels.detections)):
        corners = rows[:, :4][(rows[:, 3] > rows[:, 1])]
        if len(corners) < 2:
            continue
        boxes, counts = np.unique(corners, axis=0, return_counts=True)
        if counts.max() * 2 > len(corners) and counts.max() > 1:
            box = " ".join(f"{value:g}" for value in boxes[counts.argmax()])
            yield {"count": int(counts.max()), "total": len(corners), "noun": noun, "box": box}


def _low_ceilings(labels: KittiLabels) -> Facts:
    for name in dict.fromkeys(title.rpartition(", ")[0] for title in labels.rows):
        rows = {title.rpartition(", ")[2]: row for title, row in labels.rows.items() if title.startswith(f"{name}, ")}
        few = {difficulty: row for difficulty, row in rows.items() if 0 < row["count"] < _ALLOWS_ALL}
        if few:
            listed = [
                f"{row['count']} {difficulty} (at most {row['ceiling_r40']:.4g} at 40 recalls, "
                f"{row['ceiling_r11']:.4g} at 11)"
                for difficulty, row in few.items()
            ]
            yield {"name": name, "listed": ", ".join(listed)}


def _cut_names(names: StatedNames) -> Facts:
    for name, count in names.found.items():
        whole = [known for known in names.known if name and known != name and known.startswith(name)]
        if name not in names.known and name not in names.neighbours and len(whole) == 1:
            yield {"name": name, "count": count, "whole": whole[0], "length": len(name)}


def _unknown_names(names: StatedNames) -> Facts:
    cut = {facts["name"] for facts in _cut_names(names)}
    unknown = [name for name in names.found if name not in {*names.known, *names.neighbours, *cut}]
    if unknown:
        listed = join_some([f"'{name}' ({names.found[name]} boxes)" for name in unknown], most=6)
        yield {"listed": listed, "known": ", ".join(names.known)}


def _reversed_headings(pairs: MatchedPairs) -> Facts:
    full, axis = yaw_errors(pairs.detected[:, 6], pairs.labelled[:, 6])
    count = int((full > math.pi / 2).sum())
    if len(full) >= _MIN_PAIRS and count / len(full) >= _MIN_REVERSED and axis.mean() < _MAX_AXIS_RAD:
        yield {"name": pairs.name, "count": count, "total": len(full), "full": full.mean(), "axis": axis.mean()}


def _swapped_sizes(pairs: MatchedPairs) -> Facts:
    if len(pairs.detected) < _MIN_PAIRS:
        return
    sizes, labelled = pairs.detected[:, 3:6], pairs.labelled[:, 3:6]
    errors = {order: size_errors(sizes[:, order], labelled).mean() for order in itertools.permutations(range(3))}
    plain, best = errors[0, 1, 2], min(errors, key=errors.__getitem__)
    if plain >= _MIN_SIZE_ERROR and errors[best] * _TIMES_SMALLER <= plain:
        read = ", ".join(("length", "width", "height")[best.index(column)] for column in range(3))
        yield {"name": pairs.name, "plain": plain, "best": errors[best], "order": read, "total": len(sizes)}


def _numbered_frames(ids: FrameIds) -> Facts:
    missing = set(ids.wanted) - set(ids.found)
    numbers = [int(name) for name in ids.found if name.isascii() and name.isdigit()]
    is_counted = len(numbers) == len(ids.found) == len(ids.wanted) and sorted(numbers) == [*range(len(numbers))]
    if missing and is_counted:
        yield {"count": len(numbers), "last": len(numbers) - 1, "wanted": join_some(sorted(ids.wanted), most=3)}


def _missing_frames(ids: FrameIds) -> Facts:
    missing = [name for name in ids.wanted if name not in set(ids.found)]
    if missing and not any(_numbered_frames(ids)):
        found = join_some(sorted(ids.found), most=3) or "none"
        yield {"count": len(missing), "total": len(ids.wanted), "missing": join_some(missing, most=5), "found": found}


def yaw_errors(detected: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the differences (N,) of headings, 0 to pi, and of the lines along them, 0 to pi / 2, in radians."""
    turned = np.abs((detected - labelled + math.pi) % (2 * math.pi) - math.pi)
    return turned, np.minimum(turned, math.pi - turned)


def size_errors(detected: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Return 1 - IoU (N,) of sizes (N, 3) whose boxes are laid on one another."""
    shared = np.minimum(detected, labelled).prod(axis=1)
    return 1 - shared / (detected.prod(axis=1) + labelled.prod(axis=1) - shared)


REMARKS = (
    Remark(
        "T3",
        KittiLabels,
        _boxless_labels,
        "{count} of {total} labels have no image box, or one of no height: KITTI's rules do not count them, and AP is "
        "0 or missing at any quality; state image boxes, or score by boxes3d_ap, or kitti_ap with images: false",
    ),
    Remark(
        "T3",
        KittiLabels,
        _boxless_detections,
        "{count} of {total} detections have no image box, or one of no height: KITTI's rules ignore them, so that no "
        "label is found; write image boxes, or score by boxes3d_ap, or kitti_ap with images: false",
    ),
    Remark(
        "T3",
        KittiLabels,
        _equal_image_boxes,
        "{count} of {total} {noun} have the same image box {box}: AP in the image and AOS mean nothing, and sizes in "
        "the image decide on no difficulty; read AP of volumes and from above alone",
    ),
    Remark("T3", KittiLabels, _uncounted_labels, "no label of '{name}' counts, so that it has no AP: {why}"),
    Remark(
        "T4",
        KittiLabels,
        _low_ceilings,
        "'{name}': so few labels count that no detector reaches 1: {listed}; compare with these, or by boxes3d_ap",
    ),
    Remark(
        "T5",
        StatedNames,
        _cut_names,
        "{count} boxes of the class '{name}' are not scored: it looks like '{whole}', cut to {length} letters by an "
        "array of short texts; write whole names",
    ),
    Remark(
        "T5",
        StatedNames,
        _unknown_names,
        "boxes of other classes than the data set's ({known}) are not scored: {listed}; names are compared letter by "
        "letter",
    ),
    Remark(
        "T16",
        MatchedPairs,
        _reversed_headings,
        "'{name}': {count} of {total} found boxes point backwards: the error of yaw is {full:.3g} rad modulo 360 "
        "degrees and {axis:.3g} modulo 180; overlaps do not see it: mind the half-turn, or the direction class",
    ),
    Remark(
        "T16",
        MatchedPairs,
        _swapped_sizes,
        "'{name}': the error of sizes (1 - IoU) of {total} found boxes is {plain:.2f}, and {best:.2f} if dx, dy, dz "
        "are read as {order}; write length, width, height",
    ),
    Remark(
        "T25",
        FrameIds,
        _missing_frames,
        "no results of {count} of {total} frames: {missing}; found are {found}. Frames are matched by id, never by "
        "position: write a file, or an entry, for each frame, an empty one where nothing is found",
    ),
    Remark(
        "T27",
        FrameIds,
        _numbered_frames,
        "results are numbered by position, 0 to {last}, and the {count} frames are {wanted}: store the frame's own id "
        "with each result, not its place in the split",
    ),
)
"""Trap of the specification (`shared/spec/boxes3d.md`, section 7), measurement, sentence."""
