"""Quantised weights as torch parametrisations: `module.weight` is computed from codes, or from rounded floats.

The attribute changes and the module stays, since fused layers read `linear.weight` and call no module. A parametrised
attribute has the same bits as the packed file, in training too: numbers of a codebook are rounded to half precision
wherever they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sightline.contract.errors import UserError
from sightline.contract.schema import suggest
from sightline.parts.quantisation.activations import choice_faults, quantise_inputs
from sightline.parts.quantisation.clustering import Clusters, check_weight, cluster_weight
from sightline.parts.quantisation.linear import QuantisationGrid, list_weights, straight_through, weight_grid


class _Quantiser(nn.Module):
    """Base of weight quantisers; `order` is the order of the module's parameters, which `freeze` restores."""

    order: tuple[str, ...] = ()


class Codebook(_Quantiser):
    """Codebook quantisation: weight = centres[labels].

    Labels are fixed, centres (2^bits) or (channels, 2^bits) are trained.
    Unused entries repeat the last centre, so that the shapes follow from the policy alone. The gradient of
    a centre is the mean over its members, or their sum (`mean_gradient=False`, Han et al. 2016, eq. 3).
    Source: HAQ, section 3.4: with plain SGD its projection after each step is a step on the mean.
    """

    labels: Tensor
    is_float32: Tensor

    def __init__(self, clusters: Clusters, *, bits: int, mean_gradient: bool = True) -> None:
        super().__init__()
        self.bits = bits
        self.mean_gradient = mean_gradient
        self.shape = (*clusters.centres.shape[:-1], 2**bits)
        self.register_buffer("labels", clusters.labels)
        self.register_buffer("is_float32", torch.tensor(clusters.is_float32, device=clusters.labels.device))

    def forward(self, centres: Tensor) -> Tensor:
        """Look up the weights (any shape) from centres (K,) or (channels, K), in the centres' dtype."""
        look_up = _MeanLookUp if self.mean_gradient else _LookUp
        weight: Tensor = look_up.apply(self.as_stored(centres), self._flat_codes())
        return weight.view(self.labels.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the centres (K,) or (channels, K) of an assigned weight.

        The means over the members, HAQ's projection.
        """
        sums, indices = weight.new_zeros(self.shape, dtype=torch.float64).flatten(), self._flat_codes()
        sums.index_add_(0, indices, weight.detach().flatten().double())
        means = sums / torch.bincount(indices, minlength=len(sums)).clamp(min=1)
        return means.to(weight.dtype).view(self.shape)

    def as_stored(self, centres: Tensor) -> Tensor:
        """Round the centres (K,) or (channels, K) as in the artefact, with straight-through gradients."""
        rounded = torch.where(self.is_float32, centres.float(), centres.half().float())
        return straight_through(centres, rounded.to(centres.dtype) + 0.0)  # no -0

    def extra_repr(self) -> str:
        return f"bits={self.bits}, mean_gradient={self.mean_gradient}"

    def _flat_codes(self) -> Tensor:
        """Return the flat index of each weight's centre."""
        codes = self.labels.int()
        if len(self.shape) == 1:
            return codes.flatten()
        firsts = torch.arange(0, self.shape[0] * self.shape[1], self.shape[1], dtype=torch.int32, device=codes.device)
        return (codes.flatten(1) + firsts[:, None]).flatten()


class _LookUp(torch.autograd.Function):
    """Look-up of centres by flat index; differentiable as often as needed."""

    @staticmethod
    def forward(ctx: Any, centres: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = centres.shape
        return centres.flatten().index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        (gradient,) = gradients
        return _add_up(gradient, indices, ctx.shape).to(gradient.dtype), None


class _MeanLookUp(_LookUp):
    """Look-up whose centres get the mean of their weights' gradients."""

    surrogate_gradient = True

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        (gradient,) = gradients
        counts = torch.bincount(indices, minlength=ctx.shape.numel()).clamp(min=1)
        return (_add_up(gradient, indices, ctx.shape) / counts.view(ctx.shape)).to(gradient.dtype), None


def _add_up(gradient: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    return gradient.new_zeros(shape.numel(), dtype=torch.float64).index_add(0, indices, gradient.double()).view(shape)


class UniformQuantiser(_Quantiser):
    """Uniform quantisation-aware training.

    Weight = the nearest value of a symmetric grid, with straight-through gradients.
    """

    step: Tensor

    def __init__(self, grid: QuantisationGrid, *, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("step", grid.step)

    @property
    def grid(self) -> QuantisationGrid:
        most = 2 ** (self.bits - 1) - 1
        return QuantisationGrid(self.step, torch.zeros_like(self.step), -most, most)

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (any shape) to the grid, with straight-through gradients."""
        return straight_through(weight, self.grid(weight.detach()))

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class HalfPrecision(_Quantiser):
    """Half-precision rounding of a float weight, with straight-through gradients."""

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (any shape) to half precision, with straight-through gradients."""
        return straight_through(weight, weight.detach().half().to(weight.dtype))


def apply_policy(model: nn.Module, policy: Mapping[str, Mapping[str, Any]], *, mean_gradient: bool = True) -> None:
    """Parametrise the named weights of a model in place; a shared one under all its names.

    A choice is a `WeightQuantisation` without `choice_faults`; its activation is applied by `quantise_inputs`. All is
    checked and computed before the model changes.
    Raises UserError for unknown names, choices that are faulty or that the weight does not allow, weights that are not
    finite, and models that have parametrisations already.
    """
    if parametrised_paths := [path for path, module in model.named_modules() if parametrize.is_parametrized(module)]:
        raise UserError(
            f"policy: '{parametrised_paths[0]}' is parametrised already, by a policy or by a norm of weights; freeze it"
        )
    weights_by_name = {weight.name: weight for weight in list_weights(model)}
    parameters = dict(model.named_parameters())
    quantisers: dict[str, tuple[_Quantiser, Tensor | None]] = {}
    for name, choice in policy.items():
        if name not in weights_by_name:
            raise UserError(f"policy: the model has no parameter '{name}'{suggest(name, list(weights_by_name))}")
        if pair := quantiser_for(name, parameters[name], choice, mean_gradient):
            quantisers[name] = pair
    quantise_inputs(model, {name: choice["activation"] for name, choice in policy.items() if "activation" in choice})
    owners = dict(model.named_modules(remove_duplicate=False))
    order = {path: tuple(module._parameters) for path, module in owners.items()}
    for name, (quantiser, start) in quantisers.items():
        owner, _, attribute = name.rpartition(".")
        quantiser.order = order[owner]
        parametrize.register_parametrization(owners[owner], attribute, quantiser, unsafe=True)
        chain = owners[owner].parametrizations[attribute]
        if start is not None:
            with torch.no_grad():
                chain.original.copy_(start)
        for other in weights_by_name[name].shared:
            holder, _, alias = other.rpartition(".")
            if alias not in getattr(owners[holder], "parametrizations", {}):
                # The shared parameter has the shape of the centres by now: another replaces it.
                owners[holder]._parameters[alias] = nn.Parameter(
                    parameters[name].new_zeros(weights_by_name[name].shape)
                )
                parametrize.register_parametrization(owners[holder], alias, nn.Identity())
                owners[holder].parametrizations[alias] = chain


def quantiser_for(
    name: str, weight: nn.Parameter, choice: Mapping[str, Any], mean_gradient: bool
) -> tuple[_Quantiser, Tensor | None] | None:
    """Make the parametrisation of a weight (any shape), and its initial numbers if they are not the weight itself."""
    for key, text in choice_faults(choice):
        raise UserError(f"policy: {name}{f': {key}' * bool(key)}: {text}")
    kind, bits, per_channel = choice["kind"], choice.get("bits", 0), choice.get("per_channel", False)
    if kind == "fp32":
        return None
    check_weight(weight, name)
    if kind == "fp16":
        if weight.detach().abs().max() > torch.finfo(torch.float16).max:
            raise UserError(f"policy: {name}: holds numbers above 65504, too large for half precision; choose fp32")
        return HalfPrecision(), None
    if per_channel and weight.ndim < 2:
        raise UserError(f"policy: {name}: per_channel: a weight of shape {list(weight.shape)} has no channels")
    if kind == "linear":
        return UniformQuantiser(weight_grid(weight, bits=bits, name=name, per_channel=per_channel), bits=bits), None
    clusters = cluster_weight(weight, bits=bits, name=name, per_channel=per_channel)
    quantiser, centres = Codebook(clusters, bits=bits, mean_gradient=mean_gradient), clusters.centres
    copies = centres[..., -1:].expand(*centres.shape[:-1], 2**bits - centres.shape[-1])
    return quantiser, torch.cat([centres, copies], dim=-1)


def quantised_weights(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return, per name of a quantised weight, its parametrisation and the tensor (any shape) behind it.

    Shared ones once.
    """
    weights: dict[str, tuple[nn.Module, Tensor]] = {}
    chain_ids: set[int] = set()
    for path, module in model.named_modules():
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain[0], Codebook | UniformQuantiser | HalfPrecision) and id(chain) not in chain_ids:
                chain_ids.add(id(chain))
                weights[f"{path}.{attribute}" if path else attribute] = chain[0], chain.original
    return weights


def weight_sizes(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the number of weights that each parameter represents, shared ones once; all members for a codebook."""
    coded = {
        id(source): quantiser.labels.numel()
        for quantiser, source in quantised_weights(model).values()
        if isinstance(quantiser, Codebook)
    }
    return {parameter: coded.get(id(parameter), parameter.numel()) for parameter in model.parameters()}


@torch.no_grad()
def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model under its unquantised names, with copies of the quantised weights (any shape).

    One tensor for all names of a shared weight.
    """
    state: dict[str, Tensor] = {}
    values_by_chain: dict[int, Tensor] = {}
    inner = tuple(f"{path}.parametrizations." if path else "parametrizations." for path, _ in model.named_modules())
    plain = {name: value for name, value in model.state_dict().items() if not name.startswith(inner)}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            value = values_by_chain.setdefault(id(chain), chain().detach())
            state[f"{path}.{attribute}" if path else attribute] = value
    return {**plain, **state}


def bake_quantised_weights(model: nn.Module) -> nn.Module:
    """Write the quantised numbers into plain parameters in place, as in `dense_state_dict`; return the model.

    Copies of the model are unchanged: torch's own removal changes the class, which copies share.
    """
    state = dense_state_dict(model)
    parameters: dict[int, nn.Parameter] = {}
    for path, module in list(model.named_modules()):
        if not parametrize.is_parametrized(module):
            continue
        chains = dict(module.parametrizations.items())
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for attribute, chain in chains.items():
            value = state[f"{path}.{attribute}" if path else attribute]
            new = nn.Parameter(value, requires_grad=chain.original.requires_grad)
            module._parameters[attribute] = parameters.setdefault(id(value), new)
        position = {name: index for index, name in enumerate(next(iter(chains.values()))[0].order)}
        module._parameters = dict(sorted(module._parameters.items(), key=lambda item: position.get(item[0], 0)))
    return model
