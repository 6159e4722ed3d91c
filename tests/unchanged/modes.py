"""Modes in which a program runs, as it is and with `check` or `watch`, and a digest of all that it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.budget import Budget
from sightline.doctor.watch import watch as watch_room
from tests.unchanged.forms import FORMS
from tests.unchanged.loops import LOOPS, Program


def leave_plain(program: Program, model: Any, optimizer: Any, named: Mapping[str, Any]) -> Any:
    return contextlib.nullcontext()


def watch_alone(program: Program, model: Any, optimizer: Any, named: Mapping[str, Any]) -> Any:
    return sightline.watch(model, optimizer=optimizer, **named)


def watch_with_all(program: Program, model: Any, optimizer: Any, named: Mapping[str, Any]) -> Any:
    """A loop of several models has no loss of one."""
    words = {"loss": program.form.loss, "loader": program.loader} if isinstance(model, nn.Module) else {}
    return sightline.watch(model, optimizer=optimizer, evaluation=program.evaluation, **words, **named)


def check_first(program: Program, model: Any, optimizer: Any, named: Mapping[str, Any]) -> Any:
    """What is no batch for `check` is refused in a line."""
    for each in [model] if isinstance(model, nn.Module) else model.values():
        with contextlib.suppress(UserError):
            sightline.check(each, program.form.loss, program.loader, evaluation=program.evaluation)
    return contextlib.nullcontext()


MODES: dict[str, Callable[..., Any]] = {
    "watch": watch_alone,
    "watch with loss and loaders": watch_with_all,
    "check, then train": check_first,
}


@contextlib.contextmanager
def short_checks(budget_s: float, monkeypatch: Any) -> Iterator[None]:
    """Context in which checks ask less than by default."""
    budget = Budget(budget_s)
    with monkeypatch.context() as patch:
        patch.setattr(watch_room, "examine_models", partial(watch_room.examine_models, budget=budget))
        patch.setattr(Budget, "allow", lambda *_, **named: budget)
        yield


def run(loop: str, form: str, open_context: Callable[..., Any] = leave_plain) -> str:
    """Run a loop on a form of batches from one state of all generators; return the digest of what it leaves."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    program = Program(FORMS[form], open_context)
    failure = ""
    try:
        LOOPS[loop](program)
    except Exception as error:  # noqa: BLE001 - a loop that does not take a form ends by the same error in every mode
        failure = f"{type(error).__name__}: {error}"
    states = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()
    return f"{digest([program.left, states])} {failure}".strip()


def digest(value: Any) -> str:
    """Digest the bits of all tensors of models, optimisers, generators and plain values."""
    total = hashlib.sha256()
    _add(value, total.update)
    return total.hexdigest()[:16]


def _add(value: Any, add: Callable[[bytes], object]) -> None:
    add(type(value).__name__.encode())
    if isinstance(value, Tensor):
        dense = (value.detach().to_dense() if value.layout is not torch.strided else value.detach()).contiguous()
        add(f"{tuple(dense.shape)}{dense.dtype}".encode())
        add(dense.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, nn.Module | torch.optim.Optimizer):
        _add(value.state_dict(), add)
    elif isinstance(value, torch.Generator):
        _add(value.get_state(), add)
    elif isinstance(value, Dataset):
        _add(vars(value), add)
    elif isinstance(value, np.ndarray):
        add(value.tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            add(repr(key).encode())
            _add(item, add)
    elif isinstance(value, list | tuple):
        for item in value:
            _add(item, add)
    else:
        add(repr(value).encode())
