"""Form of a program whose model returns its loss: the network inside of it, and functions from there to the loss."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sightline.contract.pytree import is_float, tree_children, tree_leaves, tree_map
from sightline.doctor.attempts import LeftOutError, MissingError, NotApplicableError, attempt
from sightline.doctor.batches import count_first_rows, fit_rows
from sightline.doctor.forms.form import Batch, CalledForm, Form, standing_in
from sightline.doctor.forms.step_form import StepForm
from sightline.instrument import copy_module
from sightline.instrument.functions import (
    FunctionCall,
    FunctionTape,
    FunctionTemplate,
    TapeError,
    iter_items,
    list_needed,
)
from sightline.instrument.random_state import preserve_random_state, seed_all

_SEED, _ROUNDING = 20_011, 1e-4
_SQUASHES = frozenset(("softmax", "sigmoid"))
_NUM_NAMES = 3
"""Functions that the words of a form name, the last ones."""


class Place(NamedTuple):
    """Tensor that a pass makes: the result of the so-manieth call of a function, by its name; `item` of several."""

    name: str
    number: int
    item: int


class _Reached(BaseException):
    """Ends a pass whose outputs are known; no handler of `Exception` in the model takes it."""


class _OutputTape(FunctionTape):
    """Tape that keeps what a pass makes at some places, and ends the pass once it has all of them."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        self._open, self._counts = set(places), Counter[str]()
        self.found: dict[Place, Tensor] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Context of the pass: as it ends before others that began earlier, it may be inside of another mode."""
        with self.leaving_fused(), self, contextlib.suppress(_Reached):
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if self.calls and self.calls[-1].result is result:
            call = self.calls.pop()  # nothing is replayed
            number = self._counts[call.name]
            self._counts[call.name] += 1
            for item, tensor in enumerate(iter_items(result)):
                place = Place(call.name, number, item)
                if place in self._open:
                    self._open.remove(place)
                    self.found[place] = tensor
            if not self._open:
                raise _Reached
        return result


@contextmanager
def _recording(tape: FunctionTape) -> Iterator[None]:
    """Context of a tape. Raises LeftOutError where another mode of torch's functions is on."""
    tape.start()
    if tape.failure:
        raise LeftOutError(tape.failure)
    try:
        yield
    finally:
        tape.stop()


def look_inside(base: Form, model: nn.Module, first: Batch) -> Form:
    """Find the network inside of a model that returns its loss, by passes of a copy; nothing of it changes.

    Outputs are what the last call with parameters of the model makes of the batch, and what else from before it the
    loss reads; targets are what it reads of the batch. Returns the form itself for a program that computes its loss
    outside of the model, and where outputs, or targets, cannot be told.
    """
    if any(True for _ in tree_leaves(first.target)):
        return base
    inside = attempt("inside", _look_inside, {"base": base, "model": model, "first": first})
    if not isinstance(inside, MissingError):
        return cast(Form, inside)
    if inside.kind == "left" and isinstance(base, CalledForm | StepForm):
        words = f"{_describe_call(base)}, which returns its loss; it is judged with it, as one: {inside.reason}"
        return dataclasses.replace(base, words=words)
    return base


def _describe_call(form: Form) -> str:
    """Describe how a program calls its model, without what follows."""
    return re.split("; |, whose|, then", form.words)[0]


def _look_inside(base: Form, model: nn.Module, first: Batch) -> Form:
    copied, tape = copy_module(model).train(), FunctionTape()
    inputs = tree_map(first.inputs, lambda _, tensor: tensor.detach())
    with preserve_random_state(), torch.enable_grad():
        seed_all(_SEED)
        with _recording(tape):
            outputs = base.call(copied, inputs)
            value = base.evaluate(copied, outputs, first.target)
    if not _holds_loss(outputs):
        return base
    if tape.failure:
        raise LeftOutError(tape.failure)
    try:
        return _divide(base, copied, inputs, tape, value)
    except TapeError as error:
        raise LeftOutError(f"a loss inside of the model that cannot be repeated: {error}") from error


