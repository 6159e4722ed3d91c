"""Quantised inputs of layers: hooks that round, and the ranges of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.compression.grids import FEW_BITS, OF_ZEROS, kl_threshold
from sightline.compression.policy import Activation
from sightline.compression.quantiser import straight_through
from sightline.compression.weights import list_weights
from sightline.contract.errors import UserError, join_some
from sightline.contract.schema import suggest
from sightline.instrument import hang, record

_NUM_RECORDED = 1 << 14
"""Numbers of a batch that the search for a range reads."""
_REMEDY = "as in fused layers; build the model with `fused: false`, or take the activation out"


def quantised_activation(values: Tensor, reach: float | Tensor, *, bits: int, is_signed: bool) -> Tensor:
    """Quantise values of any shape: clip to [0, reach], or [-reach, reach] if signed, and round to 2^bits - 1 steps.

    One bit is the sign. The gradient of rounding is straight-through (STE), that of clipping 0 outside; a `reach` of
    shape (1,) gets the gradient of PACT. Source: HAQ (Wang et al. 2019), section 3.4; Choi et al. 2018 (PACT), eq. 3.
    """
    num_steps = int(2 ** (bits - is_signed)) - 1
    step: float | Tensor
    if isinstance(reach, Tensor):
        clipped = torch.minimum(torch.maximum(values, -reach if is_signed else torch.zeros_like(reach)), reach)
        step = reach.detach().clamp(min=OF_ZEROS) / num_steps
    else:
        clipped = torch.clamp(values, -reach if is_signed else 0.0, reach)
        step = max(reach, OF_ZEROS) / num_steps
    return straight_through(clipped, torch.round(clipped.detach() / step) * step)


def activation_range(values: Tensor, *, bits: int, is_signed: bool, most: float = math.inf) -> float:
    """Return the range of activations of any shape, at most `most`; below 5 bits of magnitude that of `kl_threshold`.

    HAQ uses at most 6, the upper bound of ReLU6 in its networks. Source: HAQ, section 3.4.
    """
    largest, size_bits = min(most, float(values.detach().abs().max())), bits - is_signed
    if size_bits < FEW_BITS:
        largest = min(largest, kl_threshold(values.detach().cpu().double().numpy(), bits=size_bits))
    return largest


def calibrate_activations(
    model: nn.Module, run_batches: Callable[[], object], names: Sequence[str], *, bits: int, most: float = math.inf
) -> dict[str, Activation]:
    """Calibrate the inputs of the layers that own the weights `names`: bits, range and sign of each, in this order.

    `run_batches` runs the model over calibration samples, in evaluation mode. An input is signed if one of its numbers
    is negative. Its range is that of `activation_range`, from the extremes and numbers evenly spread over each batch.
    The model is unchanged.
    Raises UserError for weights of other modules than linear layers and convolutions, for layers that are never called
    or see nothing but zeros, and for inputs that are not finite.
    """
    layers = _layers(model, names)
    recorded: dict[str, list[Tensor]] = {name: [] for name in names}
    with record(layers, enter=lambda call, _, inputs: recorded[call.path].append(_summarise(_get_input(*inputs)))):
        run_batches()
    if idle := [name for name, parts in recorded.items() if not parts]:
        raise UserError(f"{join_some(idle, most=3)}: activation: the layer is not called, {_REMEDY}")
    return {name: _entry(name, torch.cat(parts).double(), bits, most) for name, parts in recorded.items()}


def quantise_inputs(model: nn.Module, activations: Mapping[str, Activation]) -> None:
    """Round the inputs of the layers that own these weights, in the model and all its copies; no state is added.

    The first pass of `model` in training and the first in evaluation raise UserError for layers that they do not call.
    Raises UserError as `calibrate_activations` does, and for layers whose inputs are quantised already.
    """
    layers = _layers(model, activations)
    quantisers = {name: _InputQuantiser(activations[name]) for name in layers}
    for name, layer in layers.items():
        hang(layer, before=quantisers[name])
    if quantisers:
        hang(model, after=_Guard(quantisers))


class _InputQuantiser:
    """Hook that rounds the input of a layer; not a module, so that a checkpoint has no additional names."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.was_called = False

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.was_called = True
        bits, reach, is_signed = self.activation
        values = quantised_activation(_get_input(args, kwargs), reach, bits=bits, is_signed=is_signed)
        return ((values, *args[1:]), kwargs) if args else ((), {**kwargs, "input": values})


class _Guard:
    """Hook on the whole model: the first pass in training, and the first in evaluation, must call every layer."""

    def __init__(self, quantisers: Mapping[str, _InputQuantiser]) -> None:
        self._quantisers = quantisers
        self._passed: set[bool] = set()

    def __call__(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if model.training not in self._passed:
            if idle := [name for name, quantiser in self._quantisers.items() if not quantiser.was_called]:
                mode = "training" if model.training else "evaluation"
                raise UserError(
                    f"policy: {join_some(idle, most=3)}: activation: the layer is not called in {mode}, {_REMEDY}"
                )
            self._passed.add(model.training)
        for quantiser in self._quantisers.values():
            quantiser.was_called = False


def _layers(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """Return the layer that owns each weight."""
    weights_by_name, owners = {weight.name: weight for weight in list_weights(model)}, dict(model.named_modules())
    layers = {}
    for name in names:
        if name not in weights_by_name:
            raise UserError(f"activation: the model has no parameter '{name}'{suggest(name, list(weights_by_name))}")
        path, _, attribute = name.rpartition(".")
        if (
            weights_by_name[name].kind not in ("linear", "convolution", "transposed convolution")
            or attribute != "weight"
        ):
            raise UserError(
                f"{name}: activation: belongs to no linear layer or convolution, whose input could be taken"
            )
        if any(other.rpartition(".")[0] in owners for other in weights_by_name[name].shared):
            raise UserError(
                f"{name}: activation: is shared with {weights_by_name[name].shared[0]}; their inputs have two ranges"
            )
        if any(isinstance(hook, _InputQuantiser) for hook in owners[path]._forward_pre_hooks.values()):
            raise UserError(f"{name}: activation: the layer's input is quantised already")
        layers[name] = owners[path]
    return layers


def _summarise(values: Tensor) -> Tensor:
    """Return the minimum and maximum of an input, and numbers evenly spread over all of its axes."""
    values = values.detach()
    stride = -(-values.numel() // _NUM_RECORDED)
    while math.gcd(stride, values.numel()) > 1:
        stride += 1
    return torch.cat([torch.stack([*values.aminmax()]), values.reshape(-1)[::stride]]).cpu()


def _entry(name: str, values: Tensor, bits: int, most: float) -> Activation:
    if not torch.isfinite(values).all():
        raise UserError(f"{name}: activation: the layer's input is not finite on the calibration samples")
    is_signed = bool((values < 0).any())
    reach = activation_range(values, bits=bits, is_signed=is_signed, most=most)
    if reach == 0:
        raise UserError(f"{name}: activation: the layer's input is 0 on all calibration samples; leave it in float")
    return Activation(bits, reach, is_signed)


def _get_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    values: Tensor = args[0] if args else kwargs["input"]
    return values
