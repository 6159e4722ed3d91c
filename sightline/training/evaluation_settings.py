"""Evaluation settings of a run that may be changed afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.config import RunConfig, read_config
from sightline.config.image_size import WORD as SIZE_WORD
from sightline.config.run_config import Evaluate
from sightline.contract import registry
from sightline.contract.errors import UserError
from sightline.contract.types import ComponentConfig
from sightline.runs.run_files import RunFiles, config_path_of_run

if TYPE_CHECKING:
    pass


_EVALUATION_KEYS = (
    "evaluate.*",
    "transforms.evaluate*",
    "transforms.vote*",
    SIZE_WORD,
    "data.root",
    "data.views",
    "loader.*",
    "log.*",
    "checks.skip",
    "teacher",
    "teacher.from",
)


def assert_about_evaluation(
    overrides: Sequence[str], task: ComponentConfig, *, verb: str, also: Sequence[str] = ()
) -> None:
    """Raise UserError for a key that does not belong to evaluation: it would define another run or its training.

    `also` are keys that this verb may change in addition to those of evaluation.
    """
    task_arguments = registry.tasks.get_class(task).evaluation_arguments
    patterns = (*_EVALUATION_KEYS, *also, *(f"task.{name}" for name in sorted(task_arguments)))
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "evaluate.select":
            raise UserError(
                f"{verb}: evaluate.select chose the best weights of the run during training; it cannot change now"
            )
        is_task_argument = (
            key.startswith("task.") and key.split(".")[1] in task_arguments
        )  # also a value inside a block
        if not is_task_argument and not any(fnmatchcase(key, pattern) for pattern in patterns):
            short = key in {setting.name for setting in dataclasses.fields(Evaluate)}
            advice = f"; write evaluate.{override.strip()}" if short else ""
            raise UserError(f"{verb}: found {override!r}, allowed is key=value with {', '.join(patterns)}{advice}")


def override_evaluation(
    files: RunFiles, overrides: Sequence[str], data: Path | Mapping[str, Any] | RunConfig | None
) -> RunConfig:
    """Return the run's config with data and transforms of the config at `data`, and the overrides of other sections.

    The overrides apply to the config at `data`, or without it to the run's own.
    """
    config = files.config
    if not overrides and data is None:
        return config
    source = files.path if data is None else data
    overridden = read_config(config_path_of_run(source) if isinstance(source, Path) else source, overrides)
    if data is None:
        return overridden
    changed: dict[str, Any] = {"data": overridden.data, "transforms": overridden.transforms}
    for section in ("evaluate", "loader", "log", "checks"):
        keys = {o.partition("=")[0].strip().partition(".")[2] for o in overrides if o.strip().startswith(f"{section}.")}
        values = {key: getattr(getattr(overridden, section), key) for key in keys}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    if any(o.partition("=")[0].strip() == "metrics" for o in overrides):
        changed["metrics"] = overridden.metrics
    if any(o.partition("=")[0].strip() in ("teacher", "teacher.from") for o in overrides):
        teacher, other_teacher = config.teacher, overridden.teacher
        changed["teacher"] = teacher and other_teacher and dataclasses.replace(teacher, source=other_teacher.source)
    task_keys = {o.partition("=")[0].strip() for o in overrides if o.strip().startswith("task.")}
    names = {key.split(".")[1] for key in task_keys}
    task_overrides = {name: value for name, value in overridden.task.arguments.items() if name in names}
    changed["task"] = dataclasses.replace(config.task, arguments={**config.task.arguments, **task_overrides})
    return dataclasses.replace(config, **changed)
