"""Transforms that move some fields of a sample and not others: each is applied to samples, and to painted ones.

A painted sample has a known content, such as a white box on black: where the transform moves it is where its target
has to be.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.compute.numba_kernels import compute_seconds
from sightline.contract.members import TransformMembers
from sightline.contract.types import Batch, SampleKey
from sightline.engine.build import DataSubset
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.context import Context, check, splits
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.sample_statistics import describe_sample

_MAX_SAMPLES = 16
_MAX_QUICK_S, _MAX_THOROUGH_S = 0.04, 1.0
"""CPU time of this thread for a split, at the start of a training and under `sightline check`; one sample at least."""
_MISMATCH, _NORMALISATION, _REPEATED = (
    "data.augment_target_mismatch",
    "data.normalisation",
    "data.duplicate_randomness",
)


class Step(NamedTuple):
    """One transform applied to one sample: the batches of one before and after it, and the fields that it takes.

    `apply` applies it to another batch, with the same random numbers.
    """

    index: int
    name: str
    key: SampleKey
    before: Batch
    after: Batch
    takes: frozenset[str]
    apply: Callable[[Batch], Batch]


class Verdict(NamedTuple):
    """Comparison of a field with the one that carries it; `is_proof` if one broken sample proves a fault."""

    field: str
    carrier: str
    is_broken: bool
    measured: str
    expected: str
    cause: str = _MISMATCH
    is_proof: bool = True


@check(
    "G2",
    "augmentation-mismatch",
    "preflight",
    each=splits,
    action="let the transform take all of these fields, and move them by the same numbers",
)
def augmentation_mismatch(context: Context, part: DataSubset) -> Iterator[Fault]:
    """What a transform does to points, images or depth, it does to their normals, labels, boxes and joints.

    Finds: Transforms that move points, an image or depth, but not the normals, labels, boxes or joints that belong to it.

    Every training judges the transforms of plugins, `sightline check` all of them.
    """
    judged, read = find_plugin_transforms(part, is_thorough=context.is_thorough), _list_read_fields(context)
    verdicts: dict[tuple[int, str, str], list[tuple[Step, Verdict]]] = defaultdict(list)
    noise: dict[int, list[Tensor]] = defaultdict(list)
    for step in _iter_steps(part, judged, context) if judged else ():
        for judge in (_judge_rows, _judge_boxes, _judge_maps, _judge_joints):
            for verdict in judge(step):
                if read is None or verdict.field in read:
                    verdicts[step.index, verdict.field, verdict.carrier].append((step, verdict))
        noise[step.index].append(_compute_noise(step))
        if _is_repeated(noise[step.index]):
            text = "adds the same noise to every sample: it draws from a generator with the same seed each time"
            measured = f"correlation {_correlate(*noise[step.index][-2:]):.2f} of the noise of two samples"
            verdict = Verdict("points", "noise", True, measured, "about 0", _REPEATED)
            yield _make_fault(part, step, verdict, text, severity="warning")
            noise[step.index] = []
    for rows in verdicts.values():
        broken = [row for row in rows if row[1].is_broken]
        if any(verdict.is_proof for _, verdict in broken) or len(broken) > len(rows) / 2 + 1:
            step, verdict = next((row for row in broken if row[1].is_proof), broken[0])
            yield _make_fault(part, step, verdict, f"moves '{verdict.carrier}' and '{verdict.field}' differently")
            return


def is_plugin(component: object) -> bool:
    """Return True for a component that is not of this package."""
    return not type(component).__module__.startswith("sightline.")


def find_plugin_transforms(part: DataSubset, *, is_thorough: bool = False) -> set[int]:
    """Return the indices of a split's transforms that are not of this package; of all if `is_thorough`."""
    functions = part.reader.transforms.functions
    return {index for index, bound in enumerate(functions) if is_thorough or is_plugin(bound.function.__self__)}


