"""An evaluation that cannot be done, reported before the run begins and not after its first epoch."""

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
    """Four samples of each evaluated part are read, predicted, scored, drawn and noted without an exception."""
    return [_of_failure(context, each, each.failure) for each in context.dry_evaluations if each.failure is not None]


def _of_failure(context: Context, each: DryEvaluation, failure: StepFailure) -> Finding:
    is_of_metric = each.path.startswith("metrics")
    is_ours = failure.file is None or Path(failure.file).is_relative_to(_PACKAGE)
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in each.batch.items() if hasattr(value, "shape"))
    place = context.place(each.path)
    if place.file is None:  # a task that the config does not name, which the model does not suit
        place = context.place("model")
    return first_evaluation.finding(
        FindingLocation(
            file=place.file if is_ours else failure.file,
            line=place.line if is_ours else failure.line,
            layer=failure.layer,
            dataset=f"{context.config.data.name}/{each.part.split}",
            config_path=each.path,
        ),
        f"the {each.part.split} part cannot be evaluated: {type(failure.error).__name__} in '{failure.stage}' "
        f"of {each.component}",
        causes=("eval.protocol", "cfg.contract", "eval.decode")
        if is_of_metric
        else ("cfg.contract", "eval.decode", "data.layout"),
        measured=summarise_error(failure.error),
        expected=f"{len(each.keys)} samples are predicted, scored and drawn as an evaluation does it",
        action=(each.outputs and _missing_key(failure.error, context.config, each.outputs))
        or f"correct {each.component}: the first evaluation would end the run",
        evidence={"field": each.path, **({"batch": shapes} if shapes else {})},
    )


@contextmanager
def missing_keys_explained(config: RunConfig, model: nn.Module) -> Iterator[None]:
    """Raises ConfigError, in one line, where a task of the package asks for an output that the model does not give."""
    try:
        yield
    except KeyError as error:
        outputs = model_output_keys(model, owner=f"model '{config.model.name}'")
        line = _missing_key(error, config, sorted(outputs))
        if line is None:
            raise
        raise ConfigError(
            f"{config.model.location if _is_default(config) else config.task.location}: {line}"
        ) from error


def _missing_key(error: Exception, config: RunConfig, outputs: Iterable[str]) -> str | None:
    """What to do about a key that neither batch nor outputs have, where a task of the package asks for it."""
    file, _ = error_location(error)
    is_of_task = file is not None and Path(file).is_relative_to(_PACKAGE / "tasks")
    if not isinstance(error, KeyError) or not is_of_task:
        return None
    unset = " (the default: the config has no task)" if _is_default(config) else ""
    return (
        f"the task '{config.task.name}'{unset} reads '{error.args[0]}'; the model '{config.model.name}' returns "
        f"{', '.join(outputs)}: rename its output, or set the task that reads it"
    )


def _is_default(config: RunConfig) -> bool:
    """Whether the config names no task."""
    origin = config.origins.get("task.name")
    return origin is not None and origin.source == "default"
