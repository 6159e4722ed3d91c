"""Weights that the loss does not depend on, which no search need spend a bit on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from sightline.compress.policy_simulator import PolicySimulator
from sightline.engine.step import Step, weighted_sum

__all__ = ["unused_weights"]


def unused_weights(
    simulated: PolicySimulator, step: Step, weights: Mapping[str, float], loss_of: Callable[[], float]
) -> tuple[str, ...]:
    """The named weights that may be zeros without a change of `loss_of` the model, on all of its samples, in any bit.

    Only those without a gradient of the weighted losses of a prepared step are tried. None where all would be: then the
    loss says nothing of the network. The model is left as it was.
    """
    names = _without_gradient(simulated, step, weights)
    if not names:
        return ()
    parameters, expected = dict(simulated.model.named_parameters()), loss_of()

    def is_unused(tried: Sequence[str]) -> bool:
        before = {name: parameters[name].detach().clone() for name in tried}
        try:
            with torch.no_grad():
                for name in tried:
                    parameters[name].zero_()
            return loss_of() == expected
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    parameters[name].copy_(value)

    found = names if is_unused(names) else tuple(name for name in names if is_unused([name]))
    return () if len(found) == len(simulated.names) else found


def _without_gradient(simulated: PolicySimulator, step: Step, weights: Mapping[str, float]) -> tuple[str, ...]:
    parameters = dict(simulated.model.named_parameters())
    needed = {name: parameters[name].requires_grad for name in simulated.names}
    try:
        for name in needed:
            parameters[name].requires_grad_()
        with torch.enable_grad():
            means = [
                step.loss_means(step.loss_sums(simulated.model, index)) for index in range(len(step.micro_batches))
            ]
            loss = torch.stack([weighted_sum(each, weights) for each in means]).sum()
        if not loss.requires_grad:
            return tuple(needed)
        gradients = torch.autograd.grad(loss, [parameters[name] for name in needed], allow_unused=True)
    finally:
        for name, was_needed in needed.items():
            parameters[name].requires_grad_(was_needed)
    pairs = zip(needed, gradients, strict=True)
    return tuple(name for name, gradient in pairs if gradient is None or not gradient.any())
