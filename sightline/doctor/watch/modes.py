"""Training flags of models, batch norms and dropouts, and statistics that batch norms keep."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.evidence.live.modes import Evaluated, Norms, Trained
from sightline.doctor.rules import find_by
from sightline.doctor.rules.modes import (
    NUM_EVALUATED,
    evaluated_in_training_mode,
    modes_of_norms,
    trained_in_evaluation_mode,
)
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack

_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)


class _Passes:
    """Passes of a model in training mode without gradients, between two updates.

    They are intended if the same inputs come again and again, as draws of dropout to be averaged do, if they adapt the
    statistics of batch norms that an evaluation then uses, or if all of their inputs come with gradients before the
    next update, as where a loss compares the rows of several parts of a batch.
    """

    def __init__(self) -> None:
        self.number = self.step = self._num_inputs = 0
        self.is_intended, self.is_repeated, self.layer = False, False, ""
        self._last: weakref.ref[Tensor] | None = None
        self._times: dict[int, int] = {}
        self._awaited: list[weakref.ref[Tensor]] = []

    def add(self, call: ForwardCall, step: int) -> None:
        """Note a pass: on a CPU, inputs of the same numbers are the same, elsewhere those of one tensor in a row."""
        inputs = [tensor for _, tensor in dense_leaves(call.inputs) if tensor.numel()]
        self.number, self.step = self.number + 1, self.step or step
        if not inputs:
            return
        if self._last is None or self._last() is not inputs[0]:
            self._last, self._num_inputs = weakref.ref(inputs[0]), self._num_inputs + 1
            self._awaited.append(self._last)
        key = self._num_inputs if call.digests is None or call.digests.key is None else call.digests.key
        self._times[key] = self._times.get(key, 0) + 1
        self.is_intended = self.is_intended or self._times[key] == NUM_EVALUATED

    def repeat(self, call: ForwardCall) -> None:
        """Note a pass with gradients, which may be one of these once more."""
        first = next((tensor for _, tensor in dense_leaves(call.inputs) if tensor.numel()), None)
        left = [awaited for awaited in self._awaited if awaited() is not first or first is None]
        self.is_repeated = self.is_repeated or len(left) < len(self._awaited)
        self.is_intended = self.is_intended or (self.is_repeated and not left)
        self._awaited = left


class _Modes:
    """Batch norms and dropouts of a model.

    `learned` are the norms in evaluation mode that have learned statistics; `held` those whose weights are frozen, with
    the versions of weights and counts, and True if the statistics are learned. `has_trained` after a training pass.
    """

    def __init__(self, model: nn.Module) -> None:
        all_modules = [(name, m) for name, m in model.named_modules() if isinstance(m, (*_NORMS, *_DROPOUTS))]
        self.modules = [(name, m) for name, m in all_modules if isinstance(m, _NORMS) or getattr(m, "p", 0) > 0]
        self.norms = [(name, m) for name, m in self.modules if isinstance(m, _NORMS)]
        self._parents = {id(child): module for module in model.modules() for child in module.children()}
        self.has_trained = False
        self.held: dict[str, tuple[Any, int, int, Any]] = {
            name: (m, weight._version, count._version, count > 1)
            for name, m in self.norms
            if (weight := _get_weight(m)) is not None and not weight.requires_grad
            if (count := m.num_batches_tracked) is not None
        }
        self._known = set[int]()
        self.learned = {
            id(m)
            for _, m in self.norms
            if not m.training and _has_learned(m)  # read once, not at each pass
        }

    def find_held(self) -> list[str]:
        """List the batch norms in evaluation mode whose weights train, in a model in training mode.

        Not those that have learned statistics, and were so from the start, as a fine-tuning keeps them, or are so by
        themselves in a module that trains, as the last epochs keep them: `train()` switches both.
        """
        still = [(name, m) for name, m in self.norms if not m.training and id(m) not in self.learned]
        still = [(name, m) for name, m in still if not (self._parents[id(m)].training and self._has_learned(m))]
        return [name for name, m in still if (weight := _get_weight(m)) is not None and weight.requires_grad]

    def _has_learned(self, norm: nn.Module) -> bool:
        """Return True for a norm that has learned statistics; what they are is read until it is so."""
        if id(norm) not in self._known and _has_learned(norm):
            self._known.add(id(norm))
        return id(norm) in self._known


class ModeMonitor(Monitor):
    """Training flags of a model and of its batch norms and dropouts, against what the loop does with them."""

    def __init__(self) -> None:
        self._modes: dict[int, _Modes] = {}
        self._evaluations: dict[int, _Passes] = {}

    def on_forward(self, loop: Loop, call: ForwardCall) -> list[Found]:
        key, model = id(call.model), call.model
        modes = self._modes.get(key)
        if modes is None:
            modes = self._modes[key] = _Modes(model)
        if not modes.modules:
            return []
        if call.has_gradient:
            for passes in self._evaluations.values():
                passes.repeat(call)
            found = self._end_evaluations()
            modes.has_trained = modes.has_trained or model.training
            if model.training and (held := modes.find_held()):
                found += find_by(modes_of_norms, norms=Norms(held, {}))
            return found
        passes = self._evaluations.setdefault(key, _Passes())
        if model.training:
            passes.add(call, loop.step + 1)
            is_reset = any(m.momentum is None for _, m in modes.norms)  # as `update_bn` of torch does
            passes.is_intended = passes.is_intended or is_reset
            passes.layer = modes.modules[0][0]
        elif modes.norms:
            passes.is_intended = True  # statistics were adapted, and evaluation begins now
        return []

    def before_backward(self, loop: Loop, root: Tensor) -> list[Found]:
        return self._end_evaluations()

    def _end_evaluations(self, *, is_update: bool = False) -> list[Found]:
        """Judge the passes without gradients since the last update; those that are being repeated, at the next one."""
        if not self._evaluations:
            return []
        ended = {key: passes for key, passes in self._evaluations.items() if is_update or not passes.is_repeated}
        self._evaluations = {key: passes for key, passes in self._evaluations.items() if key not in ended}
        seen = [Evaluated(each.number, each.is_intended, each.layer, each.step) for each in ended.values()]
        return [found for each in seen for found in find_by(evaluated_in_training_mode, evaluated=each)]

    def before_update(self, loop: Loop, track: OptimizerTrack) -> list[Found]:
        found, call = self._end_evaluations(is_update=True), loop.call
        modes = None if call is None else self._modes.get(id(call.model))
        if call is None or modes is None or call.model.training or not modes.modules:
            return found
        own = {id(parameter) for parameter in track.parameters.values()}
        if any(id(parameter) in own for parameter in call.model.parameters()):  # not a critic of what is trained
            trained = Trained(modes.modules[0][0], modes.has_trained)
            found += find_by(trained_in_evaluation_mode, trained=trained)
        return found

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge learnt statistics: those of a batch norm whose weights never change stay as they are, too."""
        yield from self._end_evaluations(is_update=True)
        moved = {
            name: module.num_batches_tracked._version - count
            for modes in self._modes.values()
            for name, (module, weight, count, is_learned) in modes.held.items()
            if (own := _get_weight(module)) is not None and own._version == weight and not own.requires_grad
            if bool(is_learned)
        }
        yield from find_by(modes_of_norms, norms=Norms([], moved))


def _has_learned(norm: Any) -> bool:
    """Return True if the statistics of a batch norm are no longer those that it begins with."""
    return norm.running_mean is not None and bool(((norm.running_mean != 0) | (norm.running_var != 1)).any())


def _get_weight(module: nn.Module) -> nn.Parameter | None:
    """Return the weight of a batch norm; None for one that is computed from other parameters."""
    return module._parameters.get("weight")
