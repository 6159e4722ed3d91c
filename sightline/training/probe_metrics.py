"""Metrics of frozen features, which `train` and `evaluate` add to those of a run without labels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World


def probe_metrics(config: RunConfig, world: World, note: Callable[[str], object], model: nn.Module) -> dict[str, float]:
    """Compute `probe_svm_accuracy` of a contrast run, nothing for others; rank 0 passes remarks to `note`.

    A remark is the reason why the metric is missing, or how to read it.
    """
    if config.task.name != "contrast":  # probes are imported only for contrastive runs
        return {}
    from sightline.workbench.probe.measure import final_metrics

    metrics, remarks = final_metrics(config, model, world)
    if metrics:
        remarks.append("probe_svm_accuracy: `evaluate RUN --probe svm` compares it with random weights")
    for line in remarks:
        world.rank_zero_only(note)(line)
    return metrics