def _holds_loss(outputs: Any) -> bool:
    """Return True for outputs with a number that has a gradient: a loss, or a part of one."""
    values = [outputs] if not isinstance(outputs, Mapping | list | tuple) else [*iter_items(outputs)]
    values = [getattr(each, "value", each) for each in values]
    return any(not tensor.ndim and tensor.requires_grad for value in values for _, tensor in tree_leaves(value))


def _divide(base: Form, copied: nn.Module, inputs: Any, tape: FunctionTape, value: Tensor) -> InsideForm:
    """Divide the calls of a pass behind the last one with parameters of the model."""
    given = {id(tensor): path for path, tensor in tree_leaves(inputs)}
    start = _find_start(tape.calls, copied, given, value)
    rest = FunctionTape()
    rest.calls, rest.before = tape.calls[start:], tape.before
    made = dict(_list_made(tape.calls[:start]))
    template = FunctionTemplate(rest, value, [t for t, _ in made.values() if t.requires_grad])
    attributes = {
        id(member): (path, name)
        for path, module in copied.named_modules()
        for name, member in (*module._parameters.items(), *module._buffers.items())
        if member is not None
    }
    sources: dict[int, Place | tuple[str, str]] = {}
    targets: dict[int, _Derivation] = {}
    constants: dict[int, Tensor] = {}
    for slot, leaf in template.leaves.items():
        if id(leaf) in attributes:
            sources[slot] = attributes[id(leaf)]
        elif leaf.requires_grad:
            if id(leaf) not in made:
                raise LeftOutError("outputs of a part of the model that is not seen")
            sources[slot] = made[id(leaf)][1]
        elif (derived := _derive(tape, leaf, inputs)) is not None:
            if not leaf.ndim or any(_is_in_list(inputs, path) for path in derived.paths.values()):
                raise LeftOutError("targets in a list, which may be of another length, or one number of a batch")
            targets[slot] = derived
        else:
            constants[slot] = leaf.detach().clone()
    outputs = [slot for slot, source in sources.items() if isinstance(source, Place) and template.leaves[slot].ndim]
    if not outputs:
        raise LeftOutError("outputs inside of the model that are not seen")
    if not targets:
        raise NotApplicableError("a loss inside of the model that reads nothing of the batch")
    recorded = {slot: template.leaves[slot].detach() for slot in (*sources, *targets)}
    form = InsideForm(base, copied, inputs, template, sources, targets, constants, recorded)
    form.leave_out_targets()
    form.assert_repeats(float(value.detach()))
    return form


def _find_start(calls: Sequence[FunctionCall], model: nn.Module, given: Iterable[int], value: Tensor) -> int:
    """Find the place behind the last call on which a loss depends that has parameters of the model, and of the batch.

    A penalty of weights is of no batch, and a parameter of one number may be one of the loss. What a fused module
    makes, whose calls are not seen, is of the batch. Squashed scores are the network's, as where it returns them.
    """
    weights = {id(parameter) for parameter in model.parameters() if parameter.numel() > 1}
    known, made, needed, start = set(given), set[int](), list_needed(calls, value), 0
    for number, call in enumerate(calls):
        read = [item for item in iter_items((call.args, call.kwargs)) if isinstance(item, Tensor)]
        is_known = any(id(item) in known or (item.grad_fn is not None and id(item) not in made) for item in read)
        results = {id(item) for item in iter_items((call.result, call.written)) if isinstance(item, Tensor)}
        made |= results
        if is_known:
            known |= results
            if number in needed and any(id(item) in weights for item in read):
                start = number + 1
    behind = itertools.takewhile(
        lambda number: calls[number].name in _SQUASHES, sorted(n for n in needed if n >= start)
    )
    return max([start, *(number + 1 for number in behind)])


def _list_made(calls: Iterable[FunctionCall]) -> Iterator[tuple[int, tuple[Tensor, Place]]]:
    """Yield what calls have made, by identity, with its place; of a tensor that several return, the last."""
    counts = Counter[str]()
    for call in calls:
        for item, tensor in enumerate(iter_items(call.result)):
            if isinstance(tensor, Tensor):
                yield id(tensor), (tensor, Place(call.name, counts[call.name], item))
        counts[call.name] += 1