def _list_read_fields(context: Context) -> set[str] | None:
    """List the fields that the first step, metrics and transforms read; None if the step did not succeed."""
    dry_run, data = context.dry_run, context.built.data
    if not dry_run.is_sound:
        return None
    read = dry_run.batch_reads | {
        name for meter in context.built.selection_evaluator.metrics for name in meter.update.names
    }
    read |= set(data.train.dataset.info.features) if "features" in read else set()
    # a transform that takes a field only to move it does not use it: those which add fields make targets of them
    adding = [
        bound for bound in data.train.reader.transforms.functions if TransformMembers.adds.get(bound.function.__self__)
    ]
    return read | {name for bound in adding for name in bound.names}


def _make_fault(part: DataSubset, step: Step, verdict: Verdict, text: str, **fields: Any) -> Fault:
    stage = "train" if part.split == "train" else "evaluate"
    return Fault(
        f"the transform '{step.name}' {text}",
        causes=(verdict.cause, _MISMATCH, "data.layout"),
        at=f"transforms.{stage}.{step.index}",
        split=part.split,
        sample=step.key.index,
        measured=f"{verdict.measured}, in {describe_sample(part.dataset, step.key.index)}",
        expected=verdict.expected,
        evidence={"field": verdict.field, "carrier": verdict.carrier, "transform": step.name},
        **fields,
    )


def _iter_steps(part: DataSubset, judged: set[int], context: Context) -> Iterator[Step]:
    """Yield the steps of up to 16 samples; errors of reading are reported by `first-step`."""
    limit, started = _MAX_THOROUGH_S if context.is_thorough else _MAX_QUICK_S, compute_seconds()
    for index in part.evenly_spaced_indices(_MAX_SAMPLES):
        key = SampleKey(int(index), 0, context.config.seed)
        try:
            stages = list(itertools.islice(part.reader.batch_stages(key), max(judged) + 2))
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            return
        for number in sorted(judged):
            yield _make_step(part.reader, number, key, stages[number][1], stages[number + 1])
        if compute_seconds() - started > limit:
            return


def _make_step(reader: BatchReader, index: int, key: SampleKey, before: Batch, after: tuple[str, Batch]) -> Step:
    def apply(batch: Batch) -> Batch:
        return reader.transforms.apply_one(index, batch, [key])

    return Step(index, after[0], key, before, after[1], frozenset(reader.transforms.functions[index].names), apply)


# --- clouds -----------------------------------------------------------------------------------------------------------

_MAX_FIT_ROWS = 4096
_MAX_FIT_ERROR = 0.2  # of the cloud's size: rows stay in place, with noise
_MIN_MATCHED = 0.9
_MAX_STRAY = 0.005
"""Share of labels that no map of classes explains."""
_MIN_TURN_RAD, _MAX_NORMAL_ERROR_RAD = 0.02, 0.5
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


def _judge_rows(step: Step) -> Iterator[Verdict]:
    """Compare normals, labels and other fields of points with the motion of the points."""
    first, second = step.before.get("points"), step.after.get("points")
    if not (_is_cloud(first) and _is_cloud(second)) or step.before is step.after:
        return
    names = [n for n in step.before if n != "points" and _is_of_rows(step.before[n], first)]
    names = [n for n in names if _is_of_rows(step.after.get(n), second) and step.takes & {n, "points"}]
    motion = _find_motion(first[0], second[0]) if names else None
    for name in names if motion is not None else ():
        before, after = step.before[name][0][motion.source], step.after[name][0][motion.target]
        if name == "normals" and before.shape[-1] == 3:
            yield from _judge_normals(before.double(), after.double(), motion)
        elif before.ndim == 1 and not before.is_floating_point():
            yield _judge_labels(name, before, after)
        elif before.is_floating_point() and not torch.equal(motion.source, motion.target):
            is_left = torch.equal(step.before[name], step.after[name]) and not torch.equal(before, after)
            yield Verdict(name, "points", is_left, "points have other rows, these values their old ones", "one order")


