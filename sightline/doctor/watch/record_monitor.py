"""Monitor that keeps the record of a training, and judges it where a number leaves the others, and at evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.outcomes.modes import Compared, compare_modes
from sightline.doctor.examine import examine
from sightline.doctor.record import LossLevels, ModeGap, Record, Scored, Sizes
from sightline.doctor.watch.loop import (
    ForwardCall,
    Found,
    Loop,
    Monitor,
    OptimizerTrack,
    has_slices,
    stack_numbers,
    take_local,
)
from sightline.doctor.watch.ranks import is_one_of_several
from sightline.doctor.watch.trace_monitor import compute_norm
from sightline.instrument import Inputs

_MAX_INPUTS = 4
_MIN_UPDATES = 50
"""Updates before the modes are compared, and between two comparisons: each costs some five passes of a batch."""


class RecordMonitor(Monitor):
    """Record of the loop: sizes of inputs and losses at each step; both modes at evaluations and at the end.

    With `takes_losses` False, they come from `take_loss`: a step that a GPU replays has no events. `name_sample` names
    the sample of a step, of its training pass and of a row of it; without it, the row is named.
    """

    def __init__(
        self,
        *,
        takes_losses: bool = True,
        name_sample: Callable[[int, int, int], int | None] | None = None,
    ) -> None:
        self.record = Record()
        self._name_sample = name_sample
        self._pass = self._step = 0
        self._takes_losses = takes_losses
        self._flags: dict[str, bool] = {}
        self._is_due = False
        self._jumped: LossLevels | None = None
        self._compared_at = 0

    # --- inputs ---------------------------------------------------------------------------------------------------

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterable[Found] | None:
        """Keep the sizes of the inputs of a training pass; compare the modes before the first pass of an evaluation."""
        if call.has_gradient and call.model.training:
            if loop.is_measured or not self._flags:
                self._flags = {name: module.training for name, module in call.model.named_modules()}
            self._pass = self._pass + 1 if self._step == loop.step else 0
            self._step = loop.step
            found = list[Found]()
            for path, tensor in list(_list_numbers(call.inputs))[:_MAX_INPUTS]:
                found += self._read_size(loop, path, tensor)
            return found
        is_evaluation = self._takes_losses and not (call.has_gradient or call.model.training)
        is_trained = loop.call is not None and loop.call.model is call.model
        return self.compare(loop, call.model) if is_evaluation and is_trained else None

    def _read_size(self, loop: Loop, path: str, tensor: Tensor) -> Iterable[Found]:
        sizes, step, number = self.record.inputs.setdefault(path, Sizes()), loop.step + 1, self._pass
        if tensor.device.type == "cpu":
            low, high = torch.aminmax(tensor.detach())  # one pass over the numbers; a norm takes 16 times as long
            size = max(-low.item(), high.item())
            is_far = sizes.compare(size)
            row = int(_measure_rows(tensor).argmax()) if is_far else 0
            offsets = _find_offsets(loop.call, tensor) if is_far else None
            sizes.add(step, size, row=self._name(step, number, row, offsets) if is_far else None)
            self._is_due = self._is_due or is_far
            return ()
        largest = _measure_rows(tensor).max(0)

        def judge(numbers: Any) -> Iterable[Found]:
            is_far = sizes.compare(numbers[0])
            row = int(numbers[1])
            sizes.add(step, numbers[0], row=self._name(step, number, row, None) if is_far else None)
            return self.examine() if is_far else ()

        return loop.reader.read(torch.stack([largest.values.double(), largest.indices.double()]), judge)

    def _name(self, step: int, number: int, row: int, offsets: Tensor | None) -> int | None:
        """Name the sample in a row of a pass; `offsets` are those of samples of many rows."""
        if offsets is not None:
            row = int(torch.searchsorted(offsets, row, right=True)) - 1
        return row if self._name_sample is None else self._name_sample(step, number, row)

    # --- losses ---------------------------------------------------------------------------------------------------

    def before_backward(self, loop: Loop, root: Tensor) -> Iterable[Found] | None:
        """Keep the loss."""
        if not self._takes_losses or loop.loss is None or root.numel() != 1:
            return None
        levels, step = self.record.losses.setdefault(hash(loop.call_site), LossLevels()), loop.step + 1
        if loop.loss_value is None:
            return loop.reader.read(loop.loss, partial(self._judge_loss, levels, step))
        if levels.add(step, loop.loss_value):
            self._jumped, self._is_due = levels, True
        return None

    def _judge_loss(self, levels: LossLevels, step: int, loss: float) -> Iterable[Found]:
        return self.examine() if levels.add(step, loss) else ()

    def take_loss(self, step: int, loss: float, norm: float) -> Iterable[Found]:
        """Keep the loss of a step and the norm of its gradient."""
        levels = self.record.losses.setdefault("", LossLevels())
        if not levels.add(step, loss):
            return ()
        levels.set_norm(norm)
        return self.examine()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found] | None:
        """Judge a step whose inputs or loss are above all before."""
        if not self._is_due:
            return None
        if self._jumped is not None:
            self._jumped.set_norm(float(compute_norm(list(track.gradients.values()))))
        self._is_due, self._jumped = False, None
        return self.examine()

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found]:
        """Look at the largest weight of the optimiser's parameters."""
        return self._look_at_weights(loop, track)

    def _look_at_weights(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found]:
        named = {name: take_local(p.detach()) for name, p in track.parameters.items() if has_slices(p) and p.numel()}
        floating = {name: values for name, values in named.items() if values.is_floating_point()}
        if not floating:
            return ()
        sizes, step, names = self.record.weights, loop.step, list(floating)
        largest = stack_numbers([n.float() for n in torch._foreach_norm([*floating.values()], math.inf)]).max(0)

        def judge(numbers: Any) -> Iterable[Found]:
            is_far = sizes.compare(numbers[0])
            sizes.add(step, numbers[0], name=names[int(numbers[1])])
            return self.examine() if is_far else ()

        return loop.reader.read(torch.stack([largest.values.double(), largest.indices.double()]), judge)

    # --- evaluations ----------------------------------------------------------------------------------------------

    def take_score(self, step: int, value: float) -> Iterable[Found]:
        """Keep the figure of an evaluation."""
        if math.isfinite(value):
            self.record.scores.append(Scored(step, value, self.record.main_losses.level))
        return self.examine()

    def compare(self, loop: Loop, model: nn.Module, *, is_asked: bool = False) -> Iterable[Found]:
        """Compare both modes of a network, on the inputs of the last training pass, unless that was done just now."""
        due = loop.step >= self._compared_at + (1 if is_asked else _MIN_UPDATES)
        if loop.call is None or not due or loop.step < _MIN_UPDATES or is_one_of_several():
            return ()
        self._compared_at = loop.step
        compared = compare_on(model, loop.call.inputs, self._flags)
        if isinstance(compared, MissingError):
            return ()
        losses = self.record.main_losses
        self.record.modes.append(ModeGap(loop.step, *compared, losses.level, losses.start))
        return self.examine()

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge the whole record."""
        if loop.call is not None and self._takes_losses:
            yield from self.compare(loop, loop.call.model, is_asked=True)
        for track in loop.tracks.values():
            yield from self._look_at_weights(loop, track)
        self.record.is_over = True
        yield from self.examine()

    def examine(self) -> list[Found]:
        """Judge the record by the doctor's rules of records."""
        return examine(Evidence({"record": self.record}, math.inf)).findings


