"""Check of a probe's input scale against that of training (guard G39), through `encode` instead of a task."""

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
    """Add a warning to the run if the inputs of its first batch norms differ in scale from their running statistics.

    Uses sixteen clouds of the training split. Source: as `feature_scale`.
    """
    part, model = probed.data.train, probed.network(world)
    precision = Precision(probed.config.train.precision)
    available_keys = AvailableKeys("the data set", part.reader.keys)

    def run(network: nn.Module, batch: Batch) -> Any:
        encode = bind(get_encode(network), available_keys, owner=f"{type(network).__name__}.encode")
        return encode.function(**encode.select(batch))

    with share_errors(world):
        batch = to_device(
            sampled_batch(part, seed=probed.config.seed), world.device, float_dtype=precision.parameter_dtype
        )
        with precision.autocast(world.device):
            scales = layer_scales(model, batch, run)
    finding = other_scale(scales, where=FindingLocation(config_path="data"), source=str(probed.run))
    if finding is None:
        return probed
    line = f"warning: {finding.summary} ({finding.measured}; {finding.expected}): {finding.action}"
    return dataclasses.replace(probed, notes=(*probed.notes, line))
