"""Schedules, averages, states and kept weights over a whole loop: what never steps, ends early, is lost or shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import SWALR

from sightline.doctor.evidence.live.schedules import Rates, Stepped
from sightline.doctor.objects import find_alive
from sightline.doctor.rules import find_by
from sightline.doctor.rules.schedules import learning_rates, no_rate, scheduler_steps
from sightline.doctor.rules.state import aliased_weights, nothing_loaded, stale_average
from sightline.doctor.watch.loop import (
    Found,
    Loop,
    Monitor,
    OptimizerTrack,
    has_slices,
    send,
    stack_numbers,
    take_local,
)

_MAX_SLICE = 256
_LOW_RATE, _MIN_RISES = 0.01, 3
"""Share of its last rate, and rises before it, at which a search for a rate ends."""
_NUM_MOVED = 5
_NUM_IDLE, _NUM_IDLE_OF_AVERAGE = 20, 2000
"""Updates after which an average must have moved."""


class ScheduleMonitor(Monitor):
    """Learning rates of the updates, and the steps of schedulers that are named, or that it `finds`."""

    def __init__(self, schedulers: Sequence[Any], *, finds: bool = False) -> None:
        self._schedulers = list(schedulers)
        self._finds = finds and not schedulers
        self._first_steps = [_count(scheduler) for scheduler in schedulers]
        self._rates: dict[int, Rates] = {}
        self._fresh: set[int] = set()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> list[Found] | None:
        if track.num_updates == 0 and not track.optimizer.state:
            self._fresh.add(id(track))
        if track.is_restarted:
            self._rates.pop(id(track), None)
        rates = self._rates.setdefault(id(track), Rates(track.name))
        rates.num_still = rates.num_still + 1 if track.lr == 0 else 0
        return find_by(no_rate, past_rates=rates) if rates.num_still else None

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        key, rate = id(track), track.lr
        rates = self._rates[key]
        if not self._schedulers and len(rates.rises) > _MIN_RISES and rate < _LOW_RATE * rates.rises[-1]:
            rates = self._rates[key] = Rates(track.name)  # a search for a rate rises, and ends at once
        rates.add(rate, track.num_updates, has_scheduler=self._knows_schedule(track))
        is_quiet = not (rates.num_low or rates.num_tiny or self._schedulers)
        return None if is_quiet else self._judge_rates(track, rates)

    def _knows_schedule(self, track: OptimizerTrack) -> bool:
        return bool(self._schedulers) or any("initial_lr" in group for group in track.optimizer.param_groups)

    def _judge_rates(self, track: OptimizerTrack, rates: Rates) -> Iterator[Found]:
        yield from find_by(learning_rates, past_rates=rates)
        for each in [s for s in self._schedulers if getattr(s, "optimizer", None) is track.optimizer]:
            stepped = Stepped(_name(each), _count(each), track.num_updates, getattr(each, "T_max", None))
            yield from find_by(scheduler_steps, stepped=stepped)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        lefts = [getattr(each, "total_iters", math.inf) / (_count(each) or 1e-9) for each in self._schedulers]
        for track in [track for track in loop.tracks.values() if id(track) in self._fresh]:
            rates = self._rates.get(id(track), Rates(track.name))
            base = max((float(group.get("initial_lr", 0.0)) for group in track.optimizer.param_groups), default=0.0)
            rates.is_over, rates.num_updates, rates.base = True, track.num_updates, base
            rates.left = min(lefts, default=math.inf)
            yield from find_by(learning_rates, past_rates=rates)
        for each, first in zip(self._schedulers, self._first_steps, strict=True):
            if _count(each) == first and hasattr(each, "last_epoch") and not self._is_later(each):
                yield from find_by(scheduler_steps, stepped=Stepped(_name(each), 0, loop.step, is_over=True))
        if self._finds:
            yield from self._find_idle(loop)

    def _find_idle(self, loop: Loop) -> Iterator[Found]:
        """Judge schedules of an optimiser of which none has been stepped; a loop may step after its end."""
        begun = [(track, self._rates.get(id(track))) for track in loop.tracks.values() if _has_schedule(track)]
        still = [track for track, rates in begun if rates is not None and len(rates.rises) == 1]
        known = find_alive(LRScheduler) if still else ()
        for track in still:
            own = [each for each in known if id(getattr(each, "optimizer", None)) == id(track.optimizer)]
            if own and not any(_count(each) or isinstance(each, SWALR) for each in own):
                named = Stepped(_name(own[0]), 0, track.num_updates, is_over=True, num_epochs=loop.num_epochs)
                yield from find_by(scheduler_steps, stepped=named)

    def _is_later(self, scheduler: Any) -> bool:
        """Return True if another scheduler of its optimiser has been stepped, and not to its end, as in a warm-up."""
        return any(
            first < _count(other) < _find_length(other)
            for other, first in zip(self._schedulers, self._first_steps, strict=True)
            if getattr(other, "optimizer", None) is getattr(scheduler, "optimizer", None)
        )


def _has_schedule(track: OptimizerTrack) -> bool:
    """Return True for an optimiser that a schedule has been made for, whose rates are those of its start."""
    groups = track.optimizer.param_groups
    return any("initial_lr" in group for group in groups) and all(
        float(group["lr"]) == float(group.get("initial_lr", group["lr"])) for group in groups
    )


def _find_length(scheduler: Any) -> float:
    """Return the number of steps after which a scheduler is at its end; infinity if it says none."""
    lengths = (getattr(scheduler, name, None) for name in ("total_iters", "T_max", "total_steps"))
    return next((float(length) for length in lengths if length is not None), math.inf)


def _name(scheduler: Any) -> str:
    return type(scheduler).__name__


def _count(scheduler: Any) -> int:
    return int(getattr(scheduler, "last_epoch", 0))


class _Kept:
    """Slices of the weights of an average, and its running statistics, as they are at first."""

    def __init__(self, average: nn.Module, *, is_named: bool) -> None:
        self.weights, self.statistics, self.is_named = take_slices(average), _copy_statistics(average), is_named


class AverageMonitor(Monitor):
    """Moving averages of weights (EMA) that the loop keeps: something writes to them as the model trains.

    Those that nobody has named are found, and `follow` is called with each: it is to see what they compute.
    """

    def __init__(self, averages: Sequence[nn.Module], follow: Callable[[nn.Module], None] | None = None) -> None:
        self._averages = [(average, take_slices(average)) for average in averages]
        self._kept = {id(average): _Kept(average, is_named=True) for average in averages}
        self._follow = None if averages else follow

    def on_average(self, loop: Loop, average: nn.Module, has_gradient: bool) -> Iterator[Found]:
        """Judge the running statistics of an average that is evaluated: those of its start fit no weights but those.

        An average that has not begun has the weights of its start, too; one that has gradients is trained by itself.
        """
        kept = self._kept[id(average)]
        first, now = kept.statistics, _copy_statistics(average)
        own = {name: buffer for model in loop.models.values() for name, buffer in _copy_statistics(model).items()}
        common = [name for name in first if name in own and own[name].shape == first[name].shape]
        is_trained = not kept.is_named and _is_trained(average, has_gradient)
        if average.training or is_trained or not common or loop.step < _NUM_MOVED:
            return
        is_still = stack_numbers([(now[name] == first[name]).all() for name in common]).all()
        moves = [(own[name] != send(first[name], own[name].device)).any() for name in common]
        weights = zip(take_slices(average), kept.weights, strict=True)
        has_begun = stack_numbers([(own != first).any() for own, first in weights]).any()
        is_stale = stack_numbers([is_still, stack_numbers(moves).any(), has_begun]).all()
        found = find_by(stale_average, average="", stale_statistics=common, num_updates=loop.step)
        yield from loop.reader.read_if(is_stale.float(), *found)

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        """Find copies of the model, before they are averages of its weights; a teacher, or the best so far, stays one.

        Without running statistics there is nothing to judge of them.
        """
        follow, self._follow = self._follow, None
        if follow is None:
            return
        for model in filter(_copy_statistics, loop.models.values()):
            keys, own = model.state_dict().keys(), set(model.modules())
            for other in find_alive(type(model)):
                if other not in own and id(other) not in self._kept and other.state_dict().keys() == keys:
                    self._kept[id(other)] = _Kept(other, is_named=False)
                    follow(other)

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        if loop.step != _NUM_IDLE_OF_AVERAGE:  # some are updated after each epoch, or begin after a warm-up
            return None
        begun = [pair for pair in self._averages if getattr(pair[0], "n_averaged", 1) != 0]  # SWA begins late
        self._averages = [pair for pair in self._averages if pair not in begun]
        return self._judge_moves(loop, begun)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        yield from self._judge_moves(loop, self._averages if loop.step > _NUM_IDLE else [])

    def _judge_moves(self, loop: Loop, averages: Sequence[tuple[nn.Module, Sequence[Tensor]]]) -> Iterator[Found]:
        for average, first in averages:
            change = [(now != before).any() for now, before in zip(take_slices(average), first, strict=True)]
            if change:
                has_moved = stack_numbers(change).any().float()
                found = find_by(stale_average, average="", stale_statistics=(), num_updates=loop.step)
                yield from loop.reader.read_if(has_moved, *found, expected=False)


class LoadMonitor(Monitor):
    """Weights that the loop loads after it has trained: they are other tensors than the model's own.

    Those of a state that has just been taken, and edited in its place, are the model's own on purpose: the edit has
    written to the weights since the last update, and more often than the loop writes to them between updates.
    """

    def on_load(self, loop: Loop, model: nn.Module, state: Mapping[str, Any]) -> Iterator[Found]:
        yield from find_by(nothing_loaded, loaded=[*state], own=[*model.state_dict(keep_vars=True)])
        own = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
        aliased = [name for name, value in own.items() if _is_same_memory(state.get(name), value)]
        num_updates, tracks = sum(track.num_updates for track in loop.tracks.values()), loop.tracks.values()
        is_edited = any(track.count_writes() > track.num_writes for track in tracks)
        seen = {"aliased": aliased, "own": [*own], "num_updates": num_updates, "is_edited": is_edited}
        yield from find_by(aliased_weights, **seen)


def _is_same_memory(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.device == own.device and value.data_ptr() == own.data_ptr()


def _is_trained(model: nn.Module, has_gradient: bool) -> bool:
    """Return True for a model that has gradients, or whose pass was recorded for a backward pass."""
    return any(p.grad is not None or (has_gradient and p.requires_grad) for p in model.parameters())


def _copy_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copy the floating buffers of the norms of a model, by name; `module.` of wrappers is left out."""
    return {
        f"{name}.{key}".removeprefix("module."): buffer.detach().clone()
        for name, module in model.named_modules()
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and "running" in key
    }


def take_slices(average: nn.Module) -> list[Tensor]:
    """Copy the first entries of each parameter that has them on this process."""
    parameters = [parameter.detach() for parameter in average.parameters() if has_slices(parameter)]
    return [take_local(parameter).flatten()[:_MAX_SLICE].clone() for parameter in parameters]
