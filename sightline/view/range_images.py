"""Flat pictures of a range image: distances, labels, predictions and errors, one row per beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sightline.contract.types import Sample
from sightline.draw.pictures import UNLABELLED, apply_colormap, label_colors
from sightline.parts.tasks.segment import WRONG
from sightline.view.panels import ImagePanel

_MIN_HEIGHT_PX, _MAX_ASPECT = 64, 24
"""Least height of a drawn range image, and largest ratio of its width to its height, both to a whole number of rows."""
_EMPTY = np.array([28, 31, 36], dtype=np.uint8)


def image_panels(sample: Sample, facts: Mapping[str, Any]) -> tuple[ImagePanel, ...]:
    """Draw the distances of a `range_image` (H, W), near pixels dark and empty ones black, and its labels if any."""
    distance = sample["range_image"].float().numpy()
    is_empty = distance < 0
    pixels = np.broadcast_to(_EMPTY, (*distance.shape, 3)).copy()
    if not is_empty.all():
        pixels[~is_empty] = apply_colormap(np.log1p(distance[~is_empty]))
    panels = [_panel("range", pixels)]
    if "label" in sample and sample["label"].shape == distance.shape:
        panels.append(_panel("labels", _class_pixels(sample["label"].numpy(), is_empty, facts)))
    return tuple(panels)


def prediction_panels(sample: Mapping[str, Any], seen: np.ndarray, facts: Mapping[str, Any]) -> tuple[ImagePanel, ...]:
    """Draw the predicted classes (H, W) of a range image, and the wrong pixels in red."""
    is_empty = sample["range_image"].float().cpu().numpy() < 0
    panels = [_panel("predicted pixels", _class_pixels(seen, is_empty, {}))]
    if "label" in sample and sample["label"].shape == seen.shape:
        label = sample["label"].cpu().numpy()
        is_wrong = (seen != label) & (label != facts.get("ignore_index")) & ~is_empty
        pixels = np.where(is_empty[..., None], _EMPTY, np.where(is_wrong[..., None], WRONG, UNLABELLED))
        panels.append(_panel("wrong pixels", pixels.astype(np.uint8)))
    return tuple(panels)


def _panel(name: str, pixels: np.ndarray) -> ImagePanel:
    """Draw a range image (H, W, 3) with its rows repeated if it is too low to be seen."""
    height, width = pixels.shape[:2]
    return ImagePanel(name, pixels.repeat(max(1, _MIN_HEIGHT_PX // height, width // (_MAX_ASPECT * height)), axis=0))


def describe_image(sample: Sample) -> str:
    """Describe the share of filled pixels, and of points that are shown by a pixel."""
    distance = sample["range_image"]
    num_filled = int((distance >= 0).sum())
    height, width = distance.shape
    num_points = len(sample["points"])
    num_returns = int((sample["point_range"] > 0).sum()) if "point_range" in sample else num_points
    share = num_filled / max(1, num_returns)
    return f"{height} x {width} pixels, {num_filled / distance.numel():.1%} filled, {share:.1%} of the points shown"


def _class_pixels(labels: np.ndarray, is_empty: np.ndarray, facts: Mapping[str, Any]) -> np.ndarray:
    codes = np.where(labels == facts.get("ignore_index"), -1, labels)
    pixels: np.ndarray = np.where(is_empty[..., None], _EMPTY, label_colors(codes)).astype(np.uint8)
    return pixels
