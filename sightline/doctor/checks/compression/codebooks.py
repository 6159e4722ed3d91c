"""Codebooks with centres that no weight has, that are equal or not finite, or fewer than its weights need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Check, Context, check
from sightline.doctor.core.finding import Finding
from sightline.layers.quantisation.clustering import cluster_weight
from sightline.layers.quantisation.parametrised import Codebook, quantised_weights

__all__ = ["broken_codebook", "num_distinct", "weights_finding", "weights_with_gradient"]


@check(
    "G19",
    "broken-codebook",
    "static",
    causes=("quant.empty_cluster", "quant.policy", "optim.nonfinite"),
    config_path="compress.policy",
    expected="finite, different centres, each with a weight; 2^bits of them, or as many as the weights have values",
    action="look at what clusters this weight: drop or re-seed a cluster without members before its mean is taken",
)
def broken_codebook(context: Context) -> list[Finding]:
    """Every centre of a codebook that training starts from is a number, has a weight, and differs from the others."""
    plain, faults = context.float_model, {}
    floats = {} if plain is None else dict(plain.named_parameters())
    for name, (quantiser, centres) in quantised_weights(context.built.job.model).items():
        if isinstance(quantiser, Codebook) and context.config.compress is not None:
            policy = context.config.compress.policy
            measured = _fault_of(quantiser, centres.detach())
            if name in floats and name in policy:
                measured = measured or _lack_of(name, quantiser, floats[name], policy[name])
            if measured:
                faults[name] = "quant.empty_cluster", measured
    return weights_finding(broken_codebook, context, "have a broken codebook", faults)


def _fault_of(quantiser: Codebook, centres: Tensor) -> str:
    held = quantiser.as_stored(centres).reshape(1 if centres.ndim == 1 else len(centres), -1)
    num_broken = int((~held.isfinite()).sum())
    if num_broken:
        return f"{num_broken} of {held.numel()} centres are NaN or infinite"
    is_used, places = _is_used(quantiser), torch.arange(held.shape[1], device=held.device)
    is_hole = ~is_used & (places < (places * is_used).amax(dim=1, keepdim=True))  # behind the last are its copies
    if is_hole.any():
        row, place = is_hole.nonzero()[0].tolist()
        where = f"centre {place} ({float(held[row, place]):.4g})" + (f" of channel {row}" if len(held) > 1 else "")
        return f"{int(is_hole.sum())} of {held.numel()} centres have no weight, {where} first"
    num_equal = int((held.masked_fill(~is_used, torch.inf).sort(dim=1).values.diff(dim=1) == 0).sum())
    return f"{num_equal} of {int(is_used.sum())} centres repeat another in half precision" if num_equal else ""


def _lack_of(name: str, quantiser: Codebook, weight: Tensor, choice: Mapping[str, Any]) -> str:
    """Whether the float weight has more clusters than are in use."""
    num_used = _is_used(quantiser).sum(dim=1)
    if bool((num_used >= 2 ** choice.get("bits", 0)).all()):
        return ""
    per_channel = choice.get("per_channel", False)
    best = cluster_weight(weight, bits=choice["bits"], name=name, per_channel=per_channel).weight
    needed = num_distinct(best.reshape(len(best) if per_channel else 1, -1))
    found = f"{int(num_used.sum())} centres in use, {int(needed.sum())} expected of {choice['bits']} bits"
    return found if bool((num_used < needed).any()) else ""


def _is_used(quantiser: Codebook) -> Tensor:
    width = quantiser.shape[-1]
    rows = quantiser.labels.reshape(1 if len(quantiser.shape) == 1 else len(quantiser.labels), -1)
    return torch.stack([row.int().bincount(minlength=width) for row in rows]) > 0


def weights_with_gradient(context: Context) -> set[str]:
    """The quantised weights that the first step's gradients reach."""
    pairs = quantised_weights(context.dry_run.model).items()
    return {name for name, (_, value) in pairs if value.grad is not None and bool(value.grad.any())}


def num_distinct(rows: Tensor) -> Tensor:
    """How many different numbers each row (R, N) holds."""
    return (rows.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1) + 1


def weights_finding(origin: Check, context: Context, what: str, faults: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """One finding for all weights with a fault, by name its cause and what was measured, at the first of them."""
    return [
        origin.finding(
            context,
            f"{len(faults)} quantised weight(s) {what}, '{name}' first",
            causes=(cause, *origin.causes),
            param=name,
            measured=measured,
            evidence={"parameters": list(faults)},
        )
        for name, (cause, measured) in list(faults.items())[:1]
    ]
