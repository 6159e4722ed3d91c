"""Knowledge distillation: a task whose losses also read the outputs of a trained, frozen teacher."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.config.run_config import RunConfig, Teacher
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.loss import TEACHER_PREFIX, teacher_keys
from sightline.contract.members import list_members
from sightline.contract.model import model_output_keys
from sightline.contract.task import AllReduce, Task
from sightline.contract.types import Batch, SourceLocation
from sightline.parts.tasks.supervised import Supervised


def add_teacher_keys(batch: AvailableKeys, outputs: AvailableKeys) -> AvailableKeys:
    """Add a teacher's outputs, called `teacher_<output>`, to the keys of a batch."""
    taught = {TEACHER_PREFIX + name for name in outputs.keys}
    return AvailableKeys(f"{batch.source}, with {outputs.source},", {*batch.keys, *taught})


_OF_NO_TEACHER = {"prepare_outputs", "losses_of"}
"""Methods of a parent that this task does without: theirs know no teacher."""


class DistillationTask(Task):
    """A task, its `parent`, whose losses and counts read each output of `teacher` as `teacher_<output>`.

    The teacher predicts a micro-batch once, in `prepare`: in evaluation mode, without gradient, in the number format
    of the step. `teacher_task` is the parent's task bound to the teacher's forward; if evaluation divides a sample into
    windows, the teacher gets the same windows. Predictions, metrics, pictures and all else are the parent's, whose
    attributes this task has. Source: Hinton, Vinyals and Dean 2015, section 2.
    """

    def __init__(self, parent: Task, *, teacher: nn.Module, teacher_task: Supervised) -> None:
        self.parent = parent
        self.teacher = teacher.eval().requires_grad_(False)
        self._teachers = {(parameter.dtype, parameter.device): teacher for parameter in teacher.parameters()}
        self._teacher_task = teacher_task
        for name in list_members(Task) - vars(DistillationTask).keys() - _OF_NO_TEACHER:
            setattr(self, name, getattr(parent, name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "parent":  # `copy` looks up attributes before they exist
            raise AttributeError(name)
        return getattr(self.parent, name)

    @property
    def on_phase_end(self) -> Callable[[str], None]:
        """The parent's callback, set by the timer of a step."""
        return self.parent.on_phase_end

    @on_phase_end.setter
    def on_phase_end(self, lap: Callable[[str], None]) -> None:
        self.parent.on_phase_end = lap

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        """Return the parent's predictions."""
        return self.parent.predict(model, batch)

    def step_counts(self, contexts: Sequence[Any]) -> Mapping[str, Tensor]:
        """Return the parent's counts, of the parent's contexts."""
        return self.parent.step_counts([parent_context for _, parent_context in contexts])

    def prepare(
        self, model: nn.Module, micro_batches: Sequence[Batch], world: AllReduce
    ) -> tuple[Mapping[str, Tensor], list[tuple[dict[str, Any], Any]]]:
        """Return the parent's counts, and per micro-batch the teacher's outputs and the parent's context."""
        teacher_outputs = [
            self._predict_teacher(batch, in_windows=not getattr(model, "training", True)) for batch in micro_batches
        ]
        counts, contexts = self.parent.prepare(model, list(map(_merge_keys, micro_batches, teacher_outputs)), world)
        return counts, list(zip(teacher_outputs, contexts, strict=True))

    def losses(self, model: nn.Module, batch: Batch, context: Any) -> Mapping[str, Tensor]:
        """Return the parent's loss sums over this micro-batch."""
        teacher_outputs, parent_context = context
        sums: Mapping[str, Tensor] = self.parent.losses(model, _merge_keys(batch, teacher_outputs), parent_context)
        return sums

    def losses_and_predictions(
        self, model: nn.Module, batch: Batch, context: Any
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return the parent's loss sums and predictions of one forward pass."""
        teacher_outputs, parent_context = context
        result: tuple[Any, Any] = self.parent.losses_and_predictions(
            model, _merge_keys(batch, teacher_outputs), parent_context
        )
        return result

    @torch.no_grad()
    def _predict_teacher(self, batch: Batch, *, in_windows: bool) -> dict[str, Any]:
        run = self._teacher_task.evaluated_outputs if in_windows else self._teacher_task.outputs
        outputs = run(self._match_teacher(self._teacher_task.inputs(batch).values()), batch)
        return {TEACHER_PREFIX + name: value for name, value in outputs.items()}

    def _match_teacher(self, inputs: Iterable[Any]) -> nn.Module:
        """Return the teacher in the dtype and on the device of its inputs, which differ when steps are compared."""
        reference = next(
            (tensor for tensor in inputs if isinstance(tensor, Tensor) and tensor.is_floating_point()), None
        )
        if reference is None:
            return self.teacher
        key = reference.dtype, reference.device
        if key not in self._teachers:
            self._teachers[key] = copy.deepcopy(self.teacher).to(key[1], key[0])
        return self._teachers[key]


@registry.task_wrappers.add("teacher")
def build_distillation(
    *, config: RunConfig, facts: Mapping[str, Any], load_network: Callable[..., nn.Module]
) -> DistillationTask:
    """Build the config's task with losses that also read a teacher's outputs. Raises ConfigError if they do not fit.

    `facts` are those that the task itself would be built with; `load_network` loads the network of another run.
    """
    assert config.teacher is not None, "it is the section that asks for this"
    where = config.origins.get("teacher.from", "teacher.from")
    teacher, owner = _load_teacher(config.teacher, load_network, where), f"the teacher '{config.teacher.source}'"
    if not any(map(teacher_keys, map(registry.losses.get_class, config.losses))):
        raise ConfigError(f"{where}: no loss reads a teacher's outputs; add {{name: distillation}} to losses")
    outputs = AvailableKeys(owner, model_output_keys(teacher, owner=owner))
    try:
        teacher_facts = {**facts, "model": teacher, "losses": {}, "output_keys": outputs}
        teacher_task = registry.tasks.build(config.task, facts=teacher_facts)
    except ConfigError as error:
        raise ConfigError(*(f"{where}: {owner}: {fault}" for fault in error.faults)) from error
    if not isinstance(teacher_task, Supervised):
        raise ConfigError(f"{where}: the task '{config.task.name}' takes no teacher; only tasks by labels do")
    keys = add_teacher_keys(facts["batch_keys"], outputs)
    parent = registry.tasks.build(config.task, facts={**facts, "batch_keys": keys})
    return DistillationTask(parent, teacher=teacher, teacher_task=teacher_task)


def _load_teacher(teacher: Teacher, load_network: Callable[..., nn.Module], where: SourceLocation | str) -> nn.Module:
    """Load the teacher's network. Raises ConfigError if its run is missing, has other weights, or is of other data."""
    source = Path(teacher.source)
    try:
        return load_network(source, sha256=teacher.sha256, remedy="name it: teacher.from=PATH")
    except UserError as error:
        advice = "put the teacher's run back or name its place, teacher.from=PATH; teacher=null evaluates without it"
        raise ConfigError(f"{where}: {error}" + ("" if source.exists() else f"; {advice}")) from None


def unwrap_distillation(task: Any) -> Any:
    """Return the task without its teacher, or the task itself."""
    return task.parent if isinstance(task, DistillationTask) else task


def _merge_keys(batch: Batch, teacher_outputs: dict[str, Any]) -> Any:
    """Add keys to a batch, without a copy, so that a batch which records the keys that are read still does."""
    return ChainMap(teacher_outputs, batch)
