"""Check of a module with its loss and batches, before it is trained."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_map
from sightline.doctor.attempts import MissingError, attempt, own_work
from sightline.doctor.batches import read_batches
from sightline.doctor.causes import merge_findings
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.levels import Levels, find_levels
from sightline.doctor.examine import Examination, assert_codes, examine, examine_section
from sightline.doctor.form import Batch, Form, UnknownForm
from sightline.doctor.loaders import assert_readable, iterate, list_hooks, record_readings
from sightline.doctor.processes import describe_spread, is_one_of_several, leave_others_alone, unwrap
from sightline.doctor.report import Report
from sightline.doctor.score import make_score
from sightline.doctor.sections import make_sections
from sightline.doctor.snapshots import preserve_state
from sightline.doctor.sources import locate_findings
from sightline.doctor.step_form import observe_step
from sightline.doctor.subject import Subject
from sightline.doctor.tried_forms import find_form
from sightline.doctor.verdict import CHECK_REMEDIES, Remedy, write_verdict
from sightline.instrument import copy_module, leave_out_checkpoints
from sightline.instrument.random_state import preserve_random_state

BUDGET_S = 4.0
"""Processor time for the measurements of one check."""
_NUM_SAMPLES = 64


def check_module(
    model: nn.Module,
    loss: Callable[..., Any] | None = None,
    loader: Any = None,
    *,
    step: Callable[[Any], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    score: Callable[..., Any] | None = None,
    declared: Sequence[str] = (),
    budget_s: float = BUDGET_S,
) -> Report:
    """Judge a module, its loss and its batches by all rules that apply; nothing of them changes.

    `step(batch)` returns the loss as the training loop computes it: how the program calls the module is observed on a
    copy that stands in for it. Without it calls of the module and of `loss` that their signatures allow are tried. Of a
    loader the first four batches are read. `evaluation` is a loader, or batches, of what the model is evaluated on,
    `score` the function of the model and such a loader that returns its figure, or figures by name. `declared` names
    codes of findings that are intended, `budget_s` is the processor time for all measurements. Raises UserError for
    what cannot be read.
    """
    assert_codes(declared, name="check: declared")
    model = take_alone(model)
    assert_copied(model)
    assert_readable(loader, name="check: the loader")
    assert_readable(evaluation, name="check: evaluation")
    with _leave_as_it_is(model, loss, step, loader, evaluation):
        with record_readings(loader) as readings:
            batches = read_batches(list_batches(loader))
        subject = make_subject(model, loss, batches, optimizer, step=step, loader=loader, evaluation=evaluation)
        sections = make_sections(subject, [move(batch, subject.model) for batch in batches], readings)
        subject = dataclasses.replace(subject, sections=sections)
        scored = None if score is None else make_score(score, model, evaluation)
        examination = examine_subject(subject, declared=declared, budget_s=budget_s, score=scored)
    verdict = write_verdict(
        examination, remark=subject.form.words, remedies=_list_remedies(subject.form), budget_s=budget_s
    )
    return Report(type(model).__name__, merge_findings(locate_findings(examination, subject)), verdict)


def _list_remedies(form: Form) -> Mapping[str, Remedy]:
    """List what the caller can give; of a form that is not known, the step to write."""
    if not isinstance(form, UnknownForm):
        return CHECK_REMEDIES
    topic, _ = CHECK_REMEDIES["step"]
    return {**CHECK_REMEDIES, "step": Remedy(topic, f"step=step, as your loop has it: {form.step}")}


@contextmanager
def _leave_as_it_is(model: nn.Module, *objects: Any) -> Iterator[None]:
    """Context that changes nothing of a program: neither its objects, nor random numbers, nor what watches it."""
    state = preserve_state(*objects, *list_hooks(model))
    with preserve_random_state(), state, leave_others_alone(), own_work():
        yield


def measure_levels(model: nn.Module, loss: Callable[..., Any], loader: Any) -> Levels:
    """Measure the losses of a module as it is, of zeros, and of the best constants, on the first batches.

    These have 64 samples or more, if there are as many: some constants fit few samples well by chance.
    """
    model = take_alone(model)
    with _leave_as_it_is(model, loss, loader):
        batches = read_batches(list_batches(loader), num_samples=_NUM_SAMPLES)
        return measure_subject_levels(make_subject(model, loss, batches, None))


def measure_subject_levels(subject: Subject) -> Levels:
    """Measure the losses of a subject's network, of zeros, and of the best constants, over all of its batches."""
    alone = [dataclasses.replace(subject, batches=[batch]) for batch in subject.batches]
    return find_levels(*(Evidence({"subject": each}, math.inf).get("free_loss") for each in alone))


