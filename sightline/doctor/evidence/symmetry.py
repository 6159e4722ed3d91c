"""Positions moved: points permuted, images shifted; whose rows of layers and outputs follow, and whose do not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.passes import Repeat
from sightline.doctor.forms.form import get_signature
from sightline.doctor.objects import iter_reachable
from sightline.doctor.subject import Subject, replace_leaf
from sightline.instrument import ModuleCall, record
from sightline.instrument.random_state import seed_all

_CLOUDS = frozenset(("point", "pt", "cloud", "pointcloud", "xyz", "pc"))
_GRIDS = frozenset(("image", "volume", "crop", "depth"))
"""Inputs without a row for each point, even if a side has as many pixels."""
_NEAR, _MIN_PLACES, _MIN_SIDE = 1e-9, 32, 8
_SHIFTS = (3 / 8, 1 / 4, 1 / 8)
"""Shares of the sides by which images are shifted: unequal, none a half, so that axes and flips show."""
_STEP, _ALIKE, _MAX_CLOUDS = 0.6, 0.3, 32
"""From point to next point, of the mean distance; correlation of distances. Without an order they are near 1 and 0."""
_COORDINATES = ("_fft_", "grid_sampler", "cudnn_grid_sampler")


class Rows(NamedTuple):
    """Input or result of a layer, its channels projected to a fixed direction: one number at each place."""

    text: str
    layer: str
    values: Tensor
    is_result: bool = False


class Place(NamedTuple):
    """Layer or output, with the agreement of its rows after a move; None if it cannot be measured.

    `is_many` is False for one row a sample, `is_result` True for the result of a layer of torch.
    """

    text: str
    layer: str
    agreement: float | None
    is_many: bool
    is_result: bool


@measure(passes=4)
def permuted_points(subject: Subject, repeats: dict[str, Repeat]) -> list[Place]:
    """Permute the points of a cloud (B, N, C), the first apart; list shares of rows that are the same, at their points.

    Rows of layers are compared as sets, as points may be sampled in another order; those of outputs at their points. An
    output without a row for each point is to stay. A cloud is an input of that name with more points than channels.
    """
    points = _find_cloud(subject)
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(points.shape[1] - 1, generator=_seed())])

    def permute(path: str, tensor: Tensor) -> Tensor:
        is_grid = path.rpartition(".")[2] in _GRIDS or tensor.ndim > 3
        return tensor[:, order] if tensor.shape[:2] == points.shape[:2] and not is_grid else tensor

    def drop(path: str, tensor: Tensor) -> Tensor:
        return tensor[:, :-1] if permute(path, tensor) is not tensor else tensor

    given = {"subject": subject, "repeats": repeats, "change": lambda inputs: tree_map(inputs, drop)}
    fewer = attempt("fewer points", _run, given)
    sizes = {} if isinstance(fewer, MissingError) else {name: value.shape for name, value in fewer[1].items()}
    first, outputs = _run(subject, repeats, lambda inputs: inputs)
    second, others = _run(subject, repeats, lambda inputs: tree_map(inputs, permute))
    places = [
        Place(one.text, one.layer, _share_in_common(one.values, other.values), one.values.numel() > len(points), False)
        for one, other in _match(first, second)
    ]
    for name, value in outputs.items():
        other, text = others[name], f"the output '{name}'" if name else "the output"
        if value.ndim == 3 and value.shape[1] != points.shape[1] == value.shape[2]:
            value, other = value.transpose(1, 2), other.transpose(1, 2)
        is_many = value.shape[:2] == points.shape[:2] and sizes.get(name) != outputs[name].shape  # else by chance
        shares = [_share_equal(permute("", value), other, 2)] if is_many else []
        if not is_many or value.ndim == 2:  # as many classes as points, by chance
            shares.append(_share_equal(value, other, 1))
        places.append(Place(text, "", max(shares), is_many, False))
    return places


def _find_cloud(subject: Subject) -> Tensor:
    leaves = dict(dense_leaves(subject.batches[0].inputs))
    forward = get_signature(subject.model.forward).parameters
    names = {path: path.rpartition(".")[2] for path in leaves} | ({"": next(iter(forward), "")} if "" in leaves else {})
    for path, name in names.items():
        points = leaves[path]
        beside = [t for p, t in leaves.items() if p != path and t.shape[:2] == points.shape[:2]]
        is_cloud = name.lower().rstrip("s") in _CLOUDS and points.ndim == 3
        is_cloud = is_cloud and points.shape[1] > max(2, points.shape[2])
        others = [*(t for p, t in leaves.items() if p != path), *subject.model.buffers()]
        has_edges = is_cloud and any(each.shape[-2:] == (points.shape[1],) * 2 or _are_numbers(each) for each in others)
        if is_cloud and not has_edges and all(each.is_floating_point() for each in (points, *beside)):
            if _has_order(points.detach().double()):
                raise NotApplicableError("clouds whose order tells something: of a path, or of points that correspond")
            return points
    raise NotApplicableError("no clouds of points by the name of an input")


def _has_order(points: Tensor) -> bool:
    """Return True if points (B, N, C) that follow each other are near, or a tenth of the clouds have like distances."""
    distances = torch.cdist(points[:_MAX_CLOUDS], points[:_MAX_CLOUDS])
    steps, mean = distances.diagonal(1, 1, 2).mean(), distances.sum() / distances.bool().sum().clamp(min=1)
    row, column = torch.triu_indices(points.shape[1], points.shape[1], 1)
    pairs = distances[:, row, column]
    pairs = nn.functional.normalize(pairs - pairs.mean(dim=1, keepdim=True), dim=1)
    row, column = torch.triu_indices(len(pairs), len(pairs), 1)
    alike = (pairs @ pairs.T)[row, column]
    return bool(steps < _STEP * mean) or (len(alike) > 0 and bool(alike.quantile(0.9) > _ALIKE))


def _are_numbers(tensor: Tensor) -> bool:
    """Return True for pairs of numbers, as of edges between points."""
    return tensor.dtype == torch.int64 and tensor.ndim == 2 and 2 in tensor.shape


@measure(passes=4)
def shifted_images(subject: Subject, repeats: dict[str, Repeat]) -> list[Place]:
    """Shift noise in the place of images or volumes; list correlations of maps with those of the shifted noise."""
    leaves = dict(dense_leaves(subject.batches[0].inputs))
    grids = {p: t for p, t in leaves.items() if t.is_floating_point() and t.ndim in (4, 5) and min(t.shape[2:]) >= 8}
    if not grids or len({value.ndim for value in grids.values()}) > 1:
        raise NotApplicableError("no images or volumes")
    sides = next(iter(grids.values())).shape[2:]
    shift = _choose_shift(sides)
    noise = {path: _make_noise(value) for path, value in grids.items()}

    def put(inputs: Any, *, is_shifted: bool) -> Any:
        for path, value in noise.items():
            inputs = replace_leaf(inputs, path, (_roll(value, sides, shift) if is_shifted else value).double())
        return inputs

    operators: set[str] = set()
    passes = []
    for is_shifted in (False, True):
        rows, outputs = _run(subject, repeats, partial(put, is_shifted=is_shifted), operators)
        maps = {name: value for name, value in outputs.items() if value.ndim == 2 + len(sides)}
        axes = {name: -1 if value.shape[1:-1] == sides else 1 for name, value in maps.items()}
        passes.append([*rows, *(Rows(f"the output '{n}'", "", _project(v, axes[n])) for n, v in maps.items())])
    if any(name.startswith(_COORDINATES) for name in operators):
        raise NotApplicableError("images that are transformed to other coordinates")
    return [
        Place(one.text, one.layer, _correlate(one.values, other.values, sides, shift), True, one.is_result)
        for one, other in _match(*passes)
        if one.values.ndim == 1 + len(sides) and "(call " not in one.text
    ]


def _match(first: Sequence[Rows], second: Sequence[Rows]) -> Iterable[tuple[Rows, Rows]]:
    if [rows.text for rows in first] != [rows.text for rows in second]:
        raise NotApplicableError("layers that run by what is given")
    return zip(first, second, strict=True)


def _run(
    subject: Subject, repeats: dict[str, Repeat], change: Callable[[Any], Any], operators: set[str] | None = None
) -> tuple[list[Rows], dict[str, Tensor]]:
    """Run the first batch with changed inputs, in evaluation mode and float64; return rows of layers, and outputs."""
    still = repeats["eval"]
    if any(
        not torch.equal(value, still.reseeded[path]) for path, value in still.first.items() if path in still.reseeded
    ):
        raise LeftOutError("outputs of evaluation that depend on random numbers")
    rows: list[Rows] = []

    def note(call: ModuleCall, module: nn.Module, *values: Any) -> None:
        value = values[-1] if len(values) == 2 else next(iter((*values[0][0], *values[0][1].values())), None)
        axis = _channel_axis(module)
        if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point() and axis is not None:
            text = f"the {'output' if len(values) == 2 else 'input'} of '{call.name}'"
            rows.append(Rows(text, call.path, _project(value, axis), len(values) == 2))

    model = _copy_in_float64(subject)
    inputs = tree_map(subject.batches[0].inputs, lambda _, t: t.double() if t.is_floating_point() else t)
    layers = {name: module for name, module in model.named_modules() if _channel_axis(module) is not None}
    seed_all(0)
    names = set() if operators is None else operators
    with torch.no_grad(), record(layers, enter=note, leave=note, operators=lambda _, op, *__: names.add(_name(op))):
        outputs = subject.call(model, change(inputs))
    floats = {path: t for path, t in dense_leaves(outputs) if t.is_floating_point() and t.ndim > 1}
    return rows, floats


def _copy_in_float64(subject: Subject) -> nn.Module:
    """Copy the model, in evaluation mode, to float64: tensors that no module registers as well, but shared ones."""
    model = copy.deepcopy(subject.copy("eval")).double()
    shared = {id(tensor) for _, tensor in iter_reachable(subject.model, Tensor)}
    for _, tensor in iter_reachable(model, Tensor):
        if tensor.is_floating_point() and id(tensor) not in shared:
            tensor.data = tensor.data.double()
    return model


def _name(operator: Any) -> str:
    return str(operator.name()).removeprefix("aten::")


def _channel_axis(module: nn.Module) -> int | None:
    """Return the axis of the channels in the inputs and outputs of a layer of torch; None if the layer has none."""
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return -1
    is_second = isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    return 1 if is_second else None


def _project(value: Tensor, axis: int) -> Tensor:
    direction = torch.randn(value.shape[axis], generator=_seed(), dtype=torch.float64)
    return value.detach().movedim(axis, -1) @ direction.to(value)


def _share_in_common(first: Tensor, second: Tensor) -> float | None:
    """Compute the share of the first rows that are among the second; rows of zeros, of a ReLU, are left out."""
    one, other = (np.sort(values.cpu().numpy().ravel()) for values in (first, second))
    if len(one) != len(other) or not np.isfinite(one).all() or not np.isfinite(other).all() or not one.any():
        return None
    one = one[one != 0]
    right = np.searchsorted(other, one).clip(0, len(other) - 1)
    distance = np.minimum(np.abs(other[right] - one), np.abs(other[(right - 1).clip(0)] - one))
    return float((distance <= _NEAR * np.abs(one).max()).mean())


def _share_equal(first: Tensor, second: Tensor, num_axes: int) -> float:
    is_same = (first - second).abs() <= _NEAR * first.abs().max()
    return float(is_same.reshape(*is_same.shape[:num_axes], -1).all(dim=-1).double().mean())


def _make_noise(value: Tensor) -> Tensor:
    """Make noise in the place of images, with each channel's mean and deviation; one of zeros and ones has such."""
    axes = [axis for axis in range(value.ndim) if axis != 1]
    mean, deviation = value.mean(dim=axes, keepdim=True), value.std(dim=axes, keepdim=True)
    uniform = torch.rand(value.shape, generator=_seed()).to(value)
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
        stride = next(2**power for power in range(5, -1, -1) if side % 2**power == 0 and 2**power * _MIN_SIDE <= side)
        shifts.append(max(1, int(share * side / stride + 0.5)) * stride)
    return tuple(shifts)


def _correlate(first: Tensor, second: Tensor, sides: Sequence[int], shift: Sequence[int]) -> float | None:
    """Compute the correlation of maps, shifted by their share, with those of the shifted image; None for small maps."""
    maps = first.shape[1:]
    moves = [move * size / side for move, size, side in zip(shift, maps, sides, strict=True)]
    if first.shape != second.shape or maps.numel() < _MIN_PLACES or any(move % 1 for move in moves):
        return None
    one = first.roll([int(move) for move in moves], tuple(range(1, first.ndim)))
    rows = torch.stack([one.flatten(), second.flatten()])
    return None if bool((rows.std(dim=1) == 0).any()) else float(rows.corrcoef()[0, 1])


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(1)
