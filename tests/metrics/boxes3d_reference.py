"""What the exam expects of the metrics of 3D boxes: samples made of drawn frames, and their figures in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tests.metrics.boxes3d_sets import CLASSES, draw_frames, make_sample
from tests.metrics.exam import Sample
from tests.metrics.kitti_reference import NEIGHBOURS, Frame, Thing, evaluate, footprint, shared_area

Batches = Sequence[Sequence[Sample]]
JOINED = {
    "detections3d": "detections3d_offsets",
    "detections3d_image": "",
    "truth3d": "truth3d_offsets",
    "kitti_truth": "kitti_truth_offsets",
}
EXACT = frozenset({"truth3d", "kitti_truth", "to_camera"})


def draw_samples(random: np.random.Generator) -> list[Sample]:
    """Nine frames; one has nothing, one no label, one no detection."""
    frames = draw_frames(random, 9)
    return [make_sample(frame) for frame in (*frames[:6], ([], frames[6][1]), (frames[7][0], []), ([], []))]


def ignore_labels(sample: Sample) -> Sample:
    """A sample of which no label counts."""
    changed = {name: sample[name].copy() for name in ("truth3d", "kitti_truth")}
    for rows in changed.values():
        rows[:, 8] = 1
    return {**sample, **changed}


def to_frame(sample: Sample) -> Frame:
    """The rows of a sample as KITTI's files have them, of a camera that stands in the scanner."""

    def thing(row: list[float], image: list[float], kind: str, score: float) -> Thing:
        x, y, z, length, width, height, yaw = row[:7]
        truncated, occluded = image[5:7] if len(image) > 5 else (-1.0, -1.0)
        return Thing(
            kind,
            *(truncated, occluded, image[4], (image[0], image[1], image[2], image[3])),
            *(length, height, width, -y, -(z - height / 2), x, -yaw - math.pi / 2, score),
        )

    labels, seen = [], []
    for row, image in ((row[:9], row[9:]) for row in sample["kitti_truth"].tolist()):
        kind = "DontCare" if row[7] < 0 else CLASSES[int(row[7])]
        labels.append(thing(row, image, NEIGHBOURS.get(kind, "none") if row[8] and row[7] >= 0 else kind, math.nan))
    for row, image in zip(sample["detections3d"].tolist(), sample["detections3d_image"].tolist(), strict=True):
        seen.append(thing(row, image, CLASSES[int(row[8])] if row[8] >= 0 else "Truck", row[7]))
    return labels, seen


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def count_labels(batches: Batches) -> dict[str, int]:
    rows = [row for batch in batches for one in batch for row in one["truth3d"].tolist() if not row[8]]
    return {name: sum(row[7] == number for row in rows) for number, name in enumerate(CLASSES)}


def kitti_reference(batches: Batches) -> dict[str, float]:
    found = evaluate([to_frame(one) for batch in batches for one in batch], CLASSES)
    names = [name for name in next(iter(found.values())) if name != "count"]
    figures = {
        f"{name}_{difficulty}": mean([found[kind, difficulty][name] for kind in CLASSES])
        for name in names
        for difficulty in ("easy", "moderate", "hard")
    }
    for kind, count in count_labels(batches).items():
        figures |= {
            f"{kind}/ap_3d_r40_{level}": found[kind, level]["ap_3d_r40"] for level in ("easy", "moderate", "hard")
        }
        figures[f"{kind}/count"] = count
    return figures


def plain_kitti_reference(batches: Batches) -> dict[str, float]:
    """KITTI's evaluation of frames in which each label and detection has one image box that counts."""

    def level(things: list[Thing]) -> list[Thing]:
        return [one._replace(image=(0, 0, 50, 50), truncated=0, occluded=0) for one in things]

    frames = [tuple(map(level, to_frame(one))) for batch in batches for one in batch]
    found = evaluate(frames, CLASSES)
    names = [f"ap_{kind}_{recalls}" for kind in ("3d", "bev") for recalls in ("r11", "r40")]
    figures = {f"{name}_all": mean([found[kind, "easy"][name] for kind in CLASSES]) for name in names}
    for kind, count in count_labels(batches).items():
        figures |= {f"{kind}/ap_3d_r40_all": found[kind, "easy"]["ap_3d_r40"], f"{kind}/count": count}
    return figures


# --- the plain AP -----------------------------------------------------------------------------------------------------

DISTANCES = {"ap_0_5m": 0.5, "ap_1m": 1.0, "ap_2m": 2.0}
ERRORS = ("centre_error_m", "height_error_m", "size_error", "yaw_error_rad", "axis_error_rad")


def volume_overlap(one: list[float], other: list[float]) -> float:
    if min(*one[3:6], *other[3:6]) <= 0:
        return 0.0
    things = [Thing("", 0, 0, 0, (0, 0, 0, 0), b[3], b[5], b[4], b[0], 0, b[1], -b[6]) for b in (one, other)]
    shared = shared_area(footprint(things[0]), footprint(things[1]))
    tall = min(one[2] + one[5] / 2, other[2] + other[5] / 2) - max(one[2] - one[5] / 2, other[2] - other[5] / 2)
    volume = shared * max(tall, 0.0)
    return volume / (one[3] * one[4] * one[5] + other[3] * other[4] * other[5] - volume)


def holds(region: list[float], point: list[float]) -> bool:
    x, y, z = (a - b for a, b in zip(point[:3], region[:3], strict=True))
    along, across = x * math.cos(region[6]) + y * math.sin(region[6]), y * math.cos(region[6]) - x * math.sin(region[6])
    return all(2 * abs(v) <= side for v, side in zip((along, across, z), region[3:6], strict=True))


