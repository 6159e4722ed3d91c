"""Form of a program: which parts of a batch its model is called with, and what of outputs and batch its loss reads."""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_children
from sightline.doctor.attempts import LeftOutError, NotApplicableError


class Batch(NamedTuple):
    """Inputs of the model and target of the loss, trees of tensors on the device of the model."""

    inputs: Any
    target: Any


class Form(abc.ABC):
    """How a program uses a batch: what its model is called with, and how its loss is computed.

    `words` are the calls in one line, `model(x, lengths), loss(outputs, y)`; `loss` is what the user gave to compute
    the loss by. Without `is_divided`, parts of a batch are input and target because nobody knows which they are. A
    form that `takes_samples` divides one sample as it does a batch.
    """

    words: str
    loss: Any
    is_divided: bool
    takes_samples = True

    @abc.abstractmethod
    def split(self, batch: Any) -> Batch:
        """Divide a batch into what the model gets and what the loss reads. Raises UserError for one of another form."""

    @abc.abstractmethod
    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call the model, or a copy of it, as the program does; return its outputs."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss (a tensor of one number) of outputs and a target.

        The loss finds `model`, a copy whose last call is that of the outputs, where it reads the program's model.
        Nothing that the program holds is changed.
        """

    def to_double(self) -> Form:
        """Return the form whose loss takes outputs and targets in float64, as far as that is known."""
        return self


@contextmanager
def standing_in(original: nn.Module, copied: nn.Module) -> Iterator[None]:
    """Context in which each module of a model is its counterpart of a copy, wherever the program has it.

    Closures, globals, bound methods and captured layers then read and call the copy: its weights, buffers, hooks and
    what its last pass has stored. Modules of the copy are paired by their names; one without a counterpart stays as it
    is. At the end, also after an error, all objects of the program have the attributes that they had before.
    """
    originals = list(original.named_modules(remove_duplicate=False))  # all of them, before the first has other layers
    counterparts = dict(copied.named_modules(remove_duplicate=False))
    lent: dict[int, tuple[nn.Module, dict[str, Any]]] = {}
    try:
        for name, module in originals:
            other = counterparts.get(name)
            if other is not None and other is not module and id(module) not in lent and type(other) is type(module):
                lent[id(module)] = module, vars(module)
                object.__setattr__(module, "__dict__", vars(other))
        yield
    finally:
        for module, attributes in lent.values():
            object.__setattr__(module, "__dict__", attributes)


class Held:
    """What a model returns that is no output to be changed: a number that is a part of the loss, with its graph."""

    def __init__(self, value: Any) -> None:
        self.value = value


def hold(value: Any) -> Any:
    """Hold a number with a gradient; other values stay as they are."""
    return Held(value) if isinstance(value, Tensor) and not value.ndim and value.requires_grad else value


def release(value: Any) -> Any:
    """Return what is held; other values stay as they are."""
    return value.value if isinstance(value, Held) else value


def map_held(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Replace what is held inside of a tree, and the tensors beside it."""
    if isinstance(tree, Held | Tensor):
        return function(tree)
    changed = {name: map_held(item, function) for name, item in tree_children(tree)}
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, changed.values(), strict=True))  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        return type(tree)(*changed.values()) if hasattr(tree, "_fields") else type(tree)(changed.values())
    return dataclasses.replace(tree, **changed) if changed else tree


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of a batch by keys of a mapping, or by numbers of a tuple or list; the whole batch without keys.

    A single key gives its value where `is_single`; of several values a mapping has a mapping, a list a tuple.
    """

    keys: tuple[Any, ...] | None = None
    is_single: bool = False

    def take(self, batch: Any) -> Any:
        """Take the part of a batch. Raises UserError for a batch that lacks it."""
        if self.keys is None:
            return batch
        try:
            if isinstance(batch, str | bytes | Tensor) and self.keys:
                raise TypeError("no batch of parts")
            if self.is_single and len(self.keys) == 1:
                return batch[self.keys[0]]
            if isinstance(batch, Mapping):
                return {key: batch[key] for key in self.keys}
            return tuple(batch[key] for key in self.keys)
        except (KeyError, IndexError, TypeError) as error:
            names = ", ".join(map(repr, self.keys))
            raise UserError(f"check: a batch has {names} as the first one; found {describe(batch)}") from error

    def write_into(self, call: str, name: str) -> str:
        """Write the part in the place of its name in a call, `model(*inputs)`."""
        values = ["batch"] if self.keys is None else [f"batch[{key!r}]" for key in self.keys]
        is_mapping = isinstance(next(iter(self.keys or ()), 0), str)
        if len(values) == 1 and (self.is_single or self.keys is None):
            return call.replace(name, values[0])
        if is_mapping and f"*{name}" not in call:  # all of it, of which these keys are read
            return call.replace(name, "batch")
        if f"**{name}" in call:
            named = zip(self.keys or (), values, strict=True)
            return call.replace(f"**{name}", ", ".join(f"{key}={value}" for key, value in named))
        parts = ", ".join(values)
        return call.replace(f"*{name}", parts).replace(name, parts if f"*{name}" in call else f"({parts})")


FIRST = Part((0,), is_single=True)
"""Inputs of a batch `(inputs, target)`."""


def make_keyed_form(
    model: nn.Module, loss: Callable[..., Any], inputs: Sequence[str], targets: Sequence[str]
) -> CalledForm:
    """Make the form of batches that are mappings, of which `loss(outputs, batch)` reads the keys of `targets`."""
    parts = Part(tuple(inputs)), Part(tuple(targets), is_single=True)
    return CalledForm(model, loss, *parts, evaluates="outputs, batch", is_divided=not set(inputs) & set(targets))


@dataclasses.dataclass(frozen=True)
class CalledForm(Form):
    """Form of a program by its model, its loss and the parts of a batch for each.

    `calls` and `evaluates` are rows of `CALLS` and `EVALUATIONS`. `model` is the one that the loss may read.
    """

    model: nn.Module
    loss: Callable[..., Any] | None
    inputs: Part = FIRST
    target: Part = Part((1,), is_single=True)
    calls: str = ""
    evaluates: str = "outputs, target"
    is_divided: bool = True
    words: str = ""

    def split(self, batch: Any) -> Batch:
        """Divide a batch, or a sample, by its keys or numbers."""
        return Batch(self.inputs.take(batch), self.target.take(batch))

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call the model with the inputs of a batch."""
        made = CALLS[self.calls](model, inputs)
        return map_held(made, hold) if self.calls else made

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss; one with a state of its own is copied first."""
        with standing_in(self.model, model):
            return self.compute(outputs, target).reshape(())

    def compute(self, outputs: Any, target: Any) -> Any:
        """Return what the loss does, for outputs and a target as `split` gives it."""
        outputs = map_held(outputs, release) if self.calls else outputs
        if self.evaluates == INSIDE or self.loss is None:
            return find_loss_inside(outputs)
        loss = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else self.loss
        is_named = self.evaluates in ("outputs, batch", "outputs, **target")
        if is_named and self.target.is_single and self.target.keys is not None and len(self.target.keys) == 1:
            target = {self.target.keys[0]: target}
        if self.evaluates == "outputs, **target":
            return loss(outputs, **target)
        return loss(*EVALUATIONS[self.evaluates](outputs, target))

    def describe(self) -> str:
        """Describe the calls of model and loss in one line."""
        called = self.inputs.write_into(self.calls or "model(inputs)", "inputs")
        if self.evaluates == INSIDE:
            return f"{called}, whose outputs hold the loss"
        return f"{called}, loss({self.target.write_into(self.evaluates, 'target')})"

    def to_double(self) -> CalledForm:
        """Return the form whose loss has its own numbers in float64."""
        loss = copy.deepcopy(self.loss).double() if isinstance(self.loss, nn.Module) else self.loss
        return dataclasses.replace(self, loss=loss)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a module with a tensor, with the values of a tuple or list, or with those of a mapping by name.

    A `forward` that does not take so many arguments, or those names, gets the tuple or mapping itself.
    """
    by_name = dict(inputs) if isinstance(inputs, Mapping) else {}
    values = tuple(inputs) if isinstance(inputs, list | tuple) else ()
    if (by_name or values) and takes(get_forward(model), values, by_name):
        return model(*values, **by_name)
    return model(inputs)


CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "": call_model,
    "model(inputs)": lambda model, inputs: model(inputs),
    "model(*inputs)": lambda model, inputs: model(*inputs),
    "model(**inputs)": lambda model, inputs: model(**inputs),
    "model(input) of each": lambda model, inputs: tuple(model(each) for each in inputs),
}
"""Ways in which a model is called with the inputs of a batch."""
INSIDE = "the loss inside of outputs"
FIRST_OUTPUT = "outputs[0], target"
EVALUATIONS: dict[str, Callable[[Any, Any], tuple[Any, ...]]] = {
    "outputs, target": lambda outputs, target: (outputs, target),
    "outputs, batch": lambda outputs, target: (outputs, target),
    "outputs, *target": lambda outputs, target: (outputs, *target),
    "*outputs, target": lambda outputs, target: (*_list_values(outputs), target),
    "*outputs, *target": lambda outputs, target: (*_list_values(outputs), *target),
    FIRST_OUTPUT: lambda outputs, target: (_list_values(outputs)[0], target),
    "outputs[0], target, *outputs[1:]": lambda outputs, target: (
        _list_values(outputs)[0],
        target,
        *_list_values(outputs)[1:],
    ),
    "outputs": lambda outputs, target: (outputs,),
    "*outputs": lambda outputs, target: tuple(_list_values(outputs)),
}
"""Arguments of a loss, of outputs and a target."""


