"""A task whose losses also read what a teacher, a trained network that stays as it is, returns for each batch."""

from __future__ import annotations

import copy
import inspect
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sightline import registry
from sightline.binding import AvailableKeys
from sightline.errors import ConfigError
from sightline.tasks.supervised import AllReduce, Supervised
from sightline.types import Batch, ComponentConfig

__all__ = ["DistillationTask", "add_teacher_keys", "teacher_keys", "unwrap_distillation"]

_PREFIX = "teacher_"
_FEATURES = ("student_modules", "teacher_modules")
"""Keys of mappings: name of a module -> its outputs, one for each of its calls."""


def teacher_keys(component: ComponentConfig) -> set[str]:
    """What a loss of a config reads of a teacher, in its count and in its sum."""
    builder = registry.losses.entry(component).builder
    functions = (getattr(builder, name, None) for name in ("count", "forward"))
    names = (name for each in functions if each is not None for name in inspect.signature(each).parameters)
    return {name for name in names if name.startswith(_PREFIX)}


def add_teacher_keys(batch: AvailableKeys, outputs: AvailableKeys, *, features: Sequence[str] = ()) -> AvailableKeys:
    """What a batch offers together with the outputs of a teacher, which are called `teacher_<output>`."""
    taught = {_PREFIX + name for name in outputs.keys} | ({*_FEATURES} if features else set())
    return AvailableKeys(f"{batch.source}, with {outputs.source},", {*batch.keys, *taught})


class DistillationTask:
    """A task, its `parent`, whose losses and counts read each output of `teacher` as `teacher_<output>`.

    The teacher predicts a micro-batch once, in `prepare`: in evaluation mode, without gradient, in the number format
    of the step. `lessons` is the parent's task bound to the teacher's forward; where evaluation divides a sample into
    windows, the teacher gets the same ones. Losses read what the modules `features` of both networks return as
    `student_modules` and `teacher_modules`, name -> one tensor for each call. Predictions, metrics, pictures and all
    else are the parent's, whose attributes this task has. Source: Hinton, Vinyals and Dean 2015, section 2.
    """

    def __init__(
        self, parent: Any, *, teacher: nn.Module, teacher_task: Supervised, features: Sequence[str] = ()
    ) -> None:
        self.parent = parent
        self.teacher = teacher.eval().requires_grad_(False)
        self._teachers = {(each.dtype, each.device): teacher for each in teacher.parameters()}
        self._lessons = teacher_task
        self._features = tuple(features)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "parent":  # a copy asks before it has attributes
            raise AttributeError(name)
        return getattr(self.parent, name)

    @property
    def on_phase_end(self) -> Callable[[str], None]:
        """The parent's, which whoever keeps the time sets."""
        lap: Callable[[str], None] = self.parent.on_phase_end
        return lap

    @on_phase_end.setter
    def on_phase_end(self, lap: Callable[[str], None]) -> None:
        self.parent.on_phase_end = lap

    @property
    def step_counts(self) -> Callable[[Sequence[Any]], Mapping[str, Tensor]]:
        """The parent's, of its own contexts."""
        tallies = self.parent.step_counts
        return lambda contexts: tallies([own for _, own in contexts])

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllReduce
    ) -> tuple[Mapping[str, Tensor], list[tuple[dict[str, Any], Any]]]:
        """The parent's counts over the step; of each micro-batch the teacher's outputs and the parent's context."""
        taught = [self._taught(batch, in_windows=not getattr(model, "training", True)) for batch in micro_batches]
        counts, contexts = self.parent.prepare(model, list(map(_joined, micro_batches, taught)), world)
        return counts, list(zip(taught, contexts, strict=True))

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> Mapping[str, Tensor]:
        """The parent's loss sums over this micro-batch."""
        taught, own = context
        with _recorded(model, self._features, taught, "student_modules"):
            sums: Mapping[str, Tensor] = self.parent.losses(model, _joined(batch, taught), own)
        return sums

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """The parent's loss sums and predictions of one forward pass."""
        taught, own = context
        with _recorded(model, self._features, taught, "student_modules"):
            found: tuple[Any, Any] = self.parent.losses_and_predictions(model, _joined(batch, taught), own)
        return found

    @torch.no_grad()
    def _taught(self, batch: Batch, *, in_windows: bool) -> dict[str, Any]:
        run = self._lessons.evaluated_outputs if in_windows else self._lessons.outputs
        taught: dict[str, Any] = {}
        teacher = self._alike(self._lessons.inputs(batch).values())
        with _recorded(teacher, self._features, taught, "teacher_modules"):
            outputs = run(teacher, batch)
        for name in self._features:
            taught["teacher_modules"][name]
        return taught | {_PREFIX + name: value for name, value in outputs.items()}

    def _alike(self, inputs: Iterable[Any]) -> nn.Module:
        """The teacher in the number format and on the device of its inputs: who compares steps takes others."""
        given = next((each for each in inputs if isinstance(each, Tensor) and each.is_floating_point()), None)
        if given is None:
            return self.teacher
        key = given.dtype, given.device
        if key not in self._teachers:
            self._teachers[key] = copy.deepcopy(self.teacher).to(key[1], key[0])
        return self._teachers[key]


def unwrap_distillation(task: Any) -> Any:
    """The task itself, without its teacher where it has one."""
    return task.parent if isinstance(task, DistillationTask) else task


def _joined(batch: Batch, taught: dict[str, Any]) -> Any:
    """The batch with more keys: not a copy, so that whoever notes which keys are read still does."""
    return ChainMap(taught, batch)


class _Outputs(dict[str, list[Tensor]]):
    """The outputs of modules by their names; one that was not called is refused when it is looked for."""

    def __missing__(self, name: str) -> list[Tensor]:
        raise ConfigError(
            f"teacher.features: '{name}' is not called in a forward pass: fused layers read the weights of their "
            "parts; build model and teacher with fused: false, or name another module"
        )


@contextmanager
def _recorded(model: nn.Module, names: Sequence[str], into: dict[str, Any], key: str) -> Iterator[None]:
    """Put the outputs of these modules into `into[key]` while the model runs.

    Those of a stand-in, which has outputs and no modules, are the teacher's.
    """
    outputs = into[key] = _Outputs()
    own = dict(model.named_modules(remove_duplicate=False)) if names and isinstance(model, nn.Module) else {}
    if not own.keys() >= {*names}:
        outputs.update(into["teacher_modules"])

    def note(name: str, module: nn.Module, given: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ConfigError(f"teacher.features: '{name}' returns a {kind}, not a tensor; name another")
        outputs.setdefault(name, []).append(output)

    handles = [own[name].register_forward_hook(partial(note, name)) for name in names if name in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
