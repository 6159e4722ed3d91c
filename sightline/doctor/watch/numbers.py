"""Numbers of a step: losses and gradients that are not finite, and the size of updates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves
from sightline.doctor.rules.events import report
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
from sightline.doctor.watch.processes import is_one_of_several

_MAX_RATIO, _LOW_RATE = 1.0, 0.01
_LEAST_RMS = 2e-3
"""Root mean square of numbers that begin near zero, as tables of features: a first update is larger than they are."""
_MAX_SLICE = 4096
_MAX_ROUNDED, _NUM_ROUNDED = 0.5, 4
_NUM_CLIPPED, _MIN_CLIPPING = 3, 1e-3


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

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        loop.loss = root.detach()
        yield from ()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if self._is_found or getattr(track.optimizer, "found_inf", None) is not None:  # the scaler judges it
            return
        if all(parameter.grad is None for parameter in track.parameters.values()):  # cleared: nothing is used
            return
        if not loop.is_measured and _is_sound(track.small[:1], loop.loss):
            return
        read = track.parameters.values() if loop.is_measured else track.small[:1]
        judged = [p for p in read if p.grad is not None and p.grad.layout is torch.strided]
        gradients = [g for p in judged if (g := p.grad) is not None]
        values = [norm.float() for norm in torch._foreach_norm(gradients)] if gradients else []
        norms = stack_numbers(values) if values else None
        track.norm = None if norms is None else norms.max()
        if loop.loss is not None and loop.loss.is_floating_point():
            values.append(loop.loss.float().sum().nan_to_num(math.nan, 0.0, 0.0))  # a scaled loss may be infinite
        if not values:
            return

        total = stack_numbers(values).sum()
        late = (judged, norms) if loop.reader.is_late(total) else ()
        numbers = UpdateNumbers(loop.call, loop.loss, *late)

        def judge(value: float) -> Iterator[Found]:
            found = None if math.isfinite(value) or self._is_found else self._explain(track, numbers)
            if found is not None:
                self._is_found = True
                yield found

        yield from loop.reader.read(total, judge)

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge running statistics, which training does not read: a huge number's square is infinite in them."""
        buffers = {f"{start}{name}": b for start, model in loop.models.items() for name, b in model.named_buffers()}
        statistics = {name: b for name, b in buffers.items() if name.endswith(("running_mean", "running_var"))}

        def judge(value: float) -> Iterator[Found]:
            bad = [] if value else [name for name, b in statistics.items() if not bool(b.isfinite().all())]
            for name in bad[: not self._is_found]:
                yield report(
                    "non-finite",
                    f"after the loop '{name}' is not finite, though losses and gradients were: every evaluation is "
                    "wrong",
                    causes=("data.corrupt_sample", "data.normalisation", "model.numerics"),
                    measured=f"{int((~statistics[name].isfinite()).sum())} of {statistics[name].numel()} numbers are "
                    "not finite",
                    expected="finite running statistics",
                    action="look for a huge number in a batch, whose square overflows in the running variance; leave "
                    "that sample out",
                    evidence={"stage": "forward"},
                )

        if statistics:
            are_finite = stack_numbers([buffer.isfinite().all() for buffer in statistics.values()])
            yield from loop.reader.read(are_finite.all().float(), judge)