def _list_values(outputs: Any) -> list[Any]:
    """List the values of a tuple or list of outputs. Raises NotApplicableError for outputs of another kind."""
    if not isinstance(outputs, list | tuple):
        raise NotApplicableError("outputs that are no tuple")
    return list(outputs)


def find_loss_inside(outputs: Any) -> Tensor:
    """Find the loss that a model returns: alone, as `loss` beside others, first in a tuple, or as the sum of losses.

    Raises NotApplicableError for outputs without one.
    """
    value = outputs
    if isinstance(outputs, Mapping):
        parts = [part for part in outputs.values() if isinstance(part, Tensor) and not part.ndim]
        value = outputs.get("loss", sum(parts) if parts and len(parts) == len(outputs) else None)
    elif not isinstance(outputs, Tensor):
        value = getattr(outputs, "loss", outputs[0] if isinstance(outputs, list | tuple) and outputs else None)
    if not isinstance(value, Tensor) or value.ndim:
        raise NotApplicableError("outputs that hold no loss")
    return value


@dataclasses.dataclass(frozen=True)
class UnknownForm(Form):
    """Form of a program that is not known: its batches are read, and its model is not called.

    `words` say which call has failed, `step` is the function that the user may write.
    """

    words: str
    step: str
    inputs: Part = Part()
    target: Part = Part(())
    loss: Any = None
    is_divided: bool = False

    def split(self, batch: Any) -> Batch:
        """Divide a batch, or a sample, by its keys or numbers."""
        return Batch(self.inputs.take(batch), self.target.take(batch))

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Raise LeftOutError."""
        raise LeftOutError("how the program calls its model is not known", lacks="step")

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Raise LeftOutError."""
        return cast(Tensor, self.call(model, outputs))


def get_forward(model: nn.Module) -> Callable[..., Any]:
    """Return the forward function whose arguments count: of a parallel or compiled model, that of the model inside."""
    kinds = {parameter.kind for parameter in get_signature(model.forward).parameters.values()}
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    is_passed_on = kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return inner.forward if is_passed_on and isinstance(inner, nn.Module) else model.forward


def get_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function; that of a traced one is in its schema."""
    schema = getattr(function, "schema", None)
    if schema is None:
        return inspect.signature(function)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(argument.name, kind) for argument in schema.arguments[1:]])


def takes(function: Callable[..., Any], values: tuple[Any, ...], by_name: Mapping[str, Any]) -> bool:
    """Return True if a function can be called with these arguments."""
    try:
        get_signature(function).bind(*values, **by_name)
    except TypeError:
        return False
    return True


def list_named(function: Callable[..., Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """List the keys that are names of a function's arguments, if it can be called with them alone."""
    parameters = get_signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    named = keys if takes_all else tuple(name for name in keys if name in parameters)
    return named if named and takes(function, (), dict.fromkeys(named)) else ()


def describe(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
