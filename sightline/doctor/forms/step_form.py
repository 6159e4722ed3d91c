"""Form of a program that is observed: a step, run on a copy, shows what its model is called with and its loss reads."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_children, tree_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.batches import count_first_rows, fit_rows, list_sizes
from sightline.doctor.forms.form import Batch, Form, Held, describe, hold, map_held, release, standing_in
from sightline.doctor.objects import (
    find_generators,
    find_read_values,
    get_state,
    iter_reachable,
    preserve_generators,
    set_state,
)
from sightline.doctor.provenance import Derived, Provenance
from sightline.instrument import copy_module, observe_updates
from sightline.instrument.random_state import preserve_random_state, seed_all

_ROUNDING, _SEED = 1e-4, 20_011
Step = Callable[[Any], Tensor]


class ModelCall(NamedTuple):
    """Call of a model in a step: its arguments and outputs, whether it has a gradient, and what it is computed from.

    One that `is_held` is no part of inputs and outputs, such as one for another loss: it is made with the arguments of
    the first batch.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    has_gradient: bool
    autocast: torch.dtype | None
    sources: frozenset[Any]
    is_held: bool = False

    @property
    def depends_on_outputs(self) -> bool:
        """Whether it is computed from the outputs of another call."""
        return any(not isinstance(source, str) for source in self.sources)

    def make(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a model in the same way."""
        kind = next((tensor.device.type for _, tensor in tree_leaves((args, kwargs))), "cpu")
        with torch.set_grad_enabled(self.has_gradient and torch.is_grad_enabled()):
            if self.autocast is None:
                return model(*args, **kwargs)
            with torch.autocast(kind, dtype=self.autocast):
                return model(*args, **kwargs)


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


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a run of a step shows: its loss, the calls of the model, and what the loss is computed from."""

    value: Any
    calls: list[ModelCall]
    provenance: Provenance

    @property
    def read(self) -> frozenset[Any]:
        """Leaves of the batch, and numbers of calls, that the loss is computed from."""
        return self.provenance.list_sources(self.value)

    def find_parts(self, place: str) -> list[Derived]:
        """Find what the loss reads of a tensor of which inputs of the model are made, too."""
        return self.provenance.find_parts(place, [(call.args, call.kwargs) for call in self.calls], self.value)


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
    provenance = Provenance(batch)

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
        kind = next((tensor.device.type for _, tensor in tree_leaves((args, kwargs))), "cpu")
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        calls.append(ModelCall(args, kwargs, outputs, torch.is_grad_enabled(), autocast, sources))
        provenance.name(outputs, len(calls))
        return outputs

    copies = _in_place_of(model, copied, company)
    with copies, company.drawing_again(), _calling(copied, call), provenance.follow(model):
        value = step(batch)
    return Observed(value, calls, provenance)


def observe_step(model: nn.Module, step: Step, batch: Any) -> Form:
    """Find the form of a program by its step, the function of one batch that returns the loss, run on a copy.

    Where the calls of the model cannot be told from the rest, the step is one: its loss and gradients are judged, and
    outputs and targets are not. Raises UserError for a step that returns no loss, or that updates.
    """
    company, copied = Company(step, model), copy_module(model).train()
    parts = {"model": model, "copied": copied, "company": company, "step": step, "batch": batch}
    observed = attempt("step", observe_run, parts)
    whole = OpaqueForm(model, step, company)
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
    is_read = [number in observed.read for number in range(1, len(observed.calls) + 1)]
    calls = [call._replace(is_held=any(is_read) > read) for call, read in zip(observed.calls, is_read, strict=True)]
    if any(call.depends_on_outputs for call in calls if not call.is_held):
        return dataclasses.replace(whole, words="step(batch) as a whole: a call of the model reads another's outputs")
    observed = dataclasses.replace(observed, calls=calls)
    form = attempt("form", _divide, {"observed": observed, **parts})
    if isinstance(form, MissingError):
        return dataclasses.replace(whole, words="step(batch) as a whole: it reads more than the model's outputs")
    return cast(Form, form)


def can_take(model: nn.Module, step: Step, batch: Any) -> bool:
    """Return True if a step of a copy of its model ends without an exception."""
    parts = {"model": model, "copied": copy_module(model).train(), "company": Company(step, model), "step": step}
    return not isinstance(attempt("step", observe_run, {**parts, "batch": batch}), MissingError)


def observe_section(form: StepForm, step: Step, section: Any) -> Form:
    """Find the form of a step as a function of a section of its batch, of which the loss is the same.

    Calls of the model that do not depend on the section are made with what the first batch had. Raises
    NotApplicableError where none depends on it, or where what the loss reads of it cannot be told.
    """
    copied = copy_module(form.model).train()
    parts = {"model": form.model, "copied": copied, "company": form.company, "step": step, "batch": section}
    observed = observe_run(**parts)
    calls = [call._replace(is_held=not call.sources) for call in observed.calls]
    if all(call.is_held for call in calls) or any(call.depends_on_outputs for call in calls):
        raise NotApplicableError("no call of the model for this part of a batch")
    return _divide(dataclasses.replace(observed, calls=calls), **parts)


def _divide(
    observed: Observed, model: nn.Module, copied: nn.Module, company: Company, step: Step, batch: Any
) -> StepForm:
    """Divide a step at the calls of its model. Raises NotApplicableError for one that reads more than their outputs."""
    read = {source for source in observed.read if isinstance(source, str)}
    unsure = {source for source in observed.provenance.left_torch - read if isinstance(source, str)}
    places = list(list_entries(batch, read | unsure))
    parts = {place: observed.find_parts(place) for place in places if place in read}
    places = [place for place in places if not parts.get(place)]
    derived = tuple(part for found in parts.values() for part in found)
    form = StepForm(model, step, company, copied, batch, tuple(observed.calls), tuple(places), derived)

    def evaluate(target: Any) -> float:
        return float(form.evaluate(copied, form.recorded, target).detach())

    value = float(observed.value.detach())
    again = evaluate(form.recorded_target)
    if abs(again - value) > _ROUNDING * max(abs(value), 1e-6):
        raise LeftOutError("a step that reads more than the model's outputs")
    for place in places:  # what the model alone reads is no target
        is_read = any(source == place or source.startswith(f"{place}.") or not place for source in read)
        others = tuple(other for other in form.places if other != place)
        if is_read or not (others or derived):
            continue
        entry = get_part(batch, place)
        changed = dataclasses.replace(form, batch=set_part(batch, place, _spoil(entry)), places=others)
        target = changed.recorded_target
        other = attempt("loss", changed.evaluate, {"model": copied, "outputs": form.recorded, "target": target})
        if not isinstance(other, MissingError) and float(other.detach()) == again:
            form = dataclasses.replace(form, places=others)
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
        if not call.is_held
    )
    made = dict.fromkeys(part.leaf for part in form.derived)
    read = [*(_name_part(form.batch, place) for place in form.places)]
    read += [f"what it makes of {_name_part(form.batch, leaf)}" for leaf in made]
    return f"step(batch) calls model({inputs}); its loss reads {', '.join(read) or 'nothing of the batch'}"


