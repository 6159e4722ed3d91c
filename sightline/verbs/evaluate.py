"""`sightline evaluate`: the metrics of a trained run, exactly as training reported them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from sightline.checks.finding import Place
from sightline.checks.set_agreement import CODE, Inputs, compare, inputs_of
from sightline.config import RunConfig, read_config
from sightline.engine.build import Part, build_data, build_evaluator, build_model, build_part, build_task
from sightline.engine.distributed import World, start_world
from sightline.engine.inputs import read_inputs
from sightline.engine.launch import launch, processes_to_start
from sightline.engine.lineage import describe_lineage, read_lineage
from sightline.engine.loading import checkpoint_path, load_trained, read_run
from sightline.engine.precision import set_determinism
from sightline.engine.run_documents import read_facts
from sightline.engine.session import evaluation_document
from sightline.errors import ConfigError, UserError
from sightline.verbs.common import write_document
from sightline.verbs.output import note, show_evaluation, show_findings

__all__ = ["evaluate"]


_MAY_CHANGE = (
    "evaluate.*",
    "transforms.evaluate*",
    "transforms.vote*",
    "data.root",
    "loader.*",
    "log.*",
    "checks.skip",
)


def evaluate(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    which: str,
    data: Path | None,
    processes: int | None,
    plugins: Sequence[Path],
    device: str,
    json: Path | None,
) -> int:
    """Evaluate a checkpoint of a run on its test part, or on another config's; the exit code."""
    _assert_about_evaluation(overrides)
    trained, notes = read_run(run, plugins)
    config = _with_overrides(trained, overrides, run / "config.yaml" if data is None else data, is_other=bool(data))
    num_processes = processes_to_start(processes)
    if num_processes > 1:
        words = ["evaluate", str(run), *overrides, "--checkpoint", which, "--device", device]
        words += ["--data", str(data)] if data else []
        words += ["--json", str(json)] if json else []
        return launch([*words, *(w for p in plugins for w in ("--plugin", str(p)))], num_processes)
    with start_world(device=device, timeout_s=config.distributed.timeout_s) as world:
        if world.is_first:
            for line in notes:
                note(f"warning: {line}")
        set_determinism(config.train.determinism)
        facts = read_facts(run)
        built = build_data(config)
        _assert_same_facts(facts, built.facts, run)
        model = build_model(config, facts, world)
        path = checkpoint_path(run, which)
        load_trained(model, path)
        task, meters = build_task(config, built, model)
        part = built.test if data is None else build_part(config, "test")
        if config.data != trained.data and not _is_alike(run, trained, config, part, world):
            return 1
        evaluation = build_evaluator(config, part, task, meters)(model, world)
        if world.is_first:
            document = evaluation_document(config, evaluation, part.split, which)
            document |= {"overrides": list(overrides)} if overrides else {}
            lineage = read_lineage(run)
            if lineage is not None:
                note(describe_lineage(lineage))
                document["lineage"] = lineage
            show_evaluation(document, title=f"{path} on {part.split}")
            write_document(json, document)
    return 0


def _is_alike(run: Path, trained: RunConfig, config: RunConfig, part: Part, world: World) -> bool:
    """Whether other data may be evaluated; what speaks against it, and what is odd about it, is told.

    Compares with the training data where it can be read, else with what the run noted of it.
    """
    if CODE in config.checks.skip:
        return True
    name = f"{trained.data.name}/train"
    try:
        known = inputs_of(build_part(trained, "train"), trained, is_training=True)
    except UserError:
        known = Inputs(read_inputs(run, trained), name)
        if world.is_first:
            note(f"{name}, which the run was trained on, cannot be read; compared is what the run noted of it")
    findings = compare(known, inputs_of(part, config), place=partial(_place, config))
    if world.is_first:
        show_findings(findings)
    is_refused = any(finding.severity == "error" for finding in findings)
    if is_refused and world.is_first:
        note(f"not evaluated; to do so all the same: 'checks.skip=[{CODE}]'")
    return not is_refused


def _place(config: RunConfig, path: str, **more: Any) -> Place:
    where = config.data.origins.get("root", config.data.where)
    return Place(file=where.origin, line=where.line, config_path=path, **more)


def _assert_about_evaluation(overrides: Sequence[str]) -> None:
    """Raises UserError for a key that would make it another run, or that says how the run was trained."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "evaluate.select":
            raise UserError("evaluate: evaluate.select is how the run chose its best weights; that cannot change now")
        if not any(fnmatchcase(key, pattern) for pattern in _MAY_CHANGE):
            raise UserError(f"evaluate: found {override!r}, allowed is key=value with {', '.join(_MAY_CHANGE)}")


def _with_overrides(config: RunConfig, overrides: Sequence[str], path: Path, *, is_other: bool) -> RunConfig:
    """The run's config with the data and transforms of the config at `path`, and of its other sections what is given.

    `path` is what the overrides are laid over: the run's own config, or with `is_other` that of other data.
    """
    if not overrides and not is_other:
        return config
    given = read_config(path, overrides)
    if not is_other:
        return given
    changed: dict[str, Any] = {"data": given.data, "transforms": given.transforms}
    for section in ("evaluate", "loader", "log", "checks"):
        keys = {o.partition("=")[0].strip().partition(".")[2] for o in overrides if o.strip().startswith(f"{section}.")}
        values = {key: getattr(getattr(given, section), key) for key in keys}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **changed)


def _assert_same_facts(trained: Mapping[str, Any], found: Mapping[str, Any], run: Path) -> None:
    """The data must be of the kind the model was trained for."""
    for name in ("num_classes", "in_channels", "class_names"):
        ours, theirs = trained.get(name), found.get(name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if ours != theirs:
            raise ConfigError(f"{run}: was trained with {name} = {ours}; this data set has {theirs}")
