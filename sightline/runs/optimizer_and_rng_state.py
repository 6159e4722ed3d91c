"""Optimiser slots by parameter name, and states of the random generators, as tensors and text."""

from __future__ import annotations

import base64
import difflib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sightline.errors import CheckpointError
from sightline.regular_files import parse_json
from sightline.runs.weights import plain_name

__all__ = ["get_rng_state", "optimizer_tensors", "restore_optimizer", "set_rng_state"]


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

    Raises CheckpointError for a parameter that the optimiser does not train, and for a slot of an unfit shape.
    """
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


def get_rng_state() -> dict[str, str]:
    """Return the global random states of torch (CPU and every visible CUDA device), Python and NumPy, as text."""
    algorithm, keys, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    assert algorithm == "MT19937", f"NumPy's global generator was replaced by {algorithm}"
    version, key, python_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": _to_text(torch.get_rng_state()),
        "python": json.dumps([version, list(key), python_gauss]),
        "numpy": json.dumps([algorithm, keys.tolist(), position, has_gauss, gauss]),
        **{f"cuda:{index}": _to_text(state) for index, state in enumerate(cuda)},
    }


def set_rng_state(state: Mapping[str, str]) -> tuple[str, ...]:
    """Set the global random states to those of `get_rng_state`; all of them or, if an error is raised, none.

    Returns the devices among them that this process does not have. Raises CheckpointError for anything malformed.
    """
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {f"cuda:{index}": index for index in range(num_devices)}
    for name in ("torch", "python", "numpy"):
        if name not in state:
            raise CheckpointError(f"random state: '{name}' is missing")
    settings: list[tuple[Callable[[Any], object], Any]] = []
    absent = []
    for name, text in state.items():
        try:
            if name.startswith("cuda:") and name not in devices:
                absent.append(name)
            elif name in devices:
                settings.append((torch.cuda.default_generators[devices[name]].set_state, _from_text(text)))
            else:
                settings.append(_parse_state(name, text))
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"random state: '{name}' is invalid: {str(error)[:100]}") from error
    for put, value in settings:
        put(value)
    return tuple(absent)


def _parse_state(name: str, text: str) -> tuple[Callable[[Any], object], Any]:
    """Return the setter of a state and its value, after a separate generator has accepted it."""
    if name == "torch":
        state = _from_text(text)
        torch.Generator().set_state(state)
        return torch.set_rng_state, state
    if name == "python":
        version, key, gauss = parse_json(text)
        python_state = (version, tuple(key), gauss)
        random.Random().setstate(python_state)
        return random.setstate, python_state
    if name == "numpy":
        algorithm, keys, position, has_gauss, numpy_gauss = parse_json(text)
        if algorithm != "MT19937" or len(keys) != 624 or position not in range(625):
            raise ValueError("not 624 words and a position among them")  # NumPy would read past the end
        numpy_state = (algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, numpy_gauss)
        np.random.RandomState(0).set_state(numpy_state)
        return np.random.set_state, numpy_state
    raise ValueError("unknown kind")


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


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
