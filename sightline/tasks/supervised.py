"""The plain form of a task: losses bound to batch and outputs, counts added over everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from sightline.binding import Bound, Offer, bind
from sightline.losses.base import Loss
from sightline.types import Batch

__all__ = ["Sums", "Supervised"]


class Sums(Protocol):
    """What a task needs of the processes around it."""

    def all_reduce_sum(self, tensors: Mapping[str, Tensor], *, what: str = ...) -> dict[str, Tensor]: ...


class Supervised:
    """Calls the model with the batch keys that its forward names, then each loss with the keys that it names.

    Raises ConfigError, naming both sides, where a key is missing or offered twice.
    """

    def __init__(self, *, model: nn.Module, losses: Mapping[str, Loss], batch_keys: Offer, output_keys: Offer) -> None:
        self._forward = bind(model.forward, batch_keys, owner=f"model '{type(model).__name__}'")
        self._counts: dict[str, Bound] = {}
        self._terms: dict[str, Bound] = {}
        for name, loss in losses.items():
            self._counts[name] = bind(loss.count, batch_keys, owner=f"the count of losses.{name}")
            self._terms[name] = bind(loss.forward, batch_keys, output_keys, owner=f"losses.{name}")

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: Sums
    ) -> tuple[dict[str, Tensor], list[None]]:
        """Each loss's count over all micro-batches and processes."""
        counts = {name: _total([count(batch) for batch in micro_batches]) for name, count in self._counts.items()}
        return world.all_reduce_sum(counts, what="loss counts"), [None] * len(micro_batches)

    def losses(self, model: nn.Module, batch: Batch, around: Any) -> dict[str, Tensor]:
        """Each loss's sum over this micro-batch."""
        outputs = self.outputs(model, batch)
        return {name: term(batch, outputs) for name, term in self._terms.items()}

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The model's outputs for a batch."""
        return model(**self._forward.select(batch))

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """What metrics and pictures read."""
        return self.interpret(self.outputs(model, batch), batch)

    def assess(self, model: nn.Module, batch: Batch, around: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loss sums and predictions of one forward pass."""
        outputs = self.outputs(model, batch)
        return {name: term(batch, outputs) for name, term in self._terms.items()}, self.interpret(outputs, batch)

    def interpret(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Predictions from the outputs for a batch: the outputs themselves, unless a task overrides this."""
        return outputs


def _total(counts: list[Tensor]) -> Tensor:
    total = counts[0]
    for count in counts[1:]:
        total = total + count
    return total
