"""Opened runs: facts, data, model, task and evaluator of a run directory or a config, each built on first use."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.dataset import get_data_digest
from sightline.contract.errors import UserError
from sightline.contract.loss import Loss, teacher_keys
from sightline.contract.plugins import load_plugins
from sightline.contract.schema import suggest
from sightline.contract.task import Task
from sightline.contract.types import Batch, SampleKey
from sightline.engine import build, run_data, run_model
from sightline.engine.distributed import World
from sightline.engine.evaluate import BoundMetric, Evaluator
from sightline.engine.learnt_losses import LearntLosses
from sightline.instrument.random_state import preserve_random_state
from sightline.runs.checkpoint import follow, list_checkpoints
from sightline.runs.run_files import RunFiles, is_run
from sightline.runs.trained_weights import PACKED_FILE, evaluated_sha256, is_packed, load_losses, load_trained_state
from sightline.runs.weights import load_weights
from sightline.store.files.image_files import describe_photo_reading
from sightline.store.loading.transform_pipeline import NamedTransform, TransformPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OpenRun:
    """Opened run on the processes of `world`; each component is read or built on first use, then cached.

    `config` may differ from the run's in its data and evaluation settings. `notes` name plugins that changed since the
    run was made. `path` may also be a config file without a run: it has no `files`, and no weights to load.
    """

    path: Path
    config: RunConfig
    checkpoint_name: str = "last"
    world: World = field(default_factory=World)
    notes: tuple[str, ...] = ()
    files: RunFiles | None = None

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """The facts of the data that the run was trained on; of a config file, those of its training data."""
        if self.files is not None:
            return self.files.facts
        facts: Mapping[str, Any] = registry.data.build(self.config.data, facts={"split": "train"}).info.facts
        return facts

    @cached_property
    def checkpoint_path(self) -> Path:
        """The path of checkpoint `checkpoint_name`. Raises UserError, listing those that exist, if it is absent."""
        return _find_checkpoint(self.path, self.checkpoint_name)

    @property
    def other_checkpoints(self) -> list[Path]:
        """The folders of the run's checkpoints but that of `checkpoint_path`, oldest first."""
        chosen = self.checkpoint_path.resolve()
        return [folder for folder in list_checkpoints(self.path) if folder.resolve() != chosen]

    @cached_property
    def training_setup(self) -> build.TrainingSetup:
        """All components of a new training by `config` (cached); the model has the weights that it would start from."""
        return build.build(self.config, self.world)

    @cached_property
    def data(self) -> run_data.Data:
        """The data of `config` (cached). Raises ConfigError if the model was trained for another kind of data."""
        data = run_data.build_data(self.config)
        run_data.log_linked_data_folder(self.config, self.world)
        if self.files is not None:
            run_model.check_same_facts(self.facts, data.facts, self.path)
            fingerprint = get_data_digest(data.train.dataset)
            change = self.files.check_data(fingerprint) if self.config.data == self.files.config.data else None
            self.world.rank_zero_only(warn_of_photos)(self.files)
            if change is not None:
                self.world.rank_zero_only(logger.warning)("%s: the figures are of the data as they are now", change)
        return data

    @cached_property
    def model(self) -> nn.Module:
        """The network with its trained weights (EMA, if the run has one), in evaluation mode; cached."""
        return self.model_at(self.checkpoint_path)

    @cached_property
    def transforms(self) -> tuple[NamedTransform, ...]:
        """The transforms that evaluation applies, in order; they need no data."""
        return tuple(run_data.build_transforms(self.config.transforms.evaluate, self.facts))

    @property
    def task(self) -> Task:
        """The task with its losses, bound to data and model."""
        return self._task_and_metrics[0]

    @property
    def metrics(self) -> Sequence[BoundMetric]:
        """The metrics, bound to data, model and task."""
        return self._task_and_metrics[1]

    def evaluator(self, part: run_data.DataSubset | None = None) -> Evaluator:
        """Build an evaluator of `part`, by default of the test split; all processes have the same one, and weights."""
        part = self.data.test if part is None else part
        self.world.assert_equal(
            lambda: {
                "SHA-256 of the weights": evaluated_sha256(self.checkpoint_path),
                **run_data.describe_data(self.data.facts, part),
            }
        )
        return build.build_evaluator(self._config_with_losses, part, self.task, self.metrics)

    def model_at(self, checkpoint: Path) -> nn.Module:
        """Build the network with the weights of another checkpoint, in evaluation mode."""
        model = self.untrained_model()
        _load_trained(model, checkpoint)
        return model.eval()

    def load_into(self, model: nn.Module) -> None:
        """Load the trained weights (EMA, if the run has one) into `model`, every one of them."""
        _load_trained(model, self.checkpoint_path)

    def untrained_model(self) -> nn.Module:
        """Build the network with the random weights of the run's seed."""
        return run_model.build_model(self.config, self.facts, self.world)

    @cached_property
    def _task_and_metrics(self) -> tuple[Task, list[BoundMetric]]:
        data = self.data  # first: faults of the data are reported before a checkpoint is read
        return build.build_task(self._config_with_losses, data, self.model, self.world, losses=self._losses)

    @property
    def _config_with_losses(self) -> RunConfig:
        """The config, without losses whose parameters the checkpoint lacks."""
        return dataclasses.replace(
            self.config, losses=tuple(loss for loss in self.config.losses if loss.name in self._losses)
        )

    @cached_property
    def _losses(self) -> dict[str, Loss]:
        """The losses with their trained parameters; a loss without saved parameters is left out, with a warning."""
        losses = build.build_losses(self.config, self.data.facts, self.world)
        learnt = LearntLosses(losses).eval()
        saved = load_losses(self.checkpoint_path) if learnt else {}
        for name in learnt.find_missing(saved):
            self.world.rank_zero_only(logger.warning)(
                "loss-not-kept: %s holds no parameters of the loss '%s', which learns; figures are without this loss",
                *(self.checkpoint_path, name),
            )
            del losses[name]
        LearntLosses(losses).load(saved, where=self.checkpoint_path)
        return losses


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """Trained run, loaded: `model` is on the CPU, in evaluation mode, with the weights of `checkpoint`.

    `transforms` are those that evaluation applies, in order.
    """

    files: RunFiles
    checkpoint: Path
    config: RunConfig
    model: nn.Module
    transforms: tuple[NamedTransform, ...]

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.files.path

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts of the data that the run was trained on."""
        return self.files.facts

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, in the order of the model's logits; empty if the data has none."""
        return tuple(self.facts.get("class_names", ()))

    def transform(self, batch: Batch) -> Batch:
        """Apply the evaluation `transforms` of this run to a batch.

        Samples draw by their `sample_index`, counted from 0 where the batch holds none: a batch of the run's own data
        gets the bits that `sightline evaluate` gives it. Raises UserError for what is not a batch, ConfigError where a
        transform needs another field.
        """
        if not isinstance(batch, Mapping) or not batch:
            description = "an empty batch" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise UserError(
                f"transform: found {description}, allowed is a batch: {{'points': a tensor of all samples}}"
            )
        size = len(next(iter(batch.values())))
        indices = batch["sample_index"].tolist() if "sample_index" in batch else range(size)
        keys = [SampleKey(index, 0, self.config.seed) for index in indices]
        return TransformPipeline(self.transforms, batch.keys(), source="the batch")(batch, keys)