def _is_cloud(value: Any) -> bool:
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
    pairs, counts = torch.stack([before.long(), after.long()]).unique(dim=1, return_counts=True)
    best: dict[int, int] = defaultdict(int)
    for source, count in zip(pairs[0].tolist(), counts.tolist(), strict=True):
        best[source] = max(best[source], count)
    stray = 1 - sum(best.values()) / max(1, len(before))
    measured = f"{stray:.1%} of the points have the value of another point"
    return Verdict(name, "points", stray > _MAX_STRAY, measured, "values that stay with their points")


def _compute_noise(step: Step) -> Tensor:
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


# --- images -----------------------------------------------------------------------------------------------------------

_MIN_SIDE_PX, _MAX_SIDE_SHARE = 8, 0.6
_TOLERANCE_PX, _TOLERANCE_SHARE = 2.0, 0.1  # rounding and interpolation, and a share of the box's longer side
_BLOCK_PX, _NUM_CODES = 4, 4
_MIN_EXPLAINED = 0.3
"""Share of a painted image's variance that its labels explain: 1 for labels in place, 0 for others."""


def _judge_boxes(step: Step) -> Iterator[Verdict]:
    """Paint boxes white on black, one at a time, and compare where they go with the transform's own boxes."""
    image, boxes = step.before.get("image"), step.before.get("boxes")
    if not (_is_image(image) and isinstance(boxes, Tensor) and boxes.shape[1:] and boxes.shape[2:] == (4,)):
        return
    if not step.takes & {"image", "boxes"} or "boxes" not in step.after:
        return
    for row in _choose_boxes(boxes[0].double(), _get_size(image)):
        painted = _paint(image, boxes[0, row])
        try:
            result = step.apply({**step.before, "image": painted})
        except Exception:  # noqa: BLE001 - a transform may refuse a painted image
            return
        drawn, moved = _find_bright_box(result["image"]), result["boxes"][0].double()
        if drawn is None or not len(moved):
            continue
        is_same = len(moved) == boxes.shape[1]
        height, width = _get_size(result["image"])
        clipped = torch.minimum(moved.clamp(min=0), torch.tensor([width, height] * 2, dtype=torch.float64))
        distances = (clipped - drawn).abs().amax(dim=1)
        box = clipped[row] if is_same else clipped[distances.argmin()]
        tolerance = _TOLERANCE_PX + _TOLERANCE_SHARE * float((drawn[2:] - drawn[:2]).max())
        outside = float(torch.cat([box[:2] - drawn[:2], drawn[2:] - box[2:]]).max())
        off = float((box - drawn).abs().max())
        measured = f"a box painted into the image goes to {_format(drawn)}, 'boxes' has {_format(box)}"
        is_proof = is_same and outside > tolerance  # a transform that erases pixels leaves a smaller one
        yield Verdict("boxes", "image", off > tolerance, measured, "the same place up to rounding", is_proof=is_proof)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and min(value.shape[1:]) > 0


def _is_channels_last(image: Tensor) -> bool:
    return image.shape[-1] in (1, 3) and image.shape[1] not in (1, 3)


def _get_size(image: Tensor) -> tuple[int, int]:
    height, width = image.shape[1:3] if _is_channels_last(image) else image.shape[2:]
    return int(height), int(width)


def _choose_boxes(boxes: Tensor, size: tuple[int, int]) -> list[int]:
    """Choose up to two boxes (G, 4) within an image: those farthest from its middle, where a flip would be seen."""
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64)
    sides, middles = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    is_usable = (sides >= _MIN_SIDE_PX).all(dim=1) & (sides <= _MAX_SIDE_SHARE * limit).all(dim=1)
    is_usable &= (boxes[:, :2] >= 0).all(dim=1) & (boxes[:, 2:] <= limit).all(dim=1)
    distance = torch.where(is_usable[:, None], (middles / limit - 0.5).abs(), -1.0)
    return sorted({int(distance[:, axis].argmax()) for axis in (0, 1)} if bool(is_usable.any()) else ())


