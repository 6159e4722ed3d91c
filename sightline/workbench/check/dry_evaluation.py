"""Dry evaluation on copies: a few samples of an evaluated split are read, predicted, scored and drawn."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.draw.pictures import encode_png
from sightline.engine.batches.sampler import evaluation_keys
from sightline.engine.build import TrainingSetup
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluation, Evaluator
from sightline.engine.observers import MetricsLog
from sightline.engine.records import EvaluationRecord
from sightline.engine.run_data import DataSubset
from sightline.instrument import copy_metric
from sightline.workbench.check.dry_run import (
    NUM_SAMPLES,
    DryRun,
    ForwardWatcher,
    StepFailure,
    find_failure,
    isolated_copy,
)

_CORNER_PX = 8  # corner of a picture that is encoded, to test that it can be written


@dataclass
class DryEvaluation:
    """Evaluation of up to four samples of the split `part`; the run's own model, metrics and data are unchanged.

    After a failure, `stage`, `component` and `path` are the method, the component and its config path that failed.
    `outputs` are those of the model's first call; `first_read` is the batch if it was read before.
    """

    part: DataSubset
    evaluator: Evaluator
    device: torch.device
    keys: list[SampleKey] = field(default_factory=list)
    batch: Batch = field(default_factory=dict)
    predictions: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    component: str = "the data set"
    path: str = "data"
    failure: StepFailure | None = None
    first_read: Batch | None = None

    def mark_progress(self, stage: str, component: str, path: str) -> None:
        """Record the stage, the component and its config path before a call."""
        self.stage, self.component, self.path = stage, component, path

    def keep(self, batch: Batch, predictions: Mapping[str, Any]) -> None:
        """Store a batch and its predictions."""
        self.batch, self.predictions = batch, predictions


def rehearse_evaluations(built: TrainingSetup, device: torch.device) -> list[DryEvaluation]:
    """Evaluate four samples of the selection split, and of the test split if its batches have another form."""
    evaluations: list[DryEvaluation] = []
    forms: list[object] = []
    for part, evaluator in ((built.data.selection, built.selection_evaluator), (built.data.test, built.test_evaluator)):
        if not len(evaluator.indices):
            continue
        keys = keys_to_evaluate(evaluator, part, NUM_SAMPLES)
        batch = attempt("reading", evaluator.reader, {"keys": keys})
        read = None if isinstance(batch, MissingError) else batch  # the evaluation reads it again, and reports it
        form = None if read is None else _describe_batch_form(read)
        if form is None or form not in forms:
            evaluations.append(DryEvaluation(part, evaluator, device, keys, first_read=read))
            _run(built, evaluations[-1])
            forms.append(form)
    return evaluations


def _describe_batch_form(batch: Batch) -> dict[str, object]:
    """Return names, dtypes and row shapes of a batch."""
    return {
        name: (str(value.dtype), tuple(value.shape[1:])) if isinstance(value, Tensor) else type(value).__name__
        for name, value in batch.items()
    }


def keys_to_evaluate(evaluator: Evaluator, part: DataSubset, count: int) -> list[SampleKey]:
    """Return the keys of up to `count` evenly spaced samples of a split."""
    indices = dataclasses.replace(part, indices=evaluator.indices).evenly_spaced_indices(count)
    return evaluation_keys(indices, count, epoch=0, seed=evaluator.seed)[0]


def _run(built: TrainingSetup, result: DryEvaluation) -> None:
    step = DryRun(isolated_copy(built.job.evaluation_model), {})
    watch = ForwardWatcher(step)
    result.evaluator = _copy_evaluator(result)

    def run() -> None:
        world = World(device=result.device)
        _record(result, built, result.evaluator(step.model, world, pictures=True, on_batch=result.keep))

    try:
        answer = attempt("evaluation", run, {})
        if isinstance(answer, MissingError) and not result.stage:
            result.stage, result.component, result.path = _find_component(result, built, answer.__cause__)
        result.failure = find_failure(answer, result.stage, watch.current)
    finally:
        result.outputs = watch.outputs or {}
        watch.remove()
    is_of_outputs = result.path.startswith("metrics") or result.stage == "show"
    if is_of_outputs and not all(map(_is_finite, result.outputs.values())):
        result.failure = None  # a metric may refuse non-finite outputs; `non-finite` reports them


def _copy_evaluator(result: DryEvaluation) -> Evaluator:
    """Return an evaluator of a few samples, whose metrics are copies; the first batch may have been read before."""
    reader, read = result.evaluator.reader, [] if result.first_read is None else [result.first_read]
    return dataclasses.replace(
        result.evaluator,
        metrics=[BoundMetric(copy_metric(each.metric), each.update) for each in result.evaluator.metrics],
        reader=lambda keys: read.pop() if read else reader(keys),
        indices=dataclasses.replace(result.part, indices=result.evaluator.indices).evenly_spaced_indices(
            len(result.keys)
        ),
        batch_size=len(result.keys),
        workers=0,
        ensemble_models=(),
    )


def _list_components(result: DryEvaluation, built: TrainingSetup) -> Iterator[tuple[object, str, str]]:
    """List the task and the metrics of an evaluation, with their names and config paths."""
    yield result.evaluator.task, f"the task '{built.config.task.name}'", "task"
    names = [component.name for component in built.config.metrics] + ["?"] * len(result.evaluator.metrics)
    for index, (meter, name) in enumerate(zip(result.evaluator.metrics, names, strict=False)):
        yield meter.metric, f"the metric '{name}'", f"metrics.{index}"


def _find_component(result: DryEvaluation, built: TrainingSetup, error: BaseException | None) -> tuple[str, str, str]:
    """Return the method of the task or of a metric that an error comes from, its component, and its config path."""
    components = list(_list_components(result, built))
    for frame, _ in traceback.walk_tb(error.__traceback__ if error is not None else None):
        owner = frame.f_locals.get("self")
        for each, component, path in components:
            if owner is each:
                return frame.f_code.co_name, component, path
    return "read", "the data set", "data"


def _record(result: DryEvaluation, built: TrainingSetup, evaluation: Evaluation) -> None:
    """Process an evaluation as a training session does; raise its errors for invalid states, numbers or pictures."""
    (_, *task), *metrics = _list_components(result, built)
    names = {id(metric): named for metric, *named in metrics}
    result.mark_progress("show", *task)
    for picture in evaluation.pictures:
        encode_png(picture.pixels[:_CORNER_PX, :_CORNER_PX])
    for metric_result in evaluation.results:
        own: Any = metric_result.metric.metric
        named = names[id(own)]
        for member in (own.compute, own.per_class, own.tables):
            result.mark_progress(member.__name__, *named)
            _assert_plain(member.__name__, member(metric_result.state))
    result.mark_progress("record", "the metrics log", "metrics")
    numbers = (evaluation.metrics, evaluation.losses, evaluation.seconds, evaluation.num_samples)
    MetricsLog(_DiscardedLines()).on_evaluation(EvaluationRecord(0, 0, result.part.split, *numbers, is_best=False))


class _DiscardedLines:
    """Log that discards its lines."""

    def append_line(self, name: str, line: Mapping[str, Any], /) -> None: ...


def _assert_plain(name: str, returned: object) -> None:
    try:
        json.dumps(returned)
    except TypeError as error:
        raise TypeError(
            f"{name} returns values that JSON cannot represent ({error}); return plain numbers (.item())"
        ) from None


def _is_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())