def _name_part(tree: Any, path: str, name: str = "batch") -> str:
    """Write a part of a batch as the program does: batch, batch[1], batch['labels'], batch.labels."""
    if not path:
        return name
    head, _, rest = path.partition(".")
    is_record = dataclasses.is_dataclass(tree)
    place = f"[{head!r}]" if isinstance(tree, Mapping) else f".{head}" if is_record else f"[{head}]"
    return _name_part(dict(tree_children(tree)).get(head), rest, name + place)


def _describe_argument(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def list_entries(tree: Any, read: Iterable[str], path: str = "") -> Iterator[str]:
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
        yield from list_entries(item, read, f"{path}.{name}" if path else name)


def get_part(tree: Any, path: str) -> Any:
    """Return the part of a tree at a path. Raises UserError if there is none."""
    if not path:
        return tree
    head, _, rest = path.partition(".")
    for name, item in tree_children(tree):
        if name == head:
            return get_part(item, rest)
    raise UserError(f"check: a batch has '{path}' as the first one; found {describe(tree)}")


def set_part(tree: Any, path: str, value: Any) -> Any:
    """Return a tree with another part at a path."""
    if not path:
        return value
    head, _, rest = path.partition(".")
    items = [(name, set_part(item, rest, value) if name == head else item) for name, item in tree_children(tree)]
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, [item for _, item in items], strict=True))  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        return type(tree)(*(i for _, i in items)) if hasattr(tree, "_fields") else type(tree)(i for _, i in items)
    return dataclasses.replace(tree, **dict(items))


