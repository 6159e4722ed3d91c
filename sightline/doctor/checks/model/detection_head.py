"""A head that does not start with rare objects, or whose outputs lie in another order than the priors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding

__all__ = ["level_order", "prior_bias"]

_PRIOR, _FACTOR = 0.01, 10.0
_ROWS, _COLUMNS = 8, 11
"""Of the finest map; every other one has one more row and two more columns, so that no two have as many cells."""
_NEAR = 5
_LEAST = 0.5
_LARGER = 3
"""Times as large are the maps that decide: a head of many layers sees all of the small ones."""


@check(
    "G29", "level-order", "preflight", causes=("model.structure", "assign.anchor_coverage"), config_path="model.head"
)
def level_order(context: Context) -> list[Finding]:
    """Another upper right corner of each map changes the outputs of the priors there, and few others.

    Their order is level, row, column, prior of a cell.
    """
    model: Any = context.built.job.model
    channels = getattr(getattr(model, "neck", None), "channels", None)
    if context.assignments is None or channels is None:
        return []
    head = isolated_copy(model.head).eval().cpu().double()
    try:
        wrong = _out_of_order(head, channels, 1) and _out_of_order(head, channels, _LARGER)
    except Exception as error:  # noqa: BLE001 - a head of others may need maps of certain sizes
        return [level_order.not_run(context, error)]
    return [
        level_order.finding(
            context,
            f"'{name}' of the head lies in another order than the priors",
            measured=f"of the change of a corner of each map, {', '.join(each)} at the priors of that corner, by level",
            expected=f"more than {_LEAST:.0%}",
            action="flatten by at_priors of models/detection/head.py: levels finest first, rows, columns, priors "
            "of a cell",
            layer="head",
        )
        for name, each in list(wrong.items())[:1]
    ]


def _out_of_order(head: Any, channels: Sequence[int], scale: int) -> dict[str, list[str]]:
    """The outputs of which little changes near the corners of maps of this size, and how much, level by level."""
    draws = torch.Generator().manual_seed(0)
    sizes = [((_ROWS + level) * scale, (_COLUMNS + 2 * level) * scale) for level in range(len(channels))]
    pairs = zip(channels, sizes, strict=True)
    maps = [torch.randn(1, width, *size, generator=draws).double() for width, size in pairs]
    moved = [each.clone() for each in maps]
    for each in moved:
        each[:, :, 1, -2] *= -10
    with torch.no_grad():
        shares = dict(_shares(head(maps), head(moved), sizes, _NEAR * scale))
    return {name: [f"{share:.0%}" for share in each] for name, each in shares.items() if min(each) < _LEAST}


def _shares(
    plain: Mapping[str, Tensor], other: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]], near: int
) -> Iterator[tuple[str, list[float]]]:
    """Of each output, level by level, the share of the squared change (P,) that is so near the corner."""
    for name in sorted(plain.keys() & {"logits", "codes", "centreness", "objectness"}):
        energy = (other[name] - plain[name])[0].square().reshape(plain[name].shape[1], -1).sum(dim=1)
        per_cell = len(energy) // sum(rows * columns for rows, columns in sizes)
        levels = energy.split([rows * columns * per_cell for rows, columns in sizes])
        grids = [each.view(*size, per_cell).sum(dim=2) for each, size in zip(levels, sizes, strict=True)]
        yield name, [float(each[:near, -near:].sum() / each.sum()) for each in grids]


@check(
    "G20",
    "prior-bias",
    "preflight",
    severity="warning",
    causes=("model.init", "model.structure"),
    config_path="model.head",
)
def prior_bias(context: Context) -> list[Finding]:
    """The first scores of a fresh detector, or its objectness, are the head's `prior`, 0.01, to a factor of 10.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, section 4.1.
    """
    head = context.config.model.arguments.get("head")
    if context.assignments is None or context.config.init is not None or context.built.job.step:
        return []
    prior = float(getattr(head, "arguments", {}).get("prior", _PRIOR))
    outputs = context.first_outputs[1]
    score = float(outputs.get("objectness", outputs["logits"]).double().sigmoid().mean())
    if prior / _FACTOR <= score <= prior * _FACTOR:
        return []
    return [
        prior_bias.finding(
            context,
            "the untrained detector does not start with rare objects",
            measured=f"a mean score of {score:.4g}",
            expected=f"p = {prior:g}, to a factor of {_FACTOR:g}",
            action="start the class layer with the bias -ln((1 - p) / p) and small weights, and no norm after it",
        )
    ]
