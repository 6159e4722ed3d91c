"""Joints that are not on the figure in their depth image, and reference points that are not near their joints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sightline.contract.types import Sample, SampleKey
from sightline.doctor.finding import Severity
from sightline.engine.build import DataSubset
from sightline.workbench.check.checks.data.misplaced_targets import parts_with
from sightline.workbench.check.context import Context, check
from sightline.workbench.check.core.finding import Fault, Hypothesis, explain
from sightline.workbench.check.core.sample_statistics import describe_sample, read_samples
from sightline.workbench.check.core.transform_steps import find_plugin_transforms

_NEEDED = frozenset({"depth", "joints", "visible", "camera", "reference"})
_NUM_SAMPLES, _MIN_SAMPLES = 8, 4
_WINDOW = tuple(itertools.product((-2, 0, 2), repeat=2))
"""Pixels about a joint's own in which its surface is looked for: fingers are narrow."""
_MAX_BEFORE, _MAX_BEHIND, _CAP = 0.03, 0.12, 0.15
"""Shares of the cube: depths before and behind the surface at which a joint may lie, and beyond them the worst cost."""
_MAX_COST = 0.2
"""Mean cost of joints in place; up to 0.05 for hands and bodies made here."""
_MAX_UNEXPLAINED, _MAX_RATIO = 0.5, 0.5
_MAX_IN_PLACE = 0.1
"""Cost up to which joints count as in place: of several causes that bring them there, the first is the likeliest."""
_MIN_INSIDE = 0.5
_STEPS = tuple(step / 10 for step in range(-5, 6))  # of the cube


