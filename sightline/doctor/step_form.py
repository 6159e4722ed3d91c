"""Form of a program that is observed: a step, run on a copy, shows what its model is called with and its loss reads."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.pytree import dense_leaves, is_dense, tree_children, tree_leaves, tree_map
from sightline.doctor.attempts import MissingError, NotApplicableError, attempt
from sightline.doctor.batches import count_rows
from sightline.doctor.form import Batch, Form, Held, describe, hold, map_held, release, standing_in
from sightline.doctor.objects import (
    find_generators,
    find_read_values,
    get_state,
    iter_reachable,
    preserve_generators,
    set_state,
)
from sightline.instrument import InterceptedFunctions, copy_module, observe_updates
from sightline.instrument.random_state import preserve_random_state, seed_all

_READERS = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __contains__ equal allclose is_nonzero".split()
)
"""Functions by which numbers of a tensor leave torch."""
_ROUNDING, _SEED = 1e-4, 20_011
Step = Callable[[Any], Tensor]


class ModelCall(NamedTuple):
    """Call of a model in a step: its arguments and outputs, and whether it has a gradient."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    has_gradient: bool
    autocast: torch.dtype | None
    depends_on_outputs: bool


class _EndOfCalls(BaseException):
    """Ends a step whose last call of the model is known; no handler of `Exception` in the step takes it."""


class Whole(NamedTuple):
    """Loss of a step that does not divide, in the place of outputs."""

    held: Held