def open_run(
    path: Path | RunFiles,
    *,
    config: RunConfig | None = None,
    checkpoint: str = "last",
    plugins: Sequence[Path] = (),
    world: World | None = None,
) -> OpenRun:
    """Open a run directory, or its files; nothing is built yet.

    `config` replaces the run's own, whose plugins were then loaded with it; with it, `path` may be a config file.
    `checkpoint` is `last`, `best` or a path. Raises UserError for a directory that is not a run, PluginError for a
    plugin that is not given.
    """
    notes: list[str] = []
    path, files = (path, None) if isinstance(path, Path) else (path.path, path)
    if files is None and (config is None or is_run(path)):
        files = RunFiles(path)
    if config is None:
        assert files is not None, "without a config, the path is a run"
        notes, config = files.check_plugins(load_plugins(plugins)), files.config
    if config.teacher is None and files is not None:  # `teacher=null`: evaluated without the losses that need it
        config = dataclasses.replace(
            config, losses=tuple(loss for loss in config.losses if not teacher_keys(registry.losses.get_class(loss)))
        )
    return OpenRun(path, config, checkpoint, world or World(), tuple(notes), files)


def open_trained(
    path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()
) -> TrainedRun:
    """Load a trained run from its directory; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; where the run averaged its weights, the average is loaded. `plugins` are
    the files that the run was made with. Global random states stay as they are, whatever plugins draw at import. Raises
    UserError for a directory that is not a run, PluginError for a plugin that is not given, CheckpointError for a
    damaged checkpoint.
    """
    files = RunFiles(Path(path))
    with preserve_random_state():
        run = open_run(files, checkpoint=str(checkpoint), plugins=[Path(plugin) for plugin in plugins])
        for line in run.notes:
            logger.warning("%s", line)
        warn_of_photos(files)
        return TrainedRun(files, run.checkpoint_path.resolve(), run.config, run.model, run.transforms)


def warn_of_photos(files: RunFiles) -> None:
    """Warn if photos are read otherwise than where the run was trained."""
    if (change := files.check_photos(describe_photo_reading())) is not None:
        logger.warning("%s: scores may differ a little", change)


def _load_trained(model: nn.Module, path: Path) -> None:
    load_weights(model, load_trained_state(path, remedy="give it by --checkpoint"), where=path)


def _find_checkpoint(run: Path, name: str) -> Path:
    is_link = name in ("last", "best")
    if is_link and is_packed(run):
        return run / PACKED_FILE
    path = run / "checkpoints" / name if is_link else Path(name)
    if path.exists() or path.is_symlink():  # one that leads nowhere is a damaged checkpoint, which loading reports
        named = follow(path)
        return named if named.is_dir() else path
    folder = run / "checkpoints"
    available = (
        sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    )
    if not available:
        raise UserError(
            f"checkpoint {name}: the run {run} has no checkpoint yet (interrupted before the first one?); "
            f"go on with: {shlex.join(['sightline', 'train', str(run), '--resume', 'auto', '--out', str(run)])}"
        )
    reason = ", as no evaluation gave a figure to choose it by" if name == "best" else ""
    advice = f"{reason}; give {'' if is_link else 'last, best or '}a path"
    suggestion = "" if is_link else suggest(name, ("last", "best"), otherwise="")
    raise UserError(f"checkpoint {name}: there is no {path}{advice}; {folder} holds {', '.join(available)}{suggestion}")
