"""Distillation teachers that share weights with the student, that are trained, or whose statistics change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from torch import Tensor, nn

from sightline.doctor.checks.compression.quantised_outputs import changed_tensors, model_outputs
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import isolated_copy
from sightline.doctor.core.finding import Finding
from sightline.layers.quantisation.parametrised import quantised_weights
from sightline.tasks.distillation import DistillationTask

__all__ = ["teacher_faults", "unfit_teacher"]

_EXPECTED = "a separate float model in evaluation mode that no optimiser changes"


@check("G28", "unfit-teacher", "preflight", causes=("quant.distill",), config_path="teacher", expected=_EXPECTED)
def unfit_teacher(context: Context) -> list[Finding]:
    """The teacher shares no weights with the student, differs from a quantised student, and is not trained.

    Finds: Distillation teachers that share weights with the student, that are trained, or whose statistics change.
    """
    job, task = context.built.job, context.built.job.task
    if not isinstance(task, DistillationTask):
        return []
    optimised = [parameter for group in job.optimizer.param_groups for parameter in group["params"]]
    outputs = (lambda model: model_outputs(context, model)) if context.dry_run.is_sound else None
    return [
        unfit_teacher.finding(context, summary, causes=(cause, "quant.distill"), measured=measured, action=action)
        for cause, summary, measured, action in teacher_faults(job.model, task.teacher, optimised, outputs)
    ]


def teacher_faults(
    student: nn.Module,
    teacher: nn.Module,
    held: Collection[Tensor] = (),
    outputs: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cause, the summary, what was measured and the action of each fault of a teacher.

    `held` are the optimiser's parameters; `outputs` returns the outputs of a model for some batch.
    """
    student_tensors, teacher_state = student.state_dict(keep_vars=True).values(), teacher.state_dict(keep_vars=True)
    pointers = {value.data_ptr() for value in student_tensors if value.numel()}
    shared = [name for name, value in teacher_state.items() if value.data_ptr() in pointers]
    if shared:
        measured, action = (
            f"{len(shared)} of {len(teacher_state)} tensors, {shared[0]} first",
            "load a separate model",
        )
        yield "quant.distill", "the teacher shares its weights with the student", measured, action
    elif outputs is not None and quantised_weights(student):
        teacher_outputs = outputs(isolated_copy(teacher).eval())
        if teacher_outputs and not changed_tensors(teacher_outputs, outputs(isolated_copy(student).eval())):
            measured, action = (
                f"{', '.join(teacher_outputs)}: equal bit by bit",
                "take the float run, before quantisation",
            )
            yield "quant.distill", "the teacher has the outputs of the quantised student", measured, action
    if moving := [name or "all of it" for name, module in teacher.named_modules() if module.training]:
        measured, action = f"{len(moving)} modules, {moving[0]} first", "call teacher.eval(), and no train() after it"
        yield "eval.mode", "the teacher is in training mode", measured, action
    ids = {id(parameter) for parameter in held}
    if trainable := [
        name for name, p in teacher.named_parameters() if (p.requires_grad or id(p) in ids) and not shared
    ]:
        in_optimiser = sum(id(parameter) in ids for parameter in teacher.parameters())
        measured = (
            f"{len(trainable)} parameters require gradients, {in_optimiser} are in the optimiser, {trainable[0]} first"
        )
        yield "optim.param_coverage", "the teacher would be trained", measured, "call teacher.requires_grad_(False)"
