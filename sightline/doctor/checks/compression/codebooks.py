"""Codebooks with unused, equal or non-finite centres, or with fewer centres than their weights need."""

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
    expected="finite, distinct centres, each used by a weight; 2^bits of them, or as many as the weight has values",
    action="look at the clustering of this weight: drop or re-seed an empty cluster before its mean is computed",
)
def broken_codebook(context: Context) -> list[Finding]:
    """Every centre of an initial codebook is finite, used by a weight, and distinct from the other centres.

    Finds: Codebooks with unused, equal or non-finite centres, or with fewer centres than their weights need.
    """
    plain, faults = context.float_model, {}
    floats = {} if plain is None else dict(plain.named_parameters())
    for name, (quantiser, centres) in quantised_weights(context.built.job.model).items():
        if isinstance(quantiser, Codebook) and context.config.compress is not None:
            policy = context.config.compress.policy
            measured = _describe_fault(quantiser, centres.detach())
            if name in floats and name in policy:
                measured = measured or _describe_shortage(name, quantiser, floats[name], policy[name])
            if measured:
                faults[name] = "quant.empty_cluster", measured
    return weights_finding(broken_codebook, context, "have a broken codebook", faults)


def _describe_fault(quantiser: Codebook, centres: Tensor) -> str:
    """Describe the non-finite, unused or repeated centres of a codebook; "" if it has none."""
    stored = quantiser.as_stored(centres).reshape(1 if centres.ndim == 1 else len(centres), -1)
    num_broken = int((~stored.isfinite()).sum())
    if num_broken:
        return f"{num_broken} of {stored.numel()} centres are NaN or infinite"
    is_used, index = _used_mask(quantiser), torch.arange(stored.shape[1], device=stored.device)
    is_hole = ~is_used & (
        index < (index * is_used).amax(dim=1, keepdim=True)
    )  # entries after the last used centre are copies of it
    if is_hole.any():
        row, centre = is_hole.nonzero()[0].tolist()
        first_hole = f"centre {centre} ({float(stored[row, centre]):.4g})" + (
            f" of channel {row}" if len(stored) > 1 else ""
        )
        return f"{int(is_hole.sum())} of {stored.numel()} centres have no weight, {first_hole} first"
    num_equal = int((stored.masked_fill(~is_used, torch.inf).sort(dim=1).values.diff(dim=1) == 0).sum())
    return f"{num_equal} of {int(is_used.sum())} centres repeat another in half precision" if num_equal else ""


def _describe_shortage(name: str, quantiser: Codebook, weight: Tensor, choice: Mapping[str, Any]) -> str:
    """Describe a codebook that uses fewer centres than its float weight has clusters; "" if it uses enough."""
    num_used = _used_mask(quantiser).sum(dim=1)
    if bool((num_used >= 2 ** choice.get("bits", 0)).all()):
        return ""
    per_channel = choice.get("per_channel", False)
    best = cluster_weight(weight, bits=choice["bits"], name=name, per_channel=per_channel).weight
    needed = num_distinct(best.reshape(len(best) if per_channel else 1, -1))
    measured = f"{int(num_used.sum())} centres in use, {int(needed.sum())} expected of {choice['bits']} bits"
    return measured if bool((num_used < needed).any()) else ""


def _used_mask(quantiser: Codebook) -> Tensor:
    """Return the mask (rows, centres) of the centres that at least one weight uses."""
    width = quantiser.shape[-1]
    rows = quantiser.labels.reshape(1 if len(quantiser.shape) == 1 else len(quantiser.labels), -1)
    return torch.stack([row.int().bincount(minlength=width) for row in rows]) > 0


def weights_with_gradient(context: Context) -> set[str]:
    """Return the names of the quantised weights that have a non-zero gradient in the dry run."""
    pairs = quantised_weights(context.dry_run.model).items()
    return {name for name, (_, value) in pairs if value.grad is not None and bool(value.grad.any())}


def num_distinct(rows: Tensor) -> Tensor:
    """Count the distinct values of each row: (R, N) -> (R,) int64."""
    return (rows.sort(dim=1).values.diff(dim=1) != 0).sum(dim=1) + 1


def weights_finding(origin: Check, context: Context, what: str, faults: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """Return one finding for all faulty weights, located at the first; [] if there are none.

    `faults` maps the name of each weight to its cause and what was measured; `what` completes the summary.
    """
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
