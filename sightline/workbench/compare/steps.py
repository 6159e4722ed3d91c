"""Losses of two variants over some optimiser steps, and the first step that rounding does not explain.

Training is unstable: in every run a difference in the last place grows from step to step, and how fast depends on the
network and the rate. So the bound is measured: the reference trains in float64 once unchanged, and several times with
every layer's result and gradient, and every weight after every step, perturbed by one unit in the last place of the
variant's format. The spread of these runs is rounding; `MAX_ROUNDING_UNITS` times the spread, or units of the loss, is
the bound. Source: Parker 1997, Monte Carlo Arithmetic, layer by layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.contract.pytree import tree_map
from sightline.contract.types import Batch
from sightline.engine.distributed import World
from sightline.engine.optimizers import OptimizerSpec
from sightline.engine.step import with_prepare
from sightline.engine.train import NonFiniteGradientError, TrainState, train_step
from sightline.instrument import ModuleCall, copy_module, record
from sightline.instrument.float64 import Float32Draws, Float64Functions
from sightline.instrument.formats import Format, get_format
from sightline.instrument.judge import MAX_ROUNDING_UNITS
from sightline.instrument.plain_forms import use_sequential_batch_norm
from sightline.instrument.replay import PerturbedDecisions, PerturbedOperations, perturb_with_gradient
from sightline.workbench.compare.variants import ModelVariant, backend_settings, prepare_in_format

_NUM_FIRST_DRAWS, _NUM_NEAR_DRAWS, _NUM_FAR_DRAWS = 2, 4, 8


@dataclass(frozen=True)
class LossTrace:
    """Losses of the variant and the reference at each step, and the difference that rounding explains."""

    losses: tuple[float, ...]
    expected: tuple[float, ...]
    tolerated: tuple[float, ...]

    @property
    def first_diverging_step(self) -> int | None:
        """The first step, counted from 0, whose losses rounding does not explain."""
        pairs = zip(self.losses, self.expected, self.tolerated, strict=True)
        return next(
            (step for step, (loss, expected, bound) in enumerate(pairs) if _is_beyond(loss - expected, bound)), None
        )

    @property
    def is_none_from(self) -> int | None:
        """The first step, counted from 0, at which neither variant has a finite loss."""
        pairs = enumerate(zip(self.losses, self.expected, strict=True))
        return next((step for step, pair in pairs if not any(map(math.isfinite, pair))), None)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "losses": list(self.losses),
            "expected": list(self.expected),
            "tolerated": list(self.tolerated),
            "parts_at_step": self.first_diverging_step,
        }


def trace_losses(
    losses: tuple[float, ...],
    reference: ModelVariant,
    format_: Format,
    job: TrainState,
    recipe: OptimizerSpec,
    batch: Batch,
) -> LossTrace:
    """Compare the losses of a variant that computes in `format_` with those of the reference.

    The task's decisions before the forward pass, such as which prior belongs to which box, are computed here in the
    variant's format: `layerwise.py` judges them separately. Perturbed runs are added until everything is
    explained: at most four, and then eight that are perturbed `MAX_ROUNDING_UNITS` times as far, for decisions that
    rounding may change.
    """
    count = len(losses)
    decided = prepare_in_format(job, format_)
    expected = losses_over_steps(reference, decided, recipe, batch, num_steps=count)
    spread = [format_.unit_of_largest(torch.tensor(loss, dtype=torch.float64)) for loss in expected]
    far = [0.0] * count
    trace = LossTrace(losses, expected, tuple(MAX_ROUNDING_UNITS * value for value in spread))
    for draw in range(_NUM_NEAR_DRAWS + _NUM_FAR_DRAWS):
        noise = _make_noise(format_, draw)
        noisy_job = job if noise.decides else decided
        perturbed_losses = losses_over_steps(reference, noisy_job, recipe, batch, num_steps=count, noise=noise)
        _widen(spread if noise.units == 1 else far, perturbed_losses, expected)
        trace = LossTrace(losses, expected, tuple(map(_tolerated_difference, spread, far)))
        if trace.first_diverging_step is None:
            break
    return trace


def _make_noise(format_: Format, draw: int) -> _Noise:
    """Choose what a perturbed run perturbs: the first two do not explain every difference.

    Later ones compute the decisions in float64, with perturbed batches and operations: of two priors that overlap a box
    equally either is right. So are the decisions that a network takes itself, without gradients, such as which of its
    queries belongs to which box. Nor do perturbed values show the error of long sums: torch's float32 batch norm on a
    CPU adds row by row if channels come last, and over 340,000 rows, layer after layer, the first gradient of a V2V
    network deviates by 1 %. So later runs compute their batch norms that way (`instrument/plain_forms.py`).
    """
    weights = get_format(torch.float32) if format_.digits < 24 else format_
    is_far = draw >= _NUM_NEAR_DRAWS
    sums_in_order = weights.name == "float32" and _NUM_FIRST_DRAWS <= draw < _NUM_NEAR_DRAWS
    units, decides = int(MAX_ROUNDING_UNITS) if is_far else 1, draw >= _NUM_FIRST_DRAWS
    return _Noise(format_, weights, draw, units=units, sums_in_order=sums_in_order, decides=decides)


def _widen(spread: list[float], perturbed: tuple[float, ...], expected: tuple[float, ...]) -> None:
    """Widen the spread in place by the difference of a perturbed run; the spread never shrinks over the steps."""
    largest = 0.0
    for step, (loss, expected_loss) in enumerate(zip(perturbed, expected, strict=True)):
        largest = max(largest, abs(loss - expected_loss) if math.isfinite(loss - expected_loss) else math.inf)
        spread[step] = max(spread[step], largest)


def _tolerated_difference(spread: float, far: float) -> float:
    """Return the tolerated difference: `MAX_ROUNDING_UNITS` times the spread, or times `far` after a jump.

    A jump is a run perturbed by `MAX_ROUNDING_UNITS` units that differs more than twice as far as the smooth bound, for
    example by other neighbours in a graph. No draw need have changed the decision that matters most.
    """
    smooth = MAX_ROUNDING_UNITS * spread
    return MAX_ROUNDING_UNITS * far if far > 2 * smooth else smooth


def losses_over_steps(
    variant: ModelVariant,
    job: TrainState,
    recipe: OptimizerSpec,
    batch: Batch,
    *,
    num_steps: int,
    noise: _Noise | None = None,
) -> tuple[float, ...]:
    """Compute the weighted loss before each of `num_steps` steps of the run's own loop, always on one batch.

    The variant's weights are not changed. Training ends at a gradient that is not finite; later losses are NaN.
    """
    losses = tuple(iterate_losses(variant, job, recipe, batch, num_steps=num_steps, noise=noise))
    return losses + (math.nan,) * (num_steps - len(losses))


def iterate_losses(
    variant: ModelVariant,
    job: TrainState,
    recipe: OptimizerSpec,
    batch: Batch,
    *,
    num_steps: int,
    noise: _Noise | None = None,
) -> Generator[float]:
    """Yield the losses of `losses_over_steps` one by one; switches of the backend are set until it is closed."""
    model = copy_module(variant.model)
    replica: Any = model if variant.on is None else variant.on(model)
    network = model if variant.on is None else replica.network
    if noise is not None and noise.sums_in_order:
        use_sequential_batch_norm(network)
    replica_job = copy_job(job, recipe, variant, model)
    if noise is not None and noise.decides:
        replica_job.task = noise.perturb_preparation(job.task)
        batch = tree_map(batch, noise.move)
    with step_settings(variant, job), _perturb_outputs(network, noise):
        for loss in train_on_batch(replica_job, replica, batch, num_steps=num_steps):
            yield loss
            if noise is not None:
                noise.move_weights(model)


def copy_job(job: TrainState, recipe: OptimizerSpec, variant: ModelVariant, model: nn.Module) -> TrainState:
    """Return a job that trains a copy of a variant's model by the same recipe."""
    return dataclasses.replace(
        job,
        model=model,
        optimizer=recipe.build(model, job.losses),
        precision=variant.precision,
        device=variant.device,
        ema=None,
        ema_decay=None,
    )


