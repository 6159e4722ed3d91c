"""The Python face of the package: runs that are trained or loaded from their folders, and models by their names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.engine.distributed import start_world
from sightline.engine.run_loading import TrainedRun, build_model, open_trained
from sightline.predict.prediction import Predictions, predict_files

if TYPE_CHECKING:
    from sightline.training.train_run import Reporter, TrainResult

__all__ = ["LoadedRun", "build_model", "load_run", "train_run"]


logger = logging.getLogger(__name__)


class LoadedRun(TrainedRun):
    """A trained run that predicts the user's own files."""

    def predict(
        self, paths: Sequence[str | Path], *, device: str = "cpu", batch_size: int | None = None, **options: Any
    ) -> Predictions[Any]:
        """Predictions for files, or for folders of them, as `sightline predict` makes them.

        Files that cannot be predicted are in `refused` with their reason, all others in `predicted`, all of which are
        held in memory: a `Prediction` each where the run classes clouds, a `SegmentPrediction` where it classes points,
        a `JointPrediction` where it finds joints, and what its predictor makes for a task of a plugin. `options` are
        those of the predictor: `columns` names the columns of files of clouds without names, `to_sphere` normalises
        every cloud; for runs on points, `category` is what all files are, where the run classes parts, and
        `with_probabilities` keeps the probabilities of every class; for depth images, `frames` (an `OwnFrames`) states
        how they are read and where in them the figure is looked for.
        Raises UserError for a device that this machine lacks, ConfigError for an option that the predictor lacks.
        """
        with start_world(device=device) as world:
            files = [Path(path) for path in paths]
            return predict_files(self, files, world=world, batch_size=batch_size, **options)


def load_run(path: str | Path, *, checkpoint: str | Path = "last", plugins: Sequence[str | Path] = ()) -> LoadedRun:
    """A trained run from its directory; its data set is not needed.

    `checkpoint` is `last`, `best` or a path; where the run averaged its weights, the average is loaded. `plugins` are
    the files that the run was made with. Global random states stay as they are. Raises UserError for a directory that
    is not a run, PluginError for a plugin that is not given, CheckpointError for a damaged checkpoint.
    """
    run = open_trained(path, checkpoint=checkpoint, plugins=plugins)
    return LoadedRun(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})


def train_run(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    checks: bool = True,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train what a config file describes, or resume its run, as `sightline train` does in one process; prints nothing.

    `overrides` are laid over the config ("train.epochs=10"). `out` is the run's folder, without it a new one below
    `runs/`; `resume` is `auto`, a run directory or a checkpoint. Findings of the checks are in the result, and no run
    is started where one is an error; `reporter` receives them, and all that the command prints, as it comes. SIGTERM
    and SIGINT save the state and end the run, in the main thread. Global random states and torch's backends are set as
    the run needs them. Raises ConfigError, DataError, CheckpointError or UserError for what cannot start, RunError for
    what fails.
    """
    from sightline.training.run_configs import read_with_plugins
    from sightline.training.train_run import train_run as train

    read = read_with_plugins(Path(config), overrides, [Path(plugin) for plugin in plugins])
    for line in read.notes:
        logger.warning("%s", line)
    return train(
        read.config,
        plugins=read.plugins,
        out=None if out is None else Path(out),
        resume=None if resume is None else str(resume),
        checks=checks,
        device=device,
        reporter=reporter,
    )
