"""Order of backward passes, updates and clearing; parameters without gradients or optimiser; dead units."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import tree_leaves
from sightline.workbench.check.checks.model.gradients import LAYERS, make_dead_fault
from sightline.workbench.check.checks.model.no_gradient import is_frozen_by_kind, registration_faults
from sightline.workbench.check.runtime_rules import find_rule, report
from sightline.workbench.watch.loop import Found, Judge, Loop, Monitor, OptimizerTrack
from sightline.workbench.watch.loss_graph import list_counted

_MAX_NAMES = 5
_MAX_MIXED = 0.5
"""Share of modules up to which frozen parameters beside others are a slip: some methods train all biases alone."""
_NUM_ZERO = 3
"""Updates in a row with all gradients exactly zero: one or two are a batch in which nothing counts."""
_NUM_SILENT, _NUM_UNROUTED = 8, 50
"""Updates without a gradient for a module that does not run: layers may be dropped at random, and rows be sent to other
experts of a list, which takes more updates."""
_UNKNOWN_OPTIMIZERS = 20
"""Updates until optimisers that were not named are taken to be all that there are."""
_NUM_LOST = 4
"""Updates in a row before which the same number of backward passes was for nothing."""
_MAX_DEAD, _MIN_UNITS, _NUM_DEAD = 0.75, 8, 5


def list_names(names: Sequence[str]) -> str:
    """Format a few names, and how many more there are."""
    return join_some(names, most=_MAX_NAMES)


class OrderMonitor(Monitor):
    """Order of clearing, backward pass and update, exactly: by identity and version of each probe's gradient."""

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        for track in loop.tracks.values():
            marks = track.before_backward = track.marks()
            track.is_kept = [
                kept and mark == last
                for kept, mark, last in zip(track.is_kept, marks, track.after_backward, strict=True)
            ]
            first = next((p.grad for kept, p in zip(track.is_kept, track.probes, strict=True) if kept), None)
            if first is not None and not track.num_backward:  # `grad.data.zero_()` leaves no mark
                track.kept_values = first.detach().any().float()
        yield from ()

    def after_backward(self, loop: Loop) -> Iterator[Found]:
        for track in loop.tracks.values():
            track.after_backward = track.marks()
            track.num_backward += 1
            gradients = [g for p in track.small if (g := p.grad) is not None and g.layout is torch.strided]
            if gradients and track.is_sampled(loop.every):
                track.norm_after_backward = torch.stack([n.float() for n in torch._foreach_norm(gradients)]).max()
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        marks = track.marks()
        had = [name for name, mark in zip(track.names, track.after_backward, strict=True) if mark is not None]
        if track.num_backward and had and not any(marks):
            yield report(
                "gradients-cleared",
                f"the gradients are cleared between backward() and {track.name}.step(): the update does nothing",
                measured=f"after backward() {list_names(had)} had a gradient, at step() none has",
            )
        kept = [
            name
            for name, is_kept, mark, last in zip(track.names, track.is_kept, marks, track.after_update, strict=True)
            if is_kept and mark != last
        ]
        if kept and track.num_backward and track.kept_values is not None:
            found = report(
                "gradients-kept",
                f"gradients of the previous update are still in those of this one: {track.name} adds them up",
                measured=f"nothing but backward() has written to the gradients of {list_names(kept)} since step()",
                param=kept[0],
            )
            yield from loop.reader.read(track.kept_values, lambda value: [found] if value else [])
        if not track.num_backward and track.num_updates and marks == track.after_update:
            state = "the same gradients as before" if any(marks) else "no gradient"
            yield report(
                "step-without-backward",
                f"{track.name}.step() without a backward pass since the last one",
                measured=f"{state} at step()",
            )

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        track.after_update = track.after_backward = track.marks()
        track.is_kept = [mark is not None for mark in track.after_update]
        track.num_backward = 0
        yield from ()


