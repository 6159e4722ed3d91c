"""Forms of a step that a loop showed: how it calls its model, and the functions that lead from there to its loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.pytree import dense_leaves, is_float, tree_leaves
from sightline.doctor.attempts import LeftOutError, NotApplicableError
from sightline.doctor.forms.form import Batch, Form, Held, get_forward, get_signature, standing_in
from sightline.doctor.forms.step_form import Whole
from sightline.instrument import copy_module
from sightline.instrument.functions import (
    FunctionCall,
    FunctionTape,
    FunctionTemplate,
    GraphError,
    TapeError,
    insert_calls,
    iter_items,
)
from sightline.instrument.random_state import preserve_random_state

_TOLERANCE, _TOLERANCE_OF_AUTOCAST = 1e-5, 0.02
"""Shares by which a repeated loss may differ from that of the loop."""
_NUM_NAMES = 4
"""Functions that the words of a form name, the last ones."""


@dataclass
class ObservedCall:
    """Call of a model in a step: copies of its arguments, these themselves, and its outputs.

    `place` is the number of functions that the tape had when it ended.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: tuple[tuple[Any, ...], dict[str, Any]]
    has_gradient: bool
    outputs: Any = None
    place: int = 0

    def to_function(self) -> FunctionCall:
        """Return the call as that of a part that is taken whole."""
        return FunctionCall(self.model, *self.given, self.outputs, (), self.has_gradient, is_whole=True)


@dataclass
class ObservedStep:
    """Step of the loop, from its first call of a model to its backward pass.

    `model` is the one that is observed, the first that is called; of several it is told when the step is over, and
    `others` are the calls of those that the loss is computed by. The step `is_whole` where the model is called with
    what it has computed, and `is_of_another` where it is with what has a gradient from before the step.
    """

    model: nn.Module
    tape: FunctionTape = field(default_factory=FunctionTape)
    calls: list[ObservedCall] = field(default_factory=list)
    others: list[ObservedCall] = field(default_factory=list)
    root: Tensor | None = None
    autocast: torch.autocast | None = None
    failure: str = ""
    is_started: bool = False
    running: nn.Module | None = None
    is_whole: bool = False
    is_of_another: bool = False

    def close(self, root: Tensor) -> None:
        """End the step at the number that its backward pass begins with, and choose the model."""
        self.root = root
        models = list({id(call.model): call.model for call in self.calls}.values())
        reached = {id(model): self._trace(model) for model in models}
        if len(models) > 1:  # those whose loss it is, and of these the first of a chain
            models = [model for model in models if id(root) in reached[id(model)]]
            own = [m for m in models if not any(self._reads(m, reached[id(o)]) for o in models if o is not m)]
            if not own:
                self.failure = self.failure or "several models take part in a step"
                return
            self.model = own[0]
        self.others = [call for call in self.calls if call.model is not self.model]
        self.calls = [call for call in self.calls if call.model is self.model]
        self.is_whole = self._reads(self.model, reached[id(self.model)])
        made = {id(item) for call in self.tape.calls for item in iter_items(call.result)}
        made |= {id(tensor) for call in (*self.calls, *self.others) for _, tensor in tree_leaves(call.outputs)}
        given = [tensor for call in self.calls for _, tensor in tree_leaves(call.given)]
        self.is_of_another = any(tensor.grad_fn is not None and id(tensor) not in made for tensor in given)

    def _reads(self, model: nn.Module, tensors: set[int]) -> bool:
        """Return True if a model is called with some tensors."""
        calls = [call for call in self.calls if call.model is model]
        return any(id(tensor) in tensors for call in calls for _, tensor in tree_leaves(call.given))

    def _trace(self, model: nn.Module) -> set[int]:
        """List, by identity, the outputs of a model and what is computed from them; with a gradient, if of several."""
        found, is_alone = set[int](), all(call.model is model for call in self.calls)
        for call in insert_calls(self.tape, [(call.place, call.to_function()) for call in self.calls]).calls:
            read = [item for item in iter_items((call.args, call.kwargs)) if isinstance(item, Tensor)]
            if call.function is model or any(id(item) in found for item in read):
                made = [item for item in iter_items((call.result, call.written)) if isinstance(item, Tensor)]
                made = [tensor for _, tensor in tree_leaves(call.result)] if call.function is model else made
                given = {id(item) for item in read if id(item) not in found}  # outputs may hold inputs
                found |= {id(item) for item in made if is_alone or item.requires_grad} - given
        return found


