"""Search for the first layer whose output is not finite: one forward pass again, on a copy, layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from sightline.contract.pytree import tree_cast
from sightline.instrument import Inputs, record
from sightline.instrument.random_state import preserve_random_state
from sightline.workbench.check.checks.optimiser.non_finite import ForwardTrace, make_forward_fault
from sightline.workbench.check.core.dry_run import isolated_copy
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.watch.loop import ForwardCall

logger = logging.getLogger(__name__)

Search = Callable[[], Fault | None]


def prepare_search(call: ForwardCall) -> Search:
    """Return the search in a forward pass, on a copy of the model as it is now; it returns None if it finds nothing.

    The pass is repeated in its own number format, then in float64, which tells an overflow from a wrong formula.
    """
    try:
        model, inputs = isolated_copy(call.model), call.inputs
    except Exception:
        logger.warning("non-finite: the model cannot be copied, so that its layer is not searched", exc_info=True)
        return lambda: None

    def search() -> Fault | None:
        try:
            with preserve_random_state(), torch.no_grad():
                return _search(model, inputs)
        except Exception:
            logger.warning("non-finite: the forward pass could not be run again", exc_info=True)
            return None

    return search


def _search(model: nn.Module, inputs: Inputs) -> Fault | None:
    trace = _run(model, inputs)
    if trace.event is None:
        return None
    position = trace.event.position
    index = position[0] if len(position) > 1 else None
    fault = make_forward_fault(trace, trace.event, index, "" if index is None else f" of sample {index}")
    wide = _run(model.double(), tree_cast(inputs, torch.float64))
    text = (
        "finite in float64: an overflow"
        if wide.event is None
        else f"not finite in float64 either, in '{wide.event.layer}'"
    )
    return replace(fault, measured=f"{fault.measured}; {text}", evidence={**fault.evidence, "float64": text})


def _run(model: nn.Module, inputs: Inputs) -> ForwardTrace:
    trace = ForwardTrace()
    with record(model, enter=trace.enter, leave=trace.leave):
        model(*inputs[0], **inputs[1])
    return trace