class ClipMonitor(Monitor):
    """Gradients are not clipped while a GradScaler's factor is in them: the bound would be that much too low."""

    def __init__(self) -> None:
        self._factors: list[float] = []

    def before_unscaling(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        before = track.norm_after_backward
        is_written = track.marks() != track.after_backward
        if before is None or not is_written or not loop.is_measured:
            return
        if is_one_of_several():  # a loop without DDP, as our own, sums its gradients over the processes here
            return
        gradients = [g for p in track.small if (g := p.grad) is not None and g.layout is torch.strided]
        after = stack_numbers([n.float() for n in torch._foreach_norm(gradients)]).max()
        yield from loop.reader.read(after / before, self._judge)

    def _judge(self, factor: float) -> Iterator[Found]:
        """Judge three factors: those of clipping differ, one that divides for accumulation is always the same."""
        if not math.isfinite(factor) or abs(factor - 1) < _MIN_CLIPPING:
            return
        self._factors.append(factor)
        if len(self._factors) == _NUM_CLIPPED and max(self._factors) > (1 + _MIN_CLIPPING) * min(self._factors):
            yield report(
                "scaled-clipping",
                "gradients are clipped while the GradScaler's factor is in them: updates are far too small",
                measured=f"scaled gradients are multiplied by {min(self._factors):.2g} .. {max(self._factors):.2g} "
                "between backward() and unscale_()",
            )


def _is_sound(parameters: Sequence[nn.Parameter], loss: Tensor | None) -> bool:
    """Return True if a few numbers of the host are finite; they are read one by one, which costs least."""
    values = [loss, *(p.grad for p in parameters)]
    some = [value for value in values if value is not None and value.is_floating_point()]
    is_near = all(value.layout is torch.strided and value.device.type == "cpu" for value in some)
    return is_near and all(math.isfinite(value.sum().item()) for value in some)


def locate_non_finite(track: OptimizerTrack, numbers: UpdateNumbers) -> Found | None:
    """Say from what the step has left where its first number that is not finite is: inputs, outputs, loss, gradient.

    None if all of them are finite: a norm of huge numbers may be infinite.
    """
    loss = math.nan if numbers.loss is None else float(numbers.loss.double().sum())
    call = numbers.call
    for kind, tree in (
        ("input", None if call is None else call.inputs),
        ("output", None if call is None else call.outputs),
    ):
        for path, tensor in dense_leaves(tree):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                rows = (
                    (~tensor.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist() if tensor.ndim > 1 else []
                )
                is_input, number = kind == "input", int((~tensor.isfinite()).sum())
                return report(
                    "non-finite",
                    f"the model's {kind} '{path}' is not finite"
                    + ("" if is_input else ": its forward pass makes it so"),
                    causes=("data.corrupt_sample", "data.normalisation") if is_input else (),
                    measured=f"{number} of {tensor.numel()} values, samples {rows[:5]}",
                    action="repair or leave out the sample, or correct the transform that makes it" if is_input else "",
                    sample=rows[0] if rows else None,
                    evidence={"stage": "data" if is_input else "forward"},
                )
    if not math.isfinite(loss):
        return report(
            "non-finite",
            f"the loss is {loss} though the model's outputs are finite",
            causes=("loss.form", "model.numerics", "loss.normaliser"),
            measured=f"loss {loss}",
            action="look for log(0), 0/0 or an overflow in the loss; take logits, not probabilities",
            evidence={"stage": "loss"},
        )
    if numbers.gradients is None or numbers.norms is None:
        affected, total = [n for n, g in track.gradients.items() if not bool(g.isfinite().all())], len(track.gradients)
    else:
        names = {id(parameter): name for name, parameter in track.parameters.items()}
        pairs = zip(numbers.gradients, numbers.norms.isfinite().tolist(), strict=True)
        affected, total = [names[id(p)] for p, is_finite in pairs if not is_finite], len(numbers.gradients)
    if not affected:
        return None
    last = affected[-1]
    return report(
        "non-finite",
        f"the loss is finite, but its gradient is not, last in '{last}' in the order of the layers",
        causes=("model.numerics", "loss.form"),
        measured=f"loss {loss:.4g}; {len(affected)} of {total} gradients are not finite",
        action="avoid the point without a derivative: sqrt(x + eps), a norm with eps, clamp before log",
        param=last,
        layer=last.rpartition(".")[0] or None,
        evidence={"stage": "backward"},
    )


class UpdateMonitor(Monitor):
    """Updates move parameters, and by less than their own size: some rows with gradients are compared.

    Of a table most rows have none. An optimiser that has tolerances (L-BFGS) takes many steps in one, and ends by
    itself where the loss is lowest.
    """

    is_rare = True

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor | None] = {}
        self._highest: dict[int, float] = {}
        self._num_rounded = 0

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        self._highest[id(track)] = max(track.lr, self._highest.get(id(track), 0.0))
        is_measured = track.lr > 0 and not _has_search(track.optimizer)
        yield from ()
        if is_measured and not self._before:  # a closure runs several times
            moving = {name: p for name, p in track.parameters.items() if p.grad is not None and p.ndim > 1}
            moving = {name: p for name, p in moving.items() if has_slices(p)}
            self._rows = {name: _choose_rows(p) for name, p in moving.items()}
            self._before = {name: self._take(name, p).clone() for name, p in moving.items()}

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        before, self._before = self._before, {}
        if not before:
            return
        names = list(before)
        now = [self._take(name, track.parameters[name]) for name in names]
        change = stack_numbers([n.float() for n in torch._foreach_norm(torch._foreach_sub(now, list(before.values())))])
        size = stack_numbers([n.float() for n in torch._foreach_norm(list(before.values()))])
        gradient = stack_numbers(
            [
                values.abs().float().max() if values is not None and values.numel() else size[0] * 0
                for values in (_values(track.parameters[name].grad) for name in names)
            ]
        )
        roots = [math.sqrt(values.numel()) for values in now]
        spread = stack_numbers(torch._foreach_div([*size.unbind()], roots))
        ratio = torch.where(spread > _LEAST_RMS, change / size, 0.0).median()  # tables of features begin near zero
        causes: tuple[str, ...] = ("optim.lr", "optim.state", "model.numerics")
        if track.lr < _LOW_RATE * self._highest[id(track)]:
            causes = ("optim.scheduler", *causes)
        elif now[0].dtype in (torch.bfloat16, torch.float16):
            causes = ("model.numerics", "optim.lr", "optim.state")

        def judge_still(value: float) -> Iterator[Found]:
            if value == 0 and track.num_updates > 0:
                yield report(
                    "no-update",
                    f"an update of {track.name} changes no parameter though gradients are not zero",
                    causes=causes,
                    measured=f"change 0 in {len(names)} parameters ({now[0].dtype}), learning rate {track.lr:.3g}",
                )

        def judge_large(value: float) -> Iterator[Found]:
            if value > _MAX_RATIO:
                yield report(
                    "large-update",
                    "an update changes half of the weight matrices by more than their own size",
                    measured=f"median |update| / |weights| {value:.3g} at a learning rate of {track.lr:.3g}",
                )

        def judge_rounded(value: float) -> Iterator[Found]:
            self._num_rounded = self._num_rounded + 1 if value > _MAX_ROUNDED else 0
            if self._num_rounded == _NUM_ROUNDED:
                yield report(
                    "no-update",
                    f"most weights of {track.name} do not change: updates are lost in the rounding of {now[0].dtype}",
                    severity="warning",
                    causes=("model.numerics", "optim.lr"),
                    measured=f"{value:.0%} of the weights with a gradient keep their bits, at {_NUM_ROUNDED} updates "
                    f"that are measured; learning rate {track.lr:.3g}",
                    action="keep weights in float32, and compute in a shorter format by torch.autocast",
                )

        if now[0].dtype in (torch.bfloat16, torch.float16):
            slices = [
                ((value == before[name]) & (self._take(name, g) != 0), self._take(name, g) != 0)
                for name, value in zip(names, now, strict=True)
                if (g := track.parameters[name].grad) is not None
            ]
            kept, total = (stack_numbers([pair[i].float().sum() for pair in slices]).sum() for i in range(2))
            yield from loop.reader.read(kept / total.clamp(min=1), judge_rounded)
        yield from loop.reader.read(torch.where(gradient.max() > 0, change.max(), 1.0), judge_still)
        yield from loop.reader.read(ratio, judge_large)

    def _take(self, name: str, values: Tensor) -> Tensor:
        """Take up to 4096 numbers of a parameter or its gradient, of the rows that were chosen."""
        rows, values = self._rows[name], take_local(values.detach())
        some = values if rows is None else values.index_select(0, rows)
        return (some.to_dense() if some.is_sparse else some).flatten()[:_MAX_SLICE]


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


def _has_search(optimizer: torch.optim.Optimizer) -> bool:
    return "tolerance_change" in getattr(optimizer, "defaults", ())


def _values(gradient: Tensor | None) -> Tensor | None:
    """Return the numbers of a gradient in this process, of a sparse one those that are stored."""
    if gradient is None or gradient.layout is torch.strided:
        return None if gradient is None else take_local(gradient)
    return gradient.coalesce().values() if gradient.is_sparse else gradient.values()
