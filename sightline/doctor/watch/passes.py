"""Forward passes: constant outputs and repeated batches, and what parts of a model are called with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader

from sightline.contract.pytree import dense_leaves, is_dense, tree_leaves
from sightline.doctor.attempts import MissingError, observe
from sightline.doctor.evidence.data.reading import RepeatedOrder
from sightline.doctor.evidence.graph import Reshape
from sightline.doctor.evidence.positions import PaddedSteps
from sightline.doctor.evidence.samples import SharedRows
from sightline.doctor.objects import find_alive
from sightline.doctor.rules import find_by
from sightline.doctor.rules.data import same_order
from sightline.doctor.rules.model import constant_output, exchanged_axes, padding_mask
from sightline.doctor.rules.run import same_batch
from sightline.doctor.trace import RowDigests
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack, stack_numbers
from sightline.doctor.watch.loss_graph import is_reordered
from sightline.instrument import Inputs

_NUM_SAME, _NUM_NOTED = 5, 16
_NUM_CONSTANT = 4
"""Sampled passes in a row with constant outputs: a head that starts at zero has one, or a few while it warms up."""


class OutputMonitor(Monitor):
    """Outputs differ between samples and between batches; batches differ from update to update."""

    def __init__(self) -> None:
        self._digests: dict[int, RowDigests] = {}
        self._num_same = 0
        self._num_constant = {1: 0, 2: 0}
        self._last_step = -1
        self._order = _BatchOrder()
        self._last_outputs: list[StorageWeakRef] = []
        self._last_inputs: list[StorageWeakRef] = []
        self._is_recurrent, self._num_noted = False, 0

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterator[Found] | None:
        if not call.has_gradient or loop.step == self._last_step or not (call.digests or loop.is_measured):
            return None
        self._last_step = loop.step
        return self._judge(loop, call)

    def _judge(self, loop: Loop, call: ForwardCall) -> Iterator[Found]:
        inputs = [tensor for _, tensor in tree_leaves(call.inputs)]
        self._note_state(call, inputs)
        is_whole = [is_dense(tensor) for tensor in inputs]
        if call.digests and all(is_whole):  # else others may differ
            yield from self._repetition_faults(loop, call, call.digests)
        dense = [tensor for tensor in itertools.compress(inputs, is_whole) if tensor.numel() > 1]
        if loop.is_measured and dense:
            yield from self._judge_constant(loop, call, dense[0])

    def _repetition_faults(self, loop: Loop, call: ForwardCall, digests: RowDigests) -> Iterator[Found]:
        last, number = self._digests.get(id(call.model)), digests.key
        self._digests[id(call.model)] = digests
        if last is not None and last.key != number:
            self._num_same = 0
        elif last is not None and last.values.shape == digests.values.shape and self._num_same < _NUM_SAME:
            values = digests.values
            is_varied = digests.is_varied.any() | (values != values[0]).any()  # a sparse volume may look empty twice
            inputs = [tensor for _, tensor in tree_leaves(call.inputs)]
            judge = partial(self._judge_same, loop, len(digests.values), self._is_held(inputs))
            if not any(tensor.requires_grad for tensor in inputs):  # points at which slopes are wanted stay
                yield from loop.reader.read(((last.values == values).all() & is_varied).float(), judge)
        if number is not None and not self._is_recurrent:
            yield from self._order.add(number, loop.num_forwards)

    def _note_state(self, call: ForwardCall, inputs: Sequence[Tensor]) -> None:
        """Note a pass that goes on from an output of the last one, as chunks of a sequence do: their order counts."""
        self._num_noted += 1
        if not self._is_recurrent and self._num_noted <= _NUM_NOTED:
            own = {_find_storage(tensor).cdata for tensor in filter(is_dense, inputs)}
            self._is_recurrent = any(last.cdata in own for last in self._last_outputs)
            self._last_outputs = [*map(_find_storage, call.outputs.values())]

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        if isinstance(track.optimizer, torch.optim.LBFGS):  # its line search needs one function: the whole set
            self._num_same = _NUM_SAME

    def _is_held(self, inputs: Sequence[Tensor]) -> bool:
        """Return True for inputs that the loop itself has held since the last pass."""
        held, self._last_inputs = self._last_inputs, [*map(_find_storage, filter(is_dense, inputs))]
        now = {storage.cdata for storage in self._last_inputs}
        return bool(now) and now == {last.cdata for last in held}

    def _judge_same(self, loop: Loop, num_samples: int, is_held: bool, value: float) -> Iterator[Found]:
        self._num_same = self._num_same + 1 if value else 0
        if self._num_same == _NUM_SAME - 1:
            is_whole_set = _is_whole_set(loop, num_samples, is_held)
            yield from find_by(same_batch, num_same=_NUM_SAME, is_whole_set=is_whole_set)

    def _judge_constant(self, loop: Loop, call: ForwardCall, first_input: Tensor) -> Iterable[Found]:
        """Judge outputs with a row for each sample that are computed by weights: anchors are not, and need not differ.

        All of them, and the first one beside others that differ.
        """
        size = len(first_input) if first_input.ndim else 0
        of_samples = {p: t for p, t in call.outputs.items() if t.is_floating_point() and t.ndim > 1 and len(t) == size}
        outputs = {path: t for path, t in of_samples.items() if path in call.computed} or of_samples
        if not outputs or size < 2:
            return ()
        rows, paths = first_input.reshape(size, -1), [path or "output" for path in outputs]
        is_varied, *is_constant = stack_numbers(
            [~(rows == rows[:1]).all(), *((output == output[:1]).all() for output in outputs.values())]
        )

        def judge(value: float) -> Iterator[Found]:
            for kind, names in ((2, paths), (1, paths[:1])):
                number = self._num_constant[kind] = self._num_constant[kind] + 1 if value == kind else 0
                if number == _NUM_CONSTANT:
                    shared_rows = SharedRows(names, len(paths) - len(names), number)
                    yield from find_by(constant_output, shared_rows=shared_rows)

        number = is_constant[0].float() + torch.stack(is_constant).all()
        return loop.reader.read((is_varied * number).float(), judge)


def _find_storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _is_whole_set(loop: Loop, num_samples: int, is_held: bool) -> bool:
    """Return True if a batch is all that there is: that of a loader of one batch, or tensors that the loop holds.

    Held tensors are a batch of more where a loader with batches of this size has others.
    """
    loader = None if loop.loader is None else loop.loader()
    if loader is not None:
        return _count(loader) == 1
    return is_held and not any(each.batch_size == num_samples and _count(each) > 1 for each in find_alive(DataLoader))


def _count(loader: Any) -> float:
    """Count the batches of a loader; infinity for one that does not say."""
    number = observe("length", len, loader)
    return math.inf if isinstance(number, MissingError) else number


class _BatchOrder:
    """Order of the batches so far."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._last, self._last_place, self._num_repeated = 0, -1, 0

    def add(self, digest: int, number: int) -> Iterator[Found]:
        """Judge the pass of a number by a digest of all its inputs: a user, or a time, may come again with others."""
        place = self._places.setdefault(digest, number)
        is_next = place - self._last_place == number - self._last and place < number
        self._num_repeated = self._num_repeated + 1 if is_next else int(place < number)
        self._last, self._last_place = number, place
        if self._num_repeated:
            yield from find_by(same_order, repeated_order=RepeatedOrder(self._num_repeated, number - place))


