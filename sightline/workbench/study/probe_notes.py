"""Warning beside the figures of a probe: inputs whose scale is not that of the training data."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.types import Batch
from sightline.engine.device import Precision, to_device
from sightline.engine.distributed import World
from sightline.workbench.check.init_rules import layer_scales, other_scale, sampled_batch
from sightline.workbench.probe.features import get_encode, share_errors
from sightline.workbench.probe.probed_run import ProbedRun


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
    finding = other_scale(scales, source=str(probed.run))
    if finding is None:
        return probed
    line = f"warning: {finding.summary} ({finding.measured}; {finding.expected}): {finding.action}"
    return dataclasses.replace(probed, notes=(*probed.notes, line))
