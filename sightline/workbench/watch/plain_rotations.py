"""Targets that are angles, of which different numbers mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found

Loss = Callable[[Any, Any], Tensor]
_MIN_ANGLES, _EDGE = 64, 0.03


def judge_angles(loss: Loss, outputs: Tensor, target: Tensor, targets: Tensor) -> Iterator[Found]:
    """Targets that fill -pi .. pi, or 0 .. 2 pi, are angles: a whole turn of an output changes no loss.

    `targets` are those of all batches, `outputs` and `target` of one.
    """
    if not targets.is_floating_point() or targets.ndim > 2:
        return
    is_encoded = outputs.shape != target.shape  # such as sine and cosine of the target
    columns = targets.reshape(len(targets), -1)
    for index, column in enumerate(columns.T):
        low, high = float(column.min()), float(column.max())
        turns = [
            half
            for half in (math.pi, 180.0)
            if len(column) >= _MIN_ANGLES and any(_fills(low, high, start, half) for start in (-half, 0.0))
        ]
        if not turns:
            continue
        outputs = outputs.detach()
        turned = (target if is_encoded else outputs).clone()
        turned.reshape(len(turned), -1)[:, index] += 2 * turns[0]
        before = float(loss(outputs, target))
        after = float(loss(outputs, turned) if is_encoded else loss(turned, target))
        if is_encoded and abs(after - before) > 1e-2 * (1 + abs(before)):
            yield report(
                "loss-form",
                "the targets fill a whole turn as angles do, and a turn more of them changes the loss: degrees are "
                "read as radians, or differences are not wrapped",
                causes=("data.target_encoding", "loss.form"),
                measured=f"targets {low:.4g} .. {high:.4g}; the loss of targets a whole turn further is {after:.3g} "
                f"for {before:.3g}",
                expected="the same loss after a whole turn",
                action="convert to radians before sin and cos (torch.deg2rad), or wrap the difference",
            )
            return
        if not is_encoded and abs(after - before) > 1e-3 * (1 + abs(before)):
            yield report(
                "loss-form",
                "the targets fill a whole turn as angles do, and the loss does not know that its ends are one: "
                "differences are not wrapped",
                severity="warning",
                causes=("loss.form", "data.target_encoding"),
                measured=f"targets {low:.4g} .. {high:.4g}; the loss of outputs a whole turn further is "
                f"{after:.3g} for {before:.3g}",
                expected="the same loss after a whole turn",
                action="wrap the difference, atan2(sin(d), cos(d)), or predict sine and cosine",
            )
            return


def _fills(low: float, high: float, start: float, half: float) -> bool:
    slack = 1e-4 * half
    is_inside = low >= start - slack and high <= start + 2 * half + slack
    return is_inside and low < start + _EDGE * half and high > start + (2 - _EDGE) * half
