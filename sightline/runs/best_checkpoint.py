"""Best checkpoint of a run: the figure and direction that select it, and when evaluations no longer improve it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sightline.config import RunConfig
from sightline.contract import schema
from sightline.contract.errors import ConfigError
from sightline.contract.metric import Metric, is_higher_better, make_state
from sightline.contract.types import SourceLocation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestCheckpoint:
    """The best checkpoint so far, by the metric that the config names.

    `stale` evaluations in a row did not improve on `mark`, the value of the last that did, by more than the smallest
    change that counts.
    """

    step: int | None = None
    value: float | None = None
    mark: float | None = None
    stale: int = 0

    def after(self, step: int, value: float, mode: str, *, min_change: float = 0.0) -> BestCheckpoint:
        """Return the best checkpoint after an evaluation; a value of NaN, of which nothing was counted, is stale."""

        def beats(other: float | None, by: float = 0.0) -> bool:
            gain = math.inf if other is None else value - other if mode == "max" else other - value
            return gain > by and value == value

        best = (step, value) if beats(self.value) else (self.step, self.value)
        return BestCheckpoint(*best, *((value, 0) if beats(self.mark, min_change) else (self.mark, self.stale + 1)))


class BestCheckpointTracker:
    """The best checkpoint of a run by the config's figure and direction; `is_new` if it is not saved yet."""

    def __init__(self, config: RunConfig) -> None:
        self._figure, self._mode = config.evaluate.metric, config.evaluate.mode
        self._stopping = config.train.early_stopping
        self.best = BestCheckpoint()
        self.is_new = False

    def take(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an evaluation after a step."""
        assert self._mode is not None, "build sets it"
        before, min_change = self.best.step, 0.0 if self._stopping is None else self._stopping.min_change
        self.best = self.best.after(step, metrics[self._figure], self._mode, min_change=min_change)
        self.is_new = self.is_new or self.best.step != before

    @property
    def is_stale(self) -> bool:
        """True if the figure has not improved for so long that the training ends."""
        return self._stopping is not None and self.best.stale >= self._stopping.patience

    def describe_early_end(self, step: int, num_steps: int) -> str:
        """Describe why the training ends after a step before its last; empty where it does not."""
        if not self.is_stale or step >= num_steps:
            return ""
        plural = f"{self.best.stale} evaluations" if self.best.stale > 1 else "evaluation"
        return (
            f"the last {plural} did not improve {self._figure}; by train.early_stopping the training ends after step "
            f"{step} of {num_steps}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for the state of a checkpoint."""
        return {**asdict(self.best), "metric": self._figure}


def resolve_mode(config: RunConfig, metrics: Sequence[Metric], *, is_resumed: bool = False) -> RunConfig:
    """Set `evaluate.mode` of the config: the given one, else the direction that the metric of `evaluate.metric` states.

    `metrics` are those of the config, in its order. Raises ConfigError if none of them computes the value, if neither
    config nor metric states a direction, and if they contradict each other; a run that `is_resumed` keeps the config's
    direction, by which its best checkpoint was selected, with a warning.
    """
    figure, configured_mode = config.evaluate.metric, config.evaluate.mode
    where = config.origins.get("evaluate.metric", "evaluate.metric")
    computed = [metric.compute(make_state(metric)) for metric in metrics]
    for figures, block in zip(computed, config.metrics, strict=False):
        if not isinstance(figures, Mapping) or not all(isinstance(name, str) for name in figures):
            raise ConfigError(
                f"{block.location}: compute of '{block.name}' returned {figures!r:.60}; return a dict, name: number"
            )
    computing = [index for index, figures in enumerate(computed) if figure in figures]
    if not computing:
        names = {block.name: list(figures) for block, figures in zip(config.metrics, computed, strict=True)}
        hint = schema.suggest(figure, [name for figures in names.values() for name in figures])
        component = f" The component '{figure}' of metrics computes {', '.join(names.get(figure, ()))}" * (
            figure in names
        )
        raise ConfigError(f"{where}: no metric of this run is called '{figure}'{hint}{component}")
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
    stated: Literal["max", "min"] | None = None if better is None else "max" if better else "min"
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
