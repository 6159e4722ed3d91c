"""Indices that a pass computes: cells of a grid that fall together, farthest points for nearest, sums that are lost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Subject
from sightline.instrument import ModuleCall, record

_INTEGERS = (torch.int32, torch.int64)
_READERS = frozenset(
    "index index_put index_select index_add index_copy gather scatter scatter_add scatter_reduce take embedding".split()
)
"""Operators that take a value, or places, and then indices."""
_OTHER_NUMBERS = frozenset("remainder fmod div floor_divide sub bitwise_and bitwise_xor bitwise_right_shift".split())
"""Operators after which integers are no longer the flat indices of before: hashes, and the axes again."""
_DISTANCES = frozenset(("_euclidean_dist", "_cdist_forward", "cdist"))
_MIN_MERGED = 0.02
_MIN_POINTS, _NUM_TESTED, _MIN_SPREAD, _SLACK = 12, 48, 0.25, 5e-3


class Farthest(NamedTuple):
    """Choice of the `k` farthest of `size` points as indices: the largest distances, or the least negative ones."""

    k: int
    size: int
    shape: tuple[int, ...]
    is_largest: bool


class Merged(NamedTuple):
    """Flat indices of which different pairs of numbers get one: the stride is not above the `highest` added."""

    stride: int
    highest: int
    num_pairs: int
    num_sums: int


class LostSums(NamedTuple):
    """Sums that are written to places which repeat, so that one of each remains."""

    num: int
    num_distinct: int


class UsedIndices(NamedTuple):
    """What is wrong with indices where they are used, by module, each kind once a module."""

    faults: dict[str, Farthest | Merged | LostSums]
    has_nearest: bool


@measure(passes=1)
def used_indices(subject: Subject) -> UsedIndices:
    """Follow the operators of a pass in evaluation mode, from products, sums and choices to where they index."""
    model, observer = subject.copy("eval"), IndexObserver()
    with torch.no_grad(), record(model, operators=observer.note):
        subject.call(model, subject.batches[0].inputs)
    return UsedIndices(observer.faults, observer.has_nearest)


class _Index(NamedTuple):
    """Integers of a pass: the largest known number that divides them all, and what is wrong with them as indices."""

    values: Tensor
    stride: int = 1
    fault: Farthest | Merged | None = None


class IndexObserver:
    """Observer of the operators of a pass, which follows integers to where they are used as indices."""

    def __init__(self) -> None:
        self.faults: dict[str, Farthest | Merged | LostSums] = {}
        self.has_nearest = False
        self._indices: dict[int, _Index] = {}
        self._distances: dict[int, Tensor] = {}
        self._sorted: dict[int, tuple[Tensor, Tensor, bool]] = {}
        self._rows: dict[int, tuple[Tensor, Tensor, Any]] = {}
        """Rows of a tensor at indices, or sums of them and others, with the tensor and the indices."""

    def note(self, call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note a call of an operator: what it is given, and what it returns."""
        name = operator.name().removeprefix("aten::").partition(".")[0].rstrip("_")
        tensors = [tensor for _, tensor in tree_leaves((args, kwargs))]
        if name == "index":
            self._rows[id(result)] = result, args[0], args[1]
        elif name in ("add", "sub") and isinstance(result, Tensor):
            taken = next((self._rows[id(tensor)] for tensor in tensors if id(tensor) in self._rows), None)
            self._rows |= {} if taken is None else {id(result): (result, *taken[1:])}
        elif name == "index_put" and not (len(args) > 3 and args[3]):
            self._judge_sums(*args[:3], layer="" if call is None else call.path)
        if name in _READERS or name == "bincount":
            for tensor in tensors[name != "bincount" :]:
                self._report(tensor, _find_size(name, args, tensor), "" if call is None else call.path)
        if name in _DISTANCES or (tensors and id(tensors[0]) in self._distances and name in ("view", "expand", "sqrt")):
            self._distances[id(result)] = result
        elif name == "topk":
            values, k, *rest = args
            self._choose(result[1], values, k, *rest[:1], is_largest=rest[1] if len(rest) > 1 else True)
        elif name == "sort":
            is_descending = kwargs.get("descending", args[2] if len(args) > 2 else False)
            self._sorted[id(result[1])] = result[1], args[0], is_descending
        elif name == "slice" and id(args[0]) in self._sorted:
            _, values, is_descending = self._sorted[id(args[0])]
            self._choose(result, values, result.shape[-1], is_largest=is_descending)
        else:
            self._follow(name, args, tensors, result)

    def _report(self, tensor: Tensor, size: int | None, layer: str) -> None:
        """Report the fault of an index of an axis of some size; without room for all pairs, they overlap on purpose."""
        fault = self._indices[id(tensor)].fault if id(tensor) in self._indices else None
        if fault is None or (isinstance(fault, Merged) and size is not None and size < fault.num_pairs):
            return
        self.faults.setdefault(layer, fault)

    def _judge_sums(self, target: Tensor, indices: Any, values: Tensor, *, layer: str) -> None:
        """Judge sums that are written to the rows that they come from: of equal indices one sum remains."""
        _, source, taken = self._rows.get(id(values), (values, None, ()))
        same = [one is other for one, other in zip(indices, taken, strict=False)]
        if source is None or not _is_same_view(source, target) or not same or not all(same):
            return
        if any(index is None or index.dtype == torch.bool for index in indices):
            return
        places = [index.expand(values.shape[: index.ndim]).flatten() for index in indices]
        distinct, counts = torch.stack(places).unique(dim=1, return_counts=True)
        if int((counts > 1).sum()) > 1:  # one that repeats may be a spare row, for padding
            self.faults.setdefault(layer, LostSums(len(places[0]), distinct.shape[1]))

    def _choose(self, chosen: Tensor, values: Tensor, k: int, dim: int = -1, *, is_largest: bool) -> None:
        """Note the indices of the largest or least of some values."""
        is_distance = is_largest and id(values) in self._distances
        fault = _judge_choice(values, k, dim, is_largest=is_largest, is_distance=is_distance)
        self._indices[id(chosen)] = _Index(chosen, fault=fault)
        if fault is None and k <= values.shape[-1] // 2 and not self.has_nearest:
            self.has_nearest = _is_of_distances(-values if is_largest else values)

    def _follow(self, name: str, args: Any, tensors: list[Tensor], result: Any) -> None:
        """Note the integers that follow from integers."""
        results = [t for t in (result if isinstance(result, list | tuple) else (result,)) if isinstance(t, Tensor)]
        if not results or results[0].dtype not in _INTEGERS or name in _OTHER_NUMBERS:
            return
        known = [self._indices.get(id(tensor), _Index(tensor)) for tensor in tensors if tensor.dtype in _INTEGERS]
        fault = next((index.fault for index in known if index.fault is not None), None)
        stride = known[0].stride if len(known) == 1 else 1
        if name == "mul" and (factor := _find_factor(args)) is not None and known:
            stride = max(known, key=lambda index: index.values.numel()).stride * factor
        elif name == "add" and len(known) == 2:
            stride = math.gcd(known[0].stride, known[1].stride)
            fault = fault or _judge_sum(known[0], known[1], results[0])
        if stride > 1 or fault is not None:
            self._indices |= {id(tensor): _Index(tensor, stride, fault) for tensor in results}


