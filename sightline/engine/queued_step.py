"""Queued optimiser step, from its work to its record, and the gate by which a device skips one that failed."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.ops.waits import DeviceCheck


class Key(StrEnum):
    """Names of a step's numbers; those that end in a space begin the name of a loss, a count or a module.

    No loss can have such a name.
    """

    SAMPLES = "(samples)"
    STOP = "(stop)"
    NORM = "(norm)"
    MEAN = "(mean) "
    DIVISOR = "(count) "
    COUNT = "(tally) "
    GRADIENT = "(gradient) "


@dataclass
class QueuedStep:
    """One queued optimiser step, whose numbers lie on the device until they are read.

    Its fields are set in three stages. The work of the step sets the first group: `values` (n,), the float64 numbers
    on the device, are those of the first `num_deciding` of `names`, which decide whether the step counts; then one for
    each of `checks`, 0 if it holds; then those of the other names, which are only reported. `host_numbers` were never
    on the device. A step that `is_released` has neither batches nor checks any more: a failure is seen, but has no
    message.

    Whoever queues the step sets the second group: `step` counts the finished steps before it, `samples` are the indices
    of each micro-batch, `has_state` is True if the optimiser had a state before it, and `states` are those of the
    random generators. Times are those of the first process.

    Reading sets the third group: `numbers` by name, over all processes; the first check that fails, `failed_check`;
    and `is_sound`, True if all deciding values are finite.
    """

    names: tuple[str, ...]
    num_deciding: int
    values: Tensor
    host_numbers: Mapping[str, float] = field(default_factory=dict)
    checks: Sequence[DeviceCheck] = ()
    micro_batches: Sequence[Batch] = ()
    is_released: bool = False

    step: int = 0
    epoch: int = 0
    lr: float = 0.0
    samples: Sequence[Tensor] = ()
    has_state: bool = True
    states: RandomStates | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    numbers: Mapping[str, float] = field(default_factory=dict)
    failed_check: DeviceCheck | None = None
    is_sound: bool = True

    @classmethod
    def pack(
        cls,
        deciding_numbers: Mapping[str, Tensor],
        reported_numbers: Mapping[str, Tensor],
        *,
        host_numbers: Mapping[str, float],
        checks: Sequence[DeviceCheck],
        micro_batches: Sequence[Batch],
    ) -> QueuedStep:
        """Pack the numbers (0-d) of a step on its device into one tensor, a failed check as -inf."""
        parts, names = list[Tensor](), list[str]()
        for numbers in (deciding_numbers, reported_numbers):
            by_dtype: dict[torch.dtype, list[str]] = {}
            for name, number in numbers.items():
                by_dtype.setdefault(number.dtype, []).append(name)
            parts += [torch.stack([numbers[name].detach() for name in group]).double() for group in by_dtype.values()]
            names += itertools.chain(*by_dtype.values())
            if numbers is deciding_numbers and checks:
                parts.append(torch.stack([check.holds for check in checks]).double().log())
        return cls(tuple(names), len(deciding_numbers), torch.cat(parts), host_numbers, checks, micro_batches)

    @property
    def deciding(self) -> Tensor:
        """The values that decide whether the step counts."""
        return self.values[: self._num_deciding_values]

    @property
    def _num_deciding_values(self) -> int:
        return self.num_deciding + len(self.values) - len(self.names)

    def release(self) -> None:
        """Release the batches and the checks, so that their memory is free."""
        self.micro_batches, self.checks, self.is_released = (), (), True

    def set_values(self, values: Sequence[float]) -> None:
        """Set the numbers of the step from its `values` (n), as the host has read them."""
        first, last = self.num_deciding, self._num_deciding_values
        self.numbers = {**self.host_numbers, **dict(zip(self.names, (*values[:first], *values[last:]), strict=True))}
        of_checks = zip(self.checks, values[first:last], strict=not self.is_released)
        self.failed_check = next((check for check, value in of_checks if value), None)
        self.is_sound = all(map(math.isfinite, values[:last]))

    @property
    def losses(self) -> dict[str, float]:
        """The mean of each loss."""
        return self._select(Key.MEAN)

    @property
    def divisors(self) -> dict[str, float]:
        """The count that the sum of each loss was divided by; by 1 if it is 0."""
        return self._select(Key.DIVISOR)

    @property
    def counts(self) -> dict[str, float]:
        """The sums of the task's `step_counts`."""
        return self._select(Key.COUNT)

    @property
    def gradient_norms(self) -> dict[str, float]:
        """The norm of each module's gradient, by its path, if they are logged."""
        return self._select(Key.GRADIENT)

    @property
    def grad_norm(self) -> float:
        """The norm of the gradient, before it is clipped."""
        return self.numbers[Key.NORM]

    @property
    def num_samples(self) -> int:
        """The number of samples of the step, over all processes."""
        return int(self.numbers[Key.SAMPLES])

    @property
    def stop_requested(self) -> bool:
        """True if any process requested a stop."""
        return self.numbers[Key.STOP] > 0

    def _select(self, prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): value for name, value in self.numbers.items() if name.startswith(prefix)}