class LostMonitor(Monitor):
    """Backward passes, each of a batch of its own, whose gradients are cleared before any update uses them.

    Not those of inputs (adversarial examples), nor between which weights change (SAM).
    """

    def __init__(self) -> None:
        self._last: tuple[int, int, list[int]] | None = None
        self._needs_inputs = False
        self._num_lost = self._num_passes = 0
        self._history: list[tuple[int, int]] = []

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        tracks = [track for track in loop.tracks.values() if track.num_backward]
        is_new = self._last is not None and self._last[1] != loop.num_forwards
        is_same = self._last is not None and self._last[::2] == (loop.step, _list_versions(loop))
        if tracks and is_new and is_same and not self._needs_inputs and all(map(_is_cleared, tracks)):
            self._num_lost += 1
        yield from ()

    def after_backward(self, loop: Loop) -> Iterator[Found]:
        tracks = loop.tracks.values()
        if tracks and all(track.marks() == track.before_backward for track in tracks):
            return  # such as the pass of a generator through a frozen critic
        self._num_passes += 1
        self._last = loop.step, loop.num_forwards, _list_versions(loop)
        inputs = () if loop.call is None else loop.call.inputs
        self._needs_inputs = any(tensor.requires_grad for _, tensor in tree_leaves(inputs))
        yield from ()

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        lost, total = self._num_lost, self._num_passes
        self._history = [*self._history[1 - _NUM_LOST :], (lost, total)]
        self._num_lost = self._num_passes = 0
        if len(self._history) == _NUM_LOST and lost and set(self._history) == {(lost, total)}:
            yield report(
                "gradients-cleared",
                f"the gradients of {lost} of {total} backward passes are cleared before {track.name}.step() uses them",
                causes=("optim.grad_accumulation", "optim.step_order"),
                measured=f"the same at {_NUM_LOST} updates in a row; each pass had a batch of its own",
                action="for accumulation call zero_grad() once per update: after step(), not before each backward()",
            )


class LeakMonitor(Monitor):
    """Gradients that a loss left in an optimiser, as a generator's in its critic, are cleared before the next loss."""

    def __init__(self) -> None:
        self._passes: dict[int, list[set[int]]] = {}
        self._updated: dict[int, set[int]] = {}
        self._num_leaks: dict[int, int] = {}
        self._has_values: dict[int, Tensor] = {}

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        for key, track in loop.tracks.items():
            if self._passes.get(key) and (_is_cleared(track) or track.marks() != track.after_backward):
                self._passes[key] = []
            elif self._passes.get(key):  # `grad.data.zero_()` leaves no mark
                gradients = [p.grad.detach().any() for p in track.probes if p.grad is not None]
                self._has_values[key] = torch.stack(gradients).any().float()
        yield from ()

    def after_backward(self, loop: Loop) -> Iterator[Found]:
        reached = {
            key
            for key, track in loop.tracks.items()
            if any(mark not in (None, last) for mark, last in zip(track.marks(), track.before_backward, strict=True))
        }
        for key in reached if len(loop.tracks) > 1 else ():
            self._passes.setdefault(key, []).append(reached)
            self._updated.setdefault(key, set())
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        key = id(track.optimizer)
        *earlier, last = self._passes.get(key) or [set()]
        is_leak = last == {key} and any((passed - {key}) & self._updated.get(key, set()) for passed in earlier)
        number = self._num_leaks[key] = self._num_leaks.get(key, 0) + 1 if is_leak else 0
        if number == _NUM_LOST:
            found = report(
                "gradients-kept",
                f"gradients of a loss that another optimiser has used are still in those of {track.name}",
                measured=f"{number} updates in a row: a backward pass through both, an update of the other, "
                "a backward pass through this one, and no zero_grad() between them",
                action="call zero_grad() of this optimiser before the backward pass of its own loss",
                param=track.names[0] if track.names else None,
            )
            yield from loop.reader.read(self._has_values[key], lambda value: [found] if value else [])

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        own = id(track.optimizer)
        self._passes[own], self._updated[own] = [], set()
        for key, updated in self._updated.items():
            if key != own:
                updated.add(own)
        yield from ()


def _list_versions(loop: Loop) -> list[int]:
    return [probe._version for track in loop.tracks.values() for probe in track.probes]


def _is_cleared(track: OptimizerTrack) -> bool:
    """Return True if the gradients of the last backward pass are None, or (on a CPU, where it is known) all zero."""
    had = [p for p, mark in zip(track.probes, track.after_backward, strict=True) if mark is not None]
    return bool(had) and all(p.grad is None or (p.grad.device.type == "cpu" and not bool(p.grad.any())) for p in had)


