"""Monitor that keeps the trace of a loop, and judges it by the doctor's rules of the run."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from sightline.contract.pytree import dense_leaves
from sightline.doctor.attempts import attempt
from sightline.doctor.autograd_graph import get_node_name, iter_nodes
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.coverage import list_held
from sightline.doctor.evidence.data.reading import SharedSet, count_remainder, find_shared_set
from sightline.doctor.evidence.levels import Levels
from sightline.doctor.evidence.run import count_answers
from sightline.doctor.examine import Examination, examine
from sightline.doctor.finding import Finding
from sightline.doctor.objects import find_alive
from sightline.doctor.record import Chance, Record
from sightline.doctor.trace import (
    Answers,
    BackwardAddends,
    Clip,
    EvaluatedBatch,
    Inputs,
    Norm,
    Pull,
    RowDigests,
    Series,
    Trace,
    describe_still_loss,
)
from sightline.doctor.verdict import WATCH_REMEDIES, Verdict, write_verdict
from sightline.doctor.watch.loop import ForwardCall, Found, Hook, Loop, Monitor, OptimizerTrack, has_slices, take_local
from sightline.doctor.watch.loss_graph import list_variables
from sightline.instrument import observe_updates, replace_function

_NUM_DIGITS, _MAX_ADDENDS, _NUM_OF_EVALUATION, _MAX_EVALUATED = 64, 2048, 4, 64
_MAX_DIGESTED = 256
_MAX_CLASSES = 64
_MAX_TRAINED, _MAX_NODES, _MAX_NORMED = 50_000, 20_000, 1_000_000
_JUDGED = frozenset((50, 200, 1000))
_SUMS = frozenset(("Add", "Sub", "Neg", "Mul", "Div"))
_MEANS = frozenset("Mean Sum Stack Cat View UnsafeView ReshapeAlias Unsqueeze Squeeze Expand ToCopy".split())
"""Operations that add, or collect what is added: two outputs below one of them are not compared with each other."""


class TraceMonitor(Monitor):
    """Trace of the loop: plain numbers at each step, statistics at measured ones, judged a few times and at the end."""

    def __init__(self, averages: Sequence[nn.Module], known: Sequence[Finding], record: Record) -> None:
        self.trace = Trace()
        self._record = record
        self.level_source: Callable[[], Levels] | None = None
        self.chance_source: Callable[[], list[Chance]] | None = None
        self._known = known
        self.examination: Examination | None = None
        self._averages = averages
        self._num_evaluated = self._num_evaluated_in_all = self._num_trained = 0
        self._is_late = self._is_unscaled = False
        self._clip: tuple[Tensor, Tensor, list[Tensor]] | None = None
        self._pulls: dict[Hashable, list[Pull]] = {}
        self._norms: dict[int, Tensor] = {}
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._set: weakref.ref[Any] | None = None
        self._remainder: Any = None
        self._outputs: list[tuple[Any, Tensor]] = []
        self._paired_input: weakref.ref[Tensor] | None = None
        self._classes: list[Tensor] = []
        self._trained_classes: list[Tensor] = []

    # --- what enters and leaves the model ------------------------------------------------------------------------

    @contextmanager
    def follow(self, loop: Loop) -> Iterator[None]:
        """Context in which the loaders that the loop iterates are seen."""

        begin = Hook(loop, partial(self._begin_epoch, loop), what="epochs")
        keep = Hook(loop, partial(self._keep_classes, loop), what="batches of loaders")

        def iterate(run: Any, loader: Any) -> Any:
            begin(loader)
            return run(loader)

        def read(run: Any, batches: Any) -> Any:
            batch = run(batches)
            keep(batch)
            return batch

        update = Hook(loop, partial(self._keep_updated, loop), what="updates of other models")
        with (
            replace_function(DataLoader, "__iter__", iterate),
            replace_function(_BaseDataLoaderIter, "__next__", read),
            observe_updates(update, lambda _: None),
        ):
            yield

    def _keep_updated(self, loop: Loop, optimizer: torch.optim.Optimizer) -> None:
        """Keep which parameters of a measured loss are updated after it, also of models that are not watched."""
        if loop.runs_here and self.trace.addends and self.trace.addends[-1].leaves:
            held = list_held([optimizer])
            self.trace.addends[-1].updated |= held
            self.trace.held |= held

    def _begin_epoch(self, loop: Loop, loader: Any) -> None:
        """Note the set of a loader that is iterated anew, and what it leaves out."""
        if loop.runs_here:
            self._set = weakref.ref(loader.dataset) if hasattr(loader.dataset, "__weakref__") else None
            is_evaluation = not any(model.training for model in loop.models.values())
            self._remainder = attempt("remainder", count_remainder, {"loader": loader}) if is_evaluation else None
            trained = None if loop.loader is None else loop.loader()
            if is_evaluation and trained is not None and self.trace.shared_set is None:
                sets = {"one": trained.dataset, "other": loader.dataset}
                found = attempt("the sets of both loaders", find_shared_set, sets)
                self.trace.shared_set = found if isinstance(found, SharedSet) else None
            if torch.is_grad_enabled() and all(model.training for model in loop.models.values()):
                self.trace.epochs.append(self.trace.num_updates)
                loop.first_of_epoch = loop.num_forwards + 1
                loop.num_epochs += 1
                loop.loader = weakref.ref(loader)

    def _keep_classes(self, loop: Loop, batch: Any) -> None:
        """Keep the classes of a batch that a loader has read."""
        if loop.runs_here:
            leaves = [leaf for _, leaf in dense_leaves(batch) if leaf.device.type == "cpu"]  # no waiting
            self._classes = [leaf for leaf in leaves if leaf.dtype == torch.int64 and leaf.ndim == 1]

    @property
    def reads_evaluation(self) -> bool:
        """True for an evaluation pass whose samples are read: the first of each evaluation, and many at first."""
        return self._num_evaluated < _NUM_OF_EVALUATION or self._num_evaluated_in_all < _MAX_DIGESTED

    def on_forward(self, loop: Loop, call: ForwardCall) -> None:
        """Keep statistics and digests of the inputs."""
        is_training = call.has_gradient and call.model.training
        if not is_training and call.model.training:
            return
        phase = "train" if is_training else "eval"
        if is_training:
            self._num_evaluated = 0
            is_read = loop.is_measured or (self._num_trained < 2 * _NUM_OF_EVALUATION)
            self._num_trained += 1
            self._trained_classes = self._classes
        else:
            self._keep_evaluation(loop, call)
            self._num_evaluated += 1
            self._num_evaluated_in_all += 1
            is_read = self._num_evaluated <= _NUM_OF_EVALUATION and self._num_evaluated_in_all <= 2 * _MAX_EVALUATED
        if call.digests is not None and call.digests.key is not None and call.has_gradient == is_training:
            self._keep_rows(call.digests, is_training)
        for path, tensor in dense_leaves(call.inputs) if is_read else ():
            if tensor.ndim > 1 and tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.uint8):
                self.trace.inputs[phase].setdefault(path, []).append(_describe_inputs(tensor.detach()))
        if is_training and loop.is_measured:
            self._keep_spreads(loop, call)

    def _keep_evaluation(self, loop: Loop, call: ForwardCall) -> None:
        """Keep what the loader of an evaluation leaves out, and the answers to the classes of its first batches."""
        trace, data = self.trace, None if self._set is None else id(self._set())
        if isinstance(self._remainder, Mapping) and data not in trace.trained_sets and not trace.remainder:
            trace.remainder = self._remainder
        if self._num_evaluated < _MAX_EVALUATED and (pair := _answer(call, self._classes)):
            if self._num_evaluated == 0 and loop.call is not None:
                trace.first_evaluation = trace.num_updates if trace.first_evaluation is None else trace.first_evaluation
                trained = _answer(loop.call, self._trained_classes)
                trace.answers.append(Answers([trained] if trained else [], [], _find_scores(call).shape[1]))
            if trace.answers:
                trace.answers[-1].evaluation.append(pair)

    def _keep_rows(self, digests: RowDigests, is_training: bool) -> None:
        trace = self.trace
        data = None if self._set is None else self._set()
        if is_training and trace.num_trained < _MAX_TRAINED:
            trace.trained_rows.append(digests)
            trace.num_trained += len(digests.parts[0][0])
            trace.trained_sets.add(0 if data is None else id(data))
        elif not is_training:
            rows = list(digests.list_rows())
            trace.evaluated.append(EvaluatedBatch(rows, 0 if data is None else id(data)))
        trace.is_rich = trace.is_rich and digests.is_rich and trace.num_trained < _MAX_TRAINED

    def _keep_spreads(self, loop: Loop, call: ForwardCall) -> None:
        prefix = next((name for name, model in loop.models.items() if model is call.model), "")
        for path, tensor in call.outputs.items():
            if tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) > 1:
                spread = tensor.flatten(1)[:, : _NUM_DIGITS * _NUM_DIGITS].float().std(0).mean()
                self.trace.spreads.setdefault(f"{prefix}{path}".rstrip("."), []).append(
                    (self.trace.num_updates, spread)
                )

    def on_outputs_measured(self, loop: Loop, outputs: Any) -> None:
        """Read how the loss pulls at the outputs of a measured micro-batch."""
        leaves = [tensor for _, tensor in dense_leaves(outputs) if tensor.requires_grad and tensor.ndim > 1]
        self._outputs += [(tensor.grad_fn, tensor.detach()) for tensor in leaves[:1]]
        if leaves and loop.call is not None:
            max(leaves, key=Tensor.numel).register_hook(
                Hook(loop, partial(self._keep_pull, loop, id(loop.call.model)), what="gradients of outputs")
            )

    def _keep_pull(self, loop: Loop, model: int, gradient: Tensor) -> None:
        """Keep the pull beside those of the same line and model: losses of other lines count other things."""
        with torch.no_grad():
            count = (gradient != 0).sum()
            pull = Pull(count, gradient.abs().double().sum() / count.clamp(min=1))
            self._pulls.setdefault((loop.call_site, model), []).append(pull)

    # --- losses, gradients, updates ------------------------------------------------------------------------------

    def before_backward(self, loop: Loop, root: Tensor) -> None:
        """Keep the loss."""
        trace = self.trace
        trace.num_backward += 1
        if loop.call is not None and loop.call.model.training:
            trace.num_training_backward += 1
            trace.unused[loop.call_site] += 1
        if trace.num_backward == 1:
            self._is_late = root.device.type != "cpu"
            self._weights = [(p, _take_few(p).clone()) for p in loop.parameters().values() if has_slices(p)]
        if loop.loss is not None and root.numel() == 1:
            value = loop.loss if loop.loss_value is None else loop.loss_value
            trace.losses.setdefault(hash(loop.call_site), Series()).add(value)
        if not loop.is_measured and trace.addends and trace.addends[-1].leaves:
            trace.addends.append(BackwardAddends([]))

    def before_backward_measured(self, loop: Loop, root: Tensor) -> None:
        """Take the sum of the loss apart, and compare the outputs of two passes that one of its terms reads."""
        self._keep_average_norms(loop)
        passes, self._outputs = self._outputs, []
        pairs = [pair for pair in itertools.pairwise(passes) if pair[0][1].shape == pair[1][1].shape]
        pairs = [] if pairs and self._has_kept_inputs(loop) else pairs
        terms = [set(iter_nodes([term])) for term in list_addends(root.grad_fn, through=_MEANS)] if pairs else []
        self.trace.twins += [
            (a == b).all()
            for (one, a), (other, b) in pairs
            if one is not other and any({one, other} <= nodes for nodes in terms)
        ]
        if self.trace.num_backward < _MAX_ADDENDS:
            leaves = [list_leaves(addend) for addend in list_addends(root.grad_fn)]
            self.trace.addends.append(BackwardAddends([frozenset(each) for each in leaves if each]))

    def _has_kept_inputs(self, loop: Loop) -> bool:
        """Return True if a pass has the very inputs of the last measured one: all that there is, not drawn views."""
        leaves = [] if loop.call is None else [tensor for _, tensor in dense_leaves(loop.call.inputs)]
        last, self._paired_input = self._paired_input, weakref.ref(leaves[0]) if leaves else None
        return last is not None and bool(leaves) and last() is leaves[0]

    def after_backward_measured(self, loop: Loop) -> None:
        """Keep the norm of the gradients of each optimiser."""
        for key, track in loop.tracks.items():
            self._norms[key] = compute_norm(list(track.gradients.values()))

    def before_unscaling(self, loop: Loop, track: OptimizerTrack) -> None:
        """Leave out the norms of an optimiser whose gradients a GradScaler divides."""
        self._is_unscaled = True

    def before_update(self, loop: Loop, track: OptimizerTrack) -> None:
        """Keep the learning rate."""
        trace = self.trace
        trace.rates.setdefault(_name(loop, track), []).append(track.lr)

    def before_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        """Keep the norm of what is used."""
        norm = self._norms.pop(id(track.optimizer), None)
        self._clip = None
        few = _list_few(track, copies=True) if norm is not None and not self._is_unscaled else []
        if norm is not None and few:
            self._clip = norm, compute_norm([*track.gradients.values()]), few

    def after_update_measured(self, loop: Loop, track: OptimizerTrack) -> None:
        """Keep how far the weights have moved."""
        if self._clip is not None:
            norm, used, before = self._clip
            moves = [*torch._foreach_sub(_list_few(track), before)]
            share = compute_norm(moves) / compute_norm(before).clamp(min=1e-12)
            self.trace.clips.setdefault(_name(loop, track), []).append(Clip(norm, used, share))

    def after_update(self, loop: Loop, track: OptimizerTrack) -> Iterator[Found] | None:
        """Keep the pulls of micro-batches of one update, and judge now and then."""
        self.trace.pulls += [pulls for pulls in self._pulls.values() if len(pulls) > 1]
        self._pulls.clear()
        self.trace.num_updates += 1
        self.trace.most_unused |= self.trace.unused
        self.trace.unused.clear()
        return self._examine() if self.trace.num_updates in _JUDGED and not self._is_late else None

    def _keep_average_norms(self, loop: Loop) -> None:
        for average in self._averages:
            own = {name: t for model in loop.models.values() for name, t in _list_state(model)}
            for name, tensor in _list_state(average):
                mine = own.get(name.removeprefix("module."))
                if mine is None or mine.shape != tensor.shape or not 2 < mine.numel() < _MAX_NORMED:
                    continue
                for dim in (0, -1)[: mine.ndim]:
                    norms, others = (torch.linalg.vector_norm(t.detach().float(), dim=dim) for t in (mine, tensor))
                    spread = norms.std(correction=0) / norms.mean().clamp(min=1e-12)
                    kept = self.trace.norms.setdefault(f"{name}{' by columns' * (dim == 0)}", [])
                    kept.append(Norm(norms.mean(), spread, others.mean(), _take_few(mine).clone()))

    def on_end(self, loop: Loop) -> Iterator[Found]:
        """Judge the whole trace."""
        trace = self.trace
        trace.is_over = True
        trace.held |= list_held(find_alive(torch.optim.Optimizer))  # some are of models that are not watched
        trace.changed = [(_take_few(p) != old).any() for p, old in self._weights if has_slices(p)]
        if loop.call is not None and loop.call.model.training:
            self._keep_spreads(loop, loop.call)
        self._keep_average_norms(loop)
        if trace.num_backward:
            yield from self._examine()

    def _examine(self) -> Iterator[Found]:
        given: dict[str, Any] = {"trace": self.trace, "record": self._record}
        if self.trace.shared_set is not None:
            given["shared_set"] = self.trace.shared_set
        if self.trace.remainder:
            given["evaluation_remainder"] = self.trace.remainder
        sources = {"level_source": self.level_source, "chance_source": self.chance_source}
        given |= {name: source for name, source in sources.items() if source is not None and self.trace.is_over}
        if self.trace.answers:
            given["confusion"] = count_answers(self.trace)
        self.examination = examine(Evidence(given, 1.0))
        explained = {cause for finding in self._known if finding.severity != "note" for cause in finding.causes}
        for finding in self.examination.findings:
            if finding.causes[0] not in explained:  # else a monitor has said it, or an earlier examination
                yield finding

    def write_verdict(self, gaps: Sequence[str], lacks: Iterable[str], first: Examination) -> Verdict:
        """Write the verdict of the last examination, with what was not seen, and say of a loss that has not fallen so.

        `lacks` names what a caller has not given. What was judged of the `first` step is counted, too.
        """
        own = self.examination or Examination()
        judged = [judgement for judgement in first.judgements if judgement.outcome in ("held", "broken")]
        examination = Examination([*own.findings, *first.findings], [*own.judgements, *judged])
        seen = {finding.code for finding in self._known if finding.severity != "note"}
        num_seen = len(seen - {finding.code for finding in examination.findings})
        remark = describe_still_loss(self.trace)
        return write_verdict(
            examination, remedies=WATCH_REMEDIES, lacks=lacks, gaps=gaps, num_seen=num_seen, remark=remark
        )


def _find_scores(call: ForwardCall) -> Tensor:
    """Find the outputs (B, classes) of a pass; without any, no numbers."""
    rows = [
        t for t in call.outputs.values() if t.is_floating_point() and t.ndim == 2 and 2 < t.shape[1] <= _MAX_CLASSES
    ]
    return rows[0] if len(rows) == 1 else torch.zeros(0, 0)


def _answer(call: ForwardCall, classes: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the largest outputs of a pass and the classes that a loader gave with its samples; None without any."""
    scores = _find_scores(call)
    fitting = [
        each
        for each in classes
        if len(each) == len(scores) > 0 and 0 <= int(each.min()) <= int(each.max()) < scores.shape[1]
    ]
    return (scores.argmax(1), fitting[0]) if len(fitting) == 1 else None


