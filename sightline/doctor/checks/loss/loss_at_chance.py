"""A run that ends with a contrastive loss at chance: nothing was learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.doctor.context import Context, check
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.runs.run_documents import read_lines
from sightline.tasks.contrast import CHANCE_SUFFIX

__all__ = ["at_chance", "loss_at_chance"]

_MIN_STEPS = 100
_MIN_SLOW_STEPS = 300  # a cross-modal loss was seen at 0.955 of chance after 128 steps
_PARTS_OF_RUN = 4
_MAX_SHARE_OF_CHANCE = 0.9
_MIN_DECREASE = 0.05
_COLLAPSE_TOLERANCE = 0.005


@check("G21", "loss-at-chance", "offline", severity="warning")
def loss_at_chance(context: Context) -> list[Finding]:
    """Each loss's share of ln(2M - 1) in the last quarter of `metrics.jsonl` is well below 1.

    Finds: A run that ends with a contrastive loss at chance: nothing was learnt.
    """
    if context.run is None or not (context.run / "metrics.jsonl").is_file():
        return []
    return at_chance(read_lines(context.run / "metrics.jsonl"), file=context.run / "metrics.jsonl")


def at_chance(lines: Sequence[Mapping[str, Any]], *, file: Path) -> list[Finding]:
    """Return findings on the training lines of a run; runs of fewer than a hundred steps are not judged.

    A share of exactly 1 is a network with the same output for all samples; a share of nearly 1 that has not fallen in
    three hundred steps is a network that learns nothing.
    """
    trained = [line for line in lines if line.get("split") == "train"]
    if not trained or trained[-1]["step"] < _MIN_STEPS:
        return []
    names = [key.removesuffix(CHANCE_SUFFIX) for key in trained[-1] if key.endswith(CHANCE_SUFFIX)]
    return [finding for name in names if (finding := _finding_term(trained, name, file)) is not None]


def _finding_term(lines: Sequence[Mapping[str, Any]], name: str, file: Path) -> Finding | None:
    num_lines = max(1, len(lines) // _PARTS_OF_RUN)
    first_share, last_share = _mean(lines[:num_lines], name), _mean(lines[-num_lines:], name)
    is_collapsed = abs(last_share - 1) <= _COLLAPSE_TOLERANCE
    final = lines[-1]
    is_slow = (
        last_share >= _MAX_SHARE_OF_CHANCE
        and first_share - last_share < _MIN_DECREASE
        and final["step"] >= _MIN_SLOW_STEPS
    )
    if not is_collapsed and not is_slow:
        return None
    causes = ("loss.collapse", "model.constant_output", "optim.lr")
    if not is_collapsed:
        causes = ("optim.lr", "data.pairing", "loss.detached")
    chance, num_negatives = final.get("chance"), final.get("negatives")
    reason = (
        "the network gives the same output for all objects" if is_collapsed else "nothing was learnt from these pairs"
    )
    return loss_at_chance.finding(
        FindingLocation(file=str(file), step=final["step"]),
        f"'{name}' ends at chance: {reason}",
        causes=causes,
        measured=f"{last_share:.3f} of chance over the last {num_lines} of {len(lines)} lines, "
        f"{first_share:.3f} over the first",
        expected=f"well below {_MAX_SHARE_OF_CHANCE:g}"
        + ("" if chance is None else f"; chance is {chance:.4f} with {num_negatives:g} negatives"),
        action="check which objects are paired (`sightline view`), then the learning rate, then the inputs of the loss",
        evidence={"first": first_share, "last": last_share, "lines": len(lines)},
    )


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean share of chance of a loss over the lines that have it; NaN if none has."""
    values = [line[name + CHANCE_SUFFIX] for line in lines if line.get(name + CHANCE_SUFFIX) is not None]
    return math.fsum(values) / len(values) if values else math.nan
