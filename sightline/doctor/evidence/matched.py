"""Outputs in the place of the network's that a target of their shape gives: what the loss makes of its own targets."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.batches import join_leaves
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.losses import value_of
from sightline.doctor.evidence.passes import Slope
from sightline.doctor.subject import Pass, Subject, replace_leaf

_FAR = 1e3
_MIN_ROTATIONS, _NUM_TURNS = 24, 200
_MIN_ANGLES, _EDGE, _NEAR, _MIN_NEAR = 64, 0.03, 0.25, 0.04
_NUM_PLACES, _MIN_HOLES = 8, 0.02


class Matched(NamedTuple):
    """Output and the only target of its shape, numbers both, with the target's path."""

    slope: Slope
    path: str
    target: Tensor


@measure()
def matched(passed: Pass, slopes: list[Slope]) -> list[Matched]:
    """Find the outputs and targets of one shape that belong to one another alone; a target that is an input is none."""
    inputs = _list_read(passed)
    targets = [
        (path, t)
        for path, t in dense_leaves(passed.batch.target)
        if t.is_floating_point() and not any(t.shape == own.shape and torch.equal(t, own) for own in inputs)
    ]
    found = []
    for slope in slopes:
        fitting = [(path, t) for path, t in targets if t.shape == slope.output.shape]
        if len(fitting) == 1 and sum(other.output.shape == slope.output.shape for other in slopes) == 1:
            found.append(Matched(slope, *fitting[0]))
    if not found:
        raise NotApplicableError("no target of numbers")
    return found


def _list_read(passed: Pass) -> list[Tensor]:
    """List the inputs that outputs depend on; those without a gradient may be read, too."""
    moving = [tensor.sum() for _, tensor in dense_leaves(passed.outputs) if tensor.requires_grad]
    leaves = [tensor for _, tensor in dense_leaves(passed.inputs)]
    wanted = [tensor for tensor in leaves if tensor.requires_grad]
    found = torch.autograd.grad(moving, wanted, retain_graph=True, allow_unused=True) if moving and wanted else ()
    unread = {id(tensor) for tensor, gradient in zip(wanted, found, strict=True) if gradient is None}
    return [tensor for tensor in leaves if id(tensor) not in unread]


def _value_at(subject: Subject, passed: Pass, item: Matched, outputs: Tensor, target: Tensor | None = None) -> float:
    given = None if target is None else replace_leaf(passed.batch.target, item.path, target)
    with torch.no_grad():
        return float(value_of(subject, passed, {item.slope.path: outputs.to(item.slope.output)}, given))


class Apart(NamedTuple):
    """Loss of boxes (..., 4) or (..., 6) that are their targets, or lie 1.3 sizes beside, along one axis or two."""

    path: str
    at_target: float
    along_one: float
    along_two: float


@measure(passes=1)
def apart(subject: Subject, passed: Pass, matched: list[Matched]) -> list[Apart]:
    """Move boxes away from their targets: those that do not meet are no better for lying apart along a second axis."""
    found = []
    for item in matched:
        target, half = item.target, item.target.shape[-1] // 2 if item.target.ndim > 1 else 0
        if half not in (2, 3) or target.shape[-1] % 2 or not bool((target[..., half:] > target[..., :half]).all()):
            continue
        steps = 1.3 * (target[..., half:] - target[..., :half])
        values = []
        for num in (0, 1, 2):
            step = torch.cat((steps[..., :num], torch.zeros_like(steps[..., num:])), -1)
            values.append(_value_at(subject, passed, item, target + torch.cat((step, step), -1)))
        found.append(Apart(item.slope.path, *values))
    if not found:
        raise NotApplicableError("no boxes as targets")
    return found


class Overlap(NamedTuple):
    """Loss of outputs that are a mask of 0 and 1, of ten times the mask, and of zeros; `is_share`: outputs are, too."""

    path: str
    at_mask: float
    at_tenfold: float
    at_zero: float
    is_share: bool


@measure(passes=1)
def overlaps(subject: Subject, passed: Pass, matched: list[Matched]) -> list[Overlap]:
    """Put a target of 0 and 1 in the place of the outputs, and ten times as much."""
    found = []
    for item in matched:
        if {*item.target.unique().tolist()} != {0.0, 1.0}:
            continue
        mask, tenfold, zero = (_value_at(subject, passed, item, item.target * factor) for factor in (1, 10, 0))
        output = item.slope.output
        is_share = bool(((output >= 0) & (output <= 1)).all())
        found.append(Overlap(item.slope.path, mask, tenfold, zero, is_share))
    if not found:
        raise NotApplicableError("no masks as targets")
    return found


class SameThing(NamedTuple):
    """Loss of targets, and of other numbers that mean the same: `words` say which."""

    path: str
    words: str
    own: float
    other: float


