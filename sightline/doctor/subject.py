"""Subject of an examination in its own words: a model, its loss, its batches, its loaders and optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.contract.errors import UserError, summarise_error
from sightline.contract.pytree import is_dense, tree_leaves, tree_map
from sightline.doctor.attempts import MissingError, NotApplicableError
from sightline.doctor.batches import count_rows, join_leaves
from sightline.doctor.forms.form import Batch, Form
from sightline.instrument import copy_module


class Pass(NamedTuple):
    """Forward pass of a copy of the model in training mode, with its graph: `inputs` are leaves that want gradients.

    `parameters` are those of the copy, by the names that the user's model has.
    """

    model: nn.Module
    batch: Batch
    inputs: Any
    outputs: Any
    value: Tensor
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class Subject:
    """Model with the form of its program, and the first batches of its loaders; nothing of it is ever changed.

    `form` tells how the program calls its model and its loss, and divides a sample, or a batch, of the loader into
    inputs and target. `loader` and `evaluation_loader` are what the user gave, None where it was batches; `evaluation`
    are the first batches of the second. A loss that is a sum is divided by `divisor` where its level is said.
    `sections` are the same program as a function of a part of its batches, for what does not apply to the whole. The
    evaluation `is_of_another_form` if its batches lack what those of training have: it is not read then.
    """

    model: nn.Module
    form: Form
    batches: Sequence[Batch]
    evaluation: Sequence[Batch] = ()
    optimizers: Sequence[torch.optim.Optimizer] = ()
    loader: Any = None
    evaluation_loader: Any = None
    divisor: float = 1.0
    sections: Sequence[Subject] = ()
    is_of_another_form: bool = False

    def copy(self, mode: str) -> nn.Module:
        """Copy the model, in the mode `train` or `eval`."""
        return copy_module(self.model).train(mode == "train")

    def jitter(self, model: nn.Module, *, seed: int, share: float = 0.3) -> nn.Module:
        """Move the weights of a copy by a share of their spread, by a seed: weights of 0 hide what a layer does."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.is_floating_point():
                    continue
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
                parameter.add_(noise * (share * spread.nan_to_num() + 0.02))
        return model

    def join_targets(self, path: str) -> Tensor | None:
        """Join a leaf of the targets over the batches; None where a batch has none, or one of other columns."""
        return join_leaves([batch.target for batch in self.batches], path)

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Call a copy of the model with the inputs of a batch."""
        return _ask(self.form.call, model, inputs)

    def run(self, model: nn.Module, batch: Batch) -> Pass:
        """Compute the loss of a batch with a copy of the model, its graph kept, from inputs that want gradients."""
        inputs = tree_map(batch.inputs, _want_gradient)
        outputs = self.call(model, tree_map(inputs, lambda _, t: t + 0 if t.requires_grad else t))
        names = [name for name, _ in self.model.named_parameters()]
        parameters = dict(zip(names, model.parameters(), strict=True))
        return Pass(model, batch, inputs, outputs, self.evaluate(model, outputs, batch.target), parameters)

    def evaluate(self, model: nn.Module, outputs: Any, target: Any) -> Tensor:
        """Compute the loss of outputs that a copy of the model has given; the loss may read that copy."""
        return _ask(self.form.evaluate, model, outputs, target)


class RefusedError(NotApplicableError):
    """The user's model, loss or optimizer raises an error; of other inputs than those of its loader, it may."""


def step_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Take a step of a copy of the user's optimizer. Raises RefusedError for an error of its own."""
    _ask(optimizer.step)


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's model, loss or optimizer. Raises RefusedError for an error of theirs."""
    try:
        return function(*arguments)
    except (NotApplicableError, MissingError, UserError):
        raise
    except Exception as error:
        words = {"call": "the model", "evaluate": "the loss"}.get(function.__name__, "the optimizer")
        raise RefusedError(f"{words} refuses: {summarise_error(error, max_length=120)}") from error


@dataclass(frozen=True)
class LossTerm:
    """What a loss that is a subject of its own states of itself.

    `compute(outputs, target)` returns its sum over the batch, and the count that divides it; `take` those of some of
    the `num` samples. `tables` are rows of numbers that its code reads, `wanted` the best values of outputs where these
    are known, with a mask; `ignored` is the label that does not count. `is_split` tells that a step's batch is divided,
    `is_of_pairs` that samples are compared with one another, `are_all_learnt`
    that each of their sides has a gradient, `is_of_batch` that arguments count rows of the batch.
    """

    compute: Callable[[Any, Any], tuple[Tensor, float]]
    take: Callable[[Any, Any, Sequence[int]], tuple[Any, Any]]
    num: int
    module: nn.Module | None = None
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    wanted: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ignored: int | None = None
    class_counts: Sequence[float] | None = None
    is_split: bool = False
    is_of_pairs: bool = False
    are_all_learnt: bool = False
    is_of_batch: bool = False


def _want_gradient(path: str, tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_() if is_dense(tensor) and tensor.is_floating_point() else tensor


def take_rows(tree: Any, rows: Tensor | Iterable[int]) -> Any:
    """Take samples of a batch, by their places."""
    index = torch.as_tensor(list(rows) if not isinstance(rows, Tensor) else rows)
    return tree_map(tree, lambda _, t: t[index.to(t.device)] if t.ndim else t)


def replace_leaf(tree: Any, path: str, new: Tensor) -> Any:
    """Replace one tensor of a tree, by its path."""
    return tree_map(tree, lambda other, tensor: new if other == path else tensor)


def count_samples(batch: Batch) -> int:
    """Count the samples of a batch; 0 where its tensors do not all have a row for each."""
    counts = {count_rows(tensor) for _, tensor in tree_leaves(tuple(batch))}
    return counts.pop() if len(counts) == 1 else 0