class PartMonitor(Monitor):
    """Calls of the parts of a model: inputs read as of other axes, and masks that leave padding alone."""

    def on_module(self, loop: Loop, path: str, module: nn.Module, inputs: Inputs) -> Iterator[Found]:
        contiguous = [tensor for _, tensor in dense_leaves(inputs) if tensor.is_contiguous()]
        reshapes = [
            Reshape(tuple(source.shape), tuple(tensor.shape), layer=path)
            for tensor, source in itertools.product(contiguous, filter(Tensor.is_contiguous, loop.model_inputs))
            if tensor.data_ptr() == source.data_ptr() and tensor.ndim == source.ndim
            if is_reordered(source.shape, tensor.shape)
        ]
        yield from find_by(exchanged_axes, reshapes=reshapes) if reshapes else ()
        keys, is_ignored = _find_mask(module, *inputs)
        if len(dict(dense_leaves((keys, is_ignored)))) == 2:
            is_ignored = is_ignored if is_ignored.dtype == torch.bool else is_ignored == -math.inf
            keys = keys if getattr(module, "batch_first", True) else keys.transpose(0, 1)
            if keys.ndim == 3 and is_ignored.shape == keys.shape[:2]:
                (found,) = find_by(padding_mask, padded_steps=PaddedSteps([], is_read=False, has_mask=True, layer=path))
                yield from loop.reader.read_if(_exposes_padding(keys, is_ignored).float(), found)


def _find_mask(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the keys and the padding mask of a call of torch's attention, which its encoder layers call, too."""
    if isinstance(module, nn.MultiheadAttention):
        keys = args[1] if len(args) > 1 else kwargs.get("key")
        return keys, args[3] if len(args) > 3 else kwargs.get("key_padding_mask")
    return None, None


def _exposes_padding(keys: Tensor, is_ignored: Tensor) -> Tensor:
    """Return True (0-d) if the rows that a mask leaves are the same in all samples, and those it hides differ.

    `keys` is (B, N, C), `is_ignored` (B, N), True for rows that attention leaves out. Padding is the same everywhere.
    """
    (is_same_kept, num_kept), (is_same_hidden, _) = (_compare(keys, mask) for mask in (~is_ignored, is_ignored))
    return is_same_kept & (num_kept >= 2) & ~is_same_hidden


def _compare(keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    first = mask.to(torch.uint8).argmax(dim=0)
    reference = keys[first, torch.arange(keys.shape[1], device=keys.device)]
    return ((keys == reference).all(dim=-1) | ~mask).all(), mask.sum(dim=0).max()
