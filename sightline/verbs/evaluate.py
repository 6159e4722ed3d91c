"""`sightline evaluate`: the metrics of a trained run, exactly as training reported them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.config import read_config
from sightline.engine.build import build_data, build_evaluator, build_model, build_part, build_task
from sightline.engine.distributed import start_world
from sightline.engine.launch import launch, processes_to_start
from sightline.engine.loading import checkpoint_path, load_trained, read_facts, read_run
from sightline.engine.precision import set_determinism
from sightline.engine.session import evaluation_document
from sightline.errors import ConfigError
from sightline.verbs.common import write_document
from sightline.verbs.output import note, show_evaluation

__all__ = ["evaluate"]


def evaluate(
    run: Path,
    *,
    which: str,
    data: Path | None,
    processes: int | None,
    plugins: Sequence[Path],
    device: str,
    json: Path | None,
) -> int:
    """Evaluate a checkpoint of a run on its test part, or on another config's; the exit code."""
    config, notes = read_run(run, plugins)
    other = None if data is None else read_config(data)
    num_processes = processes_to_start(processes)
    if num_processes > 1:
        words = ["evaluate", str(run), "--checkpoint", which, "--device", device]
        words += ["--data", str(data)] if data else []
        words += ["--json", str(json)] if json else []
        return launch([*words, *(w for p in plugins for w in ("--plugin", str(p)))], num_processes)
    with start_world(device=device, timeout_s=config.distributed.timeout_s) as world:
        if world.is_first:
            for line in notes:
                note(f"warning: {line}")
        set_determinism(config.train.determinism)
        facts = read_facts(run)
        if other is not None:
            config = dataclasses.replace(config, data=other.data, transforms=other.transforms)
        built = build_data(config)
        _assert_same_facts(facts, built.facts, run)
        model = build_model(config, facts, world)
        path = checkpoint_path(run, which)
        load_trained(model, path)
        task, meters = build_task(config, built, model)
        part = built.test if other is None else build_part(config, "test")
        evaluation = build_evaluator(config, part, task, meters)(model, world)
        if world.is_first:
            document = evaluation_document(config, evaluation, part.split, which)
            write_document(json, document)
            show_evaluation(document, title=f"{path} on {part.split}")
    return 0


def _assert_same_facts(trained: Mapping[str, Any], found: Mapping[str, Any], run: Path) -> None:
    """The data must be of the kind the model was trained for."""
    for name in ("num_classes", "in_channels", "class_names"):
        ours, theirs = trained.get(name), found.get(name)
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if ours != theirs:
            raise ConfigError(f"{run}: was trained with {name} = {ours}; this data set has {theirs}")
