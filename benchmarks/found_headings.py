"""Headings of the boxes that a run finds: how many lead within 90 degrees of the label, and the error of their axis.

`python -m benchmarks.found_headings CONFIG DIR/boxes3d.json` reads what `evaluate RUN --save-predictions --out DIR`
wrote of the config's test part. A detection, highest score first, takes the free label of its class that it overlaps
most, by an IoU of at least 0.5, of pedestrians 0.25; labels that the run ignores take no part.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.commonest_box import read_frames
from sightline.config import read_config
from sightline.engine.build import build
from sightline.engine.distributed import World
from sightline.ops.boxes.rotated_overlaps import box3d_iou
from sightline.store.boxes3d.results import read_results

_FAR_M, _NEAR_M = 30.0, 10.0


def pair(boxes: torch.Tensor, scores: np.ndarray, labels: torch.Tensor, least: float) -> list[tuple[float, float]]:
    """Return the difference of headings and the label's distance of each detection (D, 7) that finds a label (T, 7)."""
    overlaps = box3d_iou(boxes, labels).numpy()
    free, pairs = np.ones(len(labels), dtype=bool), []
    for row in np.argsort(-scores, kind="stable"):
        fits = np.where(free, overlaps[row], -1.0)
        if len(fits) and fits.max() >= least:
            label = int(fits.argmax())
            free[label] = False
            pairs.append((float(boxes[row, 6] - labels[label, 6]), float(labels[label, :2].norm())))
    return pairs


def main(config: str, results: str) -> None:
    """Print the figures of each class."""
    data = build(read_config(Path(config), ()), World()).data
    names, found = data.facts["class_names"], read_results(Path(results), {})
    for number, name in enumerate(names):
        pairs = []
        for index, batch in zip(data.test.indices, read_frames(data.test), strict=True):
            table = found[data.test.sample_name(int(index))]
            assert table.score is not None
            own = np.flatnonzero(np.array([table.class_names[label] for label in table.label]) == name)
            counts = ~batch["is_ignored"] & (batch["label"] == number)
            boxes, labels = torch.from_numpy(table.boxes[own]).double(), batch["boxes"][counts].double()
            pairs += pair(boxes, table.score[own], labels, 0.25 if name == "Pedestrian" else 0.5)
        turned, away = np.array(pairs).reshape(-1, 2).T
        is_right, axis = np.cos(turned) > 0, np.abs((turned + np.pi / 2) % np.pi - np.pi / 2)
        shares = (
            f"{text} {is_right[rows].mean():.3f}"
            for text, rows in (
                ("all", away >= 0),
                (f"nearer than {_NEAR_M:g} m", away < _NEAR_M),
                (f"from {_FAR_M:g} m", away >= _FAR_M),
            )
            if rows.any()
        )
        error = f", axis off by {axis.mean():.4f} rad" if len(axis) else ""
        sys.stdout.write(f"{name}: {len(turned)} found; within 90 degrees: {', '.join(shares)}{error}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
