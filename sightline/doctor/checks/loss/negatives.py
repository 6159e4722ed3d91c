"""Losses between rows with fewer, more or other negatives than the batch implies, or the wrong partners."""

from __future__ import annotations

import math

import torch

from sightline.doctor.checks.loss.pair_rows import OUTPUTS, pair_losses, pairs_task
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.losses.contrast import chance_level

__all__ = ["negatives"]

_PAIRS = 6
_WIDTH = 16
_TOLERANCE = 1e-9  # of float64 sums of a dozen exponentials


@check("G34", "negatives", "static")
def negatives(context: Context) -> list[Finding]:
    """Rows that are all alike give exactly ln(K + 1) for K negatives, and K is 2M - 2 for the M pairs of a step.

    So for one micro-batch, for two, and over the processes there are; a partner that is near gives the smaller loss.
    Source: Chen et al. 2020, eq. 1.
    """
    task = pairs_task(context)
    if task is None:
        return []
    found = _of_counts(context) or _of_partners(context)
    if context.world.size > 1:
        found += _of_world(context)
        if task.negatives == "process":
            found.append(_of_declared(context))
    return found


def _alike(num_pairs: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(num_pairs, _WIDTH, dtype=torch.float64) for name in OUTPUTS}


def _of_counts(context: Context) -> list[Finding]:
    for parts in (1, 2):
        for name, value in pair_losses(context, _alike(_PAIRS), parts=parts).items():
            if abs(value - chance_level(_PAIRS)) > _TOLERANCE:
                how = "" if parts == 1 else f" in {parts} micro-batches"
                return [_wrong(context, name, value, _PAIRS, how, _explained(value, parts))]
    return []


def _of_world(context: Context) -> list[Finding]:
    """Every process puts a few rows in, not all as many; with gathered negatives the count is that of all."""
    sizes = [_PAIRS + rank for rank in range(context.world.size)]
    rows = _alike(sizes[context.world.rank])
    values = pair_losses(context, rows, world=context.world)
    task = pairs_task(context)
    if task is None or task.negatives == "process":
        return []
    how = f" on {context.world.size} processes"
    return [
        _wrong(context, name, value, sum(sizes), how, "some rows of other processes are left out")
        for name, value in values.items()
        if abs(value - chance_level(sum(sizes))) > _TOLERANCE
    ]


def _of_partners(context: Context) -> list[Finding]:
    """Rows at right angles: with each beside its own the loss must be smaller than with each beside its neighbour's."""
    own = torch.eye(_PAIRS, _WIDTH, dtype=torch.float64)
    good = pair_losses(context, dict.fromkeys(OUTPUTS, own))
    # `second` stays beside `first`, so that their mean, which pictures are compared with, is a row of its own.
    shifted = {"intra_modal": {"second": own.roll(1, 0)}, "cross_modal": {"pictured": own.roll(1, 0)}}
    found = []
    for name, value in good.items():
        bad = pair_losses(context, {**dict.fromkeys(OUTPUTS, own), **shifted[name]})[name]
        if value < bad:
            continue
        found.append(
            negatives.finding(
                context,
                f"the loss '{name}' does not reward an object's own partner",
                causes=("data.pairing", "loss.sign", "loss.form"),
                at=context.loss_path(name),
                measured=f"{value:.6g} with every partner equal, {bad:.6g} with that of another object",
                expected="the first to be smaller",
                action="compare row i of one side with row i of the other, and minimise the cross entropy",
            )
        )
    return found


def _of_declared(context: Context) -> Finding:
    """What `negatives: process` costs, in numbers."""
    whole, size = context.config.train.batch_size, context.world.size
    alone = whole // size
    return negatives.finding(
        context,
        f"every process compares only its own {alone:g} pairs, as task.negatives: process sets",
        severity="warning",
        causes=("loss.negatives", "dist.sync"),
        at="task",
        measured=f"{2 * alone - 2:g} negatives an anchor; a collapsed network has the loss {chance_level(alone):.4f}",
        expected=f"{2 * whole - 2} of the {whole} pairs of a step, and {chance_level(whole):.4f}, on any number of "
        "processes",
        action="set task.negatives: gathered, unless a published figure is to be repeated with this many processes",
    )


def _wrong(context: Context, name: str, value: float, num_pairs: int, how: str, detail: str) -> Finding:
    count = math.expm1(value) if value < 700 else math.inf
    return negatives.finding(
        context,
        f"the loss '{name}' does not compare with all negatives of a step{detail and f': {detail}'}",
        causes=("loss.negatives", "loss.form", "dist.sync"),
        at=context.loss_path(name),
        measured=f"{value:.9g} for {num_pairs} pairs that are all alike{how}, so {count:.6g} negatives",
        expected=f"{chance_level(num_pairs):.9g} = ln(2 x {num_pairs} - 1), so {2 * num_pairs - 2}",
        action="compare each row with all others of both sides, over micro-batches and processes, and not with itself",
    )


def _explained(value: float, parts: int) -> str:
    """What the number of negatives betrays."""
    found = round(math.expm1(value)) if value < 700 else -1
    if not math.isclose(math.expm1(min(value, 700.0)), found, rel_tol=1e-6):
        return ""
    known = {
        2 * _PAIRS - 1: "a row's similarity to itself counts as well",
        _PAIRS - 1: "only the rows of one side are compared with",
    }
    if parts > 1:
        known[2 * (_PAIRS // parts) - 2] = "only the rows of its own micro-batch are compared with"
    return known.get(found, "")
