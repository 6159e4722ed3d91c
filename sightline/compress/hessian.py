"""Hessian-vector products and Hutchinson's estimate of the Hessian trace of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["hessian_product", "hessian_traces"]


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