def compare_on(model: nn.Module, inputs: Inputs, flags: Mapping[str, bool]) -> Compared | MissingError:
    """Compare both modes of a network on a batch, as far as it can be done; random states are kept."""
    compared: Compared | MissingError = attempt(
        "modes", compare_modes, {"model": model, "inputs": inputs, "flags": flags}
    )
    return compared


def _list_numbers(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """List the arguments of a pass that are numbers, each with its name; the only one by position has none."""
    args, kwargs = inputs
    named = {"argument " * (len(args) > 1) + str(place): value for place, value in enumerate(args)} | kwargs
    leaves = dense_leaves(args[0] if len(named) == len(args) == 1 else named)
    return ((path, t) for path, t in leaves if t.is_floating_point() and t.itemsize > 1 and t.ndim and t.numel())


def _find_offsets(call: ForwardCall | None, tensor: Tensor) -> Tensor | None:
    """Return the beginnings of the samples among the rows of an input, with their end; None where a row is one."""
    for _, other in dense_leaves(() if call is None else call.inputs):
        is_whole = other.ndim == 1 and other.dtype in (torch.int64, torch.int32) and len(other) > 1
        if is_whole and other.is_cpu and int(other[0]) == 0 and int(other[-1]) == len(tensor) > len(other):
            return other
    return None


def _measure_rows(tensor: Tensor) -> Tensor:
    """Compute the largest size of the numbers of each row (B,)."""
    return torch.linalg.vector_norm(tensor.detach().reshape(len(tensor), -1), math.inf, dim=1)
