"""Forward passes: constant outputs and repeated batches; and the graph of the loss."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sightline.contract.pytree import dense_leaves, is_dense, tree_leaves
from sightline.doctor.autograd_graph import get_node_name, skip_shape_operations
from sightline.doctor.rules.events import report
from sightline.doctor.trace import RowDigests
from sightline.doctor.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack, stack_numbers
from sightline.doctor.watch.loss_graph import (
    LossGraph,
    describe_reordered,
    exposed_padding,
    is_of_pairs,
    is_reordered,
    list_parents,
)
from sightline.instrument import Inputs

_NUM_SAME, _NUM_SAME_OF_PLACES = 5, 20
_NUM_REPEATED = 6
"""Different batches in a row that came in this order before."""
_NUM_CONSTANT = 4
"""Sampled passes in a row with constant outputs: a head that starts at zero has one, or a few while it warms up."""
_MIN_LABELS = 8
_MAX_NODES, _MAX_FIRST_NODES = 300, 3000
_NUM_GRAPHS = 3
"""Graphs of losses that are read far enough for the attention of a deep network."""
# (operation of the loss, operation before it): the reason, and causes
_DOUBLE: Mapping[tuple[str, str], str] = {
    ("LogSoftmax", "Softmax"): "cross entropy of probabilities: softmax is applied twice",
    ("LogSoftmax", "Sigmoid"): "cross entropy of sigmoid outputs: softmax of numbers from 0 to 1",
    ("LogSoftmax", "Relu"): "cross entropy of rectified logits: a class at 0 gets no gradient to fall",
    ("BinaryCrossEntropyWithLogits", "Sigmoid"): "binary cross entropy with logits of probabilities: sigmoid twice",
    ("BinaryCrossEntropyWithLogits", "Softmax"): "binary cross entropy with logits of softmax outputs",
    ("NllLoss", "Softmax"): "NLL loss of probabilities: the logarithm is missing",
    ("NllLoss2D", "Softmax"): "NLL loss of probabilities: the logarithm is missing",
}

_CAUSES: Mapping[str, tuple[str, ...]] = {
    "Relu": ("model.activation", "loss.double_softmax"),
    "NllLoss": ("loss.form", "model.activation"),
    "NllLoss2D": ("loss.form", "model.activation"),
}


class OutputMonitor(Monitor):
    """Outputs differ between samples and between batches; batches differ from update to update."""

    def __init__(self) -> None:
        self._digests: dict[int, Tensor] = {}
        self._num_same = 0
        self._num_constant = [0, 0]
        self._last_step = -1
        self._order = _BatchOrder()
        self._last_outputs: list[StorageWeakRef] = []
        self._is_recurrent = False

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterator[Found]:
        if not call.has_gradient or loop.step == self._last_step:
            return
        self._last_step = loop.step
        inputs = [tensor for _, tensor in tree_leaves(call.inputs)]
        self._note_state(call, inputs)
        is_whole = [is_dense(tensor) for tensor in inputs]
        if call.digests and all(is_whole):  # else others may differ
            yield from self._repetition_faults(loop, call, call.digests)
        dense = [tensor for tensor in itertools.compress(inputs, is_whole) if tensor.numel() > 1]
        if loop.is_measured and dense:
            yield from self._constant_faults(loop, call, dense[0])

    def _repetition_faults(self, loop: Loop, call: ForwardCall, digests: RowDigests) -> Iterator[Found]:
        last, values = self._digests.get(id(call.model)), digests.values
        self._digests[id(call.model)] = values
        if values.device.type == "cpu" and last is not None and not torch.equal(last, values):
            self._num_same = 0
        elif last is not None and last.shape == values.shape and self._num_same < _NUM_SAME:
            is_varied = digests.is_varied.any() | (values != values[0]).any()  # a sparse volume may look empty twice
            yield from loop.reader.read(((last == values).all() & is_varied).float(), self._judge_same)
        if values.device.type == "cpu" and not self._is_recurrent:  # elsewhere the numbers would have to be waited for
            yield from self._order.add(hash_numbers([values]))

    def _note_state(self, call: ForwardCall, inputs: Sequence[Tensor]) -> None:
        """Note a pass that goes on from an output of the last one, as chunks of a sequence do: their order counts."""
        if not self._is_recurrent:
            own = {_find_storage(tensor).cdata for tensor in filter(is_dense, inputs)}
            self._is_recurrent = any(last.cdata in own for last in self._last_outputs)
            self._last_outputs = [*map(_find_storage, call.outputs.values())]

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        if isinstance(track.optimizer, torch.optim.LBFGS):  # its line search needs one function: the whole set
            self._num_same = _NUM_SAME
        yield from ()

    def _judge_same(self, value: float) -> Iterator[Found]:
        self._num_same = self._num_same + 1 if value else 0
        if self._num_same == _NUM_SAME - 1:
            yield report(
                "same-batch",
                f"the model gets the same batch at {_NUM_SAME} updates in a row",
                measured="inputs with equal bits",
            )

    def _constant_faults(self, loop: Loop, call: ForwardCall, first_input: Tensor) -> Iterator[Found]:
        """Judge outputs with a row for each sample that are computed by weights: anchors are not, and need not differ.

        One that is constant beside others that are not may be of learnt anchors: it is noted.
        """
        size = len(first_input) if first_input.ndim else 0
        of_samples = {p: t for p, t in call.outputs.items() if t.is_floating_point() and t.ndim > 1 and len(t) == size}
        outputs = [t for path, t in of_samples.items() if path in call.computed] or [*of_samples.values()]
        if not outputs or size < 2:
            return
        first, rows = outputs[0], first_input.reshape(size, -1)
        is_varied, *is_constant = stack_numbers(
            [~(rows == rows[:1]).all(), *((output == output[:1]).all() for output in outputs)]
        )

        def judge(value: float) -> Iterator[Found]:
            is_all, is_first_alone = value == 2, value == 1
            self._num_constant = [
                count + 1 if is_now else 0
                for count, is_now in zip(self._num_constant, (is_all, is_first_alone), strict=True)
            ]
            if _NUM_CONSTANT in self._num_constant:
                yield report(
                    "constant-output",
                    "the model returns the same for every sample of a batch"
                    + ("" if is_all else " in its first output: as of anchors, or of a part that no sample reaches"),
                    severity=None if is_all else "note",
                    measured=f"{len(first)} rows of {tuple(first.shape)} with equal bits, of different inputs",
                    evidence={} if is_all else {"mode": "first"},
                )

        number = is_constant[0].float() + torch.stack(is_constant).all()
        yield from loop.reader.read((is_varied * number).float(), judge)


def _find_storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


class _BatchOrder:
    """Order of the batches so far: a shuffled set never gives the same ones in the same order again."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._num_batches = self._last_place = self._num_repeated = 0

    def add(self, digest: int) -> Iterator[Found]:
        """Judge the next batch by a digest of all its inputs: a user, or a time step, may come again with others."""
        place = self._places.setdefault(digest, self._num_batches)
        is_next = place == self._last_place + 1 and place < self._num_batches
        self._num_repeated = self._num_repeated + 1 if is_next else int(place < self._num_batches)
        self._last_place, self._num_batches = place, self._num_batches + 1
        if self._num_repeated == _NUM_REPEATED:
            yield report(
                "same-order",
                f"the batches come in the order of {self._num_batches - 1 - place} updates ago: "
                "every epoch has the same order",
                measured=f"{_NUM_REPEATED} batches in a row that had the same bits, in the same order, before",
            )