@contextmanager
def _calling(model: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Context in which calls of a module, its hooks included, are those of `call`."""
    members = vars(model)
    had = "_compiled_call_impl" in members
    before = members.get("_compiled_call_impl")
    members["_compiled_call_impl"] = call
    try:
        yield
    finally:
        if had:
            members["_compiled_call_impl"] = before
        else:
            del members["_compiled_call_impl"]


@contextmanager
def _keeping_modes(model: nn.Module) -> Iterator[None]:
    """Context that puts the modes of a model's layers back at its end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _running_eagerly() -> AbstractContextManager[Any]:
    """Return a context in which what torch has compiled runs as Python: its code has the model inside."""
    is_compiled = "torch._dynamo.eval_frame" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


def _refuse_update(_: torch.optim.Optimizer) -> None:
    raise UserError("check: step= returns the loss of a batch, before backward() and the update; it steps an optimizer")


class Company:
    """Modules other than the model that a step reaches, such as losses and teachers, and copies that stand in."""

    def __init__(self, step: Step, model: nn.Module) -> None:
        own = {id(module) for module in model.modules()}
        roots = [step, *(value for _, value in find_read_values(step))]
        reached = [module for _, module in iter_reachable(roots, nn.Module) if id(module) not in own]
        inside = {id(child) for module in reached for child in module.modules() if child is not module}
        self._modules = [module for module in reached if id(module) not in inside]
        self._shared = {id(module): module for module in model.modules()}
        self._generators = find_generators(roots)
        self._states = [get_state(generator) for generator in self._generators]
        self._copies: list[tuple[nn.Module, Any]] = []
        self.is_double = False

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Context in which copies stand for these modules; one whose state a step changes is copied anew each time."""
        copies = []
        for place, module in enumerate(self._modules):
            known = self._copies[place] if place < len(self._copies) else None
            if known is None or _mark(known[0]) != known[1]:
                copied = attempt("copy", copy.deepcopy, {"x": module, "memo": dict(self._shared)})
                copied = module if isinstance(copied, MissingError) else copied
                if self.is_double and copied is not module:
                    self._to_double(copied)
                known = copied, _mark(copied)
            copies.append(known)
        self._copies = copies
        with ExitStack() as stack:
            for module, (copied, _) in zip(self._modules, copies, strict=True):
                stack.enter_context(standing_in(module, copied))
            yield

    def _to_double(self, copied: nn.Module) -> None:
        """Convert a copy to float64, without the model of the step where that is inside of it."""
        for part in copied.modules():
            if id(part) not in self._shared:
                part._apply(lambda t: t.double() if t.is_floating_point() else t, recurse=False)

    @contextmanager
    def drawing_again(self) -> Iterator[None]:
        """Context in which a step draws the same random numbers each time; at its end all generators are put back."""
        with preserve_random_state(), preserve_generators(self._generators):
            seed_all(_SEED)
            for generator, state in zip(self._generators, self._states, strict=True):
                set_state(generator, state)
            yield

    def to_double(self) -> Company:
        """Return the company with copies in float64."""
        doubled = copy.copy(self)
        doubled._copies, doubled.is_double = [], True
        return doubled


def _mark(module: nn.Module) -> list[Any]:
    """Mark the state of a module: versions of its tensors, and its other attributes by identity."""
    marks: list[Any] = [(id(t), t._version) for t in itertools.chain(module.parameters(), module.buffers())]
    for part in module.modules():
        marks += [(name, id(value), getattr(value, "_version", 0)) for name, value in vars(part).items()]
    return marks


class _Provenance:
    """Which leaves of a batch, and outputs of which calls, each tensor of a step is computed from."""

    def __init__(self, batch: Any) -> None:
        self._of: dict[int, frozenset[Any]] = {}
        self._kept: list[Any] = []
        self.left_torch: set[Any] = set()
        self.is_inside = False
        for path, tensor in tree_leaves(batch):
            self.name(tensor, path)

    def name(self, tree: Any, source: Any) -> None:
        """Give the tensors of a tree a source."""
        for _, tensor in tree_leaves(tree):
            self._of[id(tensor)] = self._of.get(id(tensor), frozenset()) | {source}
            self._kept.append(tensor)

    def list_sources(self, tree: Any) -> frozenset[Any]:
        """List what the tensors of a tree come from."""
        return frozenset().union(*(self._of.get(id(tensor), frozenset()) for _, tensor in tree_leaves(tree)))

    def note(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch, and note what its results come from."""
        result = function(*args, **kwargs)
        if self.is_inside:
            return result
        name, sources = getattr(function, "__name__", ""), self.list_sources((args, kwargs))
        if name in _READERS:
            self.left_torch |= sources
        changed = args[0] if args and (name == "__setitem__" or (name.endswith("_") and name[:2] != "__")) else None
        for _, tensor in (*tree_leaves(result), *tree_leaves(changed)):
            if sources:
                self._of[id(tensor)] = self._of.get(id(tensor), frozenset()) | sources
                self._kept.append(tensor)
        return result


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a run of a step shows: its loss, the calls of the model, and the leaves that the loss is computed from."""

    value: Any
    calls: list[ModelCall]
    read: frozenset[Any]
    left_torch: frozenset[Any]


@contextmanager
def _in_place_of(model: nn.Module, copied: nn.Module, company: Company) -> Iterator[None]:
    """Context in which a step reads copies, and may not update anything."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        updates = observe_updates(_refuse_update, lambda _: None)
        with company.standing_in(), standing_in(model, copied), _keeping_modes(copied), updates, _running_eagerly():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def observe_run(model: nn.Module, copied: nn.Module, company: Company, step: Step, batch: Any) -> Observed:
    """Run a step on a copy of its model, and observe the calls of the model."""
    calls: list[ModelCall] = []
    provenance = _Provenance(batch)

    def call(*args: Any, **kwargs: Any) -> Any:
        if provenance.is_inside:  # a model that calls itself
            return copied._call_impl(*args, **kwargs)
        provenance.is_inside = True
        try:
            with preserve_random_state():  # what the model draws is no part of the step's numbers
                outputs = copied._call_impl(*args, **kwargs)
        finally:
            provenance.is_inside = False
        sources = provenance.list_sources((args, kwargs))
        is_dependent = any(not isinstance(source, str) for source in sources)
        kind = next((tensor.device.type for _, tensor in tree_leaves((args, kwargs))), "cpu")
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        calls.append(ModelCall(args, kwargs, outputs, torch.is_grad_enabled(), autocast, is_dependent))
        provenance.name(outputs, len(calls))
        return outputs

    copies, seen = _in_place_of(model, copied, company), InterceptedFunctions(provenance.note)
    with copies, company.drawing_again(), _calling(copied, call), seen:
        value = step(batch)
    return Observed(value, calls, provenance.list_sources(value), frozenset(provenance.left_torch))


def observe_step(model: nn.Module, step: Step, batch: Any) -> Form:
    """Find the form of a program by its step, the function of one batch that returns the loss, run on a copy.

    Where the calls of the model cannot be told from the rest, the step is one: its loss and gradients are judged, and
    outputs and targets are not. Raises UserError for a step that returns no loss, or that updates.
    """
    company, copied = Company(step, model), copy_module(model).train()
    parts = {"model": model, "copied": copied, "company": company, "step": step, "batch": batch}
    observed = attempt("step", observe_run, parts)
    whole = WholeForm(model, step, company)
    if isinstance(observed, MissingError):
        if isinstance(observed.__cause__, UserError):
            raise observed.__cause__
        return whole
    if not isinstance(observed.value, Tensor) or observed.value.numel() != 1:
        words = describe(observed.value)
        raise UserError(f"check: step= returns the loss of a batch, a tensor of one number; found {words}")
    if any(parameter.grad is not None for parameter in copied.parameters()):
        raise UserError("check: step= returns the loss of a batch, before backward(); it calls backward()")
    if not observed.calls:
        return dataclasses.replace(whole, words="step(batch) as a whole: it does not call the model itself")
    if any(call.depends_on_outputs for call in observed.calls):
        return dataclasses.replace(whole, words="step(batch) as a whole: a call of the model reads another's outputs")
    form = attempt("form", _divide, {"observed": observed, **parts})
    if isinstance(form, MissingError):
        return dataclasses.replace(whole, words="step(batch) as a whole: it reads more than the model's outputs")
    return cast(Form, form)


def _divide(
    observed: Observed, model: nn.Module, copied: nn.Module, company: Company, step: Step, batch: Any
) -> StepForm:
    """Divide a step at the calls of its model. Raises NotApplicableError for one that reads more than their outputs."""
    read = {source for source in observed.read if isinstance(source, str)}
    unsure = {source for source in observed.left_torch - read if isinstance(source, str)}
    places = list(_list_entries(batch, read | unsure))
    form = StepForm(model, step, company, copied, batch, tuple(observed.calls), tuple(places))

    def evaluate(target: Any) -> float:
        return float(form.evaluate(copied, form.recorded, target).detach())

    value = float(observed.value.detach())
    again = evaluate(form.split_target(batch))
    if abs(again - value) > _ROUNDING * max(abs(value), 1e-6):
        raise NotApplicableError("a step that reads more than the model's outputs")
    for place in places:  # what the model alone reads is no target
        is_read = any(source == place or source.startswith(f"{place}.") or not place for source in read)
        others = tuple(other for other in form.places if other != place)
        if is_read or not others:
            continue
        entry = _get(batch, place)
        changed = dataclasses.replace(form, batch=_set(batch, place, _spoil(entry)), places=others)
        target = changed.split_target(batch)
        other = attempt("loss", changed.evaluate, {"model": copied, "outputs": form.recorded, "target": target})
        if not isinstance(other, MissingError) and float(other) == again:
            form = dataclasses.replace(form, places=others)
    form.split(batch)  # raises where the calls of the model are others the second time
    return dataclasses.replace(form, words=_write_words(form))


def _spoil(entry: Any) -> Any:
    """Return other numbers of a leaf's shape, or None in the place of another value."""
    if isinstance(entry, Tensor):
        return entry.flip(0) if entry.ndim and len(entry) > 1 else torch.zeros_like(entry)
    return None


def _write_words(form: StepForm) -> str:
    inputs = "; ".join(
        ", ".join([*(_describe_argument(each) for each in call.args), *(f"{k}=..." for k in call.kwargs)])
        for call in form.calls
    )
    read = ", ".join(place or "the batch" for place in form.places) or "outputs alone"
    return f"step(batch) calls model({inputs}); its loss reads {read}"


def _describe_argument(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _list_entries(tree: Any, read: Iterable[str], path: str = "") -> Iterator[str]:
    """Yield the paths of parts of a batch that hold what is read: leaves of mappings, records and the outermost list.

    A list further inside, whose length may be another in the next batch, is one part. So is a value that is no tensor.
    """
    read = set(read)
    if isinstance(tree, Tensor):
        if path in read:
            yield path
        return
    is_open = (
        isinstance(tree, Mapping)
        or hasattr(tree, "_fields")
        or dataclasses.is_dataclass(tree)
        or (not path and isinstance(tree, list | tuple))
    )
    inside = [source for source in read if source.startswith(f"{path}.") or not path]
    if not is_open:
        has_tensors = any(True for _ in tree_leaves(tree))
        if (has_tensors and inside) or (not has_tensors and tree is not None):
            yield path
        return
    for name, item in tree_children(tree):
        yield from _list_entries(item, read, f"{path}.{name}" if path else name)


def _get(tree: Any, path: str) -> Any:
    """Return the part of a tree at a path. Raises UserError if there is none."""
    if not path:
        return tree
    head, _, rest = path.partition(".")
    for name, item in tree_children(tree):
        if name == head:
            return _get(item, rest)
    raise UserError(f"check: a batch has '{path}' as the first one; found {describe(tree)}")


def _set(tree: Any, path: str, value: Any) -> Any:
    """Return a tree with another part at a path."""
    if not path:
        return value
    head, _, rest = path.partition(".")
    items = [(name, _set(item, rest, value) if name == head else item) for name, item in tree_children(tree)]
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, [item for _, item in items], strict=True))  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        return type(tree)(*(i for _, i in items)) if hasattr(tree, "_fields") else type(tree)(i for _, i in items)
    return dataclasses.replace(tree, **dict(items))