def read_values(steps: Sequence[QueuedStep]) -> None:
    """Read the values of steps in one transfer, the only wait for a device of most networks."""
    flat = torch.cat([queued.values for queued in steps]).tolist() if len(steps) > 1 else steps[0].values.tolist()
    rows = iter(flat)
    for queued in steps:
        queued.set_values([*itertools.islice(rows, len(queued.values))])


class Gate:
    """Lets a device skip an update, and each one after it, once a number was not finite; no wait for the device.

    `is_closed` (0-d) in float32 is 1 then, else 0, as the fused steps of torch's optimisers take it.
    """

    def __init__(self, device: torch.device, num_rates: int) -> None:
        self._sent = torch.zeros(num_rates + 1, device=device) if device.type == "cuda" else None
        self._share: float | Tensor = 0.0
        self.is_closed = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def close_unless_finite(self, values: Tensor) -> None:
        """Close the gate if one of the values (n,) is not finite."""
        torch._amp_foreach_non_finite_check_and_unscale_([values], self.is_closed, self._one)

    def open(self) -> None:
        """Open it for further steps."""
        self.is_closed.zero_()

    @contextlib.contextmanager
    def stilled(self) -> Iterator[None]:
        """Context in which a step moves neither weights nor averages: their rates on the device are 0."""
        assert self._sent is not None
        sent_before = self._sent.clone()
        self._sent.zero_()
        try:
            yield
        finally:
            self._sent.copy_(sent_before)

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Copy tensors into others of their shapes, unless the gate is closed."""
        by_dtype: dict[torch.dtype, list[int]] = {}
        for index, target in enumerate(targets):
            by_dtype.setdefault(target.dtype, []).append(index)
        for indices in by_dtype.values():
            now, new = (torch.cat([tensors[index].reshape(-1) for index in indices]) for tensors in (targets, sources))
            parts = torch.where(self.is_closed > 0, now, new).split([targets[index].numel() for index in indices])
            shaped = [part.view(targets[index].shape) for part, index in zip(parts, indices, strict=True)]
            torch._foreach_copy_([targets[index] for index in indices], shaped)

    def set_numbers(self, rates: Sequence[float], share: float) -> None:
        """Set the learning rates of the optimiser's groups, and the share of new weights in their averages.

        A GPU's steps read them there: a graph of a step would keep numbers of the host.
        """
        self._share = share
        if self._sent is not None:
            self._sent.copy_(torch.tensor([*rates, share]).pin_memory(), non_blocking=True)
            self._share = self._sent[-1]

    @property
    def share(self) -> Tensor:
        """Share (0-d) of new weights in their averages at this step: 0 while the gate is closed."""
        return self._share * (1.0 - self.is_closed)

    @contextlib.contextmanager
    def guard(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Context in which the optimiser's step changes nothing while the gate is closed.

        A fused step of torch does so by itself; after another one, the numbers of before are put back.
        """
        groups, options_before = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
        is_fused = all(group.get("fused") for group in groups)
        changed = [] if is_fused else _list_changed(optimizer)
        before = [torch.cat(flat) for flat in changed]
        optimizer.found_inf = self.is_closed  # type: ignore[attr-defined]
        try:
            for group, rate in zip(groups, () if self._sent is None else self._sent[:-1].unbind(), strict=False):
                group["lr"] = rate
                if "capturable" in group and torch.cuda.is_current_stream_capturing():
                    group["capturable"] = True  # else this class refuses a step that a graph is to hold
            yield
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
            for group, options in zip(groups, options_before, strict=True):
                group.update({name: options[name] for name in ("lr", "capturable") if name in options})
        with torch.no_grad():
            for flat, values in zip(changed, before, strict=True):
                kept_values = torch.where(self.is_closed > 0, values, torch.cat(flat))
                torch._foreach_copy_(flat, kept_values.split([len(part) for part in flat]))


def _list_changed(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    """List what a step changes on the device, each tensor as its memory (n,): weights with gradients and their states.

    There is a list for each type of numbers.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    states = [state for p in parameters for state in optimizer.state.get(p, {}).values() if isinstance(state, Tensor)]
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in (*parameters, *states):
        if tensor.device == parameters[0].device:
            flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # dense, in any order of its axes
            by_dtype.setdefault(tensor.dtype, []).append(flat)
    return [*by_dtype.values()]


class RandomStates(NamedTuple):
    """States of torch's generators before a step."""

    host: Tensor
    device: Tensor | None

    @classmethod
    def read(cls, device: torch.device) -> RandomStates:
        """Read the states of the generators of the host and of a device."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        """Restore both states."""
        torch.set_rng_state(self.host)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)
