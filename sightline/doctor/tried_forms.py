"""Forms of programs that are tried: how a batch divides between a model and a loss, told by calls of a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sightline.contract.pytree import ReadTrackingDict, tree_map
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.form import CalledForm, Form, Part, get_forward, list_named, make_keyed_form
from sightline.instrument import copy_module


def find_form(model: nn.Module, loss: Callable[..., Any], batch: Any, device: torch.device) -> Form:
    """Find how a program uses its batches, by a forward pass of a copy; nothing of it changes.

    `loss(outputs, batch)` gets the whole of a mapping. A `forward` with the names of keys reads these; one that fails,
    and a loss that fails, read all.
    """
    if not isinstance(batch, Mapping):
        num = len(batch) if isinstance(batch, list | tuple) else 2
        return CalledForm(model, loss, target=Part(tuple(range(1, max(2, num))), is_single=True))
    moved = tree_map(dict(batch), lambda _, tensor: tensor.to(device))
    everything, targets = tuple(moved), ReadTrackingDict(moved)
    inputs, outputs = find_read_keys(model, moved)
    if isinstance(outputs, MissingError):  # the first pass says why
        return make_keyed_form(model, loss, everything, everything)
    own = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    if isinstance(attempt("loss", _call_without_gradient, {"call": lambda: own(outputs, targets)}), MissingError):
        targets.read.update(everything)
    return make_keyed_form(
        model, loss, inputs, tuple(name for name in everything if name in targets.read) or everything
    )


def find_read_keys(model: nn.Module, batch: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Find which keys of a mapping on the model's device its `forward` names, or reads; with the outputs of a copy.

    The outputs are a MissingError where the call fails: then all keys count as read.
    """
    everything, inputs = tuple(batch), ReadTrackingDict(batch)
    names = list_named(get_forward(model), everything)
    copied = copy_module(model).train()
    call = (lambda: copied(**{name: batch[name] for name in names})) if names else (lambda: copied(inputs))
    outputs = attempt("model", _call_without_gradient, {"call": call})
    if isinstance(outputs, MissingError):
        return everything, outputs
    return names or tuple(name for name in everything if name in inputs.read) or everything, outputs


def _call_without_gradient(call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()
