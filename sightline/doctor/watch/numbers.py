"""Numbers of a step: losses and gradients that are not finite, and the size of updates."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import join_some
from sightline.contract.pytree import dense_leaves
from sightline.doctor.evidence.live.updates import Rounded
from sightline.doctor.evidence.numerics import SHORT, Move, Origin, Trial
from sightline.doctor.finding import FindingLocation
from sightline.doctor.processes import is_one_of_several
from sightline.doctor.rules import find_by
from sightline.doctor.rules.gradients import NUM_SCALED, scaled_clipping, skipped_share, skipped_updates
from sightline.doctor.rules.non_finite import non_finite
from sightline.doctor.rules.optimiser import large_update, no_update, rounded_updates
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

_MAX_SLICE = 4096
_NUM_KEPT = 16


@dataclass(frozen=True)
class UpdateNumbers:
    """Pass, loss and gradients of an update, until its numbers are read: on a GPU, the next pass has begun by then.

    `gradients` are the parameters whose `norms` (n,) are kept; None where the gradients are still those of the update.
    """

    call: ForwardCall | None
    loss: Tensor | None
    gradients: Sequence[nn.Parameter] | None = None
    norms: Tensor | None = None

    @property
    def is_late(self) -> bool:
        """True if they are read after the update."""
        return self.gradients is not None


class FiniteMonitor(Monitor):
    """Loss, and gradients that an update uses, are finite; `explain` is called with the update that is not."""

    def __init__(self, explain: Any) -> None:
        self._explain = explain
        self._is_found = False

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found] | None:
        if self._is_found or getattr(track.optimizer, "found_inf", None) is not None:  # the scaler judges it
            return None
        if not loop.is_measured and _is_sound(track.small, loop):
            return None
        if all(parameter.grad is None for parameter in track.parameters.values()):  # cleared: nothing is used
            return None
        read = track.parameters.values() if loop.is_measured else track.small[:1]
        judged = [p for p in read if p.grad is not None and p.grad.layout is torch.strided]
        gradients = [take_local(g) for p in judged if (g := p.grad) is not None]
        values = [norm.float() for norm in torch._foreach_norm(gradients)] if gradients else []
        norms = stack_numbers(values) if values else None
        track.norm = None if norms is None else norms.max()
        if loop.loss is not None:
            values.append(loop.loss.float().sum().nan_to_num(math.nan, 0.0, 0.0))  # a scaled loss may be infinite
        if not values:
            return None
        total = stack_numbers(values).sum()
        late = (judged, norms) if loop.reader.is_late(total) else ()
        return loop.reader.read(total, partial(self._judge, track, UpdateNumbers(loop.call, loop.loss, *late)))

    def _judge(self, track: OptimizerTrack, numbers: UpdateNumbers, value: float) -> Iterator[Found]:
        found = None if math.isfinite(value) or self._is_found else self._explain(track, numbers)
        if found is not None:
            self._is_found = True
            yield found

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge running statistics, which training does not read: a huge number's square is infinite in them."""
        buffers = {f"{start}{name}": b for start, model in loop.models.items() for name, b in model.named_buffers()}
        statistics = {name: b for name, b in buffers.items() if name.endswith(("running_mean", "running_var"))}

        def judge(value: float) -> Iterator[Found]:
            bad = {} if value else {name: int((~b.isfinite()).sum()) for name, b in statistics.items()}
            for name in [name for name, number in bad.items() if number][: not self._is_found]:
                measured = f"{bad[name]} of {statistics[name].numel()} numbers are not finite"
                yield from find_by(non_finite, origin=Origin("statistics", measured, {"name": name}))

        if statistics:
            are_finite = stack_numbers([buffer.isfinite().all() for buffer in statistics.values()])
            yield from loop.reader.read(are_finite.all().float(), judge)


def _get_infinite(track: OptimizerTrack) -> Tensor | None:
    """Return the number (0-d) of devices with infinite gradients, for which a fused update is skipped inside.

    None for one that a scaler skips from outside, or none scales.
    """
    found_inf = getattr(track.optimizer, "found_inf", None)
    return found_inf if isinstance(found_inf, Tensor) else None


@dataclass
class _ScaledUpdates:
    """Updates of an optimiser by a GradScaler: how many were skipped in a row, and which of the last ones were."""

    num_in_row: int = 0
    are_skipped: deque[bool] = field(default_factory=lambda: deque(maxlen=NUM_SCALED))