def _paint(image: Tensor, box: Tensor) -> Tensor:
    """Paint a box with the largest value of an image, everything else with the smallest."""
    painted = torch.full_like(image, image.min().item())
    left, top, right, bottom = (int(value) for value in box.double().round().tolist())
    area = painted[:, top:bottom, left:right] if _is_channels_last(image) else painted[:, :, top:bottom, left:right]
    area.fill_(image.max().item() if float(image.max()) > float(image.min()) else 1)
    return painted


def _find_bright_box(image: Tensor) -> Tensor | None:
    """Find the box (4,) of the pixels that are brighter than three fifths of the range; None if there are none."""
    grey = image[0].double().mean(dim=-1 if _is_channels_last(image) else 0)
    low, high = float(grey.min()), float(grey.max())
    if not high > low:
        return None
    rows, columns = (grey > low + 0.6 * (high - low)).nonzero(as_tuple=True)
    ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.stack(ends).double()


def _format(box: Tensor) -> str:
    return "[" + ", ".join(f"{value:.0f}" for value in box.tolist()) + "]"


def _judge_maps(step: Step) -> Iterator[Verdict]:
    """Paint blocks of random classes into an image and into the maps of its pixels, and compare them afterwards."""
    image = step.before.get("image")
    if not _is_image(image):
        return
    size = _get_size(image)
    names = [name for name in ("label", "range_image", "mask", "depth") if _is_map(step.before.get(name), size)]
    if not names or not step.takes & {"image", *names} or min(size) < 2 * _BLOCK_PX:
        return
    code = _draw_blocks(size)
    painted = {name: _paint_map(step.before[name][0], code)[None] for name in names}
    share = code.double() / (_NUM_CODES - 1)
    colours = (float(image.min()) + share * max(1.0, float(image.max()) - float(image.min()))).to(image.dtype)
    painted["image"] = (colours[None, :, :, None] if _is_channels_last(image) else colours[None, None]).expand_as(image)
    try:
        result = step.apply({**step.before, **{name: value.clone() for name, value in painted.items()}})
    except Exception:  # noqa: BLE001 - a transform may refuse painted labels
        return
    drawn = result["image"][0].double().mean(dim=-1 if _is_channels_last(result["image"]) else 0)
    for name in names:
        value = result.get(name)
        if _is_map(value, tuple(drawn.shape)) and len(painted[name].unique()) > 1:
            explained = _compute_explained(drawn.flatten(), value.flatten())
            measured = f"a pattern painted into both: '{name}' explains {explained:.0%} of the image's variance"
            yield Verdict(name, "image", explained < _MIN_EXPLAINED, measured, "all of it, up to noise")


