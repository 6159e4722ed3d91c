"""Order of backward passes, updates and clearing; parameters without gradients or optimiser."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import tree_leaves
from sightline.doctor.evidence.coverage import Uncovered, Unreached, list_held
from sightline.doctor.evidence.live.updates import Idle, Repeated
from sightline.doctor.objects import find_alive, iter_reachable
from sightline.doctor.rules import find_by
from sightline.doctor.rules.gradients import frozen_beside, gradients_cleared, gradients_kept, zero_gradients
from sightline.doctor.rules.model import unreached_parameters, unregistered
from sightline.doctor.rules.optimiser import idle_optimizer, not_optimised, step_without_backward
from sightline.doctor.watch.loop import Found, Loop, Mark, Monitor, OptimizerTrack, take_local

_MAX_NAMES = 5
_NUM_SILENT, _NUM_UNROUTED, _NUM_JOINED = 8, 50, 1000
"""Updates without a gradient for a module that does not run: layers may be dropped at random, rows be sent to other
experts of a list, which takes more updates, and heads join later; or all updates, if the loop is shorter than that."""
_NUM_FIRST_PASSES = 100
_OF_MODULES = frozenset(vars(nn.Module()))
_NUMBER = re.compile(r"\d+")
_UNKNOWN_OPTIMIZERS = 20
"""Updates until optimisers that were not named are taken to be all that there are."""


def list_names(names: Sequence[str]) -> str:
    """Format a few names, and how many more there are."""
    return join_some(names, most=_MAX_NAMES)


class OrderMonitor(Monitor):
    """Order of clearing, backward pass and update, exactly: by identity and version of each probe's gradient."""

    def __init__(self) -> None:
        self._num_cleared: dict[int, int] = {}

    def before_backward_measured(self, loop: Loop, root: object) -> None:
        for track in loop.tracks.values():
            marks = track.before_backward = track.marks()
            track.is_kept = [
                kept and mark == last
                for kept, mark, last in zip(track.is_kept, marks, track.after_backward, strict=True)
            ]
            first = next((p.grad for kept, p in zip(track.is_kept, track.probes, strict=True) if kept), None)
            if first is not None and not track.num_backward:  # `grad.data.zero_()` leaves no mark
                track.kept_values = take_local(first.detach()).any().float()

    def after_backward_measured(self, loop: Loop) -> None:
        for track in loop.tracks.values():
            track.after_backward = track.marks()
            track.num_backward += 1
            track.is_added_to = [
                added or (kept and mark != before)
                for added, kept, mark, before in zip(
                    track.is_added_to, track.is_kept, track.after_backward, track.before_backward, strict=True
                )
            ]
            track.norm_after_backward = track.measure_small()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        if track.small and track.small[0].grad is None:
            loop.ask()

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if not track.probes:  # of a model that is not watched
            return
        marks = track.marks()
        had = [name for name, mark in zip(track.names, track.after_backward, strict=True) if mark is not None]
        is_gone = bool(track.num_backward and had and not any(marks))
        number = self._num_cleared[id(track)] = self._num_cleared.get(id(track), 0) + 1 if is_gone else 0
        if is_gone:
            words = {"optimizer": track.name, "cleared": had, "num_cleared": number, "num_updates": track.num_updates}
            yield from find_by(gradients_cleared, **words, are_zeros=False)
        both = zip(track.names, track.is_kept, track.is_added_to, strict=True)
        kept = [name for name, is_kept, is_added_to in both if is_kept and is_added_to]
        if kept and track.num_backward and track.kept_values is not None:
            found = find_by(gradients_kept, optimizer=track.name, kept=kept, num_leaks=0)
            yield from loop.reader.read_if(track.kept_values, *found)
        is_written, has_gradients = marks != track.after_update, any(marks)
        repeated = Repeated(track.name, track.num_updates, track.num_backward, is_written, has_gradients)
        yield from find_by(step_without_backward, repeated=repeated)

    def after_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        track.after_update = track.after_backward = track.marks()
        track.is_kept = [mark is not None for mark in track.after_update]
        track.is_added_to = [False] * len(track.probes)
        track.num_backward = 0


