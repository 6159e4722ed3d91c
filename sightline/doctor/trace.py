"""Trace of a live loop in plain numbers: what went in and came out, in which order, and how far the weights moved."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import statistics
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_MIN_CURVE = 20
_NUM_DIGITS, _NUM_DIGESTED, _MAX_EVALUATED, _MAX_ANSWERED = 16, 256, 500, 4
"""Numbers of a sample's tensor that a digest reads, samples of a pass, evaluation passes and answers that are kept."""


@dataclass
class RowDigests:
    """Some bits of the samples of a pass, and their digests, which are computed when they are asked for.

    Each of `parts` are the bits of a tensor, a row for each sample or one for all, with weights. With `is_rich`, a
    sample has so many fractional numbers that equal ones are the same sample. `key` is a hash of all bits of the host.
    """

    parts: list[tuple[Any, Any]]
    is_rich: bool
    key: int | None

    @cached_property
    def values(self) -> Tensor:
        """Digests (B,) of the samples."""
        return torch.as_tensor(sum(self._sums))

    @cached_property
    def is_varied(self) -> Tensor:
        """True (B,) for the samples whose numbers are not all equal."""
        varied = [(bits != bits[:, :1]).any(1) for bits, _ in self.parts]
        return torch.as_tensor(functools.reduce(operator.or_, varied)).expand_as(self.values)

    @cached_property
    def _sums(self) -> list[Any]:
        long = [
            bits.astype(np.int64) if isinstance(bits, np.ndarray) else bits.to(torch.int64) for bits, _ in self.parts
        ]
        return [(bits * weights).sum(1) for bits, (_, weights) in zip(long, self.parts, strict=True)]

    def list_rows(self) -> Iterator[int]:
        """List the digests of the samples whose numbers are not all equal."""
        return itertools.compress(self.values.tolist(), self.is_varied.tolist())


class RowDigest:
    """Digest of samples, exact to the bit: a weighted sum, modulo 2^64, of the bits of evenly spaced numbers."""

    def __init__(self) -> None:
        self._weights: dict[tuple[Any, ...], Any] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> RowDigests:
        """Take the bits of tensors, of which those as long as the first have a row for each sample."""
        number = len(tensors[0]) if tensors[0].ndim else 1
        parts, is_rich = list[tuple[Any, Any]](), False
        for place, tensor in enumerate(tensors):
            has_rows = tensor.ndim > 0 and len(tensor) == number
            flat = _read_bits(tensor).reshape(number if has_rows else 1, -1)
            is_rich = is_rich or (has_rows and tensor.is_floating_point() and flat.shape[1] >= _NUM_DIGITS)
            some = flat[:: max(1, len(flat) // _NUM_DIGESTED), :: max(1, flat.shape[1] // _NUM_DIGITS) | 1]
            some = some.copy() if isinstance(some, np.ndarray) else some.clone()
            parts.append((some, self._get_weights(tensor.device, some.shape[1], place)))
        is_near = tensors[0].is_cpu  # else the numbers would be waited for
        key = hash(tuple([some.tobytes() for some, _ in parts])) if is_near else None
        return RowDigests(parts, is_rich and number < 2 * _NUM_DIGESTED, key)

    def _get_weights(self, *key: Any) -> Any:
        device, size, place = key
        if key not in self._weights:
            weights = torch.randint(-(2**63), 2**63 - 1, (size,), generator=torch.Generator().manual_seed(place))
            weights |= 1
            self._weights[key] = weights.numpy() if device.type == "cpu" else weights.to(device)
        return self._weights[key]


def _read_bits(values: Tensor) -> Any:
    """Read numbers as integers, to the bit; those of the host for NumPy, whose calls cost a fraction of torch's."""
    values = torch.view_as_real(values.detach().resolve_conj()).flatten(-2) if values.is_complex() else values.detach()
    if values.is_floating_point():
        values = values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])
    return values.numpy() if values.device.type == "cpu" else values


@dataclass
class Series:
    """Numbers of a whole loop in bounded memory: each `stride`-th, where the stride doubles as they become many.

    Those of a GPU are kept there until `read`, which waits for it.
    """

    most: int = 1024
    stride: int = 1
    num_seen: int = 0
    kept: list[float | Tensor] = field(default_factory=list)

    def add(self, value: float | Tensor) -> None:
        """Add the next number."""
        if self.num_seen % self.stride == 0:
            if len(self.kept) == self.most:
                self.kept, self.stride = self.kept[::2], 2 * self.stride
            self.kept.append(value)
        self.num_seen += 1

    def read(self) -> list[float]:
        """Read the numbers that are kept."""
        self.kept = list(read_numbers(self.kept))
        return [float(value) for value in self.kept]


def read_numbers(values: list[float | Tensor]) -> list[float]:
    """Read numbers, those of one device at once."""
    on_device = [value for value in values if isinstance(value, Tensor)]
    devices = {value.device for value in on_device}
    read = {
        device: iter(torch.stack([v.double() for v in on_device if v.device == device]).tolist()) for device in devices
    }
    return [next(read[value.device]) if isinstance(value, Tensor) else value for value in values]


