"""Forward passes: modes of batch norm and dropout, constant outputs, repeated batches; and the graph of the loss."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sightline.contract.pytree import tree_leaves
from sightline.instrument import Inputs
from sightline.workbench.check.core.object_graph import get_node_name, skip_shape_operations
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import ForwardCall, Found, Loop, Monitor, OptimizerTrack
from sightline.workbench.watch.loss_graph import (
    LossGraph,
    describe_reordered,
    exposed_padding,
    is_of_pairs,
    is_reordered,
    list_parents,
)

_NORMS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NUM_EVALUATED = 3
_NUM_MOVED = 8
_NUM_SAME, _NUM_SAME_OF_PLACES, _MAX_INPUTS = 5, 20, 4
_NUM_REPEATED = 6
"""Different batches in a row that came in this order before."""
_NUM_CONSTANT = 4
"""Sampled passes in a row with constant outputs: a head that starts at zero has one, or a few while it warms up."""
_MIN_LABELS = 8
_SAMPLE_SIZE = 256
_MAX_ROWS, _MAX_EVALUATED, _MIN_NUMBERS, _NUM_DIGESTED = 50_000, 500, 16, 16
_MIN_REPEATED, _MIN_MIXED, _MIN_SEEN, _MIN_BATCHES = 0.9, 0.9, 5, 1.5
"""Share of training rows that come twice; share of mixed batches, rows of both kinds, and rows in batches, of a split
that overlaps."""
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


class _Passes:
    """Passes of a model in training mode without gradients, between two updates.

    They are intended if the same inputs come again and again, as draws of dropout to be averaged do, or if they adapt
    the statistics of batch norms that an evaluation then uses.
    """

    def __init__(self) -> None:
        self.number = self.step = self._num_inputs = 0
        self.is_intended, self.layer = False, ""
        self._last: weakref.ref[Tensor] | None = None
        self._times: dict[int, int] = {}

    def add(self, call: ForwardCall, step: int) -> None:
        """Note a pass: on a CPU, inputs of the same numbers are the same, elsewhere those of one tensor in a row."""
        inputs = [tensor for _, tensor in tree_leaves(call.inputs) if tensor.numel()][:_MAX_INPUTS]
        self.number, self.step = self.number + 1, self.step or step
        if not inputs:
            return
        if self._last is None or self._last() is not inputs[0]:
            self._last, self._num_inputs = weakref.ref(inputs[0]), self._num_inputs + 1
        is_read = all(tensor.device.type == "cpu" for tensor in inputs)
        key = _hash_numbers(map(take_sample, inputs)) if is_read else self._num_inputs
        self._times[key] = self._times.get(key, 0) + 1
        self.is_intended = self.is_intended or self._times[key] == _NUM_EVALUATED


class ModeMonitor(Monitor):
    """Training flags of a model and of its batch norms and dropouts, against what the loop does with them."""

    def __init__(self) -> None:
        self._has_trained: dict[int, bool] = {}
        self._modules: dict[int, list[tuple[str, nn.Module]]] = {}
        self._held: dict[str, tuple[Any, int, int, Any]] = {}
        self._has_learned: dict[int, Tensor] = {}
        self._evaluations: dict[int, _Passes] = {}

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterator[Found]:
        key, model = id(call.model), call.model
        modules = self._modules.get(key)
        if modules is None:
            modules = self._modules[key] = [
                (name, m)
                for name, m in model.named_modules()
                if isinstance(m, _NORMS) or (isinstance(m, _DROPOUTS) and m.p > 0)
            ]
            self._held |= {
                name: (m, m.weight._version, count._version, count > 1)
                for name, m in modules
                if isinstance(m, _NORMS) and m.affine and not m.weight.requires_grad
                if (count := m.num_batches_tracked) is not None
            }
            self._has_learned |= {
                id(m): ((m.running_mean != 0) | (m.running_var != 1)).any()
                for _, m in modules
                if not m.training and isinstance(m, _NORMS) and m.running_mean is not None
            }
        if not modules:
            return
        if call.has_gradient:
            yield from self._end_evaluations()
            self._has_trained[key] = self._has_trained.get(key, False) or model.training
            if model.training:
                yield from _norm_faults(modules, self._has_learned)
            return
        passes = self._evaluations.setdefault(key, _Passes())
        if model.training:
            passes.add(call, loop.step + 1)
            is_reset = any(getattr(m, "momentum", 0.1) is None for _, m in modules)  # as `update_bn` of torch does
            passes.is_intended = passes.is_intended or is_reset
            passes.layer = modules[0][0]
        elif any(isinstance(m, _NORMS) for _, m in modules):
            passes.is_intended = True  # statistics were adapted, and evaluation begins now

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        yield from self._end_evaluations()

    def _end_evaluations(self) -> Iterator[Found]:
        """Judge the passes without gradients since the last update."""
        for passes in self._evaluations.values():
            if passes.number >= _NUM_EVALUATED and not passes.is_intended:
                yield report(
                    "mode",
                    "the model is evaluated in training mode: dropouts draw, batch norms use the batch",
                    causes=("eval.mode", "model.norm_mode"),
                    measured=f"{passes.number} forward passes in a row without gradients, with training=True",
                    layer=passes.layer,
                    step=passes.step,
                    evidence={"mode": "training"},
                )
        self._evaluations.clear()

    def before_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found]:
        call = loop.call
        if call is None or call.model.training or not self._modules.get(id(call.model)):
            return
        own = {id(parameter) for parameter in track.parameters.values()}
        if not any(id(parameter) in own for parameter in call.model.parameters()):  # a critic of what is trained
            return
        was_training = self._has_trained.get(id(call.model), False)
        yield report(
            "mode",
            "the model trains in evaluation mode" + (", since an evaluation" if was_training else ""),
            severity="error" if was_training else None,
            causes=("model.norm_mode", "eval.mode"),
            measured="training=False in the forward pass of an update"
            + (", True in those before" if was_training else ""),
            layer=self._modules[id(call.model)][0][0],
            evidence={"mode": "evaluation"},
        )

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge learnt statistics: those of a batch norm whose weights never change stay as they are, too."""
        yield from self._end_evaluations()
        moved = [
            name
            for name, (module, weight, count, is_learned) in self._held.items()
            if module.weight._version == weight and not module.weight.requires_grad
            if module.num_batches_tracked._version - count >= _NUM_MOVED and bool(is_learned)
        ]
        if moved:
            yield report(
                "mode",
                f"{len(moved)} frozen batch norm(s) go on averaging statistics, '{moved[0]}' first",
                causes=("model.norm_mode", "model.frozen_unintended"),
                measured="weights that never changed, and running statistics that did",
                action="call eval() on frozen parts after each train(), or let their weights train",
                layer=moved[0],
                evidence={"mode": "statistics"},
            )