@measure(passes=1)
def whole_turns(subject: Subject, passed: Pass) -> list[SameThing]:
    """Add a whole turn to columns of a target that fill one: numbers of angles, whatever the loss makes of them."""
    found = []
    for path, target in dense_leaves(passed.batch.target):
        rows = subject.join_targets(path)
        if not target.is_floating_point() or target.ndim > 2 or rows is None or len(rows) < _MIN_ANGLES:
            continue
        columns = rows.reshape(len(rows), -1)
        if columns.shape[1] == 2 and float(columns.min()) >= 0 and float(columns.max()) > 2 * math.pi + _EDGE:
            continue  # a place in pixels: images are 360 high, too
        for index, column in enumerate(columns.T):
            halves = [h for h in (math.pi, 180.0) if any(_fills(column, start, h) for start in (-h, 0.0))]
            if not halves or _has_two_ends(subject, column):
                continue
            turned = target.clone()
            turned.reshape(len(target), -1)[:, index] += 2 * halves[0]
            targets = passed.batch.target, replace_leaf(passed.batch.target, path, turned)
            with torch.no_grad():
                values = [float(value_of(subject, passed, {}, each)) for each in targets]
            found.append(SameThing(path, f"{float(column.min()):.4g} .. {float(column.max()):.4g}", *values))
    if not found:
        raise NotApplicableError("no angles as targets")
    return found


def _fills(column: Tensor, start: float, half: float) -> bool:
    """Return True for numbers from end to end of a turn, of which some are near both: few normal numbers are."""
    low, high, slack = float(column.min()), float(column.max()), 1e-4 * half
    is_inside = low >= start - slack and high <= start + 2 * half + slack
    is_near = (column < start + _NEAR * half), (column > start + (2 - _NEAR) * half)
    share = min(float(each.double().mean()) for each in is_near)
    return is_inside and low < start + _EDGE * half and high > start + (2 - _EDGE) * half and share > _MIN_NEAR


