"""A task whose losses also read what a teacher, a trained network that stays as it is, returns for each batch."""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.binding import Offer
from sightline.tasks.supervised import Sums, Supervised
from sightline.types import Batch, Component

__all__ = ["Distilled", "reads_teacher", "undistilled", "with_teacher"]

_PREFIX = "teacher_"


def reads_teacher(component: Component) -> bool:
    """Whether a loss of a config names an output of a teacher, in its count or in its sum."""
    builder = registry.losses.entry(component).builder
    functions = (getattr(builder, name, None) for name in ("count", "forward"))
    names = (name for each in functions if each is not None for name in inspect.signature(each).parameters)
    return any(name.startswith(_PREFIX) for name in names)


def with_teacher(batch: Offer, outputs: Offer) -> Offer:
    """What a batch offers together with the outputs of a teacher, which are called `teacher_<output>`."""
    return Offer(f"{batch.source}, with {outputs.source},", {*batch.keys, *(_PREFIX + name for name in outputs.keys)})


class Distilled:
    """A task, its `parent`, whose losses and counts read each output of `teacher` as `teacher_<output>`.

    The teacher predicts a micro-batch once, in `prepare`: in evaluation mode, without gradient, in the number format
    of the step. `lessons` is the parent's task bound to the teacher's forward; where evaluation divides a sample into
    windows, the teacher gets the same ones. Predictions, metrics, pictures and all else are the parent's, whose
    attributes this task has. Source: Hinton, Vinyals and Dean 2015, section 2.
    """

    def __init__(self, parent: Any, *, teacher: nn.Module, lessons: Supervised) -> None:
        self.parent = parent
        self._teacher = teacher.eval().requires_grad_(False)
        self._lessons = lessons

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "parent":  # a copy asks before it has attributes
            raise AttributeError(name)
        return getattr(self.parent, name)

    @property
    def lap(self) -> Callable[[str], None]:
        """The parent's, which whoever keeps the time sets."""
        lap: Callable[[str], None] = self.parent.lap
        return lap

    @lap.setter
    def lap(self, lap: Callable[[str], None]) -> None:
        self.parent.lap = lap

    @property
    def tallies(self) -> Callable[[Sequence[Any]], Mapping[str, Tensor]]:
        """The parent's, of its own contexts."""
        tallies = self.parent.tallies
        return lambda contexts: tallies([own for _, own in contexts])

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: Sums
    ) -> tuple[Mapping[str, Tensor], list[tuple[dict[str, Any], Any]]]:
        """The parent's counts over the step; of each micro-batch the teacher's outputs and the parent's context."""
        taught = [self._taught(batch, in_windows=not model.training) for batch in micro_batches]
        counts, contexts = self.parent.prepare(model, list(map(_joined, micro_batches, taught)), world)
        return counts, list(zip(taught, contexts, strict=True))

    def losses(self, model: nn.Module, batch: Batch, around: Any) -> Mapping[str, Tensor]:
        """The parent's loss sums over this micro-batch."""
        taught, own = around
        sums: Mapping[str, Tensor] = self.parent.losses(model, _joined(batch, taught), own)
        return sums

    def assess(self, model: nn.Module, batch: Batch, around: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """The parent's loss sums and predictions of one forward pass."""
        taught, own = around
        found: tuple[Mapping[str, Tensor], Mapping[str, Any]] = self.parent.assess(model, _joined(batch, taught), own)
        return found

    @torch.no_grad()
    def _taught(self, batch: Batch, *, in_windows: bool) -> dict[str, Any]:
        run = self._lessons.evaluated_outputs if in_windows else self._lessons.outputs
        return {_PREFIX + name: value for name, value in run(self._teacher, batch).items()}


def undistilled(task: Any) -> Any:
    """The task itself, without its teacher where it has one."""
    return task.parent if isinstance(task, Distilled) else task


def _joined(batch: Batch, taught: dict[str, Any]) -> Any:
    """The batch with more keys: not a copy, so that whoever notes which keys are read still does."""
    return ChainMap(taught, batch)
