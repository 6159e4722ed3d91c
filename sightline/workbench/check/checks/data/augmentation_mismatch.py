"""Transforms that move some fields of a sample and not others: each is applied to samples, and to painted ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sightline.engine.build import DataSubset
from sightline.workbench.check.checks.data.batches import is_read
from sightline.workbench.check.checks.data.painted_images import judge_boxes, judge_joints, judge_maps
from sightline.workbench.check.checks.data.point_labels import compare_nearest
from sightline.workbench.check.context import Context, check, splits
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import describe_sample
from sightline.workbench.check.core.transform_steps import (
    TransformStep,
    Verdict,
    find_plugin_transforms,
    iter_steps,
)

_MAX_QUICK_S, _MAX_THOROUGH_S = 0.045, 0.5
"""CPU time of this thread for a split, at the start of a training and under `sightline check`; one sample at least.

At the start, it is one sample of evaluated splits, whose transforms rarely draw.
"""


@check(
    "augmentation-mismatch",
    "preflight",
    each=splits,
    action="let the transform take all of these fields, and move them by the same numbers",
)
def augmentation_mismatch(context: Context, part: DataSubset) -> Iterator[Fault]:
    """Normals, labels, boxes and joints follow each change that a transform makes to their points, image or depth.

    Finds: Transforms that move points, an image or depth, not its normals, labels, boxes or joints.

    Every training judges the transforms of plugins, `sightline check` all of them.
    """
    judged = find_plugin_transforms(part, is_thorough=context.is_thorough)
    limit = _MAX_THOROUGH_S if context.is_thorough else _MAX_QUICK_S if part.split == "train" else 0.0
    verdicts: dict[tuple[int, str, str], list[tuple[TransformStep, Verdict]]] = defaultdict(list)
    noise: dict[int, list[Tensor]] = defaultdict(list)
    for step in iter_steps(part, judged, seed=context.config.seed, most_seconds=limit) if judged else ():
        for judge in (_judge_rows, judge_boxes, judge_maps, judge_joints):
            for verdict in judge(step):
                verdicts[step.number, verdict.field, verdict.carrier].append((step, verdict))
        noise[step.number].append(_compute_noise(step))
        if _is_repeated(noise[step.number]):
            text = "adds the same noise to every sample: it draws from a generator with the same seed each time"
            measured = f"correlation {_correlate(*noise[step.number][-2:]):.2f} of the noise of two samples"
            verdict = Verdict("points", "noise", True, measured, "about 0", "data.duplicate_randomness")
            yield _make_fault(part, step, verdict, text, severity="warning")
            noise[step.number] = []
    for (_, field, _), rows in verdicts.items():
        broken = [row for row in rows if row[1].is_broken]
        is_fault = any(verdict.is_proof for _, verdict in broken) or len(broken) > len(rows) / 2 + 1
        if is_fault and is_read(context, field):
            step, verdict = next((row for row in broken if row[1].is_proof), broken[0])
            yield _make_fault(part, step, verdict, f"moves '{verdict.carrier}' and '{verdict.field}' differently")
            return


def _make_fault(part: DataSubset, step: TransformStep, verdict: Verdict, text: str, **fields: Any) -> Fault:
    stage = "train" if part.split == "train" else "evaluate"
    return Fault(
        f"the transform '{step.name}' {text}",
        causes=(verdict.cause, "data.augment_target_mismatch", "data.layout"),
        at=f"transforms.{stage}.{step.number}",
        split=part.split,
        sample=step.key.index,
        measured=f"{verdict.measured}, in {describe_sample(part.dataset, step.key.index)}",
        expected=verdict.expected,
        evidence={"field": verdict.field, "carrier": verdict.carrier, "transform": step.name},
        **fields,
    )


# --- clouds -----------------------------------------------------------------------------------------------------------

_MAX_FIT_ROWS = 4096
_MAX_FIT_ERROR = 0.2  # of the cloud's size: rows stay in place, with noise
_MIN_MATCHED = 0.9
_MAX_STRAY = 0.005
"""Share of labels that no map of classes explains."""
_MIN_TURN_RAD, _MAX_NORMAL_ERROR_RAD = 0.02, 0.5
_MIN_AGREEMENT, _MIN_POINTS = 0.3, 256
_MIN_REPEATED = 0.7
"""Correlation of noise; independent noise of 32 points reaches 0.5 once in a million."""


class _Motion(NamedTuple):
    """Rows `target` of a cloud after a transform that are the rows `source` before it, moved by `matrix` (3, 3)."""

    source: Tensor
    target: Tensor
    matrix: Tensor | None
    error: float
    residual: Tensor | None = None


def _find_motion(first: Tensor, second: Tensor) -> _Motion | None:
    """Find the rows of clouds (N, 3) and (M, 3) that belong together, by an affine map or by equal coordinates."""
    if not bool(first.isfinite().all() and second.isfinite().all()):
        return None
    if len(first) == len(second) >= 8:
        rows = torch.arange(len(first))
        some = rows[:: max(1, len(rows) // _MAX_FIT_ROWS)]
        before, after = first[some].double(), second[some].double()
        before, after = before - before.mean(dim=0), after - after.mean(dim=0)
        matrix = torch.linalg.lstsq(before, after, driver="gelsd").solution
        residual, size = after - before @ matrix, float(after.square().mean().sqrt())
        error = float(residual.square().mean().sqrt()) / size if size > 0 else 1.0
        if error < _MAX_FIT_ERROR:
            spread = torch.linalg.svdvals(before)
            is_flat = float(spread[-1]) < 1e-3 * float(spread[0]) or abs(float(torch.linalg.det(matrix))) < 1e-12
            return _Motion(rows, rows, None if is_flat else matrix, error, residual)
    return _match_coordinates(first, second)


def _match_coordinates(first: Tensor, second: Tensor) -> _Motion | None:
    """Match rows by equal coordinates that no other row has; None if fewer than nine in ten are found."""
    codes = [_encode(points) for points in (first, second)]
    values, source, counts = np.unique(codes[0], return_index=True, return_counts=True)
    places = np.searchsorted(values, codes[1]).clip(max=len(values) - 1)
    is_known = values[places] == codes[1]
    if not len(is_known) or is_known.mean() < _MIN_MATCHED:
        return None
    target = np.flatnonzero(is_known & (counts[places] == 1))
    matched = torch.from_numpy(source[places[target]])
    return _Motion(matched, torch.from_numpy(target), torch.eye(3, dtype=torch.float64), 0.0)


def _encode(points: Tensor) -> np.ndarray:
    """Encode coordinates (N, 3) as one integer each (N,)."""
    bits = np.ascontiguousarray(points.float().numpy()).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        return (bits * np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)).sum(axis=1)


def _judge_rows(step: TransformStep) -> Iterator[Verdict]:
    """Compare normals, labels and other fields of points with the motion of the points."""
    first, second = step.before.get("points"), step.after.get("points")
    if not (_is_cloud(first) and _is_cloud(second)) or step.before is step.after:
        return
    names = [n for n in step.before if n != "points" and _is_of_rows(step.before[n], first)]
    names = [n for n in names if _is_of_rows(step.after.get(n), second) and step.takes & {n, "points"}]
    motion = _find_motion(first[0], second[0]) if names else None
    for name in names if motion is None else ():
        if step.before[name].ndim == 2:
            yield _judge_neighbours(name, first[0], step.before[name][0], second[0], step.after[name][0])
    for name in names if motion is not None else ():
        assert motion is not None
        before, after = step.before[name][0][motion.source], step.after[name][0][motion.target]
        if name == "normals" and before.shape[-1] == 3:
            yield from _judge_normals(before.double(), after.double(), motion)
        elif before.ndim == 1 and not before.is_floating_point():
            is_kept = after != (-1 if step.ignored is None else step.ignored)
            yield _judge_labels(name, before[is_kept], after[is_kept])
        elif before.is_floating_point() and not torch.equal(motion.source, motion.target):
            is_left = torch.equal(step.before[name], step.after[name]) and not torch.equal(before, after)
            yield Verdict(name, "points", is_left, "points have other rows, these values their old ones", "one order")


def _is_cloud(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[-1] == 3 and value.shape[1] > 0


def _is_of_rows(value: Any, points: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim in (2, 3) and value.shape[:2] == points.shape[:2]


def _judge_normals(before: Tensor, after: Tensor, motion: _Motion) -> Iterator[Verdict]:
    """Compare normals with the motion's inverse transpose, up to sign; a transform may estimate them anew."""
    if motion.matrix is None or not len(before):
        return
    expected = before @ torch.linalg.inv(motion.matrix).T
    turn, error = (_measure_angle(expected, other) for other in (before, after))
    tolerance = _MIN_TURN_RAD + 3 * motion.error
    is_broken = (turn > tolerance and error > turn / 2) or error > max(_MAX_NORMAL_ERROR_RAD, 2 * tolerance)
    measured = f"the points' motion turns normals by {turn:.3g} rad, these are {error:.3g} rad off (medians)"
    yield Verdict("normals", "points", is_broken, measured, "the inverse transpose of the points' matrix")