def _norm_faults(modules: list[tuple[str, nn.Module]], has_learned: Mapping[int, Tensor]) -> Iterator[Found]:
    """Yield a fault for batch norms in evaluation mode whose weights train, in a model in training mode.

    Not for those that were so from the start with statistics that they had learned: a fine-tuning keeps them.
    """
    held = [
        name
        for name, m in modules
        if not m.training and isinstance(m, _NORMS) and m.affine and m.weight.requires_grad
        if not bool(has_learned.get(id(m), False))
    ]
    if held:
        yield report(
            "mode",
            f"{len(held)} batch norm(s) in evaluation mode while the model trains, '{held[0]}' first",
            causes=("model.norm_mode",),
            measured="training=False, and requires_grad=True of their weights",
            action="call train() on them, or freeze their weights too if that is intended",
            layer=held[0],
            evidence={"mode": "norm"},
        )


class OutputMonitor(Monitor):
    """Outputs differ between samples and between batches; batches differ from update to update."""

    def __init__(self) -> None:
        self._digests: dict[int, list[Tensor]] = {}
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
        inputs = [tensor for _, tensor in tree_leaves(call.inputs) if tensor.numel() > 1]
        if not inputs:
            return
        self._note_state(call)
        digest = [take_sample(tensor) for tensor in inputs[:_MAX_INPUTS]]
        last = self._digests.get(id(call.model))
        self._digests[id(call.model)] = digest
        if last is not None and [t.shape for t in last] == [t.shape for t in digest] and self._num_same < _NUM_SAME:
            same = torch.stack([(a == b).all() for a, b in zip(last, digest, strict=True)]).all()
            is_telling = torch.stack([(a != a[0]).any() for a in digest]).any()  # a sparse volume may look empty twice
            yield from loop.reader.read((same & is_telling).float(), self._judge_same)
        is_read = all(part.device.type == "cpu" for part in digest)  # elsewhere the numbers would have to be waited for
        if is_read and not self._is_recurrent:
            yield from self._order.add(_hash_numbers(digest))
        if loop.is_sampled:
            yield from self._constant_faults(loop, call, inputs[0])

    def _note_state(self, call: ForwardCall) -> None:
        """Note a pass that goes on from an output of the last one, as chunks of a sequence do: their order counts."""
        own = {StorageWeakRef(tensor.untyped_storage()).cdata for _, tensor in tree_leaves(call.inputs)}
        self._is_recurrent = self._is_recurrent or any(last.cdata in own for last in self._last_outputs)
        self._last_outputs = [StorageWeakRef(tensor.untyped_storage()) for _, tensor in tree_leaves(call.outputs)]

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
        is_constant = torch.stack([(output == output[:1]).all() for output in outputs])
        is_varied = ~(rows == rows[:1]).all()

        def judge(value: float) -> Iterator[Found]:
            is_all, is_alone = value == 2, value == 1
            self._num_constant = [
                count + 1 if is_now else 0 for count, is_now in zip(self._num_constant, (is_all, is_alone), strict=True)
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

        yield from loop.reader.read((is_varied * (is_constant[0].float() + is_constant.all())).float(), judge)


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


def take_sample(values: Tensor) -> Tensor:
    """Take evenly spaced values; the odd step meets every column of an image, which may be empty at its edge."""
    flat = values.detach().flatten()
    return flat[:: max(1, math.ceil(flat.numel() / _SAMPLE_SIZE)) | 1].clone()


def _hash_numbers(parts: Iterable[Tensor]) -> int:
    return hash(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts))


