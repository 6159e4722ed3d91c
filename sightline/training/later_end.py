"""Later end of a run that is trained longer: the keys that name it, and what follows for the finished steps."""

from __future__ import annotations

import numpy as np

from sightline.config import RunConfig
from sightline.config.run_config import Train
from sightline.contract import registry
from sightline.engine.build import TrainingSetup
from sightline.runs import checkpoint

_COMPARED_STEPS = 1000
"""Number of finished steps at which two schedules are compared."""


def list_later_ends(train: Train, last: checkpoint.Snapshot) -> dict[str, tuple[object, object]]:
    """List the keys that ended a finished run, by its last checkpoint, each with a later end and its own."""
    stopping = train.early_stopping
    ends: dict[str, tuple[object, object]] = {}
    if stopping is not None and last.state["best"]["stale"] >= stopping.patience:
        ends["train.early_stopping"] = ("null", f"patience {stopping.patience}")
    if last.state["epoch"] >= train.epochs:
        ends["train.epochs"] = (2 * train.epochs, train.epochs)
    if train.steps is not None and last.step >= train.steps:
        ends["train.steps"] = (2 * train.steps, train.steps)
    return ends


def describe_later_end(built: TrainingSetup, recorded: RunConfig, *, planned_steps: int | None, early_end: str) -> str:
    """Describe in a line what follows from the later end of a resumed run, whose `recorded` config has another one.

    `planned_steps` is the last step of the session before, None for a run that has not begun; `early_end` says why the
    training would end again at once.
    """
    config, job = built.config, built.job
    if planned_steps is None or not job.step:
        return f"trains longer: to step {job.num_steps}"
    if early_end:
        return f"trains no longer: {early_end}; to go on, give train.early_stopping=null or a larger patience"
    if planned_steps == job.num_steps:
        first, ignored = ("steps", "epochs") if config.train.steps == planned_steps else ("epochs", "steps")
        end = f"train.{first}={getattr(config.train, first)} ends the run at step {planned_steps}"
        if job.step < planned_steps:
            return f"goes on from step {job.step}: {end}, as planned"
        return f"trains no longer: {end}, before train.{ignored} does; to go on, name a later train.{first}"
    facts = {"num_steps": planned_steps, "steps_per_epoch": job.stream.plan.steps_per_epoch}
    original_schedule, name = registry.schedules.build(config.schedule, facts=facts), config.schedule.name
    line = f"trains longer: to step {job.num_steps} instead of {planned_steps}"
    line += _describe_transforms_by_epochs(config, recorded)
    done = {int(step) for step in np.linspace(0, job.step - 1, _COMPARED_STEPS)}
    if all(original_schedule(step) == job.schedule(step) for step in done):
        return f"{line}; the schedule '{name}' of the finished steps is that of a run of this length"
    last, following = original_schedule(job.step - 1), job.schedule(min(job.step, job.num_steps - 1))
    return (
        f"{line}; the schedule '{name}' depends on the length of the run: its factor goes on from {last:.3g} at "
        f"{following:.3g}, and the {job.step} finished steps followed the shorter one, so the result is not that "
        "of a new run of this length"
    )


def _describe_transforms_by_epochs(config: RunConfig, recorded: RunConfig) -> str:
    """Describe the transforms that were others in the finished steps, as they depend on the number of epochs."""
    epochs, blocks = recorded.train.epochs, config.transforms.train
    names = [block.name for block in blocks if "num_epochs" in registry.transforms.bind(block).accepted_facts]
    if not names or epochs == config.train.epochs:
        return ""
    return (
        f"; transforms.train that depend on train.epochs ({', '.join(names)}) had {epochs} in the finished steps, so "
        "the result may not be that of a new run of this length"
    )
