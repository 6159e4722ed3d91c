"""Losses that learn: their parameters are trained, averaged and saved beside the model's; most runs have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.errors import CheckpointError, ConfigError
from sightline.losses.base import Loss, learns
from sightline.runs.weights import load_weights, plain_state

__all__ = ["LearntLosses", "together"]

_ROOM = "losses"


class LearntLosses(nn.Module):
    """The losses of a run that have parameters to learn, which are called `losses.<loss>.<parameter>` here.

    Without such losses it is empty, and false.
    """

    def __init__(self, losses: Mapping[str, Loss] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({name: loss for name, loss in (losses or {}).items() if learns(loss)})

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def modules_named(self) -> list[str]:
        """What `optimizer.groups` and `optimizer.frozen` call each of these losses."""
        return [f"{_ROOM}.{name}" for name in self.losses]

    def owner(self, parameter: str) -> str:
        """What the loss of a parameter is called, `losses.<loss>`; empty for a parameter of the model."""
        return next((module for module in self.modules_named if parameter.startswith(f"{module}.")), "")

    def __str__(self) -> str:
        sizes = {name: sum(each.numel() for each in loss.parameters()) for name, loss in self.losses.items()}
        return ", ".join(f"{name} ({size:,} parameters)" for name, size in sizes.items())

    def plain_state(self) -> dict[str, Tensor] | None:
        """Parameters and buffers as a checkpoint keeps them, `<loss>.<parameter>`; None without such losses."""
        return plain_state(self.losses) if self else None

    def not_in(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The losses of which a checkpoint that kept these tensors has none."""
        return [name for name in self.losses if not any(key.startswith(f"{name}.") for key in tensors)]

    def load(self, tensors: Mapping[str, Tensor] | None, *, where: Path) -> None:
        """Take what a checkpoint kept. Raises CheckpointError, with its path, for one that did not keep just these."""
        own, kept = self.plain_state() or {}, tensors or {}
        if lost := own.keys() - kept.keys():
            raise CheckpointError(
                f"{where}: holds no '{min(lost)}' of the losses that learn ({', '.join(self.losses)}): it was saved "
                f"before sightline trained these; start a new run, from its weights by init.from={where}"
            )
        if kept:
            load_weights(self.losses, kept)

    @contextmanager
    def evaluated(self, average: LearntLosses | None) -> Iterator[None]:
        """Inside, these losses are in evaluation mode, with the average of their parameters where there is one."""
        was_training = {module: module.training for module in self.modules()}
        self.eval()
        _exchange(self, average)
        try:
            yield
        finally:
            _exchange(self, average)
            for module, flag in was_training.items():
                module.training = flag

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Afterwards parameters, buffers, gradients and training modes are as before, whatever was trained inside."""
        tensors = {tensor: tensor.detach().clone() for tensor in (*self.parameters(), *self.buffers())}
        gradients = {parameter: parameter.grad for parameter in self.parameters()}
        asked = {parameter: parameter.requires_grad for parameter in self.parameters()}
        flags = {module: module.training for module in self.modules()}
        for parameter in gradients:
            parameter.grad = None  # what is added inside must not be added to what was there
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in tensors.items():
                    tensor.copy_(before)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
                parameter.requires_grad_(asked[parameter])
            for module, flag in flags.items():
                module.training = flag


def _exchange(losses: LearntLosses, average: LearntLosses | None) -> None:
    if average is not None:
        for own, other in zip(losses.parameters(), average.parameters(), strict=True):
            own.data, other.data = other.data, own.data


class _Together(nn.Module):
    """A model's parts under their own names, and its losses that learn below `losses`; it is never called."""

    def __init__(self, model: nn.Module, losses: LearntLosses) -> None:
        super().__init__()
        if _ROOM in {name.split(".")[0] for name, _ in model.named_parameters()}:
            named = ", ".join(losses.modules_named)
            raise ConfigError(f"model: its part '{_ROOM}' has the name of losses that learn ({named}); rename it")
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in model.named_children():
            self.add_module(name, child)
        self.add_module(_ROOM, losses.losses)


def together(model: nn.Module, losses: LearntLosses | None) -> nn.Module:
    """Everything that an optimiser trains, as one module: the model itself, unless losses learn with it.

    Raises ConfigError where a part of the model has the name that such losses have.
    """
    return _Together(model, losses) if losses else model
