"""Table of the shipped config that a detector on photos of one's own builds on, by the number of its photos."""

from __future__ import annotations

from typing import NamedTuple

WITHOUT_WEIGHTS = "detect/photos_scratch"
"""The base that starts from random weights, and needs no file."""
OF_RANDOM_WEIGHTS = (
    "random weights find next to nothing after so few: AP50 0.0056 on 128 unseen photos of COCO after 50 epochs of 56 "
    "at 192x192 (seed 0)"
)
"""Measured: docs/results/tasks.md#photos."""


class PhotoBase(NamedTuple):
    """Base for fewer than `num_photos` photos to train on, or for any number (None), with the reason for it."""

    name: str
    num_photos: int | None
    reason: str


BASES = (
    PhotoBase("detect/photos_finetune", 10_000, "a detector of COCO, of which the layer of the classes starts anew"),
    PhotoBase("detect/photos_imagenet", None, "so many teach a smaller network, from ImageNet's weights"),
)
"""The first row that holds is the base. The border is published, not measured here: from some 10 % of COCO's photos on,
random weights come as far as pre-trained ones. Source: He et al. 2019, Rethinking ImageNet Pre-training."""

SECONDS = {"detect/photos_finetune": 1.5, "detect/photos_imagenet": 0.5, "detect/photos_scratch": 0.4}
"""Processor time of one photo of 320 x 320 pixels in an epoch: the median of 3 training steps of 4, in one thread."""
MEASURED_ON = "on an Intel Xeon"


def choose_base(num_photos: int) -> PhotoBase:
    """Return the row of a number of training photos."""
    return next(row for row in BASES if row.num_photos is None or num_photos < row.num_photos)
