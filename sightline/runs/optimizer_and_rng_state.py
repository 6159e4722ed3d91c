"""What training carries besides weights, as tensors and text: optimizer slots by parameter name, random states."""

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
    """The optimizer's slots as `<parameter name>/<slot>`; hyper-parameters of groups are not among them.

    A shared parameter goes by its first name. The tensors are the optimizer's own, not copies.
    """
    names: dict[Tensor, str] = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter in _parameters_of(optimizer):
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
    """Give the optimizer exactly these slots, copied to each parameter's device; it changes completely or not at all.

    Raises CheckpointError for a parameter that it does not hold, and for a slot whose shape does not fit.
    """
    held = set(_parameters_of(optimizer))
    aliases = ((plain_name(name), p) for name, p in model.named_parameters(remove_duplicate=False))
    parameters = {name: parameter for name, parameter in aliases if parameter in held}
    counted_on_device = {p for group in optimizer.param_groups if _counts_on_device(group) for p in group["params"]}
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            close = difflib.get_close_matches(name, list(parameters), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise CheckpointError(f"optimizer state '{key}': this optimizer trains no such parameter{hint}")
        parameter = parameters[name]
        is_on_cpu = slot == "step" and parameter not in counted_on_device  # where torch counts steps
        device = torch.device("cpu") if is_on_cpu else parameter.device
        restored.setdefault(parameter, {})[slot] = _fitted(key, value, parameter, device)
    optimizer.state.clear()
    optimizer.state.update(restored)


def get_rng_state() -> dict[str, str]:
    """The global random states of torch (CPU and every visible CUDA device), Python and NumPy, as text."""
    algorithm, keys, position, has_gauss, gauss = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    assert algorithm == "MT19937", f"NumPy's global generator was replaced by {algorithm}"
    version, words, python_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": _to_text(torch.get_rng_state()),
        "python": json.dumps([version, list(words), python_gauss]),
        "numpy": json.dumps([algorithm, keys.tolist(), position, has_gauss, gauss]),
        **{f"cuda:{index}": _to_text(state) for index, state in enumerate(cuda)},
    }


def set_rng_state(state: Mapping[str, str]) -> tuple[str, ...]:
    """Set the global random states to those of `random_state`; all of them or, where an error is raised, none.

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
                settings.append(_checked(name, text))
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"random state: '{name}' is not one: {str(error)[:100]}") from error
    for put, value in settings:
        put(value)
    return tuple(absent)


def _checked(name: str, text: str) -> tuple[Callable[[Any], object], Any]:
    """How to set a state and its value, after a generator of our own has accepted it."""
    if name == "torch":
        state = _from_text(text)
        torch.Generator().set_state(state)
        return torch.set_rng_state, state
    if name == "python":
        version, words, gauss = parse_json(text)
        python_state = (version, tuple(words), gauss)
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


def _parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("capturable") or group.get("fused"))


def _fitted(key: str, value: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """A copy on this device and, where it has the parameter's shape, in its memory layout.

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