def describe_still_loss(trace: Trace) -> str:
    """Say that the loss of a loop ends where it began, within its noise; "" where one of its losses has fallen."""
    curves = [series.read() for series in trace.losses.values() if len(series.kept) >= _MIN_CURVE]
    curves = [curve for curve in curves if all(map(math.isfinite, curve))]
    for curve in curves:
        part = max(len(curve) // 5, _MIN_CURVE // 4)
        first, last = curve[:part], curve[-part:]
        noise = statistics.pstdev(first) + statistics.pstdev(last)
        if statistics.fmean(last) < statistics.fmean(first) - noise / math.sqrt(part):
            return ""
    means = [(statistics.fmean(curve[:5]), statistics.fmean(curve[-5:])) for curve in curves]
    words = ((a, b, "not fallen" if b >= a else "not fallen beyond its noise") for a, b in means[:1])
    return "".join(f"the loss has {how}: {a:.4g} at first, {b:.4g} at the end" for a, b, how in words)


class Inputs(NamedTuple):
    """Statistics (C,) of one leaf of a pass's inputs, by channel: mean and standard deviation of all its numbers."""

    mean: Tensor
    deviation: Tensor
    num_rows: int


class Pull(NamedTuple):
    """Number of outputs of a micro-batch that the loss pulls at, and the mean size of a pull."""

    number: Tensor
    size: Tensor


class Clip(NamedTuple):
    """Norms of gradients after the backward pass and before the update, and the update's share of the weights' norm."""

    backward: Tensor
    used: Tensor
    share: Tensor


@dataclass
class BackwardAddends:
    """Parameters, by identity, below each addend of a loss, and those of the optimisers that stepped after it.

    Also those of models that are not watched.
    """

    leaves: list[frozenset[int]]
    updated: set[int] = field(default_factory=set)


class Norm(NamedTuple):
    """Mean norm of a tensor's rows in the model, their relative spread, the mean norm in the average, first numbers."""

    own: Tensor
    spread: Tensor
    average: Tensor
    few: Tensor


class EvaluatedBatch(NamedTuple):
    """Digests of the samples of an evaluation pass, and the identity of the loader's data set, 0 if it is not known."""

    digests: list[int]
    data: int


class Answers(NamedTuple):
    """Largest outputs (B,) and classes (B,) of passes: of the last one of training, and of the evaluation after it."""

    training: list[tuple[Tensor, Tensor]]
    evaluation: list[tuple[Tensor, Tensor]]
    num_classes: int


@dataclass
class Trace:
    """Record of a loop. Phases are `train` (training mode, recorded for backward) and `eval` (evaluation mode).

    `unused` are backward passes in training mode since the last update, by the line that calls them, `most_unused` the
    most before any update of the lines that it uses. `rates` are learning rates at each update, by optimiser; `losses`
    those of each line that calls backward. `epochs`
    are the updates at which a loader began anew for training. `spreads` are mean standard deviations over the samples
    of an output, with the update. `pulls` are those of the micro-batches of each measured update. `held` are all
    parameters that optimisers of the loop hold. `trained_rows` are digests of samples in training passes, of the data
    sets `trained_sets`; `is_rich` is False once a pass had samples of few numbers. `remainder` counts what a loader
    leaves out of an evaluation, `shared_set` is what both kinds of loaders read parts of, `answers` are those of the
    last evaluations, and `first_evaluation` the number of updates before the first one. `twins` says of measured losses
    that read the outputs of two passes whether these are equal.
    """

    num_backward: int = 0
    num_training_backward: int = 0
    num_updates: int = 0
    unused: Counter[Hashable] = field(default_factory=Counter)
    most_unused: Counter[Hashable] = field(default_factory=Counter)
    changed: list[Tensor] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[Hashable, Series] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    inputs: dict[str, dict[str, list[Inputs]]] = field(default_factory=lambda: {"train": {}, "eval": {}})
    trained_rows: list[RowDigests] = field(default_factory=list)
    num_trained: int = 0
    trained_sets: set[int] = field(default_factory=set)
    evaluated: deque[EvaluatedBatch] = field(default_factory=lambda: deque(maxlen=_MAX_EVALUATED))
    is_rich: bool = True
    remainder: Mapping[str, int] = field(default_factory=dict)
    shared_set: Any = None
    first_evaluation: int | None = None
    answers: deque[Answers] = field(default_factory=lambda: deque(maxlen=_MAX_ANSWERED))
    spreads: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    pulls: list[list[Pull]] = field(default_factory=list)
    clips: dict[str, list[Clip]] = field(default_factory=dict)
    addends: list[BackwardAddends] = field(default_factory=list)
    twins: list[Tensor] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    norms: dict[str, list[Norm]] = field(default_factory=dict)
    is_over: bool = False

    @property
    def trained(self) -> Counter[int]:
        """Digests of samples in training passes, counted."""
        return Counter(itertools.chain.from_iterable(rows.list_rows() for rows in self.trained_rows))
