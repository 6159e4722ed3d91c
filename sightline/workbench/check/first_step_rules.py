"""Rules of the first step and evaluation: exceptions, shapes, collapsed features."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import sightline
from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.catalogue import find_modules
from sightline.contract.errors import ConfigError, OutputError, UserError, summarise_error
from sightline.contract.model import model_output_keys
from sightline.contract.types import Batch, SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import measure
from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.rules import rule
from sightline.engine.run_data import DataSubset
from sightline.workbench.check.batch_of_one import BatchOfOne
from sightline.workbench.check.context import get_loss_path, place_key
from sightline.workbench.check.dry_evaluation import DryEvaluation
from sightline.workbench.check.dry_run import DryRun, StepFailure, error_location
from sightline.workbench.check.sample_statistics import PartStatistics

_PACKAGE = Path(sightline.__file__).parent


@rule(
    "first-step",
    "error",
    "cfg.contract data.layout",
    holds="samples that can be read, and a training step that succeeds, also for a last batch of one sample",
    do="look at the line named above",
)
def failed_step(
    config: RunConfig, unread: list[Unread], rehearsal: DryRun, lone_batch: BatchOfOne | None
) -> Iterator[Fault]:
    """Report samples that cannot be read, or else a step that fails, if only on a batch of one sample.

    The rule of a module reports the same of its first batch, of which it knows no config and no plan of steps.
    """
    failure, batch = rehearsal.failure, rehearsal.batch
    if unread:
        yield from (_make_reading_fault(config, *each) for each in unread)
    elif lone_batch is not None and (failure is None or str(failure.error) == str(lone_batch.failure.error)):
        made = _make_step_fault(config, lone_batch.failure, batch, step=lone_batch.step)
        measured = f"{made.measured}; {lone_batch.reason}"
        yield dataclasses.replace(made, measured=measured, action=lone_batch.action)
    elif failure is not None:
        yield _make_step_fault(config, failure, batch, step=0)


class Unread(NamedTuple):
    """Sample of a split that cannot be read, with its error."""

    part: DataSubset
    sample: int
    error: BaseException


@measure()
def unread(surveys: list[PartStatistics]) -> list[Unread]:
    """List the first sample of each split that the data set or the evaluation transforms cannot read."""
    return [Unread(survey.part, *fault) for survey in surveys if (fault := _find_fault(survey))]


def _find_fault(survey: PartStatistics) -> tuple[int, BaseException] | None:
    """Return the index and the error of a sample that the data set or the evaluation transforms cannot read."""
    part = survey.part
    if survey.unreadable is not None or part.split == "train" or not len(part.indices):
        return survey.unreadable
    key = SampleKey(int(part.indices[0]), 0, 0)
    missing = attempt("reading", lambda: part.reader([key]), {})
    return (key.index, missing.__cause__) if isinstance(missing, MissingError) and missing.__cause__ else None


def _make_reading_fault(config: RunConfig, part: DataSubset, index: int, error: BaseException) -> Fault:
    file, line = error_location(error)
    advice = (
        _get_advice(error) if _is_transform_error(error) else None
    )  # such as a sample that is too small for the transform
    path = "data" if advice is None else f"transforms.{'train' if part.split == 'train' else 'evaluate'}"
    location = FindingLocation(file=file, line=line) if advice is None else place_key(config, path)
    return Fault(
        f"a sample of the {part.split} part cannot be read",
        where=dataclasses.replace(location, dataset=part.split, sample=index, config_path=path),
        causes=("data.corrupt_sample", "data.path", "data.missing_modality")
        if advice is None
        else ("cfg.contract", "data.sampling", "data.layout"),
        measured=f"sample {index}: {summarise_error(error)}",
        expected="every sample can be read",
        action=advice or "repair or leave out the sample; `sightline data prepare` prepares a set again",
    )


def _make_step_fault(config: RunConfig, failure: StepFailure, batch: Batch, *, step: int) -> Fault:
    causes, action = explain_failure(failure.error)
    if isinstance(failure.error, OutputError):
        found, _, action = str(failure.error).rpartition("; ")
        return Fault(
            f"step {step} cannot be taken: {found}",
            where=FindingLocation(file=failure.file, line=failure.line, step=step, config_path="model"),
            causes=("cfg.contract", "model.structure", "cfg.class_count"),
            measured=summarise_error(failure.error.__cause__ or failure.error),
            expected="the model's forward returns a dict of the tensors that its losses read",
            action=action,
        )
    advice = _get_advice(failure.error)
    is_from_transform = advice is not None and _is_transform_error(failure.error)
    path = "model" if advice is None else _find_argument_path(config, advice)
    path = "transforms.train" if is_from_transform else path
    if named_loss := re.match(r"losses\.(\S+): ", str(failure.error)):
        path = get_loss_path(config, named_loss[1])
    fallback = place_key(config, path)
    is_config = failure.file is None or (advice is not None and _is_ours(failure.file))
    return Fault(
        f"step {step} cannot be taken: {type(failure.error).__name__} in {failure.stage}",
        where=FindingLocation(
            file=fallback.file if is_config else failure.file,
            line=fallback.line if is_config else failure.line,
            layer=failure.layer,
            step=step,
            dataset="train",
            config_path=path if advice is None or is_from_transform or named_loss else f"transforms or {path}",
        ),
        causes=("cfg.contract", "data.sampling") if is_from_transform else causes,
        measured=summarise_error(failure.error),
        expected="a step on the data set's samples succeeds",
        action=advice or action,
        evidence={"batch": _describe_shapes(batch)},
    )


def _is_ours(file: str | None) -> bool:
    return file is not None and Path(file).is_relative_to(_PACKAGE)


def _describe_shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if hasattr(value, "shape"))


def _get_advice(error: BaseException) -> str | None:
    """Return the advice in a message of a layer or a transform, after its last semicolon; None for other errors."""
    advice = " ".join(str(error).split()).rpartition("; ")[2]
    has_advice = type(error) in (ValueError, UserError) or _is_transform_error(error)
    return advice if "; " in str(error) and has_advice else None


def _is_transform_error(error: BaseException) -> bool:
    file, _ = error_location(error)
    return isinstance(error, UserError) and file is not None and _registers_kind(file, "transforms")


def _registers_kind(file: str, kind: str) -> bool:
    """Return True for a file that registers parts of a kind."""
    modules = find_modules(kind).values()
    return Path(file).resolve() in {_PACKAGE.joinpath(*m.split(".")[1:]).with_suffix(".py").resolve() for m in modules}


def _find_argument_path(config: RunConfig, advice: str) -> str:
    """Return the config path of the model argument that the advice names, else "model"."""
    model = config.model
    argument_names = registry.models.entry(model).parameters.keys() - registry.FACTS
    return next((f"model.{word}" for word in re.findall(r"\w+", advice) if word in argument_names), "model")


def explain_failure(error: BaseException) -> tuple[tuple[str, ...], str]:
    """Return the likely causes of an error of a step, and the action."""
    text = str(error)
    if "more than 1 value per channel" in text:
        return ("model.norm_mode", "data.sampling"), (
            "batch norm needs two samples: set another train.batch_size, fewer train.micro_batches, or train.tail=drop"
        )
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return ("sys.resource",), "set more train.micro_batches: the results stay the same and need less memory"
    if isinstance(error, UserError | OSError) and type(error) is not UserError:
        return ("data.corrupt_sample", "data.path"), "repair or leave out the sample"
    if isinstance(error, IndexError) or "out of bounds" in text or "out of range" in text:
        return ("data.label_mapping", "cfg.class_count", "cfg.contract"), "compare indices and labels with their ranges"
    if "shape" in text or "size" in text:
        return ("cfg.contract", "data.layout", "cfg.class_count"), "make the shapes of data, model and losses match"
    return ("cfg.contract", "data.layout"), "look at the line named above"


@rule(
    "first-evaluation",
    "error",
    "cfg.contract eval.decode data.layout eval.protocol",
    holds="samples of each evaluated split that are read, predicted, scored, drawn and logged",
    do="correct the part that is named: the first evaluation would end the run",
)
def failed_evaluation(config: RunConfig, evaluations: list[DryEvaluation]) -> Iterator[Fault]:
    """Report evaluations of a few samples of each evaluated split that fail."""
    for evaluation in evaluations:
        if evaluation.failure is not None:
            yield _make_evaluation_fault(config, evaluation, evaluation.failure)


def _make_evaluation_fault(config: RunConfig, evaluation: DryEvaluation, failure: StepFailure) -> Fault:
    is_ours = failure.file is None or _is_ours(failure.file)
    shapes, split = _describe_shapes(evaluation.batch), evaluation.part.split
    location = place_key(config, evaluation.path)
    if location.file is None:  # the config does not name the task, which does not match the model
        location = place_key(config, "model")
    return Fault(
        f"the {split} part cannot be evaluated: {type(failure.error).__name__} in '{failure.stage}' "
        f"of {evaluation.component}",
        where=FindingLocation(
            file=location.file if is_ours else failure.file,
            line=location.line if is_ours else failure.line,
            layer=failure.layer,
            dataset=split,
            config_path=evaluation.path,
        ),
        causes=("eval.protocol", "cfg.contract", "eval.decode")
        if evaluation.path.startswith("metrics")
        else ("cfg.contract", "eval.decode", "data.layout"),
        measured=summarise_error(failure.error),
        expected=f"{len(evaluation.keys)} samples are predicted, scored and drawn as an evaluation does it",
        action=(evaluation.outputs and _explain_missing_key(failure.error, config, evaluation.outputs))
        or f"correct {evaluation.component}: the first evaluation would end the run",
        evidence={"field": evaluation.path, **({"batch": shapes} if shapes else {})},
    )


@contextmanager
def missing_keys_explained(config: RunConfig, model: nn.Module) -> Iterator[None]:
    """Raise a ConfigError of one line if a task of the package reads an output that the model does not return."""
    try:
        yield
    except KeyError as error:
        outputs = model_output_keys(model, owner=f"model '{config.model.name}'")
        line = _explain_missing_key(error, config, sorted(outputs))
        if line is None:
            raise
        raise ConfigError(
            f"{config.model.location if _is_default_task(config) else config.task.location}: {line}"
        ) from error


def _explain_missing_key(error: BaseException, config: RunConfig, outputs: Iterable[str]) -> str | None:
    """Explain a key that a task of the package reads and neither batch nor outputs contain; None for other errors."""
    file, _ = error_location(error)
    is_of_task = file is not None and _registers_kind(file, "tasks")
    if not isinstance(error, KeyError) or not is_of_task:
        return None
    unset = " (the default: the config has no task)" if _is_default_task(config) else ""
    return (
        f"the task '{config.task.name}'{unset} reads '{error.args[0]}'; the model '{config.model.name}' returns "
        f"{', '.join(outputs)}: rename its output, or set the task that reads it"
    )


def _is_default_task(config: RunConfig) -> bool:
    """Return True if the config names no task."""
    origin = config.origins.get("task.name")
    return origin is not None and origin.source == "default"
