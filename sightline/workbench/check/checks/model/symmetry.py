"""Networks that mix unrelated points or pixels: `view` for a transpose, outputs in another order, padded rows read.

Points are permuted, images and volumes shifted. At each layer the rows (channels at one place) must follow. The first
point of each cloud stays where it is: sampling of farthest points starts there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.members import ModelMembers
from sightline.contract.pytree import tree_leaves, tree_map
from sightline.instrument import record
from sightline.workbench.check.context import Context, step_check
from sightline.workbench.check.core.dry_run import DryRun
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.check.core.model_probe import ModelProbe, ProjectedRows, find_cloud, float_tensors, project

_NEAR = 1e-9  # of the largest value, for equal rows in float64
_ALL, _NONE = 0.95, 0.05
"""Shares of rows that follow their points: before the fault, and after it. A sampling in index order is in between."""
_SIMILAR, _UNLIKE = 0.6, 0.2
"""The same for the correlation of shifted maps, which borders lower a little at each layer."""
_NUM_PASSES = 3
_TRANSFORMS = ("_fft_", "grid_sampler", "cudnn_grid_sampler")
_MIN_PLACES = 32
_PADDING_SHARE = 1e-4  # of an output's largest value: far above float32's rounding
_GRIDS = ("image", "volume", "crop", "depth")
"""Inputs without a row for each point, even if a side has as many pixels."""
_SHIFTS = (3 / 8, 1 / 4, 1 / 8)
"""Shares of the sides by which images and volumes are shifted: unequal, none a half, so that axes and flips show."""

_order_check = partial(step_check, causes=("data.layout", "model.structure"))


class Place(NamedTuple):
    """Tensor at a layer, with the agreement of its rows; None if it cannot be measured.

    `is_many` marks that a sample has several rows, `is_of_layer` the output of a layer of torch.
    """

    text: str
    layer: str
    agreement: float | None
    is_many: bool = True
    is_of_layer: bool = False


def _find_break(places: Sequence[Place], *, high: float, low: float) -> tuple[Place, Place | None] | None:
    """Return the first place whose agreement is below `low`, and the one before it; None if it fell slowly.

    The code between layers is judged: borders, which a layer of torch pads, may lower the agreement as well.
    """
    before: Place | None = None
    for place in places:
        if place.agreement is not None and place.agreement <= low and not place.is_of_layer:
            return place, before
        if place.agreement is None or place.agreement < high:
            return None
        before = place
    return None


@_order_check("point-order", expected="the same outputs, at their points: a cloud is a set")
def point_order(context: Context, step: DryRun) -> Fault | None:
    """Outputs follow their points if these are permuted, and outputs of whole clouds do not change.

    Finds: `view` for a transpose in a network of clouds, pooling over a wrong axis, outputs in another order.

    Networks for which the order of points matters declare it by `reads_order = True`. A plain module is one of clouds
    if the name of what it reads says so.
    """
    path = find_cloud(context.built.job.model, step.inputs)
    probe = None if path is None else context.probe(_NUM_PASSES, is_double=True)
    return None if probe is None or path is None else judge_points(probe, path)


def judge_points(probe: ModelProbe, path: str = "points") -> Fault | None:
    """Permute the points of a probe in float64, and find the first layer whose rows do not follow."""
    points = dict(tree_leaves(probe.inputs)).get(path)
    order = None if ModelMembers.reads_order.get(probe.source) else _draw_order(points, probe.inputs.get("offsets"))
    if not isinstance(points, Tensor) or order is None or not probe.is_steady():
        return None
    first, outputs = probe.projected_rows({})
    rows = {name: value for name, value in probe.inputs.items() if name not in _GRIDS}
    permuted = tree_map(rows, lambda _, tensor: _permute(tensor, points, order))
    second, others = probe.projected_rows(permuted)
    if [row.text for row in first] != [row.text for row in second]:
        return None
    num_samples = len(points) if points.ndim == 3 else len(probe.inputs["offsets"]) - 1
    places = [
        Place(one.text, one.layer, _share_in_common(one.values, other.values), one.values.numel() > num_samples)
        for one, other in zip(first, second, strict=True)
    ]
    for name, value in outputs.items():
        place = _compare_output(name, value, others.get(name), points, order)
        if place.is_many and place.agreement is not None and place.agreement <= _NONE:
            is_of_points = _loses_row(probe, name, points)
            place = place if is_of_points else _compare_output(name, value, others.get(name), points, None)
        places.append(place)
    found = _find_break(places, high=_ALL, low=_NONE)
    if found is None:
        return None
    place, before = found
    if path != "points" and _is_flattened(probe, place, points):
        return None
    return Fault(
        f"the network mixes unrelated points: {place.text} does not follow its points"
        if place.is_many
        else f"the network depends on the order of the points, at {place.text}",
        severity="error" if place.is_many else "warning",
        layer=place.layer or None,
        measured=f"points permuted, in evaluation mode: {place.agreement:.0%} of the rows of {place.text} stay, "
        + (f"{before.agreement:.0%} of {before.text}" if before is not None else "all of the points given"),
        action="look for view or reshape where transpose is meant, for the axis of the pooling, and for what goes by "
        "index; a network of ordered points declares reads_order = True",
        causes=("data.layout", "model.structure") if place.is_many else ("model.structure", "data.layout"),
    )


def _is_flattened(probe: ModelProbe, place: Place, points: Tensor) -> bool:
    """Return True for a layer that reads several channels of each point side by side: registered points have an order.

    A cloud that is pooled over its channels has one number for each point.
    """
    width = getattr(probe.model.get_submodule(place.layer), "in_features", 0) if place.layer else 0
    return not place.is_many and width > points.shape[1] and width % points.shape[1] == 0


def _draw_order(points: Any, offsets: Any) -> Tensor | None:
    """Draw a permutation of the rows: of axis 1 for clouds (B, N, C), within each cloud for rows (M, C) with offsets.

    The first point of each cloud keeps its place. None without such rows.
    """
    if not isinstance(points, Tensor) or not points.numel() or points.ndim not in (2, 3):
        return None
    generator = torch.Generator().manual_seed(0)

    def permute(size: int) -> Tensor:
        return torch.cat(
            [torch.zeros(min(size, 1), dtype=torch.long), 1 + torch.randperm(size - 1, generator=generator)]
        )

    if points.ndim == 3:
        return permute(points.shape[1]) if points.shape[1] > 1 else None
    if not isinstance(offsets, Tensor) or int(offsets[-1]) != len(points) or int(offsets.diff().min()) < 2:
        return None
    return torch.cat(
        [start + permute(size) for start, size in zip(offsets[:-1].tolist(), offsets.diff().tolist(), strict=True)]
    )


def _permute(value: Tensor, points: Tensor, order: Tensor) -> Tensor:
    """Permute a tensor that has a row for each point; others stay."""
    axis = points.ndim - 2
    if value.shape[: axis + 1] != points.shape[: axis + 1]:
        return value
    return value.index_select(axis, order.to(value.device))


def _share_in_common(first: Tensor, second: Tensor) -> float | None:
    """Compute the share of the first rows that are among the second; None if they cannot be compared.

    Rows of zeros, which a ReLU makes, are left out.
    """
    one, other = (np.sort(values.cpu().numpy().ravel()) for values in (first, second))
    if len(one) != len(other) or not np.isfinite(one).all() or not np.isfinite(other).all():
        return None
    one = one[one != 0]
    if not len(one):
        return None
    right = np.searchsorted(other, one).clip(0, len(other) - 1)
    distance = np.minimum(np.abs(other[right] - one), np.abs(other[(right - 1).clip(0)] - one))
    return float((distance <= _NEAR * np.abs(one).max()).mean())


def _loses_row(probe: ModelProbe, name: str, points: Tensor) -> bool:
    """Return False for an output that is as large for clouds of one point less: its sizes equal theirs by chance."""
    if points.ndim != 3:
        return True
    axes = points.shape[:2]
    rows = {name: value for name, value in probe.inputs.items() if name not in _GRIDS}
    fewer = tree_map(rows, lambda _, tensor: tensor[:, :-1] if tensor.shape[:2] == axes else tensor)
    try:
        return probe.outputs(fewer)[name].shape[:2] != axes
    except Exception:  # noqa: BLE001 - a network may be made for one number of points
        return True


def _compare_output(name: str, value: Tensor, other: Tensor | None, points: Tensor, order: Tensor | None) -> Place:
    """Compute the share of rows of an output that are the same: at the same point, or, without order, of the cloud."""
    place, axis = Place(f"the output '{name}'", "", None, is_many=False), points.ndim - 2
    if other is None or other.shape != value.shape or not value.is_floating_point() or value.ndim < 2:
        return place
    if value.ndim == 3 == points.ndim and value.shape[1] != points.shape[1] == value.shape[2]:
        value, other = value.transpose(1, 2), other.transpose(1, 2)
    is_of_points = order is not None and value.shape[: axis + 1] == points.shape[: axis + 1]
    is_same = ((value if order is None else _permute(value, points, order)) - other).abs() <= _NEAR * value.abs().max()
    share = is_same.reshape(*is_same.shape[: axis + 1 if is_of_points else 1], -1).all(dim=-1).double().mean()
    return place._replace(agreement=float(share), is_many=is_of_points)


@step_check(
    "padded-rows",
    causes=("data.padding", "model.structure"),
    expected="the same outputs: rows that pad a sample belong to none",
)
def padded_rows(context: Context, step: DryRun) -> Iterator[Fault]:
    """Outputs at the rows of a sample, and of the whole sample, do not depend on the rows that pad it.

    Finds: A network that pools, counts or mixes the zeros that pad samples of fewer points.
    """
    for name, value in float_tensors(step.inputs):
        mask = step.batch.get(f"{name}_mask")
        if not isinstance(mask, Tensor) or mask.shape != value.shape[: mask.ndim] or bool(mask.all()):
            continue
        probe = context.probe(_NUM_PASSES)
        if probe is None or not probe.is_steady():
            continue
        rows = mask.view(*mask.shape, *(1,) * (value.ndim - mask.ndim))
        filled = probe.outputs({name: torch.where(rows, value, 1 + value.abs().amax())})
        for output, expected in probe.outputs().items():
            change = (filled[output] - expected).abs()
            change = change[mask] if change.shape[: mask.ndim] == mask.shape else change
            if float(change.max()) > _PADDING_SHARE * float(expected.abs().max()):
                yield Fault(
                    f"'{output}' depends on the rows that pad '{name}'",
                    measured=f"other values in {int((~mask).sum())} padded rows move it by {float(change.max()):.2g}",
                    action=f"leave out the rows where {name}_mask is False: in pooling, norms and attention",
                )
                break


@_order_check("pixel-order", severity="warning", expected="outputs that move with the image: it is a grid")
def pixel_order(context: Context, step: DryRun) -> Fault | None:
    """The maps of a network on images or volumes move with what it is given, if this is shifted.

    Finds: `view` for a transpose in a network of images or volumes, exchanged axes, outputs upside down.

    The network gets noise, so that neighbours are not alike. Of a layer that is called again, as on a mirrored image,
    the first call counts. Networks for which the place in the image matters declare it by `reads_order = True`; those
    that transform it to other coordinates, frequencies, angles or a sampled grid, do not move with it.
    """
    probe = context.probe(_NUM_PASSES)
    return None if probe is None else judge_pixels(probe)


def judge_pixels(probe: ModelProbe) -> Fault | None:
    """Shift noise in the place of a probe's images, and find the first layer whose maps do not move with it."""
    floats = float_tensors(dict(tree_leaves(probe.inputs)))
    grids = {path: value for path, value in floats if value.ndim in (4, 5) and _is_large(value)}
    if not grids or len({value.ndim for value in grids.values()}) > 1:
        return None
    if ModelMembers.reads_order.get(probe.source) or not probe.is_steady():
        return None
    noise = {path: _make_noise(value) for path, value in grids.items()}
    sides = next(iter(grids.values())).shape[2:]
    shift = _choose_shift(sides)
    rolled = {path: _roll(value, sides, shift) for path, value in noise.items()}
    try:
        passes = [
            probe.projected_rows(tree_map(probe.inputs, partial(_replace, changed))) for changed in (noise, rolled)
        ]
    except Exception:  # noqa: BLE001 - a network may reject noise
        return None
    maps = [[*rows, *_project_outputs(outputs, sides)] for rows, outputs in passes]
    places = [
        Place(one.text, one.layer, _correlate(one.values, other.values, sides, shift), is_of_layer=one.is_result)
        for one, other in zip(*maps, strict=False)
        if one.text == other.text and one.values.ndim == 1 + len(sides) and "(call " not in one.text
    ]
    found = _find_break(places, high=_SIMILAR, low=_UNLIKE)
    if found is None or _changes_coordinates(probe):
        return None
    place, before = found
    return Fault(
        f"the network mixes unrelated pixels: {place.text} does not move with the image",
        layer=place.layer or None,
        measured=f"noise shifted by {', '.join(map(str, shift))} of {', '.join(map(str, sides))}: correlation "
        f"{place.agreement:.2f} at {place.text}, "
        + (f"{before.agreement:.2f} at {before.text}" if before is not None else "1 of what is given"),
        action="look for view or reshape where permute is meant, for exchanged axes and for flip; a network for "
        "which the place matters declares reads_order = True",
    )


