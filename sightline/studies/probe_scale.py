"""Before a probe: are its clouds of the scale that the weights learned on? Guard G39, by `encode` instead of a task."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from sightline.binding import AvailableKeys, bind
from sightline.doctor.checks.weights.feature_scale import layer_scales, other_scale, sampled_batch
from sightline.doctor.core.finding import FindingLocation
from sightline.engine.device import to_device
from sightline.engine.distributed import World
from sightline.engine.precision import Precision
from sightline.probe.features import get_encode, share_errors
from sightline.probe.probed_run import ProbedRun
from sightline.types import Batch

__all__ = ["check_input_scale"]


def check_input_scale(probed: ProbedRun, world: World) -> ProbedRun:
    """The run with a note more where what the first batch norms are given is not of the size that they have learned.

    Sixteen clouds of the training part are looked at. Source: as `feature_scale`.
    """
    part, model = probed.data.train, probed.network(world)
    precision = Precision(probed.config.train.precision)
    offer = AvailableKeys("the data set", part.reader.keys)

    def run(network: nn.Module, batch: Batch) -> Any:
        encode = bind(get_encode(network), offer, owner=f"{type(network).__name__}.encode")
        return encode.function(**encode.select(batch))

    with share_errors(world):
        batch = to_device(
            sampled_batch(part, seed=probed.config.seed), world.device, float_dtype=precision.parameter_dtype
        )
        with precision.autocast(world.device):
            scales = layer_scales(model, batch, run)
    found = other_scale(scales, where=FindingLocation(config_path="data"), source=str(probed.run))
    if found is None:
        return probed
    line = f"warning: {found.summary} ({found.measured}; {found.expected}): {found.action}"
    return dataclasses.replace(probed, notes=(*probed.notes, line))
