"""Names of injected arguments, which data sets, runs and neighbouring blocks give instead of a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest
from sightline.contract.types import ComponentConfig

DATA_FACTS = frozenset(
    {
        "azimuth_deg",
        "beams_deg",
        "bones",
        "box_type",
        "camera_px",
        "category_names",
        "centre_joint",
        "class_counts",
        "class_groups",
        "class_names",
        "cube_mm",
        "fov_deg",
        "ignore_index",
        "image_size_px",
        "in_channels",
        "input_mean",
        "input_std",
        "joint_names",
        "keypoint_sigmas",
        "num_beams",
        "num_categories",
        "num_classes",
        "num_joints",
        "num_parts",
        "part_names",
        "parts_of_category",
        "pck_joints",
        "range_m",
        "reference_source",
        "up_axis",
    }
)
"""Arguments that a data set gives to every component that names them."""
RUN_FACTS = frozenset(
    {
        "batch_keys",
        "device",
        "losses",
        "micro_batches",
        "model",
        "num_epochs",
        "num_samples",
        "num_steps",
        "output_keys",
        "run",
        "split",
        "steps_per_epoch",
        "world",
    }
)
"""Arguments that the run itself gives."""
FACTS = DATA_FACTS | RUN_FACTS
"""Arguments that no config may give: one given by hand as well would have two sources."""

BLOCK_FACTS = frozenset({"channels", "strides"})
"""Arguments that one block of a component gives to the blocks after it, where their kinds form a chain.

`channels` and `strides` are tuples of one number for each map that the block returns: its channels, and how many pixels
of the image one of its cells is wide and high.
"""


def check_data_facts(data: ComponentConfig, facts: Mapping[str, Any]) -> None:
    """Raise ConfigError for facts of a data set with unknown names, or with values that facts.json cannot store."""
    for name, value in facts.items():
        if name not in DATA_FACTS:
            raise ConfigError(
                f"{data.location}: data set '{data.name}' states the fact '{name}', which is not one"
                f"{suggest(name, DATA_FACTS)}"
            )
        try:
            json.dumps(value)
        except TypeError as error:
            raise ConfigError(
                f"{data.location}: data set '{data.name}' states the fact '{name}' as {value!r}, which a run cannot "
                f"note ({error}); give plain numbers and text, alone or in tuples (an array's .tolist())"
            ) from None