class LeakMonitor(Monitor):
    """Gradients that a loss left in an optimiser, as a generator's in its critic, are cleared before the next loss."""

    def __init__(self) -> None:
        self._passes: dict[int, list[set[int]]] = {}
        self._updated: dict[int, set[int]] = {}
        self._num_leaks: dict[int, int] = {}

    def before_backward_measured(self, loop: Loop, root: object) -> None:
        for key, track in loop.tracks.items():
            if self._passes.get(key) and (is_cleared(track) or track.marks() != track.after_backward):
                self._passes[key] = []

    def after_backward_measured(self, loop: Loop) -> None:
        reached = {
            key
            for key, track in loop.tracks.items()
            if any(mark not in (None, last) for mark, last in zip(track.marks(), track.before_backward, strict=True))
        }
        for key in reached if len(loop.tracks) > 1 else ():
            self._passes.setdefault(key, []).append(reached)
            self._updated.setdefault(key, set())

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> list[Found]:
        key = id(track.optimizer)
        *earlier, last = self._passes.get(key) or [set()]
        is_leak = last == {key} and any((passed - {key}) & self._updated.get(key, set()) for passed in earlier)
        number = self._num_leaks[key] = self._num_leaks.get(key, 0) + 1 if is_leak else 0
        return find_by(gradients_kept, optimizer=track.name, kept=track.names, num_leaks=number) if number else []

    def after_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        own = id(track.optimizer)
        self._passes[own], self._updated[own] = [], set()
        for key, updated in self._updated.items():
            if key != own:
                updated.add(own)


def is_cleared(track: OptimizerTrack) -> bool:
    """Return True if the gradients of the last backward pass are None, or (on a CPU, where it is known) all zero."""
    had = [p for p, mark in zip(track.probes, track.after_backward, strict=True) if mark is not None]
    return bool(had) and all(
        p.grad is None or (p.grad.device.type == "cpu" and not bool(take_local(p.grad).any())) for p in had
    )