def _changes_coordinates(probe: ModelProbe) -> bool:
    """Return True if a pass has a Fourier transform, or samples a map at computed places: nothing moves as before."""
    names: set[str] = set()
    with record(probe.model, operators=lambda call, operator, *_: names.add(operator.name().removeprefix("aten::"))):
        probe.outputs()
    return any(name.startswith(_TRANSFORMS) for name in names)


def _replace(changed: Mapping[str, Tensor], path: str, tensor: Tensor) -> Tensor:
    return changed.get(path, tensor)


def _is_large(value: Tensor) -> bool:
    return min(value.shape[2:]) >= 8


def _make_noise(value: Tensor) -> Tensor:
    """Make noise in the place of images, with each channel's mean and deviation; one of zeros and ones has such."""
    generator = torch.Generator().manual_seed(0)
    axes = [axis for axis in range(value.ndim) if axis != 1]
    mean, deviation = value.mean(dim=axes, keepdim=True), value.std(dim=axes, keepdim=True)
    uniform = torch.rand(value.shape, generator=generator).to(value)
    is_mask = ((value == 0) | (value == 1)).movedim(1, 0).flatten(1).all(dim=1).view(1, -1, *(1,) * (value.ndim - 2))
    marks = (uniform < mean.clamp(0.1, 0.9)).to(value.dtype)
    return torch.where(is_mask, marks, mean + (uniform - 0.5) * 12**0.5 * deviation)


