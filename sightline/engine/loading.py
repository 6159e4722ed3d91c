"""A run from its directory alone: config, facts, the weights that count and the transforms; no data is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sightline import registry
from sightline.config import RunConfig, read_config
from sightline.data.loading.reading import NamedTransform, Pipeline
from sightline.engine import build
from sightline.engine.distributed import World
from sightline.engine.records import kept_random_state
from sightline.errors import ConfigError, UserError
from sightline.plugins import check_recorded, load_plugins
from sightline.runs import checkpoint
from sightline.runs.checkpoint import MatchReport
from sightline.runs.run_documents import load_document, read_facts
from sightline.schema import check_value, nearest
from sightline.types import Batch, Component, SampleKey, Where

__all__ = [
    "TrainedRun",
    "build_model",
    "checkpoint_path",
    "is_run",
    "load_trained",
    "open_trained",
    "read_run",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A trained run, ready to use: `model` is on the CPU, in evaluation mode, with the weights of `checkpoint`.

    `facts` are those of the data it was trained on; `transforms` are those that evaluation applies, in order.
    """

    path: Path
    checkpoint: Path
    config: RunConfig
    facts: Mapping[str, Any]
    model: nn.Module
    transforms: tuple[NamedTransform, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, in the order of the model's logits; empty if the data has none."""
        return tuple(self.facts.get("class_names", ()))

    def transform(self, batch: Batch) -> Batch:
        """The batch as an evaluation of this run would have seen it: every one of `transforms` applied.

        Samples draw by their `sample_index`, counted from 0 where the batch holds none: a batch of the run's own data
        gets the bits that `sightline evaluate` gives it. Raises ConfigError where a transform needs another field.
        """
        size = len(next(iter(batch.values())))
        indices = batch["sample_index"].tolist() if "sample_index" in batch else range(size)
        keys = [SampleKey(index, 0, self.config.seed) for index in indices]
        return Pipeline(self.transforms, batch.keys(), source="the batch")(batch, keys)


def open_trained(
    path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()
) -> TrainedRun:
    """A trained run from its directory; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; where the run averaged its weights, the average is loaded. `plugins` are
    the files that the run was made with. Global random states stay as they are. Raises UserError for a directory that
    is no run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.
    """
    run = Path(path)
    config, notes = read_run(run, [Path(plugin) for plugin in plugins])
    for line in notes:
        logger.warning("%s", line)
    facts = read_facts(run)
    with kept_random_state():
        model = build.build_model(config, facts, World())
    chosen = checkpoint_path(run, str(checkpoint))
    load_trained(model, chosen)
    transforms = tuple(build.build_transforms(config.transforms.evaluate, facts))
    return TrainedRun(run, chosen.resolve(), config, facts, model.eval(), transforms)


def build_model(name: str, /, **arguments: Any) -> nn.Module:
    """A model by its name in `sightline list models`, with random weights from torch's global generator.

    Facts that a data set would give (`num_classes`, `in_channels`) are arguments like any other here. Raises
    ConfigError for a name or an argument that there is not, and for a value of another type.
    """
    facts = {key: value for key, value in arguments.items() if key in registry.FACTS}
    given = {key: value for key, value in arguments.items() if key not in facts}
    component = Component(name, given, where=Where("build_model"))
    if wrong := registry.models.faults(component):
        raise ConfigError(*map(str, wrong))
    takes = registry.models.facts_of(component)
    faults = [
        f"build_model.{key}: '{name}' needs the argument '{key}'"
        for key, parameter in takes.items()
        if parameter.is_required and key not in facts
    ]
    for key, value in facts.items():
        if key not in takes:
            known = registry.models.entry(component).parameters
            faults.append(f"build_model.{key}: '{name}' has no such argument{nearest(key, {**known, **takes})}")
        else:
            misfits = check_value(takes[key].annotation, value)[1]
            faults += [f"build_model.{'.'.join(filter(None, (key, part)))}: {text}" for part, text in misfits]
    if faults:
        raise ConfigError(*faults)
    model: nn.Module = registry.models.build(component, facts=facts)
    return model


def load_trained(model: nn.Module, path: Path) -> MatchReport:
    """Put the weights whose figures count into a model, every one of them; what `path` may be: `checkpoint.load`."""
    return checkpoint.load_weights(model, checkpoint.load(path, remedy="give it by --checkpoint").evaluated)


def checkpoint_path(run: Path, which: str) -> Path:
    """Where `last`, `best` or a path leads. Raises UserError where there is nothing, saying what there is."""
    is_link = which in ("last", "best")
    path = run / "checkpoints" / which if is_link else Path(which)
    if path.exists() or path.is_symlink():  # a link that leads nowhere is a damaged checkpoint, which loading tells
        return path
    shelf = run / "checkpoints"
    held = sorted(entry.name for entry in shelf.iterdir() if not entry.name.startswith(".")) if shelf.is_dir() else []
    if not held:
        raise UserError(
            f"checkpoint {which}: the run {run} has no checkpoint yet (interrupted before the first one?); "
            f"go on with: sightline train {run} --resume auto --out {run}"
        )
    advice = "" if is_link else "; give last, best or a path"
    meant = nearest(which, ("last", "best"), otherwise="")
    raise UserError(f"checkpoint {which}: there is no {path}{advice}; {shelf} holds {', '.join(held)}{meant}")


def is_run(path: Path) -> bool:
    """Whether a path is a run directory rather than a config file."""
    return (path / "config.yaml").exists()


def read_run(run: Path, plugins: Sequence[Path]) -> tuple[RunConfig, list[str]]:
    """The config of a run directory, with its plugins loaded, and notes on plugins that changed since."""
    if not is_run(run):
        raise UserError(f"{run}: is not a run directory (no config.yaml in it)")
    loaded = load_plugins(plugins)
    notes = check_recorded(load_document(run / "environment.json").get("plugins", []), loaded, run=run)
    return read_config(run / "config.yaml"), notes
