"""Range images that `input_mean` and `input_std` do not bring to mean 0 and deviation 1."""

from __future__ import annotations

import torch

from sightline.doctor.checks.data.range_images import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["input_statistics"]

_CHANNELS = ("range", "x", "y", "z", "remission")
_MOST_MEAN = 3.0
_LEAST_STD, _MOST_STD = 0.02, 10.0
"""Deviations of the filled pixels after normalisation; 0 to 255 for 0 to 1 is a factor of 255."""


@check(
    "G3",
    "input-statistics",
    "preflight",
    severity="warning",
    causes=("data.normalisation", "data.layout", "cfg.override"),
    config_path="data.sensor",
)
def input_statistics(context: Context) -> list[Finding]:
    """Every channel of the filled pixels has a mean within 3 and a deviation from 1/50 to 10, in stated deviations."""
    return [finding for images in images_by_part(context) if (finding := _of_part(context, images)) is not None]


def _of_part(context: Context, images: PartImages) -> Finding | None:
    facts = images.part.dataset.info.facts
    is_filled = images.range_image >= 0
    image = torch.cat([batch["image"] for batch in images.batches]).cpu().movedim(1, -1)[is_filled].double()
    if len(image) < 2:
        return None
    mean, std = image.mean(dim=0), image.std(dim=0)
    for place, name in enumerate(_CHANNELS):
        own, spread = float(mean[place]), float(std[place])
        is_constant = spread < 1e-6  # files without remissions have zeros
        if abs(own) <= _MOST_MEAN and (_LEAST_STD <= spread <= _MOST_STD or is_constant):
            continue
        stated, scale = facts["input_mean"][place], facts["input_std"][place]
        return input_statistics.finding(
            context,
            f"the stated statistics are not those of the scans: {name}",
            split=images.part.split,
            measured=f"{name} {stated + own * scale:.4g} with a deviation of {spread * scale:.4g} in "
            f"{images.num_scans} scans: after normalisation {own:.3g} and {spread:.3g}",
            expected=f"about the stated {stated:g} and {scale:g}, in the order {', '.join(_CHANNELS)}",
            action="leave input_mean and input_std out, so that they are measured; or mend sensor.remission_max, the "
            "unit of the coordinates (metres) or the order of the five numbers",
            evidence={"field": "image", "mean": mean.tolist(), "std": std.tolist()},
        )
    return None
