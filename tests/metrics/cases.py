"""One row for each registered metric: samples that meet its limits, and its figures computed independently."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

from tests.metrics.box_references import (
    COCO_NAMES,
    Image,
    Scene,
    coco_evaluation,
    draw_images,
    literal_figures,
    literal_rates,
    spread_regions,
)
from tests.metrics.boxes3d_reference import (
    EXACT,
    JOINED,
    draw_samples,
    errors_reference,
    ignore_labels,
    kitti_reference,
    plain_kitti_reference,
    plain_reference,
)
from tests.metrics.boxes3d_sets import CLASSES as BOX3D_CLASSES
from tests.metrics.exam import Case, Sample
from tests.metrics.tide import saved_figures

Batches = Sequence[Sequence[Sample]]
Rows = list[tuple[int, int]]
NAMES = ("a", "b", "c", "d", "e")
NONE = 9
"""The ignored label, where it is no class."""


def mean(values: Iterable[float]) -> float:
    """The mean of what is a number; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def share(hits: float, total: float) -> float:
    return hits / total if total else math.nan


# --- labels -----------------------------------------------------------------------------------------------------------


def draw_points(random: np.random.Generator, ignored: int = NONE) -> list[Sample]:
    """Clouds of 0 to 30 points, right half of the time; few levels, so that some classes tie.

    Class d is only predicted, e neither labelled nor predicted; some points lie at a limit of distance.
    """
    samples = []
    for size in (7, 30, 0, 12, 1, 25, 9):
        target = random.choice([0, 1, 2, ignored], size)
        scores = random.integers(0, 4, (size, 5)) / 4
        right = np.flatnonzero((random.random(size) < 0.5) & (target < 5))
        scores[right, target[right]] = 1
        scores[:, 4] = -1
        meters = random.choice([0, 3.5, 10, 15.25, 20, 80.0], size)
        samples.append({"probabilities": scores, "target": target, "point_range": meters})
    return samples


def draw_classes(random: np.random.Generator) -> list[Sample]:
    """Samples of four labels each."""
    points = [np.concatenate(each) for each in zip(*(one.values() for one in draw_points(random)), strict=True)]
    groups = [slice(start, start + 4) for start in range(0, 80, 4)]
    return [{"probabilities": points[0][rows], "label": points[1][rows]} for rows in groups]


def draw_pixels(random: np.random.Generator) -> list[Sample]:
    """Range images of 3 x 4 pixels."""
    images = [random.choice([0, 1, 2, NONE], (3, 4)) for _ in range(7)]
    seen = [np.where(random.random((3, 4)) < 0.5, image % NONE, random.integers(0, 4, (3, 4))) for image in images]
    return [{"label": image, "seen": pixels.ravel()} for image, pixels in zip(images, seen, strict=True)]


def predicted(scores: np.ndarray, among: Sequence[int] = range(5)) -> list[int]:
    """The most probable class of each row, the lowest among equals."""
    return [max(sorted(among), key=lambda number: row[number]) for row in scores.reshape(-1, scores.shape[-1]).tolist()]


def pairs_of(samples: Iterable[Sample]) -> Rows:
    """Prediction and label of each point."""
    return [
        (answer, label)
        for one in samples
        for answer, label in zip(predicted(one["probabilities"]), one["target"].tolist(), strict=True)
    ]


def class_row(rows: Rows, number: int, ignored: int) -> dict[str, float]:
    """IoU, recall and number of a class's points; points of the ignored label do not count."""
    rows = [row for row in rows if row[1] != ignored]
    both = sum(row == (number, number) for row in rows)
    count = sum(label == number for _, label in rows)
    iou = math.nan if number == ignored else share(both, sum(number in row for row in rows))
    return {"iou": iou, "accuracy": share(both, count), "count": count}