def _has_two_ends(subject: Subject, column: Tensor) -> bool:
    """Return True if inputs of the lowest and highest numbers lie farther apart than either from those of the middle.

    Those of angles of -180 and 180 degrees do not. Chance alone moves two means apart, by the variance of the inputs.
    """
    paths = [path for path, _ in dense_leaves(subject.batches[0].inputs)]
    rows = join_leaves([batch.inputs for batch in subject.batches], paths[0]) if len(paths) == 1 else None
    if rows is None or not rows.is_floating_point() or len(rows) != len(column):
        return False
    rows = rows.flatten(1).double()
    order, size = column.argsort(), len(column) // 8
    parts = (order[:size], order[(len(order) - size) // 2 :][:size], order[-size:])
    low, middle, high = (rows[part].mean(dim=0) for part in parts)
    apart, *halves = (float((a - b).square().sum()) for a, b in ((low, high), (low, middle), (middle, high)))
    chance = 2 * float(rows.var(dim=0).sum()) / max(1, size)
    return apart > max(2 * max(halves), 4 * chance)


@measure(passes=1)
def signs(subject: Subject, passed: Pass, matched: list[Matched]) -> list[SameThing]:
    """Give outputs equal to targets of unit quaternions the other sign: q and -q are one rotation."""
    found = []
    for item in matched:
        rows = subject.join_targets(item.path)
        if rows is None or rows.ndim != 2 or rows.shape[1] > 8:
            continue
        for start in range(rows.shape[1] - 3):
            share = measure_signs(rows[:, start : start + 4])
            if share >= 0.1:
                negated = item.target.clone()
                negated[:, start : start + 4].neg_()
                values = [_value_at(subject, passed, item, outputs) for outputs in (item.target, negated)]
                found.append(SameThing(item.slope.path, f"{share:.0%}", *values))
    if not found:
        raise NotApplicableError("no rotations of both signs as targets")
    return found


def measure_signs(rows: Tensor) -> float:
    """Measure the least share of unit rows of four on the far side of a plane, of those tried; 0 for other rows.

    Quaternions of one sign each, such as w >= 0, lie on one side of a plane. So do rotations up to half a turn.
    """
    is_unit = bool(((rows.norm(dim=1) - 1).abs() < 1e-3).all())
    if not is_unit or len(torch.unique(rows, dim=0)) < _MIN_ROTATIONS:
        return 0.0
    normals = [*torch.eye(4).to(rows), normal := rows.sum(dim=0)]
    for _ in range(_NUM_TURNS):  # towards the row that lies farthest on the wrong side
        normal = normal + rows[(rows @ normal).argmin()]
        normals.append(normal)
    heights = rows @ torch.stack(normals).T
    against = torch.minimum((heights < -1e-3).float().mean(dim=0), (heights > 1e-3).float().mean(dim=0))
    return float(against.min())


class Holes(NamedTuple):
    """Zeros of a target whose outputs have a gradient: how far the loss moves as one of them does, and another number.

    `step` is the move, 1 % of the least of the others; `num` counts the zeros.
    """

    path: str
    num: int
    step: float
    at_holes: float
    elsewhere: float


@measure(passes=3)
def holes(subject: Subject, passed: Pass, matched: list[Matched]) -> list[Holes]:
    """Move single numbers of a target that are 0, where all others are far from it, and single others, by one step."""
    found = []
    for item in matched:
        target, is_counted = item.target.flatten(), item.slope.gradient.flatten() != 0
        is_hole = target == 0
        others = target[~is_hole]
        if not bool((others > 0).all()) or not _MIN_HOLES < float(is_hole.double().mean()) < 1:
            continue
        if _are_shares(item.target):
            continue
        step = 0.01 * float(others.min())
        if float(others.min()) < 0.05 * float(others.median()):
            continue
        own = _value_at(subject, passed, item, item.slope.output)
        means = []
        for mask in (is_hole & is_counted, ~is_hole & is_counted):
            moves = [
                abs(_value_at(subject, passed, item, item.slope.output, _move(item.target, place, step)) - own)
                for place in mask.nonzero()[:_NUM_PLACES, 0].tolist()
            ]
            means.append(sum(moves) / max(1, len(moves)))
        found.append(Holes(item.slope.path, int((is_hole & is_counted).sum()), step, *means))
    if not found:
        raise NotApplicableError("no holes in a target")
    return found


def _are_shares(target: Tensor) -> bool:
    """Return True for rows that sum to 1: shares of classes, of which a 0 is a number as any other."""
    return target.ndim > 1 and bool(((target.sum(-1) - 1).abs() < 1e-3).all())


def _move(target: Tensor, place: int, step: float) -> Tensor:
    moved = target.clone(memory_format=torch.contiguous_format)
    moved.view(-1)[place] += step
    return moved


class Peaks(NamedTuple):
    """Highest places of target maps, and how many of them the loss pushes up, from far below."""

    path: str
    num: int
    pushed: int


@measure(passes=1)
def peaks(subject: Subject, passed: Pass, matched: list[Matched]) -> list[Peaks]:
    """Lower the outputs at the highest places of maps of numbers between 0 and 1."""
    found = []
    for item in matched:
        target, output = item.target, item.slope.output
        if target.ndim < 3 or not bool(((target >= 0) & (target <= 1)).all()) or len(target.unique()) < 3:
            continue
        is_peak = (target >= target.amax((-2, -1), keepdim=True)) & (target > 0.6)
        is_share = bool(((output >= 0) & (output <= 1)).all())
        lowered = torch.where(is_peak, output * 1e-4 if is_share else output - 4, output).requires_grad_()
        value = value_of(subject, passed, {item.slope.path: lowered})
        (gradient,) = torch.autograd.grad(value, [lowered])
        found.append(Peaks(item.slope.path, int(is_peak.sum()), int((gradient[is_peak] < 0).sum())))
    if not found:
        raise NotApplicableError("no heat maps as targets")
    return found


@measure()
def empty_boxes(matched: list[Matched]) -> list[tuple[str, int, int]]:
    """Boxes of four zeros where most targets are such: how many, and at how many of them the loss has a gradient."""
    found = []
    for slope, _, target in matched:
        is_empty = (target == 0).all(dim=-1) if target.ndim == 3 and target.shape[-1] == 4 else target.new_zeros(0)
        if 0.5 < float(is_empty.double().mean()) < 1 and bool((target[~is_empty.bool()][:, 2:] > 0).all()):
            found.append((slope.path, int(is_empty.sum()), int((slope.gradient[is_empty] != 0).any(-1).sum())))
    if not found:
        raise NotApplicableError("no boxes as targets")
    return found


class Sides(NamedTuple):
    """Losses of sets of points: the network's, the target's, one of its points alone, one or all points far away."""

    path: str
    own: float
    perfect: float
    one_point: float
    one_away: float
    all_away: float
    size: int


@measure(passes=3)
def sides(subject: Subject, passed: Pass, slopes: list[Slope]) -> list[Sides]:
    """Put the target's points in place of a set of points whose order the loss does not ask for."""
    found = []
    for slope in slopes:
        for _, target in dense_leaves(passed.batch.target):
            output = slope.output
            is_set = output.ndim == target.ndim == 3 and output.shape[::2] == target.shape[::2]
            if not is_set or output.shape[-1] > 3 or not target.is_floating_point() or output.shape[1] < 8:
                continue
            size = output.shape[1]
            perfect = target[:, torch.arange(size) % target.shape[1]].to(output)
            away = torch.zeros_like(perfect)
            away[:, 0] = _FAR * float(target.std())
            forms = (output, output.roll(1, 1), perfect, perfect[:, :1].expand_as(perfect), perfect + away)
            with torch.no_grad():
                own, turned, exact, one_point, one_away, all_away = (
                    float(value_of(subject, passed, {slope.path: each})) for each in (*forms, perfect + away[:, :1])
                )
            if math.isclose(own, turned, rel_tol=1e-4):
                found.append(Sides(slope.path, own, exact, one_point, one_away, all_away, size))
    if not found:
        raise NotApplicableError("no sets of points as targets")
    return found
