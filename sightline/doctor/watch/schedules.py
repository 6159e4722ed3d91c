"""Schedules, averages, states and kept weights over a whole loop: what never steps, ends early, is lost or shared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sightline.doctor.rules.events import report
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
_NUM_MOVED, _MANY = 5, 10
_NUM_IDLE, _NUM_IDLE_OF_AVERAGE = 20, 2000
"""Updates after which an average must have moved, and a loop must have stepped its scheduler at its end."""


class ScheduleMonitor(Monitor):
    """Learning rates of the updates, and the steps of schedulers that are named."""

    def __init__(self, schedulers: Sequence[Any]) -> None:
        self._schedulers = list(schedulers)
        self._first_steps = [_count(scheduler) for scheduler in schedulers]
        self._highest: dict[int, float] = {}
        self._num_high: dict[int, int] = {}
        self._num_low: dict[int, int] = {}
        self._num_tiny: dict[int, int] = {}
        self._num_still: dict[int, int] = {}
        self._fresh: dict[int, OptimizerTrack] = {}
        self._last_rise: dict[int, int] = {}
        self._rises: dict[int, list[float]] = {}
        """Learning rates in turn, while each is above the last."""

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if track.num_updates == 0 and not track.optimizer.state:
            self._fresh[id(track)] = track
        if track.is_restarted:
            self._forget(id(track))
        number = self._num_still[id(track)] = self._num_still.get(id(track), 0) + 1 if track.lr == 0 else 0
        if number == _NUM_STILL:
            yield report(
                "no-update",
                f"{number} updates of {track.name} in a row have a learning rate of 0",
                measured=f"0 in each of {len(track.optimizer.param_groups)} groups",
            )

    def _forget(self, key: int) -> None:
        """Forget the learning rates so far: another schedule begins."""
        for records in (self._highest, self._num_high, self._num_low, self._num_tiny, self._last_rise, self._rises):
            records.pop(key, None)

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        key, lr = id(track), track.lr
        rates = self._rises.setdefault(key, [lr])
        if not self._schedulers and len(rates) > _MIN_RISES and lr < _LOW_RATE * rates[-1]:
            self._forget(key)  # a search for a rate rises, and ends at once
            rates = self._rises.setdefault(key, [lr])
        if rates and lr != rates[-1]:
            self._rises[key] = [*rates, lr] if lr > rates[-1] and len(rates) <= _MAX_RISES else []
            self._last_rise[key] = track.num_updates
        highest = self._highest[key] = max(lr, self._highest.get(key, 0.0))
        is_by_hand = not self._schedulers and lr >= _LOW_RATE * highest * (1 - 1e-6)  # as for a fine-tuning
        if lr > _LOW_RATE * highest or is_by_hand:
            self._num_high[key] = self._num_high.get(key, 0) + 1
            self._num_low[key] = 0
        elif highest > 0:
            low = self._num_low[key] = self._num_low.get(key, 0) + 1
            if low == max(_MIN_LOW, self._num_high.get(key, 0)):
                yield report(
                    "schedule",
                    f"the learning rate of {track.name} fell to {lr / highest:.1g} of its highest, and stays there",
                    measured=f"{low} updates below {_LOW_RATE:.0%} of {highest:.3g}, "
                    f"after {self._num_high.get(key, 0)} above: {lr:.3g}",
                )
        tiny = self._num_tiny[key] = self._num_tiny.get(key, 0) + 1 if 0 < lr < _TINY_RATE * highest else 0
        if tiny == max(_MIN_TINY, math.ceil(_MAX_TINY_SHARE * track.num_updates)):
            yield report(
                "schedule",
                f"the learning rate of {track.name} fell to {lr / highest:.1g} of its highest: nothing is learnt",
                measured=f"{tiny} updates in a row below {_TINY_RATE:g} of {highest:.3g}: {lr:.3g}",
            )
        for scheduler in self._schedulers:
            yield from _length_faults(scheduler, track)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        for key, track in self._fresh.items():
            base = max((float(group.get("initial_lr", 0.0)) for group in track.optimizer.param_groups), default=0.0)
            is_low = track.num_updates >= _MIN_LOW and 0 < self._highest.get(key, 0.0) < _LOW_RATE * base
            if is_low and base < 1 and not self._still_rises(key, track):  # with 1, the function returns the rate
                yield report(
                    "schedule",
                    f"the learning rate of {track.name} is never above {self._highest[key] / base:.1g} of the one that "
                    "it was made with",
                    measured=f"at most {self._highest[key]:.3g} in {track.num_updates} updates; {base:.3g} before the "
                    "scheduler",
                    expected="a factor of 1 at some time: LambdaLR multiplies the rate of the optimiser",
                    action="return a factor from the function of LambdaLR, and not a learning rate",
                )
            rates = self._rises.get(key, [])
            is_slow = len(rates) > _MIN_RISES and _UPDATES_A_RISE * len(rates) <= track.num_updates
            is_slow &= all(getattr(each, "total_iters", math.inf) > _MANY * _count(each) for each in self._schedulers)
            if is_slow and rates[-1] < _LOW_RISE * base:
                yield report(
                    "schedule",
                    f"the warm-up of {track.name} does not end: the learning rate gets to {rates[-1] / base:.1g} of "
                    "that at the start",
                    measured=f"{len(rates) - 1} rises in {track.num_updates} updates, to {rates[-1]:.3g} of {base:.3g}",
                    expected="a warm-up that is over early in the run",
                    action="a warm-up that counts updates needs scheduler.step() after each update",
                )
        for scheduler, first in zip(self._schedulers, self._first_steps, strict=True):
            is_idle = loop.step >= _NUM_IDLE and _count(scheduler) == first and hasattr(scheduler, "last_epoch")
            if is_idle and not self._is_later(scheduler):
                yield report(
                    "schedule",
                    f"{type(scheduler).__name__} never steps: the learning rate stays as it was",
                    measured=f"0 calls of step() in {loop.step} updates",
                    expected="scheduler.step() after each epoch, or after each update",
                    action="call scheduler.step()",
                )

    def _is_later(self, scheduler: Any) -> bool:
        """Return True if another scheduler of its optimiser has been stepped, and not to its end, as in a warm-up."""
        return any(
            first < _count(other) < _find_length(other)
            for other, first in zip(self._schedulers, self._first_steps, strict=True)
            if getattr(other, "optimizer", None) is getattr(scheduler, "optimizer", None)
        )

    def _still_rises(self, key: int, track: OptimizerTrack) -> bool:
        """Return True in a warm-up: the last rise is no longer ago than two rises take."""
        num_rises = len(self._rises.get(key, [])) - 1
        since = track.num_updates - self._last_rise.get(key, 0)
        return num_rises > _MIN_RISES and since * num_rises <= 2 * track.num_updates


def _length_faults(scheduler: Any, track: OptimizerTrack) -> Iterator[Found]:
    """Yield a fault for a cosine that is stepped past its end, after which the learning rate rises again."""
    length = getattr(scheduler, "T_max", None)
    is_its_own = getattr(scheduler, "optimizer", None) is track.optimizer
    if is_its_own and length is not None and _count(scheduler) > length + 1:
        is_each = track.num_updates <= _count(scheduler) + 1
        yield report(
            "schedule",
            f"{type(scheduler).__name__} is stepped past its end: the learning rate rises again",
            severity="error",
            measured=f"{_count(scheduler)} steps, T_max {length}"
            + (", one after each update: T_max is probably in epochs" if is_each else ""),
        )


def _find_length(scheduler: Any) -> float:
    """Return the number of steps after which a scheduler is at its end; infinity if it says none."""
    lengths = (getattr(scheduler, name, None) for name in ("total_iters", "T_max", "total_steps"))
    return next((float(length) for length in lengths if length is not None), math.inf)


def _count(scheduler: Any) -> int:
    return int(getattr(scheduler, "last_epoch", 0))


class StateMonitor(Monitor):
    """States of optimisers: those that the last update left are there at the next, also after a resume.

    But for a restart, which sets the weights back, too.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._is_resumed: set[int] = set()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        size, key = len(track.optimizer.state), id(track)
        before = self._sizes.get(key, 0)
        if before > 0 and size == 0 and not track.is_restarted:
            yield report(
                "lost-state",
                f"{track.name} has lost its state: momenta begin at zero again",
                measured=f"no state; that of {before} parameters after the last update",
            )
        if key not in self._sizes and size == 0 and loop.step == loop.first_step > 0:
            self._is_resumed.add(key)

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        state = track.optimizer.state
        size = self._sizes[id(track)] = len(state) if any(map(bool, state.values())) else 0
        if id(track) in self._is_resumed and size > 0:
            yield report(
                "lost-state",
                f"{track.name} goes on without its state: momenta begin at zero again",
                measured=f"no state at update {loop.step + 1}, the first after the resume; {size} parameters have one",
            )
        self._is_resumed.discard(id(track))


