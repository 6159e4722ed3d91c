"""Forms of a user's batches: `(inputs, target)`, or a mapping of which the model and the loss read their parts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError
from sightline.contract.pytree import ReadTrackingDict, dense_leaves, is_dense, tree_leaves, tree_map
from sightline.doctor.attempts import MissingError, attempt
from sightline.instrument import copy_module

_MAX_BATCHES, _MAX_SMALL_BATCHES = 4, 64


@dataclasses.dataclass(frozen=True)
class BatchForm:
    """Division of a batch, or of a sample, into inputs and target; of a pair, both names are empty.

    `inputs` are the keys of a mapping that the model reads, `targets` those that the loss reads: a single one is the
    target itself. Values that neither reads, such as file names, are left out.
    """

    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def split(self, batch: Any) -> tuple[Any, Any]:
        """Divide a batch or a sample. Raises UserError for one of another form."""
        if isinstance(batch, Mapping):
            inputs = {name: batch[name] for name in self.inputs}
            targets = {name: batch[name] for name in self.targets}
            return inputs, targets[self.targets[0]] if len(targets) == 1 else targets
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise UserError(f"check: a batch is (inputs, target) or a mapping; found {describe(batch)}")
        first, *others = batch
        return first, others[0] if len(others) == 1 else tuple(others)

    def wrap(self, loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
        """Return the loss as a function of the outputs and the target that `split` returns."""
        if len(self.targets) != 1:
            return loss
        (name,) = self.targets
        return lambda outputs, target: loss(outputs, {name: target})


PAIRS = BatchForm()
"""Form of batches that are `(inputs, target)`."""


def read_batches(batches: Iterable[Any], *, num_samples: int | None = None) -> list[Any]:
    """Read the first four batches, or up to 64 until they have `num_samples`; those without samples are left out.

    Raises UserError if there is none.
    """
    first: list[Any] = []
    for batch in itertools.islice(batches, _MAX_BATCHES if num_samples is None else _MAX_SMALL_BATCHES):
        first.append(batch)
        if num_samples is not None and sum(map(_count_samples, first)) >= num_samples:
            break
    if not first:
        raise UserError("check: the loader has no batch")
    return [batch for batch in first if not _is_empty(batch)] or first


def _is_empty(batch: Any) -> bool:
    """Return True for a batch of no samples: none of its tensors has a row."""
    tensors = [tensor for _, tensor in dense_leaves(batch)]
    return bool(tensors) and not any(map(count_rows, tensors))


def _count_samples(batch: Any) -> int:
    return max((count_rows(tensor) for _, tensor in dense_leaves(batch)), default=0)


def find_form(model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Any, device: torch.device) -> BatchForm:
    """Find which keys of a mapping the model and the loss read, by a forward pass of a copy; nothing of it changes.

    `loss(outputs, batch)` gets the whole mapping. A `forward` with the names of keys reads these; one that fails, and
    a loss that fails, read all.
    """
    if not isinstance(batch, Mapping):
        return BatchForm()
    moved = tree_map(dict(batch), lambda _, tensor: tensor.to(device))
    everything = tuple(moved)
    names = _list_named(get_forward(model), everything)
    inputs, targets = ReadTrackingDict(moved), ReadTrackingDict(moved)
    copied = copy_module(model).train()
    call = {"model": copied, "args": () if names else (inputs,), "kwargs": {name: moved[name] for name in names}}
    outputs = attempt("model", _call_without_gradient, call)
    if isinstance(outputs, MissingError):  # the first pass says why
        return BatchForm(everything, everything)
    own = copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    value = attempt("loss", _call_without_gradient, {"model": own, "args": (outputs, targets), "kwargs": {}})
    if isinstance(value, MissingError):
        targets.read.update(everything)
    read = names or tuple(name for name in everything if name in inputs.read)
    return BatchForm(read or everything, tuple(name for name in everything if name in targets.read) or everything)


def _call_without_gradient(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


def has_rows(pair: tuple[Any, Any]) -> bool:
    """Return True if a batch has samples, and each of its tensors a row for each.

    Not for graphs, lists of any length, sparse and nested tensors, nor for arrays of NumPy and objects of other kinds.
    """
    if not all(map(_is_divisible, pair)):
        return False
    tensors = [tensor for _, tensor in tree_leaves(pair)]
    return all(map(is_dense, tensors)) and len({count_rows(t) for t in tensors}) == 1 and count_rows(tensors[0]) > 0


def _is_divisible(value: Any) -> bool:
    """Return True for tensors, numbers and text, and plain containers of them: samples can be taken and stacked."""
    if type(value) in (dict, OrderedDict, list, tuple):
        return all(map(_is_divisible, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor | int | float | str)


def count_rows(tensor: Tensor) -> int:
    """Count the rows of a tensor; -1 for a number without axes."""
    return len(tensor) if tensor.ndim else -1


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a module with a tensor, with the values of a tuple or list, or with those of a mapping by name.

    A `forward` that does not take so many arguments, or those names, gets the tuple or mapping itself.
    """
    by_name = dict(inputs) if isinstance(inputs, Mapping) else {}
    values = tuple(inputs) if isinstance(inputs, list | tuple) else ()
    if (by_name or values) and _takes(get_forward(model), values, by_name):
        return model(*values, **by_name)
    return model(inputs)


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


def _takes(function: Callable[..., Any], values: tuple[Any, ...], by_name: Mapping[str, Any]) -> bool:
    try:
        get_signature(function).bind(*values, **by_name)
    except TypeError:
        return False
    return True


def _list_named(function: Callable[..., Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """List the keys that are names of a function's arguments, if it can be called with them alone."""
    parameters = get_signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    named = keys if takes_all else tuple(name for name in keys if name in parameters)
    return named if named and _takes(function, (), dict.fromkeys(named)) else ()


def describe(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
