"""Losses of a run as functions of outputs: the sum that a step minimises, and each loss as a subject of its own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sightline.contract.binding import BoundFunction
from sightline.contract.pytree import is_float
from sightline.contract.types import Batch as RunBatch
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.forms.form import Batch, CalledForm, make_keyed_form
from sightline.doctor.objects import find_read_values
from sightline.doctor.subject import LossTerm, Subject
from sightline.engine.device.numerics import Precision
from sightline.engine.step import single_batch_step, weighted_sum
from sightline.engine.train import TrainState
from sightline.ops.boxes.codes import encode_deltas, encode_distances
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context
from sightline.workbench.check.dry_run import take_samples

_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-3}
_ROUNDING_16_BIT = 5e-2
_NUM_SAMPLES, _MAX_OUTPUTS = 16, 200_000
_FEW_OUTPUTS = 2_000
"""Outputs up to which samples are repeated: relations of labels ask for several places."""


class FixedOutputs(nn.Module):
    """Stand-in for a model that returns fixed outputs for any input."""

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        return self._outputs


class RunLoss:
    """Weighted mean losses of a run, at the weights of a step, as one function of the outputs and the batch.

    `num_calls` counts its calls.
    """

    def __init__(self, job: TrainState, *, step: int, precision: Precision) -> None:
        self._job, self._weights, self._precision = job, job.loss_weights_at(step), precision
        self.num_calls = 0

    def __call__(self, outputs: Mapping[str, Any], batch: RunBatch) -> Tensor:
        """Compute the loss that training minimises, in float64."""
        self.num_calls += 1
        model = FixedOutputs(outputs)
        step = single_batch_step(self._job.task, model, batch, self._job.device, self._precision)
        means = step.loss_means(step.loss_sums(model))
        return weighted_sum({name: mean.double() for name, mean in means.items()}, self._weights)


class LossSubject(NamedTuple):
    """Loss of a run by its name, the subject that it is, and what it states of itself."""

    name: str
    subject: Subject
    term: LossTerm


class RecordedOutputs(nn.Module):
    """Network whose outputs are its inputs times one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, **recorded: Any) -> dict[str, Any]:
        return {key: value * self.scale.to(value) if is_float(value) else value for key, value in recorded.items()}


def make_subject_of_outputs(loss: RunLoss, outputs: Mapping[str, Any], batch: RunBatch) -> Subject:
    """Make the subject of a run's losses and of outputs that its network has given for a batch."""
    model = RecordedOutputs()
    return Subject(model, CalledForm(model, loss), [Batch(dict(outputs), batch)])