class AverageMonitor(Monitor):
    """Moving averages of weights (EMA) that the loop keeps: something writes to them as the model trains."""

    def __init__(self, averages: Sequence[nn.Module]) -> None:
        self._averages = [(average, take_slices(average)) for average in averages]
        self._weights = {id(average): weights for average, weights in self._averages}
        self._buffers = {id(average): _copy_statistics(average) for average in averages}

    def on_average(self, loop: Loop, average: nn.Module) -> Iterator[Found]:
        """Judge the running statistics of an average that is evaluated: those of its start fit no weights but those.

        An average that has not begun has the weights of its start, too.
        """
        first, now = self._buffers[id(average)], _copy_statistics(average)
        own = {name: buffer for model in loop.models.values() for name, buffer in _copy_statistics(model).items()}
        common = [name for name in first if name in own and own[name].shape == first[name].shape]
        if average.training or not common or loop.step < _NUM_MOVED:
            return
        is_still = stack_numbers([(now[name] == first[name]).all() for name in common]).all()
        moves = [(own[name] != send(first[name], own[name].device)).any() for name in common]
        has_moved = stack_numbers(moves).any()
        weights = zip(take_slices(average), self._weights[id(average)], strict=True)
        has_begun = stack_numbers([(own != first).any() for own, first in weights]).any()
        is_stale = stack_numbers([is_still, has_moved, has_begun]).all()
        yield from loop.reader.read(is_stale.float(), partial(_judge_statistics, common))

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if loop.step == _NUM_IDLE_OF_AVERAGE:  # some are updated after each epoch, or begin after a warm-up
            begun = [pair for pair in self._averages if getattr(pair[0], "n_averaged", 1) != 0]  # SWA begins late
            self._averages = [pair for pair in self._averages if pair not in begun]
            yield from self._judge_moves(loop, begun)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        if loop.step > _NUM_IDLE:
            yield from self._judge_moves(loop, self._averages)

    def _judge_moves(self, loop: Loop, averages: Sequence[tuple[nn.Module, Sequence[Tensor]]]) -> Iterator[Found]:
        for average, first in averages:
            change = [(now != before).any() for now, before in zip(take_slices(average), first, strict=True)]
            if change:
                yield from loop.reader.read(stack_numbers(change).any().float(), _judge_average)


