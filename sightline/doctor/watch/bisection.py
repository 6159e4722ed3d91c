"""Search for the first layer whose output is not finite: one forward pass again, on a copy, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_cast
from sightline.doctor.attempts import MissingError, observe
from sightline.doctor.evidence.numerics import Origin
from sightline.doctor.finding import Finding, FindingLocation
from sightline.doctor.processes import describe_spread, is_one_of_several, leave_others_alone, unwrap
from sightline.doctor.rules import find_by
from sightline.doctor.rules.non_finite import non_finite
from sightline.doctor.watch.loop import ForwardCall
from sightline.instrument import Inputs, ModuleCall, copy_module, record
from sightline.instrument.random_state import preserve_random_state

Search = Callable[[], Finding | MissingError | None]
"""Search of a layer, which may end with the reason why it cannot be made."""


@dataclass
class _Event:
    """First tensor of a pass that is not finite, the module that returned it, and the range of what that read."""

    layer: str
    tensor: Tensor
    inputs: str


def prepare_search(call: ForwardCall) -> Search:
    """Return the search in a forward pass, on a copy of the model as it is now; it returns None if it finds nothing.

    The pass is repeated in its own number format, then in float64, which tells an overflow from a wrong formula.
    """
    alone = unwrap(call.model)
    if is_one_of_several() and describe_spread(alone):
        return lambda: None
    inputs, model = call.inputs, observe("non-finite: the model cannot be copied", copy_module, alone)
    if isinstance(model, MissingError):
        return lambda: model
    return partial(observe, "non-finite: the forward pass cannot be run again", _search, model, inputs)


@preserve_random_state()
@leave_others_alone()
@torch.no_grad()
def _search(model: nn.Module, inputs: Inputs) -> Finding | None:
    event = _run(model, inputs)
    if event is None:
        return None
    place = [int(each[0]) for each in (~event.tensor.isfinite()).nonzero(as_tuple=True)]
    sample = place[0] if len(place) > 1 else None
    number, location = (
        float(event.tensor[tuple(place)]),
        f"'{event.layer}'" if event.layer else "the model's own forward",
    )
    wide = _run(model.double(), tree_cast(inputs, torch.float64))
    text = "finite in float64: an overflow" if wide is None else f"not finite in float64 either, in '{wide.layer}'"
    of_sample = "" if sample is None else f" of sample {sample}"
    measured = f"{number} at {place} of {tuple(event.tensor.shape)}{of_sample}; its inputs: {event.inputs}; {text}"
    where = FindingLocation(layer=event.layer or None, sample=sample)
    (found,) = find_by(non_finite, origin=Origin("forward", measured, {"number": number, "location": location}, where))
    return found


def _run(model: nn.Module, inputs: Inputs) -> _Event | None:
    found: list[_Event] = []

    def leave(call: ModuleCall, module: nn.Module, inputs: Inputs, outputs: object) -> None:
        floats = [tensor for _, tensor in dense_leaves(outputs) if tensor.is_floating_point()]
        bad = next((tensor for tensor in floats if not bool(tensor.isfinite().all())), None)
        if bad is not None and not found:
            read = [tensor for _, tensor in dense_leaves(inputs) if tensor.is_floating_point() and tensor.numel()]
            ranges = [f"{float(tensor.min()):.4g} .. {float(tensor.max()):.4g}" for tensor in read]
            found.append(_Event(call.path, bad.detach(), ", ".join(ranges) or "nothing"))

    with record(model, leave=leave):
        model(*inputs[0], **inputs[1])
    return found[0] if found else None
