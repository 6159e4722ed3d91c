"""Features made by hand: classes as clouds around centres, more or less apart."""

from __future__ import annotations

import numpy as np

from sightline.workbench.probe.features import Features

__all__ = ["blobs"]


def blobs(
    num_samples: int, *, num_classes: int = 5, width: int = 16, apart: float = 1.2, seed: int = 0
) -> tuple[Features, Features]:
    """A training and a test part of two thirds and one third; centres and rows from generators of their own."""
    centres = np.random.default_rng(99).standard_normal((num_classes, width)) * apart
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, num_classes, num_samples)
    rows = (centres[labels] + draw.standard_normal((num_samples, width))).astype(np.float32)
    cut = 2 * num_samples // 3
    return Features(rows[:cut], labels[:cut]), Features(rows[cut:], labels[cut:])
