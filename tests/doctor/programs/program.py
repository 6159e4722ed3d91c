"""Program: what a training script has by name, how one of its batches becomes a loss, and what it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import default_collate

Step = Callable[[Any], Tensor]
PROGRAMS: dict[str, Callable[[], Program]] = {}
"""Name of a program, and what makes it anew, always from the same seed."""
FORMS_OF: dict[str, tuple[str, ...]] = {}
"""Name of a program, and its forms."""


def _is_tuple_of(count: int) -> Callable[[Any], bool]:
    return lambda batch: isinstance(batch, tuple | list) and len(batch) == count


def _has_text(batch: Any) -> bool:
    return any(isinstance(value, list) and isinstance(value[0], str) for value in batch.values())


FORMS: Mapping[str, Callable[[Any], bool] | None] = {
    # of a batch, each with a test of one
    "batch: a tensor": lambda batch: isinstance(batch, Tensor),
    "batch: a tuple of one": _is_tuple_of(1),
    "batch: a pair": _is_tuple_of(2),
    "batch: three values": _is_tuple_of(3),
    "batch: four values": _is_tuple_of(4),
    "batch: a tuple in a tuple": lambda batch: any(isinstance(part, tuple | list) for part in batch),
    "batch: a mapping": lambda batch: isinstance(batch, Mapping),
    "batch: a mapping of mappings": lambda batch: any(isinstance(part, Mapping) for part in batch.values()),
    "batch: a mapping with text": _has_text,
    "batch: a named tuple": lambda batch: hasattr(batch, "_fields"),
    "batch: a dataclass with .to": lambda batch: dataclasses.is_dataclass(batch) and hasattr(batch, "to"),
    "batch: lists of tensors of any size": lambda batch: isinstance(batch[0], list | tuple),
    "batch: a list of mappings": lambda batch: isinstance(batch[1][0], Mapping),
    "batch: everything at once": None,
    "batch: bytes": lambda batch: batch[0].dtype == torch.uint8,
    "batch: samples end to end, and where each ends": None,
    # of a model
    "model: several arguments": None,
    "model: named arguments": None,
    "model: several outputs": None,
    "model: a mapping of outputs": None,
    "model: an object of outputs": None,
    "model: returns its loss": None,
    "model: methods beside forward": None,
    "model: another one that is trained beside it": None,
    "model: another one that is not trained": None,
    "model: an average of its weights": None,
    # of a loss
    "loss: several arguments": None,
    "loss: the inputs are the target": None,
    "loss: labels that are ignored": None,
    "loss: a weight for each sample": None,
    "loss: no target": None,
    "loss: a term that the forward pass stores": None,
    "loss: the gradient of the outputs": None,
    # of a step
    "step: the inputs are changed": None,
    "step: noise or partners are drawn": None,
    "step: two passes": None,
    "step: three passes": None,
    "step: state goes on to the next": None,
    "step: gradients are clipped": None,
    "step: a schedule": None,
    "step: gradients of several batches": None,
}
"""Forms that occur in at least one program."""


class PlainForm(NamedTuple):
    """The same training with batches `(inputs, target)` and `loss(outputs, target)`."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    loader: Iterable[Any]


@dataclass(kw_only=True)
class Program:
    """Names of a training script. `score` evaluates: chance is below `bar`, and so is the model before it is trained.

    `update` is the body of the loop where it is more than a step of `optimizer` down the gradient of `step(batch)`;
    `end_epoch` is called after each epoch.
    """

    model: nn.Module
    optimizer: Any
    loader: Iterable[Any]
    step: Step
    score: Callable[[], float]
    bar: float
    epochs: int
    loss: Callable[..., Tensor] | None = None
    evaluation: Iterable[Any] | None = None
    update: Callable[[Any], None] | None = None
    end_epoch: Callable[[], None] = lambda: None
    watched: Any = None
    """What `watch` gets where it is not the model alone, with `optimizers`."""
    optimizers: Any = None
    losses: Callable[[Any], Mapping[str, Tensor]] | None = None
    """Step of all models that are trained: their losses by the names that `watched` has."""
    plain_form: Callable[[], PlainForm] | None = None

    def train(self, epochs: int | None = None) -> None:
        """Train for some epochs, or as many as the program has."""
        modules = self.watched.values() if isinstance(self.watched, Mapping) else [self.model]
        for _ in range(self.epochs if epochs is None else epochs):
            for module in modules:
                module.train()
            for batch in self.loader:
                if self.update is not None:
                    self.update(batch)
                    continue
                self.optimizer.zero_grad()
                self.step(batch).backward()
                self.optimizer.step()
            self.end_epoch()


def program(*forms: str) -> Callable[[Callable[[], Program]], Callable[[], Program]]:
    """Add a function that makes a program to `PROGRAMS`, with the forms that occur in it."""

    def add(make: Callable[[], Program]) -> Callable[[], Program]:
        def make_seeded() -> Program:
            torch.manual_seed(0)
            return make()

        assert make.__name__ not in PROGRAMS
        unknown = set(forms) - FORMS.keys()
        assert not unknown, f"{make.__name__} has forms without a line: {unknown}"
        FORMS_OF[make.__name__] = forms
        PROGRAMS[make.__name__] = make_seeded
        return make_seeded

    return add


def recast(loader: DataLoader[Any], convert: Callable[[Any], Any]) -> DataLoader[Any]:
    """Make a loader of the same samples whose batches are converted."""
    collate = loader.collate_fn or default_collate
    return DataLoader(
        loader.dataset, loader.batch_size, shuffle=True, collate_fn=lambda samples: convert(collate(samples))
    )


def rate(model: nn.Module, loader: Iterable[Any], compare: Callable[[Any], Tensor]) -> float:
    """Average what `compare` says of each batch, without gradients and in evaluation mode; the mode comes back."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        values = torch.cat([compare(batch).float().flatten() for batch in loader])
    model.train(was_training)
    return float(values.mean())
