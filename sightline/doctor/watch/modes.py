"""Training flags of models, batch norms and dropouts, and statistics that batch norms keep."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.rules.events import report
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack
from sightline.doctor.watch.passes import hash_numbers

_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NUM_EVALUATED = 3
_NUM_MOVED = 8


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
        is_read = call.digests is not None and call.digests.values.device.type == "cpu"
        key = hash_numbers([call.digests.values]) if call.digests is not None and is_read else self._num_inputs
        self._times[key] = self._times.get(key, 0) + 1
        self.is_intended = self.is_intended or self._times[key] == _NUM_EVALUATED

    def repeat(self, call: ForwardCall) -> None:
        """Note a pass with gradients, which may be one of these once more."""
        first = next((tensor for _, tensor in dense_leaves(call.inputs) if tensor.numel()), None)
        left = [awaited for awaited in self._awaited if awaited() is not first or first is None]
        self.is_repeated = self.is_repeated or len(left) < len(self._awaited)
        self.is_intended = self.is_intended or (self.is_repeated and not left)
        self._awaited = left


class ModeMonitor(Monitor):
    """Training flags of a model and of its batch norms and dropouts, against what the loop does with them."""

    def __init__(self) -> None:
        self._has_trained: dict[int, bool] = {}
        self._modules: dict[int, list[tuple[str, nn.Module]]] = {}
        self._held: dict[str, tuple[Any, int, int, Any]] = {}
        self._has_learned: dict[int, bool] = {}
        self._evaluations: dict[int, _Passes] = {}

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterator[Found]:
        key, model = id(call.model), call.model
        modules = self._modules.get(key)
        if modules is None:
            modules = self._modules[key] = [
                (name, m)
                for name, m in model.named_modules()
                if isinstance(m, _NORMS) or (isinstance(m, _DROPOUTS) and m.p > 0)
            ]
            self._held |= {
                name: (m, weight._version, count._version, count > 1)
                for name, m in modules
                if isinstance(m, _NORMS) and (weight := _get_weight(m)) is not None and not weight.requires_grad
                if (count := m.num_batches_tracked) is not None
            }
            self._has_learned |= {
                id(m): bool(((m.running_mean != 0) | (m.running_var != 1)).any())  # read once, not at each pass
                for _, m in modules
                if not m.training and isinstance(m, _NORMS) and m.running_mean is not None
            }
        if not modules:
            return
        if call.has_gradient:
            for passes in self._evaluations.values():
                passes.repeat(call)
            yield from self._end_evaluations()
            self._has_trained[key] = self._has_trained.get(key, False) or model.training
            if model.training:
                yield from _norm_faults(modules, self._has_learned)
            return
        passes = self._evaluations.setdefault(key, _Passes())
        if model.training:
            passes.add(call, loop.step + 1)
            is_reset = any(getattr(m, "momentum", 0.1) is None for _, m in modules)  # as `update_bn` of torch does
            passes.is_intended = passes.is_intended or is_reset
            passes.layer = modules[0][0]
        elif any(isinstance(m, _NORMS) for _, m in modules):
            passes.is_intended = True  # statistics were adapted, and evaluation begins now

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        yield from self._end_evaluations()

    def _end_evaluations(self, *, is_update: bool = False) -> Iterator[Found]:
        """Judge the passes without gradients since the last update; those that are being repeated, at the next one."""
        ended = {key: passes for key, passes in self._evaluations.items() if is_update or not passes.is_repeated}
        for key, passes in ended.items():
            del self._evaluations[key]
            if passes.number >= _NUM_EVALUATED and not passes.is_intended:
                yield report(
                    "mode",
                    "the model is evaluated in training mode: dropouts draw, batch norms use the batch",
                    causes=("eval.mode", "model.norm_mode"),
                    measured=f"{passes.number} forward passes in a row without gradients, with training=True",
                    layer=passes.layer,
                    step=passes.step,
                    evidence={"mode": "training"},
                )

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        yield from self._end_evaluations(is_update=True)
        call = loop.call
        if call is None or call.model.training or not self._modules.get(id(call.model)):
            return
        own = {id(parameter) for parameter in track.parameters.values()}
        if not any(id(parameter) in own for parameter in call.model.parameters()):  # a critic of what is trained
            return
        was_training = self._has_trained.get(id(call.model), False)
        yield report(
            "mode",
            "the model trains in evaluation mode" + (", since an evaluation" if was_training else ""),
            severity="error" if was_training else None,
            causes=("model.norm_mode", "eval.mode"),
            measured="training=False in the forward pass of an update"
            + (", True in those before" if was_training else ""),
            layer=self._modules[id(call.model)][0][0],
            evidence={"mode": "evaluation"},
        )

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge learnt statistics: those of a batch norm whose weights never change stay as they are, too."""
        yield from self._end_evaluations(is_update=True)
        moved = [
            name
            for name, (module, weight, count, is_learned) in self._held.items()
            if (own := _get_weight(module)) is not None and own._version == weight and not own.requires_grad
            if module.num_batches_tracked._version - count >= _NUM_MOVED and bool(is_learned)
        ]
        if moved:
            yield report(
                "mode",
                f"{len(moved)} frozen batch norm(s) go on averaging statistics, '{moved[0]}' first",
                causes=("model.norm_mode", "model.frozen_unintended"),
                measured="weights that never changed, and running statistics that did",
                action="call eval() on frozen parts after each train(), or let their weights train",
                layer=moved[0],
                evidence={"mode": "statistics"},
            )


def _get_weight(module: nn.Module) -> nn.Parameter | None:
    """Return the weight of a batch norm; None for others, and for one that is computed from other parameters."""
    return module._parameters.get("weight") if isinstance(module, _NORMS) else None


def _norm_faults(modules: list[tuple[str, nn.Module]], has_learned: Mapping[int, bool]) -> Iterator[Found]:
    """Yield a fault for batch norms in evaluation mode whose weights train, in a model in training mode.

    Not for those that were so from the start with statistics that they had learned: a fine-tuning keeps them.
    """
    held = [
        name
        for name, m in modules
        if not m.training and (weight := _get_weight(m)) is not None and weight.requires_grad
        if not has_learned.get(id(m), False)
    ]
    if held:
        yield report(
            "mode",
            f"{len(held)} batch norm(s) in evaluation mode while the model trains, '{held[0]}' first",
            causes=("model.norm_mode",),
            measured="training=False, and requires_grad=True of their weights",
            action="call train() on them, or freeze their weights too if that is intended",
            layer=held[0],
            evidence={"mode": "norm"},
        )
