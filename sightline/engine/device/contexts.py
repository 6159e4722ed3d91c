"""GPUs on which this process holds memory: its own, and by mistake those of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class HeldDevice(NamedTuple):
    """GPU on which this process has a context, which takes some 500 MB, and the bytes of its tensors there."""

    number: int
    num_bytes: int


def list_held_devices() -> list[HeldDevice]:
    """List the GPUs on which this process has a context: made by the first tensor there, and kept to its end."""
    if not torch.cuda.is_initialized():
        return []
    has_context = torch._C._cuda_hasPrimaryContext  # type: ignore[attr-defined]
    numbers = [number for number in range(torch.cuda.device_count()) if has_context(number)]
    return [HeldDevice(number, torch.cuda.memory_allocated(number)) for number in numbers]


def list_foreign(held: Sequence[HeldDevice], device: torch.device, num_processes: int) -> list[HeldDevice]:
    """List the held GPUs that belong to other processes of the run: each has the one of its number on the machine."""
    if device.type != "cuda":
        return []
    return [each for each in held if each.number != device.index and each.number < num_processes]
