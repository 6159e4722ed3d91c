"""An evaluation that fails, reported before the run begins and not after its first epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

import sightline
from sightline.binding import model_output_keys
from sightline.config import RunConfig
from sightline.doctor.context import Context, check
from sightline.doctor.core.dry_evaluation import DryEvaluation
from sightline.doctor.core.dry_run import StepFailure, error_location
from sightline.doctor.core.finding import Finding, FindingLocation
from sightline.errors import ConfigError, summarise_error

__all__ = ["first_evaluation", "missing_keys_explained"]

_PACKAGE = Path(sightline.__file__).parent


@check("G6", "first-evaluation", "preflight")
def first_evaluation(context: Context) -> list[Finding]:
    """Four samples of each evaluated split are read, predicted, scored, drawn and logged without an exception.

    Finds: An evaluation that fails, reported before the run begins and not after its first epoch.
    """
    return [
        _finding_failure(context, evaluation, evaluation.failure)
        for evaluation in context.dry_evaluations
        if evaluation.failure is not None
    ]


def _finding_failure(context: Context, evaluation: DryEvaluation, failure: StepFailure) -> Finding:
    is_of_metric = evaluation.path.startswith("metrics")
    is_ours = failure.file is None or Path(failure.file).is_relative_to(_PACKAGE)
    shapes = ", ".join(
        f"{name} {tuple(value.shape)}" for name, value in evaluation.batch.items() if hasattr(value, "shape")
    )
    location = context.place(evaluation.path)
    if location.file is None:  # the config does not name the task, which does not match the model
        location = context.place("model")
    return first_evaluation.finding(
        FindingLocation(
            file=location.file if is_ours else failure.file,
            line=location.line if is_ours else failure.line,
            layer=failure.layer,
            dataset=f"{context.config.data.name}/{evaluation.part.split}",
            config_path=evaluation.path,
        ),
        f"the {evaluation.part.split} part cannot be evaluated: {type(failure.error).__name__} in '{failure.stage}' "
        f"of {evaluation.component}",
        causes=("eval.protocol", "cfg.contract", "eval.decode")
        if is_of_metric
        else ("cfg.contract", "eval.decode", "data.layout"),
        measured=summarise_error(failure.error),
        expected=f"{len(evaluation.keys)} samples are predicted, scored and drawn as an evaluation does it",
        action=(evaluation.outputs and _explain_missing_key(failure.error, context.config, evaluation.outputs))
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


def _explain_missing_key(error: Exception, config: RunConfig, outputs: Iterable[str]) -> str | None:
    """Explain a key that a task of the package reads and neither batch nor outputs contain; None for other errors."""
    file, _ = error_location(error)
    is_of_task = file is not None and Path(file).is_relative_to(_PACKAGE / "tasks")
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
