"""Records of the training loop, and the observers that read them: records are frozen, so the run cannot change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from sightline.contract.errors import LostFolderError
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
