"""Kinds of errors as tidecv computes them: its figures for seeded images, which `python -m tests.metrics.tide` writes.

That needs tidecv, with packages that nothing else here needs; tests read the file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tests.metrics.box_references import Image, draw_images

FIGURES = Path(__file__).with_name("tide.json")
NUM_DRAWS = 60
KINDS = {"Loc": "localisation", "Cls": "class", "Both": "both", "Dupe": "duplicate", "Bkg": "background"}
KINDS |= {"Miss": "missed", "FalsePos": "false_positive", "FalseNeg": "false_negative"}


def draw_errors(seed: int) -> list[Image]:
    """Up to six images of up to 130 detections, in quarters of a pixel; every other seed has scores that tie.

    Detections are labels cut to 3/4, 1/2, 1/4 or 1/10, or moved, of the right class or another, and some lie beside
    all. Images may have no label or no detection, a class no label, and labels are crowds or ignored for all classes.
    """
    random = np.random.default_rng(seed)
    num_classes, images = int(random.integers(1, 5)), []
    for _ in range(int(random.integers(1, 7))):
        count = int(random.integers(1, 7)) if random.random() < 0.85 else 0
        corners = np.round(random.uniform(0, 60, (count, 2)) * 4) / 4
        sizes = random.choice([8.0, 10, 16, 20, 30], (count, 2))
        label, is_ignored = random.integers(0, max(1, num_classes - 1), count), random.random(count) < 0.2
        label[is_ignored & (random.random(count) < 0.4)] = -1
        truth = np.column_stack([corners, corners + sizes, label, sizes.prod(axis=1), is_ignored])
        num_found = int(random.choice([0, 5, 10, 20, 130], p=[0.2, 0.25, 0.25, 0.25, 0.05]))
        if count:
            chosen = random.integers(0, count, num_found)
            found, classes = truth[chosen, :4], np.maximum(label[chosen], 0)
            found[:, 2] -= (found[:, 2] - found[:, 0]) * random.choice([0, 0, 0.25, 0.5, 0.75, 0.9], num_found)
            found[:, :2] += random.choice([0, 0, 0.25, 1, 5], (num_found, 2))
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 0.25)
            found[random.random(num_found) < 0.15] += 100
        else:
            corners = np.round(random.uniform(0, 60, (num_found, 2)) * 4) / 4
            found, classes = np.column_stack([corners, corners + 8]), np.zeros(num_found)
        classes = np.where(random.random(num_found) < 0.6, classes, random.integers(0, num_classes, num_found))
        scores = random.random(num_found)
        scores = np.round(scores * 8) / 8 if seed % 2 == 0 else scores
        images.append(Image(truth, np.column_stack([found, scores, classes])))
    return images


def draw_rounded(seed: int) -> list[Image]:
    """The images of the exam of metrics, in its precision."""
    rounded = (
        {k: v.astype(np.float32).astype(float) for k, v in s.items() if k in ("truth", "detections")}
        for s in draw_images(np.random.default_rng(seed))
    )
    return [Image(**sample) for sample in rounded]


def tide_figures(images: list[Image], most: int = 100) -> dict[str, float]:
    """The AP, gains as shares, and counts of tidecv; NaN where it divides by zero, as no class is left."""
    tide = __import__("tidecv.quantify", fromlist=["TIDE"])
    truth, found = tide.Data("truth", max_dets=most), tide.Data("found")
    for index, image in enumerate(images):
        truth.add_image(index, str(index))
        for row in image.truth.tolist():
            add = truth.add_ignore_region if row[6] else truth.add_ground_truth
            add(index, int(row[4]), _sides(row))
        for row in image.detections.tolist():
            found.add_detection(index, int(row[5]), row[4], _sides(row))
    try:
        run = tide.TIDE().evaluate(truth, found)
    except ZeroDivisionError:
        return dict.fromkeys(("error_ap50", *(f"gain_{kind}" for kind in KINDS.values())), math.nan)
    points = {
        kind: partial(lambda error: run.fix_main_errors(error_types=[error])[error], kind) for kind in run.error_dict
    }
    is_perfect, lost = tide.FalsePositiveError.fix, run.false_negatives
    points[tide.FalsePositiveError] = lambda: run.fix_errors(transform=is_perfect).get_mAP() - run.ap
    points[tide.FalseNegativeError] = lambda: run.fix_errors(false_neg_dict=lost).get_mAP() - run.ap
    figures = {f"gain_{KINDS[kind.short_name]}": _share(make) for kind, make in points.items()}
    counts = {f"count_{KINDS[kind.short_name]}": count for kind, count in run.count_errors().items()}
    return {"error_ap50": run.ap / 100, **figures, **counts}


def _sides(row: list[float]) -> list[float]:
    return [row[0], row[1], row[2] - row[0], row[3] - row[1]]


def _share(make_points: Callable[[], float]) -> float:
    try:
        return make_points() / 100
    except ZeroDivisionError:
        return math.nan


def saved_figures(images: list[Image], most: int = 100) -> dict[str, float]:
    """The figures of tidecv for these images, from the file."""
    row = json.loads(FIGURES.read_text())["figures"][_digest(images, most)]
    return {name: math.nan if value is None else value for name, value in row.items()}


def _digest(images: list[Image], most: int) -> str:
    rows = b"|".join(array.tobytes() for image in images for array in (image.truth, image.detections))
    return hashlib.sha256(rows + str(most).encode()).hexdigest()[:12]


def _write() -> None:
    drawn = [(draw_rounded(seed), most) for seed in range(5) for most in (100, 3)]
    drawn += [(draw_errors(seed), 100) for seed in range(NUM_DRAWS)]
    figures = {_digest(*each): tide_figures(*each) for each in drawn}
    lines = [
        f'"{key}": {json.dumps({n: None if math.isnan(v) else v for n, v in row.items()})}'
        for key, row in figures.items()
    ]
    version = importlib.metadata.version("tidecv")
    FIGURES.write_text(f'{{"tidecv": "{version}", "figures": {{\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    _write()