def label_figures(
    rows: Rows, ignored: int = NONE, absent: str = "skipped", groups: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> dict[str, float]:
    classes = [class_row(rows, number, ignored) for number in range(5)]
    counted = [row for row in rows if row[1] != ignored]
    answered = [row for row in counted if row[0] != ignored]
    rules = {"": absent} if absent != "both" else {"": "skipped", "_absent_zero": "zero"}

    def mean_of(name: str, rule: str, members: Iterable[int] = range(5)) -> float:
        zero = 0.0 if rule == "zero" and counted else math.nan
        values = [classes[number][name] for number in members if number != ignored]
        return mean(zero if math.isnan(value) else value for value in values)

    numbers = {"overall_accuracy": share(sum(answer == label for answer, label in answered), len(answered))}
    for suffix, rule in rules.items():
        numbers[f"miou{suffix}"] = mean_of("iou", rule)
        numbers[f"mean_class_accuracy{suffix}"] = mean_of("accuracy", rule)
        numbers |= {f"miou_{name}{suffix}": mean_of("iou", rule, members) for name, members in groups.items()}
    rows_of = {f"{NAMES[number]}/{name}": value for number, one in enumerate(classes) for name, value in one.items()}
    return {**numbers, **rows_of}


def accuracy_reference(batches: Batches) -> dict[str, float]:
    rows = pairs_of({**one, "target": one["label"]} for batch in batches for one in batch)
    return {name: value for name, value in label_figures(rows).items() if "iou" not in name}


def iou_reference(
    batches: Batches,
    ignored: int = NONE,
    absent: str = "skipped",
    groups: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> dict[str, float]:
    samples = [one for batch in batches for one in batch]
    scores = [[class_row(pairs_of([one]), number, ignored)["iou"] for number in range(5)] for one in samples]
    alone = {f"sample {number}": mean(each) for number, each in enumerate(scores)}
    return {**label_figures(pairs_of(samples), ignored, absent, groups), **alone}


def calibration_reference(batches: Batches, key: str, bins: int = 15) -> dict[str, float]:
    """A prediction at a time: its bin is the first whose upper end is not below its confidence."""
    gaps, total = [Fraction(0)] * bins, 0
    for one in (one for batch in batches for one in batch):
        scores = one["probabilities"].reshape(-1, 5)
        for row, answer, label in zip(scores.tolist(), predicted(scores), one[key].ravel().tolist(), strict=True):
            sure = Fraction(max(row))
            number = next(number for number in range(bins) if sure <= Fraction(number + 1, bins))
            gaps[number] += (sure - (answer == label)) * (label != NONE)
            total += label != NONE
    error, above = sum(map(abs, gaps)), sum(gaps)
    return {"calibration_error": share(float(error), total), "overconfidence": share(float(above), total)}


def pixel_reference(batches: Batches) -> dict[str, float]:
    pixels = [one for batch in batches for one in batch]
    rows = [pair for one in pixels for pair in zip(one["seen"].tolist(), one["label"].ravel().tolist(), strict=True)]
    numbers = label_figures(rows)
    alone = {f"{name}/pixel_iou": numbers[f"{name}/iou"] for name in NAMES}
    return {"pixel_miou": numbers["miou"], "pixel_accuracy": numbers["overall_accuracy"], **alone}


def distance_reference(batches: Batches) -> dict[str, float]:
    samples = [one for batch in batches for one in batch]
    meters = [value for one in samples for value in one["point_range"].tolist()]
    points = list(zip(pairs_of(samples), meters, strict=True))
    ranges = {"0_10m": (0, 10), "10_20m": (10, 20), "over_20m": (20, math.inf)}
    return {
        f"miou_{name}": label_figures([pair for pair, value in points if low <= value < high])["miou"]
        for name, (low, high) in ranges.items()
    }


def without_label(sample: Sample) -> Sample:
    return {key: np.full_like(value, NONE) if key in ("label", "target") else value for key, value in sample.items()}


# --- parts ------------------------------------------------------------------------------------------------------------

PARTS = ((2, 0), (3, 1, 4), (5,), (6, 7))
"""Parts by category, not all of them in order; nothing is of the last category."""


def draw_parts(random: np.random.Generator) -> list[Sample]:
    """Shapes of 0 to 20 points of the first three categories, right half of the time; few levels, so that some tie."""
    samples = []
    for category, size in ((1, 20), (0, 3), (0, 11), (2, 0), (1, 1), (0, 17), (2, 8)):
        target = random.choice(PARTS[category], size)
        scores = random.integers(0, 4, (size, 8)) / 4
        right = np.flatnonzero(random.random(size) < 0.5)
        scores[right, target[right]] = 1
        samples.append({"probabilities": scores, "target": target, "category": np.array(category)})
    return samples


def parts_reference(batches: Batches) -> dict[str, float]:
    """A shape, a part and a point at a time; a part that neither side has counts 1."""
    samples = [one for batch in batches for one in batch]
    numbers: dict[str, float] = {}
    for suffix in ("", "_all_parts"):
        ious: dict[int, list[float]] = {number: [] for number in range(4)}
        alone, right, total = [], 0, 0
        for one in samples:
            own = PARTS[int(one["category"])]
            answers = predicted(one["probabilities"], range(8) if suffix else own)
            rows = list(zip(answers, one["target"].tolist(), strict=True))
            unions = [sum(part in row for row in rows) for part in own]
            both = [sum(row == (part, part) for row in rows) for part in own]
            alone.append(mean(b / u if u else 1.0 for b, u in zip(both, unions, strict=True)))
            ious[int(one["category"])].append(alone[-1])
            right, total = right + sum(both), total + len(rows)
        numbers[f"instance_miou{suffix}"] = mean(alone)
        numbers[f"class_miou{suffix}"] = mean(map(mean, ious.values()))
        numbers[f"point_accuracy{suffix}"] = share(right, total)
        for name, values in zip("pqrs", ious.values(), strict=True):
            numbers |= {f"{name}/miou{suffix}": mean(values), f"{name}/count": len(values)}
        if not suffix:
            numbers |= {f"sample {number}": iou for number, iou in enumerate(alone)}
    return numbers


# --- joints -----------------------------------------------------------------------------------------------------------


def draw_joints(random: np.random.Generator) -> list[Sample]:
    """Frames of five joints off by 0 or 15 mm exactly, by other lengths, or by 10 m; the last joint is never visible.

    One frame has no visible joint. Half of what is not visible is NaN. The first two joints are 30 mm apart.
    """
    samples = []
    errors = np.array([[0, 0, 0], [9, 12, 0], [2, -10, 11], [0, 0, 14.5], [3, 60, 7], [0, 1e4, 0.0]])
    for number in range(9):
        true = random.integers(-200, 200, (5, 3)) / 2
        true[1] = true[0] + [18, -24, 0]
        visible = (random.random(5) < 0.8) & (np.arange(5) < 4) & (number != 6)
        own = np.concatenate([errors, random.uniform(4, 16, (4, 3))])
        chosen = own[random.choice([0, 1, 2, 6, 7, 8, 9, *([3, 4, 5] if number % 2 else [])], 6)]
        chosen = errors[[0, 5, 5, 0, 0, 0]] if number == 2 else chosen
        visible[:4] |= number == 2  # a similarity of one half, exactly
        found = true + np.where(random.random((5, 1)) < 0.5, 1, -1) * chosen[:5]
        centre, reference = true[2] + chosen[5], true[2] + errors[random.integers(0, 6)]
        is_unknown = ~visible & (random.random(5) < 0.5)
        true[is_unknown & (np.arange(5) > 1)] = found[is_unknown] = np.nan
        one = {"joints_mm": found, "joints": true, "visible": visible, "centre_mm": centre, "reference": reference}
        samples.append(one)
    return samples


def distances(samples: Iterable[Sample]) -> list[list[float]]:
    """The distances of the visible joints of each frame, NaN of all others."""
    return [
        [math.dist(a, b) if seen else math.nan for a, b, seen in zip(*joints, strict=True)]
        for joints in ((one["joints_mm"], one["joints"], one["visible"]) for one in samples)
    ]


def known(values: Iterable[float]) -> list[float]:
    return sorted(value for value in values if not math.isnan(value))


def joint_reference(batches: Batches) -> dict[str, float]:
    frames = distances(one for batch in batches for one in batch)
    every, worst = known(itertools.chain(*frames)), [max(known(frame)) for frame in frames if known(frame)]
    by_joint = list(zip(*frames, strict=True))
    return {
        "mean_error_mm": mean(every),
        "median_error_mm": every[(len(every) - 1) // 2],
        "max_error_mm": every[-1],
        "frames_within": mean(float(value <= 15) for value in worst),
        **{f"{name}/error_mm": mean(values) for name, values in zip(NAMES, by_joint, strict=True)},
        **{f"{name}/count": len(known(values)) for name, values in zip(NAMES, by_joint, strict=True)},
        **{f"sample {number}": mean(frame) for number, frame in enumerate(frames)},
    }


def rate_reference(batches: Batches) -> dict[str, float]:
    by_joint = zip(*distances(one for batch in batches for one in batch), strict=True)
    rates = [mean(float(value < 15) for value in known(values)) for values in by_joint]
    alone = {f"{name}/detection_rate": rate for name, rate in zip(NAMES, rates, strict=True)}
    return {"detection_rate": mean(rates), **alone}


SIGMAS = (0.02, 0.03, 0.04, 0.05, 0.06)


def keypoints_reference(batches: Batches, dimensions: int = 3) -> dict[str, float]:
    samples = [
        {**one, "joints_mm": one["joints_mm"][:, :dimensions], "joints": one["joints"][:, :dimensions]}
        for batch in batches
        for one in batch
    ]
    ratios: list[list[float]] = [[] for _ in NAMES]
    similarities: list[list[float]] = [[] for _ in NAMES]
    frames = []
    for one, frame in zip(samples, distances(samples), strict=True):
        if one["visible"][:2].all():
            length = math.dist(one["joints"][0], one["joints"][1])
            for joint, value in enumerate(frame):
                ratios[joint] += known([value / length])
        if one["visible"].any():
            extents = sorted(np.ptp(one["joints"][one["visible"]], axis=0).tolist())
            area = 0.53 * extents[-1] * max(extents[-2], extents[-1] / 4)
            widths = [2 * area * (2 * sigma) ** 2 for sigma in SIGMAS]
            near = [_gauss(value, width) for value, width in zip(frame, widths, strict=True)]
            frames.append(mean(near))
            for joint, value in enumerate(near):
                similarities[joint] += known([value])
    levels = [level / 100 for level in range(50, 100, 5)]
    every = known(itertools.chain(*ratios))
    return {
        "pck": mean(float(ratio <= 0.5) for ratio in every),
        "pck_auc": mean(max(0.0, 1 - 2 * ratio) for ratio in every),
        "oks": mean(frames),
        "oks_ap": mean(float(value >= level) for value in frames for level in levels),
        **{f"{n}/pck": mean(float(r <= 0.5) for r in rows) for n, rows in zip(NAMES, ratios, strict=True)},
        **{f"{n}/oks": mean(rows) for n, rows in zip(NAMES, similarities, strict=True)},
        **{f"{n}/count": len(rows) for n, rows in zip(NAMES, similarities, strict=True)},
    }


def _gauss(distance: float, width: float) -> float:
    """exp(-d^2 / width): at no distance 1, also where a single joint spans no area."""
    return math.exp(-(distance**2) / width) if width else (math.nan if math.isnan(distance) else float(distance == 0))


def centre_reference(batches: Batches) -> dict[str, float]:
    samples = [one for batch in batches for one in batch]
    refined, before = (
        [math.dist(one[key], one["joints"][2]) if one["visible"][2] else math.nan for one in samples]
        for key in ("centre_mm", "reference")
    )
    figures = {"centre_error_mm": mean(refined), "max_centre_error_mm": known(refined)[-1]}
    figures |= {"median_centre_error_mm": known(refined)[(len(known(refined)) - 1) // 2]}
    alone = {f"sample {number}": value for number, value in enumerate(refined)}
    return {**figures, "reference_error_mm": mean(before), **alone}


def invisible(sample: Sample) -> Sample:
    return {**sample, "visible": np.zeros_like(sample["visible"])}


# --- pairs ------------------------------------------------------------------------------------------------------------


def draw_pairs(random: np.random.Generator) -> list[Sample]:
    """Embeddings of any length, partners near or far."""
    samples = []
    for _ in range(11):
        first = random.normal(size=4) * 3
        others = {name: first + random.normal(size=4) * random.choice([0.5, 4]) for name in ("second", "pictured")}
        samples.append({"first": first, **others})
    return samples


def pairs_reference(batches: Batches, *, prefix: str = "") -> dict[str, float]:
    """A row at a time; a row alone in its batch has nothing to be compared with."""
    unit = lambda row: row / math.sqrt(math.fsum(row**2))  # noqa: E731
    apart, potentials, hits = [], [], []
    for batch in batches:
        clouds = [unit(one["first"] + one["second"] if prefix else one["first"]) for one in batch]
        partners = [unit(one["pictured" if prefix else "second"]) for one in batch]
        spread = partners if prefix else clouds
        apart += [math.dist(*pair) ** 2 for pair in zip(clouds, partners, strict=True)]
        for place, cloud in enumerate(clouds if len(batch) > 1 else []):
            others = [row for number, row in enumerate(spread) if number != place]
            potentials.append(mean(math.exp(-2 * math.dist(spread[place], row) ** 2) for row in others))
            hits.append(float(min(range(len(batch)), key=lambda at: math.dist(cloud, partners[at])) == place))
    uniformity = math.log(mean(potentials)) if potentials else math.nan
    names = ("alignment", "uniformity", "retrieval_accuracy")
    numbers = dict(zip(names, (mean(apart), uniformity, mean(hits)), strict=True))
    alone = {f"sample {number}": value for number, value in enumerate(apart)}
    return {f"{prefix}{name}": value for name, value in numbers.items()} | alone


# --- boxes ------------------------------------------------------------------------------------------------------------


def images_of(batches: Batches, num_classes: int = 4) -> list[Image]:
    images = [Image(one["truth"], one["detections"]) for batch in batches for one in batch]
    return spread_regions(images, num_classes)


def tide_reference(batches: Batches, most: int) -> dict[str, float]:
    """tidecv's figures, from its file, without counts."""
    images = [Image(one["truth"], one["detections"]) for batch in batches for one in batch]
    return {name: value for name, value in saved_figures(images, most).items() if not name.startswith("count_")}


def box_ap_reference(batches: Batches) -> dict[str, float]:
    evaluation = coco_evaluation(images_of(batches), 4)
    numbers = {
        name: value if value >= 0 else math.nan for name, value in zip(COCO_NAMES, evaluation.stats, strict=True)
    }
    for number, name in enumerate(NAMES[:4]):
        precision = evaluation.eval["precision"][:, :, number, 0, 2]
        own = [row for image in images_of(batches) for row in image.truth if row[4] == number and not row[6]]
        ap, ap50 = (float(part.mean()) if own else math.nan for part in (precision, precision[0]))
        numbers |= {f"{name}/ap": ap, f"{name}/ap50": ap50, f"{name}/count": len(own)}
    return numbers


def scenes_of(batches: Batches, number: int) -> list[Scene]:
    """The labels and detections of one class, and the ignored labels of none."""
    scenes = []
    for one in itertools.chain(*batches):
        truth, found = one["truth"], one["detections"]
        rows = (truth[:, 4] == number) | (truth[:, 4] < 0)
        labels = np.column_stack([truth[:, :4], truth[:, 6], one["truth_visible"]])[rows]
        scenes.append(Scene(tuple(one["file_px"].tolist()), labels, found[found[:, 5] == number, :5]))
    return scenes


def crowd_reference(batches: Batches) -> dict[str, float]:
    classes = {name: literal_figures(scenes_of(batches, number)) for number, name in enumerate(NAMES[:4])}
    labelled = [one for one in classes.values() if not math.isnan(one["crowd_ap"])]
    names = ("crowd_ap", "mr2", "mr2_clamped", "mr4", "mr4_clamped")
    numbers = {name: mean(one[name] for one in labelled) for name in names}
    jaccard = [mean(one["jaccard"][level] for one in labelled) for level in range(10)]
    numbers |= {"ji": max(jaccard), "ji_score": jaccard.index(max(jaccard)) / 10}
    for number, (name, one) in enumerate(classes.items()):
        count = sum(not row[4] for scene in scenes_of(batches, number) for row in scene.labels)
        numbers |= {f"{name}/{key}": one[key] for key in ("crowd_ap", "mr2")} | {f"{name}/count": count}
    return numbers


def miss_rate_reference(batches: Batches, protocol: str = "citypersons", most: int = 1000) -> dict[str, float]:
    classes = [literal_rates(scenes_of(batches, number), most, protocol) for number in range(4)]
    return {name: mean(one[name] for one in classes) for name in classes[0]}


def all_ignored(sample: Sample) -> Sample:
    truth = sample["truth"].copy()
    truth[:, 6] = 1
    return {**sample, "truth": truth}


# --- the rows ---------------------------------------------------------------------------------------------------------

CLASSES = {"num_classes": 5, "class_names": NAMES, "ignore_index": NONE}
COUNTED = {"num_classes": 5, "ignore_index": NONE}
IGNORED_CLASS: dict[str, Any] = {**CLASSES, "ignore_index": 0, "absent": "zero"}
JOINTS = {"num_joints": 5, "joint_names": NAMES}
POINT_KEYS = {"probabilities": "cloud_offsets", "target": "cloud_offsets", "point_range": ""}
LABELS = dict.fromkeys(("truth", "truth_visible"), "truth_offsets")
BOXES: dict[str, Any] = {
    "joined": {**LABELS, "detections": "detection_offsets"},
    "ignore": all_ignored,
    "exact": frozenset({"truth_visible"}),
}
BOX_CLASSES = {"class_names": NAMES[:4]}

CASES = [
    Case("accuracy", draw_classes, accuracy_reference, CLASSES, ignore=without_label),
    Case("iou", draw_points, iou_reference, CLASSES, POINT_KEYS, without_label),
    Case(
        "iou",
        lambda random: draw_points(random, 0),
        lambda batches: iou_reference(batches, 0, "zero"),
        IGNORED_CLASS,
        POINT_KEYS,
        lambda sample: {**sample, "target": np.zeros_like(sample["target"])},
    ),
    Case(
        "iou",
        draw_points,
        lambda batches: iou_reference(batches, absent="both", groups={"large": (0, 3), "small": (1, 2, 4)}),
        {**CLASSES, "absent": "both", "class_groups": ("large", "small", "small", "large", "small")},
        POINT_KEYS,
        without_label,
    ),
    Case("calibration", draw_classes, lambda rows: calibration_reference(rows, "label"), COUNTED, ignore=without_label),
    Case(
        "calibration",
        draw_points,
        lambda rows: calibration_reference(rows, "target", 4),
        {**COUNTED, "bins": 4},
        POINT_KEYS,
        without_label,
    ),
    Case("pixel_iou", draw_pixels, pixel_reference, CLASSES, {"seen": ""}, without_label),
    Case(
        "iou_by_distance",
        draw_points,
        distance_reference,
        {**CLASSES, "edges_m": (10.0, 20.0)},
        POINT_KEYS,
        without_label,
    ),
    Case(
        "part_iou",
        draw_parts,
        parts_reference,
        {
            "num_classes": 8,
            "parts_of_category": PARTS,
            "class_names": tuple("01234567"),
            "category_names": tuple("pqrs"),
        },
        {"probabilities": "cloud_offsets", "target": "cloud_offsets"},
    ),
    Case("joint_error", draw_joints, joint_reference, {**JOINTS, "threshold_mm": 15.0}, ignore=invisible),
    Case("detection_rate", draw_joints, rate_reference, {**JOINTS, "threshold_mm": 15.0}, ignore=invisible),
    *(
        Case(
            "keypoints",
            draw_joints,
            lambda batches, dimensions=dimensions: keypoints_reference(batches, dimensions),
            {"joint_names": NAMES, "length": NAMES[:2], "sigmas": SIGMAS, "share": 0.5, "dimensions": dimensions},
            ignore=invisible,
        )
        for dimensions in (2, 3)
    ),
    Case("centre_error", draw_joints, centre_reference, {"centre_joint": 2}, ignore=invisible),
    Case("pairs", draw_pairs, pairs_reference),
    Case("cross_pairs", draw_pairs, lambda batches: pairs_reference(batches, prefix="cross_")),
    Case("box_ap", draw_images, box_ap_reference, BOX_CLASSES, **BOXES),
    *(
        Case(
            "box_errors",
            draw_images,
            lambda batches, most=most: tide_reference(batches, most),
            {**BOX_CLASSES, "most": most},
            **BOXES,
        )
        for most in (100, 3)
    ),
    Case("miss_rate", draw_images, miss_rate_reference, BOX_CLASSES, **BOXES),
    *(
        Case(
            "miss_rate",
            draw_images,
            lambda batches, protocol=protocol: miss_rate_reference(batches, protocol, 8),
            {**BOX_CLASSES, "protocol": protocol, "most": 8},
            **BOXES,
        )
        for protocol in ("citypersons_script", "ecp")
    ),
    Case("crowd_ap", draw_images, crowd_reference, BOX_CLASSES, **BOXES),
    *(
        Case(name, draw_samples, reference, {"class_names": BOX3D_CLASSES, **given}, JOINED, ignore_labels, EXACT)
        for name, reference, given in (
            ("kitti_ap", kitti_reference, {}),
            ("kitti_ap", plain_kitti_reference, {"images": False}),
            ("boxes3d_ap", plain_reference, {}),
            ("boxes3d_errors", errors_reference, {}),
        )
    ),
]