def _is_map(value: Any, size: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and tuple(value.shape[1:]) == size


def _draw_blocks(size: tuple[int, int]) -> Tensor:
    """Draw a class for each block of pixels: (H, W) int64, always the same ones."""
    counts = [-(-side // _BLOCK_PX) for side in size]
    blocks = torch.randint(_NUM_CODES, counts, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(_BLOCK_PX, 0).repeat_interleave(_BLOCK_PX, 1)[: size[0], : size[1]]


def _paint_map(value: Tensor, code: Tensor) -> Tensor:
    """Paint classes with values that the map (H, W) has, so that a transform knows them."""
    known = value.unique()
    known = known[known >= 0] if bool((known >= 0).any()) else known
    chosen = known[torch.linspace(0, len(known) - 1, min(_NUM_CODES, len(known))).long()]
    return chosen[code % len(chosen)]


def _compute_explained(values: Tensor, groups: Tensor) -> float:
    """Compute the share of the variance of values (N,) between their groups: the correlation ratio; 1 without any."""
    _, group = groups.unique(return_inverse=True)
    counts = group.bincount().double()
    means = torch.zeros_like(counts).index_add(0, group, values) / counts
    total = float(values.var(correction=0))
    return float((counts * (means - values.mean()) ** 2).sum() / len(values)) / total if total > 0 else 1.0


# --- depth ------------------------------------------------------------------------------------------------------------

_MARK_PX = 2
_TOLERANCE_DEPTH, _TOLERANCE_MARK_PX = 0.02, 3.0
_UNITS = (1000.0, 0.001)


def _judge_joints(step: Step) -> Iterator[Verdict]:
    """Paint a joint into an empty depth image, and compare where it goes with the transform's own joints."""
    depth, joints, camera = (step.before.get(name) for name in ("depth", "joints", "camera"))
    if not (isinstance(depth, Tensor) and isinstance(joints, Tensor) and isinstance(camera, Tensor)):
        return
    if depth.ndim != 3 or joints.shape[2:] != (3,) or not step.takes & {"depth", "joints", "camera"}:
        return
    position, intrinsics = joints[0].double(), camera[0].double()
    row = _choose_joint(position, intrinsics, depth.shape[1:])
    if row is None:
        return
    u, v = (int(value) for value in _project(position[row], intrinsics).round().tolist())
    painted = torch.zeros_like(depth)
    painted[:, v - _MARK_PX : v + _MARK_PX + 1, u - _MARK_PX : u + _MARK_PX + 1] = float(position[row, 2])
    try:
        result = step.apply({**step.before, "depth": painted})
    except Exception:  # noqa: BLE001 - a transform may refuse a painted image
        return
    mark = result["depth"][0]
    if mark.ndim != 2 or not bool((mark > 0).any()) or result["joints"].shape != joints.shape:
        return
    rows, columns = (mark > 0).nonzero(as_tuple=True)
    z, (fx, fy, u0, v0) = float(mark[rows, columns].median()), result["camera"][0].double().tolist()
    means = [float(axis.double().mean()) for axis in (columns, rows)]
    drawn = torch.tensor([(means[0] - u0) * z / fx, (means[1] - v0) * z / fy, z], dtype=torch.float64)
    joint = result["joints"][0, row].double()
    off = float((drawn - joint).norm())
    unit = next((unit for unit in _UNITS if abs(z / float(joint[2]) / unit - 1) < 0.1), None) if joint[2] else None
    is_broken = off > _TOLERANCE_DEPTH * abs(z) + _TOLERANCE_MARK_PX * abs(z / fx)
    measured = f"a joint painted into the depth image goes to {_format(drawn)} mm, 'joints' has {_format(joint)} mm"
    is_exchanged = any((drawn[list(order)] - joint).norm() < off / 10 for order in permutations((0, 1, 2)))
    cause = _NORMALISATION if unit is not None else "data.layout" if is_exchanged else _MISMATCH
    yield Verdict("joints", "depth", is_broken, measured, "the same place up to a pixel", cause)


def _project(position: Tensor, intrinsics: Tensor) -> Tensor:
    """Project a point (3,) to column and row, by fx, fy, u0, v0."""
    return position[:2] * intrinsics[:2] / position[2] + intrinsics[2:]


def _choose_joint(position: Tensor, intrinsics: Tensor, size: torch.Size) -> int | None:
    """Choose the joint (J, 3) in the image whose column is farthest from its middle; None if none is in it."""
    places = torch.stack([_project(joint, intrinsics) for joint in position])
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64) - 1 - 2 * _MARK_PX
    is_inside = (places > 2 * _MARK_PX).all(dim=1) & (places < limit).all(dim=1) & (position[:, 2] > 0)
    distance = torch.where(is_inside, (places[:, 0] - size[1] / 2).abs(), -1.0)
    return int(distance.argmax()) if bool(is_inside.any()) else None
