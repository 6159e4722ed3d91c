"""Curvature of a model's own loss: Hessian-vector products, and the trace of each tensor's block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sightline.compression.policy import WeightFormat
from sightline.contract.errors import UserError
from sightline.engine.step import Step, weighted_sum
from sightline.workbench.compress.simulator import PolicySimulator


class Curvature(NamedTuple):
    """Curvature for searches by the Hessian: differentiable loss, parameters, and squared error of a choice."""

    loss_of: Callable[[], Tensor]
    parameters: Mapping[str, Tensor]
    error_of: Callable[[str, WeightFormat], float]


_REMEDY = "build the model with `fused: false`, or take another search"


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Compute the product of the Hessian of `loss` by `parameters` with `vectors` of the same shapes.

    The product of a parameter on which the loss depends linearly, or not at all, is 0.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    curved = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not curved:
        return [torch.zeros_like(parameter) for parameter in parameters]
    products = torch.autograd.grad([g for g, _ in curved], parameters, [v for _, v in curved], materialize_grads=True)
    return list(products)


def hessian_traces(
    loss_of: Callable[[], Tensor], parameters: Mapping[str, Tensor], *, seed: int, draws: int, tolerance: float = 1e-3
) -> dict[str, float]:
    """Estimate the Hessian trace of each tensor's block by Hutchinson: the mean of v . Hv over random signs v.

    Ends after `draws`, or once the mean of every tensor changes by less than `tolerance` of the largest. `loss_of`
    computes the same loss each time, with functions that can be differentiated twice: layers with `fused: false`, batch
    norm in evaluation mode. Source: Yao et al. 2020 (PyHessian); Dong et al. 2020 (HAWQ-V2), section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, sums, means = list(parameters.values()), torch.zeros(len(parameters), dtype=torch.float64), None
    for draw in range(1, draws + 1):
        signs = [
            (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor.device, tensor.dtype)
            for tensor in tensors
        ]
        products = hessian_product(loss_of(), tensors, signs)
        sums += torch.stack([(v * p).sum().double().cpu() for v, p in zip(signs, products, strict=True)])
        previous, means = means, sums / draw
        if previous is not None and (means - previous).abs().max() < tolerance * means.abs().max():
            break
    assert means is not None, "at least one draw"
    return dict(zip(parameters, means.tolist(), strict=True))


def weighted_loss(step: Step, model: nn.Module, weights: Mapping[str, float]) -> Tensor:
    """Compute the sum of the weighted losses of a prepared step over its micro-batches."""
    means = [step.loss_means(step.loss_sums(model, index)) for index in range(len(step.micro_batches))]
    return torch.stack([weighted_sum(terms, weights) for terms in means]).sum()


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
            return weighted_loss(step, model, weights)

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