class ObservedForm(Form):
    """Form of a program as one of its steps showed it: the calls of the model, and the functions that lead to its loss.

    `inputs` of a batch are the arguments of the model: one alone by itself, several by position or by name; of several
    calls, a tuple of these. The target is what the loss reads beside the outputs: one tensor by itself, or a tuple.
    Raises TapeError for a step that cannot be repeated.
    """

    loss = None
    is_divided = True
    takes_samples = False

    def __init__(self, step: ObservedStep, template: FunctionTemplate) -> None:
        self._template = template
        self._forms = [_get_form(call) for call in step.calls]
        self._num_samples = _count_rows(*((call.args, call.kwargs) for call in step.calls))
        self._is_sized = template.is_sized(self._num_samples)
        self._sources = {slot: _find_source(tensor, step) for slot, tensor in template.leaves.items()}
        if not any(source.kind == "output" for source in self._sources.values()):
            raise TapeError("the loss does not read what the model returned")
        open_leaves = {s: t for s, t in template.leaves.items() if self._sources[s].kind == "other"}
        read = {slot: t for slot, t in open_leaves.items() if t.ndim and slot not in template.memory}
        rows = [slot for slot, t in read.items() if len(t) == self._num_samples]
        self._targets = rows or [*read]
        self._constants = {s: t.detach().clone() for s, t in open_leaves.items() if s not in self._targets}
        self.loss = [*(call.function for call in template.calls if call.is_whole), *self._constants.values()]
        self._shapes = _list_shapes(self.join_outputs(step))
        names = [call.name for call in template.calls][-_NUM_NAMES:] or ["its own loss"]
        self.words = f"model({', '.join(_name_arguments(step))}), then {', '.join(names)}"
        self._model = step.model

    def join_outputs(self, step: ObservedStep) -> Any:
        """Return the outputs of a step: those of its only call, or a tuple."""
        return step.calls[0].outputs if len(step.calls) == 1 else tuple(call.outputs for call in step.calls)

    def read(self, step: ObservedStep, template: FunctionTemplate) -> Batch:
        """Read inputs and target of a step of this form."""
        joined = [_join(call) for call in step.calls]
        target = [template.leaves[slot].detach().clone() for slot in self._targets]
        return Batch(joined[0] if len(joined) == 1 else tuple(joined), target[0] if len(target) == 1 else tuple(target))

    def split(self, batch: Any) -> Batch:
        """Refuse to divide what a loader yields: it is not known how its parts become inputs and target."""
        raise LeftOutError("how the loader's batches become inputs is not known")

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call a copy of the model as the loop does."""
        if len(self._forms) == 1:
            return _call(model, self._forms[0], inputs)
        return tuple(_call(model, form, each) for form, each in zip(self._forms, inputs, strict=True))

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss of other outputs and another target; of numbers that it reads of the model, those of a copy.

        Raises NotApplicableError for sizes or formats that the step of the loop did not have, where they fail.
        """
        leaves, shapes = dict(tree_leaves(outputs)), _list_shapes(outputs)
        is_known = shapes == self._shapes
        if self._is_sized and not is_known:
            raise NotApplicableError("the loss counts the samples of its batch")
        values: dict[int, Any] = dict(self._constants)
        values |= {slot: source.read(model, leaves) for slot, source in self._sources.items() if source.kind != "other"}
        values |= dict(zip(self._targets, [target] if len(self._targets) == 1 else target, strict=True))
        is_double = any(t.dtype == torch.float64 for t in leaves.values())
        if is_double:
            values = {s: v.double() if is_float(v) and s not in self._targets else v for s, v in values.items()}
        try:
            with standing_in(self._model, model):
                return self._template.replay(values, partial(_prepare_part, is_double=is_double)).reshape(())
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if is_known and not is_double:
                raise
            raise LeftOutError("the loss, as it was seen, does not take other sizes or formats") from error

    def find_difference(self, step: ObservedStep, template: FunctionTemplate) -> str:
        """Say in what a step of the loop differs from the form; "" where the form has the same loss."""
        if [_get_form(call) for call in step.calls] != self._forms:
            return "the model is called in another way in the next step"
        if difference := self._template.find_difference(template):
            return difference
        constants = self._constants
        self._constants = constants | {slot: template.leaves[slot] for slot in template.memory}
        try:
            with torch.no_grad(), step.autocast or nullcontext():
                again = self.evaluate(step.model, self.join_outputs(step), self.read(step, template).target)
        finally:
            self._constants = constants
        return compare_losses(float(again.detach()), step)


