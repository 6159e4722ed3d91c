"""Record of a run that has been trained, from its files: losses, figures, and both modes of its network on a batch."""

from __future__ import annotations

import torch
from torch import nn

from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.evidence.outcomes.modes import Compared, compare_modes
from sightline.doctor.record import ModeGap, Record
from sightline.engine.optimizers import apply_freezing
from sightline.engine.step import compute_batch_losses
from sightline.instrument import record as record_calls
from sightline.workbench.check.context import Context, TrainedRecords
from sightline.workbench.check.dry_run import isolated_copy, read_batch, step_keys

_MAX_SAMPLES = 32


def make_trained_record(context: Context, trained: TrainedRecords) -> Record:
    """Make the record of a trained run, whose network is compared in both modes on a batch of training."""
    evaluate = context.config.evaluate
    found = Record(metric=evaluate.metric, is_higher_better=evaluate.mode == "max", is_over=True)
    lines = trained.read_lines()
    for line in lines:
        found.add_line(line)
    compared: Compared | MissingError = attempt("modes", _compare, {"context": context, "model": trained.load()})
    if not isinstance(compared, MissingError):
        losses, last = found.main_losses, max((line["step"] for line in lines), default=0)
        found.modes.append(ModeGap(last, *compared, losses.level, losses.start))
    return found


def _compare(context: Context, model: nn.Module) -> Compared:
    """Compare both modes on samples of the first step, with the arguments that the task calls the network with."""
    job, device = context.built.job, context.world.device
    batch = read_batch(job, step_keys(job, step=0)[:_MAX_SAMPLES], device)
    copied = isolated_copy(model).to(device).train()
    apply_freezing(copied, job.frozen, job.epoch)
    flags = {name: module.training for name, module in copied.named_modules()}
    with torch.no_grad(), record_calls({"": copied}, keep=("inputs",)) as tape:
        compute_batch_losses(job.task, copied, batch, device, job.precision)
    if not tape.calls:
        raise NotApplicableError("a task that does not call its network")
    return compare_modes(isolated_copy(model).to(device), tape.calls[0].inputs, flags)
