"""`sightline evaluate`: the metrics of a trained run, exactly as training reported them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sightline.config import read_config
from sightline.engine import checkpoint
from sightline.engine.build import build_data, build_evaluator, build_model, build_part, build_task
from sightline.engine.distributed import start_world
from sightline.engine.launch import launch, launched_processes
from sightline.engine.session import evaluation_document
from sightline.errors import ConfigError, UserError
from sightline.verbs.common import load_document, read_for_run, write_document
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
    config, _, notes = read_for_run(run, plugins)
    other = None if data is None else read_config(data)
    if launched_processes() is None and (processes or 1) > 1:
        words = ["evaluate", str(run), "--checkpoint", which, "--device", device]
        words += ["--data", str(data)] if data else []
        words += ["--json", str(json)] if json else []
        return launch([*words, *(w for p in plugins for w in ("--plugin", str(p)))], processes or 1)
    with start_world(device=device, timeout_s=config.distributed.timeout_s) as world:
        if world.is_first:
            for line in notes:
                note(f"warning: {line}")
        facts = load_document(run / "facts.json")
        if other is not None:
            config = dataclasses.replace(config, data=other.data, transforms=other.transforms)
        built = build_data(config)
        _assert_same_facts(facts, built.facts, run)
        model = build_model(config, facts, world)
        path = _checkpoint_path(run, which)
        snapshot = checkpoint.load(path)
        checkpoint.load_weights(model, snapshot.model if snapshot.ema is None else snapshot.ema)
        task, meters = build_task(config, built, model)
        part = built.test if other is None else build_part(config, "test")
        evaluation = build_evaluator(config, part, task, meters)(model, world)
        if world.is_first:
            document = evaluation_document(config, evaluation, part.split, which)
            write_document(json, document)
            show_evaluation(document, title=f"{path} on {part.split}")
    return 0


def _checkpoint_path(run: Path, which: str) -> Path:
    named = run / "checkpoints" / which
    path = named if which in ("last", "best") else Path(which)
    if not path.exists():
        raise UserError(f"--checkpoint {which}: there is no {path}")
    return path


def _assert_same_facts(trained: dict, found: object, run: Path) -> None:
    """The data must be of the kind the model was trained for."""
    for name in ("num_classes", "in_channels", "class_names"):
        ours, theirs = trained.get(name), dict(found).get(name)  # type: ignore[call-overload]
        theirs = list(theirs) if isinstance(theirs, tuple) else theirs
        if ours != theirs:
            raise ConfigError(f"{run}: was trained with {name} = {ours}; this data set has {theirs}")
