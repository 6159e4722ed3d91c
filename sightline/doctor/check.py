"""Check of a module with its loss and batches, before it is trained."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sightline.contract.errors import UserError, join_some
from sightline.contract.pytree import tree_children, tree_map
from sightline.doctor.attempts import MissingError, attempt, own_work
from sightline.doctor.batches import read_batches
from sightline.doctor.budget import BUDGET_S, USUAL, Budget
from sightline.doctor.causes import merge_findings
from sightline.doctor.evidence import Evidence
from sightline.doctor.evidence.data.source import Reading
from sightline.doctor.evidence.levels import Levels, find_levels
from sightline.doctor.examine import Examination, assert_codes, examine, examine_section
from sightline.doctor.finding import SEVERITIES, Finding
from sightline.doctor.forms.form import Batch, Form, UnknownForm
from sightline.doctor.forms.inside_form import look_inside
from sightline.doctor.forms.step_form import can_take, observe_step
from sightline.doctor.forms.tried_forms import find_form
from sightline.doctor.loaders import assert_readable, iterate, list_hooks, record_readings
from sightline.doctor.processes import describe_spread, is_one_of_several, leave_others_alone, unwrap
from sightline.doctor.report import Report
from sightline.doctor.score import make_score
from sightline.doctor.sections import make_sections
from sightline.doctor.snapshots import preserve_state
from sightline.doctor.sources import locate_findings
from sightline.doctor.subject import Subject
from sightline.doctor.verdict import CHECK_REMEDIES, LOOP, Remedy, write_verdict
from sightline.instrument import copy_module, leave_out_checkpoints
from sightline.instrument.random_state import preserve_random_state

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
    budget_s: float | None = None,
) -> Report:
    """Judge a module, its loss and its batches by all rules that apply; nothing of them changes.

    `step(batch)` returns the loss as the training loop computes it: how the program calls the module is observed on a
    copy that stands in for it. Without it calls of the module and of `loss` that their signatures allow are tried. Of a
    loader the first four batches are read. `evaluation` is a loader, or batches, of what the model is evaluated on,
    `score` the function of the model and such a loader that returns its figure, or figures by name. `declared` names
    codes of findings that are intended. What is asked is counted, and the same on every machine; `budget_s` allows more
    or less, and bounds the processor time that this takes. Raises UserError for what cannot be read.
    """
    assert_codes(declared, name="check: declared")
    assert_step(step, loader, name="check")
    more: dict[str, Any] = {"step": step, "optimizer": optimizer, "evaluation": evaluation, "score": score}
    examined = examine_models({"": model}, loss, loader, declared=declared, budget=Budget.allow(budget_s), **more)
    return _make_report(type(unwrap(model)).__name__, examined, budget_s)


def check_models(
    models: Mapping[str, nn.Module],
    loader: Any,
    *,
    step: Callable[[Any], Any],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    declared: Sequence[str] = (),
    budget_s: float | None = None,
) -> Report:
    """Judge several models that are trained together, such as a generator and its critic, each by its own loss.

    `step(batch)` returns the losses by the names of the models that they train, or one loss for all of them. Each model
    is judged as one is by `check_module`, with those optimizers that hold any of its parameters, while copies of the
    others stand in for them; `budget_s` is that of all. Raises UserError for what cannot be read, and for a step
    without a loss of some model.
    """
    assert_codes(declared, name="check: declared")
    more: dict[str, Any] = {"step": step, "optimizer": optimizer, "evaluation": evaluation}
    examined = examine_models(models, None, loader, declared=declared, budget=Budget.allow(budget_s), **more)
    title = ", ".join(f"{name} ({type(unwrap(model)).__name__})" for name, model in models.items())
    return _make_report(title, examined, budget_s)


def examine_models(
    models: Mapping[str, nn.Module],
    loss: Callable[..., Any] | None,
    loader: Any,
    *,
    step: Callable[[Any], Any] | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    evaluation: Any = None,
    score: Callable[..., Any] | None = None,
    declared: Sequence[str] = (),
    budget: Budget = USUAL,
) -> dict[str, tuple[Subject, Examination]]:
    """Examine one model, whose name is "", or each of several by its own loss and optimizers; nothing of them changes.

    Raises UserError for what cannot be read.
    """
    optimizers, examined = list_values(optimizer), {}
    for share, (name, model) in zip(budget.divide(len(models)), models.items(), strict=True):
        examined[name] = _examine_module(
            model,
            loss,
            loader,
            step=step if step is None or not name else _take_loss(step, name, models),
            optimizer=([each for each in optimizers if holds(each, model)] if name else []) or optimizers or None,
            evaluation=evaluation,
            declared=declared,
            budget=share,
            score=score,
        )
    return examined


def list_findings(examined: Mapping[str, tuple[Subject, Examination]]) -> list[Finding]:
    """List the findings of one model, or of several with their names."""
    found = {name: locate_findings(judged, subject) for name, (subject, judged) in examined.items()}
    return name_findings({name: merge_findings(findings) for name, findings in found.items()})


def holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Return True if an optimizer has any parameter of a model."""
    own = {id(parameter) for parameter in model.parameters()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def _take_loss(step: Callable[[Any], Any], name: str, names: Iterable[str]) -> Callable[[Any], Any]:
    """Return the step of one of several models: that which returns the loss that it is trained by."""

    def run(batch: Any) -> Any:
        losses = step(batch)
        if not isinstance(losses, Mapping):
            return losses
        losses = {str(key): value for key, value in losses.items()}
        if name not in losses:
            found = join_some([*map(repr, losses)], most=4)
            raise UserError(
                f"check: step= returns the losses by the names of the models, {', '.join(names)}, that they train; "
                f"'{name}' has none; found those of {found}"
            )
        return losses[name]

    return run


def _examine_module(
    model: nn.Module,
    loss: Callable[..., Any] | None,
    loader: Any,
    *,
    step: Callable[[Any], Any] | None,
    optimizer: Any,
    evaluation: Any,
    declared: Sequence[str],
    budget: Budget,
    score: Callable[..., Any] | None = None,
) -> tuple[Subject, Examination]:
    """Examine copies of a module with its loss and batches; leave all of the program as it is."""
    model = take_alone(model)
    assert_copied(model)
    assert_readable(loader, name="check: the loader")
    assert_readable(evaluation, name="check: evaluation")
    with _leave_as_it_is(model, loss, step, loader, evaluation):
        with record_readings(loader) as readings:
            batches = read_batches(list_batches(loader))
            if step is not None and isinstance(loader, list) and batches[0] is loader:
                is_one = can_take(model, step, loader) or not can_take(model, step, loader[0])
                batches = batches if is_one else read_batches(loader)
        subject = make_subject(model, loss, batches, optimizer, step=step, loader=loader, evaluation=evaluation)
        sections = make_sections(subject, [move(batch, subject.model) for batch in batches], readings)
        subject = dataclasses.replace(subject, sections=sections)
        scored = None if score is None else make_score(score, model, evaluation)
        return subject, examine_subject(subject, declared=declared, budget=budget, score=scored)


def _make_report(title: str, examined: Mapping[str, tuple[Subject, Examination]], budget_s: float | None) -> Report:
    """Make the report of one model, or of several by their names."""
    judgements = [each for _, examination in examined.values() for each in examination.judgements]
    words = {name: subject.form.words for name, (subject, _) in examined.items()}
    verdict = write_verdict(
        Examination(judgements=judgements),
        remark="; ".join(f"{name}: {said}" if name else said for name, said in words.items() if said),
        remedies=_list_remedies([subject for subject, _ in examined.values()]),
        loop=LOOP,
        gaps=list_gaps(examined),
        budget_s=BUDGET_S if budget_s is None else budget_s,
    )
    return Report(title, list_findings(examined), verdict)


def list_gaps(examined: Mapping[str, tuple[Subject, Examination]]) -> list[str]:
    """List what of the batches no relation changes: targets that are no tensors, an evaluation of another form.

    Then what was left out because it is slow to read.
    """
    subjects = [subject for subject, _ in examined.values()]
    has_arrays = any(_has_array(batch.target) for subject in subjects for batch in subject.batches[:1])
    is_other = any(subject.is_of_another_form for subject in subjects)
    return [
        *(["targets that are NumPy arrays (collate them to tensors)"] if has_arrays else []),
        *(["evaluation data, whose batches are of another form than those of training"] if is_other else []),
        *dict.fromkeys(gap for _, examination in examined.values() for gap in examination.gaps),
    ]


def assert_step(step: Any, loader: Any, *, name: str) -> None:
    """Raise UserError for a step that is no function, and for one without batches."""
    if step is not None and not callable(step):
        raise UserError(f"{name}: step is a function of one batch that returns its loss; found {type(step).__name__}")
    if step is not None and loader is None:
        raise UserError(f"{name}: `step` is asked with batches of `loader`, which is not given")


def _has_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or any(_has_array(item) for _, item in tree_children(value))


def name_findings(found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """List the findings of several models by their names, the gravest first; those of all of them once, without one."""
    common = {each for findings in found.values() for each in map(_get_words, findings)}
    for findings in found.values():
        common &= {*map(_get_words, findings)}
    known, named = set[Any](), list[Finding]()
    for name, findings in found.items():
        for finding in findings:
            if _get_words(finding) not in common:
                named.append(name_finding(finding, name))
            elif _get_words(finding) not in known:
                known.add(_get_words(finding))
                named.append(finding)
    return sorted(named, key=lambda finding: SEVERITIES.index(finding.severity))


def _get_words(finding: Finding) -> tuple[str, ...]:
    return finding.code, finding.summary, finding.measured


def name_finding(finding: Finding, name: str) -> Finding:
    """Name one of several models in a finding about it."""
    layer, param = (path and f"{name}.{path}" for path in (finding.where.layer, finding.where.param))
    place = dataclasses.replace(finding.where, layer=layer, param=param)
    return dataclasses.replace(finding, summary=f"{name}: {finding.summary}", where=place)


def _list_remedies(subjects: Sequence[Subject]) -> Mapping[str, Remedy]:
    """List what the caller can give: of a form that is not known, the step to write; of several models, no score."""
    remedies, form = dict(CHECK_REMEDIES), subjects[0].form
    if len(subjects) > 1:
        remedies.pop("score")
    if any(subject.is_of_another_form for subject in subjects):
        remedies.pop("evaluation")
    if isinstance(form, UnknownForm):
        remedies["step"] = Remedy(remedies["step"].topic, f"step=step, as your loop has it: {form.step}")
    return remedies


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
    budget: Budget = USUAL,
    progress: Callable[[int, int, str], None] = lambda done, total, code: None,
    **more: Any,
) -> Examination:
    """Judge a subject by all rules, within a budget.

    `progress` is that of `examine`. `more` is what measurements read beside the subject: the `term` of a loss alone,
    the `score` of a module.
    """
    given = {"program_reading": Reading(min(Reading.MAX_READING_S, budget.allowed_s / 8)), **more}
    with leave_out_checkpoints(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what torch says of shapes that relations try
        evidence = Evidence({"subject": subject, **given}, budget.seconds, budget.is_patient, budget.ends_s)
        examination = examine(evidence, declared=declared, progress=progress)
        for section in subject.sections:
            evidence = Evidence({"subject": section, **given}, evidence.left_s, budget.is_patient, budget.ends_s)
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
    divided = attempt("form", form.split, {"batch": first})
    form = form if isinstance(divided, MissingError) else look_inside(form, model, divided)
    evaluated = [] if evaluation is None else _split_evaluation(evaluation, form, model)
    return Subject(
        model,
        form,
        _split(batches, form, model),
        evaluated,
        list_values(optimizer),
        _get_loader(loader),
        _get_loader(evaluation) if evaluated else None,
        is_of_another_form=evaluation is not None and not evaluated,
    )


def list_values(value: Any) -> list[Any]:
    """List a value alone, or the values of a list or tuple; none for None."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _split_evaluation(evaluation: Any, form: Form, model: nn.Module) -> list[Batch]:
    """Divide the first batches of an evaluation; none, where they have not all that those of training have.

    Batches of training alone may be mixed, and have a second label and a share.
    """
    batches = read_batches(list_batches(evaluation), name="evaluation")
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
        if isinstance(each, MissingError) and not each.is_unasked:
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


def name_models(models: Any, *, caller: str) -> dict[str, nn.Module]:
    """Name several models by their keys, or their numbers. Raises UserError for a value that is none."""
    named = {str(name): value for name, value in (models.items() if isinstance(models, Mapping) else enumerate(models))}
    for value in named.values():
        if not isinstance(value, nn.Module):
            raise UserError(f"{caller}: a model is an nn.Module; found {type(value).__name__}")
    return named


def name_prefixes(model: Any) -> dict[str, nn.Module]:
    """Name the models that are watched by prefixes of their parameters: "" for one, else its key or index."""
    if not isinstance(model, list | tuple | Mapping):
        return {"": name_models([model], caller="watch")["0"]}
    return {f"{name}.": each for name, each in name_models(model, caller="watch").items()}


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