class _Derivation(NamedTuple):
    """How a tensor that a loss reads is made of leaves of the inputs, by their paths; without a template it is one."""

    template: FunctionTemplate | None
    paths: Mapping[int, str]

    def make(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Make the tensor of other inputs."""
        if self.template is None:
            return leaves[self.paths[0]]
        made: Tensor = self.template.replay({slot: leaves[path] for slot, path in self.paths.items()})
        return made


def _derive(tape: FunctionTape, tensor: Tensor, inputs: Any) -> _Derivation | None:
    """Find how a tensor is made of the inputs alone; None for one that is not."""
    known = {id(leaf): path for path, leaf in tree_leaves(inputs)}
    if id(tensor) in known:
        return _Derivation(None, {0: known[id(tensor)]})
    template = FunctionTemplate(tape, tensor, [leaf for _, leaf in tree_leaves(inputs)])
    is_derived = template.calls and all(id(leaf) in known for leaf in template.leaves.values())
    return _Derivation(template, {s: known[id(t)] for s, t in template.leaves.items()}) if is_derived else None


def _is_in_list(tree: Any, path: str, depth: int = 0) -> bool:
    """Return True for a leaf inside of a list, or of a tuple that is not that of the arguments."""
    head, _, rest = path.partition(".")
    is_list = isinstance(tree, list) or (depth > 0 and isinstance(tree, tuple) and not hasattr(tree, "_fields"))
    return bool(path) and (is_list or _is_in_list(dict(tree_children(tree)).get(head), rest, depth + 1))


class InsideForm(Form):
    """Form of a program whose model returns its loss, as if that were computed outside of it.

    `inputs` are those of the `base` form without what the loss alone reads; one tensor by itself. Outputs and target
    are what the loss reads of the network and of the batch, one alone by itself, several in a tuple.
    """

    is_divided = True
    takes_samples = False

    def __init__(
        self,
        base: Form,
        model: nn.Module,
        inputs: Any,
        template: FunctionTemplate,
        sources: Mapping[int, Place | tuple[str, str]],
        targets: Mapping[int, _Derivation],
        constants: Mapping[int, Tensor],
        recorded: Mapping[int, Tensor],
    ) -> None:
        self.base, self.loss, self._model, self._inputs = base, base.loss, model, inputs
        self._template, self._targets, self._constants, self._recorded = template, targets, constants, recorded
        self._outputs = {slot: source for slot, source in sources.items() if isinstance(source, Place)}
        self._attributes = {slot: source for slot, source in sources.items() if not isinstance(source, Place)}
        self._left: frozenset[str] = frozenset()
        self._num = count_first_rows(inputs)
        self._is_sized = template.is_sized(self._num)
        names = [call.name for call in template.calls if call.name != "reshape"][-_NUM_NAMES:]
        ends = dict.fromkeys(place.name for place in self._outputs.values())
        self.words = f"{_describe_call(base)}, which returns its loss: {', '.join(names)} of its {', '.join(ends)}"

    def leave_out_targets(self) -> None:
        """Leave those inputs out that change no output: the loss alone reads them."""
        known = self._run_anew(self._inputs)
        for path in sorted({path for derived in self._targets.values() for path in derived.paths.values()}):
            leaves = {path: _spoil(dict(tree_leaves(self._inputs))[path])}
            spoiled = tree_map(self._inputs, partial(_take_from, leaves))
            outputs = attempt("outputs", self._run_anew, {"inputs": spoiled})
            if not isinstance(outputs, MissingError) and all(map(torch.equal, known, outputs)):
                self._left |= {path}

    def _run_anew(self, inputs: Any) -> list[Tensor]:
        """Compute the outputs by a copy, with the same random numbers each time."""
        with preserve_random_state():
            seed_all(_SEED)
            return [output.detach() for output in _list(self.call(copy_module(self._model), self._reduce(inputs)))]

    def assert_repeats(self, value: float) -> None:
        """Raise LeftOutError where outputs and target of the first batch do not give its loss."""
        outputs = [self._recorded[slot] for slot in self._outputs]
        again = float(self.evaluate(self._model, _join(outputs), self._read(self._inputs)).detach())
        if abs(again - value) > _ROUNDING * max(abs(value), 1e-6):
            raise LeftOutError("a model whose loss reads more than its outputs and the batch")

    def convert(self, batch: Batch) -> Batch:
        """Divide what the base form takes for inputs."""
        return Batch(self._reduce(batch.inputs), self._read(batch.inputs))

    def split(self, batch: Any) -> Batch:
        """Divide a batch: inputs of the network, and what its loss reads of the batch."""
        return self.convert(self.base.split(batch))

    def _read(self, inputs: Any) -> Any:
        leaves = dict(tree_leaves(inputs))
        return _join([derived.make(leaves).detach() for derived in self._targets.values()])

    def _reduce(self, inputs: Any) -> Any:
        """Leave out of the base form's inputs what the loss alone reads."""
        leaves = [(path, tensor) for path, tensor in tree_leaves(inputs) if path not in self._left]
        return leaves[0][1] if len(leaves) == 1 else _leave_out(inputs, self._left)

    def _fill(self, inputs: Any) -> Any:
        """Put the first batch's in the place of what was left out, in as many rows."""
        rows = count_first_rows(inputs)
        known = fit_rows(self._inputs, self._num, rows) if self._num > 0 and rows != self._num else self._inputs
        paths = [path for path, _ in tree_leaves(self._inputs) if path not in self._left]
        is_alone = len(paths) == 1 and isinstance(inputs, Tensor)
        own = {paths[0]: inputs} if is_alone else dict(tree_leaves(inputs))
        if any(path not in own for path in paths):
            raise LeftOutError("inputs without one that the model reads")
        return tree_map(known, partial(_take_from, own))

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run a copy of the model up to the outputs of the network inside of it."""
        places = [*self._outputs.values()]
        tape = _OutputTape(places)
        with tape.following():
            self.base.call(model, self._fill(inputs))
        if len(tape.found) < len(places):
            raise LeftOutError("a model that computes its outputs otherwise in evaluation mode, or for some batches")
        return _join([tape.found[place] for place in places])

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss of other outputs and another target; numbers of the model are those of the copy.

        Raises NotApplicableError for other sizes where the loss counts the samples.
        """
        made = _list(outputs) if len(self._outputs) > 1 else [outputs]
        read = _list(target) if len(self._targets) > 1 else [target]
        shapes = [tensor.shape for tensor in made]
        is_known = shapes == [self._recorded[slot].shape for slot in self._outputs]
        if self._is_sized and not is_known:
            raise NotApplicableError("the loss counts the samples of its batch")
        values: dict[int, Any] = {**self._constants, **dict(zip(self._outputs, made, strict=True))}
        for slot, (path, name) in self._attributes.items():
            values[slot] = getattr(model.get_submodule(path), name)
        is_double = any(tensor.dtype == torch.float64 for tensor in made)
        if is_double:
            values = {slot: value.double() if is_float(value) else value for slot, value in values.items()}
        values |= dict(zip(self._targets, read, strict=True))
        try:
            with standing_in(self._model, model):
                value: Tensor = self._template.replay(values)
                return value.reshape(())
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if is_known and not is_double:
                raise
            raise LeftOutError("the loss, as it was seen, does not take other sizes or formats") from error


def _take_from(leaves: Mapping[str, Tensor], path: str, tensor: Tensor) -> Tensor:
    """Return the leaf of a path, or the tensor where there is none."""
    return leaves.get(path, tensor)


def _spoil(tensor: Tensor) -> Tensor:
    """Return other numbers of the range of a tensor."""
    values = tensor.flip(tuple(range(tensor.ndim))) if tensor.numel() > 1 else tensor
    return values if not torch.equal(values, tensor) else values.roll(1)


def _leave_out(tree: Any, paths: frozenset[str], path: str = "") -> Any:
    """Leave leaves out of a tree: keys of a mapping; elsewhere None takes their place."""
    if isinstance(tree, Tensor):
        return None if path in paths else tree
    join = partial("{}.{}".format, path) if path else str
    if isinstance(tree, Mapping):
        kept = {key: _leave_out(item, paths, join(key)) for key, item in tree.items() if join(key) not in paths}
        return kept if paths else tree
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        return type(tree)(_leave_out(item, paths, join(number)) for number, item in enumerate(tree))
    return tree


def _join(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


def _list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, tuple) else [values]
