"""Trace of a loss's Hessian, tensor by tensor, from products with random signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["hessian_product", "hessian_traces"]


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian of `loss` with respect to `parameters` times `vectors`, which have their shapes; twice backward.

    A parameter that the loss does not depend on, or only linearly, has a product of 0.
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
    """Hutchinson's estimate of the trace of each tensor's own block: the mean of v . Hv over random signs v.

    Ends after `draws`, or once the mean of every tensor moves by less than `tolerance` of the largest. `loss_of`
    computes the same loss each time, by functions that can be differentiated twice: layers with `fused: false`, batch
    norm in evaluation mode. Source: Yao et al. 2020 (PyHessian); Dong et al. 2020 (HAWQ-V2), section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, sums, means = list(parameters.values()), torch.zeros(len(parameters), dtype=torch.float64), None
    for draw in range(1, draws + 1):
        signs = [
            (torch.randint(0, 2, each.shape, generator=generator) * 2 - 1).to(each.device, each.dtype)
            for each in tensors
        ]
        products = hessian_product(loss_of(), tensors, signs)
        sums += torch.stack([(v * p).sum().double().cpu() for v, p in zip(signs, products, strict=True)])
        before, means = means, sums / draw
        if before is not None and (means - before).abs().max() < tolerance * means.abs().max():
            break
    assert means is not None, "at least one draw"
    return dict(zip(parameters, means.tolist(), strict=True))
