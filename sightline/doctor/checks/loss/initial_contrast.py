"""A first loss between rows that its definition does not give on these rows, or that no fresh model has."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sightline.doctor.checks.loss.pair_rows import BUILT_IN, OUTPUTS, pair_losses, pairs_task
from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding
from sightline.doctor.oracles.loss_references import nt_xent
from sightline.losses.contrast import chance_level

__all__ = ["initial_contrast"]

_TOLERANCE = 1e-6  # of float64, relative: both sides see the same rows
_MOST_Z = 6.0
_RELABELLINGS = 200
_FEWEST = 4
_NEARLY = 1e-3
"""By how much the cosine of two rows misses 1 where the temperature is measured."""
_SCALE = 3.0
"""Rows are compared by angle alone: this factor must change nothing."""


@check("G20", "initial-contrast", "preflight")
def initial_contrast(context: Context) -> list[Finding]:
    """On the rows that the fresh model gives, the loss is that of its definition, written here a second time.

    And it is no larger than with partners exchanged at random: before training, an object's partner is as near as any
    other's, or nearer. That loss is about ln(2M - 1) + 1 / (2 tau^2 d). Source: Chen et al. 2020, eq. 1.
    """
    if pairs_task(context) is None or not context.dry_run.is_sound:
        return []
    _, outputs = context.first_outputs
    rows = {name: value.double().cpu() for name in OUTPUTS if isinstance(value := outputs.get(name), Tensor)}
    if not rows or any(value.ndim != 2 or not bool(value.isfinite().all()) for value in rows.values()):
        return []
    is_fresh = context.config.init is None and context.built.job.step == 0
    found = []
    for name, value in pair_losses(context, rows).items():
        broken = _of_definition(context, name, value, rows)
        if broken is not None:
            found.append(broken)
        elif is_fresh and len(rows["first"]) >= _FEWEST:
            found += _of_start(context, name, value, rows)
    return found


def _sides(name: str, rows: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    first, second = rows["first"].numpy(), rows["second"].numpy()
    return (first, second) if name == "intra_modal" else ((first + second) / 2, rows["pictured"].numpy())


def _temperature(context: Context, name: str) -> float:
    """As the loss itself behaves: two pairs whose rows have the cosine 1 - d give ln(1 + 2 exp(-d / tau)).

    d is small, so that float64 holds the exponential at every temperature that a loss may have.
    """
    cosine = 1 - _NEARLY
    rows = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    value = pair_losses(context, dict.fromkeys(OUTPUTS, rows))[name]
    ratio = math.expm1(value) / 2
    return -_NEARLY / math.log(ratio) if 0 < ratio < 1 else math.nan


def _of_definition(context: Context, name: str, value: float, rows: Mapping[str, Tensor]) -> Finding | None:
    assert name in BUILT_IN, "the definition of another loss is not known"
    temperature = _temperature(context, name)
    expected = nt_xent(*_sides(name, rows), temperature=temperature)
    if abs(value - expected) <= _TOLERANCE * max(1.0, abs(expected)):
        return None
    scaled = pair_losses(context, {key: _SCALE * row for key, row in rows.items()})[name]
    has_scale = not math.isclose(scaled, value, rel_tol=1e-6)
    reason = "rows are not scaled to length 1" if has_scale else "its value is another"
    return initial_contrast.finding(
        context,
        f"the loss '{name}' is not the NT-Xent of these rows: {reason}",
        causes=("loss.form", "loss.negatives", "loss.normaliser", "model.numerics"),
        at=context.loss_path(name),
        measured=f"{value:.6g} for {len(rows['first'])} pairs; {scaled:.6g} with all rows times {_SCALE:g}",
        expected=f"{expected:.6g}, computed apart in float64 with tau = {temperature:.4g}, whatever the rows' scale",
        action="divide every row by its length first" if has_scale else "compare the loss with its definition",
        evidence={"temperature": temperature, "pairs": len(rows["first"])},
    )


def _of_start(context: Context, name: str, value: float, rows: Mapping[str, Tensor]) -> list[Finding]:
    """The loss against that with each object's partner taken from another object."""
    anchors, partners = _sides(name, rows)
    temperature = _temperature(context, name)
    draws = np.random.Generator(np.random.PCG64(0))
    others = [
        nt_xent(anchors, partners[draws.permutation(len(partners))], temperature=temperature)
        for _ in range(_RELABELLINGS)
    ]
    mean, std = float(np.mean(others)), float(np.std(others))
    chance = chance_level(len(anchors))
    if std <= 1e-9 * max(1.0, mean) or (value - mean) / std <= _MOST_Z:
        return []
    return [
        initial_contrast.finding(
            context,
            f"before training, partners are farther from each other than other objects are ('{name}')",
            severity="warning",
            causes=("data.pairing", "loss.sign", "model.init"),
            at=context.loss_path(name),
            measured=f"{value:.4g}, z = {(value - mean) / std:.3g} against {_RELABELLINGS} exchanges of partners",
            expected=f"{mean:.4g} +- {std:.2g} or less; rows that are all alike give ln(2M - 1) = {chance:.4g}",
            action="look whether row i of both sides is the same object, and whether similarity is rewarded",
            evidence={"chance": chance, "pairs": len(anchors)},
        )
    ]
