"""A first training step, or last step of an epoch, that fails, reported before the run begins."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
from torch import nn

import sightline
from sightline import registry
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_run import StepFailure, error_location, isolated_copy, read_batch
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.doctor.core.sample_statistics import PartStatistics
from sightline.engine.build import DataSubset
from sightline.engine.step import compute_batch_losses
from sightline.errors import UserError, summarise_error
from sightline.types import SampleKey

__all__ = ["first_step"]

_PACKAGE = Path(sightline.__file__).parent
_TRANSFORMS = _PACKAGE / "transforms"
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@check("G6", "first-step", "preflight")
def first_step(context: Context) -> list[Finding]:
    """Samples can be read, and one training step succeeds, also for a last batch of one sample.

    Finds: A first training step, or last step of an epoch, that fails, reported before the run begins.
    """
    findings = [
        _finding_reading(context, survey.part, *fault)
        for survey in context.statistics
        if (fault := _find_fault(survey))
    ]
    if findings:
        return findings
    failure = context.dry_run.failure
    return _tail_findings(context) if failure is None else [_finding_failure(context, failure, step=0)]


def _find_fault(survey: PartStatistics) -> tuple[int, Exception] | None:
    """Return the index and the error of a sample that the data set or the evaluation transforms cannot read."""
    part = survey.part
    if survey.unreadable is not None or part.split == "train" or not len(part.indices):
        return survey.unreadable
    key = SampleKey(int(part.indices[0]), 0, 0)
    try:
        part.reader([key])
    except Exception as error:  # noqa: BLE001 - any error is reported
        return key.index, error
    return None


def _finding_reading(context: Context, part: DataSubset, index: int, error: Exception) -> Finding:
    file, line = error_location(error)
    advice = (
        _get_advice(error) if _is_transform_error(error) else None
    )  # such as a sample that is too small for the transform
    path = "data" if advice is None else f"transforms.{'train' if part.split == 'train' else 'evaluate'}"
    location = FindingLocation(file=file, line=line) if advice is None else context.place(path)
    return first_step.finding(
        dataclasses.replace(
            location, dataset=f"{context.config.data.name}/{part.split}", sample=index, config_path=path
        ),
        f"a sample of the {part.split} part cannot be read",
        causes=("data.corrupt_sample", "data.path", "data.missing_modality")
        if advice is None
        else ("cfg.contract", "data.sampling", "data.layout"),
        measured=f"sample {index}: {summarise_error(error)}",
        expected="every sample can be read",
        action=advice or "repair or leave out the sample; `sightline data prepare` prepares a set again",
    )


def _tail_findings(context: Context) -> list[Finding]:
    """Run the last step of an epoch if it has a part of one sample, which batch norm cannot process."""
    job = context.built.job
    plan = job.stream.plan
    step = plan.steps_per_epoch - 1
    parts = [part for micro in plan.step_keys(step) for part in micro]
    smallest = min(parts, key=len)
    is_at_risk = len(smallest) == 1 and any(isinstance(m, _BATCH_NORMS) for m in job.model.modules())
    if not is_at_risk or context.config.distributed.sync_batch_norm:
        return []
    device = context.world.device
    model = isolated_copy(job.model).train()
    try:
        batch = read_batch(job, smallest, device)
        with torch.no_grad():
            compute_batch_losses(job.task, model, batch, device, job.precision)
    except Exception as error:  # noqa: BLE001 - any error is reported
        file, line = error_location(error)
        return [_finding_failure(context, StepFailure("the last step of an epoch", error, None, file, line), step=step)]
    return []


def _finding_failure(context: Context, failure: StepFailure, *, step: int) -> Finding:
    causes, action = _diagnose(failure.error)
    batch = context.dry_run.batch
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items() if hasattr(value, "shape"))
    advice = _get_advice(failure.error)
    is_from_transform = advice is not None and _is_transform_error(failure.error)
    causes = ("cfg.contract", "data.sampling") if is_from_transform else causes
    path = "model" if advice is None else _find_argument_path(context, advice)
    path = "transforms.train" if is_from_transform else path
    fallback = context.place(path)
    is_ours = failure.file is not None and Path(failure.file).is_relative_to(_PACKAGE)
    is_config = failure.file is None or (advice is not None and is_ours)
    return first_step.finding(
        FindingLocation(
            file=fallback.file if is_config else failure.file,
            line=fallback.line if is_config else failure.line,
            layer=failure.layer,
            step=step,
            dataset=f"{context.config.data.name}/train",
            config_path=path if advice is None or is_from_transform else f"transforms or {path}",
        ),
        f"step {step} cannot be taken: {type(failure.error).__name__} in {failure.stage}",
        causes=causes,
        measured=summarise_error(failure.error),
        expected="a step on the data set's samples succeeds",
        action=advice or action,
        evidence={"batch": shapes},
    )


def _get_advice(error: Exception) -> str | None:
    """Return the advice in a message of a layer or a transform, after its last semicolon; None for other errors."""
    advice = " ".join(str(error).split()).rpartition("; ")[2]
    has_advice = type(error) in (ValueError, UserError) or _is_transform_error(error)
    return advice if "; " in str(error) and has_advice else None


def _is_transform_error(error: Exception) -> bool:
    file, _ = error_location(error)
    return isinstance(error, UserError) and file is not None and Path(file).is_relative_to(_TRANSFORMS)


def _find_argument_path(context: Context, advice: str) -> str:
    """Return the config path of the model argument that the advice names, else "model"."""
    model = context.config.model
    argument_names = registry.models.entry(model).parameters.keys() - registry.FACTS
    return next((f"model.{word}" for word in re.findall(r"\w+", advice) if word in argument_names), "model")


def _diagnose(error: Exception) -> tuple[tuple[str, ...], str]:
    """Return the likely causes of an error of a step, and the action."""
    text = str(error)
    if "more than 1 value per channel" in text:
        return ("model.norm_mode", "data.sampling"), (
            "batch norm needs two samples: set another train.batch_size, fewer micro_batches, or train.tail: drop"
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