@contextmanager
def step_settings(variant: ModelVariant, job: TrainState) -> Iterator[None]:
    """Set what a training step of a variant needs beside its weights; what it changes is restored afterwards."""
    with backend_settings(variant, job), job.losses.preserve_state(), Float32Draws(), Float64Functions():
        yield


def train_on_batch(job: TrainState, replica: Any, batch: Batch, *, num_steps: int) -> Iterator[float]:
    """Take the run's own training steps, always on one batch, and yield the weighted loss before each.

    `replica` is what computes, the job's model or its replacement. Training ends at a gradient that is not finite.
    """
    first = job.step
    for step in range(first, first + num_steps):
        job.step = step
        try:
            yield take_step(job, replica, batch)["total"]
        except NonFiniteGradientError:
            return


def take_step(job: TrainState, replica: Any, batch: Batch) -> dict[str, float]:
    """Take one step of the run's own loop; return the mean of each loss before it, and `total`, their weighted sum."""
    means = train_step(job, replica, [batch], World(device=job.device), _NoClock()).losses
    return {**means, "total": sum(weight * means[name] for name, weight in job.loss_weights_at(job.step).items())}


class _Noise:
    """Perturbation of layer outputs by units of `output_format`, and of weights by units of `weights`.

    `seed` gives the directions. With `decides` it also perturbs batches, the operations before the forward pass, and
    those of the network that it computes without gradients, as the matching of a set of boxes.
    """

    def __init__(
        self, output_format: Format, weights: Format, seed: int, *, units: int, sums_in_order: bool, decides: bool
    ) -> None:
        self._output_format, self._weights, self.units = output_format, weights, units
        self.sums_in_order, self.decides = sums_in_order, decides
        self._generator = torch.Generator().manual_seed(seed)

    def move(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        """Perturb a tensor of the batch: the task's decisions, such as which box is nearer, may change."""
        if not tensor.is_floating_point():
            return tensor
        return self._output_format.perturb(tensor, self._generator, units=self.units)

    def perturb_preparation(self, task: Any) -> Any:
        """Return the task with perturbed operations before the forward pass: two priors may overlap a box equally."""

        def prepare(original: Callable[..., Any], *arguments: Any) -> Any:
            with PerturbedOperations(self._output_format, self._generator):
                return original(*arguments)

        return with_prepare(task, prepare)

    def make_decisions(self) -> PerturbedOperations:
        """Make the mode that perturbs a network's operations without gradients; it is suspended at first."""
        decisions = PerturbedDecisions(self._output_format, self._generator)
        decisions.is_suspended = True
        return decisions

    def perturb_output(self, tensor: torch.Tensor) -> torch.Tensor:
        return perturb_with_gradient(
            tensor, lambda values: self._output_format.perturb(values, self._generator, units=self.units)
        )

    @torch.no_grad()
    def move_weights(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.copy_(self._weights.perturb(parameter.detach(), self._generator, units=self.units))


class _NoClock:
    """Clock that ignores the phases of a step."""

    def end_phase(self, name: str) -> None:
        return


@contextmanager
def _perturb_outputs(model: nn.Module, noise: _Noise | None) -> Iterator[None]:
    if noise is None:
        yield
        return
    innermost = {
        path: module for path, module in model.named_modules() if module is model or not list(module.children())
    }
    decisions = noise.make_decisions()

    def enter(call: ModuleCall, module: nn.Module, inputs: Any) -> None:
        decisions.is_suspended &= module is not model

    def leave(call: ModuleCall, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        decisions.is_suspended |= module is model
        return tree_map(outputs, lambda _, tensor: noise.perturb_output(tensor))

    with record(innermost, enter=enter, leave=leave), decisions if noise.decides else nullcontext():
        yield


def _is_beyond(difference: float, bound: float) -> bool:
    return not abs(difference) <= bound if math.isfinite(bound) else False