def errors_of(found: list[float], label: list[float]) -> dict[str, float]:
    shared = math.prod(min(a, b) for a, b in zip(found[3:6], label[3:6], strict=True))
    turn = math.acos(max(-1.0, min(1.0, math.cos(found[6] - label[6]))))
    values = (
        math.hypot(found[0] - label[0], found[1] - label[1]),
        abs(found[2] - label[2]),
        1 - shared / (math.prod(found[3:6]) + math.prod(label[3:6]) - shared),
        turn,
        min(turn, math.pi - turn),
    )
    return dict(zip(ERRORS, values, strict=True))


def match(samples: Sequence[Sample], number: int, kind: str, level: float) -> tuple[float, list[dict[str, float]]]:
    """The AP of a class, and the errors of what was found."""
    rows = [
        (one["detections3d"][place].tolist(), frame)
        for frame, one in enumerate(samples)
        for place in np.flatnonzero(one["detections3d"][:, 8] == number)
    ]
    labels = [one["truth3d"].tolist() for one in samples]
    count = sum(row[7] == number and not row[8] for of_frame in labels for row in of_frame)
    taken: set[tuple[int, int]] = set()
    outcomes, errors = [], []
    for row, frame in sorted(rows, key=lambda pair: -pair[0][7]):
        fits = []
        for place, label in enumerate(labels[frame]):
            if label[7] != number or (frame, place) in taken:
                continue
            fit = (
                volume_overlap(row, label)
                if kind == "ap_overlap"
                else -math.hypot(row[0] - label[0], row[1] - label[1])
            )
            if fit >= level if kind == "ap_overlap" else -fit < level:
                fits.append((not label[8], fit, -place))
        if fits:
            is_label, _, place = max(fits)
            if is_label:
                taken.add((frame, -place))
                outcomes.append(True)
                errors.append(errors_of(row, labels[frame][-place]))
        elif not any(label[7] < 0 and label[8] and holds(label, row) for label in labels[frame]):
            outcomes.append(False)
    if not count:
        return math.nan, []
    precision = [sum(outcomes[: rank + 1]) / (rank + 1) for rank in range(len(outcomes))]
    return sum(max(precision[rank:]) for rank, is_true in enumerate(outcomes) if is_true) / count, errors


def plain_reference(batches: Batches) -> dict[str, float]:
    samples = [one for batch in batches for one in batch]
    of_classes = {}
    for number, (name, count) in enumerate(count_labels(batches).items()):
        sides = [max(row[3:5]) for one in samples for row in one["truth3d"].tolist() if row[7] == number and not row[8]]
        level = 0.25 if sides and sum(sides) / len(sides) < 1 else 0.5
        figures = {"ap_overlap": match(samples, number, "ap_overlap", level)[0]}
        figures |= {kind: match(samples, number, kind, limit)[0] for kind, limit in DISTANCES.items()}
        figures["ap_distance"] = sum(figures[kind] for kind in DISTANCES) / 3
        errors = match(samples, number, "ap_2m", 2.0)[1]
        figures |= {error: mean([one[error] for one in errors]) for error in ERRORS}
        of_classes[name] = {**figures, "count": count}
    means = {figure: mean([row[figure] for row in of_classes.values()]) for figure in figures}
    shown = {name: {k: v for k, v in row.items() if k not in DISTANCES} for name, row in of_classes.items()}
    return means | {f"{name}/{figure}": value for name, row in shown.items() for figure, value in row.items()}


# --- kinds of errors --------------------------------------------------------------------------------------------------


def kind_of(row: list[float], labels: list[list[float]], free: set[int]) -> tuple[str, set[int]]:
    """What a detection is, and the labels that it is about, in the frame's labels of which some are free."""
    overlaps = [volume_overlap(row, label) for label in labels]
    fits = {n for n, label in enumerate(labels) if overlaps[n] >= (0.25 if label[3] < 1 else 0.5)}
    near = {n for n, b in enumerate(labels) if math.hypot(row[0] - b[0], row[1] - b[1]) < 2 or overlaps[n] > 0}
    own = {n for n, label in enumerate(labels) if label[7] == row[8] and not label[8]}
    others = {n for n, label in enumerate(labels) if label[7] != row[8] and not label[8]}
    hiding = {n for n, label in enumerate(labels) if label[8] and (label[7] == row[8] or label[7] < 0)}
    if found := fits & own & free:
        best = max(found, key=lambda n: (overlaps[n], -n))
        free.discard(best)
        return "reversed" if math.cos(row[6] - labels[best][6]) < 0 else "right", {best}
    if hiding & near:
        return "hidden", set()
    if fits & own:
        return "double", set()
    if fits & others:
        return "class", fits & others
    return ("place", near & own) if near & own else ("background", set())


def errors_reference(batches: Batches, score: float = 0.3) -> dict[str, float]:
    kinds: list[str] = []
    num_missed = num_labels = 0
    for one in (one for batch in batches for one in batch):
        labels = one["truth3d"].tolist()
        real = {n for n, label in enumerate(labels) if not label[8]}
        free, about = {*real}, set[int]()
        rows = sorted((row for row in one["detections3d"].tolist() if row[7] >= score), key=lambda row: -row[7])
        for row in rows:
            kind, labels_of_it = kind_of(row, labels, free)
            kinds.append(kind)
            about |= labels_of_it
        num_missed, num_labels = num_missed + len(real & free - about), num_labels + len(real)
    counted = [kind for kind in kinds if kind != "hidden"]
    is_any = counted and num_labels
    shares = {f"error_{kind}": counted.count(kind) / len(counted) if is_any else math.nan for kind in _KINDS}
    return {**shares, "error_missed": num_missed / num_labels if num_labels else math.nan}


_KINDS = ("class", "place", "double", "background", "reversed")
