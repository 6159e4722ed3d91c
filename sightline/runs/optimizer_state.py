"""State of an optimiser by parameter name, as a checkpoint has it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sightline.contract.errors import CheckpointError
from sightline.runs.weights import describe_non_finite, find_non_finite, plain_name


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's slots as `<parameter name>/<slot>`, without hyper-parameters of groups.

    A shared parameter has its first name. The tensors are the optimiser's own, not copies.
    """
    names: dict[Tensor, str] = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter in _iterate_parameters(optimizer):
        assert parameter in names, (
            f"the optimizer holds a parameter of shape {list(parameter.shape)} that the model lacks"
        )
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # SGD before its first step with momentum
                continue
            assert isinstance(value, Tensor), f"{names[parameter]}/{slot} is a {type(value).__name__}, not a tensor"
            assert "/" not in slot, f"the slot '{slot}' cannot be distinguished from a parameter's name"
            tensors[f"{names[parameter]}/{slot}"] = value.detach()
    return tensors


def restore_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the optimiser's slots, copied to each parameter's device; it changes completely or not at all.

    Raises CheckpointError for a parameter that the optimiser does not train, for a slot of an unfit shape, and for one
    that is not finite.
    """
    for key in find_non_finite(tensors):
        raise CheckpointError(
            f"optimizer state '{key}': {describe_non_finite(tensors[key])}, so that its parameter would never move "
            "again; resume from an earlier checkpoint"
        )
    trained = set(_iterate_parameters(optimizer))
    named_parameters = ((plain_name(name), p) for name, p in model.named_parameters(remove_duplicate=False))
    parameters = {name: parameter for name, parameter in named_parameters if parameter in trained}
    device_counted = {p for group in optimizer.param_groups if _counts_on_device(group) for p in group["params"]}
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            close = difflib.get_close_matches(name, list(parameters), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise CheckpointError(f"optimizer state '{key}': this optimizer trains no such parameter{hint}")
        parameter = parameters[name]
        is_on_cpu = slot == "step" and parameter not in device_counted  # where torch counts steps
        device = torch.device("cpu") if is_on_cpu else parameter.device
        restored.setdefault(parameter, {})[slot] = _copy_slot(key, value, parameter, device)
    optimizer.state.clear()
    optimizer.state.update(restored)


def _iterate_parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("capturable") or group.get("fused"))


def _copy_slot(key: str, value: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """Copy a slot to `device`, in the parameter's memory layout if it has the parameter's shape.

    Slots are of the parameter's shape, scalars, or factors that broadcast to it.
    """
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, device=device, requires_grad=False).copy_(value)
    try:
        fits = torch.broadcast_shapes(value.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise CheckpointError(
            f"optimizer state '{key}': its shape is {list(value.shape)}, the parameter's {list(parameter.shape)}"
        )
    return value.detach().to(device, copy=True)