class OpaqueForm(Form):
    """Form of a step whose loss reads the graphs of its model, or whose calls of it read what it has computed.

    The calls of the model are repeated with the functions that lead to the loss. `inputs` are the tensors that these
    and the loss read, in a tuple, and the one output is the loss. Raises TapeError for a step that cannot be repeated.
    """

    is_divided = False
    takes_samples = False

    def __init__(self, step: ObservedStep, template: FunctionTemplate) -> None:
        self._template, self._model, self._autocast = template, step.model, step.autocast
        self._sources = {slot: _find_source(tensor, step) for slot, tensor in template.leaves.items()}
        if not any(call.function is step.model for call in template.calls):
            raise TapeError("the loss does not read what the model returned")
        own = {slot: tensor for slot, tensor in template.leaves.items() if self._sources[slot].kind == "other"}
        self._inputs = [slot for slot, tensor in own.items() if tensor.ndim]
        self._constants = {slot: tensor.detach().clone() for slot, tensor in own.items() if not tensor.ndim}
        self._wanted = {slot for slot in self._inputs if own[slot].requires_grad}
        self.loss = [call.function for call in template.calls if call.is_whole and call.function is not step.model]
        names = [call.name for call in template.calls if not call.is_whole][-_NUM_NAMES:]
        self.words = f"the step as a whole: model({', '.join(_name_arguments(step))}), then {', '.join(names)}"

    def read(self, step: ObservedStep, template: FunctionTemplate) -> Batch:
        """Read the tensors of a step of this form."""
        return Batch(tuple(template.leaves[slot].detach().clone() for slot in self._inputs), ())

    def split(self, batch: Any) -> Batch:
        """Refuse to divide what a loader yields: it is not known how its parts become inputs."""
        raise LeftOutError("how the loader's batches become inputs is not known")

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Repeat the step with a copy of the model."""
        with torch.enable_grad():
            return Whole(Held(self._compute(model, inputs)))

    def _compute(self, model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
        values: dict[int, Any] = dict(self._constants)
        values |= {slot: source.read(model, {}) for slot, source in self._sources.items() if source.kind != "other"}
        for slot, tensor in zip(self._inputs, inputs, strict=True):
            wants = slot in self._wanted and not tensor.requires_grad
            values[slot] = tensor.detach().clone().requires_grad_() if wants else tensor

        def convert(part: Any) -> Any:
            return model if part is self._model else _prepare_part(part, is_double=False)

        with standing_in(self._model, model):
            return self._template.replay(values, convert).reshape(())

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Return the loss that the step has given."""
        value: Tensor = outputs.held.value
        return value

    def find_difference(self, step: ObservedStep, template: FunctionTemplate) -> str:
        """Say in what a step of the loop differs from the form; "" where the form has the same loss."""
        if difference := self._template.find_difference(template):
            return difference
        with step.autocast or nullcontext(), preserve_random_state(), torch.enable_grad():
            again = self._compute(copy_module(step.model), self.read(step, template).inputs)
        return compare_losses(float(again.detach()), step)


def make_template(step: ObservedStep) -> FunctionTemplate:
    """Make the template of a step, from the outputs of its model; or, if they do not tell its loss, from its calls.

    Such a step then `is_whole`. Raises TapeError for one that cannot be repeated.
    """
    assert step.root is not None
    outputs = [tensor for call in step.calls for _, tensor in tree_leaves(call.outputs)]
    if not step.is_whole:
        tape = insert_calls(step.tape, [(call.place, call.to_function()) for call in step.others])
        try:
            template = FunctionTemplate(tape, step.root, outputs)
        except GraphError:
            step.is_whole = True
        else:
            _leave_out_unread(step, template)
            return template
    calls = [(call.place, call.to_function()) for call in (*step.calls, *step.others)]
    return FunctionTemplate(insert_calls(step.tape, calls), step.root, outputs, graphs=True)


