"""What a run without labels reports of itself at its end: the accuracy of a linear SVM on its own data's classes."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from sightline.config import RunConfig
from sightline.engine.distributed import World
from sightline.errors import MissingExtraError
from sightline.probe.cache import FeatureCache
from sightline.probe.outcome import UnprobableError, assert_fits
from sightline.probe.subject import Recipe, open_data, split_of
from sightline.probe.svm import SVM

__all__ = ["final_metrics"]

_METHOD = "probe_svm_accuracy"


def final_metrics(
    config: RunConfig, model: nn.Module, world: World, *, cache: Path | None
) -> tuple[dict[str, float], str]:
    """`probe_svm_accuracy`, what `sightline probe --method svm` says of the same weights on the config's own data.

    The text says why the figure is missing, where the data has no classes, for one; it is empty otherwise. To be called
    on every process: the first one learns, and all get the same figure.
    """
    try:
        probe = SVM(standardise="no")
        data = open_data(config)
        assert_fits(probe, len(data.train.indices))
    except (UnprobableError, MissingExtraError) as error:
        return {}, f"{_METHOD} is left out: {error}"
    kept = None if cache is None else FeatureCache(cache)
    split = split_of(model, Recipe(config.model, config.train.precision), data, world, cache=kept)
    said = ""
    if world.is_first:
        try:
            said = json.dumps([dict(probe(split.train, split.test).metrics), ""])
        except UnprobableError as error:  # too few samples of a class
            said = json.dumps([{}, f"{_METHOD} is left out: {error}"])
    metrics, reason = json.loads(world.broadcast_text(said, what="the probe's figure"))
    return metrics, reason
