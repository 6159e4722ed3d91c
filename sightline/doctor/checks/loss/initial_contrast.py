"""A first contrastive loss that differs from NT-Xent of the same rows, or that no untrained model has."""

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

_TOLERANCE = 1e-6  # relative, in float64: both sides have the same rows
_MAX_Z = 6.0
_NUM_PERMUTATIONS = 200
_MIN_PAIRS = 4
_COSINE_GAP = 1e-3
"""1 - cosine of the two rows with which the temperature is measured."""
_ROW_SCALE = 3.0
"""Factor of all rows that must not change the loss, which depends on cosines alone."""


@check("G20", "initial-contrast", "preflight")
def initial_contrast(context: Context) -> list[Finding]:
    """The first contrastive loss equals an independent float64 NT-Xent of the same rows.

    Finds: A first contrastive loss that differs from NT-Xent of the same rows, or that no untrained model has.

    It is also not larger than with randomly permuted partners: before training, an object's partner is as near as any
    other object, or nearer. The first loss is about ln(2M - 1) + 1 / (2 tau^2 d). Source: Chen et al. 2020, eq. 1.
    """
    if pairs_task(context) is None or not context.dry_run.is_sound:
        return []
    _, outputs = context.first_outputs
    rows = {name: value.double().cpu() for name in OUTPUTS if isinstance(value := outputs.get(name), Tensor)}
    if not rows or any(value.ndim != 2 or not bool(value.isfinite().all()) for value in rows.values()):
        return []
    is_fresh = context.config.init is None and context.built.job.step == 0
    findings = []
    for name, value in pair_losses(context, rows).items():
        finding = _finding_definition(context, name, value, rows)
        if finding is not None:
            findings.append(finding)
        elif is_fresh and len(rows["first"]) >= _MIN_PAIRS:
            findings += _start_findings(context, name, value, rows)
    return findings


def _get_anchors_and_partners(name: str, rows: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the anchors (M, D) and partners (M, D) that a loss compares."""
    first, second = rows["first"].numpy(), rows["second"].numpy()
    return (first, second) if name == "intra_modal" else ((first + second) / 2, rows["pictured"].numpy())


def _measure_temperature(context: Context, name: str) -> float:
    """Measure the temperature tau of a loss: two pairs of rows with cosine 1 - d have the loss ln(1 + 2 exp(-d / tau)).

    d is small, so that float64 represents the exponential at every temperature that a loss may have.
    """
    cosine = 1 - _COSINE_GAP
    rows = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    value = pair_losses(context, dict.fromkeys(OUTPUTS, rows))[name]
    ratio = math.expm1(value) / 2
    return -_COSINE_GAP / math.log(ratio) if 0 < ratio < 1 else math.nan


def _finding_definition(context: Context, name: str, value: float, rows: Mapping[str, Tensor]) -> Finding | None:
    assert name in BUILT_IN, "the definition of another loss is not known"
    temperature = _measure_temperature(context, name)
    expected = nt_xent(*_get_anchors_and_partners(name, rows), temperature=temperature)
    if abs(value - expected) <= _TOLERANCE * max(1.0, abs(expected)):
        return None
    scaled = pair_losses(context, {key: _ROW_SCALE * row for key, row in rows.items()})[name]
    has_scale = not math.isclose(scaled, value, rel_tol=1e-6)
    reason = "rows are not scaled to length 1" if has_scale else "its value differs"
    return initial_contrast.finding(
        context,
        f"the loss '{name}' is not the NT-Xent of these rows: {reason}",
        causes=("loss.form", "loss.negatives", "loss.normaliser", "model.numerics"),
        at=context.loss_path(name),
        measured=f"{value:.6g} for {len(rows['first'])} pairs; {scaled:.6g} with all rows times {_ROW_SCALE:g}",
        expected=f"{expected:.6g}, computed independently in float64 with tau = {temperature:.4g}, "
        "for any scale of the rows",
        action="divide every row by its length first" if has_scale else "compare the loss with its definition",
        evidence={"temperature": temperature, "pairs": len(rows["first"])},
    )


def _start_findings(context: Context, name: str, value: float, rows: Mapping[str, Tensor]) -> list[Finding]:
    """Compare the loss with those of randomly permuted partners; return a finding if it is far larger."""
    anchors, partners = _get_anchors_and_partners(name, rows)
    temperature = _measure_temperature(context, name)
    draws = np.random.Generator(np.random.PCG64(0))
    permuted_losses = [
        nt_xent(anchors, partners[draws.permutation(len(partners))], temperature=temperature)
        for _ in range(_NUM_PERMUTATIONS)
    ]
    mean, std = float(np.mean(permuted_losses)), float(np.std(permuted_losses))
    chance = chance_level(len(anchors))
    if std <= 1e-9 * max(1.0, mean) or (value - mean) / std <= _MAX_Z:
        return []
    return [
        initial_contrast.finding(
            context,
            f"before training, partners are farther from each other than other objects are ('{name}')",
            severity="warning",
            causes=("data.pairing", "loss.sign", "model.init"),
            at=context.loss_path(name),
            measured=f"{value:.4g}, z = {(value - mean) / std:.3g} against {_NUM_PERMUTATIONS} permutations "
            "of partners",
            expected=f"{mean:.4g} +- {std:.2g} or less; equal rows have ln(2M - 1) = {chance:.4g}",
            action="check whether row i of both sides is the same object, and whether similarity is rewarded",
            evidence={"chance": chance, "pairs": len(anchors)},
        )
    ]