class _Frames(NamedTuple):
    """Depth images (B, H, W), joints (B, J, 3) and their mask, cameras (B, 4) and reference points (B, 3), in mm."""

    depth: Tensor
    joints: Tensor
    visible: Tensor
    camera: Tensor
    reference: Tensor
    cube_mm: float

    def compute_costs(self) -> Tensor:
        """Compute the mean cost (B,) of visible joints: 0 on or a little behind a measured surface, 1 away from it."""
        z = self.joints[..., 2]
        places = self.joints[..., :2] * self.camera[:, None, :2] / z[..., None] + self.camera[:, None, 2:]
        places = places.nan_to_num(-1e6, -1e6, -1e6).round().clamp(-1e6, 1e6).long()
        best = torch.ones_like(z)
        rows = torch.arange(len(z))[:, None]
        for shift in _WINDOW:
            column, row = places[..., 0] + shift[0], places[..., 1] + shift[1]
            is_inside = (column >= 0) & (column < self.depth.shape[2]) & (row >= 0) & (row < self.depth.shape[1])
            column, row = column.clamp(0, self.depth.shape[2] - 1), row.clamp(0, self.depth.shape[1] - 1)
            surface = self.depth[rows, row, column]
            behind = (z - surface) / self.cube_mm
            beyond = torch.maximum(behind - _MAX_BEHIND, -behind - _MAX_BEFORE).clamp(min=0) / _CAP
            best = torch.where(is_inside & (surface > 0), torch.minimum(best, beyond), best)
        weight = self.visible.double()
        return (best * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def compute_inside(self) -> float:
        """Compute the share of visible joints in the cube about the reference point."""
        offsets = (self.joints - self.reference[:, None]).abs().amax(dim=-1)
        return float((offsets <= self.cube_mm / 2)[self.visible].double().mean()) if bool(self.visible.any()) else 1.0


@check("misplaced-joints", "preflight", config_path="data")
def misplaced_joints(context: Context) -> Iterator[Fault]:
    """Joints lie on the figure of their depth image, and most of them in the cube about their reference point.

    Finds: Joints, depth or reference points in another unit, order of axes or place than the others.
    """
    faults = (fault for part in parts_with(context, _NEEDED) for fault in _judge_part(context, part))
    yield from itertools.islice(faults, 1)


def _judge_part(context: Context, part: DataSubset) -> Iterator[Fault]:
    keys = [SampleKey(int(index), 0, context.config.seed) for index in part.evenly_spaced_indices(_NUM_SAMPLES)]
    last = max(find_plugin_transforms(part, is_thorough=context.is_thorough), default=-1)
    stage = "train" if part.split == "train" else "evaluate"
    for at in ("data", f"transforms.{stage}"):
        if at != "data" and last < 0:
            return
        try:
            samples = (
                read_samples(part.dataset, keys) if at == "data" else [_transform(part, key, last) for key in keys]
            )
            frames = _stack(samples, part.dataset.info.facts["cube_mm"])
        except Exception:  # noqa: BLE001 - a data set may fail in any way; `first-step` reports it
            return
        fault = _judge_joints(frames, is_thorough=context.is_thorough) or _judge_reference(frames)
        if fault is not None:
            yield replace(
                fault,
                causes=(*fault.causes, "data.centre", "data.layout", "data.normalisation"),
                at=at,
                split=part.split,
                sample=keys[0].index,
                measured=f"{fault.measured}, in {describe_sample(part.dataset, keys[0].index)}, {len(keys) - 1} more",
                action="look at the data set, which reads these fields"
                if at == "data"
                else "look at the transforms that change these fields: before them they agree",
            )
            return


def _transform(part: DataSubset, key: SampleKey, last: int) -> Sample:
    """Return a sample after the transforms up to the last one that may be at fault."""
    *_, (_, batch) = itertools.islice(part.reader.batch_stages(key), last + 2)
    return {name: batch[name][0] for name in _NEEDED}


def _stack(samples: Sequence[Sample], cube_mm: float) -> _Frames:
    fields = {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in _NEEDED}
    depth, joints, camera, reference = (fields[name].double() for name in ("depth", "joints", "camera", "reference"))
    return _Frames(depth, joints, fields["visible"].bool(), camera, reference, float(cube_mm))


def _judge_joints(frames: _Frames, *, is_thorough: bool) -> Fault | None:
    """Find a change of the joints, or of the depth, that puts joints on the figure in nearly all frames."""
    costs = frames.compute_costs()
    cost, count = float(costs.mean()), len(costs)
    if cost <= _MAX_COST or count < _MIN_SAMPLES:
        return None

    def fit(least: float, changed: _Frames) -> float:
        found = changed.compute_costs()
        is_better = int((found < costs).sum()) >= 0.8 * count
        return -max(float(found.mean()), least) if is_better else -1.0

    bound = -_MAX_RATIO * cost
    fitting = explain(_MAX_IN_PLACE, frames, _iter_changes(frames), likeness=fit, above=bound)
    severity: Severity = "error" if fitting else "warning"
    if not fitting:
        other = Hypothesis("data.pairing", "no shift, unit or order of axes explains it") if is_thorough else None
        shifts = _iter_shifts(frames, num_axes=3 if is_thorough else 1)  # a thousand take most of a second
        fitting = explain(0.0, frames, shifts, likeness=fit, above=bound, otherwise=other)
    best = fitting[0] if fitting else None
    if best is None or (severity == "warning" and best.cause == "data.pairing" and cost <= _MAX_UNEXPLAINED):
        return None
    measured = f"{cost:.0%} of the way off the surface; {-best.likeness:.0%} or less if so changed"
    summary = f"joints do not lie on their depth images: {best.text}"
    expected, evidence = f"at most {_MAX_COST:.0%}", {"field": "joints"}
    return Fault(
        summary, severity=severity, causes=(best.cause,), measured=measured, expected=expected, evidence=evidence
    )


def _iter_changes(frames: _Frames) -> Iterator[Hypothesis]:
    """Yield exchanges of axes and of frames, mirrored axes and units, with the frames that each would give."""
    joints, depth = frames.joints, frames.depth
    for factor, text in ((1000.0, "metres"), (10.0, "centimetres")):
        yield Hypothesis("data.normalisation", f"'joints' are in {text}", frames._replace(joints=joints * factor))
        yield Hypothesis("data.normalisation", f"'depth' is in {text}", frames._replace(depth=depth * factor))
    for order in list(itertools.permutations((0, 1, 2)))[1:]:
        axes = ", ".join("xyz"[axis] for axis in order)
        # what was stored at place i is axis order[i]: the inverse permutation puts it back
        back = [order.index(axis) for axis in range(3)]
        yield Hypothesis("data.layout", f"their axes are {axes}", frames._replace(joints=joints[..., back]))
    for frames_on in range(1, len(joints)):
        others = frames._replace(joints=joints.roll(frames_on, 0), visible=frames.visible.roll(frames_on, 0))
        yield Hypothesis("data.pairing", "they are those of another frame", others)
    flipped = frames._replace(depth=depth.flip(2))  # of an image it is a flip, of coordinates another convention
    yield Hypothesis("data.augment_target_mismatch", "the images are mirrored left to right, they are not", flipped)
    for axis, sign in (("x", (-1, 1, 1)), ("y", (1, -1, 1))):
        mirrored = frames._replace(joints=joints * joints.new_tensor(sign))
        yield Hypothesis("data.layout", f"their {axis} points the other way", mirrored)


def _iter_shifts(frames: _Frames, *, num_axes: int) -> Iterator[Hypothesis]:
    """Yield shifts by tenths of the cube along up to so many axes at once."""
    for steps in itertools.product(_STEPS, repeat=3):
        if sum(map(bool, steps)) > num_axes:
            continue
        shift = frames.joints.new_tensor(steps) * frames.cube_mm
        text = f"they are about ({', '.join(f'{0.0 - value:+.0f}' for value in shift.tolist())}) mm off"
        yield Hypothesis("data.centre", text, frames._replace(joints=frames.joints + shift))


def _judge_reference(frames: _Frames) -> Fault | None:
    inside = frames.compute_inside()
    if inside >= _MIN_INSIDE:
        return None
    best, *_ = explain(
        None,
        frames,
        _iter_references(frames),
        likeness=lambda _, changed: changed.compute_inside(),
        above=_MIN_INSIDE,
        otherwise=Hypothesis("data.centre", "it is elsewhere in every sample"),
    )
    measured = f"{inside:.0%} of the visible joints are within {frames.cube_mm / 2:g} mm of it along each axis"
    summary = f"the reference point is not near the joints: {best.text}"
    expected, evidence = f"at least {_MIN_INSIDE:.0%}", {"field": "reference"}
    return Fault(summary, causes=(best.cause,), measured=measured, expected=expected, evidence=evidence)


def _iter_references(frames: _Frames) -> Iterator[Hypothesis]:
    """Yield other units and depths of the reference points, with the frames that each would give."""
    reference = frames.reference
    metres = frames._replace(reference=reference * 1000)
    yield Hypothesis("data.normalisation", "it is in metres", metres)
    weight = frames.visible[..., None].double()
    middle = (frames.joints * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    off = float((reference - middle)[:, 2].median())
    text = f"its depth is {abs(off):.0f} mm too {'large' if off > 0 else 'small'}"
    for moved in (reference * (middle[:, 2:] / reference[:, 2:]), torch.cat([reference[:, :2], middle[:, 2:]], dim=1)):
        yield Hypothesis("data.centre", text, frames._replace(reference=moved))
