"""A head that does not start with rare objects, or whose outputs are in another order than the priors."""

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
"""Size of the finest map; each coarser map has one more row and two more columns, so that all sizes differ."""
_CORNER_SIZE = 5
_MIN_SHARE = 0.5
_LARGER_SCALE = 3
"""Scale of the maps of the second test: the receptive field of a deep head covers all of the small maps."""


@check(
    "G29", "level-order", "preflight", causes=("model.structure", "assign.anchor_coverage"), config_path="model.head"
)
def level_order(context: Context) -> list[Finding]:
    """A change of the upper right corner of each map mostly changes the outputs of the priors there.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

    The order of priors is level, row, column, prior of a cell.
    """
    model: Any = context.built.job.model
    channels = getattr(getattr(model, "neck", None), "channels", None)
    if context.assignments is None or channels is None:
        return []
    head = isolated_copy(model.head).eval().cpu().double()
    try:
        misordered = _find_misordered(head, channels, 1) and _find_misordered(head, channels, _LARGER_SCALE)
    except Exception as error:  # noqa: BLE001 - a plugin's head may need maps of certain sizes
        return [level_order.not_run(context, error)]
    return [
        level_order.finding(
            context,
            f"'{name}' of the head is in another order than the priors",
            measured=f"of the change of a corner of each map, {', '.join(shares)} at the priors of that corner, "
            "by level",
            expected=f"more than {_MIN_SHARE:.0%}",
            action="flatten by at_priors of models/detection/head.py: levels finest first, rows, columns, priors "
            "of a cell",
            layer="head",
        )
        for name, shares in list(misordered.items())[:1]
    ]


def _find_misordered(head: Any, channels: Sequence[int], scale: int) -> dict[str, list[str]]:
    """Return the outputs that change too little near the corner, with the share of their change there by level."""
    draws = torch.Generator().manual_seed(0)
    sizes = [((_ROWS + level) * scale, (_COLUMNS + 2 * level) * scale) for level in range(len(channels))]
    pairs = zip(channels, sizes, strict=True)
    maps = [torch.randn(1, width, *size, generator=draws).double() for width, size in pairs]
    changed_maps = [level_shares.clone() for level_shares in maps]
    for level_shares in changed_maps:
        level_shares[:, :, 1, -2] *= -10
    with torch.no_grad():
        shares = dict(_iter_corner_shares(head(maps), head(changed_maps), sizes, _CORNER_SIZE * scale))
    return {
        name: [f"{share:.0%}" for share in level_shares]
        for name, level_shares in shares.items()
        if min(level_shares) < _MIN_SHARE
    }


def _iter_corner_shares(
    outputs: Mapping[str, Tensor], changed_outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]], near: int
) -> Iterator[tuple[str, list[float]]]:
    """Yield each output's name and the share of its squared change, by level, within `near` cells of the corner."""
    for name in sorted(outputs.keys() & {"logits", "codes", "centreness", "objectness"}):
        energy = (changed_outputs[name] - outputs[name])[0].square().reshape(outputs[name].shape[1], -1).sum(dim=1)
        per_cell = len(energy) // sum(rows * columns for rows, columns in sizes)
        levels = energy.split([rows * columns * per_cell for rows, columns in sizes])
        grids = [grid.view(*size, per_cell).sum(dim=2) for grid, size in zip(levels, sizes, strict=True)]
        yield name, [float(grid[:near, -near:].sum() / grid.sum()) for grid in grids]


@check(
    "G20",
    "prior-bias",
    "preflight",
    severity="warning",
    causes=("model.init", "model.structure"),
    config_path="model.head",
)
def prior_bias(context: Context) -> list[Finding]:
    """The mean score, or objectness, of an untrained detector is the head's `prior` (0.01) within a factor of 10.

    Finds: A head that does not start with rare objects, or whose outputs are in another order than the priors.

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