def hash_numbers(parts: Iterable[Tensor]) -> int:
    """Return a hash of the numbers of some tensors, which are on the host."""
    return hash(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts))


class PartMonitor(Monitor):
    """Calls of the parts of a model: inputs read as of other axes, and masks that leave padding alone."""

    def on_module(self, loop: Loop, path: str, module: nn.Module, inputs: Inputs) -> Iterator[Found]:
        for _, tensor in dense_leaves(inputs):
            for source in loop.model_inputs:
                if (
                    tensor.data_ptr() == source.data_ptr()
                    and tensor.ndim == source.ndim
                    and tensor.is_contiguous()
                    and source.is_contiguous()
                    and is_reordered(source.shape, tensor.shape)
                ):
                    yield describe_reordered(source.shape, tensor.shape, layer=path)
        keys, is_ignored = _find_mask(module, *inputs)
        if len(dict(dense_leaves((keys, is_ignored)))) == 2:
            is_ignored = is_ignored if is_ignored.dtype == torch.bool else is_ignored == -math.inf
            keys = keys if getattr(module, "batch_first", True) else keys.transpose(0, 1)
            if keys.ndim == 3 and is_ignored.shape == keys.shape[:2]:

                def judge(value: float) -> Iterator[Found]:
                    if value:
                        yield report(
                            "attention",
                            "the padding mask is upside down: attention reads padding, and leaves out what is there",
                            causes=("data.padding", "model.structure"),
                            measured="the rows that it reads are the same in all samples, those that it leaves out "
                            "are not",
                            action="True of a key_padding_mask is for the keys to leave out: invert it (~mask)",
                            layer=path,
                        )

                yield from loop.reader.read(exposed_padding(keys, is_ignored).float(), judge)


