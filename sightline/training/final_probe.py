"""What `train` and `evaluate` add to the metrics of a run that learns without labels."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World
from sightline.probe.source_digest import source_sha256
from sightline.runs.run_directory import RunDirectory

__all__ = ["probe_metrics"]

source_sha256()  # now, as it is imported: a checkout may be edited while a run trains, and its digest is kept


def probe_metrics(
    config: RunConfig, world: World, run: RunDirectory, note: Callable[[str], object], model: nn.Module
) -> dict[str, float]:
    """`probe_svm_accuracy` of a contrast run, nothing of others; on the first process `note` gets remarks on it.

    A remark is why the figure is missing, or how to read it. Features are kept in the run, where the first process can
    write to it, so that `evaluate` and `probe` find them.
    """
    if config.task.name != "contrast":  # the rooms of probes are not imported for the others
        return {}
    from sightline.probe.cache import FeatureCache
    from sightline.probe.final import final_metrics
    from sightline.probe.probed_run import CACHE

    def is_open() -> str:
        return "yes" if os.access(run.path, os.W_OK) else "no"

    keeps = world.broadcast_from_rank_zero(is_open, operation="whether features are kept") == "yes"
    cache = FeatureCache(run.path / CACHE, run.assert_lock_held) if keeps else None
    metrics, remarks = final_metrics(config, model, world, cache=cache)
    remarks += ["probe_svm_accuracy: `sightline probe` sets random weights beside it"] if metrics else []
    for line in remarks:
        world.rank_zero_only(note)(line)
    return metrics