class ScalerMonitor(Monitor):
    """A GradScaler updates now and then, and gradients with its factor are not clipped: the bound would be too low."""

    def __init__(self) -> None:
        self._factors: list[float] = []
        self._is_unscaled: set[int] = set()
        self._scaled: dict[int, _ScaledUpdates] = {}

    def before_unscaling(self, loop: Loop, track: OptimizerTrack) -> list[Found]:
        """Judge the update before, if its gradients were unscaled and it did not follow: it was skipped."""
        is_open = id(track) in self._is_unscaled
        self._is_unscaled.add(id(track))
        return self._note(track, 1.0) if is_open else []

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found] | None:
        """Note an update of a scaler; a fused one is skipped inside, where the scaler has found infinite gradients."""
        is_scaled = id(track) in self._is_unscaled
        self._is_unscaled.discard(id(track))
        if (num_infinite := _get_infinite(track)) is not None:
            return loop.reader.read(num_infinite, partial(self._note, track))
        return self._note(track, 0.0) if is_scaled else None

    def _note(self, track: OptimizerTrack, num_infinite: float) -> list[Found]:
        scaled = self._scaled.setdefault(id(track), _ScaledUpdates())
        scaled.num_in_row = scaled.num_in_row + 1 if num_infinite else 0
        if scaled.are_skipped or not num_infinite:  # before the first update, the scaler looks for its scale
            scaled.are_skipped.append(bool(num_infinite))
        if not num_infinite:
            return []
        numbers = {"num_skipped": sum(scaled.are_skipped), "num_scaled": len(scaled.are_skipped)}
        in_row = find_by(skipped_updates, optimizer=track.name, skipped_updates=scaled.num_in_row)
        return in_row or find_by(skipped_share, optimizer=track.name, **numbers)

    def before_unscaling_measured(self, loop: Loop, track: OptimizerTrack) -> Iterable[Found] | None:
        before, is_written = track.norm_after_backward, track.marks() != track.after_backward
        if before is None or not is_written or is_one_of_several():  # a loop without DDP sums its gradients here
            return None
        after = track.measure_small()
        return None if after is None else loop.reader.read(after / before, self._judge)

    def _judge(self, factor: float) -> list[Found]:
        self._factors += [factor] if math.isfinite(factor) else []
        return find_by(scaled_clipping, scaled_factors=self._factors)


def _is_sound(parameters: Sequence[nn.Parameter], loop: Loop) -> bool:
    """Return True if the loss and the gradient of the first parameter are numbers of the host, and finite."""
    if (loop.loss is not None and loop.loss_value is None) or not math.isfinite(loop.loss_value or 0.0):
        return False
    gradient = parameters[0].grad if parameters else None
    if gradient is None:
        return True
    gradient = take_local(gradient)
    return gradient.is_cpu and gradient.layout is torch.strided and math.isfinite(gradient.sum().item())


def locate_non_finite(track: OptimizerTrack, numbers: UpdateNumbers) -> Origin | None:
    """Locate from what the step has left its first number that is not finite: in inputs, outputs, loss or gradients.

    None if all of them are finite: a norm of huge numbers may be infinite.
    """
    loss = math.nan if numbers.loss is None else float(numbers.loss.double().sum())
    call = numbers.call
    for place, what, tree in (
        ("data", "the model's input", None if call is None else call.inputs),
        ("output", "the model's output", None if call is None else call.outputs),
    ):
        for path, tensor in dense_leaves(tree):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                is_bad = ~tensor.isfinite()
                rows = is_bad.flatten(1).any(dim=1).nonzero().flatten().tolist() if tensor.ndim > 1 else []
                measured = f"{int(is_bad.sum())} of {tensor.numel()} values, samples {rows[:5]}"
                where = FindingLocation(sample=rows[0] if rows else None)
                return Origin(place, measured, {"what": f"{what} '{path}'"}, where)
    if not math.isfinite(loss):
        return Origin("loss", f"loss {loss}", {"name": "", "total": loss})
    if numbers.gradients is None or numbers.norms is None:
        affected, total = [n for n, g in track.gradients.items() if not bool(g.isfinite().all())], len(track.gradients)
    else:
        names = {id(parameter): name for name, parameter in track.parameters.items()}
        pairs = zip(numbers.gradients, numbers.norms.isfinite().tolist(), strict=True)
        affected, total = [names[id(p)] for p, is_finite in pairs if not is_finite], len(numbers.gradients)
    if not affected:
        return None
    last_first = affected[::-1]  # a backward pass begins at the last layer
    where = FindingLocation(layer=last_first[0].rpartition(".")[0] or None, param=last_first[0])
    measured = f"loss {loss:.4g}; {len(affected)} of {total} gradients are not finite"
    return Origin("gradient", measured, {"names": join_some(last_first, most=4)}, where)


