"""Runtime moment of our own training runs: findings at the step where they are true, also in findings.json."""

from __future__ import annotations

from collections.abc import Callable

from sightline.config import RunConfig
from sightline.doctor.finding import Finding
from sightline.engine.train import TrainState
from sightline.workbench.check.runtime_rules import RUNTIME_RULES
from sightline.workbench.watch.watch import Watch


def watch_run(job: TrainState, config: RunConfig, receive: Callable[[Finding], None]) -> Watch:
    """Watch the training of a run, in its process; `receive` gets each finding at once. A context, see `Watch`.

    A compiled model is judged by its losses, gradients and updates alone: torch.compile would trace hooks on it.
    """
    return Watch(
        {"": job.model},
        optimizers=[job.optimizer],
        averages=[] if job.ema is None else [job.ema],
        declared=frozenset(rule.code for rule in RUNTIME_RULES if rule.is_skipped(config)),
        watches_passes=not job.compile,
        first_step=job.step,
        receive=receive,
    )
