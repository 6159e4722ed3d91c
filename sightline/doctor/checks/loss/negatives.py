"""Contrastive losses with fewer, more or other negatives than the batch implies, or with wrong partners."""

from __future__ import annotations

import math

import torch

from sightline.doctor.checks.loss.pair_rows import OUTPUTS, pair_losses, pairs_task
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.losses.contrast import chance_level

__all__ = ["negatives"]

_NUM_PAIRS = 6
_WIDTH = 16
_TOLERANCE = 1e-9  # for float64 sums of a dozen exponentials


@check("G34", "negatives", "static")
def negatives(context: Context) -> list[Finding]:
    """Equal rows have the loss ln(K + 1) of K = 2M - 2 negatives for the M pairs of a step.

    Finds: Contrastive losses with fewer, more or other negatives than the batch implies, or with wrong partners.

    This holds for one micro-batch, for two, and over all processes; a nearer partner has a smaller loss.
    Source: Chen et al. 2020, eq. 1.
    """
    task = pairs_task(context)
    if task is None:
        return []
    findings = _count_findings(context) or _partner_findings(context)
    if context.world.size > 1:
        findings += _world_findings(context)
        if task.negatives == "process":
            findings.append(_finding_declared(context))
    return findings


def _make_equal_rows(num_pairs: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(num_pairs, _WIDTH, dtype=torch.float64) for name in OUTPUTS}


def _count_findings(context: Context) -> list[Finding]:
    """Return a finding for the first loss whose number of negatives is wrong in one or two micro-batches."""
    for parts in (1, 2):
        for name, value in pair_losses(context, _make_equal_rows(_NUM_PAIRS), parts=parts).items():
            if abs(value - chance_level(_NUM_PAIRS)) > _TOLERANCE:
                setting = "" if parts == 1 else f" in {parts} micro-batches"
                return [_finding_count(context, name, value, _NUM_PAIRS, setting, _explain_count(value, parts))]
    return []


def _world_findings(context: Context) -> list[Finding]:
    """Check the number of negatives over all processes, each with a different number of rows."""
    sizes = [_NUM_PAIRS + rank for rank in range(context.world.size)]
    rows = _make_equal_rows(sizes[context.world.rank])
    values = pair_losses(context, rows, world=context.world)
    task = pairs_task(context)
    if task is None or task.negatives == "process":
        return []
    setting = f" on {context.world.size} processes"
    return [
        _finding_count(context, name, value, sum(sizes), setting, "some rows of other processes are left out")
        for name, value in values.items()
        if abs(value - chance_level(sum(sizes))) > _TOLERANCE
    ]


def _partner_findings(context: Context) -> list[Finding]:
    """Check that orthogonal rows have a smaller loss with their own partners than with those of the next object."""
    rows = torch.eye(_NUM_PAIRS, _WIDTH, dtype=torch.float64)
    paired_losses = pair_losses(context, dict.fromkeys(OUTPUTS, rows))
    # `second` stays equal to `first`, so that their mean, which pictures are compared with, is one of the rows.
    shifted = {"intra_modal": {"second": rows.roll(1, 0)}, "cross_modal": {"pictured": rows.roll(1, 0)}}
    findings = []
    for name, value in paired_losses.items():
        shifted_loss = pair_losses(context, {**dict.fromkeys(OUTPUTS, rows), **shifted[name]})[name]
        if value < shifted_loss:
            continue
        findings.append(
            negatives.finding(
                context,
                f"the loss '{name}' does not reward an object's own partner",
                causes=("data.pairing", "loss.sign", "loss.form"),
                at=context.loss_path(name),
                measured=f"{value:.6g} with every partner equal, {shifted_loss:.6g} with that of another object",
                expected="the first to be smaller",
                action="compare row i of one side with row i of the other, and minimise the cross entropy",
            )
        )
    return findings


def _finding_declared(context: Context) -> Finding:
    """Report the negatives that `negatives: process` gives up, in numbers."""
    num_pairs, size = context.config.train.batch_size, context.world.size
    pairs_per_process = num_pairs // size
    return negatives.finding(
        context,
        f"every process compares only its own {pairs_per_process:g} pairs, as task.negatives: process sets",
        severity="warning",
        causes=("loss.negatives", "dist.sync"),
        at="task",
        measured=f"{2 * pairs_per_process - 2:g} negatives an anchor; a collapsed network has the loss "
        f"{chance_level(pairs_per_process):.4f}",
        expected=f"{2 * num_pairs - 2} of the {num_pairs} pairs of a step, and {chance_level(num_pairs):.4f}, "
        "on any number of processes",
        action="set task.negatives: gathered, unless a published figure is to be repeated with this many processes",
    )


def _finding_count(context: Context, name: str, value: float, num_pairs: int, setting: str, detail: str) -> Finding:
    count = math.expm1(value) if value < 700 else math.inf
    return negatives.finding(
        context,
        f"the loss '{name}' does not compare with all negatives of a step{detail and f': {detail}'}",
        causes=("loss.negatives", "loss.form", "dist.sync"),
        at=context.loss_path(name),
        measured=f"{value:.9g} for {num_pairs} pairs of equal rows{setting}, so {count:.6g} negatives",
        expected=f"{chance_level(num_pairs):.9g} = ln(2 x {num_pairs} - 1), so {2 * num_pairs - 2}",
        action="compare each row with all others of both sides, over micro-batches and processes, and not with itself",
    )


def _explain_count(value: float, parts: int) -> str:
    """Explain a wrong number of negatives; "" if no explanation fits."""
    num_negatives = round(math.expm1(value)) if value < 700 else -1
    if not math.isclose(math.expm1(min(value, 700.0)), num_negatives, rel_tol=1e-6):
        return ""
    explanations = {
        2 * _NUM_PAIRS - 1: "a row's similarity to itself counts as well",
        _NUM_PAIRS - 1: "only the rows of one side are compared",
    }
    if parts > 1:
        explanations[2 * (_NUM_PAIRS // parts) - 2] = "only the rows of the same micro-batch are compared"
    return explanations.get(num_negatives, "")
