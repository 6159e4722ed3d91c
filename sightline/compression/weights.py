"""Weights of a model that a policy may quantise, and the reasons why others are skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class WeightInfo:
    """One parameter: its first name in `model.named_parameters()`, and the other names if it is shared.

    `kind` is that of its layer: linear, convolution, transposed convolution, embedding, norm, or parameter of a module
    of another kind. `skip_reason` is the reason why it is not quantised, None for one that may be.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    shared: tuple[str, ...]
    skip_reason: str | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def quantisable_weights(model: nn.Module, *, min_params: int = 256) -> list[WeightInfo]:
    """List the weights that a policy may quantise, shared ones once, in the model's order.

    They are matrices and kernels of any module, including a bare `nn.Parameter`: fused layers read attributes and
    call no module. For a model that is not yet quantised.
    """
    return [weight for weight in list_weights(model, min_params=min_params) if weight.skip_reason is None]


def list_weights(model: nn.Module, *, min_params: int = 256) -> list[WeightInfo]:
    """List every parameter of a model, shared ones once, with the skip reason of those that are not quantised.

    These are biases, norms and scales, parameters added to every sample (tokens and positions: bare parameters whose
    first axis has one entry), embeddings that are renormalised where they are read or whose gradients are sparse, and
    weights with fewer than `min_params` elements, whose codebook would not pay.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    owners = dict(model.named_modules(remove_duplicate=False))
    weights = []
    for name, parameter in model.named_parameters():
        owner = owners[name.rpartition(".")[0]]
        kind = _kind(owner)
        skip_reason = _embedding_reason(owner) or _reason(kind, name, parameter, min_params)
        weights.append(WeightInfo(name, tuple(parameter.shape), kind, tuple(names[id(parameter)][1:]), skip_reason))
    return weights


def _kind(module: nn.Module) -> str:
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (nn.Linear, "linear"),
        (_ConvTransposeNd, "transposed convolution"),
        (_ConvNd, "convolution"),
        ((nn.Embedding, nn.EmbeddingBag), "embedding"),
        (_NORMS, "norm"),
    ]
    return next((kind for types, kind in kinds if isinstance(module, types)), "parameter")


def _embedding_reason(owner: nn.Module) -> str | None:
    """Return the reason why an embedding cannot be computed from codes, or None."""
    if not isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return None
    if owner.max_norm is not None:
        return "is renormalised where it is read"
    return "has sparse gradients" if owner.sparse else None


def _reason(kind: str, name: str, parameter: nn.Parameter, min_params: int) -> str | None:
    if kind == "norm":
        return kind
    if not parameter.is_floating_point():
        return f"{parameter.dtype}"
    if parameter.ndim < 2:
        return "bias" if name.rpartition(".")[2] == "bias" else "has one axis"
    if kind == "parameter" and parameter.shape[0] == 1:
        return "is added to every sample"
    return f"fewer than {min_params} elements" if parameter.numel() < min_params else None
