"""Records of the training loop, and the observers that read them: records are frozen, so the run cannot change.

Metric that selects the best checkpoint, and its direction (`max` or `min`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from sightline.config import RunConfig
from sightline.contract import schema
from sightline.contract.errors import ConfigError, LostFolderError
from sightline.contract.metric import Metric, is_higher_better, make_state
from sightline.contract.types import SourceLocation
from sightline.draw.pictures import Picture
from sightline.instrument.random_state import preserve_random_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One finished optimiser step, in numbers of all processes together.

    `step` counts finished steps from 1, `epoch` from 0. `losses` holds each term's mean and "total", their weighted
    sum. `seconds` holds data, transfer, prepare, forward, loss, backward and optimise; `wall_s` runs since the start.
    `extra_scalars` are further figures of the task for its step, such as the number of negatives of a contrast; the
    weights of losses that change from step to step; and `gradient/<layer>`, each layer's norm, with `log.gradients`.
    """

    step: int
    num_steps: int
    epoch: int
    num_epochs: int
    num_samples: int
    losses: Mapping[str, float]
    grad_norm: float
    lr: float
    seconds: Mapping[str, float]
    wall_s: float
    extra_scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation of a split after `step` finished steps; a metric that counted nothing is NaN.

    `parts` are seconds of the first process: data, transfer, prepare, forward, loss, interpret, votes and metrics.
    """

    step: int
    epoch: int
    split: str
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    seconds: float
    num_samples: int
    is_best: bool
    pictures: tuple[Picture, ...] = ()
    phase_seconds: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Reads records and returns nothing.

    `on_step` must leave the global random states alone; around the two others they are put back.
    """

    def on_step(self, record: StepRecord) -> None: ...

    def on_evaluation(self, record: EvaluationRecord) -> None: ...

    def on_end(self, reason: str) -> None: ...


class Observers:
    """Several observers as one. One that fails is switched off with one warning, and the run and the others go on.

    A required observer (`is_required = True`) ends the run instead, and so does any that finds the run's folder moved
    or taken. A failed observer gets `on_end("failed")` once, to release a terminal, a file or a process.
    An error that ends the run is raised after all observers have received the record. The end is reported in reverse
    order, so that the first, a log, still receives the messages of the later ones.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._active = list(observers)

    def __len__(self) -> int:
        return len(self._active)

    def on_step(self, record: StepRecord) -> None:
        self._notify(lambda observer: observer.on_step(record))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        with preserve_random_state():
            self._notify(lambda observer: observer.on_evaluation(record))

    def on_end(self, reason: str) -> None:
        with preserve_random_state():
            self._active.reverse()
            self._notify(lambda observer: observer.on_end(reason))

    def _notify(self, call: Callable[[Observer], None]) -> None:
        stop: Exception | None = None
        for observer in tuple(self._active):
            try:
                call(observer)
            except Exception as error:  # noqa: BLE001 - a logger's error must not end the run
                if isinstance(error, LostFolderError) or getattr(observer, "is_required", False):
                    stop = stop or error
                else:
                    self._switch_off(observer, error)
        if stop is not None:
            raise stop

    def _switch_off(self, observer: Observer, error: Exception) -> None:
        self._active = [other for other in self._active if other is not observer]
        logger.warning(
            "observer-failed: %s is switched off, training goes on; it failed with %s: %s",
            type(observer).__name__,
            type(error).__name__,
            " ".join(str(error).split()),
            extra={"code": "observer-failed"},
        )
        with suppress(Exception), preserve_random_state():  # it failed already: only a chance to release resources
            observer.on_end("failed")


Mode = Literal["max", "min"]


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
