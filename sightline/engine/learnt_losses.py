"""Losses with parameters, which are trained, averaged and saved with the model's; most runs have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sightline.contract.errors import CheckpointError, ConfigError
from sightline.contract.loss import Loss, learns
from sightline.runs.weights import load_weights, plain_state

_PREFIX = "losses"


class LearntLosses(nn.Module):
    """Losses of a run that have parameters, named `losses.<loss>.<parameter>` here.

    Without such losses it is empty and false.
    """

    def __init__(self, losses: Mapping[str, Loss] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({name: loss for name, loss in (losses or {}).items() if learns(loss)})

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def module_names(self) -> list[str]:
        """Names of the losses with parameters in `optimizer.groups` and `optimizer.frozen`."""
        return [f"{_PREFIX}.{name}" for name in self.losses]

    def owner(self, parameter: str) -> str:
        """Return the name `losses.<loss>` of a parameter's loss; empty for a parameter of the model."""
        return next((module for module in self.module_names if parameter.startswith(f"{module}.")), "")

    def __str__(self) -> str:
        sizes = {name: sum(parameter.numel() for parameter in loss.parameters()) for name, loss in self.losses.items()}
        return ", ".join(f"{name} ({size:,} parameters)" for name, size in sizes.items())

    def plain_state(self) -> dict[str, Tensor] | None:
        """Return parameters and buffers for a checkpoint, `<loss>.<parameter>`; None without losses."""
        return plain_state(self.losses) if self else None

    def find_missing(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the losses without a tensor in `tensors`, those of a checkpoint."""
        return [name for name in self.losses if not any(key.startswith(f"{name}.") for key in tensors)]

    def load(self, tensors: Mapping[str, Tensor] | None, *, where: Path) -> None:
        """Load the parameters of a checkpoint. Raises CheckpointError, with its path, for those of other losses."""
        state, saved = self.plain_state() or {}, tensors or {}
        if lost := state.keys() - saved.keys():
            raise CheckpointError(
                f"{where}: contains no '{min(lost)}' of the losses that learn ({', '.join(self.losses)}): it was saved "
                f"before sightline trained these; start a new run, from its weights by init.from={where}"
            )
        if saved:
            load_weights(self.losses, saved, where=where)

    @contextmanager
    def evaluation_mode(self, average: LearntLosses | None) -> Iterator[None]:
        """Context in which the losses are in evaluation mode, with their averaged parameters (EMA), if any."""
        was_training = {module: module.training for module in self.modules()}
        self.eval()
        _swap_parameters(self, average)
        try:
            yield
        finally:
            _swap_parameters(self, average)
            for module, flag in was_training.items():
                module.training = flag

    @contextmanager
    def preserve_state(self) -> Iterator[None]:
        """Context that restores parameters, buffers, gradients and training modes at its end."""
        tensors = {tensor: tensor.detach().clone() for tensor in (*self.parameters(), *self.buffers())}
        gradients = {parameter: parameter.grad for parameter in self.parameters()}
        requires_grad = {parameter: parameter.requires_grad for parameter in self.parameters()}
        flags = {module: module.training for module in self.modules()}
        for parameter in gradients:
            parameter.grad = None  # gradients inside the context must not be added to earlier ones
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in tensors.items():
                    tensor.copy_(value)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
                parameter.requires_grad_(requires_grad[parameter])
            for module, flag in flags.items():
                module.training = flag


def _swap_parameters(losses: LearntLosses, average: LearntLosses | None) -> None:
    if average is not None:
        for parameter, averaged in zip(losses.parameters(), average.parameters(), strict=True):
            parameter.data, averaged.data = averaged.data, parameter.data


class _ModelWithLosses(nn.Module):
    """Container of a model's modules and, below `losses`, of losses with parameters; it is never called."""

    def __init__(self, model: nn.Module, losses: LearntLosses) -> None:
        super().__init__()
        if _PREFIX in {name.split(".")[0] for name, _ in model.named_parameters()}:
            named = ", ".join(losses.module_names)
            raise ConfigError(f"model: its part '{_PREFIX}' has the name of losses that learn ({named}); rename it")
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in model.named_children():
            self.add_module(name, child)
        self.add_module(_PREFIX, losses.losses)


def combine_modules(model: nn.Module, losses: LearntLosses | None) -> nn.Module:
    """Combine model and losses with parameters into one module for the optimiser.

    Without such losses it is the model itself. Raises ConfigError if a part of the model has the name of such losses.
    """
    return _ModelWithLosses(model, losses) if losses else model
