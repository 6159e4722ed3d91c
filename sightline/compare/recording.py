"""What flowed through a network in one training step: of every call of a module what went in, came out and came back.

A module that is called gets and gives tensors through a view of their own (a tap), so that the gradient seen there is
that of this call alone, whatever else reads the same tensor. Buffers that a call changes (batch statistics) are noted
before and after. Tensors are held as they are, not copied, unless something writes over one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.compare.formats import TF32, Format, coarser, format_of
from sightline.errors import RunError
from sightline.module_hooks import module_hooks
from sightline.pytree import tree_map

__all__ = ["Formats", "ModuleCall", "OverwrittenError", "Recorder", "StepRecording"]


@dataclass
class ModuleCall:
    """One call of a module: `number` counts those of this module from 1, `parent` is the call around it.

    `given` is `(args, kwargs)`, `made` the result; `to_given` and `to_made` are the gradients that came to their
    tensors, by place, from this call alone. `began` and `ended` are ticks of one clock over all calls. `buffers` holds
    what the call changed, before and after. `format` is the coarsest number format inside. `shown` is the name to print
    where the path is that of another network's module.
    """

    path: str
    number: int
    class_name: str
    parent: int | None
    given: Any
    format: Format
    made: Any = None
    to_given: dict[str, Tensor] = field(default_factory=dict)
    to_made: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    random_state: Tensor | None = None
    began: int = 0
    ended: int = 0
    shown: str = ""

    @property
    def name(self) -> str:
        """The path, and which call it was where it was not the first."""
        if self.shown:
            return self.shown
        path = self.path or "(model)"
        return path if self.number == 1 else f"{path} (call {self.number})"


@dataclass
class StepRecording:
    """A training step of one variant, in the order in which its calls began; `gradients` are those of parameters.

    `losses` are the terms and `total`, their weighted sum, computed in `format`; calls without a parent are the model's
    own. `is_partial` marks that calls were left out, which another network does not have. `prepared` is what the task
    had worked out of the batch before the forward pass: counts, and contexts such as which prior belongs to which box.
    """

    calls: list[ModuleCall]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    format: Format
    is_partial: bool = False
    prepared: Any = None


class OverwrittenError(RunError):
    """A tensor was written over after it was recorded: the step has to be recorded with copies."""


class Recorder:
    """Hooks on a model, or on those of its modules that are `hooked`, while it runs.

    `copies` keeps copies of all tensors, for models that write over their own. `outside` is the coarsest format of what
    runs around the model: of the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: Format,
        watches_formats: bool,
        copies: bool,
        hooked: Sequence[str] | None = None,
    ) -> None:
        self.calls: list[ModuleCall] = []
        self.outside = base
        self._base, self._watches, self._copies = base, watches_formats, copies
        modules = dict(model.named_modules())
        self._paths = {module: path for path, module in modules.items() if hooked is None or path in hooked}
        self._numbers: dict[nn.Module, int] = {}
        self._stack: list[int] = []
        self._ticks = 0
        self._is_on = False
        self._held: list[tuple[Tensor, int]] = []
        self._buffers = {path: (b, b.detach().clone()) for path, b in model.named_buffers()}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Calls made inside are recorded. Gradients are, too, in a backward pass after it."""
        self._is_on = True
        formats = Formats(self._see) if self._watches else contextlib.nullcontext()
        try:
            with module_hooks(self._paths, self._enter, self._leave), formats:
                yield
        finally:
            self._is_on = False

    def assert_whole(self) -> None:
        """Raises OverwrittenError where a tensor is no longer what it was when it was recorded."""
        if any(tensor._version != version for tensor, version in self._held):
            raise OverwrittenError("a tensor was written over after it was recorded")

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_on:
            return None
        self._numbers[module] = self._numbers.get(module, 0) + 1
        call = ModuleCall(
            self._paths[module],
            self._numbers[module],
            type(module).__name__,
            self._stack[-1] if self._stack else None,
            tree_map((args, kwargs), self._keep),
            self._base,
            random_state=torch.get_rng_state(),
            began=self._tick(),
        )
        self._stack.append(len(self.calls))
        self.calls.append(call)
        return tree_map((args, kwargs), _tap(call.to_given))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
        if not self._is_on:
            return None
        call = self.calls[self._stack.pop()]
        call.made = tree_map(made, self._keep)
        call.ended = self._tick()
        self._note_buffers(call, module)
        return tree_map(made, _tap(call.to_made))

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def _keep(self, place: str, tensor: Tensor) -> Tensor:
        kept = tensor.detach()
        if self._copies:
            return kept.clone()
        self._held.append((kept, kept._version))
        return kept

    def _note_buffers(self, call: ModuleCall, module: nn.Module) -> None:
        path = self._paths[module]
        for name, _ in module.named_buffers():
            full = f"{path}.{name}" if path else name
            buffer, before = self._buffers[full]
            if not torch.equal(buffer, before):  # torch's batch norm writes without counting a version
                after = buffer.detach().clone()
                call.buffers[full] = (before, after)
                self._buffers[full] = (buffer, after)

    def _see(self, found: Format) -> None:
        for index in self._stack:
            self.calls[index].format = coarser(self.calls[index].format, found)
        if not self._stack:
            self.outside = coarser(self.outside, found)


def _tap(gradients: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """A view of a tensor that asks for a gradient, which notes the gradient that comes to it."""

    def tap(place: str, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or not torch.is_grad_enabled():
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(lambda gradient: gradients.__setitem__(place, gradient.detach()))
        return view

    return tap


class Formats(TorchDispatchMode):
    """Reports the coarsest format that an operator reads or writes; products on a GPU may round factors to TF32."""

    def __init__(self, see: Callable[[Format], None]) -> None:
        super().__init__()
        self._report = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self._report(format_of(result.dtype))
            if result.is_cuda and result.dtype == torch.float32 and _may_be_tf32(func):
                self._report(TF32)
        return result


def _may_be_tf32(func: Any) -> bool:
    name = func.overloadpacket.__name__
    if "conv" in name:
        return bool(torch.backends.cudnn.allow_tf32)
    return name in ("mm", "addmm", "bmm", "baddbmm") and bool(torch.backends.cuda.matmul.allow_tf32)