def _roll(value: Tensor, sides: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Shift an image, or one of another size, by the same shares of its sides."""
    moves = [move * size // side for move, size, side in zip(shift, value.shape[2:], sides, strict=True)]
    return value.roll(moves, tuple(range(2, value.ndim)))


def _choose_shift(sides: Sequence[int]) -> tuple[int, ...]:
    """Choose shifts near their shares of the sides that are multiples of the largest strides that fit."""
    shifts = []
    for side, share in zip(sides, _SHIFTS, strict=False):
        stride = next(2**power for power in range(5, -1, -1) if side % 2**power == 0 and 2**power * 8 <= side)
        shifts.append(max(1, int(share * side / stride + 0.5)) * stride)
    return tuple(shifts)


def _project_outputs(outputs: Mapping[str, Tensor], sides: Sequence[int]) -> Iterator[ProjectedRows]:
    """Project the outputs that are maps; channels are the second axis, or the last if the others have these sides."""
    for name, value in outputs.items():
        if value.ndim == 2 + len(sides) and value.is_floating_point():
            axis = -1 if value.shape[1:-1] == sides else 1
            yield ProjectedRows(f"the output '{name}'", "", project(value, axis))


def _correlate(first: Tensor, second: Tensor, sides: Sequence[int], shift: Sequence[int]) -> float | None:
    """Compute the correlation of maps, shifted by their share, with those of the shifted image; None for small maps."""
    maps = first.shape[1:]
    moves = [move * size / side for move, size, side in zip(shift, maps, sides, strict=True)]
    if first.shape != second.shape or maps.numel() < _MIN_PLACES or any(move % 1 for move in moves):
        return None
    one = first.roll([int(move) for move in moves], tuple(range(1, first.ndim)))
    rows = torch.stack([one.flatten(), second.flatten()]).double()
    return None if bool((rows.std(dim=1) == 0).any()) else float(rows.corrcoef()[0, 1])