@dataclasses.dataclass(frozen=True)
class StepForm(Form):
    """Form of a step that divides at the calls of its model.

    Inputs are the arguments of a call: the tensor itself where there is one, a tuple of the positional ones, a mapping
    of those with names, or both; of several calls a tuple of these. The target is what the rest of the step reads:
    parts of a batch, at `places`, and tensors that are `derived` from parts of which inputs are made, too; itself where
    there is one, else a mapping. `batch` is the first one, which supplies what the model alone got where the loss is
    computed.
    """

    model: nn.Module
    loss: Step
    company: Company
    probe: nn.Module
    batch: Any
    calls: tuple[ModelCall, ...]
    places: tuple[str, ...]
    derived: tuple[Derived, ...] = ()
    words: str = ""
    is_divided: bool = True
    takes_samples = False

    @property
    def recorded(self) -> Any:
        """Outputs of the first batch's calls, as `call` returns them."""
        return self._join_outputs([call.outputs for call in self.calls])

    def _join_outputs(self, outputs: Sequence[Any]) -> Any:
        """Join the outputs of all calls: those of held ones are one that nobody changes, the last."""
        pairs = [*zip(self.calls, outputs, strict=True)]
        seen = [map_held(made, hold) for call, made in pairs if not call.is_held]
        held = [made for call, made in pairs if call.is_held]
        return _join([*seen, Held(held)] if held else seen)

    def _list_outputs(self, joined: Any) -> list[Any]:
        """List the outputs of all calls, as they were before they were joined."""
        seen = list(joined) if len(self.calls) > 1 else [joined]
        held = iter(seen.pop().value if any(call.is_held for call in self.calls) else ())
        others = iter([map_held(made, release) for made in seen])
        return [next(held if call.is_held else others) for call in self.calls]

    @functools.cached_property
    def recorded_target(self) -> Any:
        """Target of the first batch."""
        return self.split(self.batch).target

    def split(self, batch: Any) -> Batch:
        """Divide a batch: run the step up to its last call of the model, which a copy answers by known outputs.

        Where the target has derived tensors, it goes on until these are known.
        """
        made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        num, rows = count_first_rows(self.batch), count_first_rows(batch)
        provenance = Provenance(batch)

        def end() -> None:
            if len(made) == len(self.calls) and provenance.derived.keys() >= {*self.derived}:
                raise _EndOfCalls

        def answer(*args: Any, **kwargs: Any) -> Any:
            made.append((args, kwargs))
            end()
            call = self.calls[min(len(made), len(self.calls)) - 1]
            outputs = fit_rows(call.outputs, num, rows) if num > 0 and num != rows else call.outputs
            if list_sizes((args, kwargs)) != list_sizes((call.args, call.kwargs)):  # padded to another length
                with torch._C.DisableTorchFunction():
                    outputs = self.probe._call_impl(*args, **kwargs)
            provenance.name(outputs, len(made))
            return outputs

        following = provenance.follow(self.model, end) if self.derived else nullcontext()
        try:
            copies = _in_place_of(self.model, self.probe, self.company)
            with copies, self.company.drawing_again(), _calling(self.probe, answer), torch.no_grad(), following:
                self.loss(batch)
        except _EndOfCalls:
            pass
        if len(made) < len(self.calls):
            raise LeftOutError("a step that calls the model more often for some batches")
        pairs = zip(self.calls, made, strict=False)
        inputs = _join([_pack(*arguments) for call, arguments in pairs if not call.is_held])
        target = self._join_target(batch, provenance.derived)
        return Batch(tree_map(inputs, lambda _, tensor: tensor.detach()), target)

    def _join_target(self, batch: Any, derived: Mapping[Derived, Tensor]) -> Any:
        """Join what the loss reads of a batch, and of what is derived from it."""
        entries = {place: get_part(batch, place) for place in self.places}
        entries |= {str(part): derived[part].detach() for part in self.derived if part in derived}
        if len(entries) < len(self.places) + len(self.derived):
            raise LeftOutError("a step that computes its target otherwise for some batches")
        return next(iter(entries.values())) if len(entries) == 1 else entries or ()

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call the model as often as the step does, each time with its arguments."""
        num_seen = sum(not call.is_held for call in self.calls)
        packed = iter(inputs if num_seen > 1 else (inputs,))
        outputs = []
        for call in self.calls:
            known = tree_map((call.args, call.kwargs), lambda _, tensor: tensor.detach())
            outputs.append(call.make(model, *(known if call.is_held else _unpack(next(packed), call))))
        return self._join_outputs(outputs)

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Run the step with outputs and a target of one's own: calls of the model are answered by the outputs."""
        answers = self._list_outputs(outputs)
        num_answered = 0

        def answer(*args: Any, **kwargs: Any) -> Any:
            nonlocal num_answered
            if num_answered == len(answers):
                raise LeftOutError("a step that calls the model more often for some batches")
            num_answered += 1
            provenance.name(answers[num_answered - 1], num_answered)
            return answers[num_answered - 1]

        batch, derived = self._rebuild(outputs, target)
        copies = _in_place_of(self.model, model, self.company)
        provenance = Provenance(batch, derived)
        following = provenance.follow(self.model) if derived else nullcontext()
        with copies, self.company.drawing_again(), _calling(model, answer), following:
            value = self.loss(batch).reshape(())
        if not provenance.derived.keys() >= derived.keys():
            raise LeftOutError("a step that computes its target otherwise for some batches")
        return value

    def to_double(self) -> StepForm:
        """Return the form whose losses and other modules have their numbers in float64."""
        return dataclasses.replace(self, company=self.company.to_double())

    def _rebuild(self, outputs: Any, target: Any) -> tuple[Any, dict[Derived, Tensor]]:
        """Put a target in the place of the first batch's; the rest has as many rows as the target has.

        What is derived is returned beside the batch, by what it is to replace.
        """
        keys: list[str | Derived] = [*self.places, *self.derived]
        entries = {keys[0]: target} if len(keys) == 1 else {key: target[str(key)] for key in keys}
        known = self.recorded_target if entries else self.recorded
        num, rows = count_first_rows(known), count_first_rows(target if entries else outputs)
        batch = fit_rows(self.batch, num, rows) if num > 0 and rows != num else self.batch
        for place in self.places:
            batch = set_part(batch, place, entries[place])
        return batch, {part: entries[part] for part in self.derived}


@dataclasses.dataclass(frozen=True)
class OpaqueForm(Form):
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
