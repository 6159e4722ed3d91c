"""Transfer of nested batches to a device, on a GPU while the step before runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.contract.types import Batch
from sightline.ops.waits import send


class PhaseTimer(Protocol):
    """Interface of a timer, called after each phase of a step: data, transfer, prepare, forward, backward, optimise."""

    def end_phase(self, name: str) -> None:
        """End the current phase, and count its time under this name."""


def to_device(
    value: Any, device: torch.device, *, float_dtype: torch.dtype = torch.float32, path: str = "batch"
) -> Any:
    """Move a nested structure to `device`, with every floating tensor as `float_dtype`.

    Dicts, lists, tuples, named tuples and dataclasses keep their types; numbers, text and None stay as they are.
    Raises TypeError, with its path, for a leaf of any other type.
    """
    if isinstance(value, Tensor):
        dtype = float_dtype if value.is_floating_point() else value.dtype
        return send(value, device, dtype)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return type(value)(
            (k, to_device(v, device, float_dtype=float_dtype, path=f"{path}[{k!r}]")) for k, v in value.items()
        )
    if isinstance(value, list | tuple):
        items = [to_device(v, device, float_dtype=float_dtype, path=f"{path}[{i}]") for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        moved = {n: to_device(getattr(value, n), device, float_dtype=float_dtype, path=f"{path}.{n}") for n in names}
        return dataclasses.replace(value, **moved)
    raise TypeError(
        f"{path}: a batch holds tensors, numbers and text in dicts, lists, tuples and dataclasses; "
        f"this is a {type(value).__name__}"
    )


class CopyStream:
    """Stream of a GPU whose copies run beside the work of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def select(self) -> AbstractContextManager[Any]:
        """Return a context in which copies are queued to this stream."""
        return torch.cuda.stream(self._stream)

    def is_idle(self) -> bool:
        """Return True if the GPU has done all that was queued to it."""
        return torch.cuda.current_stream(self._device).query()

    def hand_over(self, batches: Any) -> None:
        """Let the current stream wait for the copies, and keep their memory until it has used them."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for _, tensor in tree_leaves(batches):
            tensor.record_stream(current)


class BatchTransfer:
    """Transfer of each step's micro-batches to a device, with the time of its phases.

    With a copy stream, `read_ahead` reads those of the next step and starts their copies, while the device works on
    what is queued: a phase of its own, `ahead`, or `data` if the device was done before. Without, as on a CPU, it does
    nothing. An error in reading is raised when that step receives them.
    """

    def __init__(
        self, steps: Iterator[Sequence[Batch]], device: torch.device, dtype: torch.dtype, copies: CopyStream | None
    ) -> None:
        self._steps = steps
        self._device = device
        self._dtype = dtype
        self._copies = copies
        self._ahead: list[Batch] | Exception | None = None

    def receive(self, clock: PhaseTimer) -> list[Batch]:
        """Return the micro-batches of the next step, on the device."""
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        if ahead is None:
            micro_batches = next(self._steps)
            clock.end_phase("data")
            ahead = self._send(micro_batches)
        else:
            assert self._copies is not None
            self._copies.hand_over(ahead)
        clock.end_phase("transfer")
        return ahead

    def read_ahead(self, clock: PhaseTimer) -> None:
        """Read the micro-batches of the next step, if there is one, and start their copies."""
        if self._copies is None or self._ahead is not None:
            return
        clock.end_phase("optimise")
        try:
            micro_batches = next(self._steps, None)
            if micro_batches is not None:
                with self._copies.select():
                    self._ahead = self._send(micro_batches)
        except Exception as error:  # noqa: BLE001 - raised by `receive`: the step under way is not to blame
            self._ahead = error
        clock.end_phase("data" if self._copies.is_idle() else "ahead")

    def _send(self, micro_batches: Sequence[Batch]) -> list[Batch]:
        return [to_device(batch, self._device, float_dtype=self._dtype) for batch in micro_batches]
