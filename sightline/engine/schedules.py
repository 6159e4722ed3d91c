"""Learning rate schedules as closed forms of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from sightline.contract import registry
from sightline.contract.arguments import (
    Count,
    FractionBelowOne,
    Index,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    Probability,
)
from sightline.contract.errors import ConfigError


class Schedule(ABC):
    """Schedule: the factor of every group's learning rate.

    Its constructor takes `num_steps`, those of the whole run, and `steps_per_epoch`.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor at a step, counted from 0."""

    def momentum(self, step: int) -> float | None:
        """Return the optimiser's momentum (Adam's first beta) at a step; None if it is the optimiser's own."""
        return None


class _WithWarmUp(Schedule):
    """Base class of schedules with a linear warm-up from 0 over the first epochs.

    The warm-up is a number of epochs, or a share of the whole run, which fits a run of any length: of a short one it is
    at least `warmup_min_steps`, as far as these are a fifth of the run. Nothing warms up without either.
    """

    def __init__(
        self, *, warmup_epochs: float, warmup_share: float, warmup_min_steps: int, num_steps: int, steps_per_epoch: int
    ) -> None:
        if warmup_epochs and warmup_share:
            raise ConfigError("warmup_share: warmup_epochs is given as well; give one of them")
        floor = min(warmup_min_steps, num_steps // 5) if warmup_share else 0
        self.warmup_steps = max(round(warmup_epochs * steps_per_epoch + warmup_share * num_steps), floor)
        self.num_steps = num_steps
        self.steps_per_epoch = steps_per_epoch
        if self.warmup_steps >= num_steps:
            key, reason = "warmup_share", f"{warmup_share:g}, which is every step of a run of {num_steps}"
            if warmup_epochs:
                length = f"{num_steps / steps_per_epoch:.3g}"
                key, reason = "warmup_epochs", f"{warmup_epochs:g} epochs of warm-up, but the whole run has {length}"
            raise ConfigError(
                f"{key}: found {reason}; warm up for fewer, or, to try a run out, not at all: schedule.{key}=0"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        raise AssertionError("a schedule must define after_warmup")


@registry.schedules.add("constant")
class Constant(_WithWarmUp):
    """The learning rate as given, after an optional linear warm-up. Source: Goyal et al. 2017, section 2.2."""

    def __init__(
        self,
        *,
        num_steps: int,
        steps_per_epoch: int,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_share: FractionBelowOne = 0.0,
        warmup_min_steps: Index = 100,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_share=warmup_share,
            warmup_min_steps=warmup_min_steps,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )

    def after_warmup(self, step: int) -> float:
        return 1.0


@registry.schedules.add("cosine")
class Cosine(_WithWarmUp):
    """Half a cosine from 1 to `final_factor` after warm-up. Source: Loshchilov and Hutter 2017, eq. 5."""

    def __init__(
        self,
        *,
        num_steps: int,
        steps_per_epoch: int,
        final_factor: Probability = 0.0,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_share: FractionBelowOne = 0.0,
        warmup_min_steps: Index = 100,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_share=warmup_share,
            warmup_min_steps=warmup_min_steps,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        self.final_factor = final_factor

    def after_warmup(self, step: int) -> float:
        share = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * share))


@registry.schedules.add("step")
class Steps(_WithWarmUp):
    """Multiplied by `gamma` every `every_epochs` epochs, or at each of `milestones` (epochs); never under `floor`.

    Source: He et al. 2016, section 3.4 (milestones).
    """

    def __init__(
        self,
        *,
        num_steps: int,
        steps_per_epoch: int,
        every_epochs: Count | None = None,
        milestones: tuple[Count, ...] = (),
        gamma: Probability = 0.1,
        floor: Probability = 0.0,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_share: FractionBelowOne = 0.0,
        warmup_min_steps: Index = 100,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_share=warmup_share,
            warmup_min_steps=warmup_min_steps,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        if (every_epochs is None) == (not milestones):
            raise ConfigError("give either every_epochs or milestones, one of the two")
        if list(milestones) != sorted(set(milestones)):
            raise ConfigError(f"milestones: found {list(milestones)}, allowed are epochs in rising order")
        self.every_epochs = every_epochs
        self.milestones = milestones
        self.gamma = gamma
        self.floor = floor

    def after_warmup(self, step: int) -> float:
        epoch = step // self.steps_per_epoch
        drops = epoch // self.every_epochs if self.every_epochs else sum(epoch >= m for m in self.milestones)
        return max(self.floor, self.gamma**drops)


@registry.schedules.add("exponential")
class Exponential(_WithWarmUp):
    """A linear rise to 1 over the warm-up, whose last step has 1, then multiplied by `decay` an epoch, evenly per step.

    Source: the training code of Milioto et al. 2019 (RangeNet++).
    """

    def __init__(
        self,
        *,
        num_steps: int,
        steps_per_epoch: int,
        decay: PositiveFraction = 0.99,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_share: FractionBelowOne = 0.0,
        warmup_min_steps: Index = 100,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_share=warmup_share,
            warmup_min_steps=warmup_min_steps,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        self.decay_per_step = decay ** (1 / steps_per_epoch)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decayed: float = self.decay_per_step ** max(0, step - max(1, self.warmup_steps))  # 1 at the first step, too
        return decayed


@registry.schedules.add("polynomial")
class Polynomial(_WithWarmUp):
    """A power of the share of steps that are left after an optional linear warm-up, from 1 towards 0.

    Source: Chen et al. 2018, DeepLab, section 4.1 ("poly", a power of 0.9).
    """

    def __init__(
        self,
        *,
        num_steps: int,
        steps_per_epoch: int,
        power: PositiveFloat = 0.9,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_share: FractionBelowOne = 0.0,
        warmup_min_steps: Index = 100,
    ) -> None:
        super().__init__(
            warmup_epochs=warmup_epochs,
            warmup_share=warmup_share,
            warmup_min_steps=warmup_min_steps,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        self.power = power

    def after_warmup(self, step: int) -> float:
        left: float = 1.0 - (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return left**self.power


@registry.schedules.add("one_cycle")
class OneCycle(Schedule):
    """Cosine from 1/start_divisor up to 1 over the first `rise` of the run, then down to 1/final_divisor of the start.

    `momentum` names the momentum of the optimiser, or the first of Adam's betas, at both ends and at the peak, in place
    of its own: it falls while the rate rises. Torch's OneCycleLR cycles it from 0.95 to 0.85 by default. That counts
    `rise` in steps, of which the last has the peak: with N steps its share p is `rise` = (pN - 1) / (N - 1) here.
    Source: Smith and Topin 2019, section 3, with cosine instead of linear flanks.
    """

    def __init__(
        self,
        *,
        num_steps: int,
        rise: Probability = 0.3,
        start_divisor: PositiveFloat = 25.0,
        final_divisor: PositiveFloat = 1e4,
        momentum: tuple[FractionBelowOne, FractionBelowOne] | None = None,
    ) -> None:
        self.num_steps = num_steps
        self.rise = rise
        self.momenta = momentum
        self.start = 1.0 / start_divisor
        self.final = self.start / final_divisor

    def __call__(self, step: int) -> float:
        return self._along(step, self.start, 1.0, self.final)

    def momentum(self, step: int) -> float | None:
        if self.momenta is None:
            return None
        outer, inner = self.momenta
        return self._along(step, outer, inner, outer)

    def _along(self, step: int, first: float, peak: float, last: float) -> float:
        """Interpolate from `first` to `peak` over the rise, then to `last`."""
        share = step / max(1, self.num_steps - 1)
        if share < self.rise:
            return _cosine_between(first, peak, share / self.rise)
        return _cosine_between(peak, last, (share - self.rise) / max(1e-12, 1.0 - self.rise))


def _cosine_between(first: float, last: float, share: float) -> float:
    """Interpolate from `first` to `last` by half a cosine, at `share` in 0..1."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