class ReachMonitor(Monitor):
    """Parameters that no gradient reaches, that no optimiser holds, or that the model does not register."""

    def __init__(self, *, knows_optimizers: bool) -> None:
        self._knows_optimizers = knows_optimizers
        self._silent: dict[int, dict[str, int]] = {}
        self._is_covered = self._is_unfrozen = False
        self._num_trained = 0
        self._num_zero: dict[int, int] = {}
        self._old_marks: dict[int, tuple[int, int]] | None = None

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if self._old_marks is None:  # gradients that are left from before the loop
            self._old_marks = {
                id(p): (id(g), g._version) for p in loop.parameters().values() if (g := p.grad) is not None
            }
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if track.num_updates == 0:
            for model in loop.models.values():
                yield from ((find_rule("unregistered"), fault) for fault in registration_faults(model))
            yield from _frozen_faults(loop)
        if track.num_updates < _NUM_UNROUTED and track.num_backward:
            yield from self._silent_faults(loop, track)
        if not self._is_covered and (self._knows_optimizers or loop.step >= _UNKNOWN_OPTIMIZERS):
            self._is_covered = True
            self._num_trained = _count_trained(loop)
            yield from _coverage_faults(loop, self._old_marks or {})
        elif self._is_covered and track.is_sampled(loop.every):
            if self._is_unfrozen:
                yield from _coverage_faults(loop, self._old_marks or {})
            self._is_unfrozen = _count_trained(loop) > self._num_trained  # an optimiser of their own may come next
            self._num_trained = _count_trained(loop)
        if track.is_sampled(loop.every):
            yield from self._zero_faults(loop, track)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        if (self._is_unfrozen or not self._is_covered) and loop.tracks:
            yield from _coverage_faults(loop, self._old_marks or {})

    def _silent_faults(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        silent = [name for name, p in track.parameters.items() if p.requires_grad and p.grad is None]
        if not silent:
            return
        if len(silent) == len(track.parameters):
            if track.num_updates == 0 and not any(track.after_backward):
                yield report(
                    "no-gradient",
                    f"no parameter of {track.name} gets a gradient: the loss does not depend on the model",
                    severity="error",
                    causes=("loss.detached", "model.frozen_unintended"),
                    measured="every gradient is None after backward()",
                    action="look for detach(), no_grad, .data, numpy() or argmax between the model and the loss",
                )
            return
        before = self._silent.get(id(track), {})
        counts = self._silent[id(track)] = {name: before.get(name, 0) + 1 for name in silent}
        ran = [n for n in silent if _get_owner(n) in loop.executed and track.num_updates == 0]
        unused = [n for n in counts if counts[n] in (_NUM_SILENT, _NUM_UNROUTED) and _get_owner(n) not in loop.executed]
        patience = {n: _NUM_UNROUTED if _has_used_twin(n, loop) else _NUM_SILENT for n in unused}
        idle = [n for n in unused if counts[n] == patience[n]]
        for names, detail in (
            (ran, "their modules run, but the loss does not depend on them"),
            (idle, "their modules never run"),
        ):
            if names:
                yield report(
                    "no-gradient",
                    f"{len(names)} parameter(s) get no gradient: {list_names(names)}",
                    severity="warning",
                    measured=f"None after backward(): {detail}",
                    causes=("model.structure",) if names is idle else (),
                    param=names[0],
                    layer=names[0].rpartition(".")[0] or None,
                )

    def _zero_faults(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if track.norm is None:
            return
        was_alive, is_marked = track.norm_after_backward, track.marks() != track.after_backward

        def judge(value: float) -> Iterator[Found]:
            is_zero = value == 0 and not any(bool(gradient.any()) for gradient in track.gradients.values())
            number = self._num_zero[id(track)] = self._num_zero.get(id(track), 0) + 1 if is_zero else 0
            if number < _NUM_ZERO:
                return
            is_written = is_marked and was_alive is not None and float(was_alive) > 0
            yield report(
                "gradients-cleared" if is_written else "zero-gradients",
                f"all gradients of {track.name} are exactly zero at {number} updates in a row",
                measured=f"largest gradient 0 in {len(track.gradients)} parameters"
                + ("; something has written to them since backward()" if is_written else ""),
            )

        yield from loop.reader.read(track.norm, judge)


def _get_owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _has_used_twin(parameter: str, loop: Loop) -> bool:
    """Return True if a module beside that of a parameter in a list has run: `experts.1` for `experts.0.weight`."""
    parts = parameter.split(".")
    beside = [".".join(parts[:place]) for place, part in enumerate(parts) if part.isdigit() and place]
    return any(
        name.startswith(f"{one}.") and name.removeprefix(f"{one}.").partition(".")[0].isdigit()
        for one in beside
        for name in loop.executed
    )


def _is_fixed(module: nn.Module, key: str) -> bool:
    """Return True for what is frozen by design: tables of positions, a bias before a norm, the length of a weight."""
    is_of_torch = type(module).__module__.startswith("torch.nn.modules")
    return key == "bias" or not is_of_torch


def _frozen_faults(loop: Loop) -> Iterator[Found]:
    """Yield a fault for parameters that are frozen in few modules beside others of the same module that train."""
    own = {name: list(module.named_parameters(recurse=False)) for name, module in loop.modules()}
    own = {name: named for name, named in own.items() if named}
    mixed = [name for name, named in own.items() if len({p.requires_grad for _, p in named}) == 2]
    if not mixed or len(mixed) > _MAX_MIXED * len(own) or is_frozen_by_kind(module for _, module in loop.modules()):
        return
    modules = dict(loop.modules())
    frozen = [
        f"{name}.{key}".lstrip(".")
        for name in mixed
        for key, p in own[name]
        if not p.requires_grad and not _is_fixed(modules[name], key)
    ]
    if not frozen:
        return
    yield report(
        "frozen",
        f"{len(frozen)} parameter(s) frozen in modules that train: {list_names(frozen)}",
        measured=f"requires_grad False in {len(mixed)} of {len(own)} modules, True of their other parameters",
        param=frozen[0],
        layer=mixed[0] or None,
    )


def _count_trained(loop: Loop) -> int:
    return sum(parameter.requires_grad for parameter in loop.parameters().values())


def _coverage_faults(loop: Loop, old_marks: Mapping[int, tuple[int, int]]) -> Iterator[Found]:
    """Yield a fault for trainable parameters of the models that get gradients, and that no known optimiser holds.

    What gets none, as a teacher whose outputs are detached, is not to be trained. `old_marks` are of gradients that are
    older than the loop.
    """
    held = {id(p) for track in loop.tracks.values() for group in track.optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in loop.parameters().values()}
    left_out = {
        name: p
        for name, p in loop.parameters().items()
        if p.requires_grad and id(p) not in held and p.grad is not None
        if (id(p.grad), p.grad._version) != old_marks.get(id(p))
    }
    foreign = [
        p
        for track in loop.tracks.values()
        for group in track.optimizer.param_groups
        for p in group["params"]
        if id(p) not in own
    ]
    if not left_out:
        return
    shapes = [p.shape for p in foreign]
    is_replaced = bool(foreign) and all(p.shape in shapes for p in left_out.values())
    names = list(left_out)
    yield report(
        "not-optimised",
        "the optimiser holds other parameters than the model: it was made before they were replaced"
        if is_replaced
        else f"{len(names)} trainable parameter(s) in no optimiser: {list_names(names)}",
        severity="error" if is_replaced else "warning",
        measured=f"{len(names)} of the model's trainable parameters are in no group"
        + (f"; {len(foreign)} in groups are not the model's, with the same shapes" if is_replaced else ""),
        param=names[0],
    )


class UnitMonitor(Monitor):
    """Units of linear layers and convolutions that no sample gives a gradient, over several sampled updates."""

    def __init__(self) -> None:
        self._is_alive: dict[str, Tensor] = {}
        self._num_seen = 0
        self._counted: set[int] | None = None

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if loop.is_sampled and root.grad_fn is not None:
            self._counted = list_counted(root.grad_fn)
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if not track.is_sampled(loop.every):
            return
        for name, module in loop.modules():
            weight = track.parameters.get(f"{name}.weight")  # an attribute may compute, as a spectral norm does
            gradient = None if weight is None else weight.grad
            is_counted = self._counted is None or id(weight) in self._counted
            if isinstance(module, LAYERS) and gradient is not None and is_counted:
                by_unit = gradient.transpose(0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else gradient
                alive = by_unit.flatten(1).any(dim=1)
                self._is_alive[name] = alive | self._is_alive[name] if name in self._is_alive else alive
        self._num_seen += 1
        if self._num_seen % _NUM_DEAD == 0:
            judged, self._is_alive = self._is_alive, {}
            for name, alive in judged.items():
                if len(alive) >= _MIN_UNITS:
                    yield from loop.reader.read(1 - alive.float().mean(), _make_judge(name, len(alive)))


def _make_judge(name: str, num_units: int) -> Judge:
    def judge(share: float) -> Iterator[Found]:
        if share > _MAX_DEAD:
            expected = f"at most {_MAX_DEAD:.0%} at {_NUM_DEAD} sampled updates"
            yield (
                find_rule("dead-units"),
                dataclasses.replace(make_dead_fault(name, share, num_units), expected=expected),
            )

    return judge
