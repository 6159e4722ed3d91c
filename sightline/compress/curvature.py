"""Curvature of a model's own loss, for searches by the Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sightline.compress.hessian import hessian_product
from sightline.compress.policy_simulator import PolicySimulator
from sightline.compress.search.problem import Curvature
from sightline.engine.step import Step, weighted_sum
from sightline.errors import UserError

__all__ = ["build_curvature"]

_REMEDY = "build the model with `fused: false`, or take another search"


def build_curvature(simulated: PolicySimulator, step: Step, weights: Mapping[str, float]) -> Curvature:
    """Build the curvature of the weighted losses of a prepared step, at the float weights.

    The model is in evaluation mode, so that batch norms are constant; its quantisable weights require gradients from
    now on. Memory grows with the samples of the step, whose graph is kept twice.
    Raises UserError for a model whose loss cannot be differentiated twice, as with fused functions, and for curvature
    that is not finite.
    """
    parameters = {name: item for name, item in simulated.model.named_parameters() if name in set(simulated.names)}

    def compute_loss() -> Tensor:
        model = simulated.restore().eval()
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fast forms of attention have one gradient
            sums = [step.loss_means(step.loss_sums(model, index)) for index in range(len(step.micro_batches))]
            return torch.stack([weighted_sum(item, weights) for item in sums]).sum()

    loss = compute_loss()
    if once_differentiable := sorted(_find_once_differentiable(loss)):
        raise UserError(
            f"second gradients: {', '.join(once_differentiable)} can be differentiated only once; {_REMEDY}"
        )
    try:
        products = hessian_product(loss, list(parameters.values()), [torch.ones_like(p) for p in parameters.values()])
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise UserError(f"second gradients: {error}; {_REMEDY}") from None
    for name, product in zip(parameters, products, strict=True):
        if not torch.isfinite(product).all():
            raise UserError(f"{name}: the curvature of the loss is not finite there; take another search")
    return Curvature(compute_loss, parameters, simulated.squared_error)


def _find_once_differentiable(loss: Tensor) -> set[str]:
    """Find the autograd functions of a loss that are declared once differentiable, by name.

    Torch raises an error only if the gradient that reaches them depends on weights; else their share of the curvature
    is lost silently, for example under a loss that is linear in their output.
    """
    names, visited, pending = set(), set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        function: Any = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if getattr(getattr(backward, "__code__", None), "co_filename", "") == torch.autograd.function.__file__:
            names.add(function.__name__.lstrip("_"))
        pending += [next_node for next_node, _ in node.next_functions]
    return names
