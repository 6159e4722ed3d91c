"""Metric that selects the best checkpoint, and its direction (`max` or `min`)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Literal

from sightline import schema
from sightline.config import RunConfig
from sightline.errors import ConfigError
from sightline.metrics.base import Metric, is_higher_better, make_state
from sightline.types import SourceLocation

__all__ = ["Mode", "resolve_mode"]

logger = logging.getLogger(__name__)

Mode = Literal["max", "min"]


def resolve_mode(config: RunConfig, metrics: Sequence[Metric], *, is_resumed: bool = False) -> RunConfig:
    """Set `evaluate.mode` of the config: the given one, else the direction that the metric of `evaluate.metric` states.

    `metrics` are those of the config, in its order. Raises ConfigError if none of them computes the value, if neither
    config nor metric states a direction, and if they contradict each other; a run that `is_resumed` keeps the config's
    direction, by which its best checkpoint was selected, with a warning.
    """
    figure, configured_mode = config.evaluate.metric, config.evaluate.mode
    where = config.origins.get("evaluate.metric", "evaluate.metric")
    computing = [index for index, metric in enumerate(metrics) if figure in metric.compute(make_state(metric))]
    if not computing:
        names = [name for metric in metrics for name in metric.compute(make_state(metric))]
        raise ConfigError(f"{where}: no metric of this run is called '{figure}'{schema.suggest(figure, names)}")
    metric, block = metrics[computing[-1]], config.metrics[computing[-1]]
    attribute = f"{type(metric).__module__}.{type(metric).__qualname__}.higher_is_better"
    try:
        better = is_higher_better(metric, figure)
    except TypeError as error:
        raise ConfigError(f"{block.location}: {error}") from None
    if better is None and configured_mode is None:
        raise ConfigError(
            f"{where}: neither the config nor the metric '{block.name}' states whether a higher '{figure}' is better; "
            f"set evaluate.mode to max or min, or {attribute} to True or False"
        )
    stated: Mode | None = None if better is None else "max" if better else "min"
    if configured_mode is not None:
        if stated not in (None, configured_mode):
            _report_conflict(
                config, f"{stated} for '{figure}' ({attribute} = {better}; {block.location})", is_resumed=is_resumed
            )
        return config
    origins = {**config.origins, "evaluate.mode": SourceLocation(f"metric '{block.name}'", path="evaluate.mode")}
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, mode=stated), origins=origins)


def _report_conflict(config: RunConfig, stated: str, *, is_resumed: bool) -> None:
    where = config.origins.get("evaluate.mode", "evaluate.mode")
    text = f"{where}: found {config.evaluate.mode}, but the metric states {stated}"
    if not is_resumed:
        raise ConfigError(f"{text}; leave evaluate.mode out, or choose another figure")
    logger.warning("selection-mode: %s; this run keeps its mode: its 'best' may be its worst checkpoint", text)
