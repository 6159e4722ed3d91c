"""Proposal of the canvas of `fit_image` for a set of images with boxes, from their sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_SMALLEST_BOX_PX = 16.0
"""Side on the canvas that nine of ten boxes should have: two cells of a detector's finest level."""
_MIN_LONG_PX, _MAX_LONG_PX = 320, 1344
_MULTIPLE = 32
"""Stride of the coarsest level that backbones compute."""
_WORDS = "transforms.train.2.{side}={px} transforms.evaluate.0.{side}={px}"
"""Position of `fit_image` in the presets `configs/detect/photos_*.yaml`."""


def propose_canvas(sizes_px: np.ndarray, boxes: np.ndarray) -> dict[str, Any]:
    """Propose height and width from image sizes (N, 2), height first, and corners of boxes (B, 4) in their pixels.

    The canvas has the images' median ratio of sides. It is as small as nine of ten boxes allow, never larger than the
    images, and its sides are multiples of 32. Returns also the overrides of the presets; {} without boxes.
    """
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    sides = sides[sides > 0]
    if not len(sides):
        return {}
    height, width = (float(side) for side in np.median(sizes_px, axis=0))
    small = float(np.quantile(sides, 0.1))
    long_px = max(height, width)
    scale = min(1.0, max(_SMALLEST_BOX_PX / small, _MIN_LONG_PX / long_px), _MAX_LONG_PX / long_px)
    canvas = {"height": _round_up(height * scale), "width": _round_up(width * scale)}
    words = " ".join(_WORDS.format(side=side, px=px) for side, px in canvas.items())
    return {
        **canvas,
        "small_box_px": round(small * scale, 1),
        "for_configs_detect_photos": words,
    }


def _round_up(length: float) -> int:
    return math.ceil(length / _MULTIPLE - 1e-9) * _MULTIPLE