@dataclasses.dataclass
class LossAlone:
    """Loss as a function of its arguments, which are outputs and all else that it reads."""

    forward: BoundFunction
    counter: BoundFunction | None

    def compute(self, outputs: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Compute the sum, and the count that divides it; a loss of pairs without a count has one for each."""
        each = self.forward({**outputs, **target})
        total = each.double() if each.ndim == 0 else each.double().sum()
        return total, float(each.numel() if self.counter is None else self.counter({**outputs, **target}))

    def __call__(self, outputs: Mapping[str, Any], target: Mapping[str, Any]) -> Tensor:
        return self.compute(outputs, target)[0]


def make_loss_subjects(context: Context) -> Iterator[LossSubject]:
    """Make the subjects of the losses of the first step that, called alone, compute what the step did."""
    job, step = context.built.job, context.dry_run
    task: Any = unwrap_distillation(job.task)
    bound = getattr(task, "bound_losses", {})
    if not bound or not step.is_sound:
        return
    batch, outputs = context.first_outputs
    stand_in = FixedOutputs(outputs)
    prepared = single_batch_step(job.task, stand_in, batch, job.device, job.precision)
    with torch.no_grad():
        sums, around = prepared.loss_sums(stand_in), prepared.contexts[0]
    outputs = outputs if task.compares_rows else task.outputs(stand_in, batch)
    offered: dict[str, Any] = {**batch, **outputs}
    for part in around if isinstance(around, tuple) else (around,):
        offered |= part if isinstance(part, Mapping) else {}
    for name, (forward, counter) in bound.items():
        names = [key for key in offered if key in {*forward.names, *(counter.names if counter is not None else ())}]
        values = {key: offered[key].detach() if isinstance(offered[key], Tensor) else offered[key] for key in names}
        keys = [key for key in names if key in outputs and key in forward.names]
        is_weighted = max(job.loss_weights_at(at)[name] for at in (0, job.num_steps)) > 0
        if not is_weighted or not any(is_float(values[key]) and values[key].numel() for key in keys):
            continue
        loss = LossAlone(_isolate(forward), None if counter is None else _isolate(counter))
        total = float(sums[name])
        alone = attempt(name, loss.compute, {"outputs": values, "target": {}})
        rounding = _ROUNDING.get(sums[name].dtype, _ROUNDING_16_BIT)
        if isinstance(alone, MissingError) or abs(float(alone[0]) - total) > rounding * max(abs(total), 1e-3):
            continue  # the task does more than to call it
        yield _make(context, batch, name, loss, values, keys)


def _make(
    context: Context, batch: RunBatch, name: str, loss: LossAlone, values: dict[str, Any], keys: Sequence[str]
) -> LossSubject:
    """Make the subject of a few samples in which something counts, in float64 if the loss takes that."""
    num, most = len(batch["sample_index"]), 8 if context.is_quick else _NUM_SAMPLES
    size = sum(values[key].numel() for key in keys if is_float(values[key])) / num
    chosen = list(range(num))[: max(2, min(most, int(_MAX_OUTPUTS / size)))]
    if len(chosen) * size < _FEW_OUTPUTS and loss.counter is not None:
        chosen *= -(-_NUM_SAMPLES // len(chosen))
    division = take_samples(_find_division(batch), batch, chosen)
    values = take_samples(values, batch, chosen)
    doubled = {key: value.double() if is_float(value) else value for key, value in values.items()}
    if not isinstance(attempt(name, loss.compute, {"outputs": doubled, "target": {}}), MissingError):
        values = doubled
    model, others = RecordedOutputs(), tuple(key for key in values if key not in keys)
    form = make_keyed_form(model, loss, keys, others)

    def take(outputs: Any, target: Any, rows: Sequence[int]) -> tuple[Any, Any]:
        named = {others[0]: target} if len(others) == 1 else target
        return form.split(take_samples({**outputs, **named}, division, rows))

    term = LossTerm(
        compute=make_keyed_form(model, loss.compute, keys, others).compute,
        take=take,
        num=len(chosen),
        module=_find_module(loss.forward.function),
        tables=dict(_list_tables(loss.forward.function)),
        wanted=_find_codes(values),
        ignored=context.built.data.facts.get("ignore_index"),
        class_counts=_count_classes(context),
        is_of_pairs=loss.counter is None,
        are_all_learnt=set(keys) == {"first", "second"} and _are_learnt(loss, values, keys),
        is_of_batch="second_match" in values,
        is_split=max(context.config.train.micro_batches, context.world.size) > 1,
    )
    count = attempt(name, loss.compute, {"outputs": values, "target": {}})
    divisor = 1.0 if isinstance(count, MissingError) else count[1] or 1.0
    subject = Subject(model, form, [form.split(values)], divisor=divisor)
    return LossSubject(name, subject, term)


def _count_classes(context: Context) -> Sequence[float] | None:
    """Return the training targets of each class: by the facts, under `sightline check` by the samples."""
    counts: Sequence[float] | None = context.built.data.facts.get("class_counts")
    if counts is None and not context.is_quick and context.class_counts and context.class_counts[0] is not None:
        counts = context.class_counts[0].targets.tolist()
    return counts


def _are_learnt(loss: LossAlone, values: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Return True if each of some outputs has a gradient."""
    leaves = {key: values[key].clone().requires_grad_() for key in keys}
    total = loss.compute({**values, **leaves}, {})[0]
    found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True) if total.requires_grad else [None]
    return all(gradient is not None for gradient in found)


def _find_division(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key == "sample_index" or key.endswith("offsets")}


def _list_tables(function: Any) -> Iterator[tuple[str, Tensor]]:
    """List the rows of numbers that a loss has as attributes, and that its code reads."""
    module = _find_module(function)
    attributes = {} if module is None else {**vars(module), **dict(module.named_buffers())}
    for name, value in (*attributes.items(), *find_read_values(function)):
        is_list = isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)
        if is_list or (isinstance(value, Tensor | np.ndarray) and value.ndim == 1):
            yield name, torch.as_tensor(value).detach().double().cpu()


def _find_codes(values: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Encode the boxes of priors that have one: the best codes, and where there are any."""
    if not {"codes", "priors", "matched_boxes", "target"} <= values.keys():
        return {}
    codes, priors, boxes = values["codes"], values["priors"], values["matched_boxes"]
    if codes.shape != boxes.shape:
        return {}
    encode = encode_deltas if priors.shape[1] == 4 else encode_distances
    has_box = (values["target"] >= 0)[..., None].expand_as(codes)
    best = encode(priors.expand(len(codes), -1, -1), boxes).to(codes)
    return {"codes": (torch.where(has_box, best, 0), has_box)}


def _find_module(function: Any) -> nn.Module | None:
    """Return the loss whose method a function is, or wraps."""
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _isolate(function: BoundFunction) -> BoundFunction:
    """Return a function on a copy of its loss, whose buffers may change; the original where it cannot be copied."""
    try:
        return dataclasses.replace(function, function=copy.deepcopy(function.function))
    except (RuntimeError, TypeError):
        return function
