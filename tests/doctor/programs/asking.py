"""Ways in which a user asks the doctor about a program, and which relations each of them asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sightline
from tests.doctor.programs.program import Program


def check_plainly(program: Program) -> None:
    """Check the plain form: batches `(inputs, target)` and `loss(outputs, target)`."""
    assert program.plain_form is not None
    model, loss, loader = program.plain_form()
    sightline.check(model, loss, loader, optimizer=program.optimizer)


def check_loss(program: Program) -> None:
    """Check the loss that the script has by name, with its loaders."""
    sightline.check(
        program.model, program.loss, program.loader, optimizer=program.optimizer, evaluation=program.evaluation
    )


def check_step(program: Program) -> None:
    """Check the step of the loop, with its loaders."""
    sightline.check(
        program.model,
        loader=program.loader,
        step=program.step,
        optimizer=program.optimizer,
        evaluation=program.evaluation,
    )


def check_models(program: Program) -> None:
    """Check all models that are trained together, by the step that returns their losses."""
    sightline.check(program.watched, step=program.losses, loader=program.loader, optimizer=program.optimizers)


def watch_training(program: Program) -> None:
    """Watch the training."""
    with sightline.watch(program.watched or program.model, optimizer=program.optimizers or program.optimizer):
        program.train()


def watch_step(program: Program) -> None:
    """Watch an epoch of the training, with the step of the loop and its loaders."""
    models, step = program.watched or program.model, program.losses or program.step
    optimizers, evaluation = program.optimizers or program.optimizer, program.evaluation
    with sightline.watch(models, optimizer=optimizers, step=step, loader=program.loader, evaluation=evaluation):
        program.train(1)


WAYS: Mapping[str, Callable[[Program], None]] = {
    "plain": check_plainly,
    "loss": check_loss,
    "step": check_step,
    "models": check_models,
    "watch": watch_training,
    "watch_step": watch_step,
}


def is_asked(way: str, program: Program) -> bool:
    """Return True if a program can be asked in this way: not without the form, the loss or the models for it."""
    needed = {"plain": program.plain_form, "loss": program.loss, "models": program.losses}
    return needed.get(way, way) is not None
