"""Optimiser steps that a device was given, and whose numbers the host has not read."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Batch
from sightline.ops.waits import DeviceCheck


@dataclass
class QueuedStep:
    """Step of which a device has the numbers: `values` (n,) in float64 of `names`, then a 0 for each check that holds.

    `known` are numbers of the host. `step` counts the finished steps before it.
    """

    step: int
    epoch: int
    lr: float
    names: tuple[str, ...]
    values: Tensor
    known: Mapping[str, float]
    micro_batches: Sequence[Batch]
    checks: Sequence[DeviceCheck] = ()
    is_forgotten: bool = False
    totals: Any = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def samples(self) -> list[Tensor]:
        """Numbers of the samples of each micro-batch."""
        return [batch["sample_index"] for batch in self.micro_batches]

    def forget(self) -> None:
        """Let go of what the step computed on: a failure is then known, but not its words."""
        self.micro_batches = [{"sample_index": samples} for samples in self.samples]
        self.checks, self.is_forgotten = (), True


def read_values(steps: Sequence[QueuedStep]) -> list[list[float]]:
    """Read the values of steps in one transfer, the only wait for a device of most networks."""
    flat = torch.cat([queued.values for queued in steps]).tolist() if len(steps) > 1 else steps[0].values.tolist()
    rows = iter(flat)
    return [list(itertools.islice(rows, len(queued.values))) for queued in steps]


def pack_numbers(numbers: Mapping[str, Tensor], holds: Sequence[Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """Pack numbers (0-d, of the device) as names and values (n,) in float64; -inf for each check that does not hold."""
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name, number in numbers.items():
        by_dtype.setdefault(number.dtype, []).append(name)
    parts = [torch.stack([numbers[name].detach() for name in names]).double() for names in by_dtype.values()]
    if holds:
        parts.append(torch.stack(list(holds)).double().log())
    return tuple(itertools.chain(*by_dtype.values())), torch.cat(parts)


class Gate:
    """Lets a device skip an update, and each one after it, once a number was not finite; no wait for the device.

    `is_closed` (0-d) in float32 is 1 then, else 0, as the fused steps of torch's optimisers take it.
    """

    def __init__(self, device: torch.device, num_rates: int) -> None:
        self._rates = torch.zeros(num_rates, device=device) if device.type == "cuda" else None
        self.is_closed = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)

    def close_unless_finite(self, values: Tensor) -> None:
        """Close the gate if one of the values (n,) is not finite."""
        torch._amp_foreach_non_finite_check_and_unscale_([values], self.is_closed, self._one)

    def open(self) -> None:
        """Open it for further steps."""
        self.is_closed.zero_()

    def set_rates(self, rates: Sequence[float]) -> None:
        """Send the learning rates of the optimiser's groups to a GPU, whose steps read them there."""
        if self._rates is not None:
            self._rates.copy_(torch.tensor(rates).pin_memory(), non_blocking=True)

    @contextlib.contextmanager
    def guard(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Context in which the optimiser's step changes nothing while the gate is closed.

        A fused step of torch does so by itself; after another one, the numbers of before are put back.
        """
        groups, kept = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
        is_fused = all(group.get("fused") for group in groups)
        changed = [] if is_fused else _list_changed(optimizer)
        before = [torch.cat(flat) for flat in changed]
        optimizer.found_inf = self.is_closed  # type: ignore[attr-defined]
        try:
            for group, rate in zip(groups, () if self._rates is None else self._rates.unbind(), strict=False):
                group["lr"] = rate
                if "capturable" in group and torch.cuda.is_current_stream_capturing():
                    group["capturable"] = True  # else this class refuses a step that a graph is to hold
            yield
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
            for group, options in zip(groups, kept, strict=True):
                group.update({name: options[name] for name in ("lr", "capturable") if name in options})
        with torch.no_grad():
            for flat, values in zip(changed, before, strict=True):
                kept_values = torch.where(self.is_closed > 0, values, torch.cat(flat))
                torch._foreach_copy_(flat, kept_values.split([len(each) for each in flat]))


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
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device: torch.device) -> None:
        torch.set_rng_state(self.host)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)