def _find_mask(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the keys and the padding mask of a call of torch's attention, which its encoder layers call, too."""
    if isinstance(module, nn.MultiheadAttention):
        keys = args[1] if len(args) > 1 else kwargs.get("key")
        return keys, args[3] if len(args) > 3 else kwargs.get("key_padding_mask")
    return None, None


def _find_one_class(labels: Tensor, ignored: int) -> Tensor:
    """Return 1 + c (0-d) if enough labels are not ignored, and those are class c, and -1 - c if others are ignored.

    Else 0. The graph's number is unsigned.
    """
    is_kept = labels != (ignored + 2**63) % 2**64 - 2**63
    largest = torch.where(is_kept, labels, labels.amin()).amax()
    is_one = ((labels == largest) | ~is_kept).all() & (is_kept.sum() >= _MIN_LABELS)
    return is_one * (1.0 + largest.float()) * (2.0 * is_kept.all() - 1)


def _take_turns(classes: Sequence[float]) -> bool:
    """Return True if batches of two classes come in turns, as real and generated ones do: no set is sorted so."""
    return len(set(classes)) == 2 and sum(one != other for one, other in itertools.pairwise(classes)) > 1


class LossMonitor(Monitor):
    """Graph of the loss: activations that the loss applies itself; labels that are all the same."""

    is_rare = True

    def __init__(self) -> None:
        self._num_graphs = 0
        self._classes: deque[float] = deque(maxlen=_NUM_SAME_OF_PLACES)
        self._in_turns: set[float] = set()

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if root.grad_fn is None:
            return
        is_early = self._num_graphs < _NUM_GRAPHS
        self._num_graphs += 1
        graph = LossGraph(root.grad_fn, _MAX_FIRST_NODES if is_early else _MAX_NODES)
        yield from graph.find_faults() if is_early else ()
        for node in graph.nodes[:_MAX_NODES]:
            name = get_node_name(node)
            parents = list_parents(node)
            before = get_node_name(skip_shape_operations(parents[0])) if parents else ""
            if (name, before) in _DOUBLE:
                yield report(
                    "double-softmax",
                    _DOUBLE[name, before],
                    severity="warning" if before == "Relu" else None,
                    causes=_CAUSES.get(before if before == "Relu" else name, ()),
                    measured=f"{name} of the loss reads the output of {before}",
                )
            if name.startswith("NllLoss"):
                labels = node._saved_target
                if labels.numel() >= _MIN_LABELS and not is_of_pairs(node):
                    yield from loop.reader.read(_find_one_class(labels, node._saved_ignore_index), self._judge_labels)

    def _judge_labels(self, value: float) -> Iterator[Found]:
        if not value:
            self._classes.clear()
            return
        self._classes.append(abs(value))
        number = _NUM_SAME if value > 0 else _NUM_SAME_OF_PLACES  # with ignored ones: of pixels, or of words
        classes = [*self._classes][-number:]
        if len(self._classes) >= number and _take_turns(classes):
            self._in_turns.update(classes)
        elif len(self._classes) >= number and not self._in_turns.issuperset(classes):
            yield report(
                "same-label",
                f"all labels of a batch are the same class, at each of {number} batches",
                measured=f"one label in each of {number} batches",
            )