def _measure_angle(first: Tensor, second: Tensor) -> float:
    """Return the median angle in radians between the lines of vectors (N, 3); NaN if one of both is always zero."""
    lengths = first.norm(dim=1) * second.norm(dim=1)
    cosines = ((first * second).sum(dim=1).abs() / lengths)[lengths > 0]
    return float(cosines.clamp(max=1).acos().median()) if len(cosines) else math.nan


def _judge_labels(name: str, before: Tensor, after: Tensor) -> Verdict:
    """Compare labels with the best map of classes; it may send classes to others, not points of one class apart."""
    sources, source = before.long().unique(return_inverse=True)
    targets, target = after.long().unique(return_inverse=True)
    pairs, counts = (source * len(targets) + target).unique(return_counts=True)  # of two rows: ten times as slow
    best = counts.new_zeros(len(sources)).scatter_reduce(0, pairs // max(1, len(targets)), counts, "amax")
    stray = 1 - int(best.sum()) / max(1, len(before))
    measured = f"{stray:.1%} of the points have the value of another point"
    return Verdict(name, "points", stray > _MAX_STRAY, measured, "values that stay with their points")


def _judge_neighbours(name: str, first: Tensor, before: Tensor, second: Tensor, after: Tensor) -> Verdict:
    """Compare how much more often than by chance nearest points have one label, before and after an unknown motion."""
    agreement = [_compute_agreement(*cloud) for cloud in ((first, before), (second, after))]
    is_broken = agreement[0] > _MIN_AGREEMENT and agreement[1] < agreement[0] / 3
    measured = f"nearest points agree in {agreement[0]:.0%} of the cases above chance, then in {agreement[1]:.0%}"
    return Verdict(name, "points", is_broken, measured, "about as often", is_proof=len(second) >= _MIN_POINTS)


def _compute_agreement(points: Tensor, label: Tensor) -> float:
    """Compute how often labels (N,) of points and their nearest ones are equal: 1 always, 0 as often as by chance."""
    equal = float(compare_nearest(points, label, max_distances=2**21).double().mean())
    chance = float((label.unique(return_counts=True)[1].double() / len(label)).square().sum())
    return (equal - chance) / (1 - chance) if chance < 1 else 0.0


def _compute_noise(step: TransformStep) -> Tensor:
    """Compute the noise that a transform adds to points (N, 3); empty if it moves them by an affine map or not."""
    first, second = step.before.get("points"), step.after.get("points")
    if "points" in step.takes and _is_cloud(first) and _is_cloud(second) and len(first[0]) == len(second[0]) >= 32:
        motion = _find_motion(first[0], second[0])
        if motion is not None and motion.residual is not None and motion.error > 1e-4:
            return motion.residual
    return torch.empty(0)


def _is_repeated(noise: list[Tensor]) -> bool:
    return len(noise) > 1 and len(noise[-1]) == len(noise[-2]) > 0 and _correlate(*noise[-2:]) > _MIN_REPEATED


def _correlate(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