def examine_subject(
    subject: Subject,
    *,
    declared: Collection[str] = (),
    budget_s: float = BUDGET_S,
    is_patient: bool = True,
    **more: Any,
) -> Examination:
    """Judge a subject by all rules, within a budget of processor time.

    With `is_patient`, slow networks get as many passes as those of 20 ms do. `more` is what measurements read beside
    the subject: the `term` of a loss alone, the `score` of a module.
    """
    with leave_out_checkpoints(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch says of shapes that relations try
        evidence = Evidence({"subject": subject, **more}, budget_s, is_patient)
        examination = examine(evidence, declared=declared)
        for section in subject.sections:
            evidence = Evidence({"subject": section}, evidence.left_s, is_patient)
            examine_section(examination, evidence)
    return examination


def make_subject(
    model: nn.Module,
    loss: Callable[..., Any] | None,
    batches: Sequence[Any],
    optimizer: Any,
    *,
    step: Callable[[Any], Tensor] | None = None,
    loader: Any = None,
    evaluation: Any = None,
) -> Subject:
    """Make the subject of the first batches of a loader. Raises UserError for what is no batch."""
    first = move(batches[0], model)
    form = find_form(model, loss, first) if step is None else observe_step(model, step, first)
    optimizers = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    evaluated = [] if evaluation is None else _split_evaluation(evaluation, form, model)
    return Subject(
        model,
        form,
        _split(batches, form, model),
        evaluated,
        optimizers,
        _get_loader(loader),
        _get_loader(evaluation) if evaluated else None,
    )


def _split_evaluation(evaluation: Any, form: Form, model: nn.Module) -> list[Batch]:
    """Divide the first batches of an evaluation; none, where they have not all that those of training have.

    Batches of training alone may be mixed, and have a second label and a share.
    """
    batches = read_batches(list_batches(evaluation))
    divided = attempt("evaluation", _split, {"batches": batches, "form": form, "model": model})
    return [] if isinstance(divided, MissingError) else divided


def move(batch: Any, model: nn.Module) -> Any:
    """Move the tensors of a batch to the device of a model."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return tree_map(batch, lambda _, tensor: tensor.to(device))


def _split(batches: Iterable[Any], form: Form, model: nn.Module) -> list[Batch]:
    """Divide batches; those in which a step calls its model otherwise are left out."""
    divided = [attempt("batch", form.split, {"batch": move(batch, model)}) for batch in batches]
    for each in divided:
        if isinstance(each, MissingError) and each.kind != "apply":
            raise each.__cause__ or each
    return [each for each in divided if not isinstance(each, MissingError)]


def list_batches(value: Any) -> Iterable[Any]:
    """Return an iterable of batches; one batch is a tuple, a mapping, or a list that begins with inputs."""
    assert_batches(value, name="check")
    is_batch = isinstance(value, tuple | Mapping | Tensor)
    if isinstance(value, list) and value:
        is_batch = isinstance(value[0], Tensor | Mapping) and not all(isinstance(each, Mapping) for each in value)
    return [value] if is_batch else iterate(value)


def assert_batches(value: Any, *, name: str) -> None:
    """Raise UserError for what is neither a batch nor a loader of batches."""
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        raise UserError(
            f"{name}: a batch is (inputs, target) or a mapping, a loader yields batches; found {value!r:.40}"
        )


def _get_loader(value: Any) -> Any:
    return None if value is None or isinstance(value, list | tuple | Mapping | Tensor) else value


def take_alone(model: nn.Module) -> nn.Module:
    """Return a model without its parallel wrapper. Raises UserError for one that no process of several has whole."""
    model = unwrap(model)
    if is_one_of_several() and (reason := describe_spread(model)):
        raise UserError(f"check: one process cannot judge the model alone: {reason}; check it before it is spread")
    return model


def assert_copied(model: nn.Module) -> None:
    """Raise UserError for a model that has no size yet, or of which there is no copy: checks change copies alone."""
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise UserError(f"check: '{lazy}' has no size yet; call the model with a batch first, then make its optimizer")
    copied = attempt("copy", copy_module, {"model": model})
    if isinstance(copied, MissingError):
        raise UserError(
            f"check: the model cannot be copied, which its checks need: {copied.reason.removeprefix('copy: ')}; check "
            "it before it is wrapped, or without what cannot be copied"
        )
