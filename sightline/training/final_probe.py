"""Probe metrics that `train` and `evaluate` add to those of a run without labels."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World
from sightline.probe.source_digest import source_sha256
from sightline.runs.run_directory import RunDirectory

__all__ = ["probe_metrics"]

source_sha256()  # at import, because the source may be edited while a run trains; the digest is cached


def probe_metrics(
    config: RunConfig, world: World, run: RunDirectory, note: Callable[[str], object], model: nn.Module
) -> dict[str, float]:
    """Compute `probe_svm_accuracy` of a contrast run, nothing for others; rank 0 passes remarks to `note`.

    A remark is the reason why the metric is missing, or how to read it. Features are cached in the run, if rank 0 can
    write to it, so that `evaluate` and `probe` reuse them.
    """
    if config.task.name != "contrast":  # probes are imported only for contrastive runs
        return {}
    from sightline.probe.cache import FeatureCache
    from sightline.probe.final import final_metrics
    from sightline.probe.probed_run import CACHE

    def is_open() -> str:
        return "yes" if os.access(run.path, os.W_OK) else "no"

    keeps = world.broadcast_from_rank_zero(is_open, operation="whether features are kept") == "yes"
    cache = FeatureCache(run.path / CACHE, run.assert_lock_held) if keeps else None
    metrics, remarks = final_metrics(config, model, world, cache=cache)
    remarks += ["probe_svm_accuracy: `sightline probe` compares it with random weights"] if metrics else []
    for line in remarks:
        world.rank_zero_only(note)(line)
    return metrics
