"""Schedules, averages, states and kept weights over a whole loop: what never steps, ends early, is lost or shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import SWALR

from sightline.doctor.objects import find_alive
from sightline.doctor.rules import find_by
from sightline.doctor.rules.events import report
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

_LOW_RATE, _MAX_SLICE = 0.01, 256
_MIN_LOW = 50
_NUM_STILL = 10
"""Updates at a learning rate of 0 in a row: a warm-up from 0 has one."""
_TINY_RATE, _MIN_TINY, _MAX_TINY_SHARE = 1e-6, 5, 0.05
"""Learning rate at which no update counts; the end of a cosine is there for a thousandth of its length."""
_MIN_RISES, _MAX_RISES, _UPDATES_A_RISE, _LOW_RISE = 3, 1000, 8, 0.3
_MAX_EPOCHS_OF_RISE = 30
_NUM_MOVED, _MANY = 5, 10
_NUM_IDLE, _NUM_IDLE_OF_AVERAGE = 20, 2000
"""Updates after which an average must have moved, and a loop must have stepped its scheduler at its end."""
_NUM_EPOCHS, _NUM_IDLE_UNKNOWN = 2, 200
"""Epochs after which a schedule has been stepped, and updates where epochs are not known."""


@dataclass
class _Rates:
    """Learning rates of an optimiser since a schedule began: numbers of high, low, tiny ones and zeros in a row.

    `rises` are the rates in turn, while each is above the last; `last_rise` is the update of the last change.
    """

    highest: float = 0.0
    num_high: int = 0
    num_low: int = 0
    num_tiny: int = 0
    last_rise: int = 0
    rises: list[float] = field(default_factory=list)

    def add(self, rate: float, update: int, *, has_scheduler: bool) -> None:
        """Add the rate of an update; without a scheduler, rates down to the hundredth are steps by hand."""
        if self.rises and rate != self.rises[-1]:
            self.rises = [*self.rises, rate] if rate > self.rises[-1] and len(self.rises) <= _MAX_RISES else []
            self.last_rise = update
        self.highest = max(rate, self.highest)
        low = _LOW_RATE * self.highest
        is_high = rate > low * (1 + 1e-6) or (not has_scheduler and rate >= low * (1 - 1e-6))
        self.num_high += is_high
        self.num_low = 0 if is_high else self.num_low + (self.highest > 0)
        self.num_tiny = self.num_tiny + 1 if 0 < rate < _TINY_RATE * self.highest else 0


class ScheduleMonitor(Monitor):
    """Learning rates of the updates, and the steps of schedulers that are named, or that it `finds`."""

    def __init__(self, schedulers: Sequence[Any], *, finds: bool = False) -> None:
        self._schedulers = list(schedulers)
        self._finds = finds and not schedulers
        self._first_steps = [_count(scheduler) for scheduler in schedulers]
        self._rates: dict[int, _Rates] = {}
        self._num_still: dict[int, int] = {}
        self._fresh: dict[int, OptimizerTrack] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> list[Found]:
        if track.num_updates == 0 and not track.optimizer.state:
            self._fresh[id(track)] = track
        if track.is_restarted:
            self._rates.pop(id(track), None)
        number = self._num_still[id(track)] = self._num_still.get(id(track), 0) + 1 if track.lr == 0 else 0
        groups = len(track.optimizer.param_groups)
        is_still = number == _NUM_STILL
        return [report("no-update", "no rate", number=number, optimizer=track.name, groups=groups)] if is_still else []

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        key, rate = id(track), track.lr
        rates = self._rates.setdefault(key, _Rates(rises=[rate]))
        if not self._schedulers and len(rates.rises) > _MIN_RISES and rate < _LOW_RATE * rates.rises[-1]:
            rates = self._rates[key] = _Rates(rises=[rate])  # a search for a rate rises, and ends at once
        rates.add(rate, track.num_updates, has_scheduler=self._knows_schedule(track))
        is_quiet = rates.num_low < _MIN_LOW and rates.num_tiny < _MIN_TINY and not self._schedulers
        return None if is_quiet else self._judge_rates(track, rates, rate)

    def _knows_schedule(self, track: OptimizerTrack) -> bool:
        return bool(self._schedulers) or any("initial_lr" in group for group in track.optimizer.param_groups)

    def _judge_rates(self, track: OptimizerTrack, rates: _Rates, rate: float) -> Iterator[Found]:
        words = {"optimizer": track.name, "highest": rates.highest, "rate": rate}
        if rates.num_low == max(_MIN_LOW, rates.num_high):
            words |= {"low": rates.num_low, "high": rates.num_high, "share": rate / rates.highest}
            yield report("schedule", "stays low", bound=_LOW_RATE, **words)
        if rates.num_tiny == max(_MIN_TINY, math.ceil(_MAX_TINY_SHARE * track.num_updates)):
            words |= {"number": rates.num_tiny, "share": rate / rates.highest}
            yield report("schedule", "tiny", bound=_TINY_RATE, **words)
        for scheduler in self._schedulers:
            yield from _length_faults(scheduler, track)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for key, track in self._fresh.items():
            yield from self._rise_faults(track, self._rates.get(key, _Rates()))
        for scheduler, first in zip(self._schedulers, self._first_steps, strict=True):
            is_idle = loop.step >= _NUM_IDLE and _count(scheduler) == first and hasattr(scheduler, "last_epoch")
            if is_idle and not self._is_later(scheduler):
                yield report("schedule", "never", scheduler=type(scheduler).__name__, updates=loop.step)
        if self._finds:
            yield from self._idle_faults(loop)

    def _idle_faults(self, loop: Loop) -> Iterator[Found]:
        """Yield a fault for schedules of an optimiser of which none has been stepped; a loop may step after its end."""
        still = {
            key: track
            for key, track in loop.tracks.items()
            if track.num_updates >= _NUM_IDLE and _has_schedule(track) and len(self._rates[id(track)].rises) == 1
        }
        if not still or (loop.num_epochs <= _NUM_EPOCHS if loop.num_epochs else loop.step < _NUM_IDLE_UNKNOWN):
            return
        known = [each for each in find_alive(LRScheduler) if id(getattr(each, "optimizer", None)) in still]
        for key, track in still.items():
            own = [each for each in known if id(each.optimizer) == key]
            if own and not any(_count(each) or isinstance(each, SWALR) for each in own):
                yield report("schedule", "never", scheduler=type(own[0]).__name__, updates=track.num_updates)

    def _rise_faults(self, track: OptimizerTrack, rates: _Rates) -> Iterator[Found]:
        base = max((float(group.get("initial_lr", 0.0)) for group in track.optimizer.param_groups), default=0.0)
        words = {"optimizer": track.name, "updates": track.num_updates, "base": base}
        num_rises, since = len(rates.rises) - 1, track.num_updates - rates.last_rise
        still_rises = num_rises > _MIN_RISES and since * num_rises <= 2 * track.num_updates  # in a warm-up
        is_low = track.num_updates >= _MIN_LOW and 0 < rates.highest < _LOW_RATE * base
        if is_low and base < 1 and not still_rises:  # with 1, the function returns the rate
            yield report("schedule", "rate as factor", share=rates.highest / base, highest=rates.highest, **words)
        is_slow = num_rises >= _MIN_RISES and _UPDATES_A_RISE * len(rates.rises) <= track.num_updates
        is_slow &= all(getattr(each, "total_iters", math.inf) > _MANY * _count(each) for each in self._schedulers)
        rate = rates.rises[-1] if rates.rises else base
        length = len(rates.rises) * base / max(rate, 1e-30)  # in rises; one of epochs may be longer than a short loop
        if is_slow and rate < _LOW_RISE * base and length > _MAX_EPOCHS_OF_RISE:
            yield report("schedule", "warm-up", share=rate / base, rises=num_rises, rate=rate, **words)

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


def _length_faults(scheduler: Any, track: OptimizerTrack) -> Iterator[Found]:
    """Yield a fault for a cosine that is stepped past its end, after which the learning rate rises again."""
    length, steps = getattr(scheduler, "T_max", None), _count(scheduler)
    if getattr(scheduler, "optimizer", None) is track.optimizer and length is not None and steps > length + 1:
        is_each = track.num_updates <= steps + 1
        detail = ", one after each update: T_max is probably in epochs" if is_each else ""
        words = {"scheduler": type(scheduler).__name__, "steps": steps, "length": length}
        yield report("schedule", "past its end", detail=detail, **words)


def _find_length(scheduler: Any) -> float:
    """Return the number of steps after which a scheduler is at its end; infinity if it says none."""
    lengths = (getattr(scheduler, name, None) for name in ("total_iters", "T_max", "total_steps"))
    return next((float(length) for length in lengths if length is not None), math.inf)


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