def list_addends(node: Any, *, through: Container[str] = ()) -> list[Any]:
    """List the nodes whose values a loss adds, with any constant factor, also inside of the operations `through`."""
    found, open_nodes = list[Any](), [node]
    while open_nodes and len(found) < _NUM_DIGITS:
        node = open_nodes.pop()
        if node is None:
            continue
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        name = get_node_name(node)
        if name in ("Add", "Sub", "Neg") or name in through or (name in _SUMS and len(parents) == 1):
            open_nodes += parents
        else:
            found.append(node)
    return found


def list_leaves(node: Any) -> set[int]:
    """List the identities of the leaves below a node; empty if the graph is large."""
    nodes = list(itertools.islice(iter_nodes([node]), _MAX_NODES + 1))
    return list_variables(nodes) if len(nodes) <= _MAX_NODES else set()


def _name(loop: Loop, track: OptimizerTrack) -> str:
    """Name an optimiser; one of several of a class by its number, too."""
    if len(loop.tracks) == 1:
        return track.name
    alike = [each for each in loop.tracks.values() if each.name == track.name]
    return f"{track.name} {alike.index(track) + 1}" if len(alike) > 1 else track.name


def _describe_inputs(tensor: Tensor) -> Inputs:
    """Describe a leaf by channel: the second dimension of images and volumes, else the last one."""
    values = tensor.float().movedim(1, -1) if tensor.ndim > 3 else tensor.float()
    flat = values.reshape(-1, values.shape[-1])
    return Inputs(flat.mean(0), flat.std(0, correction=0), len(tensor))


def compute_norm(tensors: list[Tensor]) -> Tensor:
    """Compute the norm of all numbers of the tensors that lie on the first one's device: no copy between devices."""
    dense = [take_local(tensor.detach()) for tensor in tensors if tensor.layout is torch.strided]
    if not dense:
        return torch.zeros(())
    near = [tensor for tensor in dense if tensor.device == dense[0].device]
    return torch.stack([norm.double() for norm in torch._foreach_norm(near)]).norm()


def _list_few(track: OptimizerTrack, *, copies: bool = False) -> list[Tensor]:
    few = [_take_few(p) for p in track.probes if has_slices(p)]
    return [each.clone() for each in few] if copies else few


def _take_few(tensor: Tensor) -> Tensor:
    """Take the first numbers of a tensor."""
    return take_local(tensor.detach()).flatten()[:_NUM_DIGITS]


def _list_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List the parameters and buffers that are averaged."""
    yield from ((name, t) for name, t in model.named_parameters() if has_slices(t))
    yield from ((name, t) for name, t in model.named_buffers() if t.is_floating_point())