def _find_size(name: str, args: Any, index: Tensor) -> int | None:
    """Return the size of the axis that an operator reads, or writes to, at an index; None if it is not known."""
    value = args[0]
    if name in ("index", "index_put"):
        return next((value.shape[axis] for axis, own in enumerate(args[1]) if own is index), None)
    if name in ("take", "embedding"):
        return value.numel() if name == "take" else len(value)
    return value.shape[args[1]] if name != "bincount" and len(args) > 2 and isinstance(args[1], int) else None


def _is_same_view(first: Tensor, second: Tensor) -> bool:
    is_same_memory = first.data_ptr() == second.data_ptr()
    return is_same_memory and first.shape == second.shape and first.stride() == second.stride()


def _find_factor(args: Any) -> int | None:
    """Return the number of at least 2 with which a tensor is multiplied; None without one."""
    for factor in args[:2]:
        number = factor.item() if isinstance(factor, Tensor) and factor.numel() == 1 else factor
        if isinstance(number, int) and number >= 2:
            return number
    return None


def _judge_sum(first: _Index, second: _Index, total: Tensor) -> Merged | None:
    """Judge the sum of multiples and of numbers that are to lie between them; pairs that fall together are counted.

    Overlapping frames of a signal fall together on purpose: `_report` knows how long it is.
    The windows of a convolution overlap on purpose: their offsets are the same for each, in a tensor of fewer axes.
    """
    for high, low in ((first, second), (second, first)):
        if high.stride > 1 and (not low.values.numel() or int(low.values.max()) < high.stride):
            return None
    high, low = sorted((first, second), key=lambda index: index.stride, reverse=True)
    if high.stride < 2 or low.values.shape != total.shape or int(low.values.min()) < 0:
        return None
    pairs = torch.stack([high.values.expand(total.shape).flatten(), low.values.flatten()], dim=1)
    num_pairs, num_sums = len(pairs.unique(dim=0)), len(total.unique())
    if num_sums > (1 - _MIN_MERGED) * num_pairs:
        return None
    return Merged(high.stride, int(low.values.max()), num_pairs, num_sums)


def _judge_choice(values: Tensor, k: int, dim: int, *, is_largest: bool, is_distance: bool) -> Farthest | None:
    """Judge a choice among distances: from each point, or of all points from all."""
    size = values.shape[-1] if values.ndim else 0
    if values.ndim < 2 or size < _MIN_POINTS or k > size // 2 or dim % values.ndim < values.ndim - 2:
        return None
    if not is_distance and not _is_of_distances(values if is_largest else -values):
        return None
    return Farthest(k, size, tuple(values.shape), is_largest)


def _is_of_distances(values: Tensor) -> bool:
    """Return True for distances, or their squares, of all points from all: their diagonal is 0, and such points exist.

    Such points exist if the centred matrix has no negative eigenvalue; similarities, of which the diagonal is masked,
    have some (Schoenberg 1935; Young and Householder 1938).
    """
    if values.ndim < 3 or values.shape[-1] != values.shape[-2] or not values.is_floating_point():
        return False
    matrix = values.reshape(-1, *values.shape[-2:])[0].double()
    step = max(1, len(matrix) // _NUM_TESTED)
    matrix = matrix[::step, ::step]
    num = len(matrix)
    others = matrix[~torch.eye(num, dtype=torch.bool, device=matrix.device)]
    if not bool(matrix.isfinite().all()) or float(others.min()) < 0 or not float(others.max()) > 0:
        return False
    largest = float(others.max())
    is_diagonal_zero = float(matrix.diagonal().abs().max()) <= _SLACK * float(others.median())
    is_symmetric = float((matrix - matrix.T).abs().max()) <= _SLACK * largest
    if not is_diagonal_zero or not is_symmetric or float(others.std()) < _MIN_SPREAD * float(others.mean()):
        return False
    centred = matrix - matrix.mean(dim=0) - matrix.mean(dim=1, keepdim=True) + matrix.mean()
    eigenvalues = torch.linalg.eigvalsh(-centred / 2)
    return bool(eigenvalues[0] >= -_SLACK * eigenvalues[-1])