class UpdateMonitor(Monitor):
    """Updates move parameters, and by less than their own size: some rows with gradients are compared.

    Of a table most rows have none. An optimiser that has tolerances (L-BFGS) takes many steps in one, and ends by
    itself where the loss is lowest.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor | None] = {}
        self._highest: dict[int, float] = {}
        self._kept: deque[float] = deque(maxlen=_NUM_KEPT)

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        self._highest[id(track)] = max(track.lr, self._highest.get(id(track), 0.0))
        has_search = "tolerance_change" in getattr(track.optimizer, "defaults", ())
        if track.lr > 0 and not has_search and not self._before:  # a closure runs several times
            moving = {name: p for name, p in track.parameters.items() if p.grad is not None and p.ndim > 1}
            moving = {name: p for name, p in moving.items() if has_slices(p)}
            self._rows = {name: _choose_rows(p) for name, p in moving.items()}
            self._before = {name: self._take(name, p).clone() for name, p in moving.items()}

    def after_update_measured(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        before, self._before = self._before, {}
        if not before:
            return
        now = {name: self._take(name, track.parameters[name]) for name in before}
        slices, dtype = [*now.values()], next(iter(now.values())).dtype
        moves = stack_numbers([n.float() for n in torch._foreach_norm(torch._foreach_sub(slices, [*before.values()]))])
        norms = stack_numbers([norm.float() for norm in torch._foreach_norm([*before.values()])])
        gradients = [_values(track.parameters[name].grad) for name in before]
        none = moves.new_zeros(())
        has_gradient = stack_numbers([none if g is None or not g.numel() else g.any().float() for g in gradients])
        sizes, highest = {name: values.numel() for name, values in now.items()}, self._highest[id(track)]
        trial = Trial([], {}, 1, dtype, track.lr, highest)
        infinite = _get_infinite(track)
        if dtype in SHORT and infinite is None:
            yield from self._read_rounded(loop, track, before, now, dtype)
        skipped = none.expand_as(moves) if infinite is None else infinite.float().expand_as(moves)
        numbers = torch.stack([each.to(moves.device) for each in (moves, norms, has_gradient, skipped)])
        yield from loop.reader.read(numbers, partial(_judge_moves, trial, sizes, track.num_updates == 0))

    def _read_rounded(
        self, loop: Loop, track: OptimizerTrack, before: Any, now: Any, dtype: torch.dtype
    ) -> Iterable[Found]:
        """Read the share of the weights with a gradient that an update leaves as they are."""
        slices = {name: self._take(name, g) != 0 for name in now if (g := track.parameters[name].grad) is not None}
        kept = stack_numbers([((now[name] == before[name]) & each).float().sum() for name, each in slices.items()])
        total = stack_numbers([each.float().sum() for each in slices.values()])
        rate = track.lr

        def judge(value: float) -> Iterable[Found]:
            self._kept.append(value)
            return find_by(rounded_updates, rounded=Rounded([*self._kept], track.name, dtype, rate))

        return loop.reader.read(kept.sum() / total.sum().clamp(min=1), judge)

    def _take(self, name: str, values: Tensor) -> Tensor:
        """Take up to 4096 numbers of a parameter or its gradient, of the rows that were chosen."""
        rows, values = self._rows[name], take_local(values.detach())
        some = values if rows is None else values.index_select(0, rows)
        return (some.to_dense() if some.is_sparse else some).flatten()[:_MAX_SLICE]


def _judge_moves(trial: Trial, sizes: Mapping[str, int], is_early: bool, numbers: list[list[float]]) -> Iterator[Found]:
    """Judge how far an update has moved its matrices; the first may find momenta or rates of 0.

    One that a scaler has skipped inside of a fused optimiser moves nothing.
    """
    *figures, skipped = numbers
    if any(skipped):
        return
    rows = zip(sizes.items(), *figures, strict=True)
    moves = {
        name: Move(trial.rate, size, norm, moved, bool(has), moved == 0) for (name, size), moved, norm, has in rows
    }
    moved = trial._replace(moves=moves)
    yield from find_by(large_update, trial=moved)
    yield from () if is_early else find_by(no_update, trial=moved)


def _choose_rows(parameter: Tensor) -> Tensor | None:
    """Return the numbers of rows of a large parameter that have gradients; None for one that is taken whole."""
    values = take_local(parameter.detach())
    if parameter.grad is None or values.numel() <= _MAX_SLICE:
        return None
    gradient, number = take_local(parameter.grad.detach()), math.ceil(_MAX_SLICE / values[0].numel())
    if gradient.is_sparse:
        return gradient._indices()[0, :number]
    size = torch.linalg.vector_norm(gradient.flatten(1), math.inf, dim=1)
    return (size != 0).float().topk(min(number, len(size))).indices


def _values(gradient: Tensor | None) -> Tensor | None:
    """Return the numbers of a gradient in this process, of a sparse one those that are stored."""
    if gradient is None or gradient.layout is torch.strided:
        return None if gradient is None else take_local(gradient)
    return gradient.coalesce().values() if gradient.is_sparse else gradient.values()