class LoadMonitor(Monitor):
    """Weights that the loop loads after it has trained: they are other tensors than the model's own.

    Those of a state that has just been taken, and edited in its place, are the model's own on purpose: the edit has
    written to the weights since the last update, and more often than the loop writes to them between updates.
    """

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}
        self._num_writes: dict[int, int] = {}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        self._num_writes[id(track)] = self._count_writes(track)
        yield from ()

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        self._versions[id(track)] = _sum_versions(track)
        yield from ()

    def _count_writes(self, track: OptimizerTrack) -> int:
        now = _sum_versions(track)
        return now - self._versions.get(id(track), now)

    def on_load(self, loop: Loop, model: nn.Module, state: Mapping[str, Any]) -> Iterator[Found]:
        names = model.state_dict(keep_vars=True).keys()
        if names and state and names.isdisjoint(state):
            yield report(
                "nothing-loaded",
                "load_state_dict finds none of the model's weights: with strict=False it loads nothing",
                measured=f"0 of {len(state)} names fit the model's {len(names)}: '{next(iter(state))}' for "
                f"'{next(iter(names))}'",
            )
        own = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
        shared = [name for name, value in own.items() if _is_same_memory(state.get(name), value)]
        num_updates = sum(track.num_updates for track in loop.tracks.values())
        is_edited = any(
            self._count_writes(track) > self._num_writes.get(id(track), 0) for track in loop.tracks.values()
        )
        if own and len(shared) == len(own) and num_updates and not is_edited:
            yield report(
                "aliased-weights",
                "load_state_dict gets the model's own tensors: nothing is restored",
                param=shared[0],
                measured=f"{len(shared)} of {len(own)} parameters share their memory with the model, after "
                f"{num_updates} updates",
            )


def _sum_versions(track: OptimizerTrack) -> int:
    return sum(probe._version for probe in track.probes)


def _is_same_memory(value: Any, own: Tensor) -> bool:
    return isinstance(value, Tensor) and value.device == own.device and value.data_ptr() == own.data_ptr()


def _copy_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copy the floating buffers of the norms of a model, by name; `module.` of wrappers is left out."""
    return {
        f"{name}.{key}".removeprefix("module."): buffer.detach().clone()
        for name, module in model.named_modules()
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and "running" in key
    }


def _judge_statistics(names: Sequence[str], value: float) -> Iterator[Found]:
    if value:
        yield report(
            "ema",
            f"the average is evaluated with the running statistics of its start: '{names[0]}'",
            causes=("model.norm_mode", "optim.state"),
            measured=f"{len(names)} buffers have moved in the model, none of them in its average",
            expected="running statistics that fit the averaged weights",
            action="copy the buffers with each update of the average, or recompute them (update_bn) before evaluating",
        )


def _judge_average(value: float) -> Iterator[Found]:
    if value == 0:
        yield report(
            "ema",
            "the moving average of the weights never moves",
            measured="no parameter of it has changed in all updates so far",
        )


def take_slices(average: nn.Module) -> list[Tensor]:
    """Copy the first entries of each parameter that has them on this process."""
    parameters = [parameter.detach() for parameter in average.parameters() if has_slices(parameter)]
    return [take_local(parameter).flatten()[:_MAX_SLICE].clone() for parameter in parameters]
