"""Range images that `input_mean` and `input_std` do not normalise to mean 0 and standard deviation 1."""

from __future__ import annotations

import torch

from sightline.doctor.checks.data.range_images import PartImages, images_by_part
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding

__all__ = ["input_statistics"]

_CHANNELS = ("range", "x", "y", "z", "remission")
_MAX_MEAN = 3.0
_MIN_STD, _MAX_STD = 0.02, 10.0
"""Standard deviations of the filled pixels after normalisation; 0 to 255 for 0 to 1 is a factor of 255."""


@check(
    "G3",
    "input-statistics",
    "preflight",
    severity="warning",
    causes=("data.normalisation", "data.layout", "cfg.override"),
    config_path="data.sensor",
)
def input_statistics(context: Context) -> list[Finding]:
    """Normalised channels have a mean from -3 to 3 and a deviation from 1/50 to 10 over the filled pixels.

    Finds: Range images that `input_mean` and `input_std` do not normalise to mean 0 and standard deviation 1.
    """
    return [finding for images in images_by_part(context) if (finding := _finding_part(context, images)) is not None]


def _finding_part(context: Context, images: PartImages) -> Finding | None:
    facts = images.part.dataset.info.facts
    is_filled = images.range_image >= 0
    image = torch.cat([batch["image"] for batch in images.batches]).cpu().movedim(1, -1)[is_filled].double()
    if len(image) < 2:
        return None
    mean, std = image.mean(dim=0), image.std(dim=0)
    for channel, name in enumerate(_CHANNELS):
        channel_mean, channel_std = float(mean[channel]), float(std[channel])
        is_constant = channel_std < 1e-6  # files without remissions have zeros
        if abs(channel_mean) <= _MAX_MEAN and (_MIN_STD <= channel_std <= _MAX_STD or is_constant):
            continue
        stated, scale = facts["input_mean"][channel], facts["input_std"][channel]
        return input_statistics.finding(
            context,
            f"the stated statistics are not those of the scans: {name}",
            split=images.part.split,
            measured=f"{name} {stated + channel_mean * scale:.4g} with a deviation of {channel_std * scale:.4g} in "
            f"{images.num_scans} scans: after normalisation {channel_mean:.3g} and {channel_std:.3g}",
            expected=f"about the stated {stated:g} and {scale:g}, in the order {', '.join(_CHANNELS)}",
            action="leave input_mean and input_std out, so that they are measured; or correct sensor.remission_max, "
            "the unit of the coordinates (metres) or the order of the five numbers",
            evidence={"field": "image", "mean": mean.tolist(), "std": std.tolist()},
        )
    return None
