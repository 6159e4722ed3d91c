"""Loops that go on from what was saved: what stands beside the weights there is in the program again."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sightline.doctor.evidence.programs.resumes import Continued
from sightline.doctor.evidence.programs.saved import Saved, find_saved, has_settings
from sightline.doctor.objects import find_alive
from sightline.doctor.rules import find_by
from sightline.doctor.rules.programs.resumes import left_in_file
from sightline.doctor.watch.loop import Found, Loop, Monitor, OptimizerTrack
from sightline.doctor.watch.schedules import take_slices


class ResumeMonitor(Monitor):
    """First updates of weights that were saved beside the state of an optimizer, the steps of a schedule, an average.

    What is in memory, or in a file that a variable names, is compared with the weights once for each optimizer.
    """

    def __init__(self) -> None:
        self._averages: list[tuple[weakref.ref[nn.Module], list[Tensor], Continued]] = []

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        """Compare at the first update of an optimizer, before it moves the weights."""
        return self._judge(loop, track) if track.num_updates == 0 else None

    def _judge(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        own = {id(parameter) for parameter in track.parameters.values()}
        models = [model for model in loop.models.values() if any(id(p) in own for p in model.parameters())]
        for model in models[:1]:
            found = find_saved(model, sys._getframe())
            if found is not None:
                yield from self._compare(model, track, *found)

    def _compare(self, model: nn.Module, track: OptimizerTrack, saved: Saved, path: str) -> Iterator[Found]:
        optimizer = track.optimizer
        states = [name for name, state in saved.optimizers.items() if state["state"] and has_settings(optimizer, state)]
        if not states:
            return  # another training begins from these weights
        common: dict[str, Any] = {"source": saved.source, "weights": path, "optimizer": track.name, "rate": track.lr}
        size = len(saved.optimizers[states[0]]["state"])
        if not optimizer.state:
            yield from find_by(left_in_file, continued=Continued("optimizer", states[0], size, **common))
        steps = max(saved.schedules.values(), default=0)
        known = find_alive(LRScheduler) if steps > 0 else []
        schedules = [each for each in known if getattr(each, "optimizer", None) is optimizer]
        if schedules and not any(each.last_epoch for each in schedules):
            name = max(saved.schedules, key=lambda each: saved.schedules[each])
            yield from find_by(left_in_file, continued=Continued("schedule", name, steps, **common))
        for name in saved.weights:
            self._keep_averages(model, saved, Continued("average", name, len(saved.weights[name]), **common))

    def _keep_averages(self, model: nn.Module, saved: Saved, continued: Continued) -> None:
        """Keep other models of the kind that have no weights of what was saved, where that has two of its kind."""
        keys = model.state_dict().keys()
        if continued.part == continued.weights or saved.weights[continued.part].keys() != keys:
            return
        own = set(model.modules())
        others = [each for each in find_alive(type(model)) if each not in own and each.state_dict().keys() == keys]
        self._averages += [
            (weakref.ref(each), take_slices(each), continued) for each in others if saved.find_weights(each) is None
        ]

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Report a model that the loop has written to, and not trained, since: an average that began anew."""
        for reference, first, continued in self._averages:
            average = reference()
            if average is None or any(p.grad is not None for p in average.parameters()):
                continue
            change = [(now != before).any() for now, before in zip(take_slices(average), first, strict=True)]
            if change and bool(torch.stack(change).all()):
                yield from find_by(left_in_file, continued=continued)
