"""What stands beside the figures of a probe: a warning of inputs of another scale, and published results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from sightline.contract.binding import AvailableKeys, bind
from sightline.contract.types import Batch
from sightline.engine.device import Precision, to_device
from sightline.engine.distributed import World
from sightline.runs.weights import find_neighbour_graph, get_argument
from sightline.training.published_results import (
    ResultRow,
    comparison_entry,
    describe_checkpoint,
    describe_foreign_data,
    pretraining_protocol,
    published_rows,
)
from sightline.workbench.check.init_rules import layer_scales, other_scale, sampled_batch
from sightline.workbench.probe.features import get_encode, share_errors
from sightline.workbench.probe.measure import Comparison
from sightline.workbench.probe.methods import Probe
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


def list_published(comparison: Comparison, probes: Mapping[str, Probe], *, which: str) -> list[dict[str, Any]]:
    """List the published rows on the probed data with one of these metrics, as `compare_with_published` does.

    Empty for a user's own data (`describe_foreign_data`).
    """
    probed = comparison.probed
    data, metrics = probed.data.config.data, comparison.metrics
    if describe_foreign_data(data, probed.data.test.dataset.info) is not None:
        return []
    protocol = probe_protocol(probed, which=which, probes=probes)
    ours = ResultRow(str(probed.run), "this run", data.name, protocol, metrics)
    shared = [(row, [name for name in row.metrics if name in metrics]) for row in published_rows([data.name])]
    return [comparison_entry(ours, row, names) for row, names in shared if names]


def probe_protocol(probed: ProbedRun, *, which: str, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Build the protocol of training and probing a run, with the entry names of published rows."""
    data = probed.data.config.data
    graph = find_neighbour_graph(probed.config.model, probed.data.num_points)
    variant = get_argument("data", data, "variant")
    protocol = {
        **pretraining_protocol(probed.files.config, probed.files.inputs),
        "points in the probe": probed.data.num_points,
        "neighbours in the probe": None if graph is None else graph.neighbours,
        "checkpoint": describe_checkpoint(which, is_test_selected=probed.is_test_selected),
        "variant": variant,
        "background": None if variant is None else get_argument("data", data, "background"),
    }
    for probe in probes.values():
        protocol |= probe.facts
    return protocol
