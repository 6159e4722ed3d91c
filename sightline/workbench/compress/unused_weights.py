"""Weights that do not affect the loss, which need no bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from sightline.engine.step import Step
from sightline.workbench.compress.curvature import weighted_loss
from sightline.workbench.compress.simulator import PolicySimulator


def unused_weights(
    simulated: PolicySimulator, step: Step, weights: Mapping[str, float], loss_of: Callable[[], float]
) -> tuple[str, ...]:
    """Find the named weights that can be zeroed without changing one bit of the model's loss, `loss_of()`.

    Only weights without a gradient of the weighted losses of a prepared step are tried. Empty if all weights are
    unused: then the loss does not depend on the network. The model is restored.
    """
    names = _find_without_gradient(simulated, step, weights)
    if not names:
        return ()
    parameters, expected = dict(simulated.model.named_parameters()), loss_of()

    def is_unused(tried: Sequence[str]) -> bool:
        originals = {name: parameters[name].detach().clone() for name in tried}
        try:
            with torch.no_grad():
                for name in tried:
                    parameters[name].zero_()
            return loss_of() == expected
        finally:
            with torch.no_grad():
                for name, value in originals.items():
                    parameters[name].copy_(value)

    unused = names if is_unused(names) else tuple(name for name in names if is_unused([name]))
    return () if len(unused) == len(simulated.names) else unused


def _find_without_gradient(simulated: PolicySimulator, step: Step, weights: Mapping[str, float]) -> tuple[str, ...]:
    parameters = dict(simulated.model.named_parameters())
    required_grad = {name: parameters[name].requires_grad for name in simulated.names}
    try:
        for name in required_grad:
            parameters[name].requires_grad_()
        with torch.enable_grad():
            loss = weighted_loss(step, simulated.model, weights)
        if not loss.requires_grad:
            return tuple(required_grad)
        gradients = torch.autograd.grad(loss, [parameters[name] for name in required_grad], allow_unused=True)
    finally:
        for name, was_required in required_grad.items():
            parameters[name].requires_grad_(was_required)
    pairs = zip(required_grad, gradients, strict=True)
    return tuple(name for name, gradient in pairs if gradient is None or not gradient.any())