class ReachMonitor(Monitor):
    """Parameters that no gradient reaches, that no optimiser holds, or that the model does not register."""

    def __init__(self, *, knows_optimizers: bool) -> None:
        self._knows_optimizers = knows_optimizers
        self._silent: dict[int, dict[str, int]] = {}
        """Versions of parameters that no update has written to, by optimiser: they have had no gradient."""
        self._had_gradients: set[str] = set()
        self._chosen_kinds: set[str] = set()
        """Parameters, without their numbers, that have a gradient at some updates and none at others: experts."""
        self._reached: set[int] = set()
        self._is_covered = self._is_unfrozen = self._is_begun = False
        self._seen: set[int] = set()
        self._left_out: set[str] = set()
        """Parameters that have had gradients, by identity, and those of them that no optimiser held at the time."""
        self._num_trained = 0
        self._num_zero: dict[int, int] = {}
        self._learnt: set[int] = set()
        """Optimisers that have had a gradient, here or before: their loss may be 0 because it is satisfied."""
        self._old_marks: dict[int, Mark] | None = None
        self._old_versions: dict[int, int] = {}

    def before_backward_measured(self, loop: Loop, root: object) -> None:
        if self._old_marks is None:  # gradients that are left from before the loop
            self._old_versions = {id(p): p._version for p in loop.parameters().values()}
            self._old_marks = {
                id(p): (id(g), g._version) for p in loop.parameters().values() if (g := p.grad) is not None
            }

    def after_backward_measured(self, loop: Loop) -> None:
        """Note what a first update could use: some methods cancel gradients of a layer, on purpose."""
        for track in loop.tracks.values():
            if track.num_updates == 0 and track.num_backward < _NUM_FIRST_PASSES:
                self._reached |= {id(p) for p in track.parameters.values() if p.grad is not None}

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        is_watched = loop.is_measured or not self._is_begun or track.num_updates == _NUM_JOINED
        return self._judge(loop, track) if is_watched else None

    def _judge(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if track.num_updates == 0:
            self._learnt |= {id(track)} if track.optimizer.state else set()
            for model in loop.models.values():
                yield from find_by(unregistered, loose_leaves=_find_loose(model))
            yield from _judge_frozen(loop)
        if track.num_updates == 0 and track.num_backward:
            yield from self._cut_faults(loop, track)
        if track.num_updates < _NUM_SILENT and track.num_backward:
            self._note_silent(loop, track)
        if track.num_updates == _NUM_JOINED:
            yield from self._idle_faults(loop, track)
        if not self._is_covered and (self._knows_optimizers or loop.step >= _UNKNOWN_OPTIMIZERS):
            self._num_trained = _count_trained(loop)
            yield from self._judge_coverage(loop, is_sure=not self._is_begun)
            self._is_begun = True
        elif self._is_covered and loop.is_measured:
            if self._is_unfrozen:
                yield from self._judge_coverage(loop)
            self._is_unfrozen = _count_trained(loop) > self._num_trained  # an optimiser of their own may come next
            self._num_trained = _count_trained(loop)
        if loop.is_measured and track.norm is not None:
            is_marked = track.marks() != track.after_backward
            yield from loop.reader.read(track.norm, partial(self._judge_zero, track, is_marked, loop.loss))

    def on_end(self, loop: Loop) -> Iterator[Found]:
        if (self._is_unfrozen or not self._is_covered) and loop.tracks:
            yield from self._judge_coverage(loop)
        for track in loop.tracks.values():
            yield from self._idle_faults(loop, track, is_over=True)
            yield from self._unused_faults(loop, track)

    def _unused_faults(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        """Yield a fault for an optimiser without an update, beside one with many, whose parameters have gradients.

        And for one with updates of frozen parameters alone, none of which has moved.
        """
        updates = max(other.num_updates for other in loop.tracks.values())
        wanted = {name: p for name, p in track.parameters.items() if p.requires_grad}
        moved = {name for name, p in track.parameters.items() if self._old_versions.get(id(p)) != p._version}
        if (
            wanted
            and not (track.num_updates or moved & wanted.keys())
            and all(id(p) in self._reached for p in wanted.values())
        ):
            yield from find_by(idle_optimizer, idle=Idle(track.name, [*wanted], updates))
        is_frozen = not (
            moved or any(p.requires_grad for group in track.optimizer.param_groups for p in group["params"])
        )
        if is_frozen and track.parameters and track.num_updates >= _NUM_SILENT:
            yield from _find_unreached(track, [*track.parameters], "are frozen")

    def _cut_faults(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        """Yield a fault for parameters that have run and have no gradient at the first update."""
        silent = [n for n, p in track.parameters.items() if p.requires_grad and p.grad is None]
        if silent and len(silent) == len(track.parameters) and not any(track.after_backward):
            yield from _find_unreached(track, silent, "all")
        ran = [n for n in silent if id(track.parameters[n]) not in self._reached and _get_owner(n) in loop.executed]
        if ran and len(silent) < len(track.parameters):
            yield from _find_unreached(track, ran, "run")

    def _note_silent(self, loop: Loop, track: OptimizerTrack) -> None:
        """Note which parameters of modules that do not run have had no gradient at the first updates."""
        lacking = {name: p._version for name, p in track.parameters.items() if p.requires_grad and p.grad is None}
        silent = {name: version for name, version in lacking.items() if _get_owner(name) not in loop.executed}
        self._chosen_kinds |= {_get_kind(name) for name in lacking.keys() & self._had_gradients}
        self._had_gradients |= track.parameters.keys() - lacking
        before = self._silent.get(id(track), silent)
        is_all = len(silent) == len(track.parameters)
        self._silent[id(track)] = {} if is_all else {n: v for n, v in silent.items() if before.get(n) == v}

    def _idle_faults(self, loop: Loop, track: OptimizerTrack, *, is_over: bool = False) -> Iterator[Found]:
        """Yield a fault for parameters whose modules have never run; for those of a kind that has, at the end alone."""
        noted = self._silent.get(id(track), {}) if track.num_updates >= _NUM_SILENT else {}
        silent = [
            n for n, version in noted.items() if (p := track.parameters[n])._version == version and p.grad is None
        ]
        patience = _NUM_UNROUTED if is_over else math.inf
        idle = [n for n in silent if not _has_used_twin(n, loop) or track.num_updates >= patience]
        unchosen = [n for n in idle if _get_kind(n) in self._chosen_kinds]
        yield from _find_unreached(track, unchosen, "are chosen")
        yield from _find_unreached(track, [n for n in idle if n not in unchosen], "never run")

    def _judge_zero(self, track: OptimizerTrack, is_marked: bool, loss: Tensor | None, value: float) -> Iterator[Found]:
        is_zero = value == 0 and not any(bool(gradient.any()) for gradient in track.gradients.values())
        self._learnt |= set() if is_zero else {id(track)}
        if is_zero and id(track) in self._learnt and loss is not None and not bool(loss.any()):
            is_zero = False  # a margin that all samples keep
        number = self._num_zero[id(track)] = self._num_zero.get(id(track), 0) + 1 if is_zero else 0
        if not number:
            return
        norm, names = track.norm_after_backward, [*track.gradients]
        if is_marked and norm is not None and float(norm) > 0:
            words = {"optimizer": track.name, "cleared": names, "num_cleared": number, "num_updates": track.num_updates}
            yield from find_by(gradients_cleared, **words, are_zeros=True)
        else:
            are_factors = len(names) > 1 and _are_all_zero(track.parameters.values())
            words = {"optimizer": track.name, "zero_gradients": names, "num_zero": number}
            yield from find_by(zero_gradients, **words, are_factors=are_factors)

    def _judge_coverage(self, loop: Loop, *, is_sure: bool = True) -> Iterator[Found]:
        """Judge trainable parameters of the models that get gradients, and that no known optimiser holds.

        What gets none, as a teacher whose outputs are detached, is not to be trained; gradients may be older than the
        loop. Nor what an optimiser holds that the loop has not used so far, or what is trained through the model: a
        latent, an image or a prompt. Those of a second model have
        theirs later: each is judged until it was seen, and again unless it `is_sure`, as an optimiser may come next.
        """
        held = [p for track in loop.tracks.values() for group in track.optimizer.param_groups for p in group["params"]]
        own, held_ids, old_marks = loop.parameters(), {*map(id, held)}, self._old_marks or {}
        own_ids = {*map(id, own.values())}
        names = [
            name
            for name, p in own.items()
            if p.requires_grad and id(p) not in held_ids and (g := p.grad) is not None
            if (id(g), g._version) != old_marks.get(id(p))
        ]
        self._seen |= held_ids | {id(p) for p in own.values() if p.grad is not None or not p.requires_grad}
        self._is_covered = own_ids <= self._seen
        before, self._left_out = self._left_out, {*names}
        if not is_sure and names:
            self._is_covered = False
            names = [name for name in names if name in before]
        shapes = [p.shape for p in held if id(p) not in own_ids]
        elsewhere = list_held(find_alive(torch.optim.Optimizer)) - held_ids if names else set()
        names = [name for name in names if id(own[name]) not in elsewhere]
        is_replaced = bool(shapes) and all(own[name].shape in shapes for name in names)
        if not names or (not is_replaced and not held_ids & own_ids and needs_inputs(loop)):
            return
        self._is_covered = True
        foreign = len(shapes) if is_replaced else 0  # others are of what is not watched
        yield from find_by(
            not_optimised, uncovered=Uncovered(names, _count_trained(loop), len(held_ids & own_ids), foreign)
        )


def _are_all_zero(parameters: Iterable[Tensor]) -> bool:
    return all(not bool(parameter.detach().any()) for parameter in parameters if parameter.requires_grad)


def _find_unreached(track: OptimizerTrack, names: list[str], why: str) -> list[Found]:
    unreached = Unreached(track.name, names, len(track.parameters), why, max(track.num_updates, 1))
    return find_by(unreached_parameters, unreached=[unreached]) if names else []


def _get_owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _get_kind(parameter: str) -> str:
    """Return the name of a parameter without its numbers: that of each expert of a list."""
    return _NUMBER.sub("0", parameter)


def _has_used_twin(parameter: str, loop: Loop) -> bool:
    """Return True if a module has run whose name differs by numbers alone: `stage1` for that of `stage2.conv.weight`.

    Experts of a list, stages of a network that grows, heads of tasks.
    """
    parts = _get_owner(parameter).split(".")
    around = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} - loop.executed
    used = {_NUMBER.sub("0", name) for name in loop.executed}
    return any(_NUMBER.search(name) and _NUMBER.sub("0", name) in used for name in around)


def _is_fixed(module: nn.Module, key: str) -> bool:
    """Return True for what is frozen by design: tables of positions, a bias before a norm, the length of a weight."""
    is_of_torch = type(module).__module__.startswith("torch.nn.modules")
    return key == "bias" or not is_of_torch


def _judge_frozen(loop: Loop) -> list[Found]:
    """Judge parameters that are frozen beside others of the same module that train, but for those of one kind."""
    modules = dict(loop.modules())
    own = {name: named for name, m in modules.items() if (named := list(m.named_parameters(recurse=False)))}
    mixed = [name for name, named in own.items() if len({p.requires_grad for _, p in named}) == 2]
    frozen = [
        f"{name}.{key}".lstrip(".")
        for name in ([] if is_frozen_by_kind(modules.values()) else mixed)
        for key, p in own[name]
        if not p.requires_grad and not _is_fixed(modules[name], key)
    ]
    return find_by(frozen_beside, frozen_beside=frozen, mixed_modules=mixed, num_modules=len(own))


def is_frozen_by_kind(modules: Iterable[nn.Module]) -> bool:
    """Return True if all biases train, and no other parameter of their modules: BitFit (Ben Zaken et al. 2022)."""
    own = [list(module.named_parameters(recurse=False)) for module in modules]
    mixed = [named for named in own if len({p.requires_grad for _, p in named}) == 2]
    return len(mixed) > 1 and all(p.requires_grad == name.endswith("bias") for named in mixed for name, p in named)


def _find_loose(model: nn.Module) -> dict[str, Tensor]:
    """Find parameters in plain lists, dicts or objects that get gradients, by their paths."""
    registered, loose = {id(parameter) for parameter in model.parameters()}, dict[str, Tensor]()
    for name, module in model.named_modules():
        attributes = SimpleNamespace(**{key: value for key, value in vars(module).items() if key not in _OF_MODULES})
        held = [(path, p) for path, p in iter_reachable(attributes, nn.Parameter) if id(p) not in registered]
        loose |= {f"{name}.{path}".lstrip("."): p for path, p in held if p.requires_grad and p.grad is not None}
        registered |= {id(p) for _, p in held}
    return loose


def _count_trained(loop: Loop) -> int:
    return sum(parameter.requires_grad for parameter in loop.parameters().values())


def needs_inputs(loop: Loop) -> bool:
    """Return True if gradients of the inputs of the last forward pass are asked for."""
    inputs = () if loop.call is None else loop.call.inputs
    return any(tensor.requires_grad for _, tensor in tree_leaves(inputs))
