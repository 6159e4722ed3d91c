"""Recording of one training step: inputs, outputs and their gradients of every module call.

Buffers that a call changes (batch statistics) are recorded before and after. Tensors are recorded without copies,
unless something overwrites one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import RunError
from sightline.contract.pytree import join_path
from sightline.instrument import ModuleCall, Tape, record
from sightline.instrument.formats import Format, coarser, result_format


@dataclass
class StepRecording:
    """Recorded training step of one variant: calls in the order of their start, losses, parameter gradients.

    `losses` are the terms and `total`, their weighted sum, computed in `format`; calls without a parent are the model's
    own. `is_partial` marks that calls are missing because another network does not have them. `prepared` are the values
    that the task computed from the batch before the forward pass: counts, and contexts such as which prior belongs to
    which box.
    """

    calls: list[ModuleCall]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    format: Format
    prepared: Any
    is_partial: bool = False


class OverwrittenError(RunError):
    """A tensor was overwritten after it was recorded: the step has to be recorded with copies."""


class Recorder:
    """Recorder of the calls of a model's modules.

    `copies` copies all tensors, for models that overwrite their own. `outside` is the coarsest format outside the
    model: that of the losses.
    """

    def __init__(self, model: nn.Module, *, base: Format, watches_formats: bool, copies: bool) -> None:
        self.outside = base
        self._base, self._watches, self._copies = base, watches_formats, copies
        self._tape = Tape()
        self._modules = dict(model.named_modules())
        self._recorded: list[tuple[Tensor, int]] = []
        named = model.named_buffers(remove_duplicate=False)  # layers may share one
        self._buffers = {path: buffer.detach().clone() for path, buffer in named}

    @property
    def calls(self) -> list[ModuleCall]:
        return self._tape.calls

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls made in this context, and their gradients in a backward pass after it."""
        with record(
            self._modules,
            keep=("inputs", "outputs", "gradients"),
            convert=self._record_tensor,
            enter=self._note_state,
            leave=self._note_buffers,
            operators=self._note_format if self._watches else None,
        ) as self._tape:
            yield

    def assert_whole(self) -> None:
        """Raise OverwrittenError if a tensor was overwritten since it was recorded."""
        if any(tensor._version != version for tensor, version in self._recorded):
            raise OverwrittenError("a tensor was overwritten after it was recorded")

    def _record_tensor(self, tensor: Tensor) -> Tensor:
        detached = tensor.detach()
        if self._copies:
            return detached.clone()
        self._recorded.append((detached, detached._version))
        return detached

    def _note_state(self, call: ModuleCall, *_: Any) -> None:
        of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        call.format, call.random_state = self._base, (torch.get_rng_state(), *of_gpu)

    def _note_buffers(self, call: ModuleCall, module: nn.Module, *_: Any) -> None:
        for name, buffer in module.named_buffers():
            full_name = join_path(call.path, name)
            previous = self._buffers.get(full_name)  # None for a table that a layer makes at its first call
            if previous is not None and not torch.equal(buffer, previous):  # batch norm writes without counting
                current = buffer.detach().clone()
                call.buffers[full_name] = (previous, current)
                self._buffers[full_name] = current

    def _note_format(self, innermost: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        format_ = result_format(operator, result)
        if format_ is None:
            return
        for index in self._tape.running:
            self.calls[index].format = coarser(self.calls[index].format, format_)
        if innermost is None:
            self.outside = coarser(self.outside, format_)
