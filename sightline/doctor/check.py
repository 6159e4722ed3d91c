"""Check of a module with its loss and batches, before it is trained."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_map
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.batches import read_batches
from sightline.doctor.causes import merge_findings
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.levels import Levels, find_levels
from sightline.doctor.examine import Examination, assert_codes, examine
from sightline.doctor.form import Batch, Form
from sightline.doctor.loaders import assert_readable, iterate, preserve_loaders
from sightline.doctor.processes import describe_spread, is_one_of_several, leave_others_alone, unwrap
from sightline.doctor.report import Report
from sightline.doctor.subject import LossTerm, Subject
from sightline.doctor.tried_forms import find_form
from sightline.doctor.verdict import write_verdict
from sightline.instrument import copy_module, leave_out_checkpoints
from sightline.instrument.random_state import preserve_random_state

BUDGET_S = 4.0
"""Processor time for the measurements of one check."""
_NUM_SAMPLES = 64


def check_module(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch_or_loader: Any,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    declared: Sequence[str] = (),
    budget_s: float = BUDGET_S,
) -> Report:
    """Judge a module, its loss and its batches by all rules that apply; nothing of them changes.

    `loss(outputs, target)` takes what the module returns for the inputs of a batch `(inputs, target)`; of a loader the
    first four batches are read. A batch that is a mapping goes to the model whole, or by the keys that `forward` names,
    and to `loss(outputs, batch)`. `evaluation` is a loader, or batches, of what the model is evaluated on. `declared`
    names codes of findings that are intended, `budget_s` is the processor time for all measurements. Raises UserError
    for what cannot be read.
    """
    assert_codes(declared, name="check: declared")
    model = take_alone(model)
    assert_copied(model)
    assert_readable(batch_or_loader, name="check: the loader")
    assert_readable(evaluation, name="check: evaluation")
    with preserve_random_state(), preserve_loaders(batch_or_loader, evaluation), leave_others_alone():
        batches = read_batches(list_batches(batch_or_loader))
        subject = make_subject(model, loss, batches, optimizer, loader=batch_or_loader, evaluation=evaluation)
        examination = examine_subject(subject, declared=declared, budget_s=budget_s)
    verdict = write_verdict(examination, budget_s=budget_s)
    return Report(type(model).__name__, merge_findings(examination.findings), verdict)


def measure_levels(model: nn.Module, loss: Callable[[Any, Any], Tensor], batch_or_loader: Any) -> Levels:
    """Measure the losses of a module as it is, of zeros, and of the best constants, on the first batches.

    These have 64 samples or more, if there are as many: some constants fit few samples well by chance.
    """
    model = take_alone(model)
    with preserve_random_state(), preserve_loaders(batch_or_loader), leave_others_alone():
        batches = read_batches(list_batches(batch_or_loader), num_samples=_NUM_SAMPLES)
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
    term: LossTerm | None = None,
) -> Examination:
    """Judge a subject by all rules, within a budget of processor time; `term` is given for a loss alone.

    With `is_patient`, slow networks get as many passes as those of 20 ms do.
    """
    given = {"subject": subject} if term is None else {"subject": subject, "term": term}
    with leave_out_checkpoints(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch says of shapes that relations try
        return examine(Evidence(given, budget_s, is_patient), declared=declared)


def make_subject(
    model: nn.Module, loss: Any, batches: Sequence[Any], optimizer: Any, *, loader: Any = None, evaluation: Any = None
) -> Subject:
    """Make the subject of the first batches of a loader. Raises UserError for what is no batch."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    form = find_form(model, loss, batches[0], device)
    optimizers = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    evaluated = [] if evaluation is None else _split_evaluation(evaluation, form, device)
    return Subject(
        model,
        form,
        _split(batches, form, device),
        evaluated,
        optimizers,
        _get_loader(loader),
        _get_loader(evaluation) if evaluated else None,
    )


def _split_evaluation(evaluation: Any, form: Form, device: torch.device) -> list[Batch]:
    """Divide the first batches of an evaluation; none, where they have not all that those of training have.

    Batches of training alone may be mixed, and have a second label and a share.
    """
    batches = read_batches(list_batches(evaluation))
    divided = attempt("evaluation", _split, {"batches": batches, "form": form, "device": device})
    return [] if isinstance(divided, MissingError) else divided


def _split(batches: Iterable[Any], form: Form, device: torch.device) -> list[Batch]:
    moved = [tree_map(batch, lambda _, tensor: tensor.to(device)) for batch in batches]
    return [form.split(batch) for batch in moved]


def list_batches(value: Any) -> Iterable[Any]:
    """Return an iterable of batches; one batch is a tuple, a mapping, or a list that begins with inputs."""
    assert_batches(value, name="check")
    is_batch = isinstance(value, tuple | Mapping)
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
    return None if value is None or isinstance(value, list | tuple | Mapping) else value


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