class PartMonitor(Monitor):
    """Calls of the parts of a model: inputs read as of other axes, and masks that leave padding alone."""

    def on_module(self, loop: Loop, path: str, module: nn.Module, inputs: Inputs) -> Iterator[Found]:
        for _, tensor in tree_leaves(inputs):
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
        if isinstance(keys, Tensor) and isinstance(is_ignored, Tensor):
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


class SplitMonitor(Monitor):
    """Samples of evaluations that updates have seen: rows of inputs with the same numbers, judged at the end.

    An evaluation of the training set itself has rows of it alone; a split that overlaps has both in each batch.
    """

    def __init__(self) -> None:
        self._num_trained: dict[int, int] = {}
        self._evaluated: deque[list[int]] = deque(maxlen=_MAX_EVALUATED)

    def on_forward(self, loop: Loop, call: ForwardCall) -> Iterator[Found]:
        is_full = len(self._num_trained) >= _MAX_ROWS
        if (is_full and call.has_gradient) or call.has_gradient != call.model.training:
            return
        inputs = [t for _, t in tree_leaves(call.inputs) if t.ndim and t.numel() and t.device.type == "cpu"]
        rows = next((t for t in inputs if t.is_floating_point() and t.ndim > 1), None)
        if rows is None or rows[0].numel() < _MIN_NUMBERS:
            return
        digests = list_row_digests(rows, [t for t in inputs if t is not rows and len(t) == len(rows)])
        if call.has_gradient:
            for digest in digests:
                self._num_trained[digest] = self._num_trained.get(digest, 0) + 1
        else:
            self._evaluated.append(digests)
        yield from ()

    def on_end(self, loop: Loop) -> Iterator[Found]:
        trained = self._num_trained
        num_repeated = sum(count > 1 for count in trained.values())
        if not trained or len(trained) >= _MAX_ROWS or num_repeated < _MIN_REPEATED * len(trained):
            return  # an evaluation of the training set, of which not all has been read yet, looks the same
        batches = [digests for digests in self._evaluated if any(digest in trained for digest in digests)]
        mixed = [digests for digests in batches if not all(digest in trained for digest in digests)]
        rows = {digest for digests in mixed for digest in digests}
        seen = sum(digest in trained for digest in rows)
        is_many = len(rows) > _MIN_BATCHES * max(map(len, mixed), default=1)  # and not one at a border of two sets
        is_all = len(mixed) >= max(2, _MIN_MIXED * len(batches))
        if not (is_many or is_all) or seen < _MIN_SEEN or len(rows) - seen < _MIN_SEEN:
            return
        yield report(
            "split-overlap",
            f"{seen} of {len(rows)} samples that are evaluated are trained on, too: the split overlaps",
            measured=f"inputs with equal bits in an update, in {len(mixed)} of {len(batches)} batches with any",
        )


def list_row_digests(rows: Tensor, others: Sequence[Tensor] = ()) -> list[int]:
    """List a digest of each sample, of evenly spaced numbers of all its inputs; rows of one number alone have none.

    The features of a user alone are no sample: `others` tell which item they are paired with.
    """
    parts = [tensor.detach().reshape(len(rows), -1) for tensor in (rows, *others)]
    parts = [part[:, :: max(1, part.shape[1] // _NUM_DIGESTED) | 1].contiguous() for part in parts]
    is_kept = (parts[0] != parts[0][:, :1]).any(dim=1)
    numbers = torch.cat([part.view(torch.uint8) for part in parts], dim=1)[is_kept]
    return [hash(row.tobytes()) for row in numbers.numpy()]


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

    def __init__(self) -> None:
        self._num_graphs = 0
        self._classes: deque[float] = deque(maxlen=_NUM_SAME_OF_PLACES)
        self._in_turns: set[float] = set()

    def before_backward(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if not loop.is_sampled or root.grad_fn is None:
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