def _fit_rows(tree: Any, num: int, rows: int) -> Any:
    """Cut the tensors and lists of `num` rows to other rows, or repeat them."""
    if isinstance(tree, Tensor):
        if not is_dense(tree) or count_rows(tree) != num:
            return tree
        return tree[torch.arange(rows, device=tree.device) % num]
    if isinstance(tree, list) and len(tree) == num and not any(True for _ in tree_leaves(tree)):
        return [tree[row % num] for row in range(rows)]
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, (_fit_rows(item, num, rows) for item in tree.values()), strict=True))  # type: ignore[call-arg]
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        return type(tree)(_fit_rows(item, num, rows) for item in tree)
    return tree_map(tree, lambda _, tensor: _fit_rows(tensor, num, rows))


@dataclasses.dataclass(frozen=True)
class StepForm(Form):
    """Form of a step that divides at the calls of its model.

    Inputs are the arguments of a call: the tensor itself where there is one, a tuple of the positional ones, a mapping
    of those with names, or both; of several calls a tuple of these. The target is the part of a batch that the rest of
    the step reads, at `places`: itself where there is one, else a mapping by path. `batch` is the first one, which
    supplies what the model alone got where the loss is computed.
    """

    model: nn.Module
    loss: Step
    company: Company
    probe: nn.Module
    batch: Any
    calls: tuple[ModelCall, ...]
    places: tuple[str, ...]
    words: str = ""
    is_divided: bool = True
    takes_samples = False

    @property
    def recorded(self) -> Any:
        """Outputs of the first batch's calls, as `call` returns them."""
        return _join([map_held(call.outputs, hold) for call in self.calls])

    def split(self, batch: Any) -> Batch:
        """Divide a batch: run the step up to its last call of the model, which a copy answers by known outputs."""
        made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        num, rows = _count_rows(self.batch), _count_rows(batch)

        def answer(*args: Any, **kwargs: Any) -> Any:
            made.append((args, kwargs))
            if len(made) == len(self.calls):
                raise _EndOfCalls
            outputs = self.calls[len(made) - 1].outputs
            return _fit_rows(outputs, num, rows) if num > 0 and num != rows else outputs

        target = self.split_target(batch)
        try:
            copies = _in_place_of(self.model, self.probe, self.company)
            with copies, self.company.drawing_again(), _calling(self.probe, answer), torch.no_grad():
                self.loss(batch)
        except _EndOfCalls:
            pass
        if len(made) < len(self.calls):
            raise NotApplicableError("a step that calls the model more often for some batches")
        inputs = _join([_pack(args, kwargs) for args, kwargs in made])
        return Batch(tree_map(inputs, lambda _, tensor: tensor.detach()), target)

    def split_target(self, batch: Any) -> Any:
        """Take what the loss reads from a batch."""
        entries = {place: _get(batch, place) for place in self.places}
        return entries[self.places[0]] if len(entries) == 1 else entries if entries else ()

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call the model as often as the step does, each time with its arguments."""
        outputs = []
        for call, packed in zip(self.calls, inputs if len(self.calls) > 1 else (inputs,), strict=True):
            args, kwargs = _unpack(packed, call)
            kind = next((tensor.device.type for _, tensor in tree_leaves((args, kwargs))), "cpu")
            with torch.set_grad_enabled(call.has_gradient and torch.is_grad_enabled()):
                if call.autocast is None:
                    made = model(*args, **kwargs)
                else:
                    with torch.autocast(kind, dtype=call.autocast):
                        made = model(*args, **kwargs)
            outputs.append(map_held(made, hold))
        return _join(outputs)

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Run the step with outputs and a target of one's own: calls of the model are answered by the outputs."""
        answers = [map_held(made, release) for made in (outputs if len(self.calls) > 1 else (outputs,))]
        num_answered = 0

        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_answered
            if num_answered == len(answers):
                raise NotApplicableError("a step that calls the model more often for some batches")
            num_answered += 1
            return answers[num_answered - 1]

        batch = self._rebuild(outputs, target)
        with _in_place_of(self.model, model, self.company), self.company.drawing_again(), _calling(model, answer):
            return self.loss(batch).reshape(())

    def to_double(self) -> StepForm:
        """Return the form whose losses and other modules have their numbers in float64."""
        return dataclasses.replace(self, company=self.company.to_double())

    def _rebuild(self, outputs: Any, target: Any) -> Any:
        """Put a target in the place of the first batch's; the rest has as many rows as the target has."""
        entries = {self.places[0]: target} if len(self.places) == 1 else target if self.places else {}
        known = self.split_target(self.batch) if entries else self.recorded
        num, rows = _count_rows(known), _count_rows(target if entries else outputs)
        batch = _fit_rows(self.batch, num, rows) if num > 0 and rows != num else self.batch
        for place, entry in entries.items():
            batch = _set(batch, place, entry)
        return batch


