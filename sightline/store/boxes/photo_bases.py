"""Table of the shipped configs that a detector on photos of one's own builds on, by the number of its photos."""

from __future__ import annotations

from sightline.store.prepared.config_bases import ConfigBase

WITHOUT_WEIGHTS = "detect/photos_scratch"
"""The base that starts from random weights, and needs no file."""
OF_RANDOM_WEIGHTS = (
    "random weights find next to nothing after so few: AP50 0.0056 on 128 unseen photos of COCO after 50 epochs of 56 "
    "at 192x192 (seed 0)"
)
"""Measured: docs/results/tasks.md#photos."""

BASES = (
    ConfigBase(
        "detect/photos_finetune",
        "a detector of COCO, of which the layer of the classes starts anew",
        num_samples=10_000,
    ),
    ConfigBase("detect/photos_imagenet", "so many teach a smaller network, from ImageNet's weights"),
    ConfigBase(WITHOUT_WEIGHTS, "from random weights"),
)
"""The first row that holds is the base. The border is published, not measured here: from some 10 % of COCO's photos on,
random weights come as far as pre-trained ones. Source: He et al. 2019, Rethinking ImageNet Pre-training."""

SECONDS = {"detect/photos_finetune": 1.5, "detect/photos_imagenet": 0.5, "detect/photos_scratch": 0.4}
"""Processor time of one photo of 320 x 320 pixels in an epoch: the median of 3 training steps of 4, in one thread."""
MEASURED_ON = "on an Intel Xeon"
