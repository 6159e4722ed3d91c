"""Base class of tasks: what a training step asks of losses and predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from sightline.contract.types import Batch, Sample


class AllReduce(Protocol):
    """Interface of a task to the world of processes."""

    def all_reduce_sum(self, tensors: Mapping[str, Tensor], *, operation: str = ...) -> dict[str, Tensor]:
        """Add up tensors of the same names over all processes."""


class Tiling(Protocol):
    """Division of large samples into tiles, each predicted like a sample, and one prediction of them all."""

    def divide(self, sample: Sample) -> Sequence[Sample]:
        """Return the tiles of a sample before its transforms; none for a sample that fits into one."""

    def collect(self, predictions: Mapping[str, Any]) -> Sequence[Any]:
        """Return what `merge` reads of each sample, or tile, of a batch, in order; outputs are not needed any more."""

    def merge(self, first: Mapping[str, Any], passes: Sequence[Sequence[Any]]) -> Mapping[str, Any]:
        """Return the predictions `first` of whole samples with what is merged of the `passes` over each.

        A sample's own pass comes first, then those of its tiles; samples without tiles keep their prediction.
        """


class Task(ABC):
    """Task: between a network and the training loop; its losses are sums, so a step can be split in any way.

    `Supervised` is the base of tasks whose losses take batch and outputs by name, which is nearly all of them.
    """

    predicts: ClassVar[frozenset[str]] = frozenset()
    """The keys of its predictions, for metrics."""
    context_keys: ClassVar[frozenset[str]] = frozenset()
    """The keys that `prepare` computes once per batch, for losses and metrics."""
    compares_rows: ClassVar[bool] = False
    """Whether each sample is compared with all others of the step, as in contrastive learning."""
    evaluation_arguments: ClassVar[frozenset[str]] = frozenset()
    """Constructor arguments that change evaluation alone, so that `evaluate RUN task.NAME=` may."""
    greedy_threshold: float | None = None
    """The IoU of a greedy suppression of each class by itself, which an exported file then contains."""
    left_to_caller: Sequence[str] = ()
    """What whoever runs an exported file has to do with its outputs, a sentence each."""
    numbers_for_caller: Mapping[str, Any] = {}
    """The numbers that this needs, such as those of anchors, as plain values."""
    protocol: str = ""
    """How samples are predicted in evaluation, in a word or two for reports; empty: whole."""
    on_phase_end: Callable[[str], None] = staticmethod(lambda part: None)
    """`on_phase_end(part)`: to be called after `forward` and `loss`; the timer of a step sets it."""

    vote: Callable[[Iterable[Mapping[str, Any]]], Mapping[str, Any]] | None = None
    """`vote(passes)`: several predictions of one batch as one; each is computed when it is asked for."""
    make_tiling: Callable[..., Tiling] | None = None
    """`make_tiling(size_px=, overlap=, min_score=)`: tiles of `size_px` pixels that share at least `overlap` of their
    sides, for predictions whose scores reach `min_score`.
    """
    get_priors: Callable[[Tensor], Any] | None = None
    """`get_priors(image)`: the priors of a batch of images, of a task that assigns them to boxes."""
    show: Callable[..., Sequence[Any]] | None = None
    """`show(batch, predictions)`: pictures for TensorBoard.

    Where it takes them, it gets the least `score` to draw, `surroundings`, what the clouds of the set are of, and from
    `view` `pixels` (H, W, 3) uint8 of its one image.
    """
    show_targets: Callable[..., Mapping[str, Any]] | None = None
    """`show_targets(batch)`: for `view`: stage → pictures and figures of the context of `prepare`.

    It gets `pixels` as `show` does, `all_stages`, whether to draw more than a short view has, and `is_trained`, whether
    the model has the weights of a run.
    """
    hardness: Callable[[Batch, Mapping[str, Any]], Tensor] | None = None
    """`hardness(batch, predictions)`: (B,), larger for worse predictions; evaluations then draw their worst samples."""
    make_decoding: Callable[[Batch], Callable[..., dict[str, Tensor]]] | None = None
    """`make_decoding(example)`: a function of what an exported file predicts beside the outputs.

    It is `(outputs, batch)` → name → tensor; `example` is a batch, for all that is the same in every batch.
    """

    @abstractmethod
    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: Any
    ) -> tuple[Mapping[str, Tensor], Sequence[Any]]:
        """Return the global count of each loss (all micro-batches, all processes) and a context per micro-batch."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, context: Any) -> Mapping[str, Tensor]:
        """Return the sum of each loss over this micro-batch."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Return the predictions that metrics read."""

    @abstractmethod
    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return loss sums and predictions of one forward pass."""

    def prepare_outputs(
        self, model: nn.Module, batch: Batch, world: Any
    ) -> tuple[Mapping[str, Tensor], Sequence[Any], Any] | None:
        """Return counts, contexts and outputs of a step of one batch whose context needs outputs; else None.

        The losses of such a step need no further pass.
        """
        return None

    def losses_of(self, batch: Batch, outputs: Any, context: Any) -> Mapping[str, Tensor]:
        """Return the losses of a step that `prepare_outputs` has prepared."""
        raise NotImplementedError(f"{type(self).__name__} has prepare_outputs, and needs losses_of")

    def step_metrics(self, losses: Mapping[str, float], num_samples: int, num_processes: int) -> Mapping[str, float]:
        """Return further numbers of a training step."""
        return {}

    def step_counts(self, contexts: Sequence[Any]) -> Mapping[str, Tensor]:
        """Return name → count (0-d tensor) over the contexts of `prepare`, logged with each step."""
        return {}
