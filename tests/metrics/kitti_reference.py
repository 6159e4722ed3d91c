"""KITTI's evaluation of 3D boxes in plain loops, written from its rules; it shares no line with the product's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Corner = tuple[float, float]


class Thing(NamedTuple):
    """A row of KITTI's files: a label, or with `score` a detection. Lengths in metres, of the camera's frame."""

    kind: str
    truncated: float
    occluded: float
    alpha: float
    image: tuple[float, float, float, float]
    length: float
    height: float
    width: float
    x: float
    y: float
    z: float
    turn: float
    score: float = math.nan


Frame = tuple[Sequence[Thing], Sequence[Thing]]
"""Labels and detections."""

MIN_HEIGHT, MAX_OCCLUDED, MAX_TRUNCATED = (40, 25, 25), (0, 1, 2), (0.15, 0.3, 0.5)
STRICT = {"Car": (0.7, 0.7), "Pedestrian": (0.5, 0.5), "Cyclist": (0.5, 0.5)}
LOOSE = {"Car": (0.7, 0.5), "Pedestrian": (0.5, 0.25), "Cyclist": (0.5, 0.25)}
"""Overlaps in the image, and from above and of volumes."""
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}


# --- overlaps ---------------------------------------------------------------------------------------------------------


def footprint(thing: Thing) -> list[Corner]:
    """The corners of a box from above, in x and z of the camera, where it turns clockwise."""
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    halves = [(a * thing.length / 2, b * thing.width / 2) for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))]
    return [(thing.x + cos * u + sin * v, thing.z - sin * u + cos * v) for u, v in halves]


def area(corners: Sequence[Corner]) -> float:
    turns = zip(corners, [*corners[1:], *corners[:1]], strict=True)
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in turns) / 2


def shared_area(first: list[Corner], second: list[Corner]) -> float:
    """What two convex outlines share: the first is cut along each side of the second."""
    outline = first if area(first) > 0 else first[::-1]
    knife = second if area(second) > 0 else second[::-1]
    for place, start in enumerate(knife):
        end = knife[(place + 1) % len(knife)]

        def side(point: Corner, start: Corner = start, end: Corner = end) -> float:
            return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])

        cut: list[Corner] = []
        for number, here in enumerate(outline):
            before = outline[number - 1]
            if (side(here) >= 0) != (side(before) >= 0):
                share = side(before) / (side(before) - side(here))
                cut.append((before[0] + share * (here[0] - before[0]), before[1] + share * (here[1] - before[1])))
            if side(here) >= 0:
                cut.append(here)
        outline = cut
    return area(outline) if len(outline) > 2 else 0.0


def overlap(kind: str, truth: Thing, found: Thing) -> float:
    if kind == "2d":
        wide = min(truth.image[2], found.image[2]) - max(truth.image[0], found.image[0])
        high = min(truth.image[3], found.image[3]) - max(truth.image[1], found.image[1])
        if not (wide > 0 and high > 0):
            return 0.0
        sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (truth.image, found.image)]
        return wide * high / (sum(sizes) - wide * high)
    if min(truth.length, truth.width, truth.height, found.length, found.width, found.height) <= 0:
        return 0.0
    if math.hypot(truth.x - found.x, truth.z - found.z) > (
        math.hypot(truth.length, truth.width) + math.hypot(found.length, found.width)
    ):
        return 0.0
    shared = shared_area(footprint(truth), footprint(found))
    bases = [thing.length * thing.width for thing in (truth, found)]
    if kind == "bev":
        return shared / (sum(bases) - shared)
    tall = min(truth.y, found.y) - max(truth.y - truth.height, found.y - found.height)
    volume = shared * max(tall, 0.0)
    return volume / (bases[0] * truth.height + bases[1] * found.height - volume)


# --- the rules --------------------------------------------------------------------------------------------------------


def state_of_label(label: Thing, kind: str, level: int) -> int:
    """0 counts, 1 is ignored, -1 is not seen."""
    tall = label.image[3] - label.image[1]
    if label.kind == kind:
        easy = tall > MIN_HEIGHT[level] and label.occluded <= MAX_OCCLUDED[level]
        return 0 if easy and label.truncated <= MAX_TRUNCATED[level] else 1
    return 1 if NEIGHBOURS.get(kind) == label.kind else -1


def state_of_detection(found: Thing, kind: str, level: int) -> int:
    if abs(found.image[3] - found.image[1]) < MIN_HEIGHT[level]:
        return 1
    return 0 if found.kind == kind else -1


def true_scores(frame: Frame, states: tuple[list[int], list[int]], overlaps: dict, least: float) -> list[float]:
    labels, detections = frame
    used: set[int] = set()
    scores = []
    for i in range(len(labels)):
        if states[0][i] == -1:
            continue
        best = None
        for j, found in enumerate(detections):
            fits = states[1][j] != -1 and j not in used and overlaps[i, j] > least
            if fits and (best is None or found.score > detections[best].score):
                best = j
        if best is not None:
            used.add(best)
            if states[0][i] == 0 and states[1][best] == 0:
                scores.append(detections[best].score)
    return scores


def cut_offs(scores: list[float], count: int) -> list[float]:
    ordered, chosen, reached = sorted(scores, reverse=True), [], 0.0
    for i in range(1, len(ordered) + 1):
        if i < len(ordered) and (i + 1) / count - reached < reached - i / count:
            continue
        chosen.append(ordered[i - 1])
        reached += 1 / 40
    return chosen


def count(
    frame: Frame, states: tuple[list[int], list[int]], overlaps: dict, least: float, cut: float, kind: str
) -> tuple[int, int, float]:
    labels, detections = frame
    present = [j for j, found in enumerate(detections) if found.score >= cut and states[1][j] != -1]
    used: set[int] = set()
    right, alike = 0, 0.0
    for i, label in enumerate(labels):
        if states[0][i] == -1:
            continue
        fitting = [j for j in present if j not in used and overlaps[i, j] > least]
        full = [j for j in fitting if states[1][j] == 0]
        if full:
            chosen = max(full, key=lambda j: (overlaps[i, j], -j))
        elif fitting:
            chosen = fitting[0]
        else:
            continue
        used.add(chosen)
        if states[0][i] == 0 and states[1][chosen] == 0:
            right += 1
            alike += (1 + math.cos(label.alpha - detections[chosen].alpha)) / 2
    wrong = [j for j in present if j not in used and states[1][j] == 0]
    if kind == "2d":
        for region in (label.image for label in labels if label.kind == "DontCare"):
            wrong = [j for j in wrong if not covered(detections[j].image, region) > least]
    return right, len(wrong), alike


def covered(box: Sequence[float], region: Sequence[float]) -> float:
    wide = min(box[2], region[2]) - max(box[0], region[0])
    high = min(box[3], region[3]) - max(box[1], region[1])
    return wide * high / ((box[2] - box[0]) * (box[3] - box[1])) if wide > 0 and high > 0 else 0.0


def averages(values: list[float]) -> dict[str, float]:
    slots = (values + [0.0] * 41)[:41]
    for place in range(39, -1, -1):
        slots[place] = max(slots[place], slots[place + 1])
    return {"r40": sum(slots[1:]) / 40, "r11": sum(slots[0:41:4]) / 11}


def evaluate(
    frames: Sequence[Frame], kinds: Sequence[str], least: Mapping[str, tuple[float, float]] = STRICT
) -> dict[tuple[str, str], dict[str, float]]:
    """Class, difficulty → AP and AOS as shares of 1, and `count`; NaN where no label counts."""
    known: list[dict[str, dict[tuple[int, int], float]]] = [
        {
            form: {
                (i, j): overlap(form, label, found) for i, label in enumerate(labels) for j, found in enumerate(seen)
            }
            for form in ("3d", "bev", "2d")
        }
        for labels, seen in frames
    ]
    has_angles = all(found.alpha != -10 and not math.isnan(found.alpha) for _, seen in frames for found in seen)
    results = {}
    for kind in kinds:
        for level, name in enumerate(("easy", "moderate", "hard")):
            states = [
                ([state_of_label(a, kind, level) for a in labels], [state_of_detection(b, kind, level) for b in seen])
                for labels, seen in frames
            ]
            total = sum(state == 0 for of_labels, _ in states for state in of_labels)
            figures = {f"{form}_{r}": math.nan for r in ("r40", "r11") for form in ("ap_3d", "ap_bev", "ap_2d", "aos")}
            for form in ("3d", "bev", "2d") if total else ():
                limit = least[kind][form != "2d"]
                rows = list(zip(frames, states, [one[form] for one in known], strict=True))
                scores = [score for row in rows for score in true_scores(*row, limit)]
                precision, likeness = [], []
                for cut in cut_offs(scores, total):
                    sums = [count(*row, limit, cut, form) for row in rows]
                    right, wrong = sum(one[0] for one in sums), sum(one[1] for one in sums)
                    precision.append(right / (right + wrong) if right + wrong else 0.0)
                    likeness.append(sum(one[2] for one in sums) / (right + wrong) if right + wrong else 0.0)
                figures |= {f"ap_{form}_{r}": value for r, value in averages(precision).items()}
                if form == "2d" and has_angles:
                    figures |= {f"aos_{r}": value for r, value in averages(likeness).items()}
            results[kind, name] = {**figures, "count": total}
    return results
