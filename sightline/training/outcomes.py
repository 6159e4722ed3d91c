"""Observer of a run that passes its losses and figures to the watch of its steps, and names samples of its batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sightline.doctor.watch.watch import Watch
from sightline.engine.records import EvaluationRecord, StepRecord
from sightline.training.session import TrainingSession


class OutcomeObserver:
    """Losses at each step, and at each evaluation the figure that chooses a checkpoint, and both modes of the network.

    `lines` are those of metrics.jsonl up to the step at which the session begins: figures of a resumed run are compared
    with earlier ones.
    """

    reads_pictures = False

    def __init__(self, watch: Watch, session: TrainingSession, lines: Iterable[Mapping[str, Any]]) -> None:
        self._watch, self._session, self._figure = watch, session, session.config.evaluate.metric
        record = watch.recording.record
        record.metric, record.is_higher_better = self._figure, session.config.evaluate.mode == "max"
        for line in lines:
            record.add_line(line)
        record.main_losses.jumps.clear()  # an earlier session has said so

    def on_step(self, record: StepRecord) -> None:
        watch = self._watch
        watch.take(watch.recording.take_loss(record.step, record.losses["total"], record.grad_norm))

    def on_evaluation(self, record: EvaluationRecord) -> None:
        watch = self._watch
        watch.compare_modes(self._session.job.evaluation_model)
        watch.take(watch.recording.take_score(record.step, record.metrics[self._figure]))

    def on_end(self, reason: str) -> None:
        """Do nothing: the watch ends after the session."""


def name_sample(session: TrainingSession, step: int, micro_batch: int, row: int) -> int | None:
    """Return the index of the sample in a row of a training batch of this process; `step` counts from 1.

    A task may call the model with several views of each sample, one after another.
    """
    keys = session.job.stream.step_keys(step - 1)
    if not keys:
        return None
    batch_keys = keys[micro_batch % len(keys)]
    return batch_keys[row % len(batch_keys)].index if batch_keys else None
