"""Bins of labels by visible share, height in pixels, and density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sightline.parts.metrics.box_groups import BoxGroups, LabelColumn, iou_or_ioa


class Bin(NamedTuple):
    """Bin of labels with `low` <= value < `high` of a property."""

    quantity: str
    low: float
    high: float


BINS: Mapping[str, Bin] = {
    "visible >= 0.65": Bin("visible", 0.65, math.inf),
    "visible 0.2 to 0.65": Bin("visible", 0.2, 0.65),
    "visible < 0.2": Bin("visible", 0.0, 0.2),
    "height < 50 px": Bin("height", 0, 50),
    "height 50 to 150 px": Bin("height", 50, 150),
    "height >= 150 px": Bin("height", 150, math.inf),
    "density < 0.2": Bin("density", 0, 0.2),
    "density 0.2 to 0.5": Bin("density", 0.2, 0.5),
    "density >= 0.5": Bin("density", 0.5, math.inf),
}
"""Bins of labels by name, over three quantities.

`visible` is the visible share of a label, with CityPersons' limits; `height` that of its box in pixels of the
file; `density` its largest IoU with another label of its class that counts (Liu et al. 2019, Adaptive NMS).
"""


def label_values(groups: BoxGroups) -> dict[str, np.ndarray]:
    """Compute the quantity (G,) of every label, by quantity name.

    NaN if it is unknown, density 0 for ignored labels.
    """
    density = np.zeros(len(groups.labels))
    for _, label_rows in groups.groups():
        counted = label_rows.start + np.flatnonzero(~groups.is_ignored[label_rows])
        overlap = iou_or_ioa(groups.labels[counted, LabelColumn.BOX], groups.labels[counted, LabelColumn.BOX], False)
        np.fill_diagonal(overlap, 0)
        density[counted] = overlap.max(axis=1, initial=0)
    height = groups.labels[:, LabelColumn.BOTTOM] - groups.labels[:, LabelColumn.TOP]
    return {"visible": groups.labels[:, LabelColumn.VISIBLE], "height": height, "density": density}


def in_bin(one: Bin, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return a mask (G,) of the labels in a bin."""
    return (values[one.quantity] >= one.low) & (values[one.quantity] < one.high)
