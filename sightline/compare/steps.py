"""Some optimiser steps of two variants, and the step at which their losses part further than rounding drives them.

A training run is unstable: a difference in the last place grows from step to step, in the healthiest of runs, and how
fast is a matter of the network and the rate. So the bound is measured: the reference trains in float64 once as it is,
and some times with every layer's result and gradient, and every weight after every step, moved by one unit in the last
place of the variant's format. What these runs differ by is what rounding does; `BOUND` times that, or units of the
loss, is not explained. Source: Parker 1997, Monte Carlo Arithmetic, layer by layer.

What a task decides of a batch before the forward pass, such as which prior belongs to which box, it decides here in the
variant's format: `walk.py` judges that by itself. Where the first two moved runs leave something to explain, it is
decided in float64, with batches and every operation moved: of two priors that overlap a box equally either may do.

Moving values shows nothing of long sums: torch's float32 batch norm on a CPU adds row by row where channels come last,
and over 340,000 rows, layer below layer, the first gradient of a V2V network is 1 % off. So the later runs of these
compute their batch norms that way (`sums.py`), where the earlier ones leave something to explain.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sightline.compare.accumulation import sum_in_order
from sightline.compare.convolution import Float64Convolutions
from sightline.compare.float64_reference import MovedOperations, moving
from sightline.compare.formats import Float32Draws, Format, format_of
from sightline.compare.measure import MAX_ROUNDING_UNITS
from sightline.compare.variants import ModelVariant, backend_settings, decided_in
from sightline.engine.distributed import World
from sightline.engine.optimizers import OptimizerSpec
from sightline.engine.step import with_prepare
from sightline.engine.train import NonFiniteGradientError, TrainState, train_step
from sightline.pytree import tree_map
from sightline.types import Batch

__all__ = ["LossTrace", "losses_over_steps", "trace_losses"]

_FIRST_DRAWS, _MOST_DRAWS, _FAR_DRAWS = 2, 4, 8


@dataclass(frozen=True)
class LossTrace:
    """The losses of both variants at each step, and how far apart rounding may drive them by then."""

    losses: tuple[float, ...]
    expected: tuple[float, ...]
    tolerated: tuple[float, ...]

    @property
    def first_diverging_step(self) -> int | None:
        """The first step, counted from 0, whose losses rounding does not explain."""
        pairs = zip(self.losses, self.expected, self.tolerated, strict=True)
        return next((step for step, (had, wanted, bound) in enumerate(pairs) if _is_beyond(had - wanted, bound)), None)

    @property
    def is_none_from(self) -> int | None:
        """The first step, counted from 0, at which neither variant has a loss that is a number."""
        pairs = enumerate(zip(self.losses, self.expected, strict=True))
        return next((step for step, pair in pairs if not any(map(math.isfinite, pair))), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """The losses of a variant that computes in `format_` beside those of the reference.

    Moved runs are added until nothing is left to explain: four at most, and then eight that are moved `BOUND` times as
    far, for decisions that rounding may turn.
    """
    count = len(losses)
    decided = decided_in(job, format_)
    expected = losses_over_steps(reference, decided, recipe, batch, num_steps=count)
    spread = [format_.unit_of_largest(torch.tensor(loss, dtype=torch.float64)) for loss in expected]
    far = [0.0] * count
    found = LossTrace(losses, expected, tuple(MAX_ROUNDING_UNITS * each for each in spread))
    for draw in range(_MOST_DRAWS + _FAR_DRAWS):
        noise = _noise_of(format_, draw)
        own = job if noise.decides else decided
        moved = losses_over_steps(reference, own, recipe, batch, num_steps=count, noise=noise)
        _widen(spread if noise.units == 1 else far, moved, expected)
        found = LossTrace(losses, expected, tuple(map(_tolerated, spread, far)))
        if found.first_diverging_step is None:
            break
    return found


def _noise_of(format_: Format, draw: int) -> _Noise:
    weights = format_of(torch.float32) if format_.digits < 24 else format_
    is_far = draw >= _MOST_DRAWS
    sums_in_order = weights.name == "float32" and _FIRST_DRAWS <= draw < _MOST_DRAWS
    units, decides = int(MAX_ROUNDING_UNITS) if is_far else 1, draw >= _FIRST_DRAWS
    return _Noise(format_, weights, draw, units=units, sums_in_order=sums_in_order, decides=decides)


def _widen(spread: list[float], moved: tuple[float, ...], expected: tuple[float, ...]) -> None:
    """By what a moved run differs; what it was once apart it may be apart at any later step."""
    largest = 0.0
    for step, (one, other) in enumerate(zip(moved, expected, strict=True)):
        largest = max(largest, abs(one - other) if math.isfinite(one - other) else math.inf)
        spread[step] = max(spread[step], largest)


def _tolerated(spread: float, far: float) -> float:
    """`BOUND` times the spread. What `BOUND` units move twice as far as that has jumped, as where a graph of neighbours
    has others: then `BOUND` times the jump, since none of the draws need have turned the decision that matters most."""
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
    """The weighted loss before each of some steps of the run's own loop, on one batch, over and over.

    The variant's own weights are left as they are. From a gradient that is not finite on, where training ends, the
    losses are NaN.
    """
    model = copy.deepcopy(variant.model)
    replica = model if variant.on is None else variant.on(model)
    if noise is not None and noise.sums_in_order:
        sum_in_order(getattr(replica, "network", model))
    own = dataclasses.replace(
        job,
        task=noise.deciding(job.task) if noise is not None and noise.decides else job.task,
        model=model,
        optimizer=recipe.build(model, job.losses),
        precision=variant.precision,
        device=variant.device,
        ema=None,
        ema_decay=None,
    )
    world = World(device=variant.device)
    losses = []
    if noise is not None and noise.decides:
        batch = tree_map(batch, noise.move)
    with (
        backend_settings(variant),
        job.losses.preserve_state(),
        Float32Draws(),
        Float64Convolutions(),
        _noisy(getattr(replica, "network", model), noise),
    ):
        for step in range(num_steps):
            own.step = job.step + step
            try:
                means = train_step(own, replica, [batch], world, _NoClock()).losses
            except NonFiniteGradientError:
                losses += [math.nan] * (num_steps - step)
                break
            losses.append(sum(weight * means[name] for name, weight in own.loss_weights_at(own.step).items()))
            if noise is not None:
                noise.move_weights(model)
    return tuple(losses)


class _Noise:
    """Moves what layers make by units of `made`, weights by units of `weights`; directions by `seed`.

    With `decides` it moves batches, too, and what is computed of them before the forward pass.
    """

    def __init__(
        self, made: Format, weights: Format, seed: int, *, units: int, sums_in_order: bool, decides: bool
    ) -> None:
        self._made, self._weights, self.units = made, weights, units
        self.sums_in_order, self.decides = sums_in_order, decides
        self._generator = torch.Generator().manual_seed(seed)

    def move(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the batch, moved: what a task decides by it, such as which box is nearer, may turn."""
        if not tensor.is_floating_point():
            return tensor
        return self._made.perturb(tensor, self._generator, units=self.units)

    def deciding(self, task: Any) -> Any:
        """The task, whose operations before the forward pass are moved: two priors may overlap a box equally."""

        def prepare(own: Callable[..., Any], *given: Any) -> Any:
            with MovedOperations(self._made, self._generator):
                return own(*given)

        return with_prepare(task, prepare)

    def made(self, tensor: torch.Tensor) -> torch.Tensor:
        return moving(tensor, lambda values: self._made.perturb(values, self._generator, units=self.units))

    @torch.no_grad()
    def move_weights(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.copy_(self._weights.perturb(parameter.detach(), self._generator, units=self.units))


class _NoClock:
    """Ignores how long the parts of a step take."""

    def end_phase(self, name: str) -> None:
        return


@contextmanager
def _noisy(model: nn.Module, noise: _Noise | None) -> Iterator[None]:
    def move(module: nn.Module, args: Any, made: Any) -> Any:
        assert noise is not None
        return tree_map(made, lambda _, tensor: noise.made(tensor))

    innermost = [module for module in model.modules() if module is model or not list(module.children())]
    handles = [] if noise is None else [module.register_forward_hook(move) for module in innermost]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_beyond(difference: float, bound: float) -> bool:
    return not abs(difference) <= bound if math.isfinite(bound) else False
