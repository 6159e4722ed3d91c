"""Quantised weights that do not follow the policy, or that pass no gradient to their float weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.doctor.checks.compression.codebooks import num_distinct, weights_finding
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.layers.quantisation.parametrised import dense_state_dict, quantised_weights

__all__ = ["rounding_gradient", "unquantised_weights"]


@check(
    "G19",
    "unquantised-weights",
    "static",
    causes=("quant.no_effect", "quant.policy"),
    config_path="compress.policy",
    expected="at most 2^bits values of a codebook, 2^bits - 1 of a grid, per channel if configured, in both modes",
    action="apply the policy to the model that is trained and evaluated, not to a copy, and return the rounded weight",
)
def unquantised_weights(context: Context) -> list[Finding]:
    """Each weight that the policy names has no more values than its bits allow, in training and in evaluation.

    Finds: Quantised weights that do not follow the policy, or that pass no gradient to their float weights.
    """
    compress = context.config.compress
    faults = {} if compress is None else dict(_find_faults(isolated_copy(context.built.job.model), compress.policy))
    return weights_finding(unquantised_weights, context, "do not follow the policy", faults)


def _find_faults(model: nn.Module, policy: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    quantisers = {name: quantiser for name, (quantiser, _) in quantised_weights(model).items()}
    training, evaluation = (dense_state_dict(model.train(mode)) for mode in (True, False))
    for name, choice in policy.items():
        quantiser, bits = quantisers.get(name), choice.get("bits", 16)
        stated = f"; the policy states {bits} bits, {choice['kind']}"
        excess, mode = _describe_excess(training[name], choice), "training"
        if not excess and not torch.equal(training[name], evaluation[name]):
            excess, mode = _describe_excess(evaluation[name], choice), "evaluation"
        if excess:
            cause = "quant.no_effect" if quantiser is None or mode == "evaluation" else "quant.policy"
            yield name, (cause, f"{excess} in {mode}{stated}")
        elif getattr(quantiser, "bits", bits) != bits:
            yield name, ("quant.policy", f"{quantiser}{stated}")


def _describe_excess(value: Tensor, choice: Mapping[str, Any]) -> str:
    """Describe the values that a weight has beyond its policy entry; "" if it conforms."""
    if choice["kind"] == "fp32":
        return ""
    if choice["kind"] == "fp16":
        num_off = int((value.half().to(value.dtype) != value).sum())
        return f"{num_off} of {value.numel()} values are not of half precision" if num_off else ""
    max_values = 2 ** choice["bits"] - (choice["kind"] == "linear")
    num_values = int(num_distinct(value.nan_to_num().reshape(len(value) if choice.get("per_channel") else 1, -1)).max())
    return f"{num_values} different values" if num_values > max_values else ""


@check(
    "G10",
    "rounding-gradient",
    "static",
    causes=("loss.detached", "quant.policy"),
    config_path="compress.policy",
    expected="a finite gradient that is not zero everywhere, for a gradient of 1 at the weight",
    action="round by a straight-through estimate: the rounded number forward, the gradient unchanged backward",
)
def rounding_gradient(context: Context) -> list[Finding]:
    """A gradient of ones at each quantised weight reaches the float weight that it is computed from, and is finite.

    Finds: Quantised weights that do not follow the policy, or that pass no gradient to their float weights.
    """
    model, faults = isolated_copy(context.built.job.model), {}
    owners = dict(model.named_modules())  # `get_submodule` would return a method that has a module's name
    for name, (_, original) in quantised_weights(model).items():
        path, _, attribute = name.rpartition(".")
        weight, slope = getattr(owners[path], attribute), None
        if weight.requires_grad:
            (slope,) = torch.autograd.grad(weight.sum(), original, allow_unused=True)
        if original.requires_grad and (slope is None or not slope.any()):
            faults[name] = "loss.detached", "no gradient" if slope is None else "zero everywhere"
        elif slope is not None and not slope.isfinite().all():
            faults[name] = "quant.empty_cluster", f"{int((~slope.isfinite()).sum())} of {slope.numel()} are not finite"
    return weights_finding(rounding_gradient, context, "pass no gradient on", faults)
