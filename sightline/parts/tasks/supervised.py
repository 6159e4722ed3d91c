"""Base class of supervised tasks: losses bound to batch and outputs, with counts summed over the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline.contract.binding import AvailableKeys, BoundFunction, bind, locate_output_error, select_arguments
from sightline.contract.errors import UserError
from sightline.contract.loss import Loss, bad_count_error, cast_forward
from sightline.contract.task import AllReduce, Task
from sightline.contract.types import PREPARED, Batch
from sightline.ops.waits import require

Decoder = Callable[[Mapping[str, Tensor], Batch], dict[str, Tensor]]
"""Function from the outputs of a network and its batch to what an exported file predicts beside them."""


class Supervised(Task):
    """Supervised task: calls the model and each loss with the keys that their signatures name.

    What a task computes from a batch before the forward pass, such as the assignment of priors to boxes, it returns
    from `context` and names in `context_keys`: losses, their counts and metrics may name these keys, too.
    Raises ConfigError, naming both sides, if a key is missing or available twice.
    """

    def __init__(
        self, *, model: nn.Module, losses: Mapping[str, Loss], batch_keys: AvailableKeys, output_keys: AvailableKeys
    ) -> None:
        self._output_keys = output_keys.keys
        self._forward = bind(model.forward, batch_keys, owner=f"model '{type(model).__name__}'")
        self._counts: dict[str, BoundFunction] = {}
        self._terms: dict[str, BoundFunction] = {}
        context = [AvailableKeys("the task", self.context_keys)] if self.context_keys else []
        for name, loss in losses.items():
            self._counts[name] = bind(loss.count, batch_keys, *context, owner=f"the count of losses.{name}")
            self._terms[name] = bind(cast_forward(loss), batch_keys, output_keys, *context, owner=f"losses.{name}")

    @property
    def bound_losses(self) -> dict[str, tuple[BoundFunction, BoundFunction]]:
        """Each loss's sum and count, with the keys that they take."""
        return {name: (term, self._counts[name]) for name, term in self._terms.items()}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Keys of a batch that the model takes."""
        return self._forward.names

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllReduce
    ) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return each loss's count over all micro-batches and processes, and the context of each micro-batch."""
        with torch.no_grad():
            contexts = [self.context(model, batch) for batch in micro_batches]
        counts = {
            name: _sum_counts(name, [count(*pair) for pair in zip(micro_batches, contexts, strict=True)])
            for name, count in self._counts.items()
        }
        return world.all_reduce_sum(counts, operation="loss counts"), contexts

    def context(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute what losses and metrics read in addition to batch and outputs; without gradient."""
        return {}

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> dict[str, Tensor]:
        """Return each loss's sum over this micro-batch."""
        return self.losses_of(batch, self.outputs(model, batch), context)

    def losses_of(self, batch: Batch, outputs: dict[str, Any], context: Any) -> dict[str, Tensor]:
        """Return each loss's sum over this micro-batch, from the model's outputs."""
        self.on_phase_end("forward")
        return self._sums(batch, outputs, context)

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the model's outputs for a batch."""
        return model(**self.inputs(batch))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Select the model's inputs from a batch, with what is prepared of them."""
        prepared = select_arguments(self._forward.function, batch[PREPARED]) if PREPARED in batch else {}
        return {**self._forward.select(batch), **prepared}

    def evaluated_outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the outputs for predictions: those of one pass, unless a task divides samples into windows."""
        return self.outputs(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the predictions that metrics and pictures read."""
        return self.postprocess(self.evaluated_outputs(model, batch), batch)

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute loss sums and predictions of one forward pass; predictions include the context."""
        outputs = self.evaluated_outputs(model, batch)
        self.on_phase_end("forward")
        sums = self._sums(batch, outputs, context)
        self.on_phase_end("loss")
        return sums, {**self.postprocess(outputs, batch), **context}

    def postprocess(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Convert outputs to predictions: the outputs themselves, unless a task overrides this."""
        return outputs

    def _sums(self, batch: Batch, outputs: dict[str, Any], context: Mapping[str, Any]) -> dict[str, Tensor]:
        sums = {}
        for name, term in self._terms.items():
            try:
                sums[name] = _assert_scalar(name, "forward", term(batch, outputs, context))
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                reads, forward = [key for key in term.names if key in self._output_keys], self._forward.function
                located = locate_output_error(error, outputs, owner=f"losses.{name}", reads=reads, forward=forward)
                if located is None:
                    raise
                raise located from error
        return sums


def _assert_scalar(name: str, method: str, returned: Any) -> Tensor:
    """Return what a loss returned, as a tensor (). Raises UserError if that is no tensor of one number."""
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return returned.reshape(()) if returned.ndim else returned
    description = f"a tensor {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise UserError(f"losses.{name}: {method} returned {description}; return one number, a tensor ()")


def _sum_counts(name: str, returned: list[Any]) -> Tensor:
    """Sum a loss's counts of micro-batches. Raises UserError for one that is negative or not finite."""
    counts = []
    for value in returned:
        count = _assert_scalar(name, "count", value)
        counts.append(count if count.is_floating_point() else count.long())  # truths would add up to a truth
        is_sound = (count >= 0) & (count < torch.inf) if count.is_floating_point() else count >= 0
        require(is_sound, partial(bad_count_error, name, count))
    return sum(counts[1:], counts[0])