def _leave_out_unread(step: ObservedStep, template: FunctionTemplate) -> None:
    """Leave out the calls whose outputs the loss does not read, unless it reads what a call has stored in its model."""
    read = {id(tensor) for tensor in template.leaves.values()}
    calls = [call for call in step.calls if any(id(tensor) in read for _, tensor in tree_leaves(call.outputs))]
    given = {id(tensor) for call in calls for _, tensor in tree_leaves(call.outputs)}
    has_others = any(t.grad_fn is not None and id(t) not in given for t in template.leaves.values())
    step.calls = step.calls if has_others else calls or step.calls


def compare_losses(again: float, step: ObservedStep) -> str:
    """Say that a repeated loss is not that of the step of the loop; "" where it is."""
    assert step.root is not None
    tolerance = _TOLERANCE if step.autocast is None else _TOLERANCE_OF_AUTOCAST
    value = float(step.root.detach())
    is_same = abs(again - value) <= tolerance * max(abs(value), 1e-3) or (again != again and value != value)
    return "" if is_same else f"its loss, repeated, is {again:.5g}, and {value:.5g} in the loop"


@dataclass(frozen=True)
class _Source:
    """Where a leaf of a loss is from: an `output` by its path, an `attribute` of a module by its name, or `other`."""

    kind: str
    path: str = ""
    name: str = ""

    def read(self, model: nn.Module, outputs: Mapping[str, Tensor]) -> Tensor:
        if self.kind == "output":
            return outputs[self.path]
        value: Tensor = getattr(model.get_submodule(self.path), self.name)
        return value


def _find_source(tensor: Tensor, step: ObservedStep) -> _Source:
    """Find where a leaf of a loss is from. Raises TapeError for one with a history that was not seen."""
    joined = step.calls[0].outputs if len(step.calls) == 1 else tuple(call.outputs for call in step.calls)
    for path, output in tree_leaves(joined):
        if output is tensor:
            return _Source("output", path)
    for path, module in step.model.named_modules():
        for name, member in (*module._parameters.items(), *vars(module).items()):
            if member is tensor:
                return _Source("attribute", path, name)
    if tensor.grad_fn is not None:
        raise TapeError("the loss reads what was computed elsewhere, and has a gradient")
    return _Source("other")


def _list_shapes(outputs: Any) -> dict[str, torch.Size]:
    return {path: tensor.shape for path, tensor in dense_leaves(outputs)}


def _prepare_part(part: Any, *, is_double: bool) -> Any:
    """Return a copy of a loss with a state of its own, which a call may change."""
    if not isinstance(part, nn.Module):
        return part
    return copy.deepcopy(part).double() if is_double else copy.deepcopy(part)


@dataclass(frozen=True)
class _CallForm:
    """Arguments of a call: how many by position, and the names of others; one alone is `is_single`."""

    num_args: int
    names: tuple[str, ...]
    has_gradient: bool

    @property
    def is_single(self) -> bool:
        return self.num_args + len(self.names) == 1


def _get_form(call: ObservedCall) -> _CallForm:
    return _CallForm(len(call.args), tuple(call.kwargs), call.has_gradient)


def _name_arguments(step: ObservedStep) -> list[str]:
    call = step.calls[0]
    known = list(get_signature(get_forward(step.model)).parameters)
    return [*(known[: len(call.args)] or ["..."]), *call.kwargs]


def _join(call: ObservedCall) -> Any:
    form, values = _get_form(call), (*call.args, *call.kwargs.values())
    if form.is_single:
        return values[0]
    return dict(call.kwargs) if not form.num_args else values


def _call(model: nn.Module, form: _CallForm, inputs: Any) -> Any:
    with torch.set_grad_enabled(form.has_gradient and torch.is_grad_enabled()):
        if form.is_single:
            return model(**{form.names[0]: inputs}) if form.names else model(inputs)
        if not form.num_args:
            return model(**inputs)
        return model(*inputs[: form.num_args], **dict(zip(form.names, inputs[form.num_args :], strict=True)))


def _count_rows(*trees: Any) -> int:
    """Count the samples of a call: the length of its first tensor with axes; 0 without one."""
    return next((len(t) for tree in trees for _, t in dense_leaves(tree) if t.ndim), 0)
