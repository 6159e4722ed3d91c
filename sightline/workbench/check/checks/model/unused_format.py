"""A number format in which this machine computes a training step faster than in the run's own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

from torch import nn

from sightline.contract.errors import summarise_error
from sightline.engine.build import build_model, find_unused_format
from sightline.engine.device import Precision
from sightline.ops.numba_kernels import compute_seconds
from sightline.workbench.check.context import Context, check, first_steps
from sightline.workbench.check.core.dry_run import DryRun, forward_backward, isolated_copy
from sightline.workbench.check.core.examination import FasterSetting

logger = logging.getLogger(__name__)

_MAX_SECONDS = 3.0
"""Processor seconds of the dry run above which nothing is measured: one figure must not take longer than all checks."""
_NUM_ROUNDS = 3
_MIN_RATIO = 1.15


@check("unused-format", "preflight", each=first_steps, is_quick=False, causes=("sys.resource",))
def unused_format(context: Context, step: DryRun) -> None:
    """A step in bf16, for which this CPU has instructions, is not faster than the step in the float32 of the config.

    Finds: Configs in float32 whose step is faster in bf16 on this CPU; the gain is printed below the findings.

    It is no finding, as a time is another one in each run: it goes into the examination. Forward and backward passes on
    the samples of the dry run take turns, after one round to warm up; the median round counts, in the processor time of
    the main thread. GPUs are left to `sightline profile`.
    """
    unused = find_unused_format(context.config, context.world)
    if context.world.device.type != "cpu" or unused is None or step.seconds > _MAX_SECONDS:
        return
    model = changed = context.built.job.model
    if unused.config.model != context.config.model:
        changed = build_model(unused.config, context.built.data.facts, context.world)
    measure_full = _make_step(context, step, model, context.config.train.precision)
    measure_half = _make_step(context, step, changed, unused.config.train.precision)
    try:
        rounds = [(measure_full(), measure_half()) for _ in range(1 + _NUM_ROUNDS)][1:]
    except Exception as error:  # noqa: BLE001 - a network of a user's own may not run in bf16: there is nothing to gain
        logger.info("unused-format: the step could not be measured in bf16: %s", summarise_error(error))
        return
    ratio, full, half = sorted((full / half, full, half) for full, half in rounds)[_NUM_ROUNDS // 2]
    if ratio >= _MIN_RATIO:
        context.examination.faster = FasterSetting(unused.overrides, ratio, full, half, step.num_samples)


def _make_step(context: Context, step: DryRun, model: nn.Module, precision: str) -> Callable[[], float]:
    """Make a function that runs forward and backward passes of a copy of the model, and returns their seconds."""
    job = copy.copy(context.built.job)
    job.precision = Precision(precision)
    copied = isolated_copy(model)

    def measure() -> float:
        started = compute_seconds()
        forward_backward(job, copied, [step.batch], context.world.device)
        return compute_seconds() - started

    return measure
