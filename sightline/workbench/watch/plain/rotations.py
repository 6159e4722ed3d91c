"""Targets that are rotations, angles or quaternions, of which different numbers mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves, tree_map
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found

Loss = Callable[[Any, Any], Tensor]
_MIN_ANGLES, _EDGE, _NEAR, _MIN_NEAR = 64, 0.03, 0.25, 0.04
_MIN_APART, _MIN_SIGNAL = 2.0, 4.0
"""Squared distance of the ends of a scale, in those from its middle: 4 along a line; and in those of chance."""
_MIN_QUATERNIONS, _MAX_WIDTH = 24, 8
_MAX_ERROR, _MIN_AGAINST, _NUM_TURNS = 1e-3, 0.1, 200
"""Error of the length 1; share of quaternions on the other side of any plane, if both signs occur; planes tried."""


def judge_angles(
    loss: Loss, outputs: Tensor, target: Tensor, targets: Tensor, inputs: Tensor | None = None
) -> Iterator[Found]:
    """Targets that fill -pi .. pi, or 0 .. 2 pi, are angles: a whole turn of an output changes no loss.

    `inputs` and `targets` are those of all batches, `outputs` and `target` of one. Numbers with bounds, of which the
    inputs of the lowest and the highest ones are least alike, are none: those of angles of -180 and 180 degrees are.
    """
    if not targets.is_floating_point() or targets.ndim > 2:
        return
    is_encoded = outputs.shape != target.shape  # such as sine and cosine of the target
    columns = targets.reshape(len(targets), -1)
    if columns.shape[1] == 2 and float(columns.min()) >= 0 and float(columns.max()) > 2 * math.pi + _EDGE:
        return  # a place in pixels: images are 360 high, too
    for index, column in enumerate(columns.T):
        low, high = float(column.min()), float(column.max())
        turns = [
            half
            for half in (math.pi, 180.0)
            if len(column) >= _MIN_ANGLES and any(_fills(column, start, half) for start in (-half, 0.0))
        ]
        if not turns or (inputs is not None and _has_two_ends(inputs, column)):
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


def _has_two_ends(inputs: Tensor, column: Tensor) -> bool:
    """Return True if the mean inputs of the lowest and the highest targets are farther apart than from the middle.

    Chance alone moves two means apart, by the variance of the inputs: it must be more.
    """
    if len(inputs) != len(column) or not inputs.is_floating_point():
        return False
    rows, order = inputs.flatten(1).double(), column.argsort()
    size = len(order) // 8
    parts = (order[:size], order[(len(order) - size) // 2 :][:size], order[-size:])
    low, middle, high = (rows[part].mean(dim=0) for part in parts)
    apart, *halves = (float((a - b).square().sum()) for a, b in ((low, high), (low, middle), (middle, high)))
    chance = 2 * float(rows.var(dim=0).sum()) / max(1, size)
    return apart > max(_MIN_APART * max(halves), _MIN_SIGNAL * chance)


def _fills(column: Tensor, start: float, half: float) -> bool:
    """Return True for numbers from end to end of a turn, of which some are near both: few normal numbers are."""
    low, high, slack = float(column.min()), float(column.max()), 1e-4 * half
    is_inside = low >= start - slack and high <= start + 2 * half + slack
    is_near = (column < start + _NEAR * half), (column > start + (2 - _NEAR) * half)
    share = min(float(each.double().mean()) for each in is_near)
    return is_inside and low < start + _EDGE * half and high > start + (2 - _EDGE) * half and share > _MIN_NEAR


def judge_quaternions(loss: Loss, outputs: Any, target: Any, targets: Sequence[Any]) -> Iterator[Found]:
    """Rows of four numbers of length 1, of both signs, are rotations of which q and -q are one: the loss is equal.

    `targets` are those of all batches, `outputs` and `target` of one.
    """
    for path, wanted in tree_leaves(target):
        matched = [name for name, output in tree_leaves(outputs) if output.shape == wanted.shape]
        if wanted.ndim != 2 or not wanted.is_floating_point() or len(matched) != 1 or wanted.shape[1] > _MAX_WIDTH:
            continue
        rows = torch.cat([dict(tree_leaves(each))[path] for each in targets]).to(wanted)
        for start in range(wanted.shape[1] - 3):
            share = measure_signs(rows[:, start : start + 4])
            if share < _MIN_AGAINST:
                continue
            negated = wanted.clone()
            negated[:, start : start + 4].neg_()
            values = [
                float(loss(tree_map(outputs, lambda name, own: given if name == matched[0] else own.detach()), target))  # noqa: B023
                for given in (wanted.clone(), negated)
            ]
            if values[1] - values[0] > 1e-2 * (1 + abs(values[0])):
                yield _describe(len(rows), share, *values)
                return


def measure_signs(rows: Tensor) -> float:
    """Return the least share of quaternions on the far side of a plane, of those that are tried; 0 for other rows.

    Quaternions of one sign each, such as w >= 0, lie on one side of a plane. So do rotations up to half a turn.
    """
    is_unit = bool(((rows.norm(dim=1) - 1).abs() < _MAX_ERROR).all())
    if not is_unit or len(torch.unique(rows, dim=0)) < _MIN_QUATERNIONS:
        return 0.0
    normals = [*torch.eye(4).to(rows), normal := rows.sum(dim=0)]
    for _ in range(_NUM_TURNS):  # towards the row that lies farthest on the wrong side
        heights = rows @ normal
        normal = normal + rows[heights.argmin()]
        normals.append(normal)
    heights = rows @ torch.stack(normals).T
    against = torch.minimum((heights < -_MAX_ERROR).float().mean(dim=0), (heights > _MAX_ERROR).float().mean(dim=0))
    return float(against.min())


def _describe(num: int, share: float, before: float, after: float) -> Found:
    return report(
        "loss-form",
        "the targets are unit rows of four, as quaternions, of both signs, and the loss tells q from -q: these are the "
        "same rotation",
        severity="warning",
        causes=("loss.form", "data.target_encoding"),
        measured=f"{num} rows of length 1, at least {share:.0%} of them on the far side of every plane tried; the loss "
        f"of outputs equal to the targets is {before:.3g}, of the same with the other sign {after:.3g}",
        expected="the same loss for q and -q",
        action="take the lesser loss of both signs, or 1 - |<q, t>|; or give all targets one sign (w >= 0)",
    )
