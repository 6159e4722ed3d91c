"""States of the global random generators as text, as a checkpoint has them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sightline.contract.errors import CheckpointError
from sightline.contract.regular_files import parse_json


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


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
