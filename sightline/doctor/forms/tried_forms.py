"""Forms of programs that are tried: how a batch divides between a model and a loss, told by calls of a copy."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.pytree import ReadTrackingDict, is_dense
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.forms.form import (
    FIRST_OUTPUT,
    INSIDE,
    CalledForm,
    Form,
    Part,
    UnknownForm,
    get_forward,
    get_signature,
    list_named,
    takes,
)
from sightline.instrument import copy_module

_LABELS = frozenset("label labels target targets y mask masks class classes truth gt".split())
"""Names under which batches hold what a loss compares outputs with."""
_UNUSED, _REPEATED = 3.0, 2.0
"""Costs of a value of the batch that nobody reads, and of one that is input and target."""


class _Call(NamedTuple):
    """Call of the model with a part of a batch; `num_values` of a tuple are taken."""

    part: Part
    calls: str
    cost: float
    num_values: int = 0


class _Loss(NamedTuple):
    """Call of the loss with outputs and a part of a batch."""

    part: Part
    evaluates: str
    cost: float


def find_form(model: nn.Module, loss: Callable[..., Any] | None, batch: Any) -> Form:
    """Find how a program uses a batch on the device of its model, by passes of a copy; nothing of it changes.

    Calls of the model and the loss that the signatures allow are tried, the most usual first; the first is taken whose
    loss is one finite number with a gradient. `(inputs, target)` is taken in any case if its loss is one number, and if
    a label is beyond the classes of its outputs: no other call would be meant. Without a call that runs, the form is
    unknown, and says by which `step=` it can be told.
    """
    trial = _Trial(model, loss, batch)
    candidates = sorted(_list_candidates(model, loss, batch), key=lambda pair: pair[0].cost + pair[1].cost)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch says of arguments that do not fit
        for place, (call, evaluation) in enumerate(candidates):
            form = trial.run(call, evaluation, is_plain=place == 0 and call.cost + evaluation.cost <= 0.2)
            if form is not None:
                return form
    words = f"no call of the model was found that runs{trial.first_error}"
    return UnknownForm(words, _write_step(model, batch), *_find_label(batch))


@dataclasses.dataclass
class _Trial:
    """Calls of copies of a model with parts of a batch, each once."""

    model: nn.Module
    loss: Callable[..., Any] | None
    batch: Any
    first_error: str = ""
    _made: dict[tuple[Part, str], tuple[nn.Module, Part, Any]] = dataclasses.field(default_factory=dict)

    def run(self, call: _Call, evaluation: _Loss, *, is_plain: bool) -> CalledForm | None:
        """Return a form, if both calls run and give a loss."""
        copied, inputs, outputs = self._call(call)
        is_keyed = evaluation.evaluates == "outputs, batch"
        form = CalledForm(self.model, self.loss, inputs, evaluation.part, call.calls, evaluation.evaluates)
        if isinstance(outputs, MissingError):
            self._keep(form, outputs)
            return None
        batch = ReadTrackingDict(self.batch) if is_keyed else self.batch
        arguments = {"model": copied, "outputs": outputs, "target": batch if is_keyed else form.target.take(batch)}
        value = attempt("loss", form.evaluate, arguments)
        if is_keyed:
            read = tuple(key for key in self.batch if key in batch.read)
            form = dataclasses.replace(form, target=Part(read or tuple(self.batch), is_single=True))
        if isinstance(value, MissingError):
            is_label = isinstance(value.__cause__, IndexError) and "out of bounds" in value.reason
            self._keep(form, value)
            return self._finish(form) if is_plain and is_label else None
        is_sound = value.requires_grad and bool(value.isfinite())
        return self._finish(form) if is_sound or is_plain else None

    def _call(self, call: _Call) -> tuple[nn.Module, Part, Any]:
        """Call a copy; of a mapping that goes to it whole, what it reads is the input."""
        if (call.part, call.calls) not in self._made:
            copied, part, batch = copy_module(self.model).train(), call.part, self.batch
            is_tracked = part.keys is None and isinstance(batch, Mapping)
            batch = ReadTrackingDict(batch) if is_tracked else batch
            form = CalledForm(self.model, self.loss, part, calls=call.calls)
            outputs = attempt("model", form.call, {"model": copied, "inputs": part.take(batch)})
            if is_tracked:
                read = tuple(key for key in self.batch if key in batch.read)
                part = Part(read or tuple(self.batch))
            self._made[call.part, call.calls] = copied, part, outputs
        return self._made[call.part, call.calls]

    def _keep(self, form: CalledForm, missing: MissingError) -> None:
        if missing.kind == "failed":
            self.first_error = self.first_error or f": {form.describe()} ends in {missing.reason}"

    def _finish(self, form: CalledForm) -> CalledForm:
        """Say which form it is, unless it is `(inputs, target)`."""
        sets = [set(part.keys or ()) for part in (form.inputs, form.target)]
        is_whole = not isinstance(self.batch, Tensor) and form.inputs.keys is None
        is_pair = sets[0] == {0} and form.evaluates == "outputs, target" and sets[1] == {*range(1, len(self.batch))}
        is_divided = not sets[0] & sets[1] and not (is_whole and form.target.keys)
        is_divided = is_divided or form.inputs == form.target  # an input that is its own target
        return dataclasses.replace(form, is_divided=is_divided, words="" if is_pair else form.describe())


def _list_candidates(model: nn.Module, loss: Callable[..., Any] | None, batch: Any) -> Iterator[tuple[_Call, _Loss]]:
    calls, losses = (_list_calls, _list_losses) if not isinstance(batch, Mapping) else (_list_keyed, _list_keyed_losses)
    for call in calls(model, batch):
        for evaluation in losses(loss, batch, call):
            yield call, evaluation


def _list_calls(model: nn.Module, batch: Any) -> Iterator[_Call]:
    """List calls of a model with the first values of a tuple or list, or with all of a batch."""
    forward = get_forward(model)
    whole = Part(), "model(inputs)"
    if not isinstance(batch, list | tuple):
        yield _Call(*whole, 0.0)
        return
    num = len(batch)
    for used in range(1, num + 1):
        part, is_all = Part(tuple(range(used)), is_single=True), used == num > 1
        price = _count_optional(forward, used)
        if used == 1:
            yield _Call(part, _choose_call(forward, batch[0]), 0.0, used)
        elif price is not None:
            yield _Call(part, "model(*inputs)", 0.5 * price + is_all, used)
    if num > 1:
        yield _Call(*whole, 1.0, num)
    if isinstance(batch[0], list | tuple) and _are_alike(batch[0]):
        yield _Call(Part((0,), is_single=True), "model(input) of each", 1.5, 1)
    for used in (2, 3):
        if num >= used and _are_alike(batch[:used]):
            yield _Call(Part(tuple(range(used))), "model(input) of each", 1.5, used)


def _are_alike(values: Sequence[Any]) -> bool:
    """Return True for several tensors of one shape."""
    return all(isinstance(value, Tensor) and is_dense(value) for value in values) and (
        len({value.shape for value in values}) == 1
    )


def _choose_call(forward: Callable[..., Any], value: Any) -> str:
    if isinstance(value, Mapping) and takes(forward, (), dict(value)):
        return "model(**inputs)"
    if isinstance(value, list | tuple) and takes(forward, tuple(value), {}):
        return "model(*inputs)"
    return "model(inputs)"


def _list_losses(loss: Callable[..., Any] | None, batch: Any, call: _Call) -> Iterator[_Loss]:
    """List calls of a loss with outputs and the values of a batch that the model has not had."""
    num = len(batch) if isinstance(batch, list | tuple) else 0
    rest, own = tuple(range(call.num_values, num)), Part((0,), is_single=True) if num else Part()
    yield from _list_inside(loss, _UNUSED * len(rest))
    if loss is None:
        return
    parts = [(Part(rest, is_single=True), 0.0)] if rest else []
    parts += [(Part(rest[:num], is_single=True), _UNUSED * (len(rest) - num)) for num in range(1, len(rest))]
    parts += [(Part((key,), is_single=True), _UNUSED * (len(rest) - 1) + 0.1) for key in rest[1:]]
    parts += [(own, _REPEATED + _UNUSED * len(rest) if rest else 0.5)]
    for part, cost in parts:
        many = part.keys is not None and len(part.keys) > 1
        for evaluates, price in {
            "outputs, target": 0.5 * many,
            "outputs, *target": 0.0 if many else None,
            "*outputs, target": 1.0,
            "*outputs, *target": 1.5 if many else None,
            FIRST_OUTPUT: 2.0,
            "outputs[0], target, *outputs[1:]": 1.5,
        }.items():
            taken = len(part.keys or (0,)) if "*target" in evaluates else 1
            optional = 0 if "*outputs" in evaluates else _count_optional(_get_function(loss), 1 + taken)
            if price is not None and optional is not None:
                yield _Loss(part, evaluates, cost + price + optional)


def _list_inside(loss: Callable[..., Any] | None, cost: float) -> Iterator[_Loss]:
    """List calls of a loss of outputs alone, and the loss that outputs hold."""
    yield _Loss(Part(()), INSIDE, cost + (0.0 if loss is None else 2.5))
    if loss is not None:
        yield _Loss(Part(()), "*outputs", cost + 1.5)
        if (optional := _count_optional(_get_function(loss), 1)) is not None:
            yield _Loss(Part(()), "outputs", cost + 1.0 + optional)


def _list_keyed(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[_Call]:
    """List calls of a model with a mapping: by names, with all of it, with one of its values."""
    forward = get_forward(model)
    if names := list_named(forward, tuple(batch)):
        yield _Call(Part(names), "model(**inputs)", 0.0)
    yield _Call(Part(), "model(inputs)", 0.2 if names else 0.1)
    for place, key in enumerate(sorted(batch, key=lambda key: key in _LABELS)):
        yield _Call(Part((key,), is_single=True), _choose_call(forward, batch[key]), _REPEATED + 0.01 * place)


def _list_keyed_losses(loss: Callable[..., Any] | None, batch: Mapping[str, Any], call: _Call) -> Iterator[_Loss]:
    """List calls of a loss with outputs and a mapping: all of it, by names, one of its values."""
    yield from _list_inside(loss, 0.0)
    if loss is None:
        return
    yield _Loss(Part(), "outputs, batch", 0.0)
    parameters = list(_get_parameters(_get_function(loss)))
    names = tuple(parameter.name for parameter in parameters[1:] if parameter.name in batch)
    if names:
        yield _Loss(Part(names), "outputs, **target", 0.3)
    for evaluates, price in (("outputs, target", 0.0), ("outputs[0], target, *outputs[1:]", 0.5)):
        known = [key for key in batch if key in _LABELS and (key,) != call.part.keys]
        others = [key for key in batch if key not in _LABELS and (key,) != call.part.keys]
        for key in known if len(known) == 1 else others if not known and len(others) == 1 else ():
            yield _Loss(Part((key,), is_single=True), evaluates, 1.0 + price)
        if call.part.is_single:
            yield _Loss(call.part, evaluates, _REPEATED + price + _UNUSED * (len(batch) - 1))


def _get_function(loss: Callable[..., Any]) -> Callable[..., Any]:
    return loss.forward if isinstance(loss, nn.Module) else loss


def _get_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """List the parameters of a function that may be given by place; none where nobody knows them."""
    try:
        parameters = get_signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind in kinds]


def _count_optional(function: Callable[..., Any], num: int) -> int | None:
    """Count the optional arguments among the first `num`; None for a function that does not take so many."""
    try:
        get_signature(function).bind(*[None] * num)
    except TypeError:
        return None
    except ValueError:  # a built-in function without a signature
        return 0
    return sum(parameter.default is not inspect.Parameter.empty for parameter in _get_parameters(function)[:num])


def _write_step(model: nn.Module, batch: Any) -> str:
    """Write the step that a program of this batch and model is likely to have."""
    names = [parameter.name for parameter in _get_parameters(get_forward(model))] or ["x"]
    if isinstance(batch, Mapping):
        inputs = [key for key in batch if key not in _LABELS][: len(names)]
        values = [f"batch[{key!r}]" for key in inputs]
        others = [f"batch[{key!r}]" for key in batch if key in _LABELS] or ["batch"]
        head = ""
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        num = min(len(names), len(batch) - 1)
        values, others = (
            names[:num],
            ["target", "other", *(f"other_{n}" for n in range(2, len(batch)))][: len(batch) - num],
        )
        head = f"{', '.join([*values, *others])} = batch; "
    else:
        values, others, head = ["batch"], ["batch"], ""
    return f"`def step(batch): {head}return loss(model({', '.join(values)}), {', '.join(others)})`"


def _find_label(batch: Any) -> tuple[Part, Part]:
    """Divide a batch by its one label of each sample, or by a name of one; a pair by its order."""
    is_keyed = isinstance(batch, Mapping)
    keys = list(batch) if is_keyed else list(range(1, len(batch))) if isinstance(batch, list | tuple) else []
    labels = [key for key in keys if _repeats(batch[key])] if not is_keyed or not _LABELS & {*batch} else []
    labels = labels or [key for key in keys if is_keyed and key in _LABELS]
    target = tuple(labels) if len(labels) == 1 else () if is_keyed else tuple(keys)
    rest = tuple(key for key in keys if key not in target) if is_keyed else (0,) if target else None
    return Part(rest, is_single=not is_keyed), Part(target, is_single=True)


def _repeats(value: Any) -> bool:
    """Return True for one whole number of each sample, of which some are equal: classes, and no numbers of samples."""
    is_whole = isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point()
    return is_whole and len(value.unique()) <= max(1, len(value) // 2)


def find_read_keys(model: nn.Module, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Find which keys of a mapping on the model's device its `forward` names, or reads; all, where the call fails."""
    everything, inputs = tuple(batch), ReadTrackingDict(batch)
    names = list_named(get_forward(model), everything)
    copied = copy_module(model).train()
    call = (lambda: copied(**{name: batch[name] for name in names})) if names else (lambda: copied(inputs))
    outputs = attempt("model", _call_without_gradient, {"call": call})
    if isinstance(outputs, MissingError):
        return everything
    return names or tuple(name for name in everything if name in inputs.read) or everything


def _call_without_gradient(call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()
