"""Quantised weights as torch parametrisations: `module.weight` is computed from codes, or from rounded floats.

The attribute changes and the module stays, since fused layers read `linear.weight` and call no module. A parametrised
attribute has the same bits as the packed file, in training too: numbers of a codebook are rounded to half precision
wherever they are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sightline.compression.codebooks import Codebook, cluster_weight
from sightline.compression.grids import UniformQuantiser, weight_grid
from sightline.compression.half_precision import HalfPrecision
from sightline.compression.inputs import quantise_inputs
from sightline.compression.policy import Policy, WeightFormat, trained_policy
from sightline.compression.quantiser import Quantiser, check_weight
from sightline.compression.weights import list_weights
from sightline.config import RunConfig
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.schema import suggest


def apply_policy(model: nn.Module, policy: Policy, *, mean_gradient: bool = True) -> None:
    """Parametrise the named weights of a model in place; a shared one under all its names.

    Inputs are quantised by `quantise_inputs`. All is checked and computed before the model changes.
    Raises UserError for unknown names, formats that the weight does not allow, weights that are not finite, and models
    that have parametrisations already.
    """
    if parametrised_paths := [path for path, module in model.named_modules() if parametrize.is_parametrized(module)]:
        raise UserError(
            f"policy: '{parametrised_paths[0]}' is parametrised already, by a policy or by a norm of weights; freeze it"
        )
    weights_by_name = {weight.name: weight for weight in list_weights(model)}
    parameters = dict(model.named_parameters())
    quantisers: dict[str, tuple[Quantiser, Tensor]] = {}
    for name, choice in policy.items():
        if name not in weights_by_name:
            raise UserError(f"policy: the model has no parameter '{name}'{suggest(name, list(weights_by_name))}")
        quantiser, source = quantiser_for(name, parameters[name], choice, mean_gradient=mean_gradient)
        if isinstance(quantiser, Quantiser):
            quantisers[name] = quantiser, source
    quantise_inputs(model, {name: choice.activation for name, choice in policy.items() if choice.activation})
    owners = dict(model.named_modules(remove_duplicate=False))
    order = {path: tuple(module._parameters) for path, module in owners.items()}
    for name, (quantiser, source) in quantisers.items():
        owner, _, attribute = name.rpartition(".")
        quantiser.order = order[owner]
        parametrize.register_parametrization(owners[owner], attribute, quantiser, unsafe=True)
        chain = owners[owner].parametrizations[attribute]
        with torch.no_grad():
            chain.original.copy_(source)
        for other in weights_by_name[name].shared:
            holder, _, alias = other.rpartition(".")
            if alias not in getattr(owners[holder], "parametrizations", {}):
                # The shared parameter has the shape of the centres by now: another replaces it.
                owners[holder]._parameters[alias] = nn.Parameter(
                    parameters[name].new_zeros(weights_by_name[name].shape)
                )
                parametrize.register_parametrization(owners[holder], alias, nn.Identity())
                owners[holder].parametrizations[alias] = chain


def quantise_by_config(model: nn.Module, config: RunConfig) -> nn.Module:
    """Apply the policy of a run's config to its model; return the model. Raises ConfigError naming the config."""
    policy, is_mean = trained_policy(config), config.compress is None or config.compress.gradient == "mean"
    try:
        apply_policy(model, policy, mean_gradient=is_mean)
    except UserError as error:
        raise ConfigError(f"{config.origins.get('compress.policy', 'compress')}: {error}") from None
    return model


def quantiser_for(
    name: str, weight: Tensor, choice: WeightFormat, *, mean_gradient: bool = True
) -> tuple[nn.Module, Tensor]:
    """Make the quantiser of a weight (any shape), and the tensor behind it: the weight itself, or centres.

    That of float32 is the identity. Raises UserError for a format that the weight does not allow.
    """
    kind, bits, per_channel, _ = choice
    if kind == "fp32":
        return nn.Identity(), weight
    check_weight(weight, name)
    if kind == "fp16":
        if weight.detach().abs().max() > torch.finfo(torch.float16).max:
            raise UserError(f"policy: {name}: holds numbers above 65504, too large for half precision; choose fp32")
        return HalfPrecision(), weight
    if per_channel and weight.ndim < 2:
        raise UserError(f"policy: {name}: per_channel: a weight of shape {list(weight.shape)} has no channels")
    if kind == "linear":
        return UniformQuantiser(weight_grid(weight, bits=bits, name=name, per_channel=per_channel), bits=bits), weight
    clusters = cluster_weight(weight, bits=bits, name=name, per_channel=per_channel)
    quantiser = Codebook(clusters, bits=bits, mean_gradient=mean_gradient)
    return quantiser, quantiser.fill(clusters.centres)


def quantised_weights(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return, per name of a quantised weight, its parametrisation and the tensor (any shape) behind it.

    Shared ones once.
    """
    weights: dict[str, tuple[nn.Module, Tensor]] = {}
    chain_ids: set[int] = set()
    for path, module in model.named_modules():
        for attribute, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain[0], Quantiser) and id(chain) not in chain_ids:
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