@dataclasses.dataclass(frozen=True)
class WholeForm(Form):
    """Form of a step that does not divide: its inputs are the batch, and its one output is the loss."""

    model: nn.Module
    loss: Step
    company: Company
    words: str = ""
    is_divided: bool = False
    takes_samples = False

    def split(self, batch: Any) -> Batch:
        """Take all of a batch for inputs."""
        return Batch(batch, ())

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the step on the copy of its model."""
        with _in_place_of(self.model, model, self.company), torch.enable_grad():
            return Whole(Held(self.loss(inputs)))

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Return the loss that the step has returned."""
        return cast(Tensor, outputs.held.value).reshape(())


def _count_rows(tree: Any) -> int:
    """Count the rows of the first tensor of a tree; 0 without one."""
    return next((count_rows(tensor) for _, tensor in dense_leaves(tree) if tensor.ndim), 0)


def _join(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _pack(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Pack the arguments of a call."""
    if args and kwargs:
        return (*args, dict(kwargs))
    return dict(kwargs) if kwargs else args[0] if len(args) == 1 else args


def _unpack(packed: Any, call: ModelCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Unpack the arguments of a call that has those of a known one."""
    if call.args and call.kwargs:
        return tuple(packed[:-1]), dict(packed[-1])
    if call.kwargs:
        return (), dict(packed)
    return ((packed,) if len(call.args) == 1 else tuple(packed)), {}
