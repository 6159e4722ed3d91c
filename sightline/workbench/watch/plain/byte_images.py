"""Images that were bytes: whether they were divided by 255 twice, before a normalisation or without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.workbench.check.checks.data.images import input_statistics
from sightline.workbench.watch.loop import Found

_BYTE = 255
_TWICE = _BYTE * _BYTE
_MIN_LEVELS, _MAX_WHOLE_ERROR = 8, 1e-2
_MIN_MEAN, _MAX_MEAN = 0.02, 0.98
_MIN_DEVIATION, _MAX_DEVIATION = 0.1, 0.6
"""Means and deviations that a normalisation of images in 0 .. 1 subtracts and divides by."""
_MAX_STEP_ERROR = 0.05
"""Distance of a value from its level, as a share of the step: float32 leaves 1 % at a mean of 0.5."""


class Levels(NamedTuple):
    """Values of a channel that are k / 65025, less a mean, divided by a deviation."""

    mean: float
    deviation: float


def judge_bytes(images: Tensor) -> Iterator[Found]:
    """Images (B, C, H, W) are not k / 255 / 255, nor such numbers after a normalisation: bytes are divided once."""
    if images.ndim != 4 or not images.is_floating_point() or 0 not in (images.shape[1] % 3, images.shape[1] // 2):
        return
    if _is_divided_twice(images):
        yield input_statistics.with_fault(
            "images are divided by 255 twice: their values end at 1 / 255",
            severity="error",
            causes=("data.normalisation",),
            measured=f"values 0 .. {float(images.max()):.4g}, whole multiples of 1 / {_TWICE}",
            expected="values up to 1",
            action="divide once: ToTensor and the like do it for uint8",
        )
        return
    found = [levels for channel in images.movedim(1, 0) if (levels := _find_normalised(channel)) is not None]
    if len(found) == images.shape[1]:
        mean, deviation = found[0]
        yield input_statistics.with_fault(
            "normalised images are all but constant, in steps as of bytes that are divided by 255 twice",
            severity="warning",
            causes=("data.normalisation",),
            measured=f"values {float(images.min()):.4g} .. {float(images.max()):.4g}, in each channel whole numbers k "
            f"up to 255: in the first they are (k / {_TWICE} - {mean:.4g}) / {deviation:.4g}",
            expected="values some -2 .. 2: bytes are divided by 255 once before a mean is subtracted",
            action="divide once: ToTensor and the like do it for uint8",
        )


def _is_divided_twice(images: Tensor) -> bool:
    levels = images * _BYTE * _BYTE
    if bool(((levels - levels.round()).abs() >= _MAX_WHOLE_ERROR).any()) or float(images.min()) < 0:
        return False
    return float(levels.max()) <= _BYTE + 0.5 and len(levels.round().unique()) > _MIN_LEVELS


def _find_normalised(channel: Tensor) -> Levels | None:
    """Find the mean and the deviation after which the values of a channel are k / 65025, with a k up to 255."""
    values = channel.flatten().double().unique()
    if not _MIN_LEVELS < len(values) <= _BYTE + 1 or not bool(values.isfinite().all()):
        return None
    gaps = values.diff()
    counts = torch.cat([gaps.new_zeros(1), (gaps / gaps.min()).round().cumsum(dim=0)])
    step = float((values[-1] - values[0]) / counts[-1])
    error = (values - values[0] - counts * step).abs().max()
    mean, deviation = -float(values[0]) / (step * _TWICE), 1 / (step * _TWICE)
    if float(counts[-1]) > _BYTE or float(error) > _MAX_STEP_ERROR * step:
        return None
    is_usual = _MIN_MEAN < mean < _MAX_MEAN and _MIN_DEVIATION < deviation < _MAX_DEVIATION
    return Levels(mean, deviation) if is_usual else None
